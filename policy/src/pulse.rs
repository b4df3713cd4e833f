//! The pulse page, read: what each event thread of a server is doing, and when that is a stall.
//!
//! A stalled thread cannot say that it is stalled. So each event thread writes into a shared page when it begins a round
//! of its loop, what it calls, and when it goes to sleep. Whoever holds the page's descriptor reads it without asking,
//! and can tell idle from stalled, and in which continuation, after the process has died as well.
//!
//! The page is little-endian 64-bit words:
//!
//! ```text
//! word 0          "TSPULSE1"
//! word 1          number of thread records n
//! word 2          number of names m
//! word 3          CLOCK_MONOTONIC in ms when it was noted last that nobody more is accepted: no room, no descriptors; 0: never
//! words 4..8      0
//! then n records of 8 words:
//!   +0  ticks: odd during a round of the loop, even in epoll_wait; 0: not started, u64::MAX: ended
//!   +1  CLOCK_MONOTONIC in ms of the last change of +0
//!   +2  index of the name of what was called last, and in the upper half the thread's id
//!   +3  the thread's name, zero-padded, 40 bytes
//! then m names of 8 words: zero-padded UTF-8, the end of the type's name if it is longer
//! ```

use crate::Time;
use std::time::Duration;

/// Word 0 of a page.
pub const MAGIC: u64 = u64::from_le_bytes(*b"TSPULSE1");
/// Words of the head, of a record and of a name.
pub const RECORD: usize = 8;
/// Bytes of a thread's name.
pub const THREAD_NAME: usize = 40;
/// Bytes of a name of what is called.
pub const NAME: usize = 64;
/// What a thread calls that does one piece of blocking work. It takes as long as a disk does, and holds up nobody but its thread.
pub const BLOCKING: &str = "blocking work";
/// More threads or names than these are no page of ours.
pub const MOST: usize = 4096;

/// The word of the head that says when there was no room last.
pub const FULL: usize = 3;
/// A server that said so not longer ago than this, which notes it several times a second, lives, though it answers nobody new.
pub const FULL_FOR: Duration = Duration::from_secs(1);

/// Does the page of a server say at `now` (`CLOCK_MONOTONIC`) that nobody more is accepted?
pub fn is_full(page: &[u8], now: Time) -> bool {
    let word = page.get(FULL * 8..FULL * 8 + 8).and_then(|b| Some(u64::from_le_bytes(b.try_into().ok()?)));
    let is_page = page.starts_with(&MAGIC.to_le_bytes());
    is_page && word.is_some_and(|ms| ms > 0 && now.saturating_sub(Duration::from_millis(ms)) <= FULL_FOR)
}

/// Words of a page.
pub const fn words(threads: usize, names: usize) -> usize {
    RECORD * (1 + threads + names)
}

/// What a thread was doing when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doing {
    /// It has not begun.
    NotStarted,
    /// It waits for events.
    Idle,
    /// It is in a round of its loop; this was called last.
    Calling(String),
    /// It has ended.
    Ended,
}

/// One thread's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The thread's name.
    pub thread: String,
    /// What it is doing.
    pub doing: Doing,
    /// Changes whenever a round begins or ends.
    pub ticks: u64,
    /// CLOCK_MONOTONIC in milliseconds when that was the last time.
    pub since_ms: u64,
    /// The thread's id, as /proc has it.
    pub tid: u32,
}

impl Reading {
    /// For how long it has been in one round at `now_ms` (CLOCK_MONOTONIC); zero if it is not in one.
    pub fn busy_for(&self, now_ms: u64) -> Duration {
        match self.doing {
            Doing::Calling(_) => Duration::from_millis(now_ms.saturating_sub(self.since_ms)),
            _ => Duration::ZERO,
        }
    }
}

/// Why some bytes are no pulse page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPage {
    /// It doesn't begin as one does.
    Magic,
    /// It says that it is larger than one can be, or than it is.
    Size,
}

impl std::fmt::Display for NoPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NoPage::Magic => "not a pulse page",
            NoPage::Size => "a pulse page of an impossible size",
        })
    }
}

impl std::error::Error for NoPage {}

