//! Instant on the first crash, braked in a loop, forgiven after stable time.
//!
//! The models reset their back-off when a *fork* succeeds (Traffic Server) or stop for good after a few crashes
//! (systemd's start limit, supervisord's FATAL). Here only stable readiness resets it, and giving up is off unless
//! asked for.

use crate::Time;
use std::time::Duration;

/// The numbers of `[manager.respawn]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Wait before the first respawn.
    pub initial: Duration,
    /// Growth from one respawn to the next; at least 1.
    pub factor: f64,
    /// Longest wait, jitter included.
    pub max: Duration,
    /// Part of the wait that is random, `0.0..=1.0`: the wait lies in `wait * (1 - jitter) ..= wait`.
    pub jitter: f64,
    /// A child that was ready for this long has proven itself: its next crash is a first crash again.
    pub stable_after: Duration,
    /// Give up after so many crashes in a row; 0 is never.
    pub give_up_after: u32,
}

/// Step from which an `initial` of zero grows.
const FIRST_STEP: Duration = Duration::from_millis(50);

impl Default for Limits {
    fn default() -> Self {
        Limits {
            initial: Duration::ZERO,
            factor: 2.0,
            max: Duration::from_secs(30),
            jitter: 0.1,
            stable_after: Duration::from_secs(10),
            give_up_after: 0,
        }
    }
}

/// What to do after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Respawn {
    /// Start the next one after this wait.
    After(Duration),
    /// The budget is used up.
    GiveUp,
}

/// Crashes in a row, and what they cost.
#[derive(Debug, Clone)]
pub struct Backoff {
    limits: Limits,
    crashes: u32,
}

impl Backoff {
    /// No crash yet.
    pub fn new(limits: Limits) -> Self {
        Backoff { limits, crashes: 0 }
    }

    /// Crashes in a row so far.
    pub fn crashes(&self) -> u32 {
        self.crashes
    }

    /// Forgets all crashes: an operator asked for a start.
    pub fn reset(&mut self) {
        self.crashes = 0;
    }

    /// Takes new numbers; crashes stay counted.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The child is gone. `ready_since` is when it became ready, if it ever did; `random` lies in `0.0..1.0`.
    pub fn crashed(&mut self, ready_since: Option<Time>, now: Time, random: f64) -> Respawn {
        if ready_since.is_some_and(|t| now.saturating_sub(t) >= self.limits.stable_after) {
            self.crashes = 0;
        }
        self.crashes = self.crashes.saturating_add(1);
        if self.limits.give_up_after > 0 && self.crashes > self.limits.give_up_after {
            return Respawn::GiveUp;
        }
        Respawn::After(self.wait(random))
    }

    /// The wait before start number `crashes`, with `random` in `0.0..1.0`.
    fn wait(&self, random: f64) -> Duration {
        let l = &self.limits;
        // initial = 0: 0, 50 ms, 100 ms ...; initial = i: i, i*f, i*f^2 ...
        let (base, power) = match (self.crashes, l.initial.is_zero()) {
            (0 | 1, _) => return l.initial.min(l.max),
            (n, true) => (FIRST_STEP, n - 2),
            (n, false) => (l.initial, n - 1),
        };
        let grown = base.as_secs_f64() * l.factor.max(1.0).powf(f64::from(power.min(1000)));
        let capped = grown.min(l.max.as_secs_f64());
        let jitter = l.jitter.clamp(0.0, 1.0) * random.clamp(0.0, 1.0);
        Duration::from_secs_f64(capped * (1.0 - jitter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(limits: Limits, n: usize) -> Vec<u64> {
        let mut b = Backoff::new(limits);
        (0..n)
            .map(|_| match b.crashed(None, Duration::ZERO, 0.0) {
                Respawn::After(d) => d.as_millis() as u64,
                Respawn::GiveUp => u64::MAX,
            })
            .collect()
    }

    #[test]
    fn instant_first_then_doubling_then_capped() {
        let l = Limits { max: Duration::from_millis(300), ..Limits::default() };
        assert_eq!(waits(l, 6), [0, 50, 100, 200, 300, 300]);
    }

    #[test]
    fn an_initial_wait_is_where_growth_begins() {
        let l = Limits { initial: Duration::from_millis(10), factor: 3.0, ..Limits::default() };
        assert_eq!(waits(l, 4), [10, 30, 90, 270]);
    }

    #[test]
    fn gives_up_only_when_told_to_and_after_as_many_respawns() {
        let l = Limits { give_up_after: 2, ..Limits::default() };
        assert_eq!(waits(l, 3), [0, 50, u64::MAX]);
        assert!(waits(Limits::default(), 5000).iter().all(|&w| w <= 30_000));
    }

    #[test]
    fn only_stable_readiness_forgives() {
        let mut b = Backoff::new(Limits::default());
        let s = Duration::from_secs;
        for _ in 0..5 {
            let _ = b.crashed(Some(s(0)), s(1), 0.0);
        }
        assert_eq!(b.crashes(), 5, "ready for a second only is not stable");
        assert_eq!(b.crashed(None, s(1000), 0.0), Respawn::After(Duration::from_millis(800)));
        assert_eq!(b.crashed(Some(s(1000)), s(1010), 0.0), Respawn::After(Duration::ZERO));
    }

    #[test]
    fn jitter_shortens_within_its_part() {
        let l = Limits { jitter: 0.5, initial: Duration::from_millis(100), ..Limits::default() };
        let mut b = Backoff::new(l);
        let _ = b.crashed(None, Duration::ZERO, 0.0);
        assert_eq!(b.crashed(None, Duration::ZERO, 0.5), Respawn::After(Duration::from_millis(150)));
    }
}
