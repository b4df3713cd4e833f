//! A client's requests, as hyper reads them behind the scanner.

use crate::http::parse;
use crate::peer::{self, Peer};
use bytes::Bytes;
use http::header::TRANSFER_ENCODING;
use http::{HeaderMap, Method, Response, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use proxy::guard::Guard;
use proxy::strict::Scanner;
use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

/// What hyper has made of a request.
struct Taken {
    method: Method,
    uri: Uri,
    /// None: it broke, or isn't over.
    body: Option<Bytes>,
}

/// What a client sends, behind a byte that says how it is cut into reads: each request that hyper takes is the one that the
/// scanner has seen there, with the same body, and none goes on after what the scanner finds.
pub fn requests(bytes: &[u8]) {
    let Some((cut, stream)) = bytes.split_first() else { return };
    let ends = ends(stream);
    let taken = by_hyper(stream, usize::from(cut % 64) * 16 + 1);
    let mut begin = 0;
    for (n, taken) in taken.iter().enumerate() {
        let Some(end) = ends.get(n) else {
            assert!(n == ends.len() && taken.body.is_none(), "{} {}: it isn't over", taken.method, taken.uri);
            return;
        };
        let one = &stream[begin..*end];
        let (head, len) = parse(one).expect("a head");
        assert_eq!((head.method(), head.uri()), (&taken.method, &taken.uri));
        let body = &one[len..];
        let body = if is_chunked(head.headers()) { unchunked(body) } else { Some(body.to_vec()) };
        // what the scanner lets through may still be nothing for hyper
        let same = taken.body.as_deref().is_none_or(|b| Some(b) == body.as_deref());
        assert!(same, "hyper reads {:?}, not {body:?}", taken.body);
        begin = *end;
    }
}

/// Where the scanner sees the ends of requests.
fn ends(stream: &[u8]) -> Vec<usize> {
    let mut scanner = Scanner::default();
    let (mut ends, mut between) = (Vec::new(), true);
    for (at, byte) in stream.iter().enumerate() {
        scanner.feed(&mut [*byte]);
        if !std::mem::replace(&mut between, scanner.between_requests()) && between {
            ends.push(at + 1);
        }
    }
    ends
}

fn is_chunked(fields: &HeaderMap) -> bool {
    fields.contains_key(TRANSFER_ENCODING)
}

/// What the chunks hold, if they are chunks.
fn unchunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        // any number of zeros may be before it
        let digits = rest.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let len = usize::from_str_radix(std::str::from_utf8(&rest[..digits]).ok()?, 16).ok()?;
        let begin = rest.windows(2).position(|two| two == b"\r\n")? + 2;
        if len == 0 {
            return Some(body);
        }
        let end = begin.checked_add(len)?;
        body.extend_from_slice(rest.get(begin..end)?);
        rest = rest.get(end + 2..)?;
    }
}

fn by_hyper(stream: &[u8], each: usize) -> Vec<Taken> {
    let taken = RefCell::new(Vec::new());
    let service = service_fn(|request: http::Request<hyper::body::Incoming>| async {
        let (head, body) = request.into_parts();
        let n = {
            let mut all = taken.borrow_mut();
            all.push(Taken { method: head.method, uri: head.uri, body: None });
            all.len() - 1
        };
        let body = body.collect().await;
        taken.borrow_mut()[n].body = body.ok().map(|b| b.to_bytes());
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    });
    let guard = Guard::new(Peer::new(stream, each, false), Duration::MAX);
    {
        let mut connection = pin!(http1::Builder::new().serve_connection(guard, service));
        let mut over = false;
        peer::run(|cx| over = over || connection.as_mut().poll(cx).is_ready());
    }
    taken.into_inner()
}
