//! The engine as its users see it: scheduling, cancelling, futures, shutdown.

use engine::{Context, Engine, GroupConfig, Next, once, time};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(20);

fn two_threads() -> Engine {
    Engine::builder()
        .group("net", GroupConfig { threads: 2, ..GroupConfig::default() })
        .group("task", GroupConfig { threads: 1, max_queue: 2, ..GroupConfig::default() })
        .start()
        .expect("an engine")
}

#[test]
fn immediate_events_run_in_order_on_their_thread() {
    let engine = two_threads();
    let h = engine.handle();
    let net = h.group("net").expect("net");
    let thread = h.threads(net)[1];
    let (tx, rx) = mpsc::channel();
    for n in 0..1000 {
        let tx = tx.clone();
        h.schedule_imm(
            thread,
            once(move || tx.send((n, std::thread::current().name().map(str::to_owned))).unwrap()),
        );
    }
    for n in 0..1000 {
        assert_eq!(rx.recv_timeout(LONG).unwrap(), (n, Some("net-1".to_owned())));
    }
}

#[test]
fn each_thread_keeps_what_it_has_begun_with_until_its_end() {
    struct Says(mpsc::Sender<String>, String);
    impl Says {
        fn say(&self, what: &str) {
            let thread = std::thread::current().name().map(str::to_owned).unwrap_or_default();
            self.0.send(format!("{what} {} in {thread}", self.1)).unwrap();
        }
    }
    impl Drop for Says {
        fn drop(&mut self) {
            self.say("end");
        }
    }
    let (tx, rx) = mpsc::channel();
    let engine = Engine::builder()
        .group("net", GroupConfig { threads: 2, ..GroupConfig::default() })
        .group("task", GroupConfig::default())
        .on_thread_start(move |group| {
            let says = Says(tx.clone(), group.to_owned());
            says.say("begin");
            says
        })
        .start()
        .unwrap();
    let three = || (0..3).map(|_| rx.recv_timeout(LONG).unwrap()).collect::<std::collections::BTreeSet<_>>();
    let said =
        |what: &str| ["net in net-0", "net in net-1", "task in task-0"].map(|w| format!("{what} {w}")).into();
    assert_eq!(three(), said("begin"));
    assert!(rx.try_recv().is_err(), "they live");
    drop(engine);
    assert_eq!(three(), said("end"));
}

#[test]
fn a_group_takes_turns() {
    let engine = two_threads();
    let h = engine.handle();
    let (tx, rx) = mpsc::channel();
    for _ in 0..2 {
        let tx = tx.clone();
        let net = h.group("net").unwrap();
        h.schedule_imm(net, move |cx: &mut Context<'_>| {
            tx.send(cx.thread()).unwrap();
            Next::Done
        });
    }
    assert_ne!(rx.recv_timeout(LONG).unwrap(), rx.recv_timeout(LONG).unwrap());
    assert!(h.group("nobody").is_none());
}

#[test]
fn timers_come_in_order_and_never_early() {
    let engine = two_threads();
    let h = engine.handle();
    let net = h.threads(h.group("net").unwrap())[0];
    let (tx, rx) = mpsc::channel();
    let began = Instant::now();
    // From the thread itself and from one base: all three stand in the wheel before the first is looked for, however late.
    h.schedule_imm(net, move |cx: &mut Context<'_>| {
        for ms in [30, 10, 20] {
            let tx = tx.clone();
            let tell = once(move || tx.send((ms, began.elapsed())).unwrap());
            cx.handle().schedule_at(cx.thread(), began + Duration::from_millis(ms), tell);
        }
        Next::Done
    });
    for ms in [10, 20, 30] {
        let (which, at) = rx.recv_timeout(LONG).unwrap();
        assert_eq!(which, ms);
        assert!(at >= Duration::from_millis(ms));
    }
}

#[test]
fn a_continuation_says_what_is_next() {
    let engine = two_threads();
    let h = engine.handle();
    let (tx, rx) = mpsc::channel();
    let mut step = 0;
    h.schedule_imm(h.group("net").unwrap(), move |_: &mut Context<'_>| {
        step += 1;
        tx.send(step).unwrap();
        match step {
            1 => Next::Again,
            2 => Next::After(Duration::from_millis(1)),
            _ => Next::Done,
        }
    });
    for n in 1..=3 {
        assert_eq!(rx.recv_timeout(LONG).unwrap(), n);
    }
    // Its sender is dropped with it.
    assert_eq!(rx.recv_timeout(LONG), Err(mpsc::RecvTimeoutError::Disconnected));
}

