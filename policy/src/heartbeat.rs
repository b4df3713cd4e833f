//! When silence becomes a verdict.
//!
//! ```text
//!   Resting(until) --due--> Waiting(generation, deadline) --answer--> Resting, misses = 0
//!                                     |  bad answer or deadline
//!                                     v
//!                           misses + 1: Resting, or the verdict when `failures` are reached
//! ```
//!
//! Invariants: at most one probe is out; an answer to an old probe changes nothing; a stop of the watcher itself (SIGSTOP,
//! a paused machine, suspend) is seen as a jump of its own clock between two calls and restarts the count, since a
//! watcher that slept can't say that the other was silent. One that comes late by less than that looks once more before
//! it counts a miss: the answer may lie in its socket. It does so once a probe, so that a watcher which is always late
//! finds a hang all the same.

use crate::Time;
use std::time::Duration;

/// The numbers of a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Between the end of a good probe and the next.
    pub interval: Duration,
    /// A probe without an answer after this long has failed.
    pub timeout: Duration,
    /// So many failures in a row are the verdict.
    pub failures: u32,
}

/// After a miss the next probe comes this many times sooner: a doubt is settled faster than a routine is kept.
const HURRY: u32 = 4;

/// Later than its deadline by more than this part of the timeout, a watcher was stopped for a moment.
const LATE: u32 = 20;
/// It then looks for an answer once more, for this part of the timeout.
const LAST_LOOK: u32 = 4;

/// What the caller has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Nothing before [`Heartbeat::deadline`].
    Wait,
    /// Send a probe that carries this generation; drop an older one.
    Probe(u64),
    /// It has been silent too often in a row: it is to be replaced.
    Verdict {
        /// Failed probes in a row.
        misses: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Off,
    Resting { until: Time },
    Waiting { deadline: Time, last_look: bool },
}

/// The heartbeat of one process.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    limits: Limits,
    state: State,
    /// Of the last probe: each has another one.
    generation: u64,
    misses: u32,
    last_call: Time,
    last_good: Option<Time>,
}

impl Heartbeat {
    /// Switched off until [`Heartbeat::start`].
    pub fn new(limits: Limits) -> Self {
        let zero = Time::ZERO;
        Heartbeat { limits, state: State::Off, generation: 0, misses: 0, last_call: zero, last_good: None }
    }

    /// Other numbers, from the next probe on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Begins: first probe as soon as `tick` is called.
    pub fn start(&mut self, now: Time) {
        *self = Heartbeat {
            state: State::Resting { until: now },
            generation: self.generation,
            ..Heartbeat::new(self.limits)
        };
    }

    /// Ends: no probe, no verdict; answers that are still out are void.
    pub fn stop(&mut self) {
        self.state = State::Off;
        self.misses = 0;
    }

    /// True between `start` and `stop`.
    pub fn is_on(&self) -> bool {
        self.state != State::Off
    }

    /// Failures in a row.
    pub fn misses(&self) -> u32 {
        self.misses
    }

    /// True while the answer to the probe of that generation would still count.
    pub fn expects(&self, generation: u64) -> bool {
        matches!(self.state, State::Waiting { .. }) && generation == self.generation
    }

    /// When the last good answer came.
    pub fn last_good(&self) -> Option<Time> {
        self.last_good
    }

    /// When `tick` wants to be called.
    pub fn deadline(&self) -> Option<Time> {
        match self.state {
            State::Off => None,
            State::Resting { until } => Some(until),
            State::Waiting { deadline, .. } => Some(deadline),
        }
    }

    /// As [`Heartbeat::deadline`], with a next probe put off by `slack`: whoever wakes for several things wakes once.
    pub fn deadline_with(&self, slack: Duration) -> Option<Time> {
        match self.state {
            State::Resting { until } => Some(until + slack),
            _ => self.deadline(),
        }
    }

