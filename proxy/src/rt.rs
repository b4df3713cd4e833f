//! hyper's runtime traits on the engine: I/O, timers, spawning.
//!
//! hyper wants `Timer` and `Sleep` to be `Send + Sync`; the engine's `Sleep` is plain data that finds its wheel through the
//! thread that polls it, so nothing has to be pretended.

mod input;

pub use self::input::Input;
use crate::continuity::Closed;
use crate::continuity::journal::{Journal, Write};
use crate::continuity::retire::Retired;
use crate::direct::Sent;
use crate::tunnel::Far;
use bytes::Bytes;
use engine::net::Stream;
use hyper::rt::{Read, ReadBufCursor};
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

/// What hyper says to a client that asks whether it may send its body.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A stream of the engine as hyper reads and writes it, with the journal of what goes through it, if one is kept. A copy
/// is another handle on the same stream, so that an idle connection outlives the hyper state it was served by.
#[derive(Debug, Clone)]
pub struct Io(Rc<Inner>);

/// A handle that doesn't keep the stream open: for who answers a request on it.
#[derive(Debug, Clone)]
pub struct WeakIo(Weak<Inner>);

impl WeakIo {
    /// The stream, if it is still open.
    pub fn io(&self) -> Option<Io> {
        self.0.upgrade().map(Io)
    }
}

#[derive(Debug)]
struct Inner {
    /// Dropped before the stream: the record must be closed before the number is another's.
    journal: Option<Journal>,
    stream: RefCell<Stream>,
    /// Read before, by a server that is dead: given to hyper before anything else.
    again: RefCell<Bytes>,
    /// Bytes of the answer that the client has already.
    swallow: Cell<u64>,
    /// Something was written, and hyper may have more of it.
    unflushed: Cell<bool>,
    /// The last request would have been answered without hyper now.
    plain: Cell<bool>,
    /// What few connections have.
    extra: RefCell<Option<Box<Extra>>>,
    /// The first thing that is written has been written before.
    muted: Cell<Muted>,
    /// Bytes of hyper's 100 (Continue) that are still to be written.
    interim: Cell<usize>,
    /// Dropped after the stream.
    _closed: Option<Closed>,
}

#[derive(Debug, Default)]
struct Extra {
    /// The rest of an interim answer: goes out before anything else.
    first: Bytes,
    /// What the connection leads to when hyper has said the last word on it.
    far: Option<Box<Far>>,
    /// The next request has been sent to its origin already.
    sent: Option<Box<Sent>>,
}

/// Of a connection to an origin whose request has been sent by somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Muted {
    No,
    /// The request is still to be written, and goes nowhere.
    Waiting,
    /// It has been.
    Written,
}

impl Io {
    /// A stream that nobody goes on with after a crash.
    pub fn new(stream: Stream) -> Io {
        Io::with(stream, None, Bytes::new())
    }

    /// A stream with its journal, and bytes that were read from it before.
    pub fn with(stream: Stream, journal: Option<Journal>, again: Bytes) -> Io {
        let (stream, again) = (RefCell::new(stream), RefCell::new(again));
        Io(Rc::new(Inner {
            _closed: journal.as_ref().map(Journal::closed),
            journal,
            stream,
            again,
            swallow: Cell::new(0),
            unflushed: Cell::new(false),
            plain: Cell::new(false),
            extra: RefCell::default(),
            muted: Cell::new(Muted::No),
            interim: Cell::new(0),
        }))
    }

    /// A connection to an origin that has the request which is written first, up to the first flush. `again`: what has come
    /// of the answer.
    pub(crate) fn of_sent(stream: Stream, again: Bytes) -> Io {
        let io = Io::with(stream, None, again);
        io.0.muted.set(Muted::Waiting);
        io
    }

    /// True if what is written has been written before.
    fn mutes(&self) -> bool {
        let muted = self.0.muted.get() != Muted::No;
        if muted {
            self.0.muted.set(Muted::Written);
        }
        muted
    }

    /// A handle that doesn't keep it open.
    pub fn downgrade(&self) -> WeakIo {
        WeakIo(Rc::downgrade(&self.0))
    }