#[test]
fn a_periodic_event_goes_on_until_it_is_cancelled() {
    let engine = two_threads();
    let h = engine.handle();
    let (tx, rx) = mpsc::channel();
    let event =
        h.schedule_every(h.group("net").unwrap(), Duration::from_millis(2), move |_: &mut Context<'_>| {
            tx.send(()).unwrap();
            Next::Wait
        });
    for _ in 0..3 {
        rx.recv_timeout(LONG).unwrap();
    }
    event.cancel();
    while rx.recv_timeout(LONG).is_ok() {}
    assert!(event.is_over());
    assert!(!event.cancel());
}

#[test]
fn a_cancelled_event_is_dropped_and_not_called() {
    let engine = two_threads();
    let h = engine.handle();
    let (tx, rx) = mpsc::channel::<()>();
    let event =
        h.schedule_in(h.group("net").unwrap(), Duration::from_secs(3600), once(move || tx.send(()).unwrap()));
    assert!(event.cancel());
    assert!(!event.cancel());
    assert_eq!(rx.recv_timeout(LONG), Err(mpsc::RecvTimeoutError::Disconnected));
}

#[test]
fn cancelling_races_with_the_call_and_exactly_one_wins() {
    let engine = two_threads();
    let h = engine.handle();
    let net = h.group("net").unwrap();
    let called = Arc::new(AtomicUsize::new(0));
    let mut prevented = 0;
    let all = 20_000;
    for _ in 0..all {
        let called = called.clone();
        let event = h.schedule_imm(
            net,
            once(move || {
                called.fetch_add(1, Ordering::Relaxed);
            }),
        );
        prevented += usize::from(event.cancel());
    }
    let report = engine.shutdown(LONG);
    assert!(report.drained);
    assert_eq!(called.load(Ordering::Relaxed) + prevented, all);
}

#[test]
fn a_panic_ends_its_continuation_and_not_its_thread() {
    let engine = two_threads();
    let h = engine.handle();
    let thread = h.threads(h.group("net").unwrap())[0];
    h.schedule_imm(thread, once(|| panic!("as the test wants it")));
    h.spawn_on(thread, || async { panic!("as the test wants it") });
    let (tx, rx) = mpsc::channel();
    h.spawn_on(thread, move || async move {
        let joined = engine::spawn(async { panic!("as the test wants it") }).await;
        tx.send(joined).unwrap();
    });
    assert_eq!(rx.recv_timeout(LONG).unwrap(), Err::<(), _>(engine::JoinError::Panicked));
    assert_eq!(h.stats()[0].panics, 3);
}

#[test]
fn the_least_loaded_thread_gets_what_a_group_is_given() {
    let config =
        GroupConfig { threads: 2, placement: engine::Placement::LeastLoaded, ..GroupConfig::default() };
    let engine = Engine::builder().group("net", config).start().unwrap();
    let h = engine.handle();
    let net = h.group("net").unwrap();
    let busy = h.threads(net)[0];
    let (begun, has_begun) = mpsc::channel();
    let (release, hold) = mpsc::channel::<()>();
    h.schedule_imm(busy, once(move || (begun.send(()).unwrap(), hold.recv().unwrap()).0));
    has_begun.recv_timeout(LONG).unwrap();
    // They wait where nobody has looked yet.
    for _ in 0..3 {
        h.schedule_imm(busy, once(|| ()));
    }
    let (tx, rx) = mpsc::channel();
    for _ in 0..10 {
        let tx = tx.clone();
        h.schedule_imm(net, move |cx: &mut Context<'_>| {
            tx.send(cx.thread()).unwrap();
            Next::Done
        });
        assert_eq!(rx.recv_timeout(LONG), Ok(h.threads(net)[1]));
    }
    release.send(()).unwrap();
    assert!(engine.shutdown(LONG).drained);
}

