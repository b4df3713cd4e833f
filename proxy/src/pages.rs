//! Answers of our own: the welcome page, errors, the heartbeat.

use crate::body::Body;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};

/// The path at which heartbeats are answered.
pub const HEARTBEAT_PATH: &str = "/.traffic/heartbeat";
/// Carries the suite's token.
const HEARTBEAT: &str = "traffic-heartbeat";
/// Is sent back, so that an answer can't be an old one's.
const NONCE: &str = "traffic-nonce";

/// An error with its reason, as HTML where the client prefers that.
pub fn error(status: StatusCode, why: &str, headers: &HeaderMap) -> Response<Body> {
    let (kind, text) = if wants_html(headers) {
        let html = format!(
            "<!doctype html><title>{status}</title><h1>{status}</h1><p>{}</p><hr><p>traffic_server</p>\n",
            escape(why)
        );
        ("text/html; charset=utf-8", html)
    } else {
        ("text/plain; charset=utf-8", format!("{status}: {why}\n"))
    };
    let mut r = page(status, kind, text);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        r.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    r
}

/// What a suite without routes says at `/`.
pub fn welcome(headers: &HeaderMap) -> Response<Body> {
    if wants_html(headers) {
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
    let shown = headers.get(HEARTBEAT)?.as_bytes();
    if token.is_empty() || !same(shown, token.as_bytes()) {
        return None;
    }
    let nonce = headers.get(NONCE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let nonce: String = nonce.chars().filter(char::is_ascii_graphic).take(64).collect();
    let text = format!("traffic-heartbeat pid={} nonce={nonce}\n", std::process::id());
    Some(page(StatusCode::OK, "text/plain", text))
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
        let Body::Full(b) = error(StatusCode::BAD_GATEWAY, "<script>", &h).into_body() else { panic!() };
        assert!(!String::from_utf8_lossy(&b).contains("<script>"));
    }
}
