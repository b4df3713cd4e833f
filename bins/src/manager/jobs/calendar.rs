//! The clock that calls jobs: one timer for all of them, on the wall clock. It fires too when that is set, and when the machine
//! wakes up after a time that has passed. What is due is `policy::schedule`'s to say.

use super::Job;
use super::memory::Run;
use crate::manager::keep::Keep;
use engine::io::Async;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use policy::schedule::{Due, Plan, Wall};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use serde_json::{Value, json};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use supervisor::clock::wall_seconds;

/// The timer of all schedules.
#[derive(Default)]
pub(super) struct Alarm {
    timer: Option<Rc<Async<OwnedFd>>>,
    at: Option<Wall>,
}

fn now() -> Wall {
    Wall::try_from(wall_seconds()).unwrap_or(Wall::MAX)
}

/// Seconds that a time zone is ahead of UTC at a time.
fn offset_of(zone: TimeZone) -> impl Fn(Wall) -> i64 {
    move |at| i64::from(zone.to_offset(Timestamp::from_second(at).unwrap_or_default()).seconds())
}

impl Keep {
    /// Begins the runs that are due, and sets the timer for the next one.
    pub(super) fn look_at_calendar(self: &Rc<Self>) {
        let list = self.jobs.borrow().list.clone();
        let planned: Vec<_> = list.iter().filter(|j| j.call.plan.borrow().is_some()).collect();
        if planned.is_empty() && self.jobs.borrow().alarm.at.is_none() {
            return;
        }
        let offset = offset_of(TimeZone::system());
        let mut next: Option<Wall> = None;
        for job in planned {
            if !job.up.get() || job.removed.get() || self.is_stopping() {
                continue;
            }
            let missed = job.config.borrow().missed;
            let look = || {
                let busy = job.call.is_awake();
                job.call.plan.borrow_mut().as_mut().map(|p| p.look(now(), busy, missed, &offset))
            };
            let due = look();
            match due {
                Some(Due::Run) => self.wake_job(job, "schedule"),
                Some(Due::Overlaps) => self.job_note(job, "skipped", "the last run goes on still"),
                Some(Due::Missed) => self.job_note(job, "skipped", "it was missed"),
                Some(Due::NotBefore(_)) | None => {}
            }
            if let Some(Due::NotBefore(at)) = due.filter(|d| matches!(d, Due::NotBefore(_))).or_else(look) {
                next = Some(next.map_or(at, |n| n.min(at)));
            }
        }
        self.remember_plans(&list);
        if let Err(e) = self.set_alarm(next) {
            log::error!("event=alarm-failed: {e}");
        }
    }

    /// Gives a job the plan of its configuration.
    pub(super) fn plan(&self, job: &Job) {
        let schedule = job.config.borrow().schedule.clone();
        let mut plan = job.call.plan.borrow_mut();
        if plan.as_ref().map(Plan::schedule) == schedule.as_ref() {
            return;
        }
        let dealt = self.jobs.borrow().memory.is.runs.get(&job.name).map(|r| r.dealt);
        // another schedule than the last one owes nothing
        let dealt = dealt.filter(|_| plan.is_none());
        *plan = schedule.map(|s| Plan::new(s, dealt, now()));
    }

    fn remember_plans(&self, list: &[Rc<Job>]) {
        let mut jobs = self.jobs.borrow_mut();
        let runs = &mut jobs.memory.is.runs;
        runs.retain(|name, _| list.iter().any(|j| j.name == *name && j.call.plan.borrow().is_some()));
        for job in list {
            if let Some(plan) = &*job.call.plan.borrow() {
                runs.entry(job.name.clone()).or_default().dealt = plan.dealt();
            }
        }
        jobs.memory.save();
    }

    pub(super) fn run_begins(&self, job: &Job) {
        if let Some(plan) = &mut *job.call.plan.borrow_mut() {
            plan.started(now());
            let run = Run { dealt: plan.dealt(), started: Some(now()), ended: None, result: None };
            self.remember_run(job, run);
        }
    }

