//! A shared cache by RFC 9111, in memory.
//!
//! Read in this order:
//!
//! 1. [`directives`], [`policy`], [`vary`], [`target`]: the rules; pure;
//! 2. [`object`]: a kept answer; [`partial`]: parts of one; [`store`]: all of them, bounded by bytes;
//! 3. [`flight`]: many requests for the same, one fetch; [`fill`], `pump`: an answer on its way to a client, and into the store;
//! 4. [`record`], [`disk`]: the tier on disk, which the next process finds warm; [`large`], `spool`: what is there alone;
//! 5. [`held`], `patience`: what others' doings must not cost: memory, answers out of date, waiting for a disk;
//! 6. [`serve`]: a kept answer as this client gets it; [`wire`]: its head for those who ask for nothing special.
//!
//! The proxy's side of it, which asks origins, is [`crate::cached`].

pub mod directives;
pub mod disk;
pub mod fill;
pub mod flight;
pub mod held;
pub mod large;
pub mod object;
pub mod partial;
mod patience;
pub mod policy;
mod pump;
pub mod record;
pub mod serve;
mod spool;
pub mod store;
pub mod target;
pub mod vary;
pub mod wire;

use self::disk::{Disk, DiskStats};
use self::flight::Flights;
use self::held::{Epoch, Epochs, Held};
use self::object::Object;
use self::patience::{Impatient, PATIENCE, Patience};
use self::spool::Written;
use self::store::{Entry, Key, Store};
use http::header::{CONTENT_LOCATION, HeaderMap, LOCATION};
use http::{HeaderName, Uri};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Bytes that may wait to be written to disk; what comes beyond isn't written.
const MAX_WRITING: u64 = 32 << 20;

/// The part of the memory that is for answers on their way.
const FILLING: u64 = 8;

/// Bodies beyond this are on disk alone, if there is a disk.
const LARGE: u64 = 4 << 20;

/// How a cache is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheConfig {
    /// Bytes of memory, for what is kept, what is on its way, and what the allocator needs beside; 0 is no cache.
    pub memory: u64,
    /// The longest that a request waits for another one's fetch.
    pub coalesce: Duration,
    /// Where entries are kept on disk, and the most bytes there.
    pub disk: Option<(PathBuf, u64)>,
}

impl Default for CacheConfig {
    fn default() -> Self {
        CacheConfig { memory: 256 << 20, coalesce: Duration::from_secs(5), disk: None }
    }
}

/// The cache, shared by all threads.
#[derive(Debug)]
pub struct Cache {
    /// What is kept.
    pub store: Store,
    /// What is being fetched.
    pub flights: Arc<Flights>,
    /// The longest that a request waits for another one's fetch.
    pub coalesce: Duration,
    disk: Option<Arc<Disk>>,
    /// Bytes that are to be written to disk.
    writing: AtomicU64,
    /// Bytes of answers that are on their way into the store now.
    filling: AtomicU64,
    /// The most of them.
    max_filling: u64,
    /// Bodies that somebody holds: the store, and clients who are being sent them.
    held: Held,
    /// What has been made invalid since.
    epochs: Epochs,
    /// With the disk.
    patience: Patience,
}

impl Cache {
    /// An empty one; None if it is to have no memory.
    pub fn new(config: CacheConfig) -> Option<Arc<Cache>> {
        (config.memory > 0).then(|| {
            let max_filling = (config.memory / FILLING).clamp(1 << 20, config.memory.max(2 << 20) / 2);
            Arc::new(Cache {
                store: Store::new(config.memory.saturating_sub(max_filling).max(config.memory / 2)),
                flights: Arc::default(),
                coalesce: config.coalesce,
                disk: config.disk.filter(|d| d.1 > 0).map(|(dir, max)| Arc::new(Disk::new(dir, max))),
                writing: AtomicU64::new(0),
                filling: AtomicU64::new(0),
                max_filling,
                held: Held::new(config.memory.saturating_mul(2)),
                epochs: Epochs::default(),
                patience: Patience::default(),
            })
        })
    }

