//! The pulse page: what each event thread is doing, for another process to look at without asking.
//!
//! A stalled thread cannot say that it is stalled. So each thread writes into a shared page (a sealed memfd) when it
//! begins a round of its loop, what it calls, and when it goes to sleep; who holds the descriptor maps it read-only and
//! can tell idle from stalled, and in which continuation, after the process has died as well.
//!
//! The layout, in little-endian 64-bit words, is a contract: readers need not link this crate.
//!
//! ```text
//! word 0          "TSPULSE1"
//! word 1          number of thread records n
//! word 2          number of names m
//! words 3..8      0
//! then n records of 8 words:
//!   +0  ticks: odd during a round of the loop, even in epoll_wait; 0: not started, u64::MAX: ended
//!   +1  CLOCK_MONOTONIC in ms of the last change of +0
//!   +2  index of the name of what was called last
//!   +3  the thread's name, zero-padded, 40 bytes
//! then m names of 8 words: zero-padded UTF-8, the end of the type's name if it is longer
//! ```

use crate::fenced::page::{ReadOnlyPage, WritablePage};
use nix::time::{ClockId, clock_gettime};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const MAGIC: u64 = u64::from_le_bytes(*b"TSPULSE1");
const RECORD: usize = 8;
const THREAD_NAME: usize = 40;
const NAME: usize = 64;
/// The last one stands for all that found no place.
const NAMES: usize = 256;

fn words(threads: usize) -> usize {
    RECORD * (1 + threads + NAMES)
}

/// Milliseconds of CLOCK_MONOTONIC, which is the same in all processes.
pub fn monotonic_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has it");
    Duration::from(now).as_millis() as u64
}

/// The page and the names in it, shared by the threads of one engine.
pub(crate) struct Page {
    page: WritablePage,
    fd: OwnedFd,
    threads: usize,
    names: Mutex<Vec<&'static str>>,
}

impl Page {
    pub(crate) fn new(threads: usize) -> io::Result<Arc<Self>> {
        let fd = memfd_create("pulse", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, (words(threads) * 8) as u64)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)?;
        let page = WritablePage::map(fd.as_fd(), words(threads))?;
        // From here on nobody maps it for writing any more. Kernels before 5.1 do not know this; readers lose nothing.
        let _ = fcntl_add_seals(&fd, SealFlags::FUTURE_WRITE | SealFlags::SEAL);
        page.words()[1].store(threads as u64, Ordering::Relaxed);
        page.words()[2].store(NAMES as u64, Ordering::Relaxed);
        page.words()[0].store(MAGIC, Ordering::Release);
        let page = Page { page, fd, threads, names: Mutex::default() };
        page.write(page.name_at(NAMES - 1), "other", NAME);
        Ok(Arc::new(page))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn name_at(&self, index: usize) -> usize {
        RECORD * (1 + self.threads + index)
    }

    fn write(&self, at: usize, text: &str, room: usize) {
        let mut start = text.len().saturating_sub(room);
        while !text.is_char_boundary(start) {
            start += 1;
        }
        for (n, chunk) in text.as_bytes()[start..].chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.page.words()[at + n].store(u64::from_le_bytes(word), Ordering::Release);
        }
    }

    /// The index of a name, which is written into the page the first time.
    fn index(&self, name: &'static str) -> usize {
        let mut names = self.names.lock().expect("never poisoned");
        if let Some(index) = names.iter().position(|n| *n == name) {
            return index;
        }
        if names.len() == NAMES - 1 {
            return NAMES - 1;
        }
        names.push(name);
        self.write(self.name_at(names.len() - 1), name, NAME);
        names.len() - 1
    }
}

/// One thread's hand in the page.
pub(crate) struct Pulse {
    page: Arc<Page>,
    record: usize,
    /// CLOCK_MONOTONIC at `origin`.
    base_ms: u64,
    origin: Instant,
    ticks: Cell<u64>,
    last: Cell<*const u8>,
    /// By address: comparing it is enough, and for each type there are few.
    known: RefCell<HashMap<*const u8, u64>>,
}

impl Pulse {
    pub(crate) fn new(page: Arc<Page>, thread: usize, name: &str, origin: Instant) -> Self {
        let record = RECORD * (1 + thread);
        page.write(record + 3, name, THREAD_NAME);
        let base_ms = monotonic_ms().saturating_sub(origin.elapsed().as_millis() as u64);
        Pulse {
            page,
            record,
            base_ms,
            origin,
            ticks: Cell::new(0),
            last: Cell::new(std::ptr::null()),
            known: RefCell::default(),
        }
    }

