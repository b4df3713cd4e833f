//! Restarts of a job: one worker after the other, one restart of a job after the other, and of those that go with it.

use super::command::until;
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
    /// Managers that died over it.
    died: Cell<u32>,
}

/// A restart that so many managers have died over isn't gone on with.
const DIED: u32 = 3;

impl Rolling {
    /// For the next manager: how many have begun it; 0: none is under way.
    pub(super) fn to_remember(&self) -> u32 {
        u32::from(self.now.get() || self.next.get()) * (self.died.get() + 1)
    }
}

impl Keep {
    /// Goes on with a restart that the last manager has begun: some workers may be as they were before a reload.
    pub(super) fn roll_on(self: &Rc<Self>, job: Rc<Job>, begun: u32) {
        if (1..=DIED).contains(&begun) {
            job.rolling.died.set(begun);
            self.roll(job);
        }
    }

    /// Restarts a job in the background.
    pub(super) fn roll(self: &Rc<Self>, job: Rc<Job>) {
        if job.rolling.next.replace(true) {
            return;
        }
        let keep = self.clone();
        drop(engine::spawn(async move {
            if let Err(why) = keep.roll_now(&job).await {
                log::error!("event=restart-failed of=job job={}: {}", job.name, why.trim_end());
            }
        }));
    }

    /// Restarts a job. One that sleeps has nothing to restart.
    pub(super) async fn roll_now(self: &Rc<Self>, job: &Rc<Job>) -> Result<(), String> {
        let result = self.roll_in_turn(job).await;
        job.rolling.died.set(0);
        result
    }

    async fn roll_in_turn(self: &Rc<Self>, job: &Rc<Job>) -> Result<(), String> {
        let patience = patience(job) * u32::try_from(job.want.get().max(1)).unwrap_or(u32::MAX);
        let free = until(self, patience, || (!job.rolling.now.get()).then_some(())).await;
        job.rolling.next.set(false);
        if free.is_none() {
            return Err(format!("{} is being restarted still\n", job.name));
        }
        if !job.call.is_awake() {
            return Ok(());
        }
        job.rolling.now.set(true);
        self.remember_soon();
        let result = self.roll_workers(job).await;
        job.rolling.now.set(false);
        self.wake_changes();
        // those that go with it waited for the last worker
        self.settle_jobs();
        result
    }

    /// The next worker is restarted when the last one is ready again.
    async fn roll_workers(self: &Rc<Self>, job: &Rc<Job>) -> Result<(), String> {
        let workers = job.workers.borrow().clone();
        for w in workers.iter().filter(|w| w.index < job.want.get()) {
            let before = w.generation();
            w.forget_finish();
            self.feed_job(job, w, Event::Restart);
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
                self.roll(other.clone());
            }
        }
    }
}

/// For one worker: from the order to end to the next one's being ready.
fn patience(job: &Job) -> Duration {
    let c = job.config.borrow();
    c.stop_timeout + c.start_grace + Duration::from_secs(15)
}
