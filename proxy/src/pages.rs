//! Answers of our own: the welcome page, errors, the heartbeat.

use crate::body::Body;
use http::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use http::{Response, StatusCode};

/// The path at which heartbeats are answered.
pub const HEARTBEAT_PATH: &str = "/.traffic/heartbeat";
/// The path at which the server's numbers are told.
pub const METRICS_PATH: &str = "/.traffic/metrics";
/// Carries the suite's token.
const HEARTBEAT: &str = "traffic-heartbeat";
/// Names the request on error pages and in the log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What `Allow` says where no origin is asked.
const METHODS: &str = "GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH";
/// Is sent back, so that an answer can't be an old one's.
const NONCE: &str = "traffic-nonce";

/// What a client takes: known before the request goes on, so that an error can still be said in its form.
#[derive(Debug, Clone, Copy)]
pub struct Asker {
    html: bool,
    /// Of the request; also in the log, so that an operator can find what a user reports.
    pub id: u64,
}

impl Asker {
    /// Of a request.
    pub fn of(headers: &HeaderMap) -> Asker {
        Asker { html: wants_html(headers), id: request_id() }
    }
}

/// A number no other request has had: unpredictable at its beginning, counted from there.
fn request_id() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| AtomicU64::new(RandomState::new().hash_one(0)));
    thread_local!(static RANGE: std::cell::Cell<(u64, u64)> = const { std::cell::Cell::new((0, 0)) });
    // each thread takes a thousand at a time, so that they don't meet at the counter
    RANGE.with(|r| {
        let (mut next, mut left) = r.get();
        if left == 0 {
            (next, left) = (NEXT.fetch_add(1000, Ordering::Relaxed), 1000);
        }
        r.set((next.wrapping_add(1), left - 1));
        next
    })
}

/// An error with its reason, as HTML where the client prefers that.
pub fn error(status: StatusCode, why: &str, asker: Asker) -> Response<Body> {
    let id = asker.id;
    let (kind, text) = if asker.html {
        let html = format!(
            "<!doctype html><title>{status}</title><h1>{status}</h1><p>{}</p><hr><p>traffic_server, request {id:016x}</p>\n",
            escape(why)
        );
        ("text/html; charset=utf-8", html)
    } else {
        ("text/plain; charset=utf-8", format!("{status}: {why}\nrequest {id:016x}\n"))
    };
    let mut r = page(status, kind, text);
    if let Ok(v) = HeaderValue::from_str(&format!("{id:016x}")) {
        r.headers_mut().insert(REQUEST_ID, v);
    }
    match status {
        StatusCode::SERVICE_UNAVAILABLE => {
            r.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        StatusCode::METHOD_NOT_ALLOWED => {
            r.headers_mut().insert(ALLOW, HeaderValue::from_static(METHODS));
        }
        _ => {}
    }
    r
}

/// The answer to OPTIONS where it goes no further.
pub fn options() -> Response<Body> {
    let mut r = Response::new(Body::Empty);
    r.headers_mut().insert(ALLOW, HeaderValue::from_static(METHODS));
    r
}

/// What a suite without routes says at `/`.
pub fn welcome(asker: Asker) -> Response<Body> {
    if asker.html {
        let html = "<!doctype html><title>traffic_server works</title><h1>traffic_server works</h1>\
            <p>No route is configured yet. Add one to your traffic.toml:</p>\
            <pre>[[route]]\nhost = \"*\"\nprefix = \"/\"\norigin = [\"http://127.0.0.1:8081\"]</pre>\
            <p>then <code>traffic_cop reload</code>.</p>\n";
        page(StatusCode::OK, "text/html; charset=utf-8", html.to_owned())
    } else {
        let text = "traffic_server works. No route is configured yet: add a [[route]] to traffic.toml, then: traffic_cop reload\n";
        page(StatusCode::OK, "text/plain; charset=utf-8", text.to_owned())
    }
}

/// The answer to a heartbeat, if the request is one that shows the suite's token.
pub fn heartbeat(headers: &HeaderMap, token: &str) -> Option<Response<Body>> {
    if !shows(headers, token) {
        return None;
    }
    let nonce = headers.get(NONCE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let nonce: String = nonce.chars().filter(char::is_ascii_graphic).take(64).collect();
    let text = format!("traffic-heartbeat pid={} nonce={nonce}\n", std::process::id());
    Some(page(StatusCode::OK, "text/plain", text))
}

/// True if a request shows the suite's token.
pub fn shows(headers: &HeaderMap, token: &str) -> bool {
    let shown = headers.get(HEARTBEAT).is_some_and(|v| same(v.as_bytes(), token.as_bytes()));
    shown && !token.is_empty()
}

/// The server's numbers.
pub fn metrics(text: String) -> Response<Body> {
    page(StatusCode::OK, "text/plain; version=0.0.4", text)
}

fn page(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    let mut r = Response::new(Body::of(text));
    *r.status_mut() = status;
    r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    r.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    r
}

fn wants_html(headers: &HeaderMap) -> bool {
    headers.get(ACCEPT).and_then(|v| v.to_str().ok()).is_some_and(|v| v.contains("text/html"))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Compares in a time that doesn't tell where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |d, (x, y)| d | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_differ() {
        let ids: std::collections::HashSet<u64> = (0..5000).map(|_| request_id()).collect();
        assert_eq!(ids.len(), 5000);
    }

    #[test]
    fn only_the_token_opens_the_heartbeat() {
        let mut h = HeaderMap::new();
        assert!(heartbeat(&h, "secret").is_none());
        h.insert(HEARTBEAT, HeaderValue::from_static("secreT"));
        assert!(heartbeat(&h, "secret").is_none());
        h.insert(HEARTBEAT, HeaderValue::from_static("secret"));
        assert!(heartbeat(&h, "secret").is_some());
        assert!(heartbeat(&h, "").is_none());
    }

    #[test]
    fn reasons_cannot_bring_markup() {
        let mut h = HeaderMap::new();
        h.insert(ACCEPT, HeaderValue::from_static("text/html"));
        let Body::Full(b) = error(StatusCode::BAD_GATEWAY, "<script>", Asker::of(&h)).into_body() else {
            panic!()
        };
        assert!(!String::from_utf8_lossy(&b).contains("<script>"));
    }
}