#[test]
fn the_queue_is_counted_and_an_idle_thread_has_none() {
    let engine = two_threads();
    let h = engine.handle();
    let thread = h.threads(h.group("net").unwrap())[0];
    let (tx, rx) = mpsc::channel();
    let (release, hold) = mpsc::channel::<()>();
    let (begun, has_begun) = mpsc::channel();
    h.schedule_imm(thread, once(move || (begun.send(()).unwrap(), hold.recv().unwrap()).0));
    has_begun.recv_timeout(LONG).unwrap();
    for _ in 0..7 {
        h.schedule_imm(thread, once(|| ()));
    }
    h.schedule_imm(thread, once(move || tx.send(()).unwrap()));
    release.send(()).unwrap();
    rx.recv_timeout(LONG).unwrap();
    let deadline = Instant::now() + LONG;
    while h.stats()[0].queue > 0 {
        assert!(Instant::now() < deadline, "{:?}", h.stats()[0]);
        std::thread::yield_now();
    }
    assert_eq!(h.stats()[0].queue_high, 8);
}

#[test]
fn who_wakes_itself_gives_way_and_is_counted() {
    let engine = two_threads();
    let h = engine.handle();
    let (tx, rx) = mpsc::channel();
    h.spawn_on(h.threads(h.group("net").unwrap())[0], move || async move {
        for _ in 0..5 {
            engine::yield_now().await;
        }
        tx.send(()).unwrap();
    });
    rx.recv_timeout(LONG).unwrap();
    assert_eq!(h.stats()[0].yields, 5);
}

#[test]
fn futures_are_spawned_joined_aborted_and_woken_from_elsewhere() {
    let engine = two_threads();
    let h = engine.handle();
    let threads = h.threads(h.group("net").unwrap());
    let (tx, rx) = mpsc::channel();
    let other = threads[1];
    let h2 = h.clone();
    h.spawn_on(threads[0], move || async move {
        let not_send = std::rc::Rc::new(7);
        let joined = engine::spawn(async move { *not_send + 1 }).await;
        let forever = engine::spawn(std::future::pending::<()>());
        forever.abort();
        let aborted = forever.await;
        // A waker used on another thread.
        let (wake_tx, wake_rx) = mpsc::channel();
        let mut first = true;
        std::future::poll_fn(move |cx| {
            if std::mem::replace(&mut first, false) {
                wake_tx.send(cx.waker().clone()).unwrap();
                return std::task::Poll::Pending;
            }
            std::task::Poll::Ready(())
        })
        .await_with(|| {
            h2.schedule_imm(other, once(move || wake_rx.recv().unwrap().wake()));
        })
        .await;
        tx.send((joined, aborted)).unwrap();
    });
    let (joined, aborted) = rx.recv_timeout(LONG).unwrap();
    assert_eq!(joined, Ok(8));
    assert_eq!(aborted, Err(engine::JoinError::Cancelled));
}

trait AwaitWith: Sized {
    /// Does something at the first poll.
    fn await_with(self, first: impl FnOnce()) -> impl Future<Output = ()>;
}

impl<F: Future<Output = ()>> AwaitWith for F {
    async fn await_with(self, first: impl FnOnce()) {
        first();
        self.await
    }
}

#[test]
fn block_on_is_a_whole_engine_on_one_thread() {
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let value = engine::block_on(async {
        let began = Instant::now();
        let sleeper = engine::spawn(async { time::sleep(Duration::from_millis(5)).await });
        let timed = time::timeout(Duration::from_millis(2), std::future::pending::<()>()).await;
        assert_eq!(timed, Err(time::Elapsed));
        sleeper.await.unwrap();
        assert!(began.elapsed() >= Duration::from_millis(5));
        assert_eq!(engine::blocking::run(|| ()).await, Err(engine::blocking::Refused::NoGroup));
        assert!(threads() >= 1);
        42
    });
    assert_eq!(value, 42);
}

#[test]
fn a_sleep_can_be_set_again() {
    engine::block_on(async {
        let began = Instant::now();
        let mut sleep = time::sleep(Duration::from_secs(3600));
        let poll = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(Future::poll(std::pin::Pin::new(&mut sleep), cx))
        })
        .await;
        assert!(poll.is_pending());
        sleep.reset(began + Duration::from_millis(3));
        (&mut sleep).await;
        assert!(began.elapsed() >= Duration::from_millis(3));
        sleep.reset(Instant::now() + Duration::from_millis(2));
        sleep.await;
        assert!(began.elapsed() >= Duration::from_millis(5));
    });
}

