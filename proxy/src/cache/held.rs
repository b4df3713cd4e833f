//! What is counted beside the store: bodies that clients still hold, and what has been made invalid.

use bytes::Bytes;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

/// How much all bodies are that somebody holds a byte of: what the store has, and what it has let go of while slow clients are
/// still being sent it. Beyond the bound nothing more is taken into memory, and answers go at their clients' pace.
#[derive(Debug)]
pub(super) struct Held {
    bytes: Arc<AtomicU64>,
    most: u64,
}

/// A body, counted until nobody holds any of it.
struct Counted {
    body: Bytes,
    bytes: Arc<AtomicU64>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.bytes.fetch_sub(self.body.len() as u64, Relaxed);
    }
}

impl Held {
    /// At most so many bytes.
    pub fn new(most: u64) -> Held {
        Held { bytes: Arc::default(), most }
    }

    /// May there be so many more?
    pub fn has_room(&self, more: u64) -> bool {
        self.bytes.load(Relaxed).saturating_add(more) <= self.most
    }

    /// The same body, counted.
    pub fn hold(&self, body: Bytes) -> Bytes {
        if body.is_empty() {
            return body;
        }
        self.bytes.fetch_add(body.len() as u64, Relaxed);
        Bytes::from_owner(Counted { body, bytes: self.bytes.clone() })
    }
}

/// Keys that share a count; one that is made invalid costs the others an answer that isn't kept.
const SLOTS: usize = 4096;

/// Counts how often keys have been made invalid. An answer that was asked for before isn't kept after it.
#[derive(Debug)]
pub(super) struct Epochs {
    slots: Box<[AtomicU64]>,
    hash: RandomState,
}

impl Default for Epochs {
    fn default() -> Self {
        let slots = std::iter::repeat_with(AtomicU64::default).take(SLOTS).collect();
        Epochs { slots, hash: RandomState::new() }
    }
}

impl Epochs {
    /// That of a primary key, which all of its variants and parts share.
    fn slot(&self, key: &str) -> &AtomicU64 {
        let primary = key.split('\n').next().unwrap_or(key);
        &self.slots[self.hash.hash_one(primary) as usize % SLOTS]
    }

    /// The count of a key.
    pub fn of(&self, key: &str) -> u64 {
        self.slot(key).load(SeqCst)
    }

    /// It is made invalid.
    pub fn next(&self, key: &str) {
        self.slot(key).fetch_add(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_counts_as_long_as_somebody_holds_a_byte_of_it() {
        let held = Held::new(10);
        let body = held.hold(Bytes::from_static(b"12345678"));
        assert!(held.has_room(2) && !held.has_room(3));
        let part = body.slice(3..4);
        drop(body);
        assert!(!held.has_room(3), "a client is being sent some of it");
        assert_eq!(&*part, b"4");
        drop(part);
        assert!(held.has_room(10));
    }

    #[test]
    fn variants_and_parts_go_with_their_key() {
        let e = Epochs::default();
        let keys = ["a/x", "a/x\n1\nde", "a/x\n206"];
        let before = keys.map(|k| e.of(k));
        e.next("a/x");
        assert!(keys.iter().zip(before).all(|(k, n)| e.of(k) == n + 1));
    }
}
