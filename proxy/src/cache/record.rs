//! A kept answer as bytes on disk, and back; pure.
//!
//! ```text
//! magic 8 | checksum of all that follows 8 | meta's length 4 | meta | body
//! ```
//!
//! Numbers are little-endian. Nothing in a file is believed before its checksum is right, and even then no length leads out
//! of it: a file may be of another version, or of somebody else.

use super::large::{self, Large};
use super::object::{Head, Object};
use super::policy::Freshness;
use super::store::{Entry, Spec};
use bytes::{BufMut, Bytes};
use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const MAGIC: &[u8; 8] = b"TRAFFIC1";
const START: usize = 20;

/// Everything but the body, which follows it as it is.
pub fn encode(key: &str, entry: &Entry, now: (Instant, SystemTime)) -> Option<(Vec<u8>, Bytes)> {
    let mut meta = Vec::with_capacity(512);
    put(&mut meta, key.as_bytes());
    let body = match entry {
        Entry::Uncacheable(_) => return None,
        Entry::Spec(spec) => {
            meta.put_u8(1);
            meta.put_u64_le(spec.generation);
            meta.put_u32_le(spec.names.len() as u32);
            spec.names.iter().for_each(|n| put(&mut meta, n.as_str().as_bytes()));
            Bytes::new()
        }
        Entry::Object(o) => {
            meta.put_u8(0);
            put_head(&mut meta, &o.head, now);
            o.body.clone()
        }
    };
    let mut out = Vec::with_capacity(START + meta.len());
    out.extend_from_slice(MAGIC);
    out.put_u64_le(0);
    out.put_u32_le(meta.len() as u32);
    out.extend_from_slice(&meta);
    let sum = checksum(&[&out[16..], &body]);
    out[8..16].copy_from_slice(&sum.to_le_bytes());
    Some((out, body))
}

/// The key and the entry of a file; None if anything is wrong with it.
pub fn decode(file: Bytes, now: (Instant, SystemTime)) -> Option<(String, Entry)> {
    let sum = u64::from_le_bytes(file.get(8..16)?.try_into().ok()?);
    if file.get(..8)? != MAGIC || checksum(&[&file[16..]]) != sum {
        return None;
    }
    let meta_len = u32::from_le_bytes(file.get(16..START)?.try_into().ok()?) as usize;
    let meta = file.get(START..START.checked_add(meta_len)?)?;
    let mut r = Reader(meta);
    let key = String::from_utf8(r.bytes()?.to_vec()).ok()?;
    let entry = match r.u8()? {
        1 => {
            let generation = r.u64()?;
            let n = r.u32()?;
            let names = (0..n.min(1000)).map(|_| HeaderName::from_bytes(r.bytes()?).ok());
            Entry::Spec(Arc::new(Spec { names: names.collect::<Option<_>>()?, generation }))
        }
        0 => {
            let head = r.head(now)?;
            Entry::Object(Arc::new(Object::new(head, file.slice(START + meta_len..))))
        }
        _ => return None,
    };
    Some((key, entry))
}

const LARGE: &[u8; 8] = b"TRAFFIC2";
const LARGE_START: usize = 36;

/// The header of a file whose body begins at `at`, see [`super::large`]:
///
/// ```text
/// magic 8 | checksum of the header 8 | meta's length 4 | where the body begins 8 | its length 8 | meta | checksums
/// ```
pub fn encode_large(key: &str, o: &Object, large: &Large, at: u64, now: (Instant, SystemTime)) -> Vec<u8> {
    let mut meta = Vec::with_capacity(512);
    put(&mut meta, key.as_bytes());
    put_head(&mut meta, &o.head, now);
    let mut out = Vec::with_capacity(LARGE_START + meta.len() + 8 * large.sums().len());
    out.extend_from_slice(LARGE);
    out.put_u64_le(0);
    out.put_u32_le(meta.len() as u32);
    out.put_u64_le(at);
    out.put_u64_le(large.len());
    out.extend_from_slice(&meta);
    large.sums().iter().for_each(|sum| out.put_u64_le(*sum));
    let sum = checksum(&[&out[16..]]);
    out[8..16].copy_from_slice(&sum.to_le_bytes());
    out
}

/// Is a file that begins like this one with a large body?
pub fn is_large(start: &[u8]) -> bool {
    start.starts_with(LARGE)
}

