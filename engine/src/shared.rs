//! The part of an event thread that other threads can see.

use crate::ThreadId;
use crate::event::Event;
use crate::event::EventNode;
use crate::fenced::stack::{Pushed, Stack};
use crate::stats::Stats;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use rustix::event::{EventfdFlags, eventfd};
use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

/// The epoll token of the eventfd; no source ever has it.
pub(crate) const WAKE_TOKEN: u64 = u64::MAX;

/// What the engine wants of a thread.
pub(crate) const RUN: u8 = 0;
pub(crate) const DRAIN: u8 = 1;
pub(crate) const STOP: u8 = 2;

pub(crate) struct Shared {
    pub(crate) id: ThreadId,
    /// Tells this thread from every other event thread of the process, past ones included; never 0.
    pub(crate) serial: u64,
    entered: AtomicBool,
    pub(crate) name: String,
    pub(crate) queue: Stack<Event>,
    pub(crate) epoll: Epoll,
    wake_fd: OwnedFd,
    pub(crate) command: AtomicU8,
    /// Bounded events that are on their way in or waiting.
    bounded: AtomicUsize,
    max_queue: usize,
    /// Events that have come from outside since the thread last took some in. Counted only where somebody asks which
    /// thread has the least to do: it costs a locked instruction for each.
    untaken: Option<AtomicUsize>,
    /// Connections of acceptors that live here.
    pub(crate) connections: Arc<AtomicUsize>,
    /// Sources whose owner was dropped on another thread.
    pub(crate) orphans: Mutex<Vec<u64>>,
    pub(crate) stats: Stats,
    pub(crate) drained: Latch,
}

/// Something that happens once and can be waited for by a thread that is no event thread.
#[derive(Default)]
pub(crate) struct Latch(Mutex<bool>, Condvar);

impl Latch {
    pub(crate) fn set(&self) {
        *self.0.lock().expect("never poisoned") = true;
        self.1.notify_all();
    }

    /// False: it had not happened by `until`.
    pub(crate) fn wait_until(&self, until: Instant) -> bool {
        let mut set = self.0.lock().expect("never poisoned");
        while !*set {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return false };
            set = self.1.wait_timeout(set, left).expect("never poisoned").0;
        }
        true
    }
}

thread_local! {
    /// The serial number of the event thread this is, or 0.
    static HERE: Cell<u64> = const { Cell::new(0) };
}

/// The serial number of the event thread that is calling; 0 on any other.
pub(crate) fn here() -> u64 {
    HERE.get()
}

impl Shared {
    pub(crate) fn new(id: ThreadId, name: String, max_queue: usize, weighed: bool) -> io::Result<Arc<Self>> {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake_fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // Edge-triggered, so that the counter never has to be read: each write is a new edge.
        epoll.add(&wake_fd, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, WAKE_TOKEN))?;
        Ok(Arc::new(Shared {
            id,
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            entered: AtomicBool::new(false),
            name,
            queue: Stack::new(),
            epoll,
            wake_fd,
            command: AtomicU8::new(RUN),
            bounded: AtomicUsize::new(0),
            max_queue,
            untaken: weighed.then(AtomicUsize::default),
            connections: Arc::default(),
            orphans: Mutex::new(Vec::new()),
            stats: Stats::default(),
            drained: Latch::default(),
        }))
    }

    pub(crate) fn enter(self: &Arc<Self>) {
        assert!(!self.entered.swap(true, Ordering::AcqRel), "one thread enters, once");
        HERE.set(self.serial);
    }

    pub(crate) fn leave() {
        HERE.set(0);
    }

    /// Is this the thread that is calling?
    pub(crate) fn is_here(&self) -> bool {
        here() == self.serial
    }

    /// Queues an event that may be queued already: a wake-up.
    pub(crate) fn wake(&self, node: &EventNode) {
        if !node.claim() {
            return;
        }
        if self.is_here() {
            crate::thread::wake_local(node.clone());
        } else {
            self.push_claimed(node.clone());
        }
    }

    /// Queues a new event, which is made claimed. False: the thread is gone.
    pub(crate) fn send(&self, node: EventNode) -> bool {
        if self.is_here() { crate::thread::push_local(node) } else { self.push_claimed(node) }
    }

    fn push_claimed(&self, node: EventNode) -> bool {
        if let Some(untaken) = &self.untaken {
            untaken.fetch_add(1, Ordering::Relaxed);
        }
        match self.queue.push_claimed(node) {
            Pushed::Queued => true,
            Pushed::WakeOwner => {
                self.ring();
                true
            }
            Pushed::Closed => false,
        }
    }

    /// The thread has taken in what came from outside.
    pub(crate) fn took(&self) {
        if let Some(untaken) = &self.untaken {
            untaken.store(0, Ordering::Relaxed);
        }
    }

    /// Tasks that live here and events that wait, as far as can be known from elsewhere.
    pub(crate) fn load(&self) -> u64 {
        let untaken = self.untaken.as_ref().map_or(0, |n| n.load(Ordering::Relaxed));
        self.stats.tasks.get() + self.stats.queue.get() + untaken as u64
    }

    /// A place for a bounded event, unless `max_queue` of them are taken.
    pub(crate) fn reserve(self: &Arc<Self>) -> Option<Place> {
        let take = |n| (n < self.max_queue).then_some(n + 1);
        let taken = self.bounded.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.ok().map(|_| Place(self.clone()))
    }

    /// Ends the owner's sleep, whether or not there is something in its queue.
    pub(crate) fn ring(&self) {
        // Full (EAGAIN) would mean 2^64 unread rings; the owner has an edge waiting in any case.
        let _ = rustix::io::write(&self.wake_fd, &1u64.to_ne_bytes());
    }

    pub(crate) fn order(&self, command: u8) {
        self.command.fetch_max(command, Ordering::AcqRel);
        self.ring();
    }
}

/// A place in the bounded part of a thread's queue, given back when dropped.
pub(crate) struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.bounded.fetch_sub(1, Ordering::Relaxed);
    }
}