#[test]
fn bounded_events_are_refused_when_the_queue_is_full() {
    let engine = two_threads();
    let h = engine.handle();
    let task = h.group("task").unwrap();
    let (release, hold) = mpsc::channel::<()>();
    let (begun_tx, begun) = mpsc::channel();
    h.schedule_imm(
        task,
        once(move || {
            begun_tx.send(()).unwrap();
            hold.recv().unwrap();
        }),
    );
    begun.recv_timeout(LONG).unwrap();
    let (tx, rx) = mpsc::channel();
    for _ in 0..2 {
        let tx = tx.clone();
        h.try_schedule_imm(task, once(move || tx.send(()).unwrap())).unwrap();
    }
    assert_eq!(h.try_schedule_imm(task, once(|| ())).unwrap_err(), engine::QueueFull);
    release.send(()).unwrap();
    for _ in 0..2 {
        rx.recv_timeout(LONG).unwrap();
    }
    h.try_schedule_imm(task, once(|| ())).unwrap();
}

#[test]
fn blocking_work_is_bounded_and_comes_back() {
    let engine = two_threads();
    let h = engine.handle();
    let (tx, rx) = mpsc::channel();
    let (release, hold) = mpsc::channel::<()>();
    h.spawn_on(h.group("net").unwrap(), move || async move {
        let (begun_tx, begun) = mpsc::channel();
        let first = engine::spawn(engine::blocking::run(move || {
            begun_tx.send(()).unwrap();
            hold.recv().unwrap();
            std::thread::current().name().map(str::to_owned)
        }));
        while begun.try_recv().is_err() {
            engine::yield_now().await;
        }
        let waiting =
            [engine::spawn(engine::blocking::run(|| 2)), engine::spawn(engine::blocking::run(|| 3))];
        while engine::blocking::waiting(&engine::Handle::current().unwrap()) < 2 {
            engine::yield_now().await;
        }
        let refused = engine::blocking::run(|| 4).await;
        release.send(()).unwrap();
        let name = first.await.unwrap();
        let mut rest = Vec::new();
        for job in waiting {
            rest.push(job.await.unwrap());
        }
        let panicked = engine::blocking::run(|| panic!("as the test wants it")).await;
        tx.send((refused, name, rest, panicked)).unwrap();
    });
    let (refused, name, rest, panicked) = rx.recv_timeout(LONG).unwrap();
    assert_eq!(refused, Err(engine::blocking::Refused::Full));
    assert_eq!(name, Ok(Some("task-0".to_owned())));
    assert_eq!(rest, [Ok(2), Ok(3)]);
    assert_eq!(panicked, Err::<(), _>(engine::blocking::Refused::Panicked));
    assert_eq!(h.stats()[2].panics, 1);
}

#[test]
fn shutdown_drains_and_cancels_the_rest() {
    let engine = two_threads();
    let h = engine.handle();
    let net = h.group("net").unwrap();
    let (tx, rx) = mpsc::channel();
    let polite = tx.clone();
    h.spawn_on(net, move || async move {
        polite.send("began").unwrap();
        engine::draining().await;
        polite.send("finished").unwrap();
    });
    assert_eq!(rx.recv_timeout(LONG).unwrap(), "began");
    assert!(engine.shutdown(LONG).drained);
    assert_eq!(rx.recv_timeout(LONG).unwrap(), "finished");

    let engine = two_threads();
    let h = engine.handle();
    let begun = tx.clone();
    h.spawn_on(h.group("net").unwrap(), move || async move {
        begun.send("began").unwrap();
        std::future::pending::<()>().await;
    });
    assert_eq!(rx.recv_timeout(LONG).unwrap(), "began");
    let report = engine.shutdown(Duration::from_millis(1));
    assert!(!report.drained);
    assert_eq!(report.cancelled, 1);
    // After the end nothing is taken any more.
    assert!(h.schedule_imm(h.group("net").unwrap(), once(|| ())).is_over());
}

