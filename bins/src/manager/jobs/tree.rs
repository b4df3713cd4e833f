//! What a worker leaves behind when it ends: descendants that have left its process group. They go with it, before the next
//! one is started or the job counts as down.
//!
//! They are found by their control group, if there is one (`manager.cgroup`), and by the mark in the environment that they
//! have inherited: among the orphans that have come to this manager, which is the subreaper of its workers; after the death of
//! a manager, whose orphans went to cop, among all processes.

use super::worker::Worker;
use super::{Job, Jobs};
use crate::config::job::MARK;
use crate::config::manager::Cgroup;
use crate::manager::keep::Keep;
use engine::io::Async;
use engine::time::{sleep, timeout};
use policy::Time;
use policy::child::State;
use std::cell::RefCell;
use std::ffi::OsString;
use std::future::poll_fn;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use supervisor::cgroup::{Group, Groups, Limits};
use supervisor::pidfd::PidFd;
use supervisor::tree::{self, Found};
use supervisor::{clock, reaper};

/// After SIGKILL what is left has this time to vanish.
const VANISH: Duration = Duration::from_secs(5);
/// Who is ending already is waited for so long: its own orphans come next.
const ENDING: Duration = Duration::from_millis(200);
/// All processes are looked at no more often than this, however many workers end.
const LOOK: Duration = Duration::from_millis(10);

/// All processes with a mark of ours, as of some time.
#[derive(Default)]
pub(super) struct Census {
    at: Time,
    taking: bool,
    /// Process, job, worker.
    marked: Rc<Vec<(i32, String, usize)>>,
}

/// What a worker has in its environment so that its descendants are known.
pub(super) fn mark(keep: &Keep) -> (&'static str, OsString) {
    (MARK[0], keep.runtime.dir().into())
}

/// Takes the directory for control groups that the configuration has, and says why there is none.
pub(super) fn groups(wanted: &Cgroup) -> Option<Groups> {
    match wanted {
        Cgroup::None => None,
        Cgroup::Auto => Groups::delegated().inspect_err(|e| log::debug!("event=no-cgroups of=job: {e}")).ok(),
        Cgroup::At(path) => {
            Groups::at(path).inspect_err(|e| log::error!("event=cgroup-failed of=job: {e}")).ok()
        }
    }
}

impl Jobs {
    fn group(&self, job: &str, worker: usize) -> Option<Group> {
        Some(self.groups.as_ref()?.group(&format!("job.{job}")).group(&worker.to_string()))
    }
}

impl Keep {
    /// Makes the control group that a worker is to be in. Limits that can't be had are no reason not to start it, but are
    /// said.
    pub(super) fn make_group(&self, job: &Job, worker: usize) -> Option<Group> {
        let jobs = self.jobs.borrow();
        let limits = job.config.borrow().limits();
        let Some(groups) = &jobs.groups else {
            if limits.any() {
                log::warn!(
                    "event=cgroup-failed of=job job={}: its limits aren't set: there are no control groups \
                     (manager.cgroup)",
                    job.name
                );
            }
            return None;
        };
        let of_job = groups.group(&format!("job.{}", job.name));
        let group = of_job.group(&worker.to_string());
        if let Err(e) = of_job.make().and_then(|()| group.make()) {
            log::warn!("event=cgroup-failed of=job job={} worker={worker}: {e}", job.name);
            return None;
        }
        if let Err(e) = limit(groups, &of_job, &limits) {
            log::warn!("event=cgroup-failed of=job job={}: its limits aren't set: {e}", job.name);
        }
        Some(group)
    }

    /// Sets the limits of jobs that run once more: where systemd has no subgroup for cop (before 254), our unit takes them away
    /// when cop has died, since the next one couldn't be started beside them.
    pub(in crate::manager) fn limit_again(&self) {
        let jobs = self.jobs.borrow();
        let Some(groups) = &jobs.groups else { return };
        for job in jobs.list.iter() {
            let limits = job.config.borrow().limits();
            if !limits.any() || !job.workers.borrow().iter().any(|w| w.exists()) {
                continue;
            }
            let of_job = groups.group(&format!("job.{}", job.name));
            if let Err(e) = limit(groups, &of_job, &limits) {
                log::warn!("event=cgroup-failed of=job job={}: its limits aren't set again: {e}", job.name);
            }
        }
    }

