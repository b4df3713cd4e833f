//! One request's way to an origin and back.
//!
//! A request is sent once. It is sent again only where that can't do harm: it never left (hyper gives it back), or it is
//! safe to repeat, has no body, and the connection broke before a byte of the answer came.

use crate::body::{Body, Upload};
use crate::continuity::ForwardMark;
use crate::direct::Sent;
use crate::direct::heads::note_usual;
use crate::headers;
use crate::interim::Interim;
use crate::origins::InFlight;
use crate::pool::{self, Lease, To};
use crate::route::{OriginConfig, Timeouts};
use crate::rt::{Io, WeakIo};
use crate::stats::Outcome;
use crate::tunnel::Far;
use engine::time::Elapsed;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HeaderValue, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body::Body as _;
use hyper::body::Incoming;
use std::borrow::Cow;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Instant;

/// Why there is no answer of the origin's.
#[derive(Debug)]
pub struct Failure {
    /// What the client is told.
    pub status: StatusCode,
    /// What it is counted as.
    pub outcome: Outcome,
    /// In words.
    pub why: String,
    /// The request comes back if it may be sent again, to another origin for example.
    pub again: Option<Box<Request<Body>>>,
}

/// In the extensions of an answer: only the end of the connection was the end of its body.
#[derive(Debug, Clone, Copy)]
pub struct CloseDelimited;

/// What a request has with it on its way.
#[derive(Debug, Clone, Copy)]
pub struct Way<'a> {
    /// How long the stages may take.
    pub timeouts: Timeouts,
    /// When all of it must be over.
    pub deadline: Option<Instant>,
    /// How the request's body fares.
    pub upload: &'a Upload,
    /// Who gets interim answers, and the tunnel.
    pub client: Option<&'a WeakIo>,
    /// Our name, for `Via`.
    pub name: &'a str,
}

impl Way<'_> {
    /// Waits for an answer's head: for so long since the request, or the last part of its body, went out.
    async fn patiently<F: Future>(&self, answer: F) -> Result<F::Output, Elapsed> {
        let mut answer = pin!(answer);
        let bounded = |until: Instant| self.deadline.map_or(until, |d| d.min(until));
        let mut until = bounded(Instant::now() + self.timeouts.first_byte);
        loop {
            match engine::time::timeout_at(until, answer.as_mut()).await {
                Ok(answer) => return Ok(answer),
                Err(e) => match self.upload.moved().map(|m| bounded(m + self.timeouts.first_byte)) {
                    Some(later) if later > until => until = later,
                    _ => return Err(e),
                },
            }
        }
    }

    fn connect_limit(&self) -> std::time::Duration {
        let left = self.deadline.map(|d| d.saturating_duration_since(Instant::now()));
        left.map_or(self.timeouts.connect, |l| l.min(self.timeouts.connect))
    }
}

/// Sends `request` (already rewritten for the origin) and returns the answer's head, its body streaming.
///
/// # Errors
/// See [`Failure`].
pub async fn send(
    id: usize,
    origin: &OriginConfig,
    busy: InFlight,
    request: Request<Body>,
    way: Way<'_>,
) -> Result<Response<Body>, Failure> {
    match pool::reuse(&To::Origin(id)).await {
        Some(mut lease) => {
            lease.busy = Some(busy);
            on_used(id, origin, lease, request, way).await
        }
        None => on_new(id, origin, Some(busy), request, way).await,
    }
}

/// On a connection that was idle: if it breaks before the answer, it may have been closed just then.
async fn on_used(
    id: usize,
    origin: &OriginConfig,
    lease: Lease,
    request: Request<Body>,
    way: Way<'_>,
) -> Result<Response<Body>, Failure> {
    match attempt(lease, request, way).await {
        // a timeout is no reason
        Err(Failure { status: StatusCode::BAD_GATEWAY, again: Some(back), .. }) => {
            on_new(id, origin, None, *back, way).await
        }
        other => other,
    }
}

async fn on_new(
    id: usize,
    origin: &OriginConfig,
    busy: Option<InFlight>,
    request: Request<Body>,
    way: Way<'_>,
) -> Result<Response<Body>, Failure> {
    match pool::connect(id, origin, way.connect_limit()).await {
        Ok(mut lease) => {
            lease.busy = busy;
            attempt(lease, request, way).await
        }
        Err(e) => Err(unreachable(&e, Some(request))),
    }
}

