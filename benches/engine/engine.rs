//! The engine's numbers: events across threads, timers, wake-up latency, wake-ups when idle.
//!
//! `cargo bench -p engine --bench engine [-- NAME…]`. Threads are pinned, everything that is compared is measured in the
//! same run, and each number is the median of several rounds with their spread.

use engine::wheel::{TimerKey, Wheel};
use engine::{Engine, GroupConfig, Handle, Next, ThreadId, once};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

fn main() {
    let names: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let wanted = |name: &str| names.is_empty() || names.iter().any(|n| name.contains(n.as_str()));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{cpus} CPUs");
    if wanted("imm") {
        across_threads(cpus, 1, 4_000_000);
        across_threads(cpus, 2, 4_000_000);
        same_thread(4_000_000);
    }
    if wanted("others") {
        for producers in [1, 2] {
            through_a_channel(cpus, producers, 4_000_000);
            through_a_lock(cpus, producers, 4_000_000);
        }
    }
    if wanted("memory") {
        memory(15_000);
    }
    if wanted("wakers") {
        wakers_across_threads(2_000_000);
    }
    if wanted("timers") {
        timers();
    }
    if wanted("latency") {
        latency(20_000);
    }
    if wanted("idle") {
        idle();
    }
}

/// Median, least and greatest of what `f` returns.
fn rounds(n: usize, mut f: impl FnMut() -> f64) -> (f64, f64, f64) {
    let mut all: Vec<f64> = (0..n).map(|_| f()).collect();
    all.sort_by(f64::total_cmp);
    (all[n / 2], all[0], all[n - 1])
}

fn report(name: &str, unit: &str, (median, least, most): (f64, f64, f64)) {
    println!("{name:<58} {median:>10.2} {unit:<12} ({least:.2} – {most:.2})");
}

fn pin(cpu: usize) {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu).expect("a CPU");
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).expect("to be pinned");
}

fn one_thread(cpu: Option<usize>) -> (Engine, Handle, ThreadId) {
    let config = GroupConfig { threads: 1, cpus: cpu.into_iter().collect(), ..GroupConfig::default() };
    let engine = Engine::builder().group("net", config).start().expect("an engine");
    let h = engine.handle();
    let thread = h.threads(h.group("net").expect("net"))[0];
    (engine, h, thread)
}

/// The continuation that is scheduled: it counts.
struct Count(Arc<Shared>);

#[repr(align(128))]
struct Shared {
    left: AtomicU64,
    done: mpsc::SyncSender<()>,
}

/// Events in flight at most, about: a producer that ran away would measure the allocator's page faults.
const WINDOW: u64 = 16 * 1024;

impl Shared {
    fn wait_for_room(&self, sent: u64, events: u64) {
        while sent % 1024 < 2 && sent > events - self.left.load(Ordering::Relaxed) + WINDOW {
            std::thread::yield_now(); // the consumer may share the CPU
        }
    }
}

impl engine::Continuation for Count {
    fn handle(&mut self, _: &mut engine::Context<'_>) -> Next {
        // One thread runs them all: a plain load and store is enough.
        let left = self.0.left.load(Ordering::Relaxed) - 1;
        self.0.left.store(left, Ordering::Relaxed);
        if left == 0 {
            self.0.done.send(()).expect("the bench waits");
        }
        Next::Done
    }
}

fn across_threads(cpus: usize, producers: u64, events: u64) {
    let result = rounds(5, || {
        let (_engine, h, thread) = one_thread(Some(0));
        let (done, all_done) = mpsc::sync_channel(1);
        let shared: &'static Arc<Shared> =
            Box::leak(Box::new(Arc::new(Shared { left: AtomicU64::new(events), done })));
        let start = Arc::new(std::sync::Barrier::new(producers as usize + 1));
        let threads: Vec<_> = (0..producers)
            .map(|n| {
                let (h, start) = (h.clone(), start.clone());
                std::thread::spawn(move || {
                    pin((1 + n as usize) % cpus);
                    start.wait();
                    for n in 0..events / producers {
                        shared.wait_for_room(n * producers, events);
                        h.schedule_imm(thread, |_: &mut engine::Context<'_>| {
                            let left = shared.left.load(Ordering::Relaxed) - 1;
                            shared.left.store(left, Ordering::Relaxed);
                            if left == 0 {
                                shared.done.send(()).expect("the bench waits");
                            }
                            Next::Done
                        });
                    }
                })
            })
            .collect();
        start.wait();
        let began = Instant::now();
        all_done.recv().expect("all events");
        let took = began.elapsed();
        threads.into_iter().for_each(|t| t.join().expect("a producer"));
        events as f64 / took.as_secs_f64() / 1e6
    });
    report(&format!("schedule_imm into one thread, {producers} producer(s)"), "M events/s", result);

    let result = rounds(5, || {
        let (_engine, h, thread) = one_thread(Some(0));
        let (done, all_done) = mpsc::sync_channel(1);
        let shared = Arc::new(Shared { left: AtomicU64::new(events), done });
        let threads: Vec<_> = (0..producers)
            .map(|n| {
                let (h, shared) = (h.clone(), shared.clone());
                std::thread::spawn(move || {
                    pin((1 + n as usize) % cpus);
                    for n in 0..events / producers {
                        shared.wait_for_room(n * producers, events);
                        h.schedule_imm(thread, Count(shared.clone()));
                    }
                })
            })
            .collect();
        let began = Instant::now();
        all_done.recv().expect("all events");
        let took = began.elapsed();
        threads.into_iter().for_each(|t| t.join().expect("a producer"));
        events as f64 / took.as_secs_f64() / 1e6
    });
    report(&format!("  the same, each holding an Arc that all share, {producers}"), "M events/s", result);
}

