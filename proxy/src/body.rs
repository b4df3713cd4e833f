//! Bodies of both directions: nothing, bytes that are there, or a stream that goes on.
//!
//! Every stream has its limit in time, and a request's also in size. A body that breaks ends in an error, never in an
//! end: the receiver must see that it is cut short.

use crate::account::Told;
use crate::interim::Interim;
use crate::pool::Lease;
use bytes::Bytes;
use engine::time::Sleep;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// How long an origin may say nothing about a body that was announced with `Expect: 100-continue`, until it is sent anyhow.
const UNSAID: Duration = Duration::from_secs(1);

/// A stream made elsewhere in this crate: a file, an answer that is being stored.
pub type Stream = Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError>>>;

/// A message's body.
pub enum Body {
    /// None.
    Empty,
    /// All of it.
    Full(Bytes),
    /// From a client, as it comes.
    Client(Box<FromClient>),
    /// From an origin, as it comes.
    Origin(Box<FromOrigin>),
    /// From elsewhere.
    Stream(Stream),
    /// Any of them, with an account of its request.
    Told(Box<Told>),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Body::Empty => "Empty",
            Body::Full(_) => "Full",
            Body::Client(_) => "Client",
            Body::Origin(_) => "Origin",
            Body::Stream(_) => "Stream",
            Body::Told(_) => "Told",
        })
    }
}

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The peer broke off, or broke the protocol.
    #[error("the body broke off")]
    Broken(#[source] hyper::Error),
    /// Larger than is allowed.
    #[error("the body is larger than {0} bytes")]
    TooLarge(u64),
    /// Nothing came for too long.
    #[error("no byte of the body for {0:?}")]
    TooSlow(Duration),
    /// The origin has answered without it.
    #[error("the body isn't wanted")]
    Unwanted,
    /// The time for the whole request is over.
    #[error("the request took longer than its total_timeout")]
    Overdue,
    /// It was read from a file, and couldn't be.
    #[error("the file couldn't be read")]
    File(#[source] std::io::Error),
}

/// What became of a request's body, for who waits for the answer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fate {
    /// Nothing bad so far.
    #[default]
    Good,
    /// See [`BodyError::Broken`].
    Broken,
    /// See [`BodyError::TooLarge`].
    TooLarge,
    /// See [`BodyError::TooSlow`].
    TooSlow,
}

/// How a request's body fares, for who waits for the answer to it.
#[derive(Debug, Default)]
pub struct Upload {
    fate: Cell<Fate>,
    moved: Cell<Option<Instant>>,
}

impl Upload {
    /// What became of it.
    pub fn fate(&self) -> Fate {
        self.fate.get()
    }

    /// When the last part of it went on.
    pub fn moved(&self) -> Option<Instant> {
        self.moved.get()
    }
}

/// Wakes when nothing came for `limit`; costs nothing as long as something comes.
#[derive(Debug)]
struct Patience {
    limit: Duration,
    /// Nothing may come after this.
    deadline: Option<Instant>,
    sleep: Option<Sleep>,
}

impl Patience {
    fn new(limit: Duration) -> Patience {
        Patience { limit, deadline: None, sleep: None }
    }

    /// Ready when it is over; `came` says that something came and that it begins anew.
    fn poll(&mut self, came: bool, cx: &mut Context<'_>) -> Poll<BodyError> {
        let overdue = |d: Instant| d <= engine::time::now();
        if came {
            self.sleep = None;
            return match self.deadline {
                Some(d) if overdue(d) => Poll::Ready(BodyError::Overdue),
                _ => Poll::Pending,
            };
        }
        let sleep = self.sleep.get_or_insert_with(|| {
            let until = Instant::now() + self.limit;
            engine::time::sleep_until(self.deadline.map_or(until, |d| d.min(until)))
        });
        ready!(Pin::new(sleep).poll(cx));
        match self.deadline {
            Some(d) if overdue(d) => Poll::Ready(BodyError::Overdue),
            _ => Poll::Ready(BodyError::TooSlow(self.limit)),
        }
    }
}

/// A request's body, bounded.
#[derive(Debug)]
pub struct FromClient {
    body: Incoming,
    /// Bytes that may still come, and how many that were at first.
    left: u64,
    max: u64,
    patience: Patience,
    upload: Rc<Upload>,
    /// Not to be read before it is wanted; with the time at which it is taken for wanted.
    held: Option<(Interim, Sleep)>,
}

