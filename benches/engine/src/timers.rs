//! Timers: the wheel alone beside a thousand and a million live ones, and `sleep` as tasks use it, against tokio's.

use crate::table::{Goal, Sample, Table, in_turns, rounds};
use crate::tokio_thread::TokioThread;
use crate::{one_thread, pin};
use engine::wheel::{TimerKey, Wheel};
use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::sync::mpsc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

const OPS: usize = 1_000_000;
const ROUNDS: usize = 7;
const LIVE: [usize; 2] = [1_000, 1_000_000];
/// Deadlines as of idle timeouts: anywhere within a minute.
const SPAN_MS: u64 = 60_000;

/// xorshift: the same numbers in each run.
#[derive(Clone, Copy)]
struct Random(u64);

impl Random {
    const SEED: Random = Random(0x9e37_79b9_7f4a_7c15);

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

pub fn measure(table: &mut Table) {
    pin(0);
    let few = beside(LIVE[0]);
    let many = beside(LIVE[1]);
    table.row("wheel: insert + cancel beside 1,000 live timers", "ns", few, Goal::AtMost(200.0), None);
    let what = "wheel: insert + cancel beside 1,000,000";
    table.row(what, "ns", many, Goal::AtMost(200.0), Some(("beside 1,000; ≤ 2", few)));
    let few = replace(LIVE[0]);
    let many = replace(LIVE[1]);
    table.row("wheel: cancel a random one of 1,000, insert another", "ns", few, Goal::AtMost(200.0), None);
    let what = "wheel: cancel a random one of 1,000,000, insert another";
    table.row(what, "ns", many, Goal::AtMost(200.0), Some(("of 1,000 (all in cache)", few)));
    table.row("wheel: firing each of 1,000,000, cascades included", "ns", fire(), Goal::None, None);
    for live in LIVE {
        let (ours, theirs) = in_turns(3, || sleeps_on_engine(live), || sleeps_on_tokio(live));
        let what = format!("sleep: drop a random one of {live}, make and poll another");
        table.row(&what, "ns", ours, Goal::None, Some(("tokio", theirs)));
    }
}

fn filled(live: usize, random: &mut Random) -> (Wheel<u64>, Vec<TimerKey>) {
    let mut wheel = Wheel::new(0);
    let keys = (0..live).map(|n| wheel.insert(random.next() % SPAN_MS, n as u64)).collect();
    (wheel, keys)
}

fn beside(live: usize) -> Sample {
    let mut random = Random::SEED;
    let (mut wheel, _keys) = filled(live, &mut random);
    rounds(ROUNDS, || {
        let began = Instant::now();
        for _ in 0..OPS {
            let key = wheel.insert(random.next() % SPAN_MS, 0);
            black_box(wheel.cancel(key));
        }
        began.elapsed().as_nanos() as f64 / OPS as f64
    })
}

fn replace(live: usize) -> Sample {
    let mut random = Random::SEED;
    let (mut wheel, mut keys) = filled(live, &mut random);
    rounds(ROUNDS, || {
        let began = Instant::now();
        for _ in 0..OPS {
            let n = random.next() as usize % live;
            black_box(wheel.cancel(keys[n]));
            keys[n] = wheel.insert(random.next() % SPAN_MS, 0);
        }
        began.elapsed().as_nanos() as f64 / OPS as f64
    })
}

fn fire() -> Sample {
    let mut random = Random::SEED;
    rounds(ROUNDS, || {
        let (mut wheel, _keys) = filled(OPS, &mut random);
        let began = Instant::now();
        let fired: usize = (0..=SPAN_MS).map(|now| std::iter::from_fn(|| wheel.pop(now)).count()).sum();
        assert_eq!(fired, OPS);
        began.elapsed().as_nanos() as f64 / OPS as f64
    })
}

/// The same loop over anybody's sleeps.
fn churn<S: Future>(live: usize, mut make: impl FnMut(Duration) -> S) -> f64 {
    let mut random = Random::SEED;
    let mut cx = Context::from_waker(Waker::noop());
    let mut new = |random: &mut Random| -> Pin<Box<S>> {
        // Not within the time the bench takes: none may fire.
        let mut sleep = Box::pin(make(Duration::from_millis(600_000 + random.next() % SPAN_MS)));
        assert!(sleep.as_mut().poll(&mut cx).is_pending());
        sleep
    };
    let mut all: Vec<_> = (0..live).map(|_| new(&mut random)).collect();
    let began = Instant::now();
    for _ in 0..OPS {
        let n = random.next() as usize % live;
        all[n] = new(&mut random);
    }
    began.elapsed().as_nanos() as f64 / OPS as f64
}

fn sleeps_on_engine(live: usize) -> f64 {
    let (_engine, handle, thread) = one_thread(true);
    let (tx, rx) = mpsc::channel();
    handle.spawn_on(thread, move || async move {
        tx.send(churn(live, engine::time::sleep)).expect("the bench waits");
    });
    rx.recv().expect("a number")
}

fn sleeps_on_tokio(live: usize) -> f64 {
    let runtime = TokioThread::start();
    let (tx, rx) = mpsc::channel();
    runtime.handle.spawn(async move {
        tx.send(churn(live, tokio::time::sleep)).expect("the bench waits");
    });
    rx.recv().expect("a number")
}
