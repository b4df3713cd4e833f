//! An answer on its way to a client, and into the store at its end.
//!
//! What passes is copied into one buffer: the pieces hyper gives are views into larger buffers, which an object must not
//! hold on to. Something larger than an object may be passes on and isn't kept.
//!
//! The beginning of an answer is read at the client's pace. Beyond `INLINE` a task of its own reads it at the origin's
//! pace (`pump`), as far as it may be kept: others may be waiting for it, and a slow client must not hold them up.
//! If the client goes away, the task reads on for a limited time.

use super::flight::{Leader, Outcome};
use super::held::{Epoch, Share};
use super::object::{Head, Object};
use super::partial;
use super::pump::{self, Pumped};
use super::spool::{self, Spool};
use super::store::Key;
use super::{Cache, LARGE};
use crate::body::{Body, BodyError};
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

/// As much as this is read ahead for a client by hyper itself, about.
const INLINE: usize = 256 << 10;
/// At first; a length that is announced is not to be believed with memory.
const FIRST: usize = 64 << 10;

/// What is needed to keep an answer at its end.
pub struct Keep {
    /// Where.
    pub cache: Arc<Cache>,
    /// The primary key.
    pub key: Key,
    /// See [`Cache::epoch`]; of before it was asked for.
    pub epoch: Epoch,
    /// The request's fields, which may select.
    pub request: HeaderMap,
    /// The answer's head.
    pub head: Head,
    /// Others wait for it.
    pub leader: Option<Leader>,
}

impl Keep {
    /// It isn't kept, and wouldn't be if others asked for it.
    pub(super) fn give_up(self) {
        self.leader.into_iter().for_each(|l| l.done(Outcome::NotStored));
    }
}

/// A share of the cache's budget for what is on its way, which is given back in the end.
pub(super) struct Booking {
    cache: Arc<Cache>,
    bytes: u64,
}

impl Booking {
    /// Of nothing.
    pub fn new(cache: &Arc<Cache>) -> Booking {
        Booking { cache: cache.clone(), bytes: 0 }
    }

    /// Takes more of it. False if that is too much for all together.
    pub fn add(&mut self, n: usize) -> bool {
        let n = n as u64;
        self.bytes += n;
        let all = self.cache.filling.fetch_add(n, Relaxed) + n;
        all <= self.cache.max_filling && self.cache.held.has_room(all)
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        self.cache.filling.fetch_sub(self.bytes, Relaxed);
    }
}

/// The copy of an answer that is to be kept, as far as it has come. Dropping it gives up.
pub(super) struct Copying {
    keep: Keep,
    buf: BytesMut,
    limit: usize,
    /// Its whole length, if that was announced.
    expected: Option<usize>,
    booked: Booking,
}

impl Copying {
    /// False if it is too much.
    pub fn take(&mut self, data: &Bytes) -> bool {
        let room = self.booked.add(data.len());
        if self.buf.len() + data.len() > self.limit || !room {
            return false;
        }
        if self.buf.capacity() - self.buf.len() < data.len() {
            // doubling, but not beyond what was announced
            let left = self.expected.map_or(usize::MAX, |all| all.saturating_sub(self.buf.len()));
            self.buf.reserve(self.buf.len().max(FIRST).min(left).max(data.len()));
        }
        self.buf.extend_from_slice(data);
        true
    }

    /// Goes on on disk, if there is a disk and it is for memory too large.
    pub fn into_spool(self) -> Option<Spool> {
        let disk = self.keep.cache.disk.clone().filter(|_| self.expected.is_none());
        let Some(disk) = disk.filter(|_| self.keep.head.status != StatusCode::PARTIAL_CONTENT) else {
            self.give_up();
            return None;
        };
        let mut booked = Booking::new(&self.keep.cache);
        booked.add(spool::AHEAD);
        let mut spool = Spool::begin(self.keep, booked, &disk, None);
        spool.push(self.buf.freeze());
        Some(spool)
    }

    /// So much as is booked for it counts as held by its client, for as long as the caller wants.
    pub fn held(&self) -> Share {
        self.keep.cache.held.share(self.booked.bytes)
    }

    /// It won't be kept, whoever asks for it.
    fn give_up(self) {
        self.keep.give_up();
    }

