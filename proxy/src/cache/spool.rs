//! An answer on its way to a client, and to disk: what is too large for memory.
//!
//! What passes is written by a thread that may block, in order, one batch after the other. If the disk is slower than the
//! origin, the origin has to wait, a second at most for each batch: no more than [`AHEAD`] is held. If the disk fails, the
//! answer just isn't kept. A client that goes away leaves the rest to a task, for a limited time.

use super::PATIENCE;
use super::disk::Disk;
use super::fill::{self, Booking, Keep};
use super::flight::Outcome;
use super::large::{Temporary, Writer};
use super::object::Object;
use crate::body::{Body, BodyError};
use bytes::Bytes;
use engine::time::Sleep;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// Bytes that may wait for the disk.
pub(super) const AHEAD: usize = 1 << 20;

/// A blocking job on the file, which gives it back.
type Job = Pin<Box<dyn Future<Output = io::Result<Writer>>>>;

enum State {
    Ready(Writer),
    Busy(Job),
    Failed,
}

/// The file, and what waits for it.
pub(super) struct Spool {
    keep: Keep,
    disk: Arc<Disk>,
    state: State,
    waiting: Vec<Bytes>,
    bytes: usize,
    /// When it has been waited for long enough.
    patience: Option<Sleep>,
    /// Held as long as there is something to wait.
    _booked: Booking,
}

async fn job<R: Send + 'static>(f: impl FnOnce() -> io::Result<R> + Send + 'static) -> io::Result<R> {
    engine::blocking::run(f).await.map_err(io::Error::other)?
}

impl Spool {
    /// Begins a file for a body of `len` bytes, or of an unknown length.
    pub fn begin(keep: Keep, booked: Booking, disk: &Arc<Disk>, len: Option<u64>) -> Spool {
        let ours = disk.clone();
        let state = State::Busy(Box::pin(job(move || ours.begin_large(len))));
        Spool {
            keep,
            disk: disk.clone(),
            state,
            waiting: Vec::new(),
            bytes: 0,
            patience: None,
            _booked: booked,
        }
    }

    /// Has a piece written behind the others.
    pub fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        self.waiting.push(piece);
    }

    /// Ready when there may be more to write: with false, that it is of no use any more.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let busy = self.poll(cx).is_pending() && self.bytes >= AHEAD;
        if busy {
            let patience = self.patience.get_or_insert_with(|| engine::time::sleep(PATIENCE));
            if Pin::new(patience).poll(cx).is_ready() {
                self.disk.refuse(&io::ErrorKind::TimedOut.into());
                self.state = State::Failed;
            }
        } else {
            self.patience = None;
        }
        if matches!(self.state, State::Failed) {
            self.keep.leader.take().into_iter().for_each(|l| l.done(Outcome::NotStored));
            return Poll::Ready(false);
        }
        if busy { Poll::Pending } else { Poll::Ready(true) }
    }

    /// Goes on with writing. Pending while the thread is busy.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.state = match std::mem::replace(&mut self.state, State::Failed) {
                State::Busy(mut job) => match job.as_mut().poll(cx) {
                    Poll::Pending => {
                        self.state = State::Busy(job);
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(writer)) => State::Ready(writer),
                    Poll::Ready(Err(e)) => {
                        self.disk.refuse(&e);
                        return Poll::Ready(());
                    }
                },
                State::Ready(writer) if self.waiting.is_empty() => {
                    self.state = State::Ready(writer);
                    return Poll::Ready(());
                }
                State::Ready(mut writer) => {
                    let batch = std::mem::take(&mut self.waiting);
                    self.bytes = 0;
                    let disk = self.disk.clone();
                    State::Busy(Box::pin(job(move || {
                        batch.iter().try_for_each(|b| disk.append(&mut writer, b))?;
                        Ok(writer)
                    })))
                }
                State::Failed => return Poll::Ready(()),
            }
        }
    }

    /// All has come: writes the rest, and has it kept.
    pub async fn finish(mut self) {
        poll_fn(|cx| self.poll(cx)).await;
        let State::Ready(writer) = std::mem::replace(&mut self.state, State::Failed) else { return };
        let (large, path) = match writer.end() {
            Ok(both) => both,
            Err(e) => return self.disk.refuse(&e),
        };
        let object = Object::large(self.keep.head.clone(), Arc::new(large));
        let Keep { cache, key, epoch, request, .. } = &self.keep;
        cache.put_large(key, epoch, request, object, path).await;
        if let Some(leader) = self.keep.leader.take() {
            leader.done(Outcome::Stored);
        }
    }
}

/// The file that was written, without its name.
pub(super) type Written = Temporary;

/// Sends a body of `len` bytes on and writes it to disk. False if that can't be; the others know then.
pub(super) fn spool(body: Body, keep: Keep, disk: &Arc<Disk>, len: u64) -> (Body, bool) {
    let mut booked = Booking::new(&keep.cache);
    if !booked.add(AHEAD) {
        keep.give_up();
        return (body, false);
    }
    let spool = Some(Spool::begin(keep, booked, disk, Some(len)));
    (Body::Stream(Box::pin(Spooling { body, spool })), true)
}

struct Spooling {
    body: Body,
    spool: Option<Spool>,
}

impl HttpBody for Spooling {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Some(spool) = &mut this.spool
            && !ready!(spool.poll_room(cx))
        {
            this.spool = None;
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        let ended = match &frame {
            None => true,
            Some(Err(_)) => {
                this.spool = None;
                false
            }
            Some(Ok(frame)) => {
                if let (Some(data), Some(spool)) = (frame.data_ref(), &mut this.spool) {
                    spool.push(data.clone());
                    // what comes next may take a while: it is begun now
                    let _ = spool.poll(cx);
                }
                this.body.is_end_stream()
            }
        };
        if ended && let Some(spool) = this.spool.take() {
            drop(engine::spawn(spool.finish()));
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

impl Drop for Spooling {
    fn drop(&mut self) {
        // the client has gone; the length is known, so there is an end
        if self.spool.is_some() && !engine::is_draining() {
            let body = std::mem::replace(&mut self.body, Body::Empty);
            let rest = Spooling { body, spool: self.spool.take() };
            drop(engine::spawn(async move {
                fill::unless_draining(fill::read(Body::Stream(Box::pin(rest)))).await;
            }));
        }
    }
}