#[test]
fn continuations_hold_up_a_drain_and_periodic_events_do_not() {
    let engine = two_threads();
    let h = engine.handle();
    let net = h.group("net").unwrap();
    h.schedule_every(net, Duration::from_millis(1), |_: &mut Context<'_>| Next::Wait);
    h.schedule_in(net, Duration::from_secs(3600), once(|| ()));
    let (tx, rx) = mpsc::channel();
    let mut calls = 0;
    h.schedule_imm(net, move |_: &mut Context<'_>| {
        calls += 1;
        tx.send(calls).unwrap();
        if calls < 3 { Next::After(Duration::from_millis(5)) } else { Next::Done }
    });
    assert_eq!(rx.recv_timeout(LONG), Ok(1));
    let report = engine.shutdown(LONG);
    assert!(report.drained);
    assert_eq!(report.cancelled, 2);
    assert_eq!(rx.iter().collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn the_pulse_page_tells_idle_from_stalled() {
    use policy::pulse::Doing;
    use std::os::unix::fs::FileExt;
    struct Stall(mpsc::Sender<()>, mpsc::Receiver<()>);
    impl engine::Continuation for Stall {
        fn handle(&mut self, _: &mut Context<'_>) -> Next {
            self.0.send(()).unwrap();
            self.1.recv().unwrap();
            Next::Done
        }
        fn name(&self) -> &'static str {
            "a stalled continuation"
        }
    }
    let engine = two_threads();
    let h = engine.handle();
    let page = std::fs::File::from(engine.pulse().try_clone_to_owned().unwrap());
    let thread = h.threads(h.group("net").unwrap())[1];
    let (begun_tx, begun) = mpsc::channel();
    let (release, hold) = mpsc::channel();
    h.schedule_imm(thread, Stall(begun_tx, hold));
    begun.recv_timeout(LONG).unwrap();
    let stalled = || {
        let mut bytes = vec![0; page.metadata().unwrap().len() as usize];
        page.read_exact_at(&mut bytes, 0).unwrap();
        policy::pulse::decode(&bytes).unwrap().swap_remove(1)
    };
    assert_eq!(stalled().thread, "net-1");
    let until = Instant::now() + LONG;
    while stalled().busy_for(engine::pulse::monotonic_ms()) < Duration::from_millis(5) {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
    assert_eq!(stalled().doing, Doing::Calling("a stalled continuation".into()));
    let ticks = stalled().ticks;
    release.send(()).unwrap();
    while stalled().doing != Doing::Idle {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
    assert_ne!(stalled().ticks, ticks);
    assert_eq!(stalled().busy_for(engine::pulse::monotonic_ms() + 1000), Duration::ZERO);
    drop(engine);
    assert_eq!(stalled().doing, Doing::Ended);
}

#[test]
fn scheduled_entries_run_and_say_how_they_fared() {
    use engine::schedule::{Schedule, Times};
    let engine = two_threads();
    let h = engine.handle();
    let schedule = Schedule::new(&h, h.group("net").unwrap());
    let (tx, rx) = mpsc::channel();
    let mut runs = 0;
    schedule.add("flush", Times::Every(Duration::from_millis(2)), move || {
        runs += 1;
        tx.send(runs).unwrap();
        match runs {
            1 => Ok(()),
            2 => Err("no space".into()),
            _ => panic!("as the test wants it"),
        }
    });
    schedule.add("rotate", Times::Daily { base: Duration::ZERO, every: Duration::from_secs(1) }, || Ok(()));
    assert_eq!(rx.iter().take(4).count(), 4);
    let status = schedule.status();
    assert_eq!(status[0].name, "flush");
    assert!(status[0].runs >= 3 && status[0].failures == status[0].runs - 1);
    assert!(status[0].last_run.is_some() && status[0].last_error.is_some());
    let until = Instant::now() + LONG;
    while schedule.status()[1].runs == 0 {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
    assert!(engine.shutdown(LONG).drained);
}

#[test]
fn an_idle_thread_sleeps_until_its_next_timer() {
    let engine = two_threads();
    let h = engine.handle();
    let thread = h.threads(h.group("net").unwrap())[0];
    let (tx, rx) = mpsc::channel();
    let stats = {
        let h = h.clone();
        move || h.stats()[0].clone()
    };
    let before = stats();
    // Far enough to lie on a higher level of the wheel, so that a cascade lies in between.
    h.schedule_in(thread, Duration::from_millis(150), once(move || tx.send(()).unwrap()));
    rx.recv_timeout(LONG).unwrap();
    let woken = stats().wakeups - before.wakeups;
    assert!(woken <= 3, "{woken} wake-ups: to start, to take the event, to fire it");
}