/// The key and the entry of a file of `size` bytes; None if anything is wrong with its header.
pub fn decode_large(file: File, size: u64, now: (Instant, SystemTime)) -> Option<(String, Entry)> {
    let mut start = [0; LARGE_START];
    file.read_exact_at(&mut start, 0).ok()?;
    let mut r = Reader(&start[8..]);
    let (sum, meta_len, at, len) = (r.u64()?, r.u32()? as usize, r.u64()?, r.u64()?);
    let blocks = len.div_ceil(large::BLOCK);
    let header = (LARGE_START + meta_len) as u64 + blocks.checked_mul(8)?;
    if !is_large(&start) || header > at || at.checked_add(len)? != size {
        return None;
    }
    let mut bytes = vec![0; header as usize];
    file.read_exact_at(&mut bytes, 0).ok()?;
    if checksum(&[&bytes[16..]]) != sum {
        return None;
    }
    let mut r = Reader(&bytes[LARGE_START..]);
    let key = String::from_utf8(r.bytes()?.to_vec()).ok()?;
    let head = r.head(now)?;
    let mut r = Reader(&bytes[LARGE_START + meta_len..]);
    let sums = (0..blocks).map(|_| r.u64()).collect::<Option<Vec<u64>>>()?;
    let large = Large::new(file, at, len, sums);
    Some((key, Entry::Object(Arc::new(Object::large(head, Arc::new(large))))))
}

fn put_head(meta: &mut Vec<u8>, head: &Head, now: (Instant, SystemTime)) {
    meta.put_u16_le(head.status.as_u16());
    meta.put_u64_le(unix(now.1).saturating_sub(head.age(now.0)));
    let f = &head.freshness;
    meta.put_u64_le(f.lifetime);
    meta.put_u64_le(f.stale_while_revalidate);
    meta.put_u64_le(f.stale_if_error.unwrap_or(u64::MAX));
    meta.put_u8(u8::from(f.strict) | u8::from(f.ask_always) << 1);
    meta.put_u32_le(head.headers.len() as u32);
    for (name, value) in &head.headers {
        put(meta, name.as_str().as_bytes());
        put(meta, value.as_bytes());
    }
}

/// Seconds by which a clock may go back as clocks do that are kept right.
const SET_BACK: u64 = 5;

