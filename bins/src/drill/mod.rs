//! The drill: a suite under load, killed again and again, and what its clients noticed. The suite is a private one, or the
//! one that runs.
//!
//! What a client saw is what is counted: no request is repeated, every body is compared, a connection that closes without
//! having said so is lost. The drill plays init for a private suite: it restarts a killed cop at once, and reaps orphans.
//!
//! Read in this order: this file (options), [`subject`] (what is drilled), [`suite`] and [`init`], [`attach`], [`origin`],
//! [`client`] (one answer, pure), [`load`] (all clients), [`strike`], [`course`] with [`kills`], [`chaos`] and [`figures`],
//! [`scenario`], [`stats`] and [`series`], [`view`], [`report`].

pub mod attach;
pub mod chaos;
pub mod client;
pub mod course;
pub mod figures;
pub mod init;
pub mod kills;
pub mod load;
pub mod origin;
pub mod report;
pub mod scenario;
pub mod series;
pub mod stats;
pub mod strike;
pub mod subject;
pub mod suite;
pub mod view;

use crate::exit::Exit;
use crate::logging::Fatal;
use anyhow::Context;
use attach::{AttachArgs, Attached};
use kills::Target;
use origin::Origin;
use scenario::{Rates, Scenario};
use stats::{Outcome, Stats};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use subject::Subject;
use suite::{Setup, Suite};
use supervisor::signals::{SIGHUP, SIGINT, SIGTERM, Signals};

/// Options of the drill.
#[derive(Debug, Clone, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct DrillArgs {
    #[command(subcommand)]
    command: Option<DrillCommand>,
    /// Seconds of load
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// Whom to kill, in turn: server, manager, cop; "none" kills nobody
    #[arg(long, value_delimiter = ',', default_value = "server")]
    pub kill: Vec<Target>,
    /// Time between kills
    #[arg(long, default_value = "2s", value_parser = crate::config::value::duration_of)]
    pub every: Duration,
    /// Keep-alive connections [default: 50; with --attach 10]
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub connections: Option<u32>,
    /// Requests a second on each keep-alive connection [default: 20; with --attach 5]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub keepalive_rate: Option<u32>,
    /// New connections a second, each with one request [default: 200; with --attach 20]
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub rate: Option<u32>,
    /// Chaos instead of kills in turn: random programs get random signals, reloads, restarts and pauses in between; "--every"
    /// is the mean time from one to the next
    #[arg(long, conflicts_with_all = ["kill", "attach"])]
    pub chaos: bool,
    /// Where the choices of --chaos come from; it is printed, so that a run can be repeated [default: another each time]
    #[arg(long, requires = "chaos")]
    pub seed: Option<u64>,
    /// Ask the built-in origin for all kinds: cached pages up to 1 MiB, slow ones, and POSTs that must arrive once
    #[arg(long, conflicts_with = "attach")]
    pub mix: bool,
    /// Use this origin instead of the built-in one; the path's page must not change from one fetch to the next
    #[arg(long, value_name = "URL", conflicts_with = "attach")]
    pub origin: Option<String>,
    /// One JSON object as the last line on stdout; the course goes to stderr
    #[arg(long)]
    pub json: bool,
    /// Write a report with plots: one HTML file that needs nothing else
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Keep the private suite's directory with its log
    #[arg(long)]
    pub keep: bool,
    #[command(flatten)]
    attach: AttachArgs,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum DrillCommand {
    /// Do what a scenario file says, to a private suite or with --attach to the one that runs
    Run(RunArgs),
}

/// Options of a scenario.
#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
    /// The scenario (/usr/share/doc/traffic/drills has some)
    file: PathBuf,
    /// Only read it, and say what it would do
    #[arg(long)]
    check: bool,
    /// One JSON object as the last line on stdout; the course goes to stderr
    #[arg(long)]
    json: bool,
    /// Write a report with plots: one HTML file that needs nothing else
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Keep the private suite's directory with its log
    #[arg(long)]
    keep: bool,
    /// Make the private suite's directory here [default: $TMPDIR]
    #[arg(long, value_name = "DIR", conflicts_with = "attach")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    attach: AttachArgs,
}

/// How long the suite may take to serve.
const START: Duration = Duration::from_secs(30);

impl DrillArgs {
    /// The load. A suite that has other clients too gets less.
    pub fn rates(&self) -> Rates {
        let own = Rates { connections: 50, keepalive_rate: 20, rate: 200 };
        let running = Rates { connections: 10, keepalive_rate: 5, rate: 20 };
        let default = if self.attach.attach { running } else { own };
        Rates {
            connections: self.connections.unwrap_or(default.connections),
            keepalive_rate: self.keepalive_rate.unwrap_or(default.keepalive_rate),
            rate: self.rate.unwrap_or(default.rate),
        }
    }

    fn plan(&self) -> Vec<String> {
        let who: Vec<_> = self.kill.iter().filter(|t| **t != Target::None).map(|t| t.name()).collect();
        let load = format!("{}, for {} s", scenario::Action::Load(self.rates()).text(), self.seconds);
        let every = humantime::format_duration(self.every);
        match who.is_empty() {
            true => vec![load],
            false => vec![load, format!("kill in turn, every {every}: {}", who.join(", "))],
        }
    }
}

