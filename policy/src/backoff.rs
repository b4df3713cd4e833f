//! Instant after a crash, braked in a loop, forgiven by time served.
//!
//! The models reset their back-off when a *fork* succeeds (Traffic Server), wait a second after every crash (s6,
//! supervisord), or stop for good after a few (systemd's start limit, supervisord's FATAL). Here a debt decides: a crash
//! adds one to it, and every twentieth of `stable_after` that the child was *ready* takes one off. Up to [`FREE`] the next
//! start is immediate, so a process that is killed every second is back at once every time, for ever; one that dies as it
//! starts is braked after a handful. Giving up is off unless asked for.

use crate::Time;
use std::time::Duration;

/// The numbers of `[manager.respawn]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Wait before a respawn that isn't braked.
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

/// Crashes on the books that cost no more than `initial`.
pub const FREE: u32 = 4;
/// So many parts of `stable_after` each pay for one crash.
const PARTS: u32 = 20;
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
    debt: f64,
}

impl Backoff {
    /// No crash yet.
    pub fn new(limits: Limits) -> Self {
        Backoff { limits, crashes: 0, debt: 0.0 }
    }

    /// Crashes in a row so far.
    pub fn crashes(&self) -> u32 {
        self.crashes
    }

    /// Forgets all crashes: an operator asked for a start.
    pub fn reset(&mut self) {
        self.crashes = 0;
        self.debt = 0.0;
    }

    /// Takes new numbers; crashes stay counted.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The child is gone. `ready_since` is when it became ready, if it ever did; `random` lies in `0.0..1.0`.
    pub fn crashed(&mut self, ready_since: Option<Time>, now: Time, random: f64) -> Respawn {
        let served = ready_since.map_or(Duration::ZERO, |t| now.saturating_sub(t));
        if ready_since.is_some() && served >= self.limits.stable_after {
            self.reset();
        }
        let part = (self.limits.stable_after / PARTS).as_secs_f64();
        let paid = if part > 0.0 { served.as_secs_f64() / part } else { 0.0 };
        self.debt = (self.debt - paid).max(0.0) + 1.0;
        self.crashes = self.crashes.saturating_add(1);
        if self.limits.give_up_after > 0 && self.crashes > self.limits.give_up_after {
            return Respawn::GiveUp;
        }
        Respawn::After(self.wait(random))
    }

    /// The wait for the debt there is, with `random` in `0.0..1.0`.
    fn wait(&self, random: f64) -> Duration {
        let l = &self.limits;
        let over = self.debt.floor().min(1e6) as u32;
        let Some(power) = over.checked_sub(FREE + 1) else { return l.initial.min(l.max) };
        // initial = 0: 50 ms, 100 ms ...; initial = i: i*f, i*f^2 ...
        let (base, power) = if l.initial.is_zero() { (FIRST_STEP, power) } else { (l.initial, power + 1) };
        let grown = base.as_secs_f64() * l.factor.max(1.0).powf(f64::from(power.min(1000)));
        let capped = grown.min(l.max.as_secs_f64());
        let jitter = l.jitter.clamp(0.0, 1.0) * random.clamp(0.0, 1.0);
        Duration::from_secs_f64(capped * (1.0 - jitter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits in milliseconds of a child that dies as it starts, without the free ones at the beginning.
    fn braked(limits: Limits, n: usize) -> Vec<u64> {
        let mut b = Backoff::new(limits);
        let mut wait = || match b.crashed(None, Duration::ZERO, 0.0) {
            Respawn::After(d) => d.as_millis() as u64,
            Respawn::GiveUp => u64::MAX,
        };
        for _ in 0..FREE {
            assert_eq!(wait(), limits.initial.as_millis() as u64);
        }
        (0..n).map(|_| wait()).collect()
    }

    #[test]
    fn a_handful_at_once_then_doubling_then_capped() {
        let l = Limits { max: Duration::from_millis(300), ..Limits::default() };
        assert_eq!(braked(l, 5), [50, 100, 200, 300, 300]);
    }

    #[test]
    fn who_need_not_prove_itself_is_braked_all_the_same_if_it_never_serves() {
        let l = Limits { stable_after: Duration::ZERO, ..Limits::default() };
        assert_eq!(braked(l, 2), [50, 100]);
    }

    #[test]
    fn new_numbers_hold_from_the_next_crash_on() {
        let mut b = Backoff::new(Limits::default());
        for _ in 0..50 {
            let _ = b.crashed(None, Duration::ZERO, 0.0);
        }
        b.set_limits(Limits { max: Duration::from_millis(70), ..Limits::default() });
        assert_eq!(b.crashed(None, Duration::ZERO, 0.0), Respawn::After(Duration::from_millis(70)));
        assert_eq!(b.crashes(), 51);
    }

    #[test]
    fn an_initial_wait_is_where_growth_begins() {
        let l = Limits { initial: Duration::from_millis(10), factor: 3.0, ..Limits::default() };
        assert_eq!(braked(l, 3), [30, 90, 270]);
    }

    #[test]
    fn gives_up_only_when_told_to_and_after_as_many_respawns() {
        let l = Limits { give_up_after: FREE + 1, ..Limits::default() };
        assert_eq!(braked(l, 2), [50, u64::MAX]);
        assert!(braked(Limits::default(), 5000).iter().all(|&w| w <= 30_000));
    }

    #[test]
    fn killed_every_second_it_is_back_at_once_for_ever() {
        let mut b = Backoff::new(Limits::default());
        for n in 0..10_000u64 {
            let at = Duration::from_secs(n);
            let next = b.crashed(Some(at), at + Duration::from_millis(990), 0.5);
            assert_eq!(next, Respawn::After(Duration::ZERO), "crash {n}");
        }
    }

    #[test]
    fn serving_for_moments_only_does_not_pay() {
        let mut b = Backoff::new(Limits::default());
        let s = Duration::from_millis;
        let waits: Vec<_> = (0..50).map(|_| b.crashed(Some(s(0)), s(100), 0.0)).collect();
        assert_eq!(waits[49], Respawn::After(Duration::from_secs(30)), "braked to the end");
    }

    #[test]
    fn stable_time_forgives_all() {
        let mut b = Backoff::new(Limits::default());
        for _ in 0..50 {
            let _ = b.crashed(None, Duration::ZERO, 0.0);
        }
        let s = Duration::from_secs;
        assert_eq!(b.crashed(Some(s(1000)), s(1010), 0.0), Respawn::After(Duration::ZERO));
        assert_eq!(b.crashes(), 1);
    }

    #[test]
    fn jitter_shortens_within_its_part() {
        let l = Limits { jitter: 0.5, initial: Duration::from_millis(100), ..Limits::default() };
        let mut b = Backoff::new(l);
        for _ in 0..FREE {
            let _ = b.crashed(None, Duration::ZERO, 0.0);
        }
        assert_eq!(b.crashed(None, Duration::ZERO, 0.5), Respawn::After(Duration::from_millis(150)));
    }
}
