//! Restarts of a job: one worker after the other, one restart of a job after the other, and of those that go with it. Of several
//! jobs that are restarted at a time, each waits for those that it is after.

use super::command::{until, when};
use super::worker::Worker;
use super::{Event, Job};
use crate::manager::keep::Keep;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Is a job being restarted?
#[derive(Default)]
pub(super) struct Rolling {
    /// One restart is under way.
    now: Cell<bool>,
    /// One more waits for it, in which all that are asked for meanwhile have their part.
    next: Cell<bool>,
    /// It reaches all workers, not only those that are outdated.
    all: Cell<bool>,
    /// Managers that died over it.
    died: Cell<u32>,
}

/// Whom a restart reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    All,
    /// Those that have not been started with the configuration of now.
    Outdated,
}

/// A restart that so many managers have died over isn't gone on with.
const DIED: u32 = 3;

impl Rolling {
    /// For the next manager: how many have begun it; 0: none is under way.
    pub(super) fn to_remember(&self) -> u32 {
        u32::from(self.is_due()) * (self.died.get() + 1)
    }

    /// One restart is under way, or is to come.
    fn is_due(&self) -> bool {
        self.now.get() || self.next.get()
    }
}

impl Keep {
    /// Goes on with a restart that the last manager has begun: some workers may be as they were before a reload.
    pub(super) fn roll_on(self: &Rc<Self>, job: Rc<Job>, begun: u32) {
        if (1..=DIED).contains(&begun) {
            job.rolling.died.set(begun);
            self.roll(job, Which::All);
        }
    }

    /// Restarts a job in the background, when its turn among the others has come.
    pub(super) fn roll(self: &Rc<Self>, job: Rc<Job>, which: Which) {
        job.rolling.all.set(job.rolling.all.get() || which == Which::All);
        if job.rolling.next.replace(true) {
            return;
        }
        let keep = self.clone();
        drop(engine::spawn(async move {
            keep.await_others(&job).await;
            if job.removed.get() || keep.is_stopping() {
                job.rolling.next.set(false);
            }
            if !job.rolling.next.get() {
                // it ends anyway, or an operator was faster
                return;
            }
            if let Err(why) = keep.roll_in_turn(&job).await {
                log::error!("event=restart-failed of=job job={}: {}", job.name, why.trim_end());
            }
        }));
    }

    /// Waits for those that the job is after and that are restarted too, until they are ready. However long that takes, it goes on
    /// as it is.
    async fn await_others(&self, job: &Rc<Job>) {
        let others: Vec<Rc<Job>> = {
            let c = job.config.borrow();
            c.after.iter().filter_map(|name| self.job(name)).filter(|o| o.rolling.is_due()).collect()
        };
        if others.is_empty() {
            return;
        }
        let names: Vec<&str> = others.iter().map(|o| &*o.name).collect();
        self.job_note(job, "restart-waits", &format!("for {}", names.join(", ")));
        let done = |o: &Rc<Job>| {
            // that this one goes with it has its part in this restart
            let told =
                o.losses_told.get() == o.losses.get() || !job.config.borrow().restart_with.contains(&o.name);
            let settled = !o.rolling.is_due() && o.is_ready() && told;
            settled || !o.up.get() || o.removed.get()
        };
        let in_vain = || !job.up.get() || job.removed.get() || self.is_stopping();
        when(self, || (in_vain() || others.iter().all(done)).then_some(())).await;
    }

    /// Workers that don't run may be started when the turn of their job comes: what they have done, or were given up for, counts no
    /// more.
    pub(super) fn begin_anew(self: &Rc<Self>, job: &Rc<Job>) {
        let workers = job.workers.borrow().clone();
        workers.iter().for_each(|w| self.begin_worker_anew(job, w));
    }

    fn begin_worker_anew(self: &Rc<Self>, job: &Rc<Job>, w: &Rc<Worker>) {
        w.forget_finish();
        if !w.exists() && !w.is_at_rest() {
            self.feed_job(job, w, Event::WantDown);
        }
    }

    /// Restarts a job. One that sleeps has nothing to restart.
    pub(super) async fn roll_now(self: &Rc<Self>, job: &Rc<Job>) -> Result<(), String> {
        job.rolling.all.set(true);
        self.roll_in_turn(job).await
    }

    async fn roll_in_turn(self: &Rc<Self>, job: &Rc<Job>) -> Result<(), String> {
        let result = self.roll_when_free(job).await;
        job.rolling.died.set(0);
        result
    }

    async fn roll_when_free(self: &Rc<Self>, job: &Rc<Job>) -> Result<(), String> {
        let patience = patience(job) * u32::try_from(job.want.get().max(1)).unwrap_or(u32::MAX);
        let free = until(self, patience, || (!job.rolling.now.get()).then_some(())).await;
        job.rolling.next.set(false);
        let all = job.rolling.all.take();
        if free.is_none() {
            return Err(format!("{} is being restarted still\n", job.name));
        }
        if !job.call.is_awake() {
            return Ok(());
        }
        job.rolling.now.set(true);
        self.remember_soon();
        let result = self.roll_workers(job, all).await;
        job.rolling.now.set(false);
        self.wake_changes();
        // those that go with it waited for the last worker
        self.settle_jobs();
        result
    }

    /// The next worker is restarted when the last one is ready again.
    async fn roll_workers(self: &Rc<Self>, job: &Rc<Job>, all: bool) -> Result<(), String> {
        let workers = job.workers.borrow().clone();
        for w in workers.iter().filter(|w| w.index < job.want.get() && (all || w.is_outdated())) {
            let before = w.generation();
            self.begin_worker_anew(job, w);
            match w.exists() && w.is_wanted() {
                true => self.feed_job(job, w, Event::Restart),
                // it is started with the others whose turn comes, if need be later
                false if !self.lacks(job).is_empty() => continue,
                false => self.settle_jobs(),
            }
            let done = until(self, patience(job), || {
                let new = w.generation() != before;
                (new && (w.is_ready() || w.has_finished() == Some(true))).then_some(true).or_else(|| {
                    (w.has_given_up() || (new && w.has_finished() == Some(false)) || !job.up.get())
                        .then_some(false)
                })
            });
            if done.await != Some(true) {
                let why = format!("{} of {} didn't get ready\n", w.in_words(), job.name);
                return Err(why);
            }
        }
        Ok(())
    }

    /// Jobs that are ready again after a loss: those that go with them are restarted. One that runs none of its workers isn't:
    /// it starts anyway, when its turn comes.
    pub(super) fn restart_with(self: &Rc<Self>, list: &[Rc<Job>], ready: &[bool]) {
        if self.is_stopping() {
            return;
        }
        let ready = list.iter().zip(ready).filter(|(j, ready)| **ready && !j.rolling.now.get());
        for (job, _) in ready {
            let losses = job.losses.get();
            if job.losses_told.replace(losses) == losses {
                continue;
            }
            let goes_with = |j: &&Rc<Job>| j.config.borrow().restart_with.contains(&job.name);
            for other in list.iter().filter(goes_with).filter(|j| j.up.get() && !j.is_down()) {
                self.job_note(other, "restart", &format!("with {}", job.name));
                self.roll(other.clone(), Which::All);
            }
        }
    }
}

/// For one worker: from the order to end to the next one's being ready.
fn patience(job: &Job) -> Duration {
    let c = job.config.borrow();
    c.stop_timeout + c.start_grace + Duration::from_secs(15)
}
