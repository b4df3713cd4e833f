//! A watchdog that has to be fed: a process that says `WATCHDOG=1` and then falls silent has hung.
//!
//! Only time that was watched counts: when the watcher itself was stopped (its own clock jumps past a deadline that it
//! would have kept), the time begins anew.

use crate::Time;
use std::time::Duration;

/// The watchdog of one process.
#[derive(Debug, Clone)]
pub struct Watchdog {
    limit: Duration,
    deadline: Time,
}

impl Watchdog {
    /// Fed now; the next time within `limit`.
    pub fn new(limit: Duration, now: Time) -> Watchdog {
        Watchdog { limit, deadline: now + limit }
    }

    /// Fed.
    pub fn feed(&mut self, now: Time) {
        self.deadline = now + self.limit;
    }

    /// When [`Watchdog::is_starved`] is to be asked.
    pub fn deadline(&self) -> Time {
        self.deadline
    }

    /// Has it not been fed in time? To be asked at each deadline; who asks much later was stopped, and can't tell.
    #[must_use]
    pub fn is_starved(&mut self, now: Time) -> bool {
        if now < self.deadline {
            return false;
        }
        let late = now - self.deadline;
        if late > self.limit / 2 {
            self.feed(now);
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    const S: Duration = Duration::from_secs(1);

    #[test]
    fn silence_is_a_verdict_and_food_is_not() {
        let mut w = Watchdog::new(2 * S, 10 * S);
        assert!(!w.is_starved(11 * S));
        w.feed(11 * S);
        assert_eq!(w.deadline(), 13 * S);
        assert!(!w.is_starved(12 * S));
        assert!(w.is_starved(13 * S));
    }

    #[test]
    fn a_watcher_that_was_stopped_can_not_tell() {
        let mut w = Watchdog::new(2 * S, Time::ZERO);
        assert!(!w.is_starved(60 * S));
        assert!(!w.is_starved(61 * S));
        assert!(w.is_starved(62 * S));
        // from half of the limit on it is late
        let mut w = Watchdog::new(2 * S, Time::ZERO);
        assert!(w.is_starved(3 * S));
        assert!(!w.is_starved(3 * S + Duration::from_millis(1)));
        assert_eq!(w.deadline(), 5 * S + Duration::from_millis(1));
        assert!(!Watchdog::new(2 * S, Time::ZERO).is_starved(5 * S));
    }
}
