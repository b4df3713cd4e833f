//! A kept answer.

use super::directives;
use super::large::Large;
use super::policy::{self, Freshness};
use super::wire::Wire;
use crate::body::Body;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::{
    AGE, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue,
    LAST_MODIFIED, SET_COOKIE, TRAILER,
};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

/// What an object costs besides its bytes: map entries, allocations.
const OVERHEAD: u64 = 640;
/// A file is open: descriptors are scarcer than memory.
const OPEN_FILE: u64 = 64 << 10;
/// One field: two pointers and lengths, and its place in the map.
const FIELD: u64 = 96;

/// An answer's head, with what is needed to know its age.
#[derive(Debug, Clone)]
pub struct Head {
    /// Its status.
    pub status: StatusCode,
    /// As clients get them, but for `Age`.
    pub headers: HeaderMap,
    /// How long it is good.
    pub freshness: Freshness,
    /// When it came.
    pub received: Instant,
    /// How old it was then.
    pub initial_age: u64,
}

impl Head {
    /// Of an answer that came now, `delay` seconds after it was asked for.
    pub fn new(
        status: StatusCode,
        headers: &HeaderMap,
        freshness: Freshness,
        delay: u64,
        now: (Instant, SystemTime),
    ) -> Head {
        let mut headers = compact(headers);
        let initial_age = policy::initial_age(&headers, delay, now.1);
        headers.remove(AGE);
        headers.remove(TRAILER);
        for name in directives::withheld(&headers) {
            headers.remove(name);
        }
        Head { status, headers, freshness, received: now.0, initial_age }
    }

    /// Seconds since the origin made it.
    pub fn age(&self, now: Instant) -> u64 {
        self.initial_age + now.saturating_duration_since(self.received).as_secs()
    }
}

/// A kept answer, whole. It is never changed: a newer one takes its place.
#[derive(Debug)]
pub struct Object {
    /// Its head.
    pub head: Head,
    /// Shared with all who are being sent it. Empty if it is on disk alone.
    pub body: Bytes,
    large: Option<Arc<Large>>,
    weight: u64,
    wire: OnceLock<Option<Wire>>,
}

impl Object {
    /// Of a head and all of its body.
    pub fn new(mut head: Head, body: Bytes) -> Object {
        if head.status != StatusCode::NO_CONTENT {
            head.headers.insert(CONTENT_LENGTH, body.len().into());
        }
        let fields: u64 = head.headers.iter().map(|(n, v)| FIELD + (n.as_str().len() + v.len()) as u64).sum();
        // the names and values a second time, in one piece
        let wire: usize = head.headers.iter().map(|(n, v)| n.as_str().len() + v.len() + 4).sum();
        let weight = OVERHEAD + fields + wire as u64 + body.len() as u64;
        Object { head, body, large: None, weight, wire: OnceLock::new() }
    }

    /// Of a head and a body on disk.
    pub fn large(head: Head, large: Arc<Large>) -> Object {
        let mut object = Object::new(head, Bytes::new());
        object.head.headers.insert(CONTENT_LENGTH, large.len().into());
        object.weight += OPEN_FILE + large.weight();
        object.large = Some(large);
        object
    }

    /// The same body with another head.
    pub fn renewed(&self, head: Head) -> Object {
        match &self.large {
            Some(large) => Object::large(head, large.clone()),
            None => Object::new(head, self.body.clone()),
        }
    }

    /// Its body on disk, if it is there alone.
    pub fn on_disk(&self) -> Option<&Arc<Large>> {
        self.large.as_ref()
    }

    /// Its body was removed from disk.
    pub fn is_gone(&self) -> bool {
        self.large.as_ref().is_some_and(|l| l.is_gone())
    }

    /// Bytes of its body.
    pub fn len(&self) -> u64 {
        self.large.as_ref().map_or(self.body.len() as u64, |l| l.len())
    }

    /// It has no body.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of its body from `from` to before `to`. No copy.
    pub fn part(&self, from: u64, to: u64) -> Body {
        match &self.large {
            Some(large) => large.part(from, to),
            None => Body::Full(self.body.slice(from as usize..to as usize)),
        }
    }

    /// Its head as it goes out to a plain request, if that is known.
    pub fn wire(&self) -> Option<&Wire> {
        self.wire.get()?.as_ref()
    }

    /// Learns it from an answer.
    pub fn learn(&self, make: impl FnOnce() -> Option<Wire>) {
        self.wire.get_or_init(make);
    }

    /// Seconds that it is still fresh, at this age.
    pub fn ttl(&self, age: u64) -> i64 {
        self.head.freshness.lifetime as i64 - age as i64
    }

    /// Bytes of memory it takes, about.
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// It can be asked whether it is still good.
    pub fn has_validator(&self) -> bool {
        self.head.headers.contains_key(ETAG) || self.head.headers.contains_key(LAST_MODIFIED)
    }

    /// The fields of a 304 into the kept ones (RFC 9111, 3.2), but for cookies: those are for who has asked.
    pub fn updated(&self, news: &HeaderMap) -> HeaderMap {
        const STAYS: &[HeaderName] =
            &[CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_RANGE, ETAG, SET_COOKIE, TRAILER];
        let mut headers = self.head.headers.clone();
        for name in news.keys().filter(|n| !STAYS.contains(n)) {
            let values: Vec<&HeaderValue> = news.get_all(name).iter().collect();
            headers.insert(name, values[0].clone());
            values[1..].iter().for_each(|v| {
                headers.append(name, (*v).clone());
            });
        }
        headers
    }
}

/// A copy with memory of its own. What was read from a connection are views into its read buffer, bodies and all: kept as
/// they are, they would hold on to several times what an object is counted for.
fn compact(headers: &HeaderMap) -> HeaderMap {
    let mut text = BytesMut::with_capacity(headers.values().map(HeaderValue::len).sum());
    headers.values().for_each(|v| text.extend_from_slice(v.as_bytes()));
    let mut text = text.freeze();
    let mut copy = HeaderMap::with_capacity(headers.keys_len());
    for (name, value) in headers {
        let value = HeaderValue::from_maybe_shared(text.split_to(value.len()));
        copy.append(name, value.expect("it is one"));
    }
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_does_not_hold_on_to_what_it_was_read_from() {
        let read = Bytes::from(b"aabbbody".to_vec());
        let mut headers = HeaderMap::new();
        for (name, from, to) in [("x-a", 0, 2), ("x-b", 2, 4), ("x-a", 4, 4)] {
            headers.append(name, HeaderValue::from_maybe_shared(read.slice(from..to)).unwrap());
        }
        let copy = compact(&headers);
        assert_eq!(copy, headers);
        drop(headers);
        assert!(read.is_unique());
        assert_eq!(
            copy.get_all("x-a").iter().map(HeaderValue::as_bytes).collect::<Vec<_>>(),
            [&b"aa"[..], b""]
        );
    }
}