type Job = Box<dyn FnOnce() + Send>;

/// What `schedule_imm` would be on the standard library's channel: boxed closures to a thread that calls them.
fn through_a_channel(cpus: usize, producers: u64, events: u64) {
    let result = rounds(5, || {
        let (tx, rx) = mpsc::channel::<Job>();
        consume(
            cpus,
            producers,
            events,
            move |job| tx.send(job).expect("a consumer"),
            move || rx.recv().into_iter(),
        )
    });
    report(&format!("boxed closures through std's mpsc, {producers} producer(s)"), "M events/s", result);
}

/// The same with a lock and a condition variable; the consumer takes all there is at once.
fn through_a_lock(cpus: usize, producers: u64, events: u64) {
    let result = rounds(5, || {
        let shared = Arc::new((std::sync::Mutex::new(Vec::<Job>::new()), std::sync::Condvar::new()));
        let theirs = shared.clone();
        let push = move |job| {
            let mut queue = shared.0.lock().expect("a lock");
            queue.push(job);
            if queue.len() == 1 {
                shared.1.notify_one();
            }
        };
        let take = move || {
            let mut queue = theirs.0.lock().expect("a lock");
            while queue.is_empty() {
                queue = theirs.1.wait(queue).expect("a lock");
            }
            std::mem::take(&mut *queue).into_iter()
        };
        consume(cpus, producers, events, push, take)
    });
    report(&format!("boxed closures through a mutex, {producers} producer(s)"), "M events/s", result);
}

fn consume<I: Iterator<Item = Job>>(
    cpus: usize,
    producers: u64,
    events: u64,
    push: impl Fn(Job) + Clone + Send + 'static,
    mut take: impl FnMut() -> I + Send + 'static,
) -> f64 {
    let (done, all_done) = mpsc::sync_channel(1);
    let shared = Arc::new(Shared { left: AtomicU64::new(events), done });
    let consumer = std::thread::spawn(move || {
        pin(0);
        let mut left = events;
        while left > 0 {
            for job in take() {
                job();
                left -= 1;
            }
        }
    });
    let threads: Vec<_> = (0..producers)
        .map(|n| {
            let (push, shared) = (push.clone(), shared.clone());
            std::thread::spawn(move || {
                pin((1 + n as usize) % cpus);
                for n in 0..events / producers {
                    shared.wait_for_room(n * producers, events);
                    let shared = shared.clone();
                    push(Box::new(move || {
                        let left = shared.left.load(Ordering::Relaxed) - 1;
                        shared.left.store(left, Ordering::Relaxed);
                        if left == 0 {
                            shared.done.send(()).expect("the bench waits");
                        }
                    }));
                }
            })
        })
        .collect();
    let began = Instant::now();
    all_done.recv().expect("all events");
    let took = began.elapsed();
    threads.into_iter().for_each(|t| t.join().expect("a producer"));
    consumer.join().expect("the consumer");
    events as f64 / took.as_secs_f64() / 1e6
}

/// Resident memory of this process, in bytes.
fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<f64>().ok()).expect("pages") * 4096.0
}

/// What a parked connection costs the engine: a task that waits for a descriptor, with an idle timeout in the wheel.
fn memory(tasks: usize) {
    let (_engine, h, thread) = one_thread(None);
    let (tx, rx) = mpsc::channel();
    h.spawn_on(thread, move || async move {
        let before = resident();
        for _ in 0..tasks {
            let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
            let fd = rustix::event::eventfd(0, flags).expect("enough descriptors (ulimit -n)");
            engine::spawn(async move {
                let io = engine::io::Async::new(fd).expect("registered");
                let _ = engine::time::timeout(Duration::from_secs(60), io.readable()).await;
            });
        }
        engine::yield_now().await;
        engine::yield_now().await;
        let live = Handle::current().expect("here").stats()[0].tasks;
        tx.send((resident() - before) / live as f64).expect("the bench waits");
    });
    println!(
        "memory of one of {tasks} idle tasks with fd and timeout: {:.0} bytes",
        rx.recv().expect("a number")
    );
}

