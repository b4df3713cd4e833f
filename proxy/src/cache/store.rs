//! What is kept in memory, shared by all threads and bounded by bytes.
//!
//! quick_cache evicts by S3-FIFO, so that a scan of things asked for once doesn't push out what is asked for often.
//!
//! ```text
//! host/path  -> Object                       no Vary
//!            -> Spec { names, generation }   Vary: the object is at  host/path \n generation \n selecting values
//!            -> Uncacheable until            the last answer could not be kept: don't let requests wait for each other
//! ```
//!
//! Removing the first entry is enough to lose all variants: nobody finds the way to them any more, and they are evicted.

use super::object::Object;
use super::vary;
use http::header::{HeaderMap, HeaderName};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};
use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A shard smaller than this could hold few objects; half of it is the largest that is kept.
const SHARD: u64 = 32 << 20;
/// One byte in so many is lost between what the allocator has given out: entries of all sizes come and go.
const PIECES: u64 = 5;
/// For the estimate of how many there will be.
const TYPICAL: u64 = 8 << 10;
/// How long it is remembered that an answer couldn't be kept.
pub(crate) const UNCACHEABLE: Duration = Duration::from_secs(10);

/// The primary key, or the key of a variant.
pub type Key = Arc<str>;

/// What a key stands for.
#[derive(Debug, Clone)]
pub enum Entry {
    /// An answer.
    Object(Arc<Object>),
    /// The way to the answers.
    Spec(Arc<Spec>),
    /// There is none to be kept, until then.
    Uncacheable(Instant),
}

/// How answers are told apart.
#[derive(Debug)]
pub struct Spec {
    /// The fields of a request that select.
    pub names: Vec<HeaderName>,
    /// No other spec of this key has had it, also none of an earlier process.
    pub generation: u64,
}

#[derive(Debug, Clone)]
struct Weigh;

impl Weighter<Key, Entry> for Weigh {
    fn weight(&self, key: &Key, entry: &Entry) -> u64 {
        let own = match entry {
            Entry::Object(o) => o.weight(),
            Entry::Spec(s) => 128 + 64 * s.names.len() as u64,
            Entry::Uncacheable(_) => 64,
        };
        let bytes = own + key.len() as u64 + 64;
        bytes + bytes / PIECES
    }
}

/// What there is for a request.
#[derive(Debug)]
pub enum Found {
    /// An answer, fresh or not.
    Object(Arc<Object>),
    /// None, and none can be expected to be kept.
    Uncacheable,
    /// None.
    Nothing,
}

/// The store.
#[derive(Debug)]
pub struct Store {
    cache: Cache<Key, Entry, Weigh, RandomState, DefaultLifecycle<Key, Entry>>,
    max_object: u64,
    generation: AtomicU64,
}

impl Store {
    /// Of at most `bytes`.
    pub fn new(bytes: u64) -> Store {
        let shards = (bytes / SHARD).clamp(1, 16) as usize;
        let shards = if shards.is_power_of_two() { shards } else { shards.next_power_of_two() / 2 };
        let options = OptionsBuilder::new()
            .estimated_items_capacity((bytes / TYPICAL).max(16) as usize)
            .weight_capacity(bytes)
            .shards(shards)
            .build()
            .expect("both capacities are given");
        let cache = Cache::with_options(options, Weigh, RandomState::default(), DefaultLifecycle::default());
        let max_object = cache.shard_capacity() / 2;
        let generation = AtomicU64::new(RandomState::new().hash_one(0) >> 1);
        Store { cache, max_object, generation }
    }

    /// Larger ones aren't kept.
    pub fn max_object(&self) -> u64 {
        self.max_object
    }

    /// Bytes in use, and objects (variants and notes included).
    pub fn used(&self) -> (u64, usize) {
        (self.cache.weight(), self.cache.len())
    }