/// Runs the drill.
///
/// # Errors
/// The drill itself couldn't be held: no origin, no suite. What the clients suffered is no error but the exit code.
pub fn run(args: &DrillArgs) -> anyhow::Result<Exit> {
    if let Some(DrillCommand::Run(run)) = &args.command {
        return run_scenario(run);
    }
    let usage = |why: &str| Fatal::new(Exit::Usage, why);
    if args.every < Duration::from_millis(100) {
        return Err(usage("--every: at least 100ms").into());
    }
    let rates = args.rates();
    if rates.rate == 0 && rates.connections == 0 {
        return Err(usage("--rate and --connections: without both there is no load").into());
    }
    let attached = attach(&args.attach, &args.plan())?;
    let report = report::begin(args.report.as_deref())?;
    let mut signals = begin()?;
    let origin = origin(attached.as_ref(), args.origin.as_deref(), args.mix)?;
    let setup = Setup { keep: args.keep, ..Setup::default() };
    let outcome = hold(attached, &origin, &setup, &mut signals, |subject, signals| {
        course::run(args, subject, &origin, signals)
    })?;
    end(&outcome, args.json, report)
}

/// Does what a file says.
fn run_scenario(args: &RunArgs) -> anyhow::Result<Exit> {
    let scenario = scenario::parse::file(&args.file)?;
    let plan: Vec<String> = scenario.steps.iter().map(|s| s.action.text()).collect();
    if args.check {
        println!("{}\n  {}", scenario.title, plan.join("\n  "));
        return Ok(Exit::Done);
    }
    if args.attach.attach && (scenario.mix || !scenario.config.is_empty()) {
        let why = format!(
            "{}: has mix or config, which a suite that runs can't be given: leave out --attach",
            args.file.display()
        );
        return Err(Fatal::new(Exit::Usage, why).into());
    }
    let attached = attach(&args.attach, &plan)?;
    let report = report::begin(args.report.as_deref())?;
    let mut signals = begin()?;
    let origin = origin(attached.as_ref(), None, scenario.mix)?;
    let setup = Setup { keep: args.keep, dir: args.dir.clone(), more: scenario.config.clone() };
    let outcome = hold(attached, &origin, &setup, &mut signals, |subject, signals| {
        play(&scenario, args.json, subject, &origin, signals)
    })?;
    end(&outcome, args.json, report)
}

fn play(
    scenario: &Scenario,
    json: bool,
    subject: &mut Subject,
    origin: &Origin,
    signals: &mut Signals,
) -> anyhow::Result<Outcome> {
    let stats = Arc::new(Mutex::new(Stats::default()));
    let mut view = view::View::plain(json);
    let begun = Instant::now();
    let stage = scenario::run::Stage {
        subject,
        pages: origin.paths(),
        stats: stats.clone(),
        view: &mut view,
        signals,
    };
    let played = scenario::run::play(scenario, stage)?;
    let stats = stats.lock().map_err(|_| Fatal::new(Exit::Bug, "the load died"))?.clone();
    Ok(Outcome {
        stats: Stats { posts_twice: origin.posts_twice(), ..stats },
        kills: played.records,
        seconds: begun.elapsed().as_secs_f64(),
        complaints: Vec::new(),
        chaos: None,
        scenario: Some(played.outcome),
    })
}

/// The suite that runs, if it is meant and somebody has agreed.
fn attach(args: &AttachArgs, plan: &[String]) -> anyhow::Result<Option<Attached>> {
    if !args.attach {
        return Ok(None);
    }
    let attached = Attached::find(args)?;
    attached.consent(args, plan)?;
    Ok(Some(attached))
}

fn begin() -> anyhow::Result<Signals> {
    let signals = Signals::catch(&[SIGINT, SIGTERM, SIGHUP])?;
    supervisor::reaper::become_subreaper()?;
    Ok(signals)
}

/// What is asked for.
fn origin(attached: Option<&Attached>, given: Option<&str>, mix: bool) -> anyhow::Result<Origin> {
    match (attached, given) {
        (Some(a), _) => Origin::behind(a.asked())
            .context("asking the suite for the page of the load (--url names another)"),
        (None, Some(url)) => Origin::given(url),
        (None, None) => Origin::built_in(mix).context("starting the built-in origin"),
    }
}

/// Has the suite there, and ended in order if it is ours.
fn hold(
    attached: Option<Attached>,
    origin: &Origin,
    setup: &Setup,
    signals: &mut Signals,
    course: impl FnOnce(&mut Subject, &mut Signals) -> anyhow::Result<Outcome>,
) -> anyhow::Result<Outcome> {
    let mut subject = match attached {
        Some(a) => Subject::Running(Box::new(a)),
        None => Subject::Own(Box::new(Suite::start(&origin.base, setup)?)),
    };
    let served = match &mut subject {
        Subject::Own(suite) => suite.wait_serving(origin, START, signals),
        Subject::Running(_) => Ok(()),
    };
    let outcome = served.and_then(|()| course(&mut subject, signals));
    let (mut outcome, ended) = match outcome {
        Ok(outcome) => (outcome, subject.end()),
        Err(e) => {
            let tail = subject.log_tail(15);
            let _ = subject.end();
            return Err(e.context(format!("the drill broke off; the end of the suite's log:\n{tail}")));
        }
    };
    if let Err(why) = ended {
        outcome.complaints.push(format!("the suite didn't end in order: {why:#}"));
    }
    if let (Subject::Own(suite), true) = (&subject, setup.keep) {
        eprintln!("the suite's directory is kept: {}", suite.dir().display());
    }
    Ok(outcome)
}

/// Says what came of it, in all the ways that are wanted.
fn end(outcome: &Outcome, json: bool, report: Option<(std::fs::File, &Path)>) -> anyhow::Result<Exit> {
    let summary = view::summary(outcome);
    if let Some((file, path)) = report {
        report::write(file, outcome).with_context(|| format!("writing {}", path.display()))?;
    }
    if json {
        eprint!("{summary}");
        println!("{}", view::json(outcome));
    } else {
        print!("{summary}");
    }
    Ok(outcome.verdict())
}