    /// The time has moved on.
    pub fn tick(&mut self, now: Time) -> Action {
        let late = self.late(now);
        if late > self.limits.timeout {
            self.misses = 0;
            self.state = State::Resting { until: now };
        }
        match self.state {
            State::Resting { until } if now >= until => {
                self.generation += 1;
                self.state = State::Waiting { deadline: now + self.limits.timeout, last_look: false };
                Action::Probe(self.generation)
            }
            State::Waiting { deadline, last_look: false }
                if now >= deadline && late > self.limits.timeout / LATE =>
            {
                let deadline = now + self.limits.timeout / LAST_LOOK;
                self.state = State::Waiting { deadline, last_look: true };
                Action::Wait
            }
            State::Waiting { deadline, .. } if now >= deadline => self.missed(now),
            _ => Action::Wait,
        }
    }

    /// The probe of that generation came back, good or bad.
    pub fn answered(&mut self, generation: u64, good: bool, now: Time) -> Action {
        let current = self.expects(generation);
        self.last_call = self.last_call.max(now);
        match (current, good) {
            (false, _) => Action::Wait,
            (true, true) => {
                self.misses = 0;
                self.last_good = Some(now);
                self.state = State::Resting { until: now + self.limits.interval };
                Action::Wait
            }
            (true, false) => self.missed(now),
        }
    }

    fn missed(&mut self, now: Time) -> Action {
        self.misses += 1;
        self.state = State::Resting { until: now + self.limits.interval / HURRY };
        if self.misses >= self.limits.failures.max(1) {
            Action::Verdict { misses: self.misses }
        } else {
            Action::Wait
        }
    }

