//! An answer on its way to a client, and into the store at its end.
//!
//! What passes is copied into one buffer: the pieces hyper gives are views into larger buffers, which an object must not
//! hold on to. Something larger than an object may be passes on and isn't kept. If the client goes away, the rest is read
//! for the store's sake, in the background and for a limited time: others may be waiting for it.

use super::Cache;
use super::flight::{Leader, Outcome};
use super::object::{Head, Object};
use super::store::Key;
use crate::body::{Body, BodyError};
use bytes::{Bytes, BytesMut};
use http::header::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// How long an answer is read on whose client has gone.
const ALONE: Duration = Duration::from_secs(30);
/// At first; a length that is announced is not to be believed with memory.
const FIRST: usize = 64 << 10;

/// What is needed to keep an answer at its end.
pub struct Keep {
    /// Where.
    pub cache: Arc<Cache>,
    /// The primary key.
    pub key: Key,
    /// The request's fields, which may select.
    pub request: HeaderMap,
    /// The answer's head.
    pub head: Head,
    /// Others wait for it.
    pub leader: Option<Leader>,
}

/// See the module.
pub struct Filling {
    body: Body,
    keep: Option<Keep>,
    buf: BytesMut,
    limit: usize,
    /// Its whole length, if that was announced.
    expected: Option<usize>,
    /// Of the cache's budget for what is on its way.
    booked: u64,
}

/// Sends an answer's body on and keeps it. False if it is known to be too large.
pub fn fill(body: Body, keep: Keep) -> (Body, bool) {
    let limit = keep.cache.store.max_object() as usize;
    let exact = body.size_hint().exact();
    if exact.is_some_and(|n| n > limit as u64) {
        // dropping the leader tells the others
        return (body, false);
    }
    let buf = BytesMut::with_capacity(exact.map_or(0, |n| (n as usize).min(FIRST)));
    let expected = exact.map(|n| n as usize);
    let mut filling = Filling { body, keep: Some(keep), buf, limit, expected, booked: 0 };
    if filling.body.is_end_stream() {
        filling.finish();
        return (std::mem::replace(&mut filling.body, Body::Empty), true);
    }
    (Body::Stream(Box::pin(filling)), true)
}

impl Filling {
    fn take(&mut self, data: &Bytes) {
        let Some(keep) = &self.keep else { return };
        let n = data.len() as u64;
        let booked = keep.cache.filling.fetch_add(n, Relaxed) + n;
        self.booked += n;
        if self.buf.len() + data.len() > self.limit || booked > keep.cache.max_filling {
            return self.give_up();
        }
        if self.buf.capacity() - self.buf.len() < data.len() {
            // doubling, but not beyond what was announced
            let left = self.expected.map_or(usize::MAX, |all| all.saturating_sub(self.buf.len()));
            self.buf.reserve(self.buf.len().max(FIRST).min(left).max(data.len()));
        }
        self.buf.extend_from_slice(data);
    }

    fn give_up(&mut self) {
        self.unbook();
        self.keep = None;
        self.buf = BytesMut::new();
    }

    fn unbook(&mut self) {
        if let Some(keep) = &self.keep {
            keep.cache.filling.fetch_sub(std::mem::take(&mut self.booked), Relaxed);
        }
    }

    /// All of it has come.
    fn finish(&mut self) {
        self.unbook();
        let Some(keep) = self.keep.take() else { return };
        // without what the buffer has more than it needs
        let body = std::mem::take(&mut self.buf);
        let body = if body.capacity() > body.len() + body.len() / 8 {
            Bytes::copy_from_slice(&body)
        } else {
            body.freeze()
        };
        let Keep { cache, key, request, head, leader } = keep;
        cache.store.put(&key, &request, Object::new(head, body));
        if let Some(leader) = leader {
            leader.done(Outcome::Stored);
        }
    }
}

impl HttpBody for Filling {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            None => self.finish(),
            Some(Err(_)) => self.give_up(),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.take(data);
                }
                // nobody needs to ask for an end that is known
                if self.body.is_end_stream() {
                    self.finish();
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        if self.keep.is_none() {
            return;
        }
        // its length is known, so this has an end; and the engine goes on
        if self.body.size_hint().exact().is_none() || engine::is_draining() {
            return self.unbook();
        }
        let rest = Filling {
            body: std::mem::replace(&mut self.body, Body::Empty),
            keep: self.keep.take(),
            buf: std::mem::take(&mut self.buf),
            limit: self.limit,
            expected: self.expected,
            booked: std::mem::take(&mut self.booked),
        };
        drop(engine::spawn(async move {
            let mut rest = rest;
            if engine::time::timeout(ALONE, drain(&mut rest)).await.is_err() {
                rest.give_up();
            }
        }));
    }
}

/// Reads to the end, or to the first error.
async fn drain(filling: &mut Filling) {
    while filling.keep.is_some() {
        let frame = poll_fn(|cx| Pin::new(&mut *filling).poll_frame(cx)).await;
        if !matches!(frame, Some(Ok(_))) {
            filling.give_up();
        }
    }
}

/// Reads an answer for the store's sake alone.
pub async fn read(body: Body) {
    let mut body = body;
    let all = async { while let Some(Ok(_)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {} };
    let _ = engine::time::timeout(ALONE, all).await;
}