/// Reads a copy of a page. A record that changed while it was copied may be of two moments; that of a stalled thread,
/// which is what matters, changes nothing.
///
/// # Errors
/// It is no pulse page.
pub fn decode(page: &[u8]) -> Result<Vec<Reading>, NoPage> {
    let word = |n: usize| {
        let bytes = page.get(n * 8..n * 8 + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    if word(0) != Some(MAGIC) {
        return Err(NoPage::Magic);
    }
    let count = |n: usize| word(n).and_then(|w| usize::try_from(w).ok()).filter(|w| *w <= MOST);
    let (Some(threads), Some(names)) = (count(1), count(2)) else { return Err(NoPage::Size) };
    if page.len() < words(threads, names) * 8 {
        return Err(NoPage::Size);
    }
    let text = |at: usize, bytes: usize| {
        let text = &page[at * 8..at * 8 + bytes];
        let end = text.iter().position(|b| *b == 0).unwrap_or(bytes);
        String::from_utf8_lossy(&text[..end]).into_owned()
    };
    let name = |index: u64| match usize::try_from(index).unwrap_or(usize::MAX).min(names.saturating_sub(1)) {
        _ if names == 0 => String::new(),
        index => text(RECORD * (1 + threads + index), NAME),
    };
    let record = |n: usize| {
        let at = RECORD * (1 + n);
        let word = |n: usize| word(at + n).unwrap_or_default();
        let ticks = word(0);
        let doing = match ticks {
            0 => Doing::NotStarted,
            u64::MAX => Doing::Ended,
            t if t % 2 == 0 => Doing::Idle,
            _ => Doing::Calling(name(word(2) & u64::from(u32::MAX))),
        };
        let tid = (word(2) >> 32) as u32;
        Reading { thread: text(at + 3, THREAD_NAME), doing, ticks, since_ms: word(1), tid }
    };
    Ok((0..threads).map(record).collect())
}

/// A thread that doesn't come to an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stall {
    /// The thread's name.
    pub thread: String,
    /// What it called last.
    pub calling: String,
    /// For how long it was watched in the same round.
    pub time: Duration,
}

impl std::fmt::Display for Stall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Stall { thread, calling, time } = self;
        write!(f, "thread {thread} has been in one round of its loop for {time:?}, in {calling:?}")
    }
}

/// What the kernel says of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processor {
    /// It runs, or would if it had a processor.
    pub runnable: bool,
    /// How much it has used so far.
    pub used: Duration,
}

/// Looks at a page again and again, and says when a thread has stalled.
///
/// A thread that would run and gets no processor is starved by others and hasn't stalled: it has had its time when it has
/// used a quarter of the limit itself.
///
/// Nor has one that does [`BLOCKING`] work: that is what it is there for, and to be killed would not make a disk faster.
///
/// Only time that was watched counts: looks that are further apart than they may be (the watcher was stopped, or the
/// machine was) begin anew, since in such a gap everybody may have stood still.
#[derive(Debug, Clone)]
pub struct Watch {
    limit: Duration,
    gap: Duration,
    last: Option<Time>,
    /// By thread: the round it was in, when that was seen first, and what it had used then.
    rounds: Vec<(u64, Time, Duration)>,
}

impl Watch {
    /// A thread has stalled that was seen in the same round for `limit`, by looks that are `interval` apart.
    pub fn new(limit: Duration, interval: Duration) -> Watch {
        Watch { limit, gap: limit.max(interval * 2), last: None, rounds: Vec::new() }
    }

    /// One look. `processor` asks the kernel about a thread, by its id; it is asked about those that are in a round.
    pub fn look(
        &mut self,
        readings: &[Reading],
        now: Time,
        processor: impl Fn(u32) -> Option<Processor>,
    ) -> Option<Stall> {
        if self.last.is_none_or(|last| now.saturating_sub(last) > self.gap) {
            self.rounds.clear();
        }
        self.last = Some(now);
        let fresh = (0, now, Duration::ZERO);
        self.rounds.resize(readings.len(), fresh);
        let mut stall: Option<Stall> = None;
        for (reading, round) in readings.iter().zip(&mut self.rounds) {
            let calling = match &reading.doing {
                Doing::Calling(calling) if calling != BLOCKING => calling,
                _ => {
                    *round = fresh;
                    continue;
                }
            };
            if round.0 != reading.ticks {
                let used = processor(reading.tid).map_or(Duration::ZERO, |p| p.used);
                *round = (reading.ticks, now, used);
            }
            let time = now.saturating_sub(round.1);
            let starved = |p: Processor| p.runnable && p.used.saturating_sub(round.2) < self.limit / 4;
            if time >= self.limit && processor(reading.tid).is_some_and(starved) {
                continue;
            }
            if time >= self.limit && stall.as_ref().is_none_or(|s| s.time < time) {
                stall = Some(Stall { thread: reading.thread.clone(), calling: calling.clone(), time });
            }
        }
        stall
    }
}

#[cfg(test)]
#[path = "pulse_tests.rs"]
mod tests;
