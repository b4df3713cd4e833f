//! How soon a sleeping thread begins what is scheduled, and that it sleeps when nothing is.

use crate::table::{Goal, Sample, Table};
use crate::tokio_thread::TokioThread;
use crate::{one_thread, pin};
use engine::once;
use std::sync::mpsc;
use std::time::{Duration, Instant};

const SAMPLES: usize = 10_000;

/// From scheduling to the call, into a thread that sleeps, in turns.
pub fn latency(table: &mut Table) {
    pin(1);
    let (_engine, handle, thread) = one_thread(true);
    let runtime = TokioThread::start();
    let (tx, rx) = mpsc::channel();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        let (began, tell) = fall_asleep(&tx);
        handle.schedule_imm(thread, once(move || tell.send(began.elapsed()).expect("the bench waits")));
        ours.push(micros(&rx));
        let (began, tell) = fall_asleep(&tx);
        runtime.handle.spawn(async move { tell.send(began.elapsed()).expect("the bench waits") });
        theirs.push(micros(&rx));
    }
    for (p, goal) in [(0.5, Goal::AtMost(25.0)), (0.99, Goal::None)] {
        let what = format!("wake-up of an idle thread, p{:.0}", p * 100.0);
        table.row(&what, "µs", at(&mut ours, p), goal, Some(("tokio", at(&mut theirs, p))));
    }
}

fn fall_asleep(tx: &mpsc::Sender<Duration>) -> (Instant, mpsc::Sender<Duration>) {
    let tell = tx.clone();
    let until = Instant::now() + Duration::from_micros(150);
    while Instant::now() < until {
        std::hint::spin_loop();
    }
    (Instant::now(), tell)
}

fn micros(rx: &mpsc::Receiver<Duration>) -> f64 {
    rx.recv().expect("a sample").as_nanos() as f64 / 1000.0
}

fn at(all: &mut [f64], p: f64) -> Sample {
    all.sort_by(f64::total_cmp);
    let at = |p: f64| all[(p * (all.len() - 1) as f64) as usize];
    Sample { median: at(p), least: at(0.0), most: at(1.0) }
}

/// Counted by the kernel, not by the engine: each sleep that ends is a voluntary context switch.
pub fn idle(table: &mut Table) {
    let before_start = switches("");
    let (_engine, _, _) = one_thread(true);
    std::thread::sleep(Duration::from_millis(200));
    let before = switches("net-0");
    std::thread::sleep(Duration::from_secs(3));
    let woken = (switches("net-0") - before) as f64;
    assert!(switches("") > before_start, "the counter counts");
    let woken = Sample { median: woken, least: woken, most: woken };
    table.row("wake-ups of an idle thread in 3 s", "", woken, Goal::AtMost(0.0), None);
}

/// Voluntary and other context switches of this process's threads of this name; of all for "".
fn switches(thread: &str) -> u64 {
    let mut sum = 0;
    for task in std::fs::read_dir("/proc/self/task").expect("procfs").flatten() {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find(|l| l.starts_with(name)).unwrap_or("");
            line.split_whitespace().nth(1).unwrap_or("").to_owned()
        };
        if thread.is_empty() || field("Name:") == thread {
            let fields = ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"];
            sum += fields.iter().filter_map(|f| field(f).parse::<u64>().ok()).sum::<u64>();
        }
    }
    sum
}
