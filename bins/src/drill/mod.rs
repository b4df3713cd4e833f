//! The drill: a private suite under load, killed again and again, and what its clients noticed.
//!
//! What a client saw is what is counted: no request is repeated, every body is compared, a connection that closes without
//! having said so is lost. The drill plays init for its suite: it restarts a killed cop at once, and reaps orphans.
//!
//! Read in this order: this file (options, the course), [`suite`], [`init`], [`origin`], [`client`] (one answer, pure), [`load`]
//! (all clients), [`kills`], [`stats`], [`view`].

pub mod client;
pub mod init;
pub mod kills;
pub mod load;
pub mod origin;
pub mod stats;
pub mod suite;
pub mod view;

use crate::exit::Exit;
use crate::logging::Fatal;
use anyhow::Context;
use kills::Target;
use load::{Load, Plan};
use std::io::IsTerminal;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use supervisor::signals::{SIGHUP, SIGINT, SIGTERM, Signals};

/// Options of the drill.
#[derive(Debug, Clone, clap::Args)]
pub struct DrillArgs {
    /// Seconds of load
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// Whom to kill, in turn: server, manager, cop; "none" kills nobody
    #[arg(long, value_delimiter = ',', default_value = "server")]
    pub kill: Vec<Target>,
    /// Time between kills
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    pub every: Duration,
    /// Keep-alive connections
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub connections: u32,
    /// Requests a second on each keep-alive connection
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub keepalive_rate: u32,
    /// New connections a second, each with one request
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub rate: u32,
    /// Ask the built-in origin for all kinds: cached pages up to 1 MiB, slow ones, and POSTs that must arrive once
    #[arg(long)]
    pub mix: bool,
    /// Use this origin instead of the built-in one; the path's page must not change from one fetch to the next
    #[arg(long, value_name = "URL")]
    pub origin: Option<String>,
    /// One JSON object as the last line on stdout; the course goes to stderr
    #[arg(long)]
    pub json: bool,
    /// Keep the suite's directory with its log
    #[arg(long)]
    pub keep: bool,
}

/// How often the view is refreshed.
const TICK: Duration = Duration::from_millis(200);
/// How long the suite may take to serve.
const START: Duration = Duration::from_secs(30);

/// Runs the drill.
///
/// # Errors
/// The drill itself couldn't be held: no origin, no suite. What the clients suffered is no error but the exit code.
pub fn run(args: &DrillArgs) -> anyhow::Result<Exit> {
    anyhow::ensure!(args.every >= Duration::from_millis(100), "--every: at least 100ms");
    anyhow::ensure!(
        args.rate > 0 || args.connections > 0,
        "--rate and --connections: without both there is no load"
    );
    let mut signals = Signals::catch(&[SIGINT, SIGTERM, SIGHUP])?;
    supervisor::reaper::become_subreaper()?;
    let origin = match &args.origin {
        Some(url) => origin::Origin::given(url)?,
        None => origin::Origin::built_in(args.mix).context("starting the built-in origin")?,
    };
    let mut suite = suite::Suite::start(&origin.base, args.keep)?;
    let course = course(args, &mut suite, &origin, &mut signals);
    let (outcome, ended) = match course {
        Ok(outcome) => (outcome, suite.stop()),
        Err(e) => {
            let tail = suite.log_tail(15);
            let _ = suite.stop();
            return Err(e.context(format!("the drill broke off; the end of the suite's log:\n{tail}")));
        }
    };
    let mut outcome = outcome;
    if let Err(why) = ended {
        outcome.complaints.push(format!("the suite didn't end in order: {why:#}"));
    }
    let exit = outcome.verdict();
    let summary = view::summary(&outcome);
    if args.json {
        eprint!("{summary}");
        println!("{}", view::json(&outcome));
    } else {
        print!("{summary}");
    }
    if exit != Exit::Done && args.keep {
        eprintln!("the suite's directory is kept: {}", suite.dir().display());
    }
    Ok(exit)
}

/// Load and kills, from the first answer to the last.
fn course(
    args: &DrillArgs,
    suite: &mut suite::Suite,
    origin: &origin::Origin,
    signals: &mut Signals,
) -> anyhow::Result<stats::Outcome> {
    suite.wait_serving(origin, START, signals)?;
    let addr = suite.address()?;
    let stats = Arc::new(Mutex::new(stats::Stats::default()));
    let plan = Plan {
        addr,
        paths: origin.paths(),
        connections: args.connections,
        keepalive_rate: args.keepalive_rate,
        rate: args.rate,
        seconds: args.seconds,
    };
    let load = Load::start(plan, stats.clone());
    let begun = Instant::now();
    let total = Duration::from_secs(args.seconds);
    let mut view = view::View::new(args.json, std::io::stdout().is_terminal(), total);
    let mut kills = kills::Kills::new(&args.kill, args.every, addr, origin.paths());
    let mut interrupted = false;
    while begun.elapsed() < total && !interrupted {
        let due = kills.due().saturating_sub(begun.elapsed()).min(TICK);
        interrupted = suite.watch(due, signals)?;
        // the last kill leaves the time to see its end
        if begun.elapsed() >= kills.due() && begun.elapsed() + args.every.min(Duration::from_secs(1)) < total
        {
            let line = kills.next(suite, &stats)?;
            view.line(&line, begun.elapsed());
        }
        view.refresh(begun.elapsed(), suite, &stats, &kills);
    }
    load.stop();
    // requests that are out still have their time; cop is still looked after
    while !load.is_finished() {
        suite.watch(TICK, signals)?;
    }
    load.join();
    view.end();
    let serves = kills::fetch(addr, &origin.paths()[0], Duration::from_secs(5));
    let stats = stats.lock().map_err(|_| Fatal::new(Exit::Bug, "the load died"))?.clone();
    let stats = stats::Stats { posts_twice: origin.posts_twice(), ..stats };
    let mut complaints = Vec::new();
    if let Err(e) = serves {
        complaints.push(format!("the suite doesn't serve at the end: {e}"));
    }
    if interrupted {
        complaints.push("interrupted".into());
    }
    Ok(stats::Outcome {
        stats,
        kills: kills.records().to_vec(),
        seconds: begun.elapsed().as_secs_f64(),
        complaints,
    })
}
