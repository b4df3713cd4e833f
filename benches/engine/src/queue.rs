//! Events from other threads into one: `schedule_imm` against tokio's spawn and against std's channel.

use crate::table::{Goal, Table, in_turns};
use crate::tokio_thread::TokioThread;
use crate::{one_thread, pin};
use engine::{Context, Next};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::Instant;

const EVENTS: u64 = 2_000_000;
const ROUNDS: usize = 9;
/// Events in flight at most, about: a producer that ran away would measure the allocator's page faults.
const WINDOW: u64 = 16 * 1024;

pub fn measure(table: &mut Table) {
    for (producers, goal) in [(1, 5.0), (2, 3.0)] {
        let (ours, theirs) = in_turns(ROUNDS, || through_engine(producers), || through_tokio(producers));
        let what = format!("schedule_imm into one thread, {producers} producer(s)");
        let other = Some(("tokio, Handle::spawn", theirs));
        table.row(&what, "M events/s", ours, Goal::AtLeast(goal), other);
        let (ours, theirs) = in_turns(ROUNDS, || through_engine(producers), || through_channel(producers));
        table.row(
            "the same",
            "M events/s",
            ours,
            Goal::None,
            Some(("boxed closures through std's mpsc", theirs)),
        );
    }
    let (ours, theirs) = in_turns(ROUNDS, yields_on_engine, yields_on_tokio);
    table.row("64 tasks yielding to each other", "M polls/s", ours, Goal::None, Some(("tokio", theirs)));
}

/// Events that are still to come. One thread counts down: a plain load and store is enough.
#[repr(align(128))]
struct Left {
    left: AtomicU64,
    done: mpsc::SyncSender<()>,
}

impl Left {
    fn one(&self) {
        let left = self.left.load(Ordering::Relaxed) - 1;
        self.left.store(left, Ordering::Relaxed);
        if left == 0 {
            self.done.send(()).expect("the bench waits");
        }
    }

    fn wait_for_room(&self, sent: u64) {
        while sent % 1024 < 2 && sent > EVENTS - self.left.load(Ordering::Relaxed) + WINDOW {
            std::thread::yield_now(); // the consumer may share the CPU
        }
    }
}

/// Runs the producers, each on a CPU of its own as far as there are, and says how many million events came per second.
fn produce<S: Fn(&'static Left) + Clone + Send + 'static>(producers: u64, send: S) -> f64 {
    let (done, all_done) = mpsc::sync_channel(1);
    // Leaked: a count shared by all events would be what is measured.
    let left: &'static Left = Box::leak(Box::new(Left { left: AtomicU64::new(EVENTS), done }));
    let start = Arc::new(Barrier::new(producers as usize + 1));
    let threads: Vec<_> = (0..producers as usize)
        .map(|n| {
            let (send, start) = (send.clone(), start.clone());
            std::thread::spawn(move || {
                pin(1 + n);
                start.wait();
                for n in 0..EVENTS / producers {
                    left.wait_for_room(n * producers);
                    send(left);
                }
            })
        })
        .collect();
    start.wait();
    let began = Instant::now();
    all_done.recv().expect("all events");
    let took = began.elapsed();
    threads.into_iter().for_each(|t| t.join().expect("a producer"));
    EVENTS as f64 / took.as_secs_f64() / 1e6
}

fn through_engine(producers: u64) -> f64 {
    let (_engine, handle, thread) = one_thread(true);
    produce(producers, move |left| {
        handle.schedule_imm(thread, move |_: &mut Context<'_>| {
            left.one();
            Next::Done
        });
    })
}

fn through_tokio(producers: u64) -> f64 {
    let runtime = TokioThread::start();
    let handle = runtime.handle.clone();
    produce(producers, move |left| {
        handle.spawn(async move { left.one() });
    })
}

fn through_channel(producers: u64) -> f64 {
    type Job = Box<dyn FnOnce() + Send>;
    let (tx, rx) = mpsc::channel::<Job>();
    std::thread::spawn(move || {
        pin(0);
        rx.into_iter().for_each(|job| job());
    });
    produce(producers, move |left| tx.send(Box::new(move || left.one())).expect("a consumer"))
}

const TASKS: u64 = 64;

fn yields_on_engine() -> f64 {
    let (_engine, handle, thread) = one_thread(true);
    let (done, took) = mpsc::channel();
    handle.spawn_on(thread, move || async move {
        let began = Instant::now();
        let tasks: Vec<_> = (0..TASKS)
            .map(|_| {
                engine::spawn(async {
                    for _ in 0..EVENTS / TASKS {
                        engine::yield_now().await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("a task");
        }
        done.send(began.elapsed()).expect("the bench waits");
    });
    EVENTS as f64 / took.recv().expect("all polls").as_secs_f64() / 1e6
}

fn yields_on_tokio() -> f64 {
    let thread = std::thread::spawn(|| {
        pin(0);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let began = Instant::now();
            let tasks: Vec<_> = (0..TASKS)
                .map(|_| {
                    tokio::spawn(async {
                        for _ in 0..EVENTS / TASKS {
                            tokio::task::yield_now().await;
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.expect("a task");
            }
            began.elapsed()
        })
    });
    EVENTS as f64 / thread.join().expect("all polls").as_secs_f64() / 1e6
}