    /// Ends what is left of a worker that has ended; then it is gone.
    pub(super) fn leave_nothing(self: &Rc<Self>, job: &Rc<Job>, w: &Rc<Worker>, end: super::worker::End) {
        self.reap_orphans();
        let whole = w.is_adopted();
        if !whole && self.left_now(job, w.index).is_empty() {
            return self.job_gone(job, w, end);
        }
        let (keep, job, w) = (self.clone(), job.clone(), w.clone());
        drop(engine::spawn(async move {
            keep.end_left(&job, &w, whole).await;
            keep.job_gone(&job, &w, end);
        }));
    }

    async fn end_left(self: &Rc<Self>, job: &Rc<Job>, w: &Rc<Worker>, whole: bool) {
        let begun = clock::now();
        let (signal, time) = {
            let c = job.config.borrow();
            (c.stop_signal, c.stop_timeout)
        };
        let polite = if w.is_stopped_in_order() { time } else { Duration::ZERO };
        let mut told = Vec::new();
        loop {
            let mut left = self.left_now(job, w.index);
            if whole {
                left.extend(self.marked_elsewhere(job, w.index).await);
            }
            let now = clock::now();
            if left.is_empty() {
                break;
            }
            if now >= begun + polite + VANISH {
                let pids: Vec<i32> = left.iter().map(|f| f.pid).collect();
                log::error!("event=tree-left of=job job={} worker={} pids={pids:?}", job.name, w.index);
                break;
            }
            let kill = now >= begun + polite;
            for f in left.iter().filter(|f| f.mark.is_some()) {
                if !told.contains(&f.pid) {
                    told.push(f.pid);
                    self.job_event(job, w, "descendant", &format!("of_pid={} kill={kill}", f.pid));
                    if !kill {
                        let _ = f.pidfd.signal(signal);
                        let _ = f.pidfd.signal(nix::libc::SIGCONT);
                    }
                }
                if kill {
                    let _ = f.pidfd.signal(nix::libc::SIGKILL);
                }
            }
            if kill && let Some(group) = self.jobs.borrow().group(&job.name, w.index) {
                let _ = group.kill();
            }
            let until = if kill { now + VANISH } else { begun + polite };
            await_ends(left, until).await;
        }
    }

    /// What is left of a worker in its control group, and among our orphans.
    fn left_now(&self, job: &Job, worker: usize) -> Vec<Found> {
        let known = self.pids();
        let mut left = tree::orphans(&MARK, &known);
        left.retain(|f| f.mark.as_ref().is_none_or(|m| self.is_of(m, &job.name, worker)));
        if let Some(group) = self.jobs.borrow().group(&job.name, worker) {
            let of_mark: Vec<i32> = left.iter().map(|f| f.pid).collect();
            left.extend(members(&group, &of_mark));
        }
        left
    }

    /// What is left of a worker of an earlier manager, wherever its orphans have gone.
    async fn marked_elsewhere(self: &Rc<Self>, job: &Job, worker: usize) -> Vec<Found> {
        let all = self.census().await;
        let known = self.pids();
        let pids = all.iter().filter(|(_, j, n)| *j == job.name && *n == worker).map(|(pid, ..)| *pid);
        let found =
            pids.filter(|pid| !known.contains(pid)).filter_map(|pid| tree::examine(pid, &MARK).ok()?);
        found.filter(|f| f.mark.as_ref().is_some_and(|m| self.is_of(m, &job.name, worker))).collect()
    }

    fn is_of(&self, mark: &[String], job: &str, worker: usize) -> bool {
        self.is_ours(mark) && mark[1] == job && mark[2] == worker.to_string()
    }

    fn is_ours(&self, mark: &[String]) -> bool {
        self.runtime.dir().to_str() == Some(&mark[0])
    }

