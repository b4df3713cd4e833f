//! What became of requests, counted by route: by each thread for itself, summed when somebody asks.

use crate::cache::disk::DiskStats;
use http::StatusCode;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// From the cache, fresh.
    Hit,
    /// From the origin.
    Miss,
    /// From the cache, stale: while another one is fetched, or because the origin failed.
    Stale,
    /// From the cache, after the origin said that it is still good.
    Revalidated,
    /// From the origin, past the cache.
    Bypass,
    /// By ourselves: a file, a fixed answer, a redirect.
    Own,
    /// Refused: the client's fault (4xx of ours).
    Refused,
    /// A connection that is no HTTP any more.
    Tunnel,
    /// No origin could be connected to.
    Unreachable,
    /// The origin was too slow.
    TimedOut,
    /// The origin broke off, or what it said was no HTTP.
    Broken,
    /// Another error of ours (5xx).
    Failed,
    /// It was never answered: its client had gone, or the server had to end.
    Gone,
}

impl Outcome {
    /// All of them, in the order of their numbers.
    pub const ALL: [Outcome; 13] = [
        Outcome::Hit,
        Outcome::Miss,
        Outcome::Stale,
        Outcome::Revalidated,
        Outcome::Bypass,
        Outcome::Own,
        Outcome::Refused,
        Outcome::Tunnel,
        Outcome::Unreachable,
        Outcome::TimedOut,
        Outcome::Broken,
        Outcome::Failed,
        Outcome::Gone,
    ];

    /// For labels.
    pub fn name(self) -> &'static str {
        const NAMES: [&str; Outcome::ALL.len()] = [
            "hit",
            "miss",
            "stale",
            "revalidated",
            "bypass",
            "own",
            "refused",
            "tunnel",
            "unreachable",
            "timeout",
            "broken",
            "failed",
            "gone",
        ];
        NAMES[self as usize]
    }

    /// Of a request that is answered with an error of ours, where nothing more is known than its status.
    pub fn of_failure(status: StatusCode) -> Outcome {
        match status {
            StatusCode::BAD_GATEWAY => Outcome::Broken,
            StatusCode::SERVICE_UNAVAILABLE => Outcome::Unreachable,
            StatusCode::GATEWAY_TIMEOUT => Outcome::TimedOut,
            s if s.is_server_error() => Outcome::Failed,
            _ => Outcome::Refused,
        }
    }
}

/// Upper bounds of the latency histogram's buckets, in microseconds; one more bucket takes the rest.
pub const BOUNDS: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// Requests of one outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Histogram {
    /// By the time from the request's head to the answer's: see [`BOUNDS`].
    pub buckets: [u64; BOUNDS.len() + 1],
    /// All these times together, in microseconds.
    pub sum: u64,
}

