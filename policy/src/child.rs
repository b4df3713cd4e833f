//! One supervised process. Two small axes: what is *wanted* (up or down), and what *is*:
//!
//! ```text
//!            WantUp                Spawned                 Ready
//!   Down ------------> Launching ----------> Starting ------------> Ready
//!    ^                  |   ^                 |   |                  |  |
//!    |       SpawnFailed|   |Tick (over)      |   | start grace over |  | Unhealthy, Restart, WantDown
//!    |                  v   |           Exited|   +--> Stopping <----|--+
//!    |                 Waiting <--------------+          |  |        |
//!    |                  |   ^                            |  |        | Exited
//!    |        WantDown  |   +------- Exited, wanted up --+  |        |
//!    +------------------+--------------- Exited, wanted down+        v
//!    |                                                            Waiting, or
//!    +--------------------------- WantUp starts anew -------------- GaveUp (budget used up)
//! ```
//!
//! Invariants: at most one process serves at a time (a spawn is only asked for when the last one's exit was seen, or when
//! it has let go of its duty: `Displaced`); an event that carries an old generation changes nothing; every state but Down,
//! GaveUp and Ready has a deadline; a watcher that was stopped while the start grace ran out gives it anew.
//! Whoever sends the signals holds a pidfd; this machine knows no pid.

use crate::Time;
use crate::backoff::{self, Backoff, Respawn};
use crate::ladder::{Ladder, Rung, Rungs};
use std::time::Duration;

/// A tick that comes later than its deadline by more than this (and a tenth of the start grace, if that is shorter) comes
/// from a watcher that was stopped itself.
const LATE: Duration = Duration::from_millis(250);

/// Numbers of a child.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From spawn to ready; longer is treated as a hang.
    pub start_grace: Duration,
    /// How an orderly stop climbs.
    pub stop: Rungs,
    /// How respawns are braked.
    pub respawn: backoff::Limits,
}

/// What is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// No process, none wanted.
    Down,
    /// The caller was told to spawn and hasn't said how it went.
    Launching,
    /// There is a process; it isn't ready.
    Starting {
        /// When it was spawned.
        since: Time,
        /// When it is taken for hung.
        until: Time,
    },
    /// It serves.
    Ready {
        /// Since when.
        since: Time,
    },
    /// It is being ended.
    Stopping {
        /// Where on the ladder.
        ladder: Ladder,
        /// When it had become ready, if it had.
        ready_since: Option<Time>,
        /// True if it is ended for cause (hung), so that its end counts as a crash.
        fault: bool,
    },
    /// No process; the next is due then.
    Waiting {
        /// When.
        until: Time,
    },
    /// The crash budget is used up.
    GaveUp,
}

impl State {
    /// The word for status and logs.
    pub fn name(&self) -> &'static str {
        match self {
            State::Down => "down",
            State::Launching => "launching",
            State::Starting { .. } => "starting",
            State::Ready { .. } => "ready",
            State::Stopping { .. } => "stopping",
            State::Waiting { .. } => "backoff",
            State::GaveUp => "gave-up",
        }
    }

    /// True when a process exists.
    pub fn is_alive(&self) -> bool {
        matches!(self, State::Starting { .. } | State::Ready { .. } | State::Stopping { .. })
    }
}

/// What happened. `u64` is the generation of the process it happened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It is to run.
    WantUp,
    /// It is to be ended.
    WantDown,
    /// The spawn asked for succeeded: there is a process.
    Spawned,
    /// The spawn asked for failed. `permanent`: the same command would fail again at once (no such file …).
    SpawnFailed {
        /// See above.
        permanent: bool,
    },
    /// A process that somebody else spawned is taken over, instead of a spawn.
    Adopted {
        /// Whether it serves already.
        ready: bool,
    },
    /// The same of one that was starting when somebody else saw it last: its start grace isn't a new one.
    AdoptedStarting {
        /// When it was spawned.
        since: Time,
        /// When it is taken for hung.
        until: Time,
    },
    /// It says that it serves.
    Ready(u64),
    /// It asks for more time to start (EXTEND_TIMEOUT_USEC).
    Extend(u64, Duration),
    /// It is gone. `permanent`: by an exit code that the same command would meet again.
    Exited(u64, bool),
    /// The process has let go of its duty in order, and ends by itself in somebody else's care: the next one is wanted now.
    Displaced,
    /// A heartbeat's verdict.
    Unhealthy(u64),
    /// End it in order and start another at once.
    Restart,
    /// Time has moved on.
    Tick,
}

