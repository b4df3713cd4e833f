//! The pulse page: what each event thread is doing, for another process to look at without asking.
//!
//! A stalled thread cannot say that it is stalled. So each thread writes into a shared page (a sealed memfd) when it
//! begins a round of its loop, what it calls, and when it goes to sleep; who holds the descriptor reads it and
//! can tell idle from stalled, and in which continuation, after the process has died as well.
//!
//! The layout is a contract, and that of [`policy::pulse`], which also reads it: readers need not link this crate.

use crate::fenced::page::WritablePage;
use nix::time::{ClockId, clock_gettime};
use policy::pulse::{FULL, MAGIC, NAME, RECORD, THREAD_NAME, words};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The last one stands for all that found no place.
const NAMES: usize = 256;

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
        ftruncate(&fd, (words(threads, NAMES) * 8) as u64)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)?;
        let page = WritablePage::map(fd.as_fd(), words(threads, NAMES))?;
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

    /// Nobody more is accepted for now.
    pub(crate) fn says_full(&self) {
        self.page.words()[FULL].store(monotonic_ms(), Ordering::Release);
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
    /// The thread's id.
    tid: u64,
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
            tid: rustix::thread::gettid().as_raw_nonzero().get() as u64,
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
        self.page.page.words()[self.record + 2].store(index | self.tid << 32, Ordering::Release);
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.tick(u64::MAX, Instant::now());
    }
}
