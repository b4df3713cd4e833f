//! Bodies of both directions: nothing, bytes that are there, or a stream that goes on.

use crate::pool::Lease;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use std::pin::Pin;
use std::task::{Context, Poll};

/// A message's body.
#[derive(Debug)]
pub enum Body {
    /// None.
    Empty,
    /// All of it.
    Full(Bytes),
    /// From a peer, as it comes.
    Incoming(Incoming),
    /// From an origin, with the connection it comes on: that goes back to its pool when the body has ended, and is closed
    /// when the body is dropped before.
    Leased(Incoming, Option<Lease>),
}

impl Body {
    /// Of text or bytes.
    pub fn of(bytes: impl Into<Bytes>) -> Body {
        Body::Full(bytes.into())
    }

    /// A request's body; one without bytes becomes [`Body::Empty`].
    pub fn from_request(body: Incoming) -> Body {
        if body.is_end_stream() { Body::Empty } else { Body::Incoming(body) }
    }

    /// An origin's body. One that has ended already gives its connection back at once.
    pub fn from_origin(body: Incoming, lease: Lease) -> Body {
        if body.is_end_stream() {
            lease.give_back();
            return Body::Leased(body, None);
        }
        Body::Leased(body, Some(lease))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Body::Empty => Poll::Ready(None),
            Body::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Body::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Body::Incoming(body) => Pin::new(body).poll_frame(cx),
            Body::Leased(body, lease) => {
                let frame = Pin::new(&mut *body).poll_frame(cx);
                let ended = matches!(frame, Poll::Ready(None)) || body.is_end_stream();
                if ended && let Some(lease) = lease.take() {
                    lease.give_back();
                }
                frame
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::Full(bytes) => bytes.is_empty(),
            Body::Incoming(body) | Body::Leased(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Empty => SizeHint::with_exact(0),
            Body::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Body::Incoming(body) | Body::Leased(body, _) => body.size_hint(),
        }
    }
}
