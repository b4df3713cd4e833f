//! A kept answer as a client gets it: its age, only a part, or that the client has it already. And `Cache-Status`.

use super::object::Object;
use crate::body::Body;
use crate::conditional::{self, Verdict};
use crate::range::{self, Part};
use http::header::{
    AGE, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
};
use http::{Method, Response, StatusCode};
use std::time::Instant;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Answers a request with what is kept. `status`: what `Cache-Status` says after our name.
pub fn kept(
    object: &Object,
    method: &Method,
    request: &HeaderMap,
    name: &str,
    status: &str,
    now: Instant,
) -> Response<Body> {
    let mut r = Response::new(Body::Empty);
    *r.status_mut() = object.head.status;
    *r.headers_mut() = object.head.headers.clone();
    let age = object.head.age(now);
    r.headers_mut().insert(AGE, age.into());
    let ttl = object.ttl(age);
    put(r.headers_mut(), format!("{name}; {status}; ttl={ttl}"));
    if object.head.status == StatusCode::OK {
        match conditional::evaluate(request, &object.head.headers) {
            Verdict::NotModified => {
                *r.status_mut() = StatusCode::NOT_MODIFIED;
                for gone in [CONTENT_LENGTH, CONTENT_TYPE, CONTENT_ENCODING] {
                    r.headers_mut().remove(gone);
                }
                return r;
            }
            // those conditions go to the origin
            Verdict::Failed | Verdict::Proceed => {}
        }
    }
    if *method == Method::HEAD {
        return r;
    }
    let len = object.len();
    let ranged =
        object.head.status == StatusCode::OK && conditional::range_applies(request, &object.head.headers);
    match if ranged { range::part(request, len) } else { Part::Whole } {
        Part::Whole => *r.body_mut() = object.part(0, len),
        Part::Bytes(from, to) => {
            *r.status_mut() = StatusCode::PARTIAL_CONTENT;
            r.headers_mut().insert(CONTENT_RANGE, range::content_range(from, to, len));
            r.headers_mut().insert(CONTENT_LENGTH, (to - from).into());
            *r.body_mut() = object.part(from, to);
        }
        Part::Unsatisfiable => {
            *r.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            r.headers_mut().remove(CONTENT_TYPE);
            r.headers_mut().insert(CONTENT_RANGE, range::content_range_none(len));
            r.headers_mut().insert(CONTENT_LENGTH, 0.into());
        }
    }
    r
}

/// Adds our member to `Cache-Status` (RFC 9211); those nearer to the origin come first.
pub fn say(headers: &mut HeaderMap, name: &str, status: &str) {
    put(headers, format!("{name}; {status}"));
}

fn put(headers: &mut HeaderMap, text: String) {
    if let Ok(v) = HeaderValue::from_maybe_shared(bytes::Bytes::from(text)) {
        headers.append(CACHE_STATUS, v);
    }
}
