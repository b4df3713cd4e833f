//! What became of requests, counted by route: by each thread for itself, summed when somebody asks.

use crate::cache::disk::DiskStats;
use http::StatusCode;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

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
}

impl Outcome {
    /// All of them, in the order of their numbers.
    pub const ALL: [Outcome; 12] = [
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

/// The counters of one thread: one row a route, and one for requests without any.
type Row = [AtomicU64; Outcome::ALL.len()];

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

    /// Counts one request.
    pub fn count(&self, route: Option<usize>, outcome: Outcome) {
        let row = route.unwrap_or(self.routes).min(self.routes);
        MINE.with_borrow_mut(|mine| {
            let known = mine.iter().position(|(id, _)| *id == self.id);
            let i = known.unwrap_or_else(|| {
                let rows: Arc<[Row]> = (0..=self.routes).map(|_| Row::default()).collect();
                self.threads.lock().expect("never poisoned").push(rows.clone());
                mine.push((self.id, rows));
                mine.len() - 1
            });
            let counter = &mine[i].1[row][outcome as usize];
            // this thread alone writes it
            counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        });
    }

    /// Sums, by route; the last row is of requests without a route.
    pub fn sum(&self) -> Vec<[u64; Outcome::ALL.len()]> {
        let mut sums = vec![[0; Outcome::ALL.len()]; self.routes + 1];
        for rows in self.threads.lock().expect("never poisoned").iter() {
            for (sum, row) in sums.iter_mut().zip(rows.iter()) {
                for (n, c) in sum.iter_mut().zip(row) {
                    *n += c.load(Ordering::Relaxed);
                }
            }
        }
        sums
    }
}

/// The numbers of a proxy at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// By route, then by [`Outcome`] as number; the last row is of requests without a route.
    pub requests: Vec<[u64; Outcome::ALL.len()]>,
    /// Bytes in the cache.
    pub cache_bytes: u64,
    /// Objects in the cache, variants and notes included.
    pub cache_objects: usize,
    /// The cache's tier on disk.
    pub disk: DiskStats,
}

impl Stats {
    /// All requests of an outcome.
    pub fn total(&self, outcome: Outcome) -> u64 {
        self.requests.iter().map(|r| r[outcome as usize]).sum()
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
                    (0..1000).for_each(|_| c.count(Some(1), Outcome::Hit));
                    c.count(None, Outcome::Refused);
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        let sum = c.sum();
        assert_eq!((sum[1][Outcome::Hit as usize], sum[2][Outcome::Refused as usize]), (4000, 4));
        assert_eq!(sum[0], [0; Outcome::ALL.len()]);
    }

    #[test]
    fn numbers_are_those_of_the_list() {
        for (i, o) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*o as usize, i);
        }
    }
}