    pub(super) fn run_ends(&self, job: &Job, how: &str) {
        if let Some(plan) = &*job.call.plan.borrow() {
            let started = self.last_run(job).and_then(|r| r.started);
            let run = Run { dealt: plan.dealt(), started, ended: Some(now()), result: Some(how.to_owned()) };
            self.remember_run(job, run);
        }
    }

    fn remember_run(&self, job: &Job, run: Run) {
        let mut jobs = self.jobs.borrow_mut();
        jobs.memory.is.runs.insert(job.name.clone(), run);
        jobs.memory.save();
        drop(jobs);
        // before anything is started: a run is not to be done twice, whatever the disk does
        self.remember();
    }

    fn last_run(&self, job: &Job) -> Option<Run> {
        self.jobs.borrow().memory.is.runs.get(&job.name).cloned()
    }

    /// For the status: when it runs next, and how it ran last. Times are seconds since 1970.
    pub(super) fn schedule_status(&self, job: &Job) -> Value {
        let plan = job.call.plan.borrow();
        let Some(plan) = &*plan else { return Value::Null };
        let next =
            plan.schedule().after(plan.dealt(), &offset_of(TimeZone::system())).filter(|_| job.up.get());
        let last = self.last_run(job).unwrap_or_default();
        json!({ "next": next, "started": last.started, "ended": last.ended, "result": last.result })
    }

    /// Sets the timer; the first time begins to listen to it.
    fn set_alarm(self: &Rc<Self>, at: Option<Wall>) -> io::Result<()> {
        let timer = {
            let mut jobs = self.jobs.borrow_mut();
            if jobs.alarm.at == at {
                return Ok(());
            }
            jobs.alarm.at = at;
            match &jobs.alarm.timer {
                Some(timer) => timer.clone(),
                None => {
                    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
                    let timer = Rc::new(Async::new(timerfd_create(TimerfdClockId::Realtime, flags)?)?);
                    jobs.alarm.timer = Some(timer.clone());
                    drop(engine::spawn(self.clone().hear_alarm(timer.clone())));
                    timer
                }
            }
        };
        let time = |s: Wall| Timespec { tv_sec: s, tv_nsec: 0 };
        let when = Itimerspec { it_interval: time(0), it_value: time(at.unwrap_or(0)) };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        timerfd_settime(timer.get_ref(), flags, &when)?;
        Ok(())
    }

    async fn hear_alarm(self: Rc<Self>, timer: Rc<Async<OwnedFd>>) {
        while timer.readable().await.is_ok() {
            timer.clear_read();
            // ECANCELED: the clock was set
            let _ = rustix::io::read(timer.get_ref(), &mut [0; 8][..]);
            self.jobs.borrow_mut().alarm.at = None;
            self.settle_jobs();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use policy::schedule::Schedule;

    /// The zone's rules and the schedule's arithmetic have the same signs.
    #[test]
    fn times_of_day_are_those_of_the_zone() {
        let local = |rule: &str, start: &str, count: usize| {
            let zone = TimeZone::posix(rule).unwrap();
            let offset = offset_of(zone.clone());
            let daily = Schedule::At { days: [true; 7], minutes: vec![150] };
            let mut at = start.parse::<Timestamp>().unwrap().as_second();
            let mut next = || {
                at = daily.after(at, &offset).unwrap();
                let shown = Timestamp::from_second(at).unwrap().to_zoned(zone.clone());
                shown.strftime("%d %H:%M %z").to_string()
            };
            (0..count).map(|_| next()).collect::<Vec<_>>()
        };
        let berlin = "CET-1CEST,M3.5.0,M10.5.0/3";
        assert_eq!(
            local(berlin, "2026-03-27T12:00:00Z", 3),
            ["28 02:30 +0100", "29 03:30 +0200", "30 02:30 +0200"]
        );
        assert_eq!(
            local(berlin, "2026-10-24T12:00:00Z", 2),
            ["25 02:30 +0200", "26 02:30 +0100"],
            "the second 02:30 of the 25th is left out"
        );
        let new_york = "EST5EDT,M3.2.0,M11.1.0";
        assert_eq!(local(new_york, "2026-03-07T12:00:00Z", 2), ["08 03:30 -0400", "09 02:30 -0400"]);
    }
}
