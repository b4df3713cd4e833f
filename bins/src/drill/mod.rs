//! The drill: a private suite under load, killed again and again, and what its clients noticed.
//!
//! What a client saw is what is counted: no request is repeated, every body is compared, a connection that closes without
//! having said so is lost. The drill plays init for its suite: it restarts a killed cop at once, and reaps orphans.
//!
//! Read in this order: this file (options, the course), [`suite`], [`init`], [`origin`], [`client`] (one answer, pure), [`load`]
//! (all clients), [`kills`], [`chaos`] and [`figures`], [`stats`], [`view`].

pub mod chaos;
pub mod client;
pub mod figures;
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
    /// Chaos instead of kills in turn: random programs get random signals, reloads, restarts and pauses in between; "--every"
    /// is the mean time from one to the next
    #[arg(long, conflicts_with = "kill")]
    pub chaos: bool,
    /// Where the choices of --chaos come from; it is printed, so that a run can be repeated [default: another each time]
    #[arg(long, requires = "chaos")]
    pub seed: Option<u64>,
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
/// A request without its whole answer after this long has failed.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The same under chaos, where one outage follows another before the first is over.
const CHAOS_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the suite may take to come to rest.
const REST: Duration = Duration::from_secs(40);

/// Runs the drill.
///
/// # Errors
/// The drill itself couldn't be held: no origin, no suite. What the clients suffered is no error but the exit code.
pub fn run(args: &DrillArgs) -> anyhow::Result<Exit> {
    let usage = |why: &str| Fatal::new(Exit::Usage, why);
    if args.every < Duration::from_millis(100) {
        return Err(usage("--every: at least 100ms").into());
    }
    if args.rate == 0 && args.connections == 0 {
        return Err(usage("--rate and --connections: without both there is no load").into());
    }
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

/// Who does something to the suite.
enum Hand {
    Kills(kills::Kills),
    Chaos(Box<chaos::Chaos>),
}

impl Hand {
    fn due(&self) -> Duration {
        match self {
            Hand::Kills(k) => k.due(),
            Hand::Chaos(c) => c.due(),
        }
    }

    fn hit(&self, target: Target) -> usize {
        match self {
            Hand::Kills(k) => k.records().iter().filter(|r| r.target == target).count(),
            Hand::Chaos(c) => c.hit.get(target.name()).copied().unwrap_or(0),
        }
    }
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
    let mut complaints = Vec::new();
    let mut view =
        view::View::new(args.json, std::io::stdout().is_terminal(), Duration::from_secs(args.seconds));
    let mut hand = match args.chaos {
        false => Hand::Kills(kills::Kills::new(&args.kill, args.every, addr, origin.paths())),
        true => {
            let seed = args.seed.unwrap_or_else(chaos::any_seed);
            view.line(
                &format!("chaos: --seed {seed} --every {}", humantime::format_duration(args.every)),
                Duration::ZERO,
            );
            Hand::Chaos(Box::new(chaos::Chaos::new(seed, args.every)))
        }
    };
    let before = if args.chaos { suite.rest(REST, signals)? } else { figures::Figures::default() };
    let stats = Arc::new(Mutex::new(stats::Stats::default()));
    let plan = Plan {
        addr,
        paths: origin.paths(),
        connections: args.connections,
        keepalive_rate: args.keepalive_rate,
        rate: args.rate,
        seconds: args.seconds,
        timeout: if args.chaos { CHAOS_TIMEOUT } else { TIMEOUT },
    };
    let load = Load::start(plan, stats.clone());
    let begun = Instant::now();
    let total = Duration::from_secs(args.seconds);
    let mut interrupted = false;
    while begun.elapsed() < total && !interrupted {
        let due = hand.due().saturating_sub(begun.elapsed()).min(TICK);
        interrupted = suite.watch(due, signals)?;
        let now = begun.elapsed();
        // the last one leaves the time to see its end
        if now >= hand.due() && now + args.every.min(Duration::from_secs(1)) < total {
            let line = match &mut hand {
                Hand::Kills(kills) => Some(kills.next(suite, &stats)?),
                Hand::Chaos(chaos) => chaos.step(now, suite)?,
            };
            line.iter().for_each(|l| view.line(l, begun.elapsed()));
        }
        view.refresh(begun.elapsed(), suite, &stats, &|t| hand.hit(t));
    }
    if args.chaos {
        // one that has died with its manager by now is none
        suite.command("resume")?;
    }
    load.stop();
    // requests that are out still have their time; cop is still looked after
    while !load.is_finished() {
        suite.watch(TICK, signals)?;
    }
    load.join();
    view.end();
    let chaos = match hand {
        Hand::Kills(_) => None,
        Hand::Chaos(ref c) => {
            let after = suite.rest(REST, signals)?;
            if after.processes != figures::PROCESSES {
                complaints.push(format!(
                    "{} processes at the end, not {}",
                    after.processes,
                    figures::PROCESSES
                ));
            }
            complaints.extend(before.leaks(&after));
            if !complaints.is_empty() {
                complaints.push(format!("kept by init: {}", suite.init().stored().join(" ")));
            }
            Some(stats::ChaosOutcome {
                seed: c.seed,
                done: c.done.clone(),
                hit: c.hit.clone(),
                before,
                after,
            })
        }
    };
    let serves = kills::fetch(addr, &origin.paths()[0], Duration::from_secs(5));
    let stats = stats.lock().map_err(|_| Fatal::new(Exit::Bug, "the load died"))?.clone();
    let stats = stats::Stats { posts_twice: origin.posts_twice(), ..stats };
    if let Err(e) = serves {
        complaints.push(format!("the suite doesn't serve at the end: {e}"));
    }
    if interrupted {
        complaints.push("interrupted".into());
    }
    let kills = match hand {
        Hand::Kills(k) => k.records().to_vec(),
        Hand::Chaos(_) => Vec::new(),
    };
    Ok(stats::Outcome { stats, kills, seconds: begun.elapsed().as_secs_f64(), complaints, chaos })
}
