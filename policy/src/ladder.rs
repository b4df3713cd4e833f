//! The stop ladder: ask, then look (core signal), then kill, then say that even that did not help.
//!
//! In Traffic Server, `while kill(pid, 9) == 0` spins for ever on a zombie or a process in uninterruptible sleep. A ladder has an end.

use crate::Time;
use std::time::Duration;

/// How long each rung is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rungs {
    /// After the polite signal (the drain time); zero skips the polite rung.
    pub polite: Duration,
    /// After the core signal, if there is one.
    pub core: Option<Duration>,
    /// After SIGKILL, before the process is reported as unkillable.
    pub kill: Duration,
}

impl Rungs {
    /// From the first signal until it is given up.
    pub fn whole(&self) -> Duration {
        self.polite + self.core.unwrap_or_default() + self.kill
    }
}

/// What the caller has to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    /// SIGTERM: finish and go.
    Polite,
    /// The configured signal that leaves a core.
    Core,
    /// SIGKILL.
    Kill,
    /// Nothing left to send: report it, and keep waiting for the exit.
    Stuck,
}

/// A climb of the ladder. Ends when the caller sees the exit and drops it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ladder {
    rungs: Rungs,
    at: Rung,
    until: Option<Time>,
}

impl Ladder {
    /// Begins at the bottom (or at the core signal, when `polite` is zero), and says what to send first.
    pub fn begin(rungs: Rungs, now: Time) -> (Ladder, Rung) {
        let mut l = Ladder { rungs, at: Rung::Polite, until: Some(now + rungs.polite) };
        if rungs.polite.is_zero() {
            l.climb(now);
        }
        let first = l.at;
        (l, first)
    }

    /// When [`Ladder::tick`] wants to be called; `None` when there is nothing left to do.
    pub fn deadline(&self) -> Option<Time> {
        self.until
    }

    /// The rung that was last sent.
    pub fn rung(&self) -> Rung {
        self.at
    }

    /// Climbs if the time of this rung is over, and says what to send.
    #[must_use]
    pub fn tick(&mut self, now: Time) -> Option<Rung> {
        if self.until.is_none_or(|t| now < t) {
            return None;
        }
        self.climb(now);
        Some(self.at)
    }

    fn climb(&mut self, now: Time) {
        (self.at, self.until) = match (self.at, self.rungs.core) {
            (Rung::Polite, Some(wait)) => (Rung::Core, Some(now + wait)),
            (Rung::Polite, None) | (Rung::Core, _) => (Rung::Kill, Some(now + self.rungs.kill)),
            (Rung::Kill | Rung::Stuck, _) => (Rung::Stuck, None),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn climbs_in_order_and_ends() {
        let rungs = Rungs { polite: S(30), core: Some(S(2)), kill: S(10) };
        let (mut l, first) = Ladder::begin(rungs, S(0));
        assert_eq!(first, Rung::Polite);
        assert_eq!(l.tick(S(29)), None);
        assert_eq!(l.tick(S(30)), Some(Rung::Core));
        assert_eq!(l.tick(S(31)), None);
        assert_eq!(l.tick(S(32)), Some(Rung::Kill));
        assert_eq!(l.tick(S(42)), Some(Rung::Stuck));
        assert_eq!((l.deadline(), l.tick(S(1_000_000))), (None, None));
        assert_eq!((rungs.whole(), Rungs { core: None, ..rungs }.whole()), (S(42), S(40)));
    }

    #[test]
    fn no_polite_time_begins_with_the_hard_rungs() {
        let rungs = Rungs { polite: S(0), core: None, kill: S(1) };
        assert_eq!(Ladder::begin(rungs, S(5)).1, Rung::Kill);
        assert_eq!(Ladder::begin(Rungs { core: Some(S(1)), ..rungs }, S(5)).1, Rung::Core);
    }
}