    /// Sends an interim answer ahead of the one that is to come. False if that can't be: the last answer isn't out yet, this
    /// one has begun in a server that is dead, or the client takes nothing now.
    pub fn interject(&self, bytes: &[u8]) -> bool {
        let inner = &*self.0;
        let open = !inner.unflushed.get() && inner.swallow.get() == 0;
        let open = open && inner.extra.borrow().as_ref().is_none_or(|e| e.first.is_empty());
        if !open || inner.journal.as_ref().is_some_and(|j| !j.may_interject()) {
            return false;
        }
        // nobody waits to write: hyper has flushed all it had
        let written = inner.stream.borrow_mut().poll_write(&mut Context::from_waker(Waker::noop()), bytes);
        let Poll::Ready(Ok(n)) = written else { return false };
        if let Some(j) = &inner.journal {
            j.wrote(n);
            if n < bytes.len() {
                // half of it can't be told from half an answer
                j.lose();
            }
        }
        if n < bytes.len() {
            self.extra(|e| e.first = Bytes::copy_from_slice(&bytes[n..]));
        }
        true
    }

    fn extra(&self, change: impl FnOnce(&mut Extra)) {
        change(self.0.extra.borrow_mut().get_or_insert_default());
    }

    /// Has the connection lead there once the answer in progress is out and hyper lets go of it.
    pub fn lead_to(&self, far: Far) {
        self.extra(|e| e.far = Some(Box::new(far)));
    }

    /// Where the connection leads, if it was to lead anywhere.
    pub fn take_far(&self) -> Option<Box<Far>> {
        self.0.extra.borrow_mut().as_mut()?.far.take()
    }

    /// It is to lead somewhere.
    pub fn leads_on(&self) -> bool {
        self.0.extra.borrow().as_ref().is_some_and(|e| e.far.is_some())
    }

    /// Writes the rest of an interim answer.
    fn put_first(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut extra = self.0.extra.borrow_mut();
        let Some(Extra { first, .. }) = extra.as_deref_mut() else { return Poll::Ready(Ok(())) };
        while !first.is_empty() {
            let n = ready!(self.0.stream.borrow_mut().poll_write(cx, first))?;
            drop(first.split_to(n));
            if let Some(j) = &self.0.journal {
                j.wrote(n);
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Its journal.
    pub fn journal(&self) -> Option<&Journal> {
        self.0.journal.as_ref()
    }

    /// Has the connection end with a reset: its end alone would say that all is well.
    pub fn end_with_reset(&self) {
        let _ = rustix::net::sockopt::set_socket_linger(self.0.stream.borrow().as_fd(), Some(Duration::ZERO));
    }

    /// Has the peer reset the connection?
    pub fn is_reset(&self) -> bool {
        !matches!(rustix::net::sockopt::socket_error(self.0.stream.borrow().as_fd()), Ok(Ok(())))
    }

    /// Takes it apart, if this is the last handle and it has a journal.
    pub fn into_retired(self) -> Option<Retired> {
        let inner = Rc::try_unwrap(self.0).ok()?;
        Some(Retired::new(inner.journal?, inner.stream.into_inner().into_fd()))
    }

    /// Ready when there is something to read.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.0.again.borrow().is_empty() {
            true => self.0.stream.borrow().poll_read_ready(cx),
            false => Poll::Ready(Ok(())),
        }
    }

    /// Writes all of it, beside any record.
    ///
    /// # Errors
    /// The peer is gone.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = poll_fn(|cx| self.0.stream.borrow_mut().poll_write(cx, bytes)).await?;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    /// Says that nothing more is written, and reads until the peer says the same, or says nothing for so long.
    ///
    /// # Errors
    /// The peer is gone, or silent.
    pub async fn linger(&self, silence: Duration) -> io::Result<()> {
        self.0.stream.borrow().shutdown_write()?;
        // on the heap: the future of every connection would else be so much larger
        let mut waste = vec![MaybeUninit::uninit(); 4096];
        loop {
            let read = poll_fn(|cx| self.0.stream.borrow_mut().poll_read(cx, &mut waste));
            match engine::time::timeout(silence, read).await {
                Ok(Ok(0)) => return Ok(()),
                Ok(n) => n?,
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            };
        }
    }

    /// Writes hyper's 100 (Continue), and nothing with it: the answer's head begins a write of its own. In the middle of an answer
    /// that goes on the client has had it, and it is left out. `None`: that isn't what comes.
    fn put_interim(&self, cx: &mut Context<'_>, first: &[u8]) -> Option<Poll<io::Result<usize>>> {
        let inner = &*self.0;
        if inner.interim.get() == 0 {
            if inner.swallow.get() > 0 || !first.starts_with(CONTINUE) {
                return None;
            }
            if inner.journal.as_ref().is_some_and(Journal::goes_on) {
                return Some(Poll::Ready(Ok(CONTINUE.len())));
            }
            inner.interim.set(CONTINUE.len());
        }
        let some = &first[..first.len().min(inner.interim.get())];
        let polled = self.wrote(inner.stream.borrow_mut().poll_write(cx, some));
        if let Poll::Ready(Ok(n)) = polled {
            inner.interim.set(inner.interim.get() - n);
        }
        Some(polled)
    }

    /// Before a write of `all` bytes that begins with `first`; `None`: it is to be written as it is.
    fn before_write(
        &self,
        cx: &mut Context<'_>,
        first: &[u8],
        all: usize,
    ) -> Option<Poll<io::Result<usize>>> {
        self.put_interim(cx, first).or_else(|| self.leave_out(first, all))
    }

    /// Leaves out what the client has; `None`: to be written.
    fn leave_out(&self, first: &[u8], all: usize) -> Option<Poll<io::Result<usize>>> {
        if let Some(j) = &self.0.journal {
            match j.begin_write(first) {
                Write::All => {}
                Write::Without { swallow } => self.0.swallow.set(swallow),
                Write::Different => {
                    let why = "the answer isn't the one that had been begun";
                    return Some(Poll::Ready(Err(io::Error::other(why))));
                }
            }
        }
        let left = self.0.swallow.get();
        if left == 0 {
            return None;
        }
        let n = left.min(all as u64);
        self.0.swallow.set(left - n);
        if let (Some(j), true) = (&self.0.journal, left == n) {
            // it may have been whole
            j.wrote(0);
        }
        Some(Poll::Ready(Ok(n as usize)))
    }

    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match (&polled, &self.0.journal) {
            (Poll::Ready(Ok(n)), Some(j)) => j.wrote(*n),
            (Poll::Pending, Some(j)) => j.stuck(),
            _ => {}
        }
        polled
    }
}