/// What the caller owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Spawn, and answer with `Spawned` or `SpawnFailed`.
    Spawn,
    /// Send this rung's signal to the process (`Stuck`: report it).
    Send(Rung),
    /// Say loudly that nothing more will be tried.
    AnnounceGaveUp,
}

/// The machine.
#[derive(Debug, Clone)]
pub struct Child {
    limits: Limits,
    wanted: bool,
    state: State,
    generation: u64,
    spawns: u64,
    backoff: Backoff,
}

impl Child {
    /// Down and not wanted.
    pub fn new(limits: Limits) -> Self {
        let backoff = Backoff::new(limits.respawn);
        Child { limits, wanted: false, state: State::Down, generation: 0, spawns: 0, backoff }
    }

    /// What is.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Is it meant to run?
    pub fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// The generation of the process that is, or of the last one: spawned and adopted ones count.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Processes spawned after the first one.
    pub fn restarts(&self) -> u64 {
        self.spawns.saturating_sub(1)
    }

    /// Crashes in a row.
    pub fn crashes(&self) -> u32 {
        self.backoff.crashes()
    }

    /// Its numbers.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Takes new numbers from a reload; what is under way keeps its old deadlines.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        self.backoff.set_limits(limits.respawn);
    }

    /// When `Tick` is due.
    pub fn deadline(&self) -> Option<Time> {
        match &self.state {
            State::Starting { until, .. } | State::Waiting { until } => Some(*until),
            State::Stopping { ladder, .. } => ladder.deadline(),
            State::Down | State::Launching | State::Ready { .. } | State::GaveUp => None,
        }
    }

    /// One step. `random` in `0.0..1.0` is used for the jitter of a respawn.
    pub fn handle(&mut self, event: Event, now: Time, random: f64) -> Action {
        match event {
            Event::WantUp => self.want_up(),
            Event::Displaced => self.displaced(),
            Event::WantDown => self.want_down(now),
            Event::Restart => self.restart(now),
            Event::Spawned => self.spawned(now),
            Event::SpawnFailed { permanent } if self.state == State::Launching => {
                self.gone(None, true, permanent, now, random)
            }
            Event::Adopted { ready: true } => self.adopted(State::Ready { since: now }),
            Event::Adopted { ready: false } => self.adopted(self.starting(now)),
            Event::AdoptedStarting { since, until } => self.adopted(State::Starting { since, until }),
            Event::Ready(g) if g == self.generation => self.ready(now),
            Event::Extend(g, more) if g == self.generation => self.extend(now + more),
            Event::Exited(g, permanent) if g == self.generation => self.exited(permanent, now, random),
            Event::Unhealthy(g) if g == self.generation => self.unhealthy(now),
            Event::Tick => self.tick(now),
            _ => Action::Nothing,
        }
    }

    fn want_up(&mut self) -> Action {
        self.wanted = true;
        match self.state {
            State::Down | State::GaveUp | State::Waiting { .. } => {
                self.backoff.reset();
                self.launch()
            }
            _ => Action::Nothing,
        }
    }

    fn want_down(&mut self, now: Time) -> Action {
        self.wanted = false;
        match self.state {
            State::Waiting { .. } | State::GaveUp => {
                self.state = State::Down;
                Action::Nothing
            }
            State::Starting { .. } | State::Ready { .. } => self.stop(self.limits.stop, false, now),
            State::Down | State::Launching | State::Stopping { .. } => Action::Nothing,
        }
    }

    fn restart(&mut self, now: Time) -> Action {
        if !matches!(self.state, State::Starting { .. } | State::Ready { .. }) {
            return self.want_up();
        }
        self.wanted = true;
        self.backoff.reset();
        self.stop(self.limits.stop, false, now)
    }

    fn displaced(&mut self) -> Action {
        match self.state {
            State::Starting { .. } | State::Ready { .. } if self.wanted => self.launch(),
            _ => Action::Nothing,
        }
    }

    fn launch(&mut self) -> Action {
        self.state = State::Launching;
        Action::Spawn
    }

    fn spawned(&mut self, now: Time) -> Action {
        if self.state != State::Launching {
            return Action::Nothing;
        }
        self.generation += 1;
        self.spawns += 1;
        self.state = self.starting(now);
        // the wish may have changed while the spawn was under way
        if self.wanted { Action::Nothing } else { self.stop(self.limits.stop, false, now) }
    }

    fn starting(&self, now: Time) -> State {
        State::Starting { since: now, until: now + self.limits.start_grace }
    }

    fn adopted(&mut self, is: State) -> Action {
        if self.state.is_alive() {
            return Action::Nothing;
        }
        self.generation += 1;
        self.spawns = self.spawns.max(1);
        self.state = is;
        Action::Nothing
    }

    fn ready(&mut self, now: Time) -> Action {
        if matches!(self.state, State::Starting { .. }) {
            self.state = State::Ready { since: now };
        }
        Action::Nothing
    }

    fn extend(&mut self, to: Time) -> Action {
        if let State::Starting { until, .. } = &mut self.state {
            *until = to.max(*until);
        }
        Action::Nothing
    }

    fn unhealthy(&mut self, now: Time) -> Action {
        match self.state {
            State::Starting { .. } | State::Ready { .. } => {
                let hard = Rungs { polite: Duration::ZERO, ..self.limits.stop };
                self.stop(hard, true, now)
            }
            _ => Action::Nothing,
        }
    }

    fn stop(&mut self, rungs: Rungs, fault: bool, now: Time) -> Action {
        let ready_since = match self.state {
            State::Ready { since } => Some(since),
            _ => None,
        };
        let (ladder, first) = Ladder::begin(rungs, now);
        self.state = State::Stopping { ladder, ready_since, fault };
        Action::Send(first)
    }

    fn exited(&mut self, permanent: bool, now: Time, random: f64) -> Action {
        match &self.state {
            State::Starting { .. } => self.gone(None, true, permanent, now, random),
            State::Ready { since } => {
                let since = *since;
                self.gone(Some(since), true, permanent, now, random)
            }
            State::Stopping { ready_since, fault, .. } => {
                let (ready_since, fault) = (*ready_since, *fault);
                self.gone(ready_since, fault, false, now, random)
            }
            _ => Action::Nothing,
        }
    }

    /// There is no process any more. What comes next?
    fn gone(&mut self, ready: Option<Time>, fault: bool, permanent: bool, now: Time, random: f64) -> Action {
        if !self.wanted {
            self.state = State::Down;
            return Action::Nothing;
        }
        if !fault {
            return self.launch();
        }
        match self.backoff.crashed(ready, now, random) {
            Respawn::GiveUp => {
                self.state = State::GaveUp;
                Action::AnnounceGaveUp
            }
            Respawn::After(_) if permanent => {
                self.state = State::Waiting { until: now + self.limits.respawn.max };
                Action::Nothing
            }
            Respawn::After(wait) if wait.is_zero() => self.launch(),
            Respawn::After(wait) => {
                self.state = State::Waiting { until: now + wait };
                Action::Nothing
            }
        }
    }

    fn tick(&mut self, now: Time) -> Action {
        match &mut self.state {
            State::Waiting { until } if now >= *until => self.launch(),
            // this watcher stood still (SIGSTOP, a paused machine) when the grace ran out: the child may have stood still too,
            // or have said meanwhile that it is ready, unheard as yet
            State::Starting { until, .. } if now > *until + LATE.min(self.limits.start_grace / 10) => {
                *until = now + self.limits.start_grace;
                Action::Nothing
            }
            State::Starting { until, .. } if now >= *until => self.unhealthy(now),
            State::Stopping { ladder, .. } => ladder.tick(now).map_or(Action::Nothing, Action::Send),
            _ => Action::Nothing,
        }
    }
}

#[cfg(test)]
#[path = "child_tests.rs"]
mod tests;