    /// Bytes that have come.
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// All of it has come. Returns it.
    pub fn finish(mut self) -> Bytes {
        let body = std::mem::take(&mut self.buf);
        // without what the buffer has more than it needs
        let body = match body.capacity() > body.len() + body.len() / 8 {
            true => Bytes::copy_from_slice(&body),
            false => body.freeze(),
        };
        let body = self.keep.cache.held.hold(body);
        let object = Object::new(self.keep.head.clone(), body.clone());
        let Keep { cache, key, epoch, request, .. } = &self.keep;
        match object.head.status {
            StatusCode::PARTIAL_CONTENT => partial::keep(cache, key, epoch, request, object),
            _ => cache.put(key, epoch, request, object),
        }
        if let Some(leader) = self.keep.leader.take() {
            leader.done(Outcome::Stored);
        }
        body
    }
}

/// Sends an answer's body on and keeps it. False if it is known to be too large.
pub fn fill(body: Body, keep: Keep) -> (Body, bool) {
    let limit = keep.cache.store.max_object() as usize;
    let exact = body.size_hint().exact();
    // parts are in memory alone
    let part = keep.head.status == StatusCode::PARTIAL_CONTENT;
    if let Some(len) = exact.filter(|_| !part)
        && let Some(disk) = keep.cache.disk_for(len).cloned()
    {
        return spool::spool(body, keep, &disk, len);
    }
    if exact.is_some_and(|n| n > limit as u64) {
        keep.give_up();
        return (body, false);
    }
    let expected = exact.map(|n| n as usize);
    let buf = BytesMut::with_capacity(expected.map_or(0, |n| n.min(FIRST)));
    // what is for the disk, if there is one, doesn't wait for its end in memory
    let limit = if keep.cache.disk.is_some() && !part { limit.min(LARGE as usize) } else { limit };
    let booked = Booking::new(&keep.cache);
    let copying = Copying { keep, buf, limit, expected, booked };
    if body.is_end_stream() {
        copying.finish();
        return (body, true);
    }
    (Body::Stream(Box::pin(Filling { from: Source::Origin(body), copying: Some(copying) })), true)
}

enum Source {
    /// At the client's pace.
    Origin(Body),
    /// What a task has read.
    Task(Pumped),
}

/// See the module.
struct Filling {
    from: Source,
    copying: Option<Copying>,
}

impl Filling {
    /// Has a task read the rest.
    fn hand_over(&mut self) {
        if let Source::Origin(body) = &mut self.from
            && let Some(copying) = self.copying.take()
        {
            let body = std::mem::replace(body, Body::Empty);
            self.from = Source::Task(pump::start(body, copying));
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
        let this = &mut *self;
        let body = match &mut this.from {
            Source::Task(pumped) => return pumped.poll(cx),
            Source::Origin(body) => body,
        };
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        let mut ended = body.is_end_stream();
        match &frame {
            None => ended = true,
            Some(Err(_)) => this.copying = None,
            Some(Ok(frame)) => {
                if let (Some(data), Some(copying)) = (frame.data_ref(), &mut this.copying)
                    && !copying.take(data)
                {
                    this.copying.take().into_iter().for_each(Copying::give_up);
                }
            }
        }
        // nobody asks for an end that is known
        if ended && let Some(copying) = this.copying.take() {
            copying.finish();
        }
        if this.copying.as_ref().is_some_and(|c| c.buf.len() > INLINE) {
            this.hand_over();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.from {
            Source::Origin(body) => body.is_end_stream(),
            Source::Task(pumped) => pumped.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.from {
            Source::Origin(body) => body.size_hint(),
            Source::Task(pumped) => pumped.size_hint(),
        }
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        // the client has gone; a length that is known has an end, and the engine goes on
        let body_is_known = match &self.from {
            Source::Origin(body) => body.size_hint().exact().is_some(),
            Source::Task(_) => false,
        };
        if self.copying.is_some() && body_is_known && !engine::is_draining() {
            self.hand_over();
        }
    }
}

/// Reads an answer for the store's sake alone.
pub async fn read(body: Body) {
    let mut body = body;
    let all = async { while let Some(Ok(_)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {} };
    let _ = engine::time::timeout(pump::ALONE, all).await;
}

/// Runs what nobody waits for; it doesn't keep the engine from ending.
pub async fn unless_draining<F: Future>(work: F) -> Option<F::Output> {
    let mut work = pin!(work);
    let mut draining = pin!(engine::draining());
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Some(done));
        }
        draining.as_mut().poll(cx).map(|()| None)
    })
    .await
}
