//! Names of origins to addresses, by getaddrinfo(3), which blocks for as long as the resolver likes.
//!
//! An answer is believed for a while, since getaddrinfo doesn't tell a TTL. An origin's is then asked for anew beside what goes on,
//! and counts further until there is another one: while the resolver is slow, or says nothing, origins are where they were. Each
//! name is asked for once at a time, however many wait for it, on threads of its own: what hangs there holds up no disk. What was
//! found of origins may be handed to another process, which goes by it as if it had asked itself.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// How long an answer is believed.
const REMEMBER: Duration = Duration::from_secs(30);
/// For so long an origin's last answer is taken without waiting for the next one.
const RECENT: Duration = Duration::from_secs(10 * 60);
/// After that the next one is waited for, and for no longer than this.
const PATIENCE: Duration = Duration::from_secs(1);
/// A resolver that has failed is asked about the same origin again after so long.
const AGAIN: Duration = Duration::from_secs(1);

/// What nobody has found for so long isn't handed on: nobody may need it any more.
const FORGET: Duration = Duration::from_secs(24 * 3600);

/// Names that are remembered besides those of origins.
const MOST: usize = 4096;
/// Questions at a time that are for clients.
const QUESTIONS: usize = 32;
/// Bytes of a name (RFC 1035 has 253).
const LONGEST: usize = 255;
/// What getaddrinfo needs, and more.
const STACK: usize = 512 << 10;

type Addresses = Arc<[SocketAddr]>;
type Key = (String, u16);
type Ask = Box<dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

/// Where an origin was found, as another process may know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Its name.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// When, in milliseconds of `CLOCK_MONOTONIC`.
    pub at_ms: u64,
    /// In the order of the resolver.
    pub addresses: Vec<SocketAddr>,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    /// One of the configuration: they are few, and the last answer is better than none.
    Origin,
    /// A client's, of a forward proxy.
    Client,
}

/// One name.
#[derive(Default)]
struct Entry {
    /// The last answer, and when it came.
    last: Option<(Instant, Addresses)>,
    /// Why there was none since.
    failure: Option<(Instant, io::ErrorKind, String)>,
    is_asked: bool,
    is_origin: bool,
    /// When others were told of the last answer.
    told: Option<Instant>,
    /// Questions that are over.
    asked: u64,
    waiting: Vec<Waker>,
}

impl Entry {
    fn age(&self, now: Instant) -> Option<Duration> {
        self.last.as_ref().map(|(at, _)| now.saturating_duration_since(*at))
    }

    fn last(&self) -> Option<Addresses> {
        self.last.as_ref().map(|(_, list)| list.clone())
    }

    /// Is it an origin's answer that others don't know, or as one that is old? It is told now.
    fn is_news(&mut self, before: Option<Addresses>, now: Instant) -> bool {
        let is_known = self.told.is_some_and(|at| now.saturating_duration_since(at) < RECENT / 2);
        let is_news = self.is_origin && (!is_known || before != self.last());
        if is_news {
            self.told = Some(now);
        }
        is_news
    }

