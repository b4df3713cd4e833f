//! The machine behind [`safe_kill`](super::safe_kill).
//!
//! ```text
//!           picture, core signal             kill signal
//!   Begin ---------------------> Core ------------------> Kill ---> Done
//!     |                           all ended, or time over   |  all ended, or time over
//!     +----------- no core signal: kill signal -------------+
//! ```
//!
//! A group gets the kill signal also when all of it that was seen ended by the core signal: it may have grown.
//!
//! Invariants: each signal is sent once (plus SIGCONT, since a stopped process takes none but SIGKILL). A target with
//! an outcome is not signalled again. A step at or after the deadline is the last.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use lockfile::{Signal, signal_group};
use policy::Time;
use procfs::process::all_processes;

use super::{Outcome, Plan, Report, Scope, Target};
use crate::identity::{Identity, ProcessState, deaf_thread};

/// So many members of a group are followed one by one; all get the signals.
const MEMBERS: usize = 128;

/// Ends processes step by step, for a poll loop that has other things to do.
#[derive(Debug)]
pub struct Killer {
    plan: Plan,
    phase: Phase,
    deadline: Time,
    all: Vec<One>,
}

/// What a [`Killer`] wants next.
#[derive(Debug)]
pub enum Next<'a> {
    /// To be stepped when one of the descriptors is readable, or at that time (of [`clock::now`](crate::clock::now)).
    Wait {
        /// At the latest then.
        until: Time,
        /// The pidfds of those that are still there.
        fds: Vec<BorrowedFd<'a>>,
    },
    /// Nothing: it is over.
    Done(Report),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Begin,
    Core { until: Time },
    Kill,
    Done,
}

#[derive(Debug)]
struct One {
    target: Target,
    /// Signalled itself, not only as a member of a group.
    direct: bool,
    last: Option<Signal>,
    outcome: Option<Outcome>,
}

impl Killer {
    /// Will end the targets; its time runs from `now`. Nothing is signalled before the first step.
    pub fn new(targets: Vec<Target>, plan: Plan, now: Time) -> Killer {
        let one = |target| One { target, direct: true, last: None, outcome: None };
        let all = targets.into_iter().map(one).collect();
        Killer { deadline: now + plan.timeout, plan, phase: Phase::Begin, all }
    }

    /// Does what is due, and says what it waits for.
    pub fn step(&mut self, now: Time) -> Next<'_> {
        self.all.iter_mut().for_each(One::see);
        match self.phase {
            Phase::Begin => self.begin(now),
            Phase::Core { until } if now >= until || self.settled() => self.kill(),
            Phase::Core { .. } | Phase::Kill | Phase::Done => {}
        }
        if self.phase == Phase::Kill && (now >= self.deadline || self.settled()) {
            self.all.iter_mut().for_each(One::judge);
            self.phase = Phase::Done;
        }
        let until = match self.phase {
            Phase::Core { until } => until,
            Phase::Done => return Next::Done(self.report()),
            Phase::Begin | Phase::Kill => self.deadline,
        };
        Next::Wait {
            until,
            fds: self.all.iter().filter(|o| o.outcome.is_none()).map(|o| o.target.as_fd()).collect(),
        }
    }

    fn settled(&self) -> bool {
        self.all.iter().all(|o| o.outcome.is_some())
    }

    fn begin(&mut self, now: Time) {
        let scope = self.plan.scope;
        for one in self.all.iter_mut().filter(|o| o.outcome.is_none()) {
            one.outcome = refusal(&one.target.identity, scope);
        }
        if scope == Scope::Group {
            self.follow_members();
        }
        if let Some(snapshots) = &self.plan.snapshots {
            for one in self.all.iter().filter(|o| o.outcome.is_none()) {
                snapshots.take(&one.target.identity, "about to be killed");
            }
        }
        match self.plan.core_signal {
            Some(core) => {
                self.all.iter_mut().for_each(|o| o.signal(core, scope));
                self.phase = Phase::Core { until: self.deadline.min(now + self.plan.core_time) };
                // an already empty field needs no waiting
                if self.settled() {
                    self.kill();
                }
            }
            None => self.kill(),
        }
    }

    fn kill(&mut self) {
        let (signal, scope) = (self.plan.kill_signal, self.plan.scope);
        self.all.iter_mut().for_each(|o| o.signal(signal, scope));
        self.phase = Phase::Kill;
    }

    /// Takes the other members of the targets' groups along, to wait for their ends too.
    fn follow_members(&mut self) {
        let open = self.all.iter().filter(|o| o.outcome.is_none());
        let groups: Vec<i32> = open.map(|o| o.target.identity.pid).collect();
        let known: Vec<i32> = self.all.iter().map(|o| o.target.identity.pid).collect();
        let processes = all_processes().into_iter().flatten().flatten();
        let members = processes.filter(|p| !known.contains(&p.pid)).filter_map(|p| {
            let is_member = |t: &Target| {
                let look = t.identity.look();
                look.is_some_and(|l| groups.contains(&l.group) && l.state != ProcessState::Zombie)
            };
            // the cheap question first: a target costs a descriptor
            p.stat().ok().filter(|s| groups.contains(&s.pgrp))?;
            Target::of_pid(p.pid).ok().filter(is_member)
        });
        let members: Vec<Target> = members.take(MEMBERS).collect();
        self.all.extend(members.into_iter().map(|target| One {
            target,
            direct: false,
            last: None,
            outcome: None,
        }));
    }

    fn report(&self) -> Report {
        let outcomes = self.all.iter().filter_map(|o| Some((o.target.identity.clone(), o.outcome.clone()?)));
        Report { outcomes: outcomes.collect() }
    }
}

