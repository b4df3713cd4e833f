//! The engine's numbers against their goals, and against tokio's current_thread runtime in the same run.
//!
//! `benches/engine/run [NAME…]`. Threads are pinned, what is compared is measured in turns, and each number is the median
//! of several rounds with their spread. Read: [`table`] (what is printed), then one file for each group of numbers.

mod hello;
mod memory;
mod queue;
mod serve;
mod table;
mod timers;
mod tokio_thread;
mod wakeup;

use engine::{Engine, GroupConfig, Handle, ThreadId};
use std::sync::OnceLock;
use table::Table;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [verb, kind, rest @ ..] = args.as_slice()
        && verb == "serve"
    {
        return serve::main(kind, rest.iter().any(|a| a == "timed"));
    }
    let wanted = |name: &str| args.is_empty() || args.iter().any(|a| a == name);
    cpus();
    let mut table = Table::new();
    type Part = fn(&mut Table);
    let parts: [(&str, Part); 6] = [
        ("queue", queue::measure),
        ("timers", timers::measure),
        ("wakeup", wakeup::latency),
        ("idle", wakeup::idle),
        ("memory", memory::measure),
        ("hello", hello::measure),
    ];
    for (name, part) in parts {
        if wanted(name) {
            part(&mut table);
        }
    }
    table.end();
}

/// CPUs to pin to, counted before anything was pinned.
fn cpus() -> usize {
    static CPUS: OnceLock<usize> = OnceLock::new();
    *CPUS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Pins the calling thread; round again if there are fewer.
fn pin(cpu: usize) {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu % cpus()).expect("a CPU");
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).expect("to be pinned");
}

/// An engine with one event thread, on CPU 0 if it is to be pinned.
fn one_thread(pinned: bool) -> (Engine, Handle, ThreadId) {
    let cpus = if pinned { vec![0] } else { Vec::new() };
    let config = GroupConfig { threads: 1, cpus, ..GroupConfig::default() };
    let engine = Engine::builder().group("net", config).start().expect("an engine");
    let handle = engine.handle();
    let thread = handle.threads(handle.group("net").expect("net"))[0];
    (engine, handle, thread)
}
