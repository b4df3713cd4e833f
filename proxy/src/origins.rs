//! Which origin gets a request, and which one is down.
//!
//! Health is what requests themselves meet: after some failures in a row an origin is ejected for a while; when that is over,
//! one request tries it, and its outcome decides. Where an origin is checked (see [`crate::probes`]), what the checks meet is
//! counted apart: some that fail in a row leave it out, whatever it answers to requests, until one is good.

use crate::route::{Balance, Health};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// How long the one request that tries an ejected origin has for itself at least, in milliseconds; else as long as an ejection:
/// one that takes connections and says nothing gets no more requests by that.
const PROBE_MS: u64 = 1000;
/// The ejection doubles this many times at most.
const MAX_DOUBLINGS: u32 = 4;

/// What all threads know about one origin.
#[derive(Debug, Default)]
pub struct State {
    in_flight: AtomicUsize,
    /// In a row.
    failures: AtomicU32,
    /// In a row.
    ejections: AtomicU32,
    /// Milliseconds of the caller's clock; 0 is not ejected.
    ejected_until: AtomicU64,
    /// A request tries it, though its time isn't over for the others.
    tried: AtomicBool,
    /// Checks that failed, in a row.
    failed_checks: AtomicU32,
    /// They were enough to leave it out.
    unfit: AtomicBool,
}