fn same_thread(events: u64) {
    let result = rounds(5, || {
        let (_engine, h, thread) = one_thread(Some(0));
        let (done, took) = mpsc::channel();
        let mut left = events;
        let mut began = None;
        h.schedule_imm(thread, move |_: &mut engine::Context<'_>| {
            let began = *began.get_or_insert_with(Instant::now);
            left -= 1;
            if left > 0 {
                return Next::Again;
            }
            done.send(began.elapsed()).expect("the bench waits");
            Next::Done
        });
        events as f64 / took.recv().expect("all events").as_secs_f64() / 1e6
    });
    report("one continuation again and again on its thread", "M events/s", result);

    let result = rounds(5, || {
        let (_engine, h, thread) = one_thread(Some(0));
        let (done, took) = mpsc::channel();
        h.spawn_on(thread, move || async move {
            let began = Instant::now();
            let count = std::rc::Rc::new(std::cell::Cell::new(0));
            let tasks: Vec<_> = (0..64)
                .map(|_| {
                    let count = count.clone();
                    engine::spawn(async move {
                        for _ in 0..events / 64 {
                            count.set(count.get() + 1);
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
        events as f64 / took.recv().expect("all polls").as_secs_f64() / 1e6
    });
    report("64 tasks yielding to each other", "M polls/s", result);
}

/// One task that is woken from another thread as fast as that can: wake-ups that coalesce.
fn wakers_across_threads(wakes: u64) {
    let result = rounds(5, || {
        let (_engine, h, thread) = one_thread(Some(0));
        let (tx, rx) = mpsc::channel();
        let event = h.spawn_on(thread, move || {
            std::future::poll_fn(move |cx: &mut std::task::Context<'_>| {
                let _ = tx.send(cx.waker().clone());
                std::task::Poll::<()>::Pending
            })
        });
        let waker = rx.recv().expect("a waker");
        drop(rx);
        pin(1 % std::thread::available_parallelism().map_or(1, usize::from));
        let began = Instant::now();
        for _ in 0..wakes {
            waker.wake_by_ref();
        }
        let took = began.elapsed();
        event.cancel();
        wakes as f64 / took.as_secs_f64() / 1e6
    });
    report("waking a task of another thread", "M wakes/s", result);
}

fn timers() {
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for live in [1_000usize, 1_000_000] {
        // Deadlines as of idle timeouts: anywhere within a minute.
        let mut wheel = Wheel::new(0);
        let mut keys: Vec<TimerKey> = (0..live).map(|n| wheel.insert(next() % 60_000, n as u64)).collect();
        const OPS: usize = 1_000_000;
        let result = rounds(5, || {
            let began = Instant::now();
            for _ in 0..OPS {
                let key = wheel.insert(next() % 60_000, 0);
                black_box(wheel.cancel(key));
            }
            began.elapsed().as_nanos() as f64 / OPS as f64
        });
        report(&format!("insert + cancel of one timer beside {live} live"), "ns", result);
        let result = rounds(5, || {
            let began = Instant::now();
            for _ in 0..OPS {
                let n = next() as usize % live;
                black_box(wheel.cancel(keys[n]));
                keys[n] = wheel.insert(next() % 60_000, 0);
            }
            began.elapsed().as_nanos() as f64 / OPS as f64
        });
        report(&format!("cancel a random one of {live}, insert another"), "ns", result);
        let result = rounds(5, || {
            let began = Instant::now();
            for _ in 0..OPS {
                let n = next() as usize % live;
                black_box(wheel.reset(keys[n], next() % 60_000));
            }
            began.elapsed().as_nanos() as f64 / OPS as f64
        });
        report(&format!("reset a random one of {live}"), "ns", result);
    }
    let result = rounds(5, || {
        let mut wheel = Wheel::new(0);
        for n in 0..1_000_000u64 {
            wheel.insert(next() % 60_000, n);
        }
        let began = Instant::now();
        let mut fired = 0;
        for now in 0..=60_000 {
            while wheel.pop(now).is_some() {
                fired += 1;
            }
        }
        assert_eq!(fired, 1_000_000);
        began.elapsed().as_nanos() as f64 / 1e6
    });
    report("firing each of 1,000,000, cascades included", "ns", result);
}

/// From scheduling to the call, into a thread that sleeps.
fn latency(samples: usize) {
    let (_engine, h, thread) = one_thread(Some(0));
    pin(1 % std::thread::available_parallelism().map_or(1, usize::from));
    let mut all = Vec::with_capacity(samples);
    let (tx, rx) = mpsc::channel();
    for _ in 0..samples {
        // Let it fall asleep.
        let until = Instant::now() + Duration::from_micros(150);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        let tx = tx.clone();
        let began = Instant::now();
        h.schedule_imm(thread, once(move || tx.send(began.elapsed()).expect("the bench waits")));
        all.push(rx.recv().expect("a sample").as_nanos() as f64 / 1000.0);
    }
    all.sort_by(f64::total_cmp);
    let at = |p: f64| all[(p * (samples - 1) as f64) as usize];
    println!(
        "wake-up of an idle thread: p50 {:.1} µs, p90 {:.1}, p99 {:.1}, least {:.1}",
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.0)
    );
}

fn idle() {
    let (_engine, h, _) = one_thread(None);
    std::thread::sleep(Duration::from_millis(100));
    let before = h.stats()[0].clone();
    std::thread::sleep(Duration::from_secs(2));
    let after = h.stats()[0].clone();
    println!("wake-ups of an idle thread in 2 s: {}", after.wakeups - before.wakeups);
}