    /// Forgets what a successful unsafe request has made invalid: its target, and what the answer names on the same host.
    /// On disk too before it returns, so that a crash doesn't bring it back, as long as the disk answers.
    pub async fn invalidate(&self, host: &str, uri: &Uri, answer: &HeaderMap) {
        let mut keys = vec![key(host, uri)];
        let also = [LOCATION, CONTENT_LOCATION]
            .iter()
            .filter_map(|n| named(host, uri, answer, n))
            .collect::<Vec<_>>();
        keys.extend(also.iter().map(|uri| key(host, uri)));
        // each once
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            self.purge(key).await;
        }
    }

    /// Forgets all variants of a primary key; false if there was nothing. What is on its way to be kept isn't kept any more, and
    /// nobody joins a fetch of it.
    pub async fn purge(&self, key: Key) -> bool {
        self.epochs.next(&key);
        let part = self.store.remove(&partial::key(&key));
        let here = self.store.remove(&key) || part;
        let Some(disk) = self.disk.clone() else { return here };
        if disk.claims_scan() {
            self.scan(&disk).await;
        }
        let taken = disk.take(&key);
        // what is there and not yet known of has been forgotten as well
        let found = taken.is_some() || !disk.is_known();
        if let Some(Some(path)) = taken {
            let _ = self.patience.wait(move || std::fs::remove_file(path)).await;
        }
        here || found
    }

    /// The state of a key that an answer must still find when it is kept; to be asked for before the origin is.
    pub fn epoch(&self, key: &str) -> Epoch {
        self.epochs.of(key)
    }

    /// Keeps an answer, in memory and on disk; unless its key has been made invalid since `epoch`.
    pub fn put(self: &Arc<Self>, key: &Key, epoch: &Epoch, request: &HeaderMap, object: Object) {
        if !epoch.is_current() {
            return;
        }
        let new = self.store.put(key, request, object);
        let keys: Vec<Key> = new.iter().map(|(key, _)| key.clone()).collect();
        self.write(new);
        // in between
        if !epoch.is_current() {
            self.undo(&keys);
        }
    }

    fn undo(&self, keys: &[Key]) {
        for key in keys {
            self.store.remove(key);
            self.forget(key);
        }
    }

    /// Has entries written to disk.
    fn write(self: &Arc<Self>, new: Vec<(Key, Entry)>) {
        let Some(disk) = &self.disk else { return };
        // a new head for a body that is on disk alone: the old one there is good enough to ask with
        let new: Vec<_> = new
            .into_iter()
            .filter(|(_, e)| !matches!(e, Entry::Object(o) if o.on_disk().is_some()))
            .collect();
        let bytes: u64 = new.iter().map(|(_, e)| if let Entry::Object(o) = e { o.weight() } else { 0 }).sum();
        if self.writing.fetch_add(bytes, Relaxed) > MAX_WRITING {
            self.writing.fetch_sub(bytes, Relaxed);
            // what is there is older than what can't be written
            new.iter().for_each(|(key, _)| self.forget(key));
            return;
        }
        let new: Vec<_> = new.into_iter().map(|(key, e)| (disk.announce(&key), key, e)).collect();
        let (disk, cache) = (disk.clone(), self.clone());
        drop(engine::spawn(async move {
            let write = move || new.iter().for_each(|(ticket, key, entry)| disk.write(key, entry, *ticket));
            let _ = engine::blocking::run(write).await;
            cache.writing.fetch_sub(bytes, Relaxed);
        }));
    }

    /// Keeps an answer whose body is on disk already, in a file without a name.
    async fn put_large(
        self: &Arc<Self>,
        key: &Key,
        epoch: &Epoch,
        request: &HeaderMap,
        object: Object,
        file: Written,
    ) {
        let Some(disk) = self.disk.clone() else { return };
        if !epoch.is_current() {
            return;
        }
        let new = self.store.put(key, request, object);
        let keys: Vec<Key> = new.iter().map(|(key, _)| key.clone()).collect();
        let new: Vec<_> = new.into_iter().map(|(key, e)| (disk.announce(&key), key, e)).collect();
        if !epoch.is_current() {
            // what has been announced isn't written then
            self.undo(&keys);
        }
        let mut file = Some(file);
        let write = move || {
            for (ticket, key, entry) in &new {
                match entry {
                    Entry::Object(o) => {
                        file.take().into_iter().for_each(|file| disk.publish_large(key, o, file, *ticket));
                    }
                    other => disk.write(key, other, *ticket),
                }
            }
        };
        let _ = engine::blocking::run(write).await;
    }

    /// The tier on disk, if there is one and something of this size belongs there alone.
    fn disk_for(&self, len: u64) -> Option<&Arc<Disk>> {
        self.disk.as_ref().filter(|d| len > LARGE.min(self.store.max_object()) && d.takes(len))
    }

    /// Brings an entry from disk into memory; false if there is none. The first one to ask waits until it is known what
    /// there is.
    pub async fn load(&self, key: &Key) -> bool {
        let Some(disk) = self.disk.clone() else { return false };
        if disk.claims_scan() {
            self.scan(&disk).await;
        }
        // one that is overdue is enough
        if !disk.knows(key) || self.patience.is_at_an_end() {
            return false;
        }
        let (wanted, epoch) = (key.clone(), self.epoch(key));
        let Ok(Some(entry)) = self.patience.wait(move || disk.read(&wanted)).await else { return false };
        let entry = match entry {
            Entry::Object(o) if o.on_disk().is_none() => {
                if !self.held.has_room(o.len()) {
                    return false;
                }
                Entry::Object(Arc::new(Object::new(o.head.clone(), self.held.hold(o.body.clone()))))
            }
            other => other,
        };
        if !epoch.is_current() {
            return false;
        }
        self.store.insert(key.clone(), entry);
        if !epoch.is_current() {
            self.store.remove(key);
            return false;
        }
        true
    }

    /// Finds out what is on disk.
    async fn scan(&self, disk: &Arc<Disk>) {
        let scanning = disk.clone();
        match self.patience.wait(move || scanning.scan()).await {
            Ok(Err(e)) => log::error!("event=cache-disk-unusable: {e}"),
            Err(Impatient::Refused) => disk.unclaim_scan(),
            _ => {}
        }
    }

    /// Forgets an entry on disk; its file is removed in the background.
    pub fn forget(&self, key: &Key) {
        if let Some(Some(path)) = self.disk.as_ref().filter(|d| d.knows(key)).and_then(|d| d.take(key)) {
            drop(engine::spawn(async move {
                let _ = engine::blocking::run(move || std::fs::remove_file(path)).await;
            }));
        }
    }

    /// Numbers of the tier on disk.
    pub fn disk_stats(&self) -> DiskStats {
        self.disk.as_ref().map(|d| d.stats()).unwrap_or_default()
    }
}

