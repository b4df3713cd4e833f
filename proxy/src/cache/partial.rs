//! Parts of answers (206), kept beside whole ones.
//!
//! There is one part for each answer, under a key of its own, in memory alone. It answers requests for ranges within it. One
//! that touches it and is of the same representation (strong ETag, RFC 9110, 15.3.7.3) is joined to it; when nothing is
//! missing any more, it becomes a whole answer.

use super::held::Epoch;
use super::object::{Head, Object};
use super::store::{Found, Key};
use super::{Cache, serve};
use crate::body::Body;
use crate::conditional;
use crate::range::{self, Part};
use bytes::{Bytes, BytesMut};
use http::header::{
    CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH,
    IF_UNMODIFIED_SINCE,
};
use http::{Response, StatusCode};
use std::sync::Arc;
use std::time::Instant;

const SUFFIX: &str = "\n206";

/// Where the part of an answer is kept.
pub fn key(of: &str) -> Key {
    format!("{of}{SUFFIX}").into()
}

/// The first byte of a 206, and how many the whole has.
pub fn position(headers: &HeaderMap) -> Option<(u64, u64)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, all) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, all): (u64, u64, u64) = (first.parse().ok()?, last.parse().ok()?, all.parse().ok()?);
    (first <= last && last < all).then_some((first, all))
}

/// Answers a request for a range with a kept part, if that has all of it. `name` is ours, for `Cache-Status`.
pub fn answer(part: &Object, request: &HeaderMap, name: &str, now: Instant) -> Option<Response<Body>> {
    let conditions = [IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE];
    let have = &part.head.headers;
    if conditions.iter().any(|n| request.contains_key(n)) || !conditional::range_applies(request, have) {
        return None;
    }
    let (first, all) = position(have)?;
    let Part::Bytes(from, to) = range::part(request, all) else { return None };
    let slice = from.checked_sub(first)? as usize..to.checked_sub(first)? as usize;
    if slice.end > part.body.len() {
        return None;
    }
    let whole = Head { status: StatusCode::PARTIAL_CONTENT, ..part.head.clone() };
    let body = part.body.slice(slice);
    let mut r =
        serve::kept(&Object::new(whole, body), &http::Method::GET, &HeaderMap::new(), name, "hit", now);
    r.headers_mut().insert(CONTENT_RANGE, range::content_range(from, to, all));
    Some(r)
}

/// Keeps a part that has come, as large as it can be made. `key` is its own, not that of the whole.
pub fn keep(cache: &Arc<Cache>, key: &Key, epoch: &Epoch, request: &HeaderMap, new: Object) {
    if !epoch.is_current() {
        return;
    }
    let had = match cache.store.find(key, request, engine::time::now()).0 {
        Found::Object(o) => Some(o),
        _ => None,
    };
    let joined = had.and_then(|o| join(&o, &new)).filter(|b| b.1.len() as u64 <= cache.store.max_object());
    let (first, body) = match joined {
        Some((first, body)) => (first, cache.held.hold(body)),
        None => match position(&new.head.headers) {
            Some((first, _)) => (first, new.body.clone()),
            None => return,
        },
    };
    let Some((_, all)) = position(&new.head.headers) else { return };
    let mut head = new.head.clone();
    if body.len() as u64 == all && strong(&head.headers).is_some() {
        head.status = StatusCode::OK;
        head.headers.remove(CONTENT_RANGE);
        cache.store.remove(key);
        let whole = key.strip_suffix(SUFFIX).unwrap_or(key).into();
        return cache.put(&whole, epoch, request, Object::new(head, body));
    }
    let end = first + body.len() as u64;
    head.headers.insert(CONTENT_RANGE, range::content_range(first, end, all));
    head.headers.remove(CONTENT_LENGTH);
    cache.store.put(key, request, Object::new(head, body));
    if !epoch.is_current() {
        cache.store.remove(key);
    }
}

/// Two parts that touch, as one: its first byte, and all of them.
fn join(old: &Object, new: &Object) -> Option<(u64, Bytes)> {
    let ((a, old_all), (b, new_all)) = (position(&old.head.headers)?, position(&new.head.headers)?);
    if strong(&old.head.headers)? != strong(&new.head.headers)? || old_all != new_all {
        return None;
    }
    let (a_end, b_end) = (a + old.body.len() as u64, b + new.body.len() as u64);
    if b > a_end || a > b_end {
        return None;
    }
    let first = a.min(b);
    let mut body = BytesMut::with_capacity((a_end.max(b_end) - first) as usize);
    // what is new counts where they overlap; strong tags say that it is the same
    if a < b {
        body.extend_from_slice(&old.body[..(b - a) as usize]);
    }
    body.extend_from_slice(&new.body);
    if a_end > b_end {
        body.extend_from_slice(&old.body[(b_end - a) as usize..]);
    }
    Some((first, body.freeze()))
}