    fn tick(&self, ticks: u64, now: Instant) {
        self.ticks.set(ticks);
        let words = self.page.page.words();
        let ms = self.base_ms + now.duration_since(self.origin).as_millis() as u64;
        words[self.record + 1].store(ms, Ordering::Relaxed);
        words[self.record].store(ticks, Ordering::Release);
    }

    /// A round begins, or goes on into the next without a sleep between them.
    pub(crate) fn busy(&self, now: Instant) {
        self.tick((self.ticks.get() | 1) + if self.ticks.get() & 1 == 1 { 2 } else { 0 }, now);
    }

    /// The thread goes to sleep.
    pub(crate) fn idle(&self, now: Instant) {
        self.tick((self.ticks.get() | 1) + 1, now);
    }

    /// What is going to be called.
    pub(crate) fn calls(&self, name: &'static str) {
        if self.last.replace(name.as_ptr()) == name.as_ptr() {
            return;
        }
        let index =
            *self.known.borrow_mut().entry(name.as_ptr()).or_insert_with(|| self.page.index(name) as u64);
        self.page.page.words()[self.record + 2].store(index, Ordering::Release);
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.tick(u64::MAX, Instant::now());
    }
}

/// What a thread was doing when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doing {
    /// It has not begun.
    NotStarted,
    /// It waits in epoll_wait.
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
    /// [`monotonic_ms`] when that was the last time.
    pub since_ms: u64,
}

impl Reading {
    /// For how long it has been in one round; zero if it is not in one.
    pub fn busy_for(&self, now_ms: u64) -> Duration {
        match self.doing {
            Doing::Calling(_) => Duration::from_millis(now_ms.saturating_sub(self.since_ms)),
            _ => Duration::ZERO,
        }
    }
}

/// A pulse page, mapped read-only, of this process or another.
pub struct Reader {
    page: ReadOnlyPage,
    threads: usize,
    names: usize,
}

impl Reader {
    /// Maps the page behind `fd`.
    ///
    /// # Errors
    /// If it is no pulse page, or not sealed as one.
    pub fn map(fd: impl AsFd) -> io::Result<Self> {
        let header = ReadOnlyPage::map(fd.as_fd(), RECORD)?;
        if header.load(0) != MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a pulse page"));
        }
        let (threads, names) = (header.load(1), header.load(2));
        if threads > 65_536 || names > 65_536 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an impossible pulse page"));
        }
        let (threads, names) = (threads as usize, names as usize);
        let page = ReadOnlyPage::map(fd.as_fd(), RECORD * (1 + threads + names))?;
        Ok(Reader { page, threads, names })
    }

    /// All threads, each as it is at the moment it is looked at.
    pub fn read(&self) -> Vec<Reading> {
        (0..self.threads).map(|n| self.thread(RECORD * (1 + n))).collect()
    }

    fn thread(&self, at: usize) -> Reading {
        let mut ticks = self.page.load(at);
        // The words of a record change one after the other: read until two looks agree, but not for ever. A stalled
        // thread, which is what matters, changes nothing.
        for _ in 0..8 {
            let reading = self.record(at, ticks);
            let again = self.page.load(at);
            if again == ticks {
                return reading;
            }
            ticks = again;
        }
        self.record(at, ticks)
    }

    fn record(&self, at: usize, ticks: u64) -> Reading {
        let doing = match ticks {
            0 => Doing::NotStarted,
            u64::MAX => Doing::Ended,
            t if t % 2 == 0 => Doing::Idle,
            _ => Doing::Calling(self.name(self.page.load(at + 2))),
        };
        let since_ms = self.page.load(at + 1);
        Reading { thread: self.text(at + 3, THREAD_NAME), doing, ticks, since_ms }
    }

    fn name(&self, index: u64) -> String {
        let index = usize::try_from(index).unwrap_or(usize::MAX).min(self.names.saturating_sub(1));
        self.text(RECORD * (1 + self.threads + index), NAME)
    }

    fn text(&self, at: usize, bytes: usize) -> String {
        let bytes: Vec<u8> = (0..bytes / 8).flat_map(|n| self.page.load(at + n).to_le_bytes()).collect();
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }
}
