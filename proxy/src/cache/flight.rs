//! Many requests for the same, one fetch: the first one leads, the others wait for what becomes of it.
//!
//! A leader that is dropped (its client went away, its answer broke off) releases those who wait, so that nobody waits for
//! somebody who isn't there; one of them leads then. Nobody joins a fetch of what has been made invalid since it began. How
//! long they wait is for the caller to bound.

use super::held::Epoch;
use super::store::Key;
use http::StatusCode;
use std::collections::HashMap;
use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

const SHARDS: usize = 16;

/// What became of a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the store.
    Stored,
    /// It isn't, and won't be: everybody for himself.
    NotStored,
    /// Nobody knows, since who has asked doesn't go on: somebody else may.
    Gone,
    /// The origin failed; asking it again at once would do no good.
    Failed(StatusCode, String),
}

#[derive(Debug, Default)]
struct State {
    outcome: Option<Outcome>,
    wakers: Vec<Waker>,
}

#[derive(Debug)]
struct Flight {
    state: Mutex<State>,
    /// When it began: see `Cache::epoch`.
    epoch: Epoch,
}

type Shard = Mutex<HashMap<Key, Arc<Flight>>>;

/// All fetches in progress.
#[derive(Debug, Default)]
pub struct Flights {
    shards: [Shard; SHARDS],
    hash: RandomState,
}

/// One's part in a fetch.
#[derive(Debug)]
pub enum Part {
    /// Does it; owes the others its outcome.
    Lead(Leader),
    /// Waits for it.
    Follow(Follower),
}

/// Does a fetch for all; see [`Leader::done`].
#[derive(Debug)]
pub struct Leader {
    flights: Arc<Flights>,
    key: Key,
    flight: Arc<Flight>,
}

/// Waits for a fetch.
#[derive(Debug)]
pub struct Follower(Arc<Flight>);

impl Flights {
    fn shard(&self, key: &Key) -> &Shard {
        &self.shards[self.hash.hash_one(key) as usize % SHARDS]
    }

    /// Takes part in the fetch of `key`, if that has begun in this epoch; else begins one.
    pub fn join(self: &Arc<Self>, key: &Key, epoch: &Epoch) -> Part {
        let mut shard = self.shard(key).lock().expect("never poisoned");
        if let Some(flight) = shard.get(key).filter(|f| f.epoch.is(epoch)) {
            return Part::Follow(Follower(flight.clone()));
        }
        let flight = Arc::new(Flight { state: Mutex::default(), epoch: epoch.clone() });
        shard.insert(key.clone(), flight.clone());
        Part::Lead(Leader { flights: self.clone(), key: key.clone(), flight })
    }
}

impl Leader {
    /// Says what became of it, and makes room for the next one.
    pub fn done(self, outcome: Outcome) {
        self.settle(outcome);
    }

    fn settle(&self, outcome: Outcome) {
        // first out of the map, so that who wakes and finds nothing doesn't join what is over
        let mut shard = self.flights.shard(&self.key).lock().expect("never poisoned");
        if shard.get(&self.key).is_some_and(|f| Arc::ptr_eq(f, &self.flight)) {
            shard.remove(&self.key);
        }
        drop(shard);
        let mut state = self.flight.state.lock().expect("never poisoned");
        state.outcome.get_or_insert(outcome);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.settle(Outcome::Gone);
    }
}

impl Follower {
    /// Waits for the outcome.
    pub async fn wait(&self) -> Outcome {
        poll_fn(|cx| {
            let mut state = self.0.state.lock().expect("never poisoned");
            if let Some(outcome) = &state.outcome {
                return Poll::Ready(outcome.clone());
            }
            if !state.wakers.iter().any(|w| w.will_wake(cx.waker())) {
                state.wakers.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::held::Epochs;

    fn lead((f, e): &(Arc<Flights>, Epochs), key: &str) -> Leader {
        match f.join(&key.into(), &e.of(key)) {
            Part::Lead(l) => l,
            Part::Follow(_) => panic!("somebody leads already"),
        }
    }

    fn follow((f, e): &(Arc<Flights>, Epochs), key: &str) -> Follower {
        match f.join(&key.into(), &e.of(key)) {
            Part::Follow(w) => w,
            Part::Lead(_) => panic!("nobody leads"),
        }
    }

    #[test]
    fn one_leads_and_all_learn_the_outcome() {
        let f = <(Arc<Flights>, Epochs)>::default();
        let leader = lead(&f, "a");
        let others = [follow(&f, "a"), follow(&f, "a")];
        drop(lead(&f, "b"));
        leader.done(Outcome::Stored);
        for o in others {
            assert_eq!(engine::block_on(async move { o.wait().await }), Outcome::Stored);
        }
        drop(lead(&f, "a"));
    }

    #[test]
    fn a_leader_that_vanishes_releases_the_others() {
        let f = <(Arc<Flights>, Epochs)>::default();
        let leader = lead(&f, "a");
        let o = follow(&f, "a");
        drop(leader);
        assert_eq!(engine::block_on(async move { o.wait().await }), Outcome::Gone);
    }

    #[test]
    fn nobody_joins_what_began_before_it_was_made_invalid() {
        let f = <(Arc<Flights>, Epochs)>::default();
        let old = lead(&f, "a");
        f.1.next("b");
        drop(follow(&f, "a"));
        f.1.next("a");
        let new = lead(&f, "a");
        drop(old);
        drop(follow(&f, "a"));
        drop(new);
        drop(lead(&f, "a"));
    }
}
