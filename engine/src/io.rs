//! Anything with a file descriptor that epoll can watch, on the loop of the current thread.

use crate::reactor::{Interest, Token, Watch};
use crate::shared::Shared;
use crate::thread::{try_with_core, with_core};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// A file descriptor with its registration: sockets, pipes, eventfds, pidfds, signal pipes.
///
/// It owns what it watches, and leaves epoll *before* that is closed: a closed descriptor with a living duplicate would
/// otherwise stay in epoll for ever. Reading and writing need `O_NONBLOCK`, which is the caller's to set.
///
/// It is `Send` as far as `T` is, for protocols that ask for it, but works only on the thread that registered it. There
/// is one waiter for reading and one for writing; a later one replaces the earlier.
pub struct Async<T: AsFd> {
    inner: Option<T>,
    token: Token,
    home: Arc<Shared>,
}

impl<T: AsFd> Async<T> {
    /// Registers with the current thread's loop. What is ready already is known after the loop's next round.
    ///
    /// # Errors
    /// What epoll says; `EPERM` for regular files, which cannot be watched.
    ///
    /// # Panics
    /// Outside of an event thread.
    pub fn new(inner: T) -> io::Result<Self> {
        Self::register(inner, Watch::Now)
    }

    /// Registers for reading only, so that of several threads that watch the same object one is woken.
    pub(crate) fn exclusive(inner: T) -> io::Result<Self> {
        Self::register(inner, Watch::Exclusive)
    }

    /// Registers, and takes it for ready until an operation says otherwise: nothing is asked of epoll before that. For what
    /// is likely to have something to read.
    ///
    /// # Errors
    /// None now. What epoll says comes from the operation that has to wait first.
    ///
    /// # Panics
    /// As [`Async::new`].
    pub fn ready(inner: T) -> io::Result<Self> {
        Self::register(inner, Watch::Later)
    }

    fn register(inner: T, watch: Watch) -> io::Result<Self> {
        with_core(|core| {
            let token = core.sources.borrow_mut().add(&core.shared, inner.as_fd(), watch)?;
            Ok(Async { inner: Some(inner), token, home: core.shared.clone() })
        })
    }

    /// Takes it for ready until an operation says otherwise: saves a round of the loop where data is likely there.
    pub fn assume_ready(self) -> Self {
        if self.home.is_here() {
            with_core(|core| core.sources.borrow_mut().assume_ready(self.token));
        }
        self
    }

    /// What is watched.
    pub fn get_ref(&self) -> &T {
        self.inner.as_ref().expect("only into_inner takes it")
    }

    /// Deregisters, and gives back what was watched.
    pub fn into_inner(mut self) -> T {
        self.deregister();
        self.inner.take().expect("only into_inner takes it")
    }

    fn poll_ready(&self, interest: Interest, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.home.is_here() {
            return Poll::Ready(Err(io::Error::other(
                "a descriptor was used on a thread it is not registered with",
            )));
        }
        let source = (self.token, interest);
        let (poll, replaced) = with_core(|core| {
            core.sources.borrow_mut().poll(&core.shared, self.get_ref().as_fd(), source, cx)
        });
        drop(replaced);
        poll
    }

    /// Ready when reading may succeed; else the waker is kept.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_ready(Interest::Readable, cx)
    }

    /// Ready when writing may succeed; else the waker is kept.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_ready(Interest::Writable, cx)
    }

    /// Says that reading would block. [`Async::poll_io`] does it by itself.
    pub fn clear_read(&self) {
        self.clear(Interest::Readable);
    }

    /// Says that writing would block. [`Async::poll_io`] does it by itself.
    pub fn clear_write(&self) {
        self.clear(Interest::Writable);
    }

    fn clear(&self, interest: Interest) {
        if self.home.is_here() {
            with_core(|core| core.sources.borrow_mut().clear(self.token, interest));
        }
    }

    /// Waits until reading may succeed.
    pub async fn readable(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_read_ready(cx)).await
    }

    /// Waits until writing may succeed.
    pub async fn writable(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_write_ready(cx)).await
    }

    /// Does an operation as soon as it does not block; signals that interrupt it are passed over.
    pub fn poll_io<R>(
        &self,
        interest: Interest,
        cx: &mut Context<'_>,
        mut op: impl FnMut(&T) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        loop {
            ready!(self.poll_ready(interest, cx))?;
            match op(self.get_ref()) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.clear(interest),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// Does an operation as soon as it does not block.
    ///
    /// # Errors
    /// Those of `op` except `WouldBlock` and `Interrupted`.
    pub async fn io<R>(&self, interest: Interest, mut op: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        std::future::poll_fn(|cx| self.poll_io(interest, cx, &mut op)).await
    }

    fn deregister(&self) {
        let Some(inner) = &self.inner else { return };
        let removed = if self.home.is_here() {
            try_with_core(|core| core.sources.borrow_mut().remove(&core.shared, self.token))
        } else {
            self.home.orphans.lock().expect("never poisoned").push(self.token);
            None
        };
        // of one that is removed by its thread later on it isn't known here
        if removed.as_ref().is_none_or(|(watched, _)| *watched) {
            // ENOENT and EBADF would say that it is out of epoll already, which is what is wanted.
            let _ = self.home.epoll.delete(inner);
        }
    }
}

impl<T: AsFd> Drop for Async<T> {
    fn drop(&mut self) {
        self.deregister();
    }
}

impl<T: AsFd> AsFd for Async<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.get_ref().as_fd()
    }
}

impl<T: AsFd + std::fmt::Debug> std::fmt::Debug for Async<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Async").field(&self.inner).finish()
    }
}
