//! A shared cache by RFC 9111, in memory.
//!
//! Read in this order:
//!
//! 1. [`directives`], [`policy`], [`vary`]: the rules; pure;
//! 2. [`object`]: a kept answer; [`store`]: all of them, bounded by bytes;
//! 3. [`flight`]: many requests for the same, one fetch; [`fill`], `pump`: an answer on its way to a client, and into the store;
//! 4. [`serve`]: a kept answer as this client gets it.
//!
//! The proxy's side of it, which asks origins, is [`crate::cached`].

pub mod directives;
pub mod fill;
pub mod flight;
pub mod object;
pub mod policy;
mod pump;
pub mod serve;
pub mod store;
pub mod vary;

use self::flight::Flights;
use self::store::{Key, Store};
use http::header::{CONTENT_LOCATION, HeaderMap, LOCATION};
use http::{HeaderName, Uri};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// How a cache is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheConfig {
    /// Bytes of memory; 0 is no cache.
    pub memory: u64,
    /// The longest that a request waits for another one's fetch.
    pub coalesce: Duration,
}

impl Default for CacheConfig {
    fn default() -> Self {
        CacheConfig { memory: 256 << 20, coalesce: Duration::from_secs(5) }
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
    /// Bytes of answers that are on their way into the store now.
    filling: AtomicU64,
    /// The most of them.
    max_filling: u64,
}

impl Cache {
    /// An empty one; None if it is to have no memory.
    pub fn new(config: CacheConfig) -> Option<Arc<Cache>> {
        (config.memory > 0).then(|| {
            Arc::new(Cache {
                store: Store::new(config.memory),
                flights: Arc::default(),
                coalesce: config.coalesce,
                filling: AtomicU64::new(0),
                max_filling: (config.memory / 2).max(1 << 20),
            })
        })
    }

    /// Forgets what a successful unsafe request has made invalid: its target, and what the answer names on the same host.
    pub fn invalidate(&self, host: &str, uri: &Uri, answer: &HeaderMap) {
        self.store.remove(&key(host, uri));
        for name in [LOCATION, CONTENT_LOCATION] {
            if let Some(also) = named(host, uri, answer, &name) {
                self.store.remove(&key(host, &also));
            }
        }
    }
}

/// The primary key of a target: host without a default port, path and query.
pub fn key(host: &str, uri: &Uri) -> Key {
    with_key(host, uri, |key| key.into())
}

/// Uses a key without making one: for hits, which need no copy of it.
pub fn with_key<R>(host: &str, uri: &Uri, f: impl FnOnce(&str) -> R) -> R {
    thread_local!(static TEXT: std::cell::Cell<String> = const { std::cell::Cell::new(String::new()) });
    let host = host.strip_suffix(":80").unwrap_or(host);
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut text = TEXT.take();
    text.clear();
    text.push_str(host);
    text.make_ascii_lowercase();
    text.push_str(path);
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
