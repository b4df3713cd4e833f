//! Scenario files: what is done to a suite, step by step, and what is expected of it.
//!
//! Read in this order: this file (what a scenario is), [`parse`] (its text), [`hands`] (what can be done to processes and put
//! right again), [`run`] (doing it).

pub mod hands;
pub mod parse;
pub mod run;

use super::kills::Target;
use std::time::Duration;

/// A scenario.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scenario {
    /// One line.
    pub title: String,
    /// What it shows.
    pub about: String,
    /// The built-in origin is asked for all kinds of pages. Private suites only.
    pub mix: bool,
    /// More configuration. Private suites only.
    pub config: String,
    /// What is done, in order.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Its place in the file, for messages: `file:line: step 3 (kill)`.
    pub place: String,
    /// What is done.
    pub action: Action,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// The load begins.
    Load(Rates),
    /// No new requests; those that are out get their time.
    LoadOff,
    /// Time passes.
    Wait(Duration),
    /// SIGKILL to all of them at once, so many times.
    Kill {
        /// Whom.
        who: Vec<Target>,
        /// How often.
        times: u32,
        /// From one to the next.
        every: Duration,
    },
    /// SIGSTOP to all of them at once.
    Stop {
        /// Whom.
        who: Vec<Target>,
        /// Then SIGCONT, to whoever still lives; at the end in any case.
        lasts: Option<Duration>,
    },
    /// One event thread of the server stops in the middle of its work.
    Hang {
        /// Then it goes on.
        lasts: Option<Duration>,
    },
    /// The file system of the state directory is filled.
    FillDisk {
        /// Bytes that are left.
        leave: u64,
        /// A larger file system is left alone.
        at_most: u64,
        /// Then there is room again.
        lasts: Option<Duration>,
    },
    /// A program gets no more open files than this.
    LimitFds {
        /// Which.
        who: Target,
        /// How many, those that it has included.
        to: u64,
        /// Then it gets its limit back.
        lasts: Option<Duration>,
    },
    /// The manager is told something.
    Command(Word),
    /// What must be true now.
    Expect(Expect),
}

/// Requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// Keep-alive connections.
    pub connections: u32,
    /// Requests a second on each.
    pub keepalive_rate: u32,
    /// New connections a second.
    pub rate: u32,
}

/// What the manager can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Take the configuration anew.
    Reload,
    /// Replace the server.
    Restart,
    /// Let new connections wait.
    Pause,
    /// Serve them.
    Resume,
}

impl Word {
    const ALL: [Word; 4] = [Word::Reload, Word::Restart, Word::Pause, Word::Resume];

    fn name(self) -> &'static str {
        match self {
            Word::Reload => "reload",
            Word::Restart => "restart",
            Word::Pause => "pause",
            Word::Resume => "resume",
        }
    }
}

/// What must be true. Counts are those since the scenario began.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Expect {
    /// A new connection is answered within this time.
    pub serving: Option<Duration>,
    /// Requests that failed, at most.
    pub failed: Option<u64>,
    /// Connections that were refused, at most.
    pub refused: Option<u64>,
    /// Keep-alive connections that were lost, at most.
    pub lost: Option<u64>,
    /// Requests that were answered, at least.
    pub answered: Option<u64>,
    /// The latency that 99 of 100 requests stay under.
    pub p99: Option<Duration>,
    /// The latency that all stay under.
    pub longest: Option<Duration>,
    /// The time to the next answer that every kill, stop and hang stays under.
    pub takeover: Option<Duration>,
    /// These have another pid than before the last thing that was done.
    pub changed: Vec<Target>,
    /// These have the same.
    pub same: Vec<Target>,
    /// How long `changed` may take to become true.
    pub within: Duration,
}

fn names(who: &[Target]) -> String {
    who.iter().map(|t| t.name()).collect::<Vec<_>>().join(", ")
}

fn lasting(lasts: &Option<Duration>) -> String {
    lasts.map_or(String::new(), |d| format!(" for {}", time(d)))
}

fn time(d: Duration) -> String {
    humantime::format_duration(d).to_string()
}

impl Action {
    /// The key that names it in a file.
    pub fn verb(&self) -> &'static str {
        match self {
            Action::Load(_) | Action::LoadOff => "load",
            Action::Wait(_) => "wait",
            Action::Kill { .. } => "kill",
            Action::Stop { .. } => "stop",
            Action::Hang { .. } => "hang",
            Action::FillDisk { .. } => "fill_disk",
            Action::LimitFds { .. } => "limit_fds",
            Action::Command(_) => "command",
            Action::Expect(_) => "expect",
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        match self {
            Action::Load(r) => format!(
                "load: {} keep-alive connections with {} requests a second each, {} new connections a second",
                r.connections, r.keepalive_rate, r.rate
            ),
            Action::LoadOff => "load: off".into(),
            Action::Wait(d) => format!("wait {}", time(*d)),
            Action::Kill { who, times: 1, .. } => format!("kill {}", names(who)),
            Action::Kill { who, times, every } => {
                format!("kill {}, {times} times, every {}", names(who), time(*every))
            }
            Action::Stop { who, lasts } => format!("stop {}{}", names(who), lasting(lasts)),
            Action::Hang { lasts } => format!("hang a thread of the server{}", lasting(lasts)),
            Action::FillDisk { leave, lasts, .. } => {
                format!("fill the disk of the state directory but {leave} bytes{}", lasting(lasts))
            }
            Action::LimitFds { who, to, lasts } => {
                format!("limit {} to {to} open files{}", who.name(), lasting(lasts))
            }
            Action::Command(word) => format!("command {}", word.name()),
            Action::Expect(e) => format!("expect {}", e.text()),
        }
    }
}

impl Expect {
    fn text(&self) -> String {
        let count = |what: &str, n: Option<u64>| n.map(|n| format!("{what} {n}"));
        let under = |what: &str, d: Option<Duration>| d.map(|d| format!("{what} {}", time(d)));
        let pids = |what: &str, who: &[Target]| (!who.is_empty()).then(|| format!("{what} {}", names(who)));
        let parts = [
            under("serving within", self.serving),
            count("failed at most", self.failed),
            count("refused at most", self.refused),
            count("lost at most", self.lost),
            count("answered at least", self.answered),
            under("p99 under", self.p99),
            under("longest under", self.longest),
            under("take-over under", self.takeover),
            pids("changed:", &self.changed),
            pids("same:", &self.same),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
    }
}