    fn result(&self) -> io::Result<Addresses> {
        match (&self.failure, self.last()) {
            (Some((_, kind, why)), _) => Err(io::Error::new(*kind, why.clone())),
            (None, Some(list)) => Ok(list),
            (None, None) => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

#[derive(Default)]
struct Known {
    names: HashMap<Key, Entry>,
    questions: usize,
    /// Those that are for clients.
    clients: usize,
}

/// What is known, and who is asked.
struct Names {
    ask: Ask,
    known: Mutex<Known>,
    on_change: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

static SYSTEM: LazyLock<Names> =
    LazyLock::new(|| Names::new(Box::new(|host, port| Ok((host, port).to_socket_addrs()?.collect()))));

/// All addresses of a host that a client has named, in the order the resolver gives them.
///
/// # Errors
/// The name is unknown, the resolver doesn't answer, or too many are asked for already.
pub async fn addresses(host: &str, port: u16) -> io::Result<Addresses> {
    SYSTEM.get(host, port, For::Client, Instant::now(), PATIENCE).await
}

/// The same of an origin. While the resolver fails, the last answer counts: it is there before `limit` is over.
///
/// # Errors
/// There has never been one.
pub async fn addresses_of_origin(host: &str, port: u16, limit: Duration) -> io::Result<Addresses> {
    SYSTEM.get(host, port, For::Origin, Instant::now(), limit / 2).await
}

/// Asks for an origin before anybody needs it. Waits for nothing.
pub fn look_up(host: &str, port: u16) {
    if host.parse::<IpAddr>().is_err() {
        let _ = SYSTEM.begin(&mut SYSTEM.known(), &(host.to_owned(), port), For::Origin);
    }
}

/// Where origins were found last.
pub fn found() -> Vec<Found> {
    SYSTEM.found(Instant::now())
}

/// What another process has found counts, unless we know better. Of more names than any configuration has, some are left out.
pub fn recall(found: Vec<Found>) {
    SYSTEM.recall(found, Instant::now());
}

/// Has `told` called, on a thread that may block, when an origin is found elsewhere than before, and from time to time when it is
/// where it was. The first one counts.
pub fn on_change(told: Box<dyn Fn() + Send + Sync>) {
    let _ = SYSTEM.on_change.set(told);
}

/// On the clock that all processes share.
fn clock_ms() -> u64 {
    let t = clock_gettime(ClockId::Monotonic);
    t.tv_sec as u64 * 1000 + t.tv_nsec as u64 / 1_000_000
}

impl Names {
    fn new(ask: Ask) -> Names {
        Names { ask, known: Mutex::default(), on_change: OnceLock::new() }
    }

    fn found(&self, now: Instant) -> Vec<Found> {
        let (known, clock) = (self.known(), clock_ms());
        let origins = known.names.iter().filter(|(_, e)| e.is_origin);
        let found = |((host, port), e): (&Key, &Entry)| {
            let (age, list) = (e.age(now)?, e.last()?);
            let at_ms = clock.saturating_sub(age.as_millis() as u64);
            Some(Found { host: host.clone(), port: *port, at_ms, addresses: list.to_vec() })
        };
        origins.filter_map(found).collect()
    }

    fn recall(&self, found: Vec<Found>, now: Instant) {
        let (mut known, clock) = (self.known(), clock_ms());
        for f in found.into_iter().take(MOST) {
            let age = Duration::from_millis(clock.saturating_sub(f.at_ms));
            let at = now.checked_sub(age).filter(|_| age < FORGET);
            let Some(at) = at.filter(|_| f.host.len() <= LONGEST && !f.addresses.is_empty()) else {
                continue;
            };
            let entry = known.names.entry((f.host, f.port)).or_default();
            if entry.last.as_ref().is_none_or(|(ours, _)| *ours < at) {
                (entry.last, entry.told, entry.is_origin) = (Some((at, f.addresses.into())), Some(at), true);
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn get(
        &'static self,
        host: &str,
        port: u16,
        whose: For,
        now: Instant,
        patience: Duration,
    ) -> io::Result<Addresses> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(Arc::new([SocketAddr::new(ip, port)]));
        }
        let key = (host.to_owned(), port);
        let last = match self.look(&key, whose, now) {
            Look::Enough(list) => return Ok(list),
            Look::Wait(last) => last,
        };
        let Some(last) = last else { return self.answer(&key, whose).await };
        match engine::time::timeout(patience.min(PATIENCE), self.answer(&key, whose)).await {
            Ok(Ok(list)) => Ok(list),
            Ok(Err(_)) | Err(_) => Ok(last),
        }
    }

    /// What is known is enough, if it is; asks for it anew where that is due.
    fn look(&'static self, key: &Key, whose: For, now: Instant) -> Look {
        let mut known = self.known();
        let Some(entry) = known.names.get(key) else { return Look::Wait(None) };
        let (Some(age), Some(last)) = (entry.age(now), entry.last()) else { return Look::Wait(None) };
        if age < REMEMBER {
            return Look::Enough(last);
        }
        if whose == For::Client {
            return Look::Wait(None);
        }
        let failed =
            entry.failure.as_ref().is_some_and(|(at, ..)| now.saturating_duration_since(*at) < AGAIN);
        if failed {
            return Look::Enough(last);
        }
        if age < RECENT {
            let _ = self.begin(&mut known, key, whose);
            return Look::Enough(last);
        }
        Look::Wait(Some(last))
    }

    /// The next answer.
    async fn answer(&'static self, key: &Key, whose: For) -> io::Result<Addresses> {
        let before = self.begin(&mut self.known(), key, whose)?;
        poll_fn(|cx| {
            let mut known = self.known();
            let Some(entry) = known.names.get_mut(key) else {
                return Poll::Ready(Err(io::ErrorKind::NotFound.into()));
            };
            if entry.asked != before {
                return Poll::Ready(entry.result());
            }
            if !entry.waiting.iter().any(|w| w.will_wake(cx.waker())) {
                entry.waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// Asks, unless that is done already. Returns how many questions about it are over.
    fn begin(&'static self, known: &mut Known, key: &Key, whose: For) -> io::Result<u64> {
        let is_origin = whose == For::Origin;
        if let Some(entry) = known.names.get_mut(key) {
            entry.is_origin |= is_origin;
            if entry.is_asked {
                return Ok(entry.asked);
            }
        }
        // origins are as many as the configuration has
        if !is_origin && known.clients >= QUESTIONS {
            return Err(too_many());
        }
        if key.0.len() > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no name is so long"));
        }
        if !known.names.contains_key(key) {
            known.make_room(is_origin, Instant::now())?;
        }
        let (asked, question) = (known.names.get(key).map_or(0, |e| e.asked), key.clone());
        let thread = std::thread::Builder::new().name("names".into()).stack_size(STACK);
        thread.spawn(move || {
            let answer = (self.ask)(&question.0, question.1);
            self.settle(&question, answer, Instant::now(), whose);
        })?;
        let entry = known.names.entry(key.clone()).or_default();
        (entry.is_asked, entry.is_origin) = (true, entry.is_origin || is_origin);
        known.questions += 1;
        known.clients += usize::from(!is_origin);
        Ok(asked)
    }

    fn settle(&self, key: &Key, answer: io::Result<Vec<SocketAddr>>, now: Instant, whose: For) {
        let mut known = self.known();
        known.questions -= 1;
        known.clients -= usize::from(whose == For::Client);
        let Some(entry) = known.names.get_mut(key) else { return };
        let answer = answer.and_then(|list| match list.is_empty() {
            true => Err(io::Error::new(io::ErrorKind::NotFound, format!("{} has no address", key.0))),
            false => Ok(list),
        });
        let before = entry.last();
        match answer {
            Ok(list) => {
                if entry.failure.take().is_some() && entry.is_origin {
                    log::info!("event=resolved origin={}", key.0);
                }
                entry.last = Some((now, list.into()));
            }
            Err(e) => {
                if entry.failure.is_none() && entry.is_origin {
                    let known = if entry.last.is_some() { "its last addresses count" } else { "it has none" };
                    log::warn!("event=resolve-failed origin={}: {e}; {known}", key.0);
                }
                entry.failure = Some((now, e.kind(), e.to_string()));
            }
        }
        entry.is_asked = false;
        entry.asked += 1;
        let is_news = entry.failure.is_none() && entry.is_news(before, now);
        let waiting = std::mem::take(&mut entry.waiting);
        drop(known);
        waiting.into_iter().for_each(Waker::wake);
        if let Some(tell) = self.on_change.get().filter(|_| is_news) {
            tell();
        }
    }
}

impl Known {
    /// The origins of a configuration are few; the hosts of a forward proxy's clients are not.
    fn make_room(&mut self, is_origin: bool, now: Instant) -> io::Result<()> {
        if self.names.len() >= MOST {
            let is_fresh = |e: &Entry| e.age(now).is_some_and(|age| age < REMEMBER);
            self.names.retain(|_, e| e.is_origin || e.is_asked || is_fresh(e));
        }
        match self.names.len() < MOST || is_origin {
            true => Ok(()),
            false => Err(too_many()),
        }
    }
}

fn too_many() -> io::Error {
    io::Error::other("too many names are asked for at a time")
}

enum Look {
    Enough(Addresses),
    /// For the next answer; at the worst this one counts.
    Wait(Option<Addresses>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::sync::mpsc;

    /// A resolver that answers what it is told to, one question after the other, and the questions so far.
    fn told(answers: mpsc::Receiver<Option<u8>>) -> (&'static Names, Arc<AtomicUsize>) {
        let (asked, answers) = (Arc::new(AtomicUsize::new(0)), Mutex::new(answers));
        let count = asked.clone();
        let ask = move |_: &str, port: u16| {
            count.fetch_add(1, SeqCst);
            let answer = answers.lock().unwrap().recv().unwrap_or(None);
            let down = || io::Error::other("the resolver is down");
            answer.map(|n| vec![SocketAddr::from(([127, 0, 0, n], port))]).ok_or_else(down)
        };
        (Box::leak(Box::new(Names::new(Box::new(ask)))), asked)
    }

    fn get(names: &'static Names, whose: For, now: Instant) -> Result<u8, String> {
        let got = engine::block_on(names.get("a", 80, whose, now, PATIENCE));
        got.map(|list| match list[0].ip() {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(_) => 0,
        })
        .map_err(|e| e.to_string())
    }

    /// Until nothing is asked any more.
    fn settled(names: &'static Names) {
        while names.known().questions > 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn an_origin_is_where_it_was_while_the_resolver_fails() {
        let (answer, answers) = mpsc::channel();
        let (names, asked) = told(answers);
        let begun = Instant::now();
        answer.send(Some(1)).unwrap();
        assert_eq!(get(names, For::Origin, begun), Ok(1));
        assert_eq!(get(names, For::Origin, begun + REMEMBER / 2), Ok(1));
        assert_eq!(asked.load(SeqCst), 1, "an answer is believed for a while");
        // after that it is asked for beside what goes on: nobody waits for an answer that doesn't come
        let later = begun + REMEMBER * 2;
        for _ in 0..5 {
            assert_eq!(get(names, For::Origin, later), Ok(1));
        }
        answer.send(None).unwrap();
        settled(names);
        assert_eq!(asked.load(SeqCst), 2, "once at a time");
        // it has failed: the last answer counts, also when it is old, and it is asked again, but not at once
        assert_eq!(get(names, For::Origin, Instant::now()), Ok(1));
        assert_eq!(asked.load(SeqCst), 2);
        for _ in 0..2 {
            answer.send(None).unwrap();
            assert_eq!(get(names, For::Origin, begun + RECENT * 2), Ok(1));
        }
        // whom a client names has no such right
        answer.send(None).unwrap();
        assert!(get(names, For::Client, begun + RECENT * 2).unwrap_err().contains("is down"));
        answer.send(Some(2)).unwrap();
        assert_eq!(get(names, For::Origin, begun + RECENT * 3), Ok(2));
        assert_eq!(asked.load(SeqCst), 6);
    }

    #[test]
    fn a_resolver_that_says_nothing_is_not_waited_for_longer_than_it_may() {
        let (answer, answers) = mpsc::channel();
        let (names, _) = told(answers);
        answer.send(Some(1)).unwrap();
        let begun = Instant::now();
        assert_eq!(get(names, For::Origin, begun), Ok(1));
        assert_eq!(get(names, For::Origin, begun + RECENT * 2), Ok(1));
        assert!(begun.elapsed() >= PATIENCE);
        // what it says at last counts
        answer.send(Some(3)).unwrap();
        settled(names);
        assert_eq!(get(names, For::Origin, Instant::now()), Ok(3));
    }

    #[test]
    fn what_was_found_is_known_to_who_comes_after() {
        let (answer, answers) = mpsc::channel();
        let (names, _) = told(answers);
        let changes = Arc::new(AtomicUsize::new(0));
        let count = changes.clone();
        let _ = names.on_change.set(Box::new(move || {
            count.fetch_add(1, SeqCst);
        }));
        let ask = |answers: Option<u8>, now| {
            answer.send(answers).unwrap();
            names.begin(&mut names.known(), &("a".into(), 80), For::Origin).unwrap();
            settled(names);
            names.found(now)
        };
        let now = Instant::now();
        let mut first = ask(Some(1), now);
        assert_eq!((first[0].host.as_str(), first[0].port), ("a", 80));
        assert_eq!(first[0].addresses, [SocketAddr::from(([127, 0, 0, 1], 80))]);
        assert!(clock_ms() - first[0].at_ms < 10_000);
        first[0].at_ms -= 5_000;
        // it is said when it changes, and not each time it is asked for
        ask(Some(1), now);
        ask(None, now);
        assert_eq!(changes.load(SeqCst), 1);
        let second = ask(Some(2), now);
        assert_eq!(changes.load(SeqCst), 2);
        // the next one goes by it while nobody answers; and by what is newer, in whatever order it learns it
        for order in [[&first, &second], [&second, &first]] {
            let (silent, answers) = mpsc::channel();
            let (next, asked) = told(answers);
            order.into_iter().for_each(|found| next.recall(found.clone(), now));
            assert_eq!(get(next, For::Origin, now), Ok(2));
            assert_eq!(asked.load(SeqCst), 0);
            silent.send(None).unwrap();
            assert_eq!(get(next, For::Origin, now + REMEMBER * 2), Ok(2));
            assert_eq!(next.found(now)[0].addresses, second[0].addresses);
        }
        // what is of no use isn't believed
        let (_silent, answers) = mpsc::channel();
        let (next, _) = told(answers);
        let of = |host: String, at_ms, addresses| Found { host, port: 80, at_ms, addresses };
        let some = first[0].addresses.clone();
        next.recall(
            vec![of("x".repeat(256), clock_ms(), some.clone()), of("b".into(), clock_ms(), vec![])],
            now,
        );
        next.recall((0..2 * MOST).map(|n| of(n.to_string(), clock_ms(), some.clone())).collect(), now);
        assert_eq!(next.known().names.len(), MOST);
    }

    #[test]
    fn a_name_is_asked_once_however_many_wait_and_names_of_clients_leave_room_for_origins() {
        let (answer, answers) = mpsc::channel();
        let (names, asked) = told(answers);
        let ask = |key: &str, whose| names.begin(&mut names.known(), &(key.to_owned(), 80), whose);
        for _ in 0..100 {
            ask("a", For::Client).unwrap();
        }
        for n in 1..QUESTIONS {
            ask(&n.to_string(), For::Client).unwrap();
        }
        assert!(ask("one more", For::Client).is_err());
        assert_eq!(names.known().names.len(), QUESTIONS, "who is refused is not remembered");
        for n in 0..QUESTIONS {
            ask(&format!("origin {n}"), For::Origin).unwrap();
        }
        assert!(ask(&"x".repeat(256), For::Origin).is_err());
        (0..2 * QUESTIONS).for_each(|_| answer.send(Some(1)).unwrap());
        settled(names);
        assert_eq!(asked.load(SeqCst), 2 * QUESTIONS);
        assert_eq!(get(names, For::Client, Instant::now()), Ok(1));
    }

    #[test]
    fn names_of_clients_are_forgotten_and_those_of_origins_are_not() {
        let mut known = Known::default();
        let now = Instant::now();
        for n in 0..MOST {
            let entry = Entry {
                is_origin: n == 0,
                failure: Some((now, io::ErrorKind::Other, String::new())),
                ..Entry::default()
            };
            known.names.insert((n.to_string(), 80), entry);
        }
        known.make_room(false, now).unwrap();
        assert_eq!(known.names.len(), 1);
        for n in 0..MOST {
            known.names.insert((n.to_string(), 80), Entry { is_asked: true, ..Entry::default() });
        }
        assert!(known.make_room(false, now).is_err());
        known.make_room(true, now).unwrap();
    }
}