impl FromClient {
    fn poll_wanted(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let Some((interim, unsaid)) = &mut self.held else { return Poll::Ready(true) };
        if interim.poll_wanted(cx).is_pending() {
            ready!(Pin::new(unsaid).poll(cx));
            interim.assume();
        }
        let wanted = interim.is_wanted();
        if wanted {
            self.held = None;
        }
        Poll::Ready(wanted)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !ready!(self.poll_wanted(cx)) {
            return Poll::Ready(Some(Err(BodyError::Unwanted)));
        }
        let poll = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(e) = self.patience.poll(poll.is_ready(), cx) {
            self.upload.fate.set(Fate::TooSlow);
            return Poll::Ready(Some(Err(e)));
        }
        let frame = match ready!(poll) {
            None => return Poll::Ready(None),
            Some(Err(e)) => {
                self.upload.fate.set(Fate::Broken);
                return Poll::Ready(Some(Err(BodyError::Broken(e))));
            }
            Some(Ok(frame)) => frame,
        };
        let len = frame.data_ref().map_or(0, |d| d.len() as u64);
        match self.left.checked_sub(len) {
            Some(left) => self.left = left,
            None => {
                self.upload.fate.set(Fate::TooLarge);
                return Poll::Ready(Some(Err(BodyError::TooLarge(self.max))));
            }
        }
        self.upload.moved.set(Some(engine::time::now()));
        Poll::Ready(Some(Ok(frame)))
    }
}

/// An answer's body with the connection it comes on: that goes back to its pool when the body has ended, and is closed
/// when the body is dropped before.
#[derive(Debug)]
pub struct FromOrigin {
    body: Incoming,
    lease: Option<Lease>,
    patience: Patience,
    /// Its last frame has come.
    is_over: bool,
}

/// Is that all of a body? After trailers nothing comes, and nobody asks.
pub(crate) fn is_last<E>(frame: &Option<Result<Frame<Bytes>, E>>) -> bool {
    match frame {
        None => true,
        Some(Ok(frame)) => frame.is_trailers(),
        Some(Err(_)) => false,
    }
}

impl FromOrigin {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let poll = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(e) = self.patience.poll(poll.is_ready(), cx) {
            self.lease = None;
            return Poll::Ready(Some(Err(e)));
        }
        let frame = ready!(poll);
        let failed = matches!(frame, Some(Err(_)));
        self.is_over = is_last(&frame) || self.body.is_end_stream();
        if self.is_over
            && let Some(lease) = self.lease.take()
            && !failed
        {
            lease.give_back();
        }
        Poll::Ready(frame.map(|r| r.map_err(BodyError::Broken)))
    }
}

impl Body {
    /// All of it is there.
    pub fn is_whole(&self) -> bool {
        match self {
            Body::Empty | Body::Full(_) => true,
            Body::Told(t) => t.inner().is_whole(),
            _ => false,
        }
    }

    /// Of text or bytes.
    pub fn of(bytes: impl Into<Bytes>) -> Body {
        Body::Full(bytes.into())
    }

    /// A request's body of at most `max` bytes, with at most `patience` between them; one without bytes becomes
    /// [`Body::Empty`]. It isn't read before `interim` says that it is wanted. What goes wrong with it can be seen in
    /// what is returned beside it.
    pub fn from_client(
        body: Incoming,
        max: u64,
        patience: Duration,
        interim: Option<Interim>,
    ) -> (Body, Rc<Upload>) {
        let upload = Rc::<Upload>::default();
        if body.is_end_stream() {
            return (Body::Empty, upload);
        }
        let patience = Patience::new(patience);
        let held = interim.map(|i| (i, engine::time::sleep(UNSAID)));
        let body = FromClient { body, left: max, max, patience, upload: upload.clone(), held };
        (Body::Client(Box::new(body)), upload)
    }

    /// An origin's body. One that has ended already gives its connection back at once.
    pub fn from_origin(body: Incoming, lease: Lease, patience: Duration, deadline: Option<Instant>) -> Body {
        if body.is_end_stream() {
            lease.give_back();
            return Body::Empty;
        }
        let patience = Patience { deadline, ..Patience::new(patience) };
        Body::Origin(Box::new(FromOrigin { body, lease: Some(lease), patience, is_over: false }))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Body::Empty => Poll::Ready(None),
            Body::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Body::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Body::Client(body) => body.poll(cx),
            Body::Origin(body) => body.poll(cx),
            Body::Stream(body) => body.as_mut().poll_frame(cx),
            Body::Told(body) => body.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::Full(bytes) => bytes.is_empty(),
            Body::Client(b) => b.body.is_end_stream(),
            Body::Origin(b) => b.is_over || b.body.is_end_stream(),
            Body::Stream(body) => body.is_end_stream(),
            Body::Told(body) => body.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Empty => SizeHint::with_exact(0),
            Body::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Body::Client(b) => b.body.size_hint(),
            Body::Origin(b) => b.body.size_hint(),
            Body::Stream(body) => body.size_hint(),
            Body::Told(body) => body.hint(),
        }
    }
}