    /// How long did this watcher itself stand still? It is called at each deadline; by how much it comes later than that,
    /// at least, it was stopped.
    fn late(&mut self, now: Time) -> Duration {
        let due = self.deadline().map_or(now, |d| d.max(self.last_call));
        self.last_call = now;
        now.saturating_sub(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn beat() -> Heartbeat {
        let mut h = Heartbeat::new(Limits { interval: MS(500), timeout: MS(1000), failures: 2 });
        h.start(MS(0));
        h
    }

    #[test]
    fn silence_becomes_a_verdict_after_the_failures_asked_for() {
        let mut h = beat();
        assert!(matches!(h.tick(MS(0)), Action::Probe(_)));
        assert_eq!(h.tick(MS(999)), Action::Wait);
        assert_eq!(h.tick(MS(1000)), Action::Wait);
        assert!(matches!(h.tick(MS(1125)), Action::Probe(_)), "sooner than the routine");
        assert_eq!(h.tick(MS(2125)), Action::Verdict { misses: 2 });
    }

    #[test]
    fn other_limits_count_from_the_next_probe_on() {
        let mut h = beat();
        assert!(matches!(h.tick(MS(0)), Action::Probe(_)));
        h.set_limits(Limits { interval: MS(500), timeout: MS(100), failures: 1 });
        assert_eq!(h.tick(MS(999)), Action::Wait, "this one has the time it was sent with");
        assert_eq!(h.tick(MS(1000)), Action::Verdict { misses: 1 });
        h.start(MS(2000));
        assert!(matches!(h.tick(MS(2000)), Action::Probe(_)));
        assert_eq!(h.tick(MS(2100)), Action::Verdict { misses: 1 });
    }

    #[test]
    fn one_good_answer_clears_the_count_and_an_old_one_does_not() {
        let mut h = beat();
        let Action::Probe(old) = h.tick(MS(0)) else { panic!() };
        assert_eq!(h.tick(MS(1000)), Action::Wait);
        assert_eq!(h.misses(), 1);
        assert_eq!(h.answered(old, true, MS(1100)), Action::Wait);
        assert_eq!(h.misses(), 1, "a late answer belongs to a probe that was given up");
        let Action::Probe(new) = h.tick(MS(1500)) else { panic!() };
        assert_eq!(h.answered(new, true, MS(1510)), Action::Wait);
        assert_eq!((h.misses(), h.deadline()), (0, Some(MS(2010))));
    }

    #[test]
    fn a_watcher_that_was_stopped_blames_nobody() {
        let mut h = beat();
        assert!(matches!(h.tick(MS(0)), Action::Probe(_)));
        assert_eq!(h.tick(MS(1000)), Action::Wait);
        assert!(matches!(h.tick(MS(1500)), Action::Probe(_)));
        // stopped for a minute, with one miss on the books and a probe out
        assert!(matches!(h.tick(MS(61_500)), Action::Probe(_)));
        assert_eq!(h.misses(), 0);
        assert_eq!(h.tick(MS(62_500)), Action::Wait, "the count began anew");
    }

    #[test]
    fn a_watcher_that_was_stopped_for_a_moment_looks_once_more() {
        let mut h = beat();
        for n in 0..5 {
            let t = 2_000 * n;
            let Action::Probe(g) = h.tick(MS(t)) else { panic!("no probe at {t}") };
            // stopped from then on, past the deadline; the answer came meanwhile
            assert_eq!(h.tick(MS(t + 1_400)), Action::Wait);
            assert_eq!((h.misses(), h.deadline()), (0, Some(MS(t + 1_650))));
            assert_eq!(h.answered(g, true, MS(t + 1_401)), Action::Wait);
        }
        let Action::Probe(_) = h.tick(MS(10_000)) else { panic!() };
        assert_eq!(h.tick(MS(11_400)), Action::Wait);
        assert_eq!(h.tick(MS(12_000)), Action::Wait, "once a probe: always late is no excuse");
        assert_eq!(h.misses(), 1);
    }

    #[test]
    fn a_moment_and_a_stop_are_told_apart_to_the_millisecond() {
        let probing = || {
            let mut h = beat();
            assert!(matches!(h.tick(MS(0)), Action::Probe(_)));
            h
        };
        // late by a twentieth of the timeout: that is no stop at all
        let mut h = probing();
        assert_eq!((h.tick(MS(1050)), h.misses()), (Action::Wait, 1));
        let mut h = probing();
        assert_eq!((h.tick(MS(1051)), h.misses(), h.deadline()), (Action::Wait, 0, Some(MS(1301))));
        // by the timeout itself: still a moment
        let mut h = probing();
        assert_eq!((h.tick(MS(2000)), h.deadline()), (Action::Wait, Some(MS(2250))));
        let mut h = probing();
        assert!(matches!(h.tick(MS(2001)), Action::Probe(_)));
    }

    #[test]
    fn between_two_probes_it_rests_and_may_be_put_off() {
        let mut h = beat();
        assert_eq!(h.deadline_with(MS(70)), Some(MS(70)));
        let Action::Probe(g) = h.tick(MS(0)) else { panic!() };
        assert_eq!(h.deadline_with(MS(70)), Some(MS(1000)), "a verdict isn't put off");
        assert_eq!(h.answered(g, true, MS(10)), Action::Wait);
        assert_eq!((h.deadline(), h.deadline_with(MS(70))), (Some(MS(510)), Some(MS(580))));
        assert_eq!(h.tick(MS(509)), Action::Wait);
        assert!(matches!(h.tick(MS(510)), Action::Probe(_)));
    }

    #[test]
    fn one_that_begins_anew_takes_no_answer_of_the_last_one() {
        let mut h = beat();
        let Action::Probe(old) = h.tick(MS(0)) else { panic!() };
        h.start(MS(100));
        assert!(h.is_on());
        let Action::Probe(new) = h.tick(MS(100)) else { panic!() };
        assert!(!h.expects(old) && h.expects(new));
        assert_eq!((h.answered(old, true, MS(110)), h.last_good()), (Action::Wait, None));
    }

    #[test]
    fn after_stop_nothing_happens() {
        let mut h = beat();
        let Action::Probe(g) = h.tick(MS(0)) else { panic!() };
        h.stop();
        assert!(!h.is_on() && !h.expects(g));
        assert_eq!(
            (h.answered(g, false, MS(1)), h.tick(MS(99_999)), h.deadline()),
            (Action::Wait, Action::Wait, None)
        );
    }
}
