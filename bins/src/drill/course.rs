//! The course of a drill without a scenario: load, and kills in turn or chaos, for so many seconds.

use super::DrillArgs;
use super::chaos::Chaos;
use super::figures::{self, Figures};
use super::kills::{Kills, Target, fetch};
use super::load::{Load, Plan};
use super::origin::Origin;
use super::stats::{ChaosOutcome, Outcome, Stats};
use super::subject::Subject;
use super::view::View;
use crate::exit::Exit;
use crate::logging::Fatal;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use supervisor::signals::Signals;

/// How often the view is refreshed.
const TICK: Duration = Duration::from_millis(200);
/// A request without its whole answer after this long has failed.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The same under chaos, where one outage follows another before the first is over.
const CHAOS_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the suite may take to come to rest.
const REST: Duration = Duration::from_secs(40);
/// So long after a change of its open files it is: idle connections to origins are closed after 4 s.
const QUIET: Duration = Duration::from_secs(6);

/// Who does something to the suite.
enum Hand {
    Kills(Kills),
    Chaos(Box<Chaos>),
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
            Hand::Kills(k) => k.records().iter().flat_map(|r| &r.hit).filter(|(t, _)| *t == target).count(),
            Hand::Chaos(c) => c.hit.get(target.name()).copied().unwrap_or(0),
        }
    }
}

/// Load and kills, from the first answer to the last.
///
/// # Errors
/// The drill itself couldn't be held.
pub fn run(
    args: &DrillArgs,
    subject: &mut Subject,
    origin: &Origin,
    signals: &mut Signals,
) -> anyhow::Result<Outcome> {
    let addr = subject.address()?;
    let mut complaints = Vec::new();
    let mut view = View::new(args.json, std::io::stdout().is_terminal(), Duration::from_secs(args.seconds));
    let mut hand = match args.chaos {
        false => Hand::Kills(Kills::new(&args.kill, args.every, addr, origin.paths())),
        true => {
            let seed = args.seed.unwrap_or_else(super::chaos::any_seed);
            view.line(
                &format!("chaos: --seed {seed} --every {}", humantime::format_duration(args.every)),
                Duration::ZERO,
            );
            Hand::Chaos(Box::new(Chaos::new(seed, args.every)))
        }
    };
    let before = match (&mut *subject, args.chaos) {
        (Subject::Own(suite), true) => suite.rest(TICK, REST, signals)?,
        _ => Figures::default(),
    };
    let stats = Arc::new(Mutex::new(Stats::default()));
    let rates = args.rates();
    let plan = Plan {
        addr,
        paths: origin.paths(),
        connections: rates.connections,
        keepalive_rate: rates.keepalive_rate,
        rate: rates.rate,
        seconds: args.seconds,
        timeout: if args.chaos { CHAOS_TIMEOUT } else { TIMEOUT },
    };
    let load = Load::start(plan, stats.clone());
    let begun = Instant::now();
    let total = Duration::from_secs(args.seconds);
    let mut interrupted = false;
    while begun.elapsed() < total && !interrupted {
        let due = hand.due().saturating_sub(begun.elapsed()).min(TICK);
        interrupted = subject.watch(due, signals)?;
        let now = begun.elapsed();
        // the last one leaves the time to see its end
        if !interrupted && now >= hand.due() && now + args.every.min(Duration::from_secs(1)) < total {
            let line = match (&mut hand, &mut *subject) {
                (Hand::Kills(kills), subject) => {
                    let (line, asked) = kills.next(subject, &stats, signals)?;
                    interrupted = asked;
                    Some(line)
                }
                (Hand::Chaos(chaos), Subject::Own(suite)) => chaos.step(now, suite)?,
                (Hand::Chaos(_), Subject::Running(_)) => None,
            };
            line.iter().for_each(|l| view.line(l, begun.elapsed()));
        }
        view.refresh(begun.elapsed(), subject, &stats, &|t| hand.hit(t));
    }
    if let (Hand::Chaos(_), Subject::Own(suite)) = (&hand, &*subject) {
        // one that has died with its manager by now is none
        suite.command("resume")?;
    }
    load.stop();
    // requests that are out still have their time, unless somebody wants an end; cop is still looked after
    while !load.is_finished() {
        if interrupted {
            load.abandon();
        }
        interrupted |= subject.watch(TICK, signals)?;
    }
    load.join();
    view.end();
    let chaos = match (&hand, &mut *subject) {
        (Hand::Chaos(c), Subject::Own(suite)) => {
            let after = suite.rest(QUIET, REST, signals)?;
            if after.processes != figures::PROCESSES {
                let what = format!("{} processes at the end, not {}", after.processes, figures::PROCESSES);
                complaints.push(what);
            }
            complaints.extend(before.leaks(&after));
            if !complaints.is_empty() {
                complaints.push(format!("kept by init: {}", suite.init().stored().join(" ")));
            }
            let (done, hit, acts) = (c.done.clone(), c.hit.clone(), c.acts.clone());
            Some(ChaosOutcome { seed: c.seed, done, hit, acts, before, after })
        }
        _ => None,
    };
    let serves = fetch(addr, &origin.paths()[0], Duration::from_secs(5));
    let stats = stats.lock().map_err(|_| Fatal::new(Exit::Bug, "the load died"))?.clone();
    let stats = Stats { posts_twice: origin.posts_twice(), ..stats };
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
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Outcome { stats, kills, seconds, complaints, chaos, scenario: None })
}
