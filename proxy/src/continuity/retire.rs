//! Giving connections up in order: a server that retires passes each one on as soon as it is between two requests.

use super::journal::Journal;
use super::marks::Closed;
use super::resume::{Resume, What};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

/// A connection between two requests, that nobody serves.
#[derive(Debug)]
pub struct Retired {
    /// Dropped before the socket: see [`Journal`].
    journal: Journal,
    fd: OwnedFd,
    /// Dropped after it.
    _closed: Closed,
}

impl Retired {
    pub(crate) fn new(journal: Journal, fd: OwnedFd) -> Retired {
        Retired { _closed: journal.closed(), journal, fd }
    }

    /// Its socket.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// What another server needs to know of it; see [`message`] for the way back.
    pub fn to_message(&self) -> Vec<u8> {
        let r = self.journal.resume();
        [&r.bytes_in.to_ne_bytes()[..], &r.bytes_out.to_ne_bytes(), &r.bytes].concat()
    }

    /// Notes that it is somebody else's from here on: whoever finds it in our table leaves it alone.
    pub fn pass_on(&self) {
        self.journal.pass_on(true);
    }

    /// It couldn't be passed on: it is ours still.
    pub fn take_back(&self) {
        self.journal.pass_on(false);
    }
}

/// Reads [`Retired::to_message`].
///
/// # Errors
/// It is too short.
pub fn message(bytes: &[u8]) -> io::Result<Resume> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "a connection was passed on without its numbers");
    let (numbers, rest) = bytes.split_at_checked(16).ok_or_else(bad)?;
    let word = |at: usize| u64::from_ne_bytes(numbers[at..at + 8].try_into().expect("eight bytes"));
    Ok(Resume { bytes: rest.to_vec(), bytes_in: word(0), bytes_out: word(8), what: What::GoOn })
}

/// Takes a connection off an event thread's hands; it must not block.
type Taker = Box<dyn Fn(Retired) + Send + Sync>;

/// Whether a server retires, and where its connections go then.
#[derive(Default)]
pub struct Retirement {
    on: AtomicBool,
    to: Mutex<Option<Taker>>,
    wakers: Mutex<HashMap<u64, Waker>>,
    next: AtomicU64,
}

impl std::fmt::Debug for Retirement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Retirement").field("on", &self.on).finish_non_exhaustive()
    }
}

impl Retirement {
    /// From here on every connection is given to `to` once it is between two requests.
    pub fn begin(&self, to: Taker) {
        *self.to.lock().expect("never poisoned") = Some(to);
        self.on.store(true, Ordering::SeqCst);
        for (_, waker) in self.wakers.lock().expect("never poisoned").drain() {
            waker.wake();
        }
    }

    /// Ready when it has begun.
    pub(crate) fn begun(&self) -> Begun<'_> {
        Begun { of: self, key: None }
    }

    pub(crate) fn take(&self, retired: Retired) {
        if let Some(to) = &*self.to.lock().expect("never poisoned") {
            to(retired);
        }
    }
}

/// See [`Retirement::begun`].
pub(crate) struct Begun<'a> {
    of: &'a Retirement,
    key: Option<u64>,
}

impl Future for Begun<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.of.on.load(Ordering::SeqCst) {
            return Poll::Ready(());
        }
        if self.key.is_none() {
            let key = self.of.next.fetch_add(1, Ordering::Relaxed);
            self.of.wakers.lock().expect("never poisoned").insert(key, cx.waker().clone());
            self.key = Some(key);
            // it may have begun between the question and the registration
            if self.of.on.load(Ordering::SeqCst) {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.of.wakers.lock().expect("never poisoned").remove(&key);
        }
    }
}
