//! Cop's heartbeats: the policy's machine and the fetch that is under way for it.

use crate::suite;
use policy::Time;
use policy::heartbeat::{Action, Heartbeat, Limits};
use rustix::event::PollFlags;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use supervisor::probe::{Answer, Probe, Target};

/// What a finished fetch proves.
#[derive(Debug, PartialEq, Eq)]
pub enum Proof {
    /// The process in question answered.
    Alive,
    /// Nobody did, or with an error.
    Silent(String),
    /// Somebody else answered on that address: no evidence about ours at all.
    Stranger(String),
}

/// One heartbeat.
#[derive(Debug)]
pub struct Beat {
    name: &'static str,
    machine: Heartbeat,
    fetch: Option<(u64, Probe)>,
    failed: bool,
    /// Why it doesn't answer is known, and was said.
    excused: bool,
}

impl Beat {
    /// Off until started.
    pub fn new(name: &'static str, limits: Limits) -> Beat {
        Beat { name, machine: Heartbeat::new(limits), fetch: None, failed: false, excused: false }
    }

    /// Other numbers from now on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.machine.set_limits(limits);
    }

    /// Begins to ask.
    pub fn start(&mut self, now: Time) {
        (self.failed, self.excused) = (false, false);
        self.fetch = None;
        self.machine.start(now);
    }

    /// Begins anew after a verdict that counts for nothing. True: the first one since it has answered.
    pub fn excuse(&mut self, now: Time) -> bool {
        let before = self.excused;
        self.start(now);
        self.excused = true;
        !before
    }

    /// Stops asking.
    pub fn stop(&mut self) {
        self.failed = false;
        self.fetch = None;
        self.machine.stop();
    }

    /// Is it asked at all?
    pub fn is_on(&self) -> bool {
        self.machine.is_on()
    }

    /// Has it answered since it was started?
    pub fn has_answered(&self) -> bool {
        self.machine.last_good().is_some()
    }

    /// For how long it hasn't answered; `None`: it never has.
    pub fn silent_for(&self, now: Time) -> Option<Duration> {
        self.machine.last_good().map(|at| now.saturating_sub(at))
    }

    /// Takes the verdict, if there is one.
    pub fn take_failed(&mut self) -> bool {
        std::mem::take(&mut self.failed)
    }

    /// True while a verdict waits to be taken.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// When [`Beat::tick`] is due; a next probe may come later by `slack`.
    pub fn deadline(&self, slack: Duration) -> Option<Time> {
        self.machine.deadline_with(slack)
    }

    /// The fd of the fetch under way, with what to poll it for.
    pub fn poll_fd(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        self.fetch.as_ref().map(|(_, p)| (p.as_fd(), p.interest()))
    }

    /// Time has moved on. `begin` starts a fetch that carries the nonce it is given.
    pub fn tick(&mut self, now: Time, begin: impl FnOnce(&str) -> io::Result<Probe>) {
        match self.machine.tick(now) {
            Action::Wait => {
                if self.fetch.as_ref().is_some_and(|(g, _)| !self.machine.expects(*g)) {
                    self.fetch = None;
                }
            }
            Action::Probe(generation) => match begin(&nonce(generation)) {
                Ok(p) => self.fetch = Some((generation, p)),
                Err(e) => self.settle(generation, Proof::Silent(e.to_string()), now),
            },
            Action::Verdict { misses } => self.verdict(misses, "no answer in time"),
        }
    }

    /// The fetch's fd is ready. `judge` says what an answer proves.
    pub fn ready(&mut self, now: Time, judge: impl FnOnce(&Answer, &str) -> Proof) {
        let Some((generation, probe)) = &mut self.fetch else { return };
        let generation = *generation;
        let proof = match probe.step() {
            None => return,
            Some(Ok(answer)) => judge(&answer, &nonce(generation)),
            Some(Err(e)) => Proof::Silent(e.to_string()),
        };
        self.fetch = None;
        self.settle(generation, proof, now);
    }

    fn settle(&mut self, generation: u64, proof: Proof, now: Time) {
        let (good, why) = match proof {
            Proof::Alive => (true, String::new()),
            Proof::Silent(why) => (false, why),
            Proof::Stranger(who) => {
                log::warn!("event=heartbeat-stranger of={}: {who}", self.name);
                (true, String::new())
            }
        };
        self.failed &= !good;
        self.excused &= !good;
        if let Action::Verdict { misses } = self.machine.answered(generation, good, now) {
            self.verdict(misses, &why);
        } else if !good {
            let level = if self.excused { log::Level::Debug } else { log::Level::Info };
            log::log!(
                level,
                "event=heartbeat-missed of={} misses={}: {why}",
                self.name,
                self.machine.misses()
            );
        }
    }

    fn verdict(&mut self, misses: u32, why: &str) {
        let level = if self.excused { log::Level::Debug } else { log::Level::Warn };
        log::log!(level, "event=heartbeat-failed of={} misses={misses}: {why}", self.name);
        self.fetch = None;
        self.failed = true;
    }
}

fn nonce(generation: u64) -> String {
    format!("{}-{generation}", std::process::id())
}

/// Begins a fetch of the server's heartbeat through a port.
///
/// # Errors
/// Refused at once.
pub fn fetch_server(target: &Target, token: &str, nonce: &str) -> io::Result<Probe> {
    Probe::start(target, suite::HEARTBEAT_PATH, &suite::heartbeat_headers(token, nonce))
}

/// What the server's answer proves about the process `pid`.
pub fn judge_server(answer: &Answer, nonce: &str, pid: i32) -> Proof {
    match suite::heartbeat_pid(&answer.body, nonce) {
        Some(p) if p == pid && answer.code == 200 => Proof::Alive,
        Some(p) => Proof::Stranger(format!("pid {p} answered for pid {pid}")),
        None if answer.code == 503 => Proof::Silent("503: nobody serves".into()),
        None => Proof::Stranger(format!("something that isn't this suite answered with {}", answer.code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_process_itself_is_evidence() {
        let a = |code, body: &str| Answer { code, body: body.into() };
        assert_eq!(judge_server(&a(200, "traffic-heartbeat pid=7 nonce=x\n"), "x", 7), Proof::Alive);
        assert!(matches!(
            judge_server(&a(200, "traffic-heartbeat pid=8 nonce=x\n"), "x", 7),
            Proof::Stranger(_)
        ));
        assert!(matches!(judge_server(&a(200, "hello"), "x", 7), Proof::Stranger(_)));
        assert!(matches!(judge_server(&a(503, "busy"), "x", 7), Proof::Silent(_)));
    }
}
