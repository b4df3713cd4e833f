//! One client connection: hyper's state machine with our timeouts, and an orderly end when the engine drains.

use crate::body::Body;
use crate::guard::Guard;
use crate::rt::{Io, Timer};
use engine::net::Stream;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

/// Limits of a client connection.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the end of an answer (or the accept) to the end of the next request's head.
    pub idle_timeout: Duration,
    /// Bytes of a request's head, and of the read buffer.
    pub max_head: usize,
    /// Header fields of a request.
    pub max_headers: usize,
    /// How long a client may take nothing of its answer.
    pub send_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            idle_timeout: Duration::from_secs(60),
            max_head: 64 << 10,
            max_headers: 100,
            send_timeout: Duration::from_secs(60),
        }
    }
}

/// Serves requests on `stream` until its end, or until the engine drains: then the request in progress is finished,
/// `Connection: close` is said, and an idle connection is closed.
///
/// # Errors
/// hyper's, about this connection alone: the peer broke the protocol, was too slow, or went away.
pub async fn connection<F, R>(stream: Stream, limits: Limits, handle: F) -> hyper::Result<()>
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<Body>>,
{
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let answer = handle(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let conn = http1::Builder::new()
        .timer(Timer)
        .header_read_timeout(limits.idle_timeout)
        .max_buf_size(limits.max_head)
        .max_headers(limits.max_headers)
        .serve_connection(Guard::new(Io(stream), limits.send_timeout), service);
    let mut conn = pin!(conn);
    let mut draining = pin!(engine::draining());
    let mut told = false;
    poll_fn(|cx| {
        if !told && draining.as_mut().poll(cx).is_ready() {
            told = true;
            conn.as_mut().graceful_shutdown();
        }
        match conn.as_mut().poll(cx) {
            Poll::Ready(r) => Poll::Ready(r),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
