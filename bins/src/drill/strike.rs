//! One stroke: a signal to some of the programs at once, and the time to the next answer on a new connection.

use super::client::Page;
use super::kills::{Target, try_fetch};
use super::stats::{Failure, Stats};
use super::subject::Subject;
use nix::libc::{SIGKILL, SIGSTOP};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use supervisor::pidfd::PidFd;
use supervisor::signals::Signals;

/// How long an answer may take after a stroke.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often init looks after its cop meanwhile.
const TURN: Duration = Duration::from_millis(5);

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stroke {
    /// SIGKILL.
    Kill,
    /// SIGSTOP.
    Stop,
    /// One thread was stopped.
    Hang,
}

impl Stroke {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Stroke::Kill => "SIGKILL",
            Stroke::Stop => "SIGSTOP",
            Stroke::Hang => "hang",
        }
    }
}

/// One stroke, and what came of it.
#[derive(Debug, Clone)]
pub struct Record {
    /// What it was.
    pub stroke: Stroke,
    /// Who, with their pids.
    pub hit: Vec<(Target, i32)>,
    /// When.
    pub at: Instant,
    /// From then to the next answer on a connection begun afterwards; `None` if none came in time.
    pub takeover: Option<Duration>,
    /// Tries that failed before.
    pub misses: u32,
}

impl Record {
    /// `server` or `server+manager`.
    pub fn who(&self) -> String {
        self.hit.iter().map(|(t, _)| t.name()).collect::<Vec<_>>().join("+")
    }

    /// For people: one line.
    pub fn text(&self) -> String {
        let pids: Vec<_> = self.hit.iter().map(|(_, pid)| pid.to_string()).collect();
        let answer = match self.takeover {
            Some(t) => format!("next answer after {:.1} ms", t.as_secs_f64() * 1000.0),
            None => format!("no answer within {PATIENCE:?}"),
        };
        let missed =
            if self.misses > 0 { format!(" ({} failed before)", self.misses) } else { String::new() };
        format!("{} {:<8} pid {:<8} {answer}{missed}", self.stroke.name(), self.who(), pids.join(" "))
    }
}

/// Where and what the next answer is asked for.
#[derive(Debug, Clone)]
pub struct Probe {
    /// The suite's address.
    pub addr: SocketAddr,
    /// A small page.
    pub page: Page,
}

/// Kills or stops all of `targets` at once; they come back, held. `None`: not all of them are there.
///
/// # Errors
/// One may not be touched, or doesn't take a signal.
pub fn strike(
    subject: &mut Subject,
    stroke: Stroke,
    targets: &[Target],
) -> anyhow::Result<Option<(Record, Vec<PidFd>)>> {
    let (mut held, mut hit) = (Vec::new(), Vec::new());
    for target in targets {
        let Some((pid, process)) = subject.hold(*target)? else { return Ok(None) };
        held.push(process);
        hit.push((*target, pid));
    }
    let at = Instant::now();
    for process in &held {
        process.signal(if stroke == Stroke::Stop { SIGSTOP } else { SIGKILL })?;
    }
    for process in held.iter().filter(|_| stroke == Stroke::Kill) {
        // a connection begun before a process is dead could still be accepted by it
        process.poll_exit(Duration::from_secs(5))?;
    }
    subject.tend()?;
    Ok(Some((Record { stroke, hit, at, takeover: None, misses: 0 }, held)))
}

/// Waits for the next answer after a stroke, and notes when it came. Tries that failed before are counted as requests that
/// failed. True: somebody has interrupted.
///
/// # Errors
/// Cop can't be started again.
pub fn follow(
    subject: &mut Subject,
    record: &mut Record,
    probe: &Probe,
    stats: &Mutex<Stats>,
    signals: &mut Signals,
    meanwhile: impl FnMut(),
) -> anyhow::Result<bool> {
    let asked = next_answer(subject, probe, (record.at, PATIENCE), signals, meanwhile)?;
    (record.takeover, record.misses) = (asked.took, asked.failed.len() as u32);
    if let Ok(mut s) = stats.lock() {
        asked.failed.into_iter().for_each(|how| s.bad(record.at, how));
    }
    Ok(asked.interrupted)
}

/// What came of asking.
#[derive(Debug, Default)]
pub struct Asked {
    /// From the beginning to the answer; `None` if none came in time.
    pub took: Option<Duration>,
    /// Tries that failed before.
    pub failed: Vec<Failure>,
    /// Somebody wants an end.
    pub interrupted: bool,
}

/// Asks on new connections from `since.0` on, until there is an answer or `since.1` is over. The suite is looked after meanwhile.
///
/// # Errors
/// Cop can't be started again.
pub fn next_answer(
    subject: &mut Subject,
    probe: &Probe,
    since: (Instant, Duration),
    signals: &mut Signals,
    mut meanwhile: impl FnMut(),
) -> anyhow::Result<Asked> {
    let probe = probe.clone();
    let asking = std::thread::spawn(move || ask(&probe, since));
    while !asking.is_finished() {
        if subject.watch(TURN, signals)? {
            // the probe ends by itself
            return Ok(Asked { interrupted: true, ..Asked::default() });
        }
        meanwhile();
    }
    asking.join().map_err(|_| anyhow::anyhow!("the probe died"))
}

fn ask(probe: &Probe, (since, patience): (Instant, Duration)) -> Asked {
    let mut asked = Asked::default();
    while since.elapsed() < patience {
        match try_fetch(probe.addr, &probe.page, patience.saturating_sub(since.elapsed())) {
            Ok(()) => {
                asked.took = Some(since.elapsed());
                return asked;
            }
            Err(how) => asked.failed.push(how),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    asked
}
