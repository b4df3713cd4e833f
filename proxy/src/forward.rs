//! One request's way to an origin and back.
//!
//! A request is sent once. It is sent again only where that can't do harm: it never left (hyper gives it back), or it is
//! safe to repeat, has no body, and the connection broke before a byte of the answer came.

use crate::body::Body;
use crate::continuity::ForwardMark;
use crate::headers;
use crate::origins::InFlight;
use crate::pool::{self, Lease};
use crate::route::{OriginConfig, Timeouts};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body::Body as _;
use hyper::body::Incoming;
use std::time::Duration;

/// Why there is no answer of the origin's.
#[derive(Debug)]
pub struct Failure {
    /// What the client is told.
    pub status: StatusCode,
    /// In words.
    pub why: String,
    /// The request comes back if it may be sent again, to another origin for example.
    pub again: Option<Box<Request<Body>>>,
}

/// In the extensions of an answer: only the end of the connection was the end of its body.
#[derive(Debug, Clone, Copy)]
pub struct CloseDelimited;

/// Sends `request` (already rewritten for the origin) and returns the answer's head, its body streaming.
///
/// # Errors
/// See [`Failure`].
pub async fn send(
    id: usize,
    origin: &OriginConfig,
    busy: InFlight,
    request: Request<Body>,
    t: Timeouts,
) -> Result<Response<Body>, Failure> {
    let mut request = request;
    let mut busy = Some(busy);
    if let Some(mut lease) = pool::reuse(id).await {
        lease.busy = busy.take();
        match attempt(lease, request, t).await {
            Ok(answer) => return Ok(answer),
            // only a connection that broke before the answer is a reason: a timeout is not
            Err(Failure { status: StatusCode::BAD_GATEWAY, again: Some(back), .. }) => request = *back,
            Err(e) => return Err(e),
        }
    }
    match pool::connect(id, origin, t.connect).await {
        Ok(mut lease) => {
            lease.busy = busy;
            attempt(lease, request, t).await
        }
        Err(e) if e.kind() == std::io::ErrorKind::TimedOut => Err(Failure {
            status: StatusCode::GATEWAY_TIMEOUT,
            why: "the origin doesn't accept the connection".to_owned(),
            again: Some(Box::new(request)),
        }),
        Err(e) => Err(Failure {
            status: StatusCode::BAD_GATEWAY,
            why: format!("the origin can't be reached: {e}"),
            again: Some(Box::new(request)),
        }),
    }
}

async fn attempt(mut lease: Lease, request: Request<Body>, t: Timeouts) -> Result<Response<Body>, Failure> {
    let again = repeatable(&request).then(|| copy_head(&request));
    // before the first byte goes: a server that is killed from here on has perhaps sent it
    if let Some(mark) = request.extensions().get::<ForwardMark>() {
        mark.set();
    }
    let answer = lease.sender().try_send_request(request);
    match engine::time::timeout(t.first_byte, answer).await {
        Ok(Ok(answer)) => usable(answer, lease, t.between),
        Ok(Err(mut e)) => {
            let again = e.take_message().or_else(|| Some(Request::from_parts(again?, Body::Empty)));
            let why = format!("the origin didn't answer: {}", e.error());
            Err(Failure { status: StatusCode::BAD_GATEWAY, why, again: again.map(Box::new) })
        }
        Err(_) => {
            let why = "the origin doesn't answer in time".to_owned();
            Err(Failure { status: StatusCode::GATEWAY_TIMEOUT, why, again: None })
        }
    }
}

/// The answer's head as it may be passed on; its length fields agree with what hyper makes of the body.
fn usable(
    mut answer: Response<Incoming>,
    lease: Lease,
    between: Duration,
) -> Result<Response<Body>, Failure> {
    let bad = |why: &str| Failure { status: StatusCode::BAD_GATEWAY, why: why.to_owned(), again: None };
    let h = answer.headers_mut();
    let close_delimited = !h.contains_key(TRANSFER_ENCODING) && !h.contains_key(CONTENT_LENGTH);
    let mut codings = h.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") || codings.next().is_some() {
            return Err(bad("the origin's transfer coding is not chunked"));
        }
        // chunked overrides it (RFC 9112, 6.3)
        h.remove(CONTENT_LENGTH);
    }
    if let Some(length) = h.get(CONTENT_LENGTH).cloned() {
        // several equal ones are taken by hyper; one is passed on
        let one = length.to_str().ok().and_then(|v| v.split(',').next()?.trim().parse::<u64>().ok());
        match one {
            Some(n) => h.insert(CONTENT_LENGTH, n.into()),
            None => return Err(bad("the origin's Content-Length is no number")),
        };
    }
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(bad("the origin changes the protocol, which was not asked for"));
    }
    if answer.status() == StatusCode::NO_CONTENT {
        answer.headers_mut().remove(CONTENT_LENGTH);
    }
    if close_delimited && !answer.body().is_end_stream() {
        answer.extensions_mut().insert(CloseDelimited);
    }
    headers::remove_hop_by_hop(answer.headers_mut());
    Ok(answer.map(|body| Body::from_origin(body, lease, between)))
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
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    if cut.is_empty() && prefix.is_empty() && uri.authority().is_none() {
        return Some(uri.clone());
    }
    let rest = path.strip_prefix(cut.trim_end_matches('/')).unwrap_or(path);
    let slash = if rest.starts_with('/') || rest == "*" { "" } else { "/" };
    format!("{prefix}{slash}{rest}").parse().ok()
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