/// A request in progress at an origin.
#[derive(Debug)]
pub struct InFlight(Arc<State>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The origins of a route. Times are milliseconds of one clock of the caller's.
#[derive(Debug)]
pub struct Origins {
    states: Vec<Arc<State>>,
    balance: Balance,
    health: Health,
    turn: AtomicUsize,
}

impl Origins {
    /// Of `n` origins, all of them good.
    pub fn new(n: usize, balance: Balance, health: Health) -> Origins {
        Origins {
            states: (0..n).map(|_| Arc::default()).collect(),
            balance,
            health,
            turn: AtomicUsize::new(0),
        }
    }

    /// Counts a request as long as what it returns lives.
    pub fn begin(&self, i: usize) -> InFlight {
        self.states[i].in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.states[i].clone())
    }

    /// The order in which the origins are to be tried now: ejected ones come last.
    pub fn order(&self, now: u64) -> Vec<usize> {
        let n = self.states.len();
        if n <= 1 {
            return (0..n).collect();
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut list: Vec<usize> = (0..n).map(|i| turn.wrapping_add(i) % n).collect();
        if self.balance == Balance::LeastConnections {
            // stable: of equals the one whose turn it is
            list.sort_by_key(|&i| self.states[i].in_flight.load(Ordering::Relaxed));
        }
        let ejected = |i: &usize| self.states[*i].is_out();
        let (bad, mut order): (Vec<usize>, Vec<usize>) = list.into_iter().partition(ejected);
        order.extend(&bad);
        // one whose time is over gets this request, and no other one for a while
        let probe_ends = now + PROBE_MS.max(self.health.eject.as_millis() as u64);
        if let Some(&probe) = bad.iter().find(|&&i| self.states[i].claims_probe(now, probe_ends)) {
            order.retain(|&i| i != probe);
            order.insert(0, probe);
        }
        order
    }

    /// Which one is tried first, if there is nothing the matter with any of them.
    pub(crate) fn any(&self) -> Option<usize> {
        let n = self.states.len();
        let matters =
            |s: &Arc<State>| s.failures.load(Ordering::Relaxed) != 0 || s.unfit.load(Ordering::Relaxed);
        if n == 0 || self.states.iter().any(matters) {
            return None;
        }
        if n == 1 {
            return Some(0);
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let all = (0..n).map(|i| turn.wrapping_add(i) % n);
        match self.balance {
            Balance::RoundRobin => Some(turn % n),
            // the first of equals
            Balance::LeastConnections => {
                all.min_by_key(|&i| self.states[i].in_flight.load(Ordering::Relaxed))
            }
        }
    }

    /// An origin has answered.
    pub fn good(&self, i: usize) {
        let s = &self.states[i];
        // the usual case writes nothing to a shared line
        if s.failures.load(Ordering::Relaxed) != 0 {
            s.failures.store(0, Ordering::Relaxed);
            s.ejections.store(0, Ordering::Relaxed);
            s.ejected_until.store(0, Ordering::Relaxed);
        }
    }

    /// An origin has failed. True if it is ejected by that.
    pub fn bad(&self, i: usize, now: u64) -> bool {
        let s = &self.states[i];
        let failures = s.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures < self.health.failures || self.states.len() < 2 {
            return false;
        }
        // what was in progress when it was ejected breaks off with it, and is no reason to wait longer
        if s.ejected_until.load(Ordering::Relaxed) > now && !s.tried.swap(false, Ordering::Relaxed) {
            return false;
        }
        let doublings = s.ejections.fetch_add(1, Ordering::Relaxed).min(MAX_DOUBLINGS);
        let until = now + ((self.health.eject.as_millis() as u64).max(1) << doublings);
        s.ejected_until.store(until, Ordering::Relaxed);
        true
    }

    /// A check of an origin was good: whatever there was is over.
    pub fn fit(&self, i: usize) {
        let s = &self.states[i];
        s.failed_checks.store(0, Ordering::Relaxed);
        s.unfit.store(false, Ordering::Relaxed);
        self.good(i);
    }

    /// A check of an origin has failed.
    pub fn unfit(&self, i: usize) {
        let s = &self.states[i];
        let failed = s.failed_checks.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failed >= self.health.failures && self.states.len() >= 2 {
            s.unfit.store(true, Ordering::Relaxed);
        }
    }

    /// Requests in progress at the origin.
    pub fn in_flight(&self, i: usize) -> usize {
        self.states[i].in_flight.load(Ordering::Relaxed)
    }

    /// True if the origin is left out at that time.
    pub fn is_ejected(&self, i: usize, now: u64) -> bool {
        let s = &self.states[i];
        s.unfit.load(Ordering::Relaxed) || s.ejected_until.load(Ordering::Relaxed) > now
    }
}

impl State {
    fn is_out(&self) -> bool {
        self.unfit.load(Ordering::Relaxed) || self.ejected_until.load(Ordering::Relaxed) != 0
    }

    /// Its time is over, and this very request is the one that tries it again; until then no other does.
    fn claims_probe(&self, now: u64, probe_ends: u64) -> bool {
        if self.unfit.load(Ordering::Relaxed) {
            return false;
        }
        let until = self.ejected_until.load(Ordering::Relaxed);
        let claim =
            || self.ejected_until.compare_exchange(until, probe_ends, Ordering::Relaxed, Ordering::Relaxed);
        let claimed = until != 0 && until <= now && claim().is_ok();
        if claimed {
            self.tried.store(true, Ordering::Relaxed);
        }
        claimed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn origins(n: usize, balance: Balance) -> Origins {
        Origins::new(n, balance, Health { failures: 2, eject: Duration::from_millis(100) })
    }

    #[test]
    fn in_turn() {
        let o = origins(3, Balance::RoundRobin);
        let firsts: Vec<usize> = (0..6).map(|_| o.order(0)[0]).collect();
        assert_eq!(firsts, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn the_least_busy_one_first() {
        let o = origins(2, Balance::LeastConnections);
        let a = o.begin(0);
        assert_eq!([o.order(0)[0], o.order(0)[0]], [1, 1]);
        drop(a);
        let _b = o.begin(1);
        assert_eq!([o.order(0)[0], o.order(0)[0]], [0, 0]);
    }

    #[test]
    fn failures_eject_and_one_probe_decides() {
        let o = origins(2, Balance::RoundRobin);
        assert!(!o.bad(0, 10) && o.bad(0, 10));
        for t in [10, 50, 109] {
            assert_eq!(o.order(t), [1, 0]);
        }
        // its time is over: one request tries it, others don't wait for that
        let first: Vec<usize> = (0..4).map(|_| o.order(110)[0]).collect();
        assert_eq!(first.iter().filter(|&&i| i == 0).count(), 1, "{first:?}");
        // it fails again: twice as long
        assert!(o.bad(0, 120));
        assert!(o.is_ejected(0, 319) && !o.is_ejected(0, 320));
        o.good(0);
        assert!(!o.is_ejected(0, 121));
        assert!(!o.bad(0, 121), "it begins anew");
    }

    #[test]
    fn one_that_says_nothing_gets_one_request_for_each_ejection() {
        let health = Health { failures: 1, eject: Duration::from_secs(5) };
        let o = Origins::new(2, Balance::RoundRobin, health);
        assert!(o.bad(0, 10));
        let tried: Vec<u64> = (0..16_000).step_by(100).filter(|&t| o.order(t)[0] == 0).collect();
        assert_eq!(tried, [5100, 10_100, 15_100]);
    }

    #[test]
    fn what_breaks_off_with_it_ejects_it_once() {
        let o = origins(2, Balance::RoundRobin);
        assert!(!o.bad(0, 10) && o.bad(0, 10));
        assert!((10..18).all(|t| !o.bad(0, t)));
        assert!(o.is_ejected(0, 109) && !o.is_ejected(0, 110));
        // also of what tries it
        assert!((0..2).any(|_| o.order(110)[0] == 0) && o.bad(0, 111));
        assert!((111..120).all(|t| !o.bad(0, t)));
        assert!(o.is_ejected(0, 310) && !o.is_ejected(0, 311));
    }

    #[test]
    fn checks_decide_whatever_requests_meet() {
        let o = origins(2, Balance::RoundRobin);
        for _ in 0..2 {
            o.unfit(0);
            o.good(0);
        }
        assert!(o.is_ejected(0, 1_000_000) && o.any().is_none());
        assert!((0..10).all(|t| o.order(t) == [1, 0]), "no client tries it");
        o.fit(0);
        assert!(!o.is_ejected(0, 0) && o.any().is_some());
        assert!(!o.bad(0, 10) && o.bad(0, 10));
        o.fit(0);
        assert!(!o.is_ejected(0, 11));
    }

    #[test]
    fn the_only_origin_is_never_ejected() {
        let o = origins(1, Balance::RoundRobin);
        assert!((0..10).all(|_| !o.bad(0, 0)));
        (0..10).for_each(|_| o.unfit(0));
        assert!(!o.is_ejected(0, 0));
        assert_eq!(o.order(0), [0]);
    }
}
