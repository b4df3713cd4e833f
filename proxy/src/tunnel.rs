//! A connection that has stopped being HTTP: bytes in both directions, as they come.
//!
//! Each direction holds one buffer at most, and reads only when it is empty: who doesn't take holds back who sends. A side
//! that says it sends no more is passed on as such; the other direction goes on. A tunnel in which nothing has moved for
//! its `idle` is closed.

use crate::origins::InFlight;
use crate::rt::Io;
use bytes::Bytes;
use hyper::rt::{Read, ReadBuf, Write};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// Bytes read at a time.
const BUFFER: usize = 16 << 10;
/// Reads in a row until others have their turn.
const TURN: usize = 8;

/// Where a client's connection leads.
#[derive(Debug)]
pub struct Far {
    /// The other connection.
    pub io: Io,
    /// What was read from it too early.
    pub early: Bytes,
    /// How long nothing may move.
    pub idle: Duration,
    /// Counts as in progress at its origin as long as it is open.
    pub busy: Option<InFlight>,
}

/// Bytes that have gone through, from the client and to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    /// From the client.
    pub up: u64,
    /// To the client.
    pub down: u64,
}

/// One direction.
#[derive(Debug)]
struct Half {
    /// Read, and not written yet.
    pending: Bytes,
    ended: bool,
    over: bool,
    moved: u64,
}

impl Half {
    fn new(early: Bytes) -> Half {
        Half { pending: early, ended: false, over: false, moved: 0 }
    }

    /// Goes on as far as it can; ready when it is over.
    fn poll(&mut self, from: &Io, to: &Io, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (mut from, mut to) = (from.clone(), to.clone());
        let mut buffer = Vec::new();
        for _ in 0..TURN {
            if self.over {
                return Poll::Ready(Ok(()));
            }
            while !self.pending.is_empty() {
                let n = ready!(Pin::new(&mut to).poll_write(cx, &self.pending))?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                drop(self.pending.split_to(n));
                self.moved += n as u64;
            }
            if self.ended {
                ready!(Pin::new(&mut to).poll_shutdown(cx))?;
                self.over = true;
                continue;
            }
            // an idle tunnel has no buffer
            ready!(from.poll_readable(cx))?;
            buffer.resize(BUFFER, 0);
            let mut space = ReadBuf::new(&mut buffer);
            ready!(Pin::new(&mut from).poll_read(cx, space.unfilled()))?;
            match space.filled() {
                [] => self.ended = true,
                read => self.pending = Bytes::copy_from_slice(read),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Runs a tunnel to its end: both sides have ended, one is broken, or nothing moves.
pub async fn run(client: Io, early: Bytes, far: Far) -> Moved {
    let mut up = Half::new(early);
    let mut down = Half::new(far.early);
    let mut seen = 0;
    let mut last = Instant::now();
    let mut idle = pin!(engine::time::sleep(far.idle));
    let end = poll_fn(|cx| {
        let there = up.poll(&client, &far.io, cx)?;
        let back = down.poll(&far.io, &client, cx)?;
        if there.is_ready() && back.is_ready() {
            return Poll::Ready(Ok(()));
        }
        if up.moved + down.moved != seen {
            (seen, last) = (up.moved + down.moved, engine::time::now());
        }
        // set anew when it fires, not with every byte
        while idle.as_mut().poll(cx).is_ready() {
            let until = last + far.idle;
            if until <= engine::time::now() {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::TimedOut)));
            }
            idle.set(engine::time::sleep_until(until));
        }
        Poll::Pending
    })
    .await;
    if let Err(e) = end {
        log::debug!("event=tunnel-ended: {e}");
    }
    Moved { up: up.moved, down: down.moved }
}