impl Read for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.0.muted.get() != Muted::No {
            // an answer before its request would be nobody's; the flush wakes who reads
            return Poll::Pending;
        }
        let mut again = self.0.again.borrow_mut();
        if !again.is_empty() {
            let n = again.len().min(buf.remaining());
            buf.put_slice(&again.split_to(n));
            return Poll::Ready(Ok(()));
        }
        // SAFETY: the engine's poll_read only writes initialised bytes into the slice, and never reads from it; so does
        // the journal.
        let space = unsafe { buf.as_mut() };
        let mut stream = self.0.stream.borrow_mut();
        let n = ready!(match &self.0.journal {
            Some(j) => {
                // no buffer is taken before there is something to put into it
                ready!(stream.poll_read_ready(cx))?;
                j.read(space, |room| stream.poll_read(cx, room))
            }
            None => stream.poll_read(cx, space),
        })?;
        // SAFETY: `n` bytes were read, so the first `n` bytes are filled.
        unsafe { buf.advance(n) };
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.mutes() {
            return Poll::Ready(Ok(buf.len()));
        }
        self.0.unflushed.set(true);
        ready!(self.put_first(cx))?;
        if let Some(done) = self.before_write(cx, buf, buf.len()) {
            return done;
        }
        let polled = self.0.stream.borrow_mut().poll_write(cx, buf);
        self.wrote(polled)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.unflushed.set(false);
        if self.0.muted.get() == Muted::Written {
            self.0.muted.set(Muted::No);
            cx.waker().wake_by_ref();
        }
        if let Some(j) = &self.0.journal {
            j.flushed();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.0.stream.borrow().shutdown_write() {
            // the peer was quicker
            Err(e) if e.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            other => Poll::Ready(other),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.mutes() {
            return Poll::Ready(Ok(bufs.iter().map(|b| b.len()).sum()));
        }
        self.0.unflushed.set(true);
        ready!(self.put_first(cx))?;
        let first = bufs.iter().find(|b| !b.is_empty()).map_or(&[][..], |b| b);
        if let Some(done) = self.before_write(cx, first, bufs.iter().map(|b| b.len()).sum()) {
            return done;
        }
        let polled = self.0.stream.borrow_mut().poll_write_vectored(cx, bufs);
        self.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

/// The engine's clock and wheel for hyper's timeouts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timer;

/// A timer of hyper's.
struct Sleep(engine::time::Sleep);

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl hyper::rt::Sleep for Sleep {}

impl hyper::rt::Timer for Timer {
    fn sleep(&self, after: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Sleep(engine::time::sleep(after)))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Sleep(engine::time::sleep_until(deadline)))
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn hyper::rt::Sleep>>, deadline: Instant) {
        match sleep.as_mut().downcast_mut_pin::<Sleep>() {
            Some(s) => s.get_mut().0.reset(deadline),
            None => *sleep = self.sleep_until(deadline),
        }
    }

    fn now(&self) -> Instant {
        engine::time::now()
    }
}

/// Spawns hyper's futures on the current event thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct Executor;

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, future: F) {
        drop(engine::spawn(future));
    }
}
