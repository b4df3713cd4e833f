//! hyper without a network: what a peer sends are bytes in memory.

use hyper::rt::{Read, ReadBufCursor, Write};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// The other end of a connection. It is deaf, and never closes.
pub(crate) struct Peer<'a> {
    bytes: &'a [u8],
    each: usize,
    talks: bool,
}

impl<'a> Peer<'a> {
    /// Sends these bytes, so many at a time; from the beginning, or when it was `asked` for anything.
    pub(crate) fn new(bytes: &'a [u8], each: usize, asked: bool) -> Peer<'a> {
        Peer { bytes, each, talks: !asked }
    }
}

impl Read for Peer<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut to: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, later) = self.bytes.split_at(self.bytes.len().min(self.each).min(to.remaining()));
        if now.is_empty() || !self.talks {
            return Poll::Pending;
        }
        to.put_slice(now);
        self.bytes = later;
        Poll::Ready(Ok(()))
    }
}

impl Write for Peer<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.talks = true;
        cx.waker().wake_by_ref();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Polls, and again as long as somebody has said that there is more to do.
pub(crate) fn run(mut poll: impl FnMut(&mut Context<'_>)) {
    struct Awake(AtomicBool);
    impl Wake for Awake {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let awake = Arc::new(Awake(AtomicBool::new(true)));
    let waker = Waker::from(awake.clone());
    while awake.0.swap(false, Ordering::Relaxed) {
        poll(&mut Context::from_waker(&waker));
    }
}