    /// An answer to a request. `fields` gives those that select, if it comes to that.
    pub fn get<'a>(
        &self,
        key: &str,
        fields: impl FnOnce(&[HeaderName]) -> Cow<'a, HeaderMap>,
    ) -> Option<Arc<Object>> {
        match self.look(key, fields) {
            Some(Entry::Object(o)) => Some(o),
            _ => None,
        }
    }

    /// What there is for a request, but for the way to it.
    pub fn look<'a>(
        &self,
        key: &str,
        fields: impl FnOnce(&[HeaderName]) -> Cow<'a, HeaderMap>,
    ) -> Option<Entry> {
        let entry = match self.cache.get(key)? {
            Entry::Spec(spec) => self.cache.get(&*variant(key, &spec, &fields(&spec.names)))?,
            entry => entry,
        };
        match entry {
            Entry::Object(o) if o.is_gone() => None,
            entry => Some(entry),
        }
    }

    /// What there is for a request, and the key of just this variant.
    pub fn find(&self, key: &Key, request: &HeaderMap, now: Instant) -> (Found, Key) {
        let there = |key: &Key| match self.cache.get(&**key) {
            Some(Entry::Object(o)) if o.is_gone() => None,
            other => other,
        };
        match there(key) {
            None => (Found::Nothing, key.clone()),
            Some(Entry::Object(o)) => (Found::Object(o), key.clone()),
            Some(Entry::Uncacheable(until)) if until > now => (Found::Uncacheable, key.clone()),
            Some(Entry::Uncacheable(_)) => (Found::Nothing, key.clone()),
            Some(Entry::Spec(spec)) => {
                let variant = variant(key, &spec, request);
                match there(&variant) {
                    Some(Entry::Object(o)) => (Found::Object(o), variant),
                    Some(Entry::Uncacheable(until)) if until > now => (Found::Uncacheable, variant),
                    _ => (Found::Nothing, variant),
                }
            }
        }
    }

    /// Keeps an answer to a request with these fields. Returns what there is now that wasn't there before.
    pub fn put(&self, key: &Key, request: &HeaderMap, object: Object) -> Vec<(Key, Entry)> {
        let names = vary::names(&object.head.headers);
        let object = Entry::Object(Arc::new(object));
        let spec = match self.cache.peek(&**key) {
            Some(Entry::Spec(spec)) => Some(spec),
            _ => None,
        };
        let new = match spec {
            None if names.is_empty() => vec![(key.clone(), object)],
            // selecting by more than an answer says is right too; what is there stays reachable
            Some(spec) if names.iter().all(|n| spec.names.contains(n)) => {
                vec![(variant(key, &spec, request), object)]
            }
            had => {
                let mut all = had.map_or(Vec::new(), |s| s.names.clone());
                all.extend(names.into_iter().filter(|n| !all.contains(n)).collect::<Vec<_>>());
                let generation = self.generation.fetch_add(1, Ordering::Relaxed);
                let spec = Arc::new(Spec { names: all, generation });
                let variant = variant(key, &spec, request);
                vec![(key.clone(), Entry::Spec(spec)), (variant, object)]
            }
        };
        new.iter().for_each(|(key, entry)| self.insert(key.clone(), entry.clone()));
        new
    }

    /// Puts an entry in its place.
    pub fn insert(&self, key: Key, entry: Entry) {
        self.cache.insert(key, entry);
    }

    /// Notes that the answer to this couldn't be kept. `key` is that of a variant.
    pub fn uncacheable(&self, key: &Key, now: Instant) {
        if !matches!(self.cache.peek(&**key), Some(Entry::Spec(_))) {
            self.cache.insert(key.clone(), Entry::Uncacheable(now + UNCACHEABLE));
        }
    }

    /// Forgets all variants. `key` is a primary one.
    pub fn remove(&self, key: &str) -> bool {
        self.cache.remove(key).is_some()
    }
}

fn variant(key: &str, spec: &Spec, request: &HeaderMap) -> Key {
    let mut text = format!("{key}\n{}", spec.generation);
    for name in &spec.names {
        text.push('\n');
        vary::push_value(&mut text, request, name);
    }
    text.into()
}
