//! One request's way to an origin and back.
//!
//! A request is sent once. It is sent again only where that can't do harm: it never left (hyper gives it back), or it is
//! safe to repeat, has no body, and the reused connection was closed before a byte of the answer came.

use crate::body::Body;
use crate::continuity::ForwardMark;
use crate::pool::{self, Lease};
use crate::router::OriginConfig;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use std::time::Duration;

/// How long the stages may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Name and TCP connection.
    pub connect: Duration,
    /// From the request to the head of the answer.
    pub first_byte: Duration,
}

/// Why there is no answer of the origin's.
#[derive(Debug)]
pub struct Failure {
    /// What the client is told.
    pub status: StatusCode,
    /// In words.
    pub why: String,
    /// The request comes back if it can't have reached the origin: another one may be tried.
    pub unsent: Option<Request<Body>>,
}

/// Sends `request` (already rewritten for the origin) and returns the answer's head, its body streaming.
///
/// # Errors
/// See [`Failure`].
pub async fn send(
    id: usize,
    origin: &OriginConfig,
    request: Request<Body>,
    t: Timeouts,
) -> Result<Response<Body>, Failure> {
    let again = repeatable(&request).then(|| copy_head(&request));
    let mut request = request;
    if let Some(lease) = pool::reuse(id).await {
        match attempt(lease, request, t).await {
            Ok(answer) => return Ok(answer),
            Err(e) => match (e.unsent, again) {
                (Some(unsent), _) => request = unsent,
                // only a connection that broke before the answer is a reason: a timeout is not
                (None, Some(head)) if e.status == StatusCode::BAD_GATEWAY => {
                    request = Request::from_parts(head, Body::Empty);
                }
                (None, _) => return Err(Failure { unsent: None, ..e }),
            },
        }
    }
    match pool::connect(id, origin, t.connect).await {
        Ok(lease) => attempt(lease, request, t).await,
        Err(e) if e.kind() == std::io::ErrorKind::TimedOut => Err(Failure {
            status: StatusCode::GATEWAY_TIMEOUT,
            why: format!("{}:{} doesn't accept the connection", origin.host, origin.port),
            unsent: Some(request),
        }),
        Err(e) => Err(Failure {
            status: StatusCode::BAD_GATEWAY,
            why: format!("{}:{}: {e}", origin.host, origin.port),
            unsent: Some(request),
        }),
    }
}

async fn attempt(mut lease: Lease, request: Request<Body>, t: Timeouts) -> Result<Response<Body>, Failure> {
    // before the first byte goes: a server that is killed from here on has perhaps sent it
    if let Some(mark) = request.extensions().get::<ForwardMark>() {
        mark.set();
    }
    let answer = lease.sender().try_send_request(request);
    match engine::time::timeout(t.first_byte, answer).await {
        Ok(Ok(answer)) => Ok(answer.map(|body: Incoming| Body::from_origin(body, lease))),
        Ok(Err(mut e)) => {
            let unsent = e.take_message();
            let why = format!("the origin closed the connection: {}", e.error());
            Err(Failure { status: StatusCode::BAD_GATEWAY, why, unsent })
        }
        Err(_) => {
            let why = "the origin doesn't answer in time".to_owned();
            Err(Failure { status: StatusCode::GATEWAY_TIMEOUT, why, unsent: None })
        }
    }
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
    copy.into_parts().0
}

/// The target for an origin: origin-form, with the origin's own prefix before it.
pub fn target(uri: &Uri, prefix: &str) -> Option<Uri> {
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    if prefix.is_empty() && uri.authority().is_none() {
        return Some(uri.clone());
    }
    format!("{prefix}{path}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_become_origin_form() {
        let t = |uri: &str, prefix: &str| target(&uri.parse().unwrap(), prefix).unwrap().to_string();
        assert_eq!(t("http://a/x?y", ""), "/x?y");
        assert_eq!(t("/x?y", "/base"), "/base/x?y");
        assert_eq!(t("/", ""), "/");
        assert_eq!(t("http://a", ""), "/");
    }
}
