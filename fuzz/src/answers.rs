//! Answers of origins, as the way without hyper reads them: beside hyper itself.

use crate::http::{fields_of, listed};
use crate::peer::{self, Peer};
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use proxy::cache::policy::Rules;
use proxy::direct::heads::{self, Back, Come, Passing, Whole};
use proxy::edit::Edits;
use proxy::headers;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// A stream that is looked at so many times at the most.
const LOOKS: usize = 32;

/// What an origin sends after a request, behind a byte that says how it is looked at, and one that says how it is cut into
/// reads: what is taken without hyper is what hyper reads, byte for byte, and the client gets what hyper would have given it;
/// and however it is cut, it is judged alike.
pub fn answers(bytes: &[u8]) {
    let Some(([how, cut], stream)) = bytes.split_first_chunk::<2>() else { return };
    let flag = |n: u8| how & (1 << n) != 0;
    let edits = match flag(0) {
        true => Edits::new(&["Server", "Via"], &["X-A: ours", "Cache-Status: none"]).expect("fields"),
        false => Edits::default(),
    };
    let passing = Passing { rules: Rules::default(), authorized: flag(1), key: None };
    let back = Back { name: "us", edits: &edits, passing: flag(2).then_some(&passing), close: flag(3) };
    let look = |n: usize| {
        let mut head = Vec::new();
        (heads::answer(&stream[..n], &mut head, &back), head)
    };
    let (come, head) = look(stream.len());
    judged_alike(stream.len(), usize::from(*cut), &come, &|n| look(n).0);
    let Come::Whole(whole) = come else { return };
    let hyper = by_hyper(stream, usize::from(cut % 16) * 64 + 1).expect("hyper reads an answer there");
    let body = &stream[whole.head..whole.head + whole.body];
    assert_eq!((hyper.answer.status(), hyper.answer.version()), (whole.status, Version::HTTP_11));
    assert!(hyper.body.as_deref() == Some(body), "hyper reads {:?}", hyper.body);
    assert_eq!(hyper.goes_on, whole.goes_on, "is the connection used again?");
    passed_on(&head, &whole, hyper.answer, &back);
}

/// Once it is judged, more bytes change nothing, but that what comes after an answer is nobody's.
fn judged_alike(len: usize, cut: usize, all: &Come, look: &dyn Fn(usize) -> Come) {
    let mut judged: Option<Come> = None;
    for n in (0..len).step_by((cut + 1).max(len / LOOKS)) {
        let now = look(n);
        match (&judged, &now) {
            (None, Come::Part) => {}
            (None, _) => judged = Some(now),
            (Some(before), _) => assert!(same(before, &now), "{before:?}, and then {now:?} of {n} bytes"),
        }
    }
    if let Some(before) = judged {
        assert!(same(&before, all), "{before:?}, and then {all:?}");
    }
}

fn same(before: &Come, now: &Come) -> bool {
    match (before, now) {
        (Come::Whole(a), Come::Whole(b)) => {
            let bare = |w: &Whole| (w.status, w.head, w.body, w.validator, w.noted);
            bare(a) == bare(b) && (a.goes_on || !b.goes_on)
        }
        _ => before == now,
    }
}

/// What the client gets is one head that says what hyper's way would have said.
fn passed_on(head: &[u8], whole: &Whole, answer: Response<()>, back: &Back<'_>) {
    let mut parsed = [httparse::EMPTY_HEADER; 100];
    let mut ours = httparse::Response::new(&mut parsed);
    assert_eq!(ours.parse(head), Ok(httparse::Status::Complete(head.len())));
    let line = (ours.version, ours.code, ours.reason);
    assert_eq!(line, (Some(1), Some(whole.status.as_u16()), whole.status.canonical_reason()));
    let mut want = answer.headers().clone();
    headers::remove_hop_by_hop(&mut want);
    want.insert(CONTENT_LENGTH, whole.body.into());
    headers::add_via(&mut want, Version::HTTP_11, back.name);
    if back.passing.is_some() {
        want.append("cache-status", cache_status(back.name, whole.status));
    }
    back.edits.apply(&mut want);
    if back.close {
        want.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    assert_eq!(listed(&fields_of(ours.headers).expect("fields")), listed(&want));
}

fn cache_status(name: &str, status: StatusCode) -> HeaderValue {
    let text = format!("{name}; fwd=miss; fwd-status={}", status.as_u16());
    HeaderValue::from_str(&text).expect("ASCII")
}

/// What hyper makes of an answer.
struct Seen {
    answer: Response<()>,
    /// None: it broke, or isn't over.
    body: Option<Vec<u8>>,
    /// The connection is used for the next request.
    goes_on: bool,
}

/// Has hyper ask an origin that sends these bytes, so many with a read, and then nothing more.
fn by_hyper(bytes: &[u8], each: usize) -> Option<Seen> {
    let mut shaken = pin!(http1::handshake(Peer::new(bytes, each, true)));
    let Poll::Ready(Ok((mut sender, connection))) =
        shaken.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    else {
        unreachable!("it doesn't wait for anybody")
    };
    let mut connection = pin!(connection);
    let mut asked = Box::pin(async {
        let answer = ask(&mut sender).await?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.ok().map(|b| b.to_bytes().to_vec());
        Some(Seen { answer: Response::from_parts(head, ()), body, goes_on: false })
    });
    let mut seen = None;
    peer::run(|cx| {
        let _ = connection.as_mut().poll(cx);
        if seen.is_none()
            && let Poll::Ready(done) = asked.as_mut().poll(cx)
        {
            seen = Some(done);
            cx.waker().wake_by_ref();
        }
    });
    drop(asked);
    let mut seen = seen??;
    seen.goes_on = sender.is_ready();
    Some(seen)
}

async fn ask(sender: &mut SendRequest<Empty<Bytes>>) -> Option<Response<Incoming>> {
    sender.ready().await.ok()?;
    sender.send_request(Request::new(Empty::new())).await.ok()
}