fn refusal(who: &Identity, scope: Scope) -> Option<Outcome> {
    let own_group = rustix::process::getpgrp().as_raw_nonzero().get();
    // looked at again, and not remembered: a group can be left and made at any time
    let look = who.look();
    match look {
        None => Some(Outcome::NotTheSame),
        _ if who.pid == std::process::id() as i32 => Some(Outcome::Refused("it is this very process")),
        _ if who.pid <= 1 => Some(Outcome::Refused("it is init")),
        Some(look) if scope == Scope::Group && look.group == own_group => {
            Some(Outcome::Refused("its process group is our own"))
        }
        Some(look) if scope == Scope::Group && look.group != who.pid => {
            Some(Outcome::Refused("it does not lead its process group"))
        }
        Some(_) => None,
    }
}

impl One {
    /// Has it ended?
    fn see(&mut self) {
        if self.outcome.is_some() || self.target.pidfd.is_alive() {
            return;
        }
        let after = self.last;
        self.outcome = Some(match self.target.identity.look() {
            Some(look) if look.state == ProcessState::Zombie => {
                Outcome::Zombie { after, parent: look.parent }
            }
            _ => Outcome::Gone { after },
        });
    }

    /// Sends a signal if it is there and still who it was; to its group also after its own end.
    fn signal(&mut self, signal: Signal, scope: Scope) {
        self.see();
        let identity = &self.target.identity;
        match &self.outcome {
            None if !identity.still() => {
                self.outcome = Some(Outcome::NotTheSame);
                return;
            }
            None => {}
            // the pidfd names the group that it led and no other
            Some(Outcome::Gone { after: Some(_) } | Outcome::Zombie { after: Some(_), .. })
                if scope == Scope::Group => {}
            Some(_) => return,
        }
        if self.outcome.is_none() {
            self.last = Some(signal);
        }
        if !self.direct {
            return;
        }
        let target = &self.target;
        let send = |signal: Signal| match scope {
            Scope::Single => target.pidfd.signal(signal as i32),
            Scope::Group => signal_group(target.as_fd(), target.identity.pid, signal),
        };
        match send(signal) {
            Ok(()) if signal != Signal::SIGKILL => drop(send(Signal::SIGCONT)),
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(nix::libc::ESRCH) => {}
            Err(e) => self.fail(&e),
        }
    }

    fn fail(&mut self, e: &io::Error) {
        self.outcome.get_or_insert(Outcome::Failed(e.kind()));
    }

    /// The time is over.
    fn judge(&mut self) {
        self.see();
        if self.outcome.is_some() {
            return;
        }
        let identity = &self.target.identity;
        self.outcome = Some(match (identity.look(), deaf_thread(identity.pid)) {
            (None, _) => Outcome::Gone { after: self.last },
            (Some(_), Some(wchan)) => Outcome::Uninterruptible { wchan },
            (Some(look), None) => Outcome::StillThere { state: look.state },
        });
    }
}