fn unix(t: SystemTime) -> u64 {
    t.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

fn put(to: &mut Vec<u8>, bytes: &[u8]) {
    to.put_u32_le(bytes.len() as u32);
    to.extend_from_slice(bytes);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn head(&mut self, now: (Instant, SystemTime)) -> Option<Head> {
        let status = StatusCode::from_u16(self.u16()?).ok()?;
        let born = self.u64()?;
        let freshness = Freshness {
            lifetime: self.u64()?,
            stale_while_revalidate: self.u64()?,
            stale_if_error: Some(self.u64()?).filter(|n| *n != u64::MAX),
            strict: false,
            ask_always: false,
        };
        let flags = self.u8()?;
        let freshness = Freshness { strict: flags & 1 != 0, ask_always: flags & 2 != 0, ..freshness };
        let mut headers = HeaderMap::new();
        for _ in 0..self.u32()?.min(10_000) {
            let name = HeaderName::from_bytes(self.bytes()?).ok()?;
            headers.append(name, HeaderValue::from_bytes(self.bytes()?).ok()?);
        }
        let now_seconds = unix(now.1);
        // the clock was set back since: how old it is isn't known, so it has to be asked for
        let initial_age = match born.checked_sub(now_seconds) {
            Some(ahead) if ahead > SET_BACK => freshness.lifetime.min(now_seconds),
            _ => now_seconds.saturating_sub(born),
        };
        Some(Head { status, headers, freshness, received: now.0, initial_age })
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let n = self.u32()? as usize;
        self.take(n)
    }
}

/// Finds damage, not forgery; the parts count as one.
pub fn checksum(parts: &[&[u8]]) -> u64 {
    let mut sum = Sum::default();
    parts.iter().for_each(|p| sum.add(p));
    sum.end()
}

/// A key's number: 128 bits, so that two keys hardly share one; who reads compares the keys.
pub fn number(key: &str) -> u128 {
    let half = |seed| {
        let mut sum = Sum::new(seed);
        sum.add(key.as_bytes());
        sum.end()
    };
    u128::from(half(0x9e37_79b9_7f4a_7c15)) << 64 | u128::from(half(0xc2b2_ae3d_27d4_eb4f))
}

/// Eight bytes at a time, each of them mixed into all bits (the multiply and fold of wyhash). Parts need not be aligned.
pub(super) struct Sum {
    state: u64,
    rest: [u8; 8],
    rest_len: usize,
    len: u64,
}

impl Default for Sum {
    fn default() -> Sum {
        Sum::new(0x7261_6666_6963_3173)
    }
}

impl Sum {
    fn new(seed: u64) -> Sum {
        Sum { state: seed, rest: [0; 8], rest_len: 0, len: 0 }
    }

    fn word(&mut self, word: [u8; 8]) {
        let wide = u128::from(self.state ^ u64::from_le_bytes(word)) * 0xa076_1d64_78bd_642f;
        self.state = (wide as u64 ^ (wide >> 64) as u64).wrapping_add(0xe703_7ed1_a0b4_28db);
    }

    pub(super) fn add(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len() as u64;
        if self.rest_len > 0 {
            let n = bytes.len().min(8 - self.rest_len);
            self.rest[self.rest_len..self.rest_len + n].copy_from_slice(&bytes[..n]);
            self.rest_len += n;
            bytes = &bytes[n..];
            if self.rest_len < 8 {
                return;
            }
            self.rest_len = 0;
            self.word(self.rest);
        }
        let mut words = bytes.chunks_exact(8);
        for w in &mut words {
            self.word(w.try_into().expect("eight bytes"));
        }
        let left = words.remainder();
        self.rest[..left.len()].copy_from_slice(left);
        self.rest_len = left.len();
    }

    pub(super) fn end(mut self) -> u64 {
        self.rest[self.rest_len..].fill(0);
        self.word(self.rest);
        self.word(self.len.to_le_bytes());
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::directives::Directives;
    use crate::cache::policy::{Decision, decide};

    fn entry() -> Entry {
        let mut headers = HeaderMap::new();
        headers.append("x-a", HeaderValue::from_static("1"));
        headers.append("x-a", HeaderValue::from_bytes(b"\xff2").unwrap());
        let freshness = Freshness {
            lifetime: 60,
            stale_while_revalidate: 5,
            stale_if_error: Some(7),
            strict: true,
            ask_always: false,
        };
        let head =
            Head { status: StatusCode::OK, headers, freshness, received: Instant::now(), initial_age: 9 };
        Entry::Object(Arc::new(Object::new(head, Bytes::from_static(b"the body"))))
    }

    fn file(entry: &Entry) -> Vec<u8> {
        let (mut head, body) = encode("key", entry, (Instant::now(), SystemTime::now())).unwrap();
        head.extend_from_slice(&body);
        head
    }

    #[test]
    fn what_is_written_is_read() {
        let later = (Instant::now(), SystemTime::now() + Duration::from_secs(100));
        let (key, read) = decode(file(&entry()).into(), later).unwrap();
        let (Entry::Object(a), Entry::Object(b)) = (entry(), read) else { panic!() };
        assert_eq!((key.as_str(), &a.body, &a.head.headers), ("key", &b.body, &b.head.headers));
        assert_eq!((a.head.status, a.head.freshness), (b.head.status, b.head.freshness));
        assert!((109..=110).contains(&b.head.initial_age), "it ages while it lies there");
        let earlier = (Instant::now(), SystemTime::now() - Duration::from_secs(86_400));
        let (_, read) = decode(file(&entry()).into(), earlier).unwrap();
        let Entry::Object(o) = read else { panic!() };
        let age = o.head.age(Instant::now());
        assert_eq!(o.head.initial_age, o.head.freshness.lifetime, "nobody knows its age");
        assert_ne!(decide(&Directives::default(), &o.head.freshness, age), Decision::Use);
        let spec = Entry::Spec(Arc::new(Spec { names: vec![http::header::ACCEPT], generation: 42 }));
        let Some((_, Entry::Spec(s))) = decode(file(&spec).into(), later) else { panic!() };
        assert_eq!((s.names[0].as_str(), s.generation), ("accept", 42));
    }

    #[test]
    fn no_damage_goes_unnoticed() {
        let now = (Instant::now(), SystemTime::now());
        let good = file(&entry());
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 1 << (i % 8);
            assert!(decode(bad.into(), now).is_none(), "byte {i}");
            assert!(decode(good[..i].to_vec().into(), now).is_none(), "cut at {i}");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert!(decode(longer.into(), now).is_none());
    }
}