/// The primary key of a target: host without a default port, path and query.
pub fn key(host: &str, uri: &Uri) -> Key {
    with_key(host, target_of(uri), |key| key.into())
}

/// Path and query, as a key has them.
pub fn target_of(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", |p| p.as_str())
}

/// Uses a key without making one: for hits, which need no copy of it.
pub fn with_key<R>(host: &str, target: &str, f: impl FnOnce(&str) -> R) -> R {
    thread_local!(static TEXT: std::cell::Cell<String> = const { std::cell::Cell::new(String::new()) });
    let host = host.strip_suffix(":80").unwrap_or(host);
    let mut text = TEXT.take();
    text.clear();
    text.push_str(host);
    text.make_ascii_lowercase();
    text.push_str(target);
    let result = f(&text);
    TEXT.set(text);
    result
}

/// A URL in an answer, if it is on the same host.
fn named(host: &str, base: &Uri, answer: &HeaderMap, name: &HeaderName) -> Option<Uri> {
    let text = answer.get(name)?.to_str().ok()?;
    let plain = |h: &str| h.to_ascii_lowercase().trim_end_matches(":80").to_owned();
    if text.contains("://") || text.starts_with("//") {
        let absolute = if text.starts_with("//") { format!("http:{text}") } else { text.to_owned() };
        let uri: Uri = absolute.parse().ok()?;
        return (plain(uri.authority()?.as_str()) == plain(host)).then_some(uri);
    }
    let path = match text.starts_with('/') {
        true => text.to_owned(),
        false => format!("{}/{text}", base.path().rsplit_once('/').map_or("", |(dir, _)| dir)),
    };
    let (path, query) = path.split_once('?').map_or((path.as_str(), None), |(p, q)| (p, Some(q)));
    let path = crate::router::normal_path(path)?;
    query.map_or_else(|| path.parse(), |q| format!("{path}?{q}").parse()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_do_not_depend_on_how_a_host_is_written() {
        let uri: Uri = "/A?b".parse().unwrap();
        assert_eq!(&*key("Example.ORG:80", &uri), "example.org/A?b");
        assert_eq!(&*key("example.org:8080", &uri), "example.org:8080/A?b");
    }

    #[test]
    fn named_targets_on_the_same_host() {
        let n = |location: &str| {
            let mut h = HeaderMap::new();
            h.insert(LOCATION, location.parse().unwrap());
            named("a:80", &"/x/y?z".parse().unwrap(), &h, &LOCATION).map(|u| key("a", &u).to_string())
        };
        assert_eq!(n("/q").as_deref(), Some("a/q"));
        assert_eq!(n("q?r").as_deref(), Some("a/x/q?r"));
        assert_eq!(n("../q").as_deref(), Some("a/q"));
        assert_eq!(n("http://A/q").as_deref(), Some("a/q"));
        assert_eq!(n("http://b/q"), None);
        assert_eq!(n("//b/q"), None);
    }
}