/// Goes on with a request that was sent without hyper: on its connection to the origin number `id` of all, the answer is
/// to come, or has begun to.
///
/// # Errors
/// See [`Failure`].
pub(crate) async fn go_on(
    id: usize,
    origin: &OriginConfig,
    sent: Sent,
    request: Request<Body>,
    way: Way<'_>,
) -> Result<Response<Body>, Failure> {
    let gone = sent.at.elapsed();
    let first_byte = way.timeouts.first_byte.saturating_sub(gone);
    let way = Way {
        timeouts: Timeouts { first_byte, ..way.timeouts },
        deadline: way.deadline.map(|d| d.checked_sub(gone).unwrap_or(d)),
        ..way
    };
    match pool::adopt(To::Origin(id), Io::of_sent(sent.stream, sent.read)).await {
        Ok(mut lease) => {
            lease.busy = Some(sent.busy);
            match sent.reused {
                true => on_used(id, origin, lease, request, way).await,
                false => attempt(lease, request, way).await,
            }
        }
        Err(e) => Err(unreachable(&e, Some(request))),
    }
}

/// Sends `request`, which asks to change the protocol to `wanted`, on a connection of its own. If the origin agrees, the
/// client's connection leads there from the end of the answer on.
///
/// # Errors
/// See [`Failure`].
pub async fn upgrade(
    origin: &OriginConfig,
    busy: InFlight,
    mut request: Request<Body>,
    wanted: &HeaderValue,
    way: Way<'_>,
) -> Result<Response<Body>, Failure> {
    request.headers_mut().insert(UPGRADE, wanted.clone());
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    let stream = match pool::stream(origin, way.connect_limit()).await {
        Ok(stream) => stream,
        Err(e) => return Err(unreachable(&e, Some(request))),
    };
    let (sender, conn) = pool::handshake(stream).await.map_err(|e| unreachable(&e, None))?;
    let ended = engine::spawn(conn.without_shutdown());
    let mut lease = Lease::once(sender);
    lease.busy = Some(busy);
    let answer = exchange(&mut lease, request, way).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return usable(answer, lease, way);
    }
    let agreed = answer
        .headers()
        .get(UPGRADE)
        .is_some_and(|u| u.as_bytes().trim_ascii().eq_ignore_ascii_case(wanted.as_bytes().trim_ascii()));
    let client = way.client.and_then(WeakIo::io);
    let (true, Some(client)) = (agreed, client) else {
        return Err(broken("the origin changes to another protocol than was asked for"));
    };
    let busy = lease.busy.take();
    drop(lease);
    let parts = ended.await.ok().and_then(Result::ok);
    let Some(parts) = parts else { return Err(broken("the origin's connection broke")) };
    client.lead_to(Far { io: parts.io, early: parts.read_buf, idle: way.timeouts.tunnel, busy });
    let mut answer = answer.map(|_| Body::Empty);
    let agreed = answer.headers().get(UPGRADE).cloned();
    headers::remove_hop_by_hop(answer.headers_mut());
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    agreed.map(|u| answer.headers_mut().insert(UPGRADE, u));
    Ok(answer)
}

/// Why no connection could be had.
pub(crate) fn unreachable(e: &io::Error, request: Option<Request<Body>>) -> Failure {
    let again = request.map(Box::new);
    match e.kind() {
        io::ErrorKind::TimedOut => Failure {
            status: StatusCode::GATEWAY_TIMEOUT,
            outcome: Outcome::TimedOut,
            why: "the origin doesn't accept the connection".to_owned(),
            again,
        },
        _ => Failure {
            status: StatusCode::BAD_GATEWAY,
            outcome: Outcome::Unreachable,
            why: format!("the origin can't be reached: {e}"),
            again,
        },
    }
}

fn broken(why: &str) -> Failure {
    let why = why.to_owned();
    Failure { status: StatusCode::BAD_GATEWAY, outcome: Outcome::Broken, why, again: None }
}

/// On this connection.
///
/// # Errors
/// See [`Failure`].
pub(crate) async fn attempt(
    mut lease: Lease,
    request: Request<Body>,
    way: Way<'_>,
) -> Result<Response<Body>, Failure> {
    let answer = exchange(&mut lease, request, way).await?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(broken("the origin changes the protocol, which was not asked for"));
    }
    usable(answer, lease, way)
}

async fn exchange(
    lease: &mut Lease,
    mut request: Request<Body>,
    way: Way<'_>,
) -> Result<Response<Incoming>, Failure> {
    let again = repeatable(&request).then(|| copy_head(&request));
    if request.headers().get_all(AUTHORIZATION).iter().any(|v| identifies_connection(v.as_bytes())) {
        lease.set_once();
    }
    // before the first byte goes: a server that is killed from here on has perhaps sent it
    if let Some(mark) = request.extensions().get::<ForwardMark>() {
        mark.set();
    }
    lease.interim = request.extensions().get::<Interim>().cloned();
    let interim = lease.interim.clone().unwrap_or_default();
    if way.client.is_some() || lease.interim.is_some() {
        interim.listen(&mut request);
    }
    let answer = lease.sender().try_send_request(request);
    match way.patiently(interim.until(way.client, way.name, answer)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(mut e)) => {
            let again = e.take_message().or_else(|| Some(Request::from_parts(again?, Body::Empty)));
            let failure = broken(&format!("the origin didn't answer: {}", e.error()));
            Err(Failure { again: again.map(Box::new), ..failure })
        }
        Err(_) => {
            let why = "the origin doesn't answer in time".to_owned();
            let (status, outcome) = (StatusCode::GATEWAY_TIMEOUT, Outcome::TimedOut);
            Err(Failure { status, outcome, why, again: None })
        }
    }
}

