//! Numbers of one event thread: written by that thread alone, read by anybody without stopping it.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number with one writer: an addition is a load and a store, no locked instruction.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub(crate) fn raise(&self, n: u64) {
        if n > self.0.load(Ordering::Relaxed) {
            self.set(n);
        }
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Buckets of the loop time histogram: bucket *n* counts rounds of less than 2^n µs (and not less than 2^(n-1)), the
/// last one everything longer.
pub const ROUND_BUCKETS: usize = 24;

#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Stats {
    pub(crate) events: Counter,
    pub(crate) wakeups: Counter,
    pub(crate) rounds: Counter,
    pub(crate) polls: Counter,
    pub(crate) yields: Counter,
    pub(crate) panics: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) timers: Counter,
    pub(crate) timers_fired: Counter,
    pub(crate) tasks: Counter,
    pub(crate) sources: Counter,
    pub(crate) queue: Counter,
    pub(crate) queue_high: Counter,
    pub(crate) round_us: [Counter; ROUND_BUCKETS],
}

/// A reading of one thread's numbers. Not a snapshot at one instant: each number is true on its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ThreadStats {
    /// The thread's name.
    pub name: String,
    /// Calls of continuations and polls of futures.
    pub events: u64,
    /// Returns from `epoll_wait` after having slept in it.
    pub wakeups: u64,
    /// Rounds of the loop.
    pub rounds: u64,
    /// Calls of `epoll_wait`.
    pub polls: u64,
    /// Times a continuation or task gave way although it had more to do: it said `Again`, called `yield_now`, used its own
    /// waker while it was being called, or was made to give way by [`Stream::limit`](crate::net::Stream::limit).
    pub yields: u64,
    /// Continuations and tasks ended by a panic.
    pub panics: u64,
    /// Continuations and tasks ended by a cancel, an abort or the end of the engine.
    pub cancelled: u64,
    /// Timers in the wheel.
    pub timers: u64,
    /// Timers that came due.
    pub timers_fired: u64,
    /// Futures that live on the thread.
    pub tasks: u64,
    /// File descriptors registered.
    pub sources: u64,
    /// Connections of acceptors that live on the thread, those included that it has not taken over yet.
    pub connections: u64,
    /// Events that were waiting in its queues in this round; 0 while it sleeps.
    pub queue: u64,
    /// The most that ever were.
    pub queue_high: u64,
    /// Time of a round without its sleep, see [`ROUND_BUCKETS`].
    pub round_us: [u64; ROUND_BUCKETS],
}

impl Stats {
    pub(crate) fn round(&self, micros: u64) {
        let bucket = (64 - micros.leading_zeros() as usize).min(ROUND_BUCKETS - 1);
        self.round_us[bucket].add(1);
    }

    pub(crate) fn read(&self, name: &str, connections: usize) -> ThreadStats {
        ThreadStats {
            name: name.to_owned(),
            events: self.events.get(),
            wakeups: self.wakeups.get(),
            rounds: self.rounds.get(),
            polls: self.polls.get(),
            yields: self.yields.get(),
            panics: self.panics.get(),
            cancelled: self.cancelled.get(),
            timers: self.timers.get(),
            timers_fired: self.timers_fired.get(),
            tasks: self.tasks.get(),
            sources: self.sources.get(),
            connections: connections as u64,
            queue: self.queue.get(),
            queue_high: self.queue_high.get(),
            round_us: std::array::from_fn(|n| self.round_us[n].get()),
        }
    }
}