    /// All marked processes, looked at after now; who asks meanwhile shares the look.
    async fn census(self: &Rc<Self>) -> Rc<Vec<(i32, String, usize)>> {
        let asked = clock::now();
        let census = || self.jobs.borrow().census.clone();
        if !std::mem::replace(&mut census().borrow_mut().taking, true) {
            let keep = self.clone();
            drop(engine::spawn(async move {
                sleep(LOOK).await;
                let at = clock::now();
                let marked = keep.marked_now();
                *keep.jobs.borrow().census.borrow_mut() = Census { at, taking: false, marked };
                keep.wake_changes();
            }));
        }
        poll_fn(|cx| {
            let census = census();
            let census = census.borrow();
            match census.at > asked {
                true => Poll::Ready(census.marked.clone()),
                false => {
                    self.changes.borrow_mut().push(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    fn marked_now(&self) -> Rc<Vec<(i32, String, usize)>> {
        let found = tree::marked_of(&MARK, self.runtime.dir())
            .inspect_err(|e| log::warn!("event=tree-failed of=job: {e}"))
            .unwrap_or_default();
        let whose = |f: Found| {
            let mark = f.mark?;
            Some((f.pid, mark[1].clone(), mark[2].parse().ok()?))
        };
        Rc::new(found.into_iter().filter_map(whose).collect())
    }

    /// At a manager's begin: processes of jobs that no worker answers for, left by a manager that was killed before it could
    /// have them kept, or while it was ending them. They would be in the way of those that are started now.
    pub(super) fn end_unknown(&self) {
        let known = self.pids();
        let exists = |job: &str, worker: usize| {
            self.job(job).is_some_and(|j| j.workers.borrow().iter().any(|w| w.index == worker && w.exists()))
        };
        let mut killed = Vec::new();
        for (pid, job, worker) in self.marked_now().iter() {
            if exists(job, *worker) || known.contains(pid) {
                continue;
            }
            if let Ok(Some(f)) = tree::examine(*pid, &MARK)
                && f.mark.as_ref().is_some_and(|m| self.is_of(m, job, *worker))
            {
                log::warn!("event=stray of=job job={job} worker={worker} pid={pid}: nobody answers for it");
                let _ = f.pidfd.signal(nix::libc::SIGKILL);
                killed.push(f.pidfd);
            }
        }
        let until = clock::now() + Duration::from_secs(1);
        for pidfd in killed {
            let _ = pidfd.poll_exit(until.saturating_sub(clock::now()));
        }
    }

    /// Takes the exit codes of orphans that came to us; our own processes are waited for by their pidfds.
    pub(in crate::manager) fn reap_orphans(&self) {
        let ours = self.pids();
        for pid in reaper::reap_strangers(|p| ours.contains(&p)) {
            log::debug!("event=reaped pid={pid}");
        }
        self.step_memory();
    }

    /// The control groups of a worker that isn't wanted any more.
    pub(super) fn drop_group(&self, job: &str, worker: usize) {
        let jobs = self.jobs.borrow();
        if let (Some(group), Some(groups)) = (jobs.group(job, worker), &jobs.groups) {
            group.remove();
            // as long as there is another worker in it, it stays
            groups.group(&format!("job.{job}")).remove();
        }
    }
}

fn limit(groups: &Groups, of_job: &Group, limits: &Limits) -> std::io::Result<()> {
    groups.allow(limits)?;
    of_job.limit(limits)
}

/// Who is in a group, but for those who were found already.
fn members(group: &Group, but: &[i32]) -> Vec<Found> {
    let held = group.pids().into_iter().filter(|pid| !but.contains(pid));
    let held: Vec<_> = held.filter_map(|pid| Some((pid, PidFd::open(pid).ok()?))).collect();
    // looked at again: the number may have become another process's before it was held
    let still = if held.is_empty() { Vec::new() } else { group.pids() };
    let found = held.into_iter().filter(|(pid, _)| still.contains(pid));
    found.map(|(pid, pidfd)| Found { pid, pidfd, mark: Some(Vec::new()) }).collect()
}

async fn await_ends(left: Vec<Found>, until: Time) {
    for f in left {
        let own = if f.mark.is_some() { until } else { until.min(clock::now() + ENDING) };
        let Ok(end) = f.pidfd.as_fd().try_clone_to_owned().and_then(Async::new) else { continue };
        let _ = timeout(own.saturating_sub(clock::now()), end.readable()).await;
    }
}

impl Worker {
    /// Is it being ended because that was asked for?
    fn is_stopped_in_order(&self) -> bool {
        matches!(self.state(), State::Stopping { fault: false, .. })
    }
}

/// Shared by who waits for it.
pub(super) type SharedCensus = Rc<RefCell<Census>>;
