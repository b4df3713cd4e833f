//! What is counted beside the store: bodies that clients still hold, and what has been made invalid.

use super::store::Key;
use bytes::Bytes;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};

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
    _share: Share,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

/// Bytes that count as long as this lives.
#[derive(Debug)]
pub(super) struct Share {
    bytes: Arc<AtomicU64>,
    n: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.bytes.fetch_sub(self.n, Relaxed);
    }
}

impl Held {
    /// At most so many bytes.
    pub fn new(most: u64) -> Held {
        Held { bytes: Arc::default(), most }
    }

    /// Counts so many bytes.
    pub fn share(&self, n: u64) -> Share {
        self.bytes.fetch_add(n, Relaxed);
        Share { bytes: self.bytes.clone(), n }
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
        let share = self.share(body.len() as u64);
        Bytes::from_owner(Counted { body, _share: share })
    }
}

const SHARDS: usize = 16;

/// Keys that somebody is fetching, with how often they have been made invalid since. An answer that was asked for before isn't
/// kept after it.
#[derive(Debug, Clone, Default)]
pub(super) struct Epochs(Arc<Shards>);

#[derive(Debug, Default)]
struct Shards {
    marks: [Mutex<HashMap<Key, Mark>>; SHARDS],
    hash: RandomState,
}

#[derive(Debug)]
struct Mark {
    count: Arc<AtomicU64>,
    users: usize,
}

/// The state of a key when the origin was asked; see [`super::Cache::epoch`].
#[derive(Debug)]
pub struct Epoch {
    of: Epochs,
    key: Key,
    count: Arc<AtomicU64>,
    then: u64,
}

impl Shards {
    fn of(&self, primary: &str) -> MutexGuard<'_, HashMap<Key, Mark>> {
        self.marks[self.hash.hash_one(primary) as usize % SHARDS].lock().expect("never poisoned")
    }
}

/// All variants and parts of a key share its epoch.
fn primary(key: &str) -> &str {
    key.split('\n').next().unwrap_or(key)
}

impl Epochs {
    /// The present one of a key.
    pub fn of(&self, key: &str) -> Epoch {
        let key: Key = primary(key).into();
        let mut marks = self.0.of(&key);
        let mark = marks.entry(key.clone()).or_insert_with(|| Mark { count: Arc::default(), users: 0 });
        mark.users += 1;
        let count = mark.count.clone();
        drop(marks);
        let then = count.load(SeqCst);
        Epoch { of: self.clone(), key, count, then }
    }

    /// A key is made invalid.
    pub fn next(&self, key: &str) {
        let primary = primary(key);
        if let Some(mark) = self.0.of(primary).get(primary) {
            mark.count.fetch_add(1, SeqCst);
        }
    }
}

impl Epoch {
    /// Nothing has been made invalid since.
    pub fn is_current(&self) -> bool {
        self.count.load(SeqCst) == self.then
    }

    /// Both are of the same time.
    pub(super) fn is(&self, other: &Epoch) -> bool {
        Arc::ptr_eq(&self.count, &other.count) && self.then == other.then
    }

    /// The one after this: for who makes it invalid himself, and nobody else has.
    pub fn next(&self) -> Epoch {
        let mut next = self.clone();
        next.then += 1;
        next
    }
}

impl Clone for Epoch {
    fn clone(&self) -> Self {
        if let Some(mark) = self.of.0.of(&self.key).get_mut(&self.key) {
            mark.users += 1;
        }
        Epoch { of: self.of.clone(), key: self.key.clone(), count: self.count.clone(), then: self.then }
    }
}

impl Drop for Epoch {
    fn drop(&mut self) {
        let mut marks = self.of.0.of(&self.key);
        if let Some(mark) = marks.get_mut(&self.key) {
            mark.users -= 1;
            if mark.users == 0 {
                marks.remove(&self.key);
            }
        }
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
    fn variants_and_parts_go_with_their_key_and_others_do_not() {
        let e = Epochs::default();
        let before = ["a/x", "a/x\n1\nde", "a/x\n206", "a/y"].map(|k| e.of(k));
        e.next("a/x\n206");
        assert_eq!([0, 1, 2, 3].map(|n| before[n].is_current()), [false, false, false, true]);
        let (now, own) = (e.of("a/x"), before[0].next());
        assert!(now.is_current() && own.is_current() && now.is(&own) && !now.is(&before[0]));
        e.next("a/x");
        assert!(!own.is_current());
    }

    #[test]
    fn only_keys_that_are_being_fetched_are_counted() {
        let e = Epochs::default();
        let all = |e: &Epochs| e.0.marks.iter().map(|m| m.lock().unwrap().len()).sum::<usize>();
        e.next("a");
        assert_eq!(all(&e), 0);
        let (one, other) = (e.of("a"), e.of("b"));
        let again = one.clone();
        drop((one, other));
        assert_eq!(all(&e), 1);
        e.next("a");
        assert!(!again.is_current());
        drop(again);
        assert_eq!(all(&e), 0);
    }
}
