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
use std::hash::RandomState;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A shard smaller than this could hold few objects; half of it is the largest that is kept.
const SHARD: u64 = 32 << 20;
/// For the estimate of how many there will be.
const TYPICAL: u64 = 8 << 10;
/// How long it is remembered that an answer couldn't be kept.
const UNCACHEABLE: Duration = Duration::from_secs(10);

/// The primary key, or the key of a variant.
pub type Key = Arc<str>;

#[derive(Debug, Clone)]
enum Entry {
    Object(Arc<Object>),
    Spec(Arc<Spec>),
    Uncacheable(Instant),
}

#[derive(Debug)]
struct Spec {
    names: Vec<HeaderName>,
    generation: u64,
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
        own + key.len() as u64 + 64
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
        Store { cache, max_object, generation: AtomicU64::new(0) }
    }

    /// Larger ones aren't kept.
    pub fn max_object(&self) -> u64 {
        self.max_object
    }

    /// Bytes in use, and objects (variants and notes included).
    pub fn used(&self) -> (u64, usize) {
        (self.cache.weight(), self.cache.len())
    }

    /// What there is for a request.
    pub fn get(&self, key: &str, request: &HeaderMap) -> Option<Arc<Object>> {
        match self.cache.get(key)? {
            Entry::Object(o) => Some(o),
            Entry::Uncacheable(_) => None,
            Entry::Spec(spec) => match self.cache.get(&*variant(key, &spec, request))? {
                Entry::Object(o) => Some(o),
                _ => None,
            },
        }
    }

    /// What there is for a request, and the key of just this variant.
    pub fn find(&self, key: &Key, request: &HeaderMap, now: Instant) -> (Found, Key) {
        match self.cache.get(&**key) {
            None => (Found::Nothing, key.clone()),
            Some(Entry::Object(o)) => (Found::Object(o), key.clone()),
            Some(Entry::Uncacheable(until)) if until > now => (Found::Uncacheable, key.clone()),
            Some(Entry::Uncacheable(_)) => (Found::Nothing, key.clone()),
            Some(Entry::Spec(spec)) => {
                let variant = variant(key, &spec, request);
                match self.cache.get(&*variant) {
                    Some(Entry::Object(o)) => (Found::Object(o), variant),
                    Some(Entry::Uncacheable(until)) if until > now => (Found::Uncacheable, variant),
                    _ => (Found::Nothing, variant),
                }
            }
        }
    }

    /// Keeps an answer to a request with these fields.
    pub fn put(&self, key: &Key, request: &HeaderMap, object: Object) {
        let names = vary::names(&object.head.headers);
        let object = Arc::new(object);
        let spec = match self.cache.peek(&**key) {
            Some(Entry::Spec(spec)) => Some(spec),
            _ => None,
        };
        let spec = match spec {
            None if names.is_empty() => {
                self.cache.insert(key.clone(), Entry::Object(object));
                return;
            }
            // selecting by more than an answer says is right too; what is there stays reachable
            Some(spec) if names.iter().all(|n| spec.names.contains(n)) => spec,
            had => {
                let mut all = had.map_or(Vec::new(), |s| s.names.clone());
                all.extend(names.into_iter().filter(|n| !all.contains(n)).collect::<Vec<_>>());
                let generation = self.generation.fetch_add(1, Ordering::Relaxed);
                let spec = Arc::new(Spec { names: all, generation });
                self.cache.insert(key.clone(), Entry::Spec(spec.clone()));
                spec
            }
        };
        self.cache.insert(variant(key, &spec, request), Entry::Object(object));
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