impl Histogram {
    /// All requests.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// One outcome, of one thread.
#[derive(Debug, Default)]
struct Cell {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
    /// Answered before hyper saw the request.
    fast: AtomicU64,
}

/// The counters of one thread: one row a route, and one for requests without any.
type Row = [Cell; Outcome::ALL.len()];

/// The sums of one route.
pub type Sums = [Histogram; Outcome::ALL.len()];

/// All counters of a proxy.
#[derive(Debug)]
pub struct Counters {
    routes: usize,
    threads: Mutex<Vec<Arc<[Row]>>>,
    id: u64,
}

thread_local! {
    /// Those of this thread, by proxy; few, so a list.
    static MINE: RefCell<Vec<(u64, Arc<[Row]>)>> = const { RefCell::new(Vec::new()) };
}

impl Counters {
    /// For so many routes.
    pub fn new(routes: usize) -> Counters {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Counters { routes, threads: Mutex::default(), id: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    /// Counts one request, which was answered after `took`.
    pub fn count(&self, route: Option<usize>, outcome: Outcome, took: Duration) {
        self.add(route, outcome, took, 0);
    }

    /// The same for one that was answered before hyper saw its request ([`crate::fast`]).
    pub fn count_fast(&self, route: usize, outcome: Outcome, took: Duration) {
        self.add(Some(route), outcome, took, 1);
    }

    fn add(&self, route: Option<usize>, outcome: Outcome, took: Duration, fast: u64) {
        let row = route.unwrap_or(self.routes).min(self.routes);
        let micros = took.as_micros() as u64;
        let bucket = BOUNDS.iter().position(|b| micros <= *b).unwrap_or(BOUNDS.len());
        MINE.with_borrow_mut(|mine| {
            let known = mine.iter().position(|(id, _)| *id == self.id);
            let i = known.unwrap_or_else(|| {
                let rows: Arc<[Row]> = (0..=self.routes).map(|_| Row::default()).collect();
                self.threads.lock().expect("never poisoned").push(rows.clone());
                mine.push((self.id, rows));
                mine.len() - 1
            });
            let cell = &mine[i].1[row][outcome as usize];
            // this thread alone writes them
            let add = |to: &AtomicU64, n| to.store(to.load(Ordering::Relaxed) + n, Ordering::Relaxed);
            add(&cell.buckets[bucket], 1);
            add(&cell.sum, micros);
            add(&cell.fast, fast);
        });
    }

    /// Sums, by route; the last row is of requests without a route.
    pub fn sum(&self) -> Vec<Sums> {
        let mut sums = vec![Sums::default(); self.routes + 1];
        for rows in self.threads.lock().expect("never poisoned").iter() {
            for (sum, cell) in sums.iter_mut().flatten().zip(rows.iter().flatten()) {
                for (n, c) in sum.buckets.iter_mut().zip(&cell.buckets) {
                    *n += c.load(Ordering::Relaxed);
                }
                sum.sum += cell.sum.load(Ordering::Relaxed);
            }
        }
        sums
    }
}

impl Counters {
    /// Requests that were answered before hyper saw them.
    pub fn sum_fast(&self) -> u64 {
        let threads = self.threads.lock().expect("never poisoned");
        threads.iter().flat_map(|r| r.iter().flatten()).map(|c| c.fast.load(Ordering::Relaxed)).sum()
    }
}

/// The numbers of a proxy at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// By route, then by [`Outcome`] as number; the last row is of requests without a route.
    pub requests: Vec<Sums>,
    /// Requests among them that were answered before hyper saw them.
    pub fast: u64,
    /// Client connections that are open.
    pub connections: usize,
    /// Bytes in the cache.
    pub cache_bytes: u64,
    /// Objects in the cache, variants and notes included.
    pub cache_objects: usize,
    /// The cache's tier on disk.
    pub disk: DiskStats,
    /// Lines of the access log that couldn't be written.
    pub log_dropped: u64,
    /// All origins.
    pub origins: Vec<OriginStats>,
}

/// One origin of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginStats {
    /// The route's number.
    pub route: usize,
    /// Host and port, and the path before all others if it has one.
    pub name: String,
    /// It is left out for now.
    pub ejected: bool,
    /// Requests in progress there.
    pub in_flight: usize,
}

impl Stats {
    /// All requests of an outcome.
    pub fn total(&self, outcome: Outcome) -> u64 {
        self.requests.iter().map(|r| r[outcome as usize].count()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_count_for_themselves_and_sums_are_whole() {
        let c = Arc::new(Counters::new(2));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let c = c.clone();
                std::thread::spawn(move || {
                    (0..1000).for_each(|_| c.count(Some(1), Outcome::Hit, Duration::from_micros(250)));
                    c.count(None, Outcome::Refused, Duration::from_secs(11));
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        let sum = c.sum();
        let (hits, refused) = (sum[1][Outcome::Hit as usize], sum[2][Outcome::Refused as usize]);
        assert_eq!((hits.count(), hits.buckets[1], hits.sum), (4000, 4000, 1_000_000));
        assert_eq!((refused.count(), refused.buckets[BOUNDS.len()]), (4, 4));
        assert_eq!(sum[0], Sums::default());
    }

    #[test]
    fn numbers_are_those_of_the_list() {
        for (i, o) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*o as usize, i);
        }
    }
}
