//! What differs from run to run: the seed's random numbers, the suite's configuration, and deliberate mistakes.

use policy::backoff;
use policy::child;
use policy::ladder::Rungs;
use policy::{Time, heartbeat};
use std::time::Duration;

/// Milliseconds.
pub const MS: fn(u64) -> Duration = Duration::from_millis;

/// SplitMix64: all chance in a run comes from here.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// In `0..n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    /// In `0.0..1.0`.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
    /// In `from..to`, small ones as likely as large ones of the same ratio.
    pub fn span(&mut self, from: Duration, to: Duration) -> Duration {
        let (a, b) = (from.as_secs_f64().max(1e-6), to.as_secs_f64().max(2e-6));
        Duration::from_secs_f64(a * (b / a).powf(self.unit()))
    }
    pub fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// A way of acting that is wrong. Those marked "as built" are how `bins` acts today. Those marked "rare" were found by the
/// simulation while it was made, but take too many runs to be looked for in a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// The server's machine is told that it is hung as soon as it is spawned.
    KillWithoutGrace,
    /// A lock's holder is adopted by the pid first seen, without asking again when its pidfd is held.
    NoSecondLook,
    /// The manager is killed by its number instead of by its pidfd.
    SignalByNumber,
    /// A server starts to accept before it has the lock.
    AcceptBeforeLock,
    /// The manager forgets to start a server again.
    NoRespawn,
    /// The wait that the back-off asks for isn't kept.
    NoWait,
    /// Each missed heartbeat is a verdict, however late the watcher is.
    BlameWhenLate,
    /// As built: a lock that a keeper holds for a dead server is believed to belong to whoever has its pid now.
    BelievePidOfDead,
    /// As built: the manager knows a cop by its pid only, so it takes a new cop with an old pid for the old one.
    KnowCopByPid,
    /// As built: a manager found by its lock counts as ready, and is blamed while it starts.
    AdoptAsReady,
    /// As built: a cop stops everything if the suite isn't serving `start_grace` after the cop has started, though it has
    /// found a suite that had started long before, or though it was stopped itself for most of that time.
    StartDeadline,
    /// As built: a manager looks for a server to adopt when it starts, and never again.
    AdoptOnce,
    /// As built, rare: an operator's restart makes a manager that is ending start another server.
    RestartUndoesStop,
    /// As built: a process that hangs before it holds its lock is left to itself when its parent dies.
    LeaveStrays,
    /// As built, rare: a server whose end hasn't been heard of yet counts as one that is missing its lock.
    CountEnded,
    /// As built: a hung server gets the core signal again and again, but never SIGKILL.
    CoreSignalOnly,
}

/// One configuration of the suite.
#[derive(Debug, Clone)]
pub struct Setup {
    pub beat: heartbeat::Limits,
    pub grace: Duration,
    pub drain: Duration,
    pub kill_timeout: Duration,
    pub core_signal: bool,
    pub adopt: bool,
    pub standby: bool,
    pub respawn: backoff::Limits,
    pub flaws: Vec<Flaw>,
}

/// Longest time that anything healthy takes: a start, an answer, a death after SIGKILL once faults are over.
pub const BOOT: Duration = Duration::from_millis(400);
pub const SLOW_DEATH: Duration = Duration::from_secs(8);
/// A lock is waited for so long (`take_lock`).
pub const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// systemd starts a cop again after at most this.
pub const COP_RESTART: Duration = Duration::from_secs(1);
/// A cop that hangs ends itself after this.
pub const COP_ALARM: Duration = Duration::from_secs(60);

impl Setup {
    /// The configuration of a seed.
    pub fn of(rng: &mut Rng) -> Setup {
        let respawn = backoff::Limits { jitter: rng.pick(&[0.0, 0.1, 0.5]), ..backoff::Limits::default() };
        let preset = |i, t, failures| heartbeat::Limits { interval: MS(i), timeout: MS(t), failures };
        Setup {
            beat: rng.pick(&[
                preset(1000, 1000, 2),
                preset(100, 100, 2),
                preset(1000, 2000, 3),
                preset(10_000, 180_000, 1),
            ]),
            grace: rng.pick(&[MS(30_000), MS(12_000)]),
            drain: rng.pick(&[MS(0), MS(3000), MS(30_000)]),
            kill_timeout: MS(10_000),
            core_signal: rng.one_in(3),
            adopt: !rng.one_in(4),
            standby: !rng.one_in(3),
            respawn,
            flaws: Vec::new(),
        }
    }

    pub fn has(&self, flaw: Flaw) -> bool {
        self.flaws.contains(&flaw)
    }

    /// As `cop/watch/end.rs` and `manager/keep.rs` have it.
    pub fn server_rungs(&self) -> Rungs {
        Rungs {
            polite: self.drain + MS(1000),
            core: self.core_signal.then_some(MS(5000)),
            kill: self.kill_timeout,
        }
    }

    pub fn server_limits(&self) -> child::Limits {
        child::Limits { start_grace: self.grace, stop: self.server_rungs(), respawn: self.respawn }
    }

    pub fn manager_limits(&self) -> child::Limits {
        let s = self.server_rungs();
        let polite = s.whole() + MS(2000);
        child::Limits { start_grace: self.grace, stop: Rungs { polite, ..s }, respawn: self.respawn }
    }

    /// From the beginning of a hang to the verdict.
    pub fn detection(&self) -> Duration {
        let b = &self.beat;
        b.interval + (b.timeout + b.interval / 4) * b.failures + BOOT
    }

    /// All faults are over: how long may it take until the suite serves? The worst that can be left over, one after the
    /// other: a cop that hangs, a manager that hangs while it starts, a server that does, each with its detection, its
    /// signals, its slow death and its longest back-off; and once more, since either can take the other with it.
    pub fn bound(&self) -> Time {
        let one = self.grace.max(self.detection()) + SLOW_DEATH + self.respawn.max + BOOT + LOCK_PATIENCE;
        COP_ALARM + COP_RESTART + one * 4 + self.server_rungs().whole() + self.manager_limits().stop.whole()
    }
}
