//! Interim answers (1xx) of an origin, and a body that waits for one.
//!
//! hyper tells of them while it reads from the origin, in another task than the one that waits for the answer. 100 says
//! that the body is wanted which was announced with `Expect: 100-continue`: until then it isn't read from the client, so
//! that an origin that refuses it by the head alone spares everybody the sending. The others go to the client at once.

use crate::headers;
use crate::rt::WeakIo;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Request, StatusCode, Version};
use std::collections::VecDeque;
use std::fmt::Write;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

/// More of them aren't passed on.
const MOST: usize = 32;
/// Nor is a larger one, in bytes.
const LARGEST: usize = 16 << 10;

/// Is the body wanted?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Wanted {
    #[default]
    Yes,
    NotSaid,
    No,
}

#[derive(Debug, Default)]
struct State {
    heads: VecDeque<(StatusCode, HeaderMap)>,
    seen: usize,
    wanted: Wanted,
    /// Waits for the answer.
    answer: Option<Waker>,
    /// Would send the body.
    body: Option<Waker>,
}

/// What the origin says of one request before it answers.
#[derive(Debug, Clone, Default)]
pub struct Interim(Arc<Mutex<State>>);

impl Interim {
    /// For a request whose body waits to be wanted.
    pub fn expecting() -> Interim {
        let i = Interim::default();
        i.lock().wanted = Wanted::NotSaid;
        i
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("never poisoned")
    }

    /// Hears what the origin says of this request.
    pub fn listen<B>(&self, request: &mut Request<B>) {
        let shared = self.clone();
        hyper::ext::on_informational(request, move |r| shared.heard(r.status(), r.headers()));
    }

    fn heard(&self, status: StatusCode, fields: &HeaderMap) {
        if status == StatusCode::CONTINUE {
            return self.want(Wanted::Yes);
        }
        let mut s = self.lock();
        s.seen += 1;
        if s.seen > MOST {
            return;
        }
        s.heads.push_back((status, fields.clone()));
        let waker = s.answer.take();
        drop(s);
        waker.into_iter().for_each(Waker::wake);
    }

    fn want(&self, wanted: Wanted) {
        let mut s = self.lock();
        if s.wanted == Wanted::NotSaid {
            s.wanted = wanted;
        }
        let waker = s.body.take();
        drop(s);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Waits no longer for a word: the origin knows nothing of such expectations.
    pub fn assume(&self) {
        self.want(Wanted::Yes);
    }

    /// Nobody will ask for the body any more, unless somebody has.
    pub fn refuse(&self) {
        self.want(Wanted::No);
    }

    /// The body was asked for, or wasn't held back.
    pub fn is_wanted(&self) -> bool {
        self.lock().wanted == Wanted::Yes
    }

    /// Ready when it is known whether the body is wanted.
    pub fn poll_wanted(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut s = self.lock();
        match s.wanted {
            Wanted::Yes => Poll::Ready(true),
            Wanted::No => Poll::Ready(false),
            Wanted::NotSaid => {
                s.body = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Waits for the answer; what comes before goes to the client meanwhile. `name` is ours, for `Via`.
    pub async fn until<F: Future>(&self, to: Option<&WeakIo>, name: &str, answer: F) -> F::Output {
        let mut answer = pin!(answer);
        poll_fn(|cx| {
            let polled = answer.as_mut().poll(cx);
            let mut s = self.lock();
            if polled.is_pending() {
                s.answer = Some(cx.waker().clone());
            }
            let heads = std::mem::take(&mut s.heads);
            drop(s);
            if let Some(io) = to.filter(|_| !heads.is_empty()).and_then(WeakIo::io) {
                for (status, fields) in heads {
                    if !head(status, fields, name).is_some_and(|h| io.interject(h.as_bytes())) {
                        log::debug!("event=interim-dropped status={}", status.as_u16());
                    }
                }
            }
            polled
        })
        .await
    }
}

/// As it goes out; none if it is too large, or can't be sent.
fn head(status: StatusCode, mut fields: HeaderMap, name: &str) -> Option<String> {
    if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
        return None;
    }
    headers::remove_hop_by_hop(&mut fields);
    fields.remove(CONTENT_LENGTH);
    headers::add_via(&mut fields, Version::HTTP_11, name);
    let mut text = format!("HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or(""));
    for (name, value) in &fields {
        write!(text, "{name}: {}\r\n", value.to_str().ok()?).ok()?;
    }
    text.push_str("\r\n");
    (text.len() <= LARGEST).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn heads_are_for_the_next_hop_and_bounded() {
        let mut h = HeaderMap::new();
        h.insert("link", HeaderValue::from_static("</a.css>; rel=preload"));
        h.insert("connection", HeaderValue::from_static("x-hop"));
        h.insert("x-hop", HeaderValue::from_static("1"));
        let want = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nvia: 1.1 us\r\n\r\n";
        assert_eq!(head(StatusCode::EARLY_HINTS, h.clone(), "us").as_deref(), Some(want));
        assert_eq!(head(StatusCode::SWITCHING_PROTOCOLS, h.clone(), "us"), None);
        h.insert("x", HeaderValue::from_str(&"a".repeat(LARGEST)).unwrap());
        assert_eq!(head(StatusCode::EARLY_HINTS, h.clone(), "us"), None);
        let i = Interim::default();
        (0..MOST + 5).for_each(|_| i.heard(StatusCode::PROCESSING, &HeaderMap::new()));
        assert_eq!(i.lock().heads.len(), MOST);
    }

    #[test]
    fn the_first_word_about_a_body_counts() {
        let i = Interim::expecting();
        assert!(!i.is_wanted());
        i.heard(StatusCode::CONTINUE, &HeaderMap::new());
        i.refuse();
        assert!(i.is_wanted());
        let i = Interim::expecting();
        i.refuse();
        i.assume();
        assert!(!i.is_wanted());
    }
}
