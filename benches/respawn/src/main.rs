//! One stroke at one process of any server, and what clients saw: a line of JSON.
//!
//! `benches/respawn/run` calls it for each kill of each subject. The clients are those of `traffic_cop drill`
//! ([`traffic::drill::load`]); who is struck is named by its pid, since other people's servers have no locks of ours.

use anyhow::{Context, ensure};
use clap::Parser;
use nix::libc::{SIGCONT, SIGKILL, SIGSTOP};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};
use supervisor::pidfd::PidFd;
use traffic::drill::client::Page;
use traffic::drill::kills::try_fetch;
use traffic::drill::load::{Load, Plan};
use traffic::drill::stats::{Failure, Stats};

/// Between two tries of the probe: what a time to the next answer can be too long by.
const TURN: Duration = Duration::from_micros(100);

/// One stroke at a process that serves
#[derive(Debug, Parser)]
struct Args {
    /// Where it serves HTTP
    addr: SocketAddr,
    /// Whom to strike
    pid: i32,
    /// SIGSTOP without a load, instead of SIGKILL under load
    #[arg(long)]
    stop: bool,
    /// What to ask for; its answer must be 200
    #[arg(long, default_value = "/")]
    path: String,
    /// Keep-alive connections
    #[arg(long, default_value_t = 50)]
    connections: u32,
    /// Requests a second on each of them
    #[arg(long, default_value_t = 10)]
    keepalive_rate: u32,
    /// New connections a second, each with one request
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Load before the stroke, and after the next answer
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    margin: Duration,
    /// How long a request may take
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// How long to wait for the next answer
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    patience: Duration,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let target = PidFd::open(args.pid).with_context(|| format!("there is no process {}", args.pid))?;
    let page = Page { host: args.addr.to_string(), body: None, ..Page::get(args.path.as_str(), "") };
    let outcome = if args.stop { stop(&args, &target, &page) } else { kill(&args, &target, &page) };
    println!("{}", outcome?);
    Ok(())
}

/// SIGKILL under load.
fn kill(args: &Args, target: &PidFd, page: &Page) -> anyhow::Result<Value> {
    let stats = Arc::new(Mutex::new(Stats::default()));
    let plan = Plan {
        addr: args.addr,
        paths: vec![page.clone()],
        connections: args.connections,
        keepalive_rate: args.keepalive_rate,
        rate: args.rate,
        seconds: (args.margin * 2 + args.patience).as_secs() + 1,
        timeout: args.timeout,
    };
    let load = Load::start(plan, stats.clone());
    sleep(args.margin);
    let before = seen(&stats);
    ensure!(before.ok > 0, "nothing was answered before the stroke: {}", failures(&before.failed));
    let at = Instant::now();
    target.signal(SIGKILL)?;
    // a connection begun before it is dead could still be accepted by it
    target.poll_exit(Duration::from_secs(5))?.context("it survives SIGKILL")?;
    let answered = next_answer(args, page, at);
    sleep(args.margin);
    load.stop();
    load.join();
    let after = seen(&stats);
    Ok(json!({
        "answered_ms": answered.map(milliseconds),
        "requests": after.requests - before.requests,
        "failed": failures(&after.failed),
        "failed_before": failures(&before.failed),
        "connections_lost": after.connections_lost,
    }))
}

/// SIGSTOP without a load, until somebody else answers and until somebody has ended it; then SIGCONT.
fn stop(args: &Args, target: &PidFd, page: &Page) -> anyhow::Result<Value> {
    try_fetch(args.addr, page, args.timeout)
        .map_err(|e| anyhow::anyhow!("it doesn't answer before the stroke: {}", e.name()))?;
    let at = Instant::now();
    target.signal(SIGSTOP)?;
    while !is_stopped(args.pid)? {
        ensure!(at.elapsed() < Duration::from_secs(5), "it goes on after SIGSTOP");
        sleep(TURN);
    }
    let (answered, gone) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| next_answer(args, page, at));
        let gone = target.poll_exit(args.patience).map(|gone| gone.map(|()| at.elapsed()));
        (asking.join().ok().flatten(), gone)
    });
    // to one that was replaced it can't be sent any more
    let _ = target.signal(SIGCONT);
    Ok(json!({ "answered_ms": answered.map(milliseconds), "ended_ms": gone?.map(milliseconds) }))
}

/// Asks on new connections until there is an answer: how long that took since `at`.
fn next_answer(args: &Args, page: &Page, at: Instant) -> Option<Duration> {
    while let Some(left) = args.patience.checked_sub(at.elapsed()) {
        if try_fetch(args.addr, page, left).is_ok() {
            return Some(at.elapsed());
        }
        sleep(TURN);
    }
    None
}

/// What the clients have seen so far.
fn seen(stats: &Mutex<Stats>) -> Stats {
    stats.lock().expect("nobody panics with it").clone()
}

/// By kind.
fn failures(failed: &BTreeMap<Failure, u64>) -> Value {
    failed.iter().map(|(how, n)| (how.name(), json!(n))).collect::<serde_json::Map<_, _>>().into()
}

fn milliseconds(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

/// Does it stand still? From the kernel's table.
fn is_stopped(pid: i32) -> anyhow::Result<bool> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    Ok(stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
}
