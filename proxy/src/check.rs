//! What a request must fulfil before anything is done for it; pure.

use crate::headers;
use http::header::{CONTENT_LENGTH, EXPECT, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Request, StatusCode, Version};

/// A request is refused with this.
pub type Refusal = (StatusCode, &'static str);

/// Longest target that is taken, in bytes.
pub const MAX_TARGET: usize = 16 << 10;

/// Bytes of a request's head as it came, but for what hyper leaves out: white space, and an absolute target's authority.
fn head_len<B>(request: &Request<B>) -> usize {
    let target = request.uri().path_and_query().map_or(0, |t| t.as_str().len());
    let line = request.method().as_str().len() + target + " ".len() + " HTTP/1.1\r\n".len();
    let field =
        |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + ": \r\n".len();
    line + request.headers().iter().map(field).sum::<usize>() + "\r\n".len()
}

/// Looks at what HTTP itself demands. `outward`: there is a forward proxy, so CONNECT may be asked for. hyper's limit for a
/// head is that of its buffer, which takes somewhat more at times: `max_head` is the one that holds, in bytes.
///
/// # Errors
/// The status to answer with, and why.
pub fn request<B>(
    request: &Request<B>,
    our_name: &str,
    outward: bool,
    max_head: usize,
) -> Result<Option<HeaderValue>, Refusal> {
    let host = headers::host_of(request).map_err(|why| (StatusCode::BAD_REQUEST, why))?;
    match *request.method() {
        Method::CONNECT if !outward => {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "this is no forward proxy"));
        }
        Method::TRACE => return Err((StatusCode::METHOD_NOT_ALLOWED, "TRACE is not served")),
        _ => {}
    }
    if head_len(request) > max_head {
        return Err((StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too large"));
    }
    let target = request.uri();
    if target.path_and_query().is_some_and(|t| t.as_str().len() > MAX_TARGET) {
        return Err((StatusCode::URI_TOO_LONG, "the target is too long"));
    }
    if target.scheme_str().is_some_and(|s| s != "http" && s != "https") {
        return Err((StatusCode::BAD_REQUEST, "the target's scheme is not http"));
    }
    if target.path() == "*" && *request.method() != Method::OPTIONS {
        return Err((StatusCode::BAD_REQUEST, "* is a target for OPTIONS alone"));
    }
    let h = request.headers();
    if h.get_all(EXPECT).iter().any(|v| !v.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err((StatusCode::EXPECTATION_FAILED, "only 100-continue can be expected"));
    }
    // the scanner has refused all but `chunked`; this is for whoever comes by another way
    if h.contains_key(TRANSFER_ENCODING)
        && (h.contains_key(CONTENT_LENGTH) || request.version() != Version::HTTP_11)
    {
        return Err((StatusCode::BAD_REQUEST, "Transfer-Encoding and Content-Length"));
    }
    if headers::went_through(h, our_name) {
        return Err((StatusCode::LOOP_DETECTED, "the request came back to this proxy"));
    }
    Ok(host)
}

/// The length a request announces.
pub fn announced<B>(request: &Request<B>) -> Option<u64> {
    request.headers().get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_their_status() {
        let r = |method: &str, uri: &str, fields: &[(&str, &str)]| {
            let mut b = Request::builder().method(method).uri(uri).header("host", "a");
            for (k, v) in fields {
                b = b.header(*k, *v);
            }
            request(&b.body(()).unwrap(), "us", false, 40_000).map(|_| ()).map_err(|e| e.0.as_u16())
        };
        assert_eq!(r("GET", "/", &[]), Ok(()));
        assert_eq!(r("OPTIONS", "*", &[]), Ok(()));
        assert_eq!(r("GET", "*", &[]), Err(400));
        assert_eq!(r("TRACE", "/", &[]), Err(405));
        assert_eq!(r("GET", "ftp://a/", &[]), Err(400));
        assert_eq!(r("GET", "/", &[("expect", "100-Continue")]), Ok(()));
        assert_eq!(r("GET", "/", &[("expect", "something")]), Err(417));
        assert_eq!(r("GET", "/", &[("via", "1.1 x, 1.1 us (c)")]), Err(508));
        assert_eq!(r("GET", &format!("/{}", "a".repeat(MAX_TARGET)), &[]), Err(414));
    }
}