/// The answer's head as it may be passed on; its length fields agree with what hyper makes of the body.
fn usable(mut answer: Response<Incoming>, lease: Lease, way: Way<'_>) -> Result<Response<Body>, Failure> {
    note_usual(&mut answer);
    let h = answer.headers_mut();
    let close_delimited = !h.contains_key(TRANSFER_ENCODING) && !h.contains_key(CONTENT_LENGTH);
    let mut codings = h.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") || codings.next().is_some() {
            return Err(broken("the origin's transfer coding is not chunked"));
        }
        // chunked overrides it (RFC 9112, 6.3)
        h.remove(CONTENT_LENGTH);
    }
    if let Some(length) = h.get(CONTENT_LENGTH).cloned() {
        // several equal ones are taken by hyper; one is passed on
        let one = length.to_str().ok().and_then(|v| v.split(',').next()?.trim().parse::<u64>().ok());
        match one {
            Some(n) => h.insert(CONTENT_LENGTH, n.into()),
            None => return Err(broken("the origin's Content-Length is no number")),
        };
    }
    if answer.status() == StatusCode::NO_CONTENT {
        answer.headers_mut().remove(CONTENT_LENGTH);
    }
    if close_delimited && !answer.body().is_end_stream() {
        answer.extensions_mut().insert(CloseDelimited);
    }
    headers::remove_hop_by_hop(answer.headers_mut());
    Ok(answer.map(|body| Body::from_origin(body, lease, way.timeouts.between, way.deadline)))
}

/// Keeps the expectation of a body that is to be held back, and takes any other one away.
pub fn expect(request: &mut Request<Incoming>) -> Option<Interim> {
    let expects = request.version() == http::Version::HTTP_11
        && request.headers().contains_key(EXPECT)
        && !request.body().is_end_stream();
    if !expects {
        request.headers_mut().remove(EXPECT);
        return None;
    }
    let interim = Interim::expecting();
    request.extensions_mut().insert(interim.clone());
    Some(interim)
}

/// With these schemes of `Authorization` a client identifies itself for all that comes on a connection (RFC 4559, 6): nobody
/// else may use it.
pub(crate) fn identifies_connection(authorization: &[u8]) -> bool {
    let scheme = authorization.split(|b| *b == b' ').next().unwrap_or_default();
    [&b"NTLM"[..], b"Negotiate"].iter().any(|s| s.eq_ignore_ascii_case(scheme))
}

/// Safe by its method (RFC 9110, 9.2.1), and without a body that would be gone.
fn repeatable(request: &Request<Body>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS)
        && matches!(request.body(), Body::Empty)
}

fn copy_head(request: &Request<Body>) -> Parts {
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    if let Some(mark) = request.extensions().get::<ForwardMark>() {
        copy.extensions_mut().insert(mark.clone());
    }
    copy.into_parts().0
}

/// The target for an origin: origin-form, with `cut` (a route's prefix) taken away and the origin's own put before it.
pub fn target(uri: &Uri, cut: &str, prefix: &str) -> Option<Uri> {
    if cut.is_empty() && prefix.is_empty() && uri.authority().is_none() {
        return Some(uri.clone());
    }
    path(uri.path_and_query().map_or("/", |p| p.as_str()), cut, prefix).parse().ok()
}

/// The same for path and query as text.
pub(crate) fn path<'a>(path: &'a str, cut: &str, prefix: &str) -> Cow<'a, str> {
    let rest = path.strip_prefix(cut.trim_end_matches('/')).unwrap_or(path);
    let slash = if rest.starts_with('/') || rest == "*" { "" } else { "/" };
    match prefix.is_empty() && slash.is_empty() {
        true => Cow::Borrowed(rest),
        false => Cow::Owned(format!("{prefix}{slash}{rest}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_become_origin_form() {
        let t = |uri: &str, cut: &str, prefix: &str| {
            target(&uri.parse().unwrap(), cut, prefix).unwrap().to_string()
        };
        assert_eq!(t("http://a/x?y", "", ""), "/x?y");
        assert_eq!(t("/x?y", "", "/base"), "/base/x?y");
        assert_eq!(t("/", "", ""), "/");
        assert_eq!(t("http://a", "", ""), "/");
        assert_eq!(t("/api/x?y", "/api", ""), "/x?y");
        assert_eq!(t("/api", "/api/", "/v1"), "/v1/");
        assert_eq!(t("/api?q", "/api", ""), "/?q");
    }
}