fn strong(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get(ETAG).filter(|t| !t.as_bytes().starts_with(b"W/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CacheConfig;
    use crate::cache::policy::Freshness;
    use http::header::RANGE;

    fn part(first: u64, body: &str, all: u64, tag: &str) -> Object {
        let mut headers = HeaderMap::new();
        let range = range::content_range(first, first + body.len() as u64, all);
        headers.insert(CONTENT_RANGE, range);
        headers.insert(ETAG, tag.parse().unwrap());
        let freshness = Freshness::MINUTE;
        let (status, received) = (StatusCode::PARTIAL_CONTENT, Instant::now());
        let head = Head { status, headers, freshness, received, initial_age: 0 };
        Object::new(head, Bytes::copy_from_slice(body.as_bytes()))
    }

    #[test]
    fn positions_that_make_sense() {
        for (text, want) in [
            ("bytes 4-9/10", Some((4, 10))),
            ("bytes 0-0/1", Some((0, 1))),
            ("bytes 4-10/10", None),
            ("bytes 5-4/10", None),
            ("bytes 0-4/*", None),
            ("bytes */10", None),
            ("lines 0-1/2", None),
            ("bytes -1-2/3", None),
        ] {
            let mut h = HeaderMap::new();
            h.insert(CONTENT_RANGE, text.parse().unwrap());
            assert_eq!(position(&h), want, "{text}");
        }
    }

    #[test]
    fn ranges_within_a_part() {
        let p = part(4, "456789", 12, "\"a\"");
        for (range, want) in [
            ("bytes=4-9", Some("bytes 4-9/12")),
            ("bytes=5-6", Some("bytes 5-6/12")),
            ("bytes=3-6", None),
            ("bytes=4-", None),
            ("bytes=-2", None),
            ("bytes=20-", None),
        ] {
            let mut h = HeaderMap::new();
            h.insert(RANGE, range.parse().unwrap());
            let r = answer(&p, &h, "us", Instant::now());
            assert_eq!(r.as_ref().map(|r| r.headers()[CONTENT_RANGE].to_str().unwrap()), want, "{range}");
            assert!(r.is_none_or(|r| r.status() == StatusCode::PARTIAL_CONTENT));
        }
    }

    #[test]
    fn parts_that_touch_become_one_and_in_the_end_the_whole() {
        let all = "0123456789";
        let (a, b) = (part(2, &all[2..5], 10, "\"a\""), part(4, &all[4..8], 10, "\"a\""));
        for (x, y) in [(&a, &b), (&b, &a)] {
            assert_eq!(join(x, y), Some((2, Bytes::from_static(b"234567"))));
        }
        let inner = part(3, &all[3..4], 10, "\"a\"");
        assert_eq!(join(&a, &inner), Some((2, Bytes::from_static(b"234"))));
        for other in [part(6, "67", 10, "\"a\""), part(4, "45", 10, "\"b\""), part(4, "45", 11, "\"a\"")] {
            assert_eq!(join(&a, &other), None);
        }
        let (x, y) = (part(0, "01", 4, "W/\"a\""), part(2, "23", 4, "W/\"a\""));
        assert_eq!(join(&x, &y), None, "weak tags promise nothing about bytes");

        let cache = Cache::new(CacheConfig::default()).unwrap();
        let (of, none) = (Key::from("host/x"), HeaderMap::new());
        let (mine, epoch) = (key(&of), cache.epoch(&of));
        keep(&cache, &mine, &epoch, &none, part(0, &all[..6], 10, "\"a\""));
        assert!(matches!(cache.store.find(&of, &none, Instant::now()).0, Found::Nothing));
        keep(&cache, &mine, &epoch, &none, part(6, &all[6..], 10, "\"a\""));
        let Found::Object(o) = cache.store.find(&of, &none, Instant::now()).0 else { panic!() };
        assert_eq!((o.head.status, &o.body[..]), (StatusCode::OK, all.as_bytes()));
        assert!(!o.head.headers.contains_key(CONTENT_RANGE));
        assert!(matches!(cache.store.find(&mine, &none, Instant::now()).0, Found::Nothing));
    }
}
