//! What stands between the socket and hyper on a client connection: the scanner for ambiguous requests, and the limit
//! for clients that don't take their answers.

use crate::strict::Scanner;
use engine::time::Sleep;
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// A client's side of a connection with both guards.
#[derive(Debug)]
pub struct Guard<T> {
    io: T,
    scanner: Scanner,
    /// How long a write may be without progress.
    send_timeout: Duration,
    stalled: Option<Sleep>,
}

impl<T> Guard<T> {
    /// Guards `io`; a client that takes nothing for `send_timeout` is disconnected.
    pub fn new(io: T, send_timeout: Duration) -> Guard<T> {
        Guard { io, scanner: Scanner::default(), send_timeout, stalled: None }
    }

    /// Something ambiguous has come: the bytes behind it are not as the client sent them.
    pub fn is_poisoned(&self) -> bool {
        self.scanner.finding().is_some()
    }

    /// A request, or its body, has begun and not ended.
    pub fn is_amid(&self) -> bool {
        !self.scanner.between_requests()
    }

    /// No timer while it goes on; one as long as it is stuck.
    fn progress<R>(&mut self, poll: Poll<io::Result<R>>, cx: &mut Context<'_>) -> Poll<io::Result<R>> {
        if poll.is_ready() {
            self.stalled = None;
            return poll;
        }
        let limit = self.send_timeout;
        let sleep = self.stalled.get_or_insert_with(|| engine::time::sleep(limit));
        ready!(Pin::new(sleep).poll(cx));
        self.stalled = None;
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client doesn't take its answer")))
    }
}

impl<T: Read + Unpin> Read for Guard<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // SAFETY: only initialised bytes are ever written into the slice, here and by the inner reader.
        let space = unsafe { buf.as_mut() };
        let mut inner = ReadBuf::uninit(space);
        ready!(Pin::new(&mut self.io).poll_read(cx, inner.unfilled()))?;
        let n = inner.filled().len();
        // SAFETY: as above.
        let space = unsafe { buf.as_mut() };
        // SAFETY: the inner reader has initialised the first `n` bytes of `space`, which nobody else borrows now.
        let got = unsafe { std::slice::from_raw_parts_mut(space.as_mut_ptr().cast::<u8>(), n) };
        let before = self.scanner.finding();
        self.scanner.feed(got);
        if let (None, Some(finding)) = (before, self.scanner.finding()) {
            log::debug!("event=request-refused finding={finding:?}");
        }
        // SAFETY: the first `n` bytes are initialised.
        unsafe { buf.advance(n) };
        Poll::Ready(Ok(()))
    }
}

impl<T: Write + Unpin> Write for Guard<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.io).poll_write(cx, buf);
        self.progress(poll, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.progress(poll, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
