//! What is seen of a suite at one moment, and how fast its counters run since the moment before.

use crate::config::Config;
use crate::control;
use crate::cop::status;
use crate::exposition::Exposition;
use crate::suite::Runtime;
use serde_json::Value;
use std::collections::HashMap;
use std::time::Duration;
use supervisor::clock;
use supervisor::identity::{self, ProcessState};

/// How long the manager is given to tell its numbers: it waits a second for the server's.
const PATIENCE: Duration = Duration::from_secs(2);

/// A process, or a thread of one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row {
    /// `cop`, `server`, `job NAME.0`, or the name of a thread.
    pub name: String,
    /// Its number.
    pub pid: Option<i64>,
    /// What it is doing.
    pub state: String,
    /// Seconds since then.
    pub since_s: Option<u64>,
    /// Percent of one processor since the moment before.
    pub cpu: Option<f64>,
    /// Resident memory.
    pub rss_kib: Option<u64>,
    /// How often it was replaced.
    pub restarts: Option<u64>,
    /// How the last one ended.
    pub last_exit: String,
    /// Its threads; a thread has none.
    pub threads: Vec<Row>,
}

/// The connections that wait in the manager.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Queue {
    /// How many.
    pub depth: u64,
    /// How long the oldest has waited.
    pub oldest_ms: u64,
    /// All there were.
    pub total: u64,
    /// Those that were told 503.
    pub expired: u64,
}

/// What the server does, per second since the moment before.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Traffic {
    /// Client connections that are open.
    pub connections: u64,
    /// Requests.
    pub requests: f64,
    /// Answers that are errors of the origins or ours.
    pub failed: f64,
    /// The part of the requests for what may be kept that the cache answered; none: there were no such requests.
    pub hit_ratio: Option<f64>,
}

/// An interruption.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TakeOver {
    /// Seconds ago, if the manager is the one that has seen it.
    pub ago_s: Option<u64>,
    /// Who died.
    pub pid: i64,
    /// How it ended.
    pub how: String,
    /// Who noticed it.
    pub noticed_by: String,
    /// Until the next server was ready.
    pub took_ms: f64,
    /// What became of the connections.
    pub connections: String,
}

/// Everything at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// serving, degraded …
    pub state: String,
    /// Where it listens.
    pub listen: String,
    /// For how long the manager hasn't answered; none: it has.
    pub away: Option<Duration>,
    /// The programs, then the workers of jobs.
    pub rows: Vec<Row>,
    /// Who waits.
    pub queue: Queue,
    /// What the server says of itself; none if it doesn't.
    pub traffic: Option<Traffic>,
    /// Interruptions since the manager began.
    pub takeover_count: u64,
    /// The last of them, the newest first.
    pub takeovers: Vec<TakeOver>,
}

/// Looks again and again.
#[derive(Debug)]
pub struct Watcher {
    config: Config,
    /// Processor time of each thread and process by number, in ticks.
    cpu: HashMap<i64, u64>,
    totals: Option<Totals>,
    at: Duration,
    /// What the manager said last, and when.
    manager: Value,
    answered: Duration,
}

/// Counters of the server.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Totals {
    requests: f64,
    failed: f64,
    hits: f64,
    misses: f64,
}

impl Watcher {
    /// Of the suite of this configuration.
    pub fn new(config: Config) -> Watcher {
        let now = clock::now();
        Watcher { config, cpu: HashMap::new(), totals: None, at: now, manager: Value::Null, answered: now }
    }

    /// Looks. The first time nothing is known of what happens in a second.
    pub fn look(&mut self) -> Snapshot {
        let seen = status::look(&self.config);
        let runtime = Runtime::new(&self.config.suite.runtime_dir);
        let now = clock::now();
        let mut s = Snapshot { state: text(&seen.status["suite"]["state"]), ..Snapshot::default() };
        let mut numbers = None;
        if seen.manager.is_null() {
            s.away = Some(now.saturating_sub(self.answered));
        } else {
            self.answered = now;
            self.manager = seen.manager;
            numbers = match control::request(&runtime.control(), "GET", "/metrics", PATIENCE) {
                Ok((200, text)) => Exposition::parse(&text).ok(),
                _ => None,
            };
        }
        let passed = now.saturating_sub(self.at).as_secs_f64();
        s.traffic = numbers.and_then(|n| self.traffic(&n, passed));
        s.rows = rows(&seen.status, &self.manager);
        self.measure(&mut s.rows, passed);
        s.take(&self.manager);
        self.at = now;
        s
    }

    fn traffic(&mut self, numbers: &Exposition, passed: f64) -> Option<Traffic> {
        let connections = numbers.sum("traffic_client_connections")? as u64;
        let now = Totals::of(numbers);
        let since = self.totals.replace(now).map(|before| now.since(&before));
        let mut t = Traffic { connections, ..Traffic::default() };
        if let Some(d) = since.filter(|_| passed > 0.0) {
            let asked = d.hits + d.misses;
            t.requests = d.requests / passed;
            t.failed = d.failed / passed;
            t.hit_ratio = (asked > 0.0).then(|| d.hits / asked);
        }
        Some(t)
    }

    /// Threads, memory and processor time, from the kernel.
    fn measure(&mut self, rows: &mut [Row], passed: f64) {
        let mut ticks = HashMap::new();
        for row in rows {
            let Some(pid) = row.pid.and_then(|p| i32::try_from(p).ok()) else { continue };
            let Ok(look) = identity::look(pid) else { continue };
            row.rss_kib = Some(look.rss / 1024);
            ticks.insert(i64::from(pid), look.cpu);
            row.cpu = self.percent(i64::from(pid), look.cpu, passed);
            for t in identity::threads(pid) {
                // the first thread has the process's number, and times of its own
                let key = -i64::from(t.tid);
                ticks.insert(key, t.cpu);
                row.threads.push(Row {
                    name: t.name,
                    pid: Some(i64::from(t.tid)),
                    state: word(t.state),
                    cpu: self.percent(key, t.cpu, passed),
                    ..Row::default()
                });
            }
        }
        self.cpu = ticks;
    }

    fn percent(&self, key: i64, ticks: u64, passed: f64) -> Option<f64> {
        let before = *self.cpu.get(&key)?;
        let seconds = ticks.saturating_sub(before) as f64 / identity::ticks_per_second() as f64;
        (passed > 0.0).then(|| seconds / passed * 100.0)
    }
}

impl Totals {
    fn of(numbers: &Exposition) -> Totals {
        let those = |outcomes: &[&str]| {
            let fits = |o: &String| outcomes.contains(&o.as_str());
            let counted = numbers.sum_where("traffic_requests_total", |l| l.get("outcome").is_some_and(fits));
            counted.unwrap_or(0.0)
        };
        Totals {
            requests: numbers.sum("traffic_requests_total").unwrap_or(0.0),
            failed: those(&["unreachable", "timeout", "broken", "failed"]),
            hits: those(&["hit", "stale", "revalidated"]),
            misses: those(&["miss"]),
        }
    }

    /// What has come since; another server has begun anew.
    fn since(&self, before: &Totals) -> Totals {
        let before = if self.requests < before.requests { &Totals::default() } else { before };
        let less = |now: f64, then: f64| (now - then).max(0.0);
        Totals {
            requests: less(self.requests, before.requests),
            failed: less(self.failed, before.failed),
            hits: less(self.hits, before.hits),
            misses: less(self.misses, before.misses),
        }
    }
}

impl Snapshot {
    /// What the manager says, or said last.
    fn take(&mut self, manager: &Value) {
        let list = manager["listen"].as_array().into_iter().flatten();
        self.listen = list.map(text).collect::<Vec<_>>().join(" ");
        let q = &manager["queue"];
        let n = |v: &Value| v.as_u64().unwrap_or(0);
        self.queue = Queue {
            depth: n(&q["depth"]),
            oldest_ms: n(&q["oldest_ms"]),
            total: n(&q["total"]),
            expired: n(&q["expired"]),
        };
        self.takeover_count = n(&manager["incidents"]["count"]);
        let uptime = manager["manager"]["uptime_s"].as_u64();
        let last = manager["incidents"]["last"].as_array().into_iter().flatten().rev();
        self.takeovers = last.map(|i| takeover(i, uptime)).collect();
    }
}

fn takeover(i: &Value, uptime: Option<u64>) -> TakeOver {
    let account = i["connections"].as_object().into_iter().flatten();
    TakeOver {
        ago_s: uptime.zip(i["uptime_s"].as_u64()).map(|(now, then)| now.saturating_sub(then)),
        pid: i["pid"].as_i64().unwrap_or(0),
        how: text(&i["how"]),
        noticed_by: text(&i["noticed_by"]),
        took_ms: i["takeover_ms"].as_f64().unwrap_or(0.0),
        connections: account.map(|(what, n)| format!("{n} {what}")).collect::<Vec<_>>().join(", "),
    }
}

/// The programs and the workers of jobs, without what only the kernel knows.
fn rows(status: &Value, manager: &Value) -> Vec<Row> {
    let row = |name: String, v: &Value| Row {
        name,
        pid: v["pid"].as_i64(),
        state: text(&v["state"]),
        since_s: v["since_s"].as_u64(),
        restarts: v["restarts"].as_u64(),
        last_exit: text(&v["last_exit"]),
        ..Row::default()
    };
    let mut rows: Vec<Row> =
        status["processes"].as_array().into_iter().flatten().map(|p| row(text(&p["name"]), p)).collect();
    for job in manager["jobs"].as_array().into_iter().flatten() {
        let name = text(&job["name"]);
        let workers = job["workers"].as_array().into_iter().flatten();
        let before = rows.len();
        rows.extend(workers.map(|w| row(format!("{name}.{}", w["index"]), w)));
        if rows.len() == before {
            rows.push(Row { name, state: text(&job["state"]), ..Row::default() });
        }
    }
    rows
}

/// Text of others: nothing in it moves a cursor.
fn text(v: &Value) -> String {
    v.as_str().unwrap_or("").chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn word(state: ProcessState) -> String {
    let word = match state {
        ProcessState::Running => "running",
        ProcessState::Sleeping => "waiting",
        ProcessState::Uninterruptible => "blocked",
        ProcessState::Stopped => "stopped",
        ProcessState::Traced => "traced",
        ProcessState::Zombie => "dead",
        ProcessState::Other(_) => "?",
    };
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rates_are_of_the_time_between_and_begin_anew_with_another_server() {
        let mut w = Watcher::new(Config::default());
        let mut told = |hits: u32, misses: u32, failed: u32| {
            let text = format!(
                "traffic_requests_total{{outcome=\"hit\"}} {hits}\ntraffic_requests_total{{outcome=\"miss\"}} {misses}\n\
                 traffic_requests_total{{outcome=\"timeout\"}} {failed}\ntraffic_client_connections 3\n"
            );
            w.traffic(&Exposition::parse(&text).unwrap(), 2.0).unwrap()
        };
        assert_eq!(told(10, 10, 0), Traffic { connections: 3, ..Traffic::default() });
        let t = told(16, 12, 4);
        assert_eq!((t.requests, t.failed, t.hit_ratio), (6.0, 2.0, Some(0.75)));
        // the next one
        let t = told(2, 0, 0);
        assert_eq!((t.requests, t.failed, t.hit_ratio), (1.0, 0.0, Some(1.0)));
        assert_eq!(told(2, 0, 0).hit_ratio, None);
        assert_eq!(w.traffic(&Exposition::default(), 1.0), None, "a server that says nothing");
    }

    #[test]
    fn jobs_stand_below_the_programs_and_take_overs_are_newest_first() {
        let status = json!({ "processes": [{ "name": "cop", "pid": 5, "state": "running", "restarts": 1 }] });
        let manager = json!({
            "listen": ["127.0.0.1:80", "unix:/x"],
            "jobs": [
                { "name": "mail", "workers": [{ "index": 0, "pid": 9, "state": "ready" }] },
                { "name": "nightly", "workers": [], "state": "asleep" },
            ],
            "queue": { "depth": 7, "oldest_ms": 30, "total": 99, "expired": 2 },
            "manager": { "uptime_s": 100 },
            "incidents": { "count": 2, "last": [
                { "pid": 1, "uptime_s": 40 },
                { "pid": 2, "how": "killed\u{1b}[2J", "uptime_s": 90, "takeover_ms": 1.5, "connections": { "resumed": 4 } },
            ] },
        });
        let said: Vec<_> =
            rows(&status, &manager).into_iter().map(|r| format!("{} {}", r.name, r.state)).collect();
        assert_eq!(said, ["cop running", "mail.0 ready", "nightly asleep"]);
        let mut s = Snapshot::default();
        s.take(&manager);
        assert_eq!((s.queue.depth, s.queue.expired, s.listen.as_str()), (7, 2, "127.0.0.1:80 unix:/x"));
        assert_eq!((s.takeovers[0].pid, s.takeovers[0].ago_s, s.takeover_count), (2, Some(10), 2));
        assert_eq!(s.takeovers[0].connections, "4 resumed");
        assert!(!s.takeovers[0].how.contains('\u{1b}'));
    }

    #[test]
    fn our_own_threads_and_times_are_measured() {
        let mut w = Watcher::new(Config::default());
        let me = || vec![Row { pid: Some(i64::from(std::process::id())), ..Row::default() }];
        let mut rows = me();
        w.measure(&mut rows, 1.0);
        assert!(rows[0].rss_kib.unwrap() > 100 && !rows[0].threads.is_empty());
        assert_eq!(rows[0].cpu, None, "nothing to compare with");
        let mut rows = me();
        w.measure(&mut rows, 1.0);
        assert!(rows[0].cpu.is_some() && rows[0].threads[0].cpu.is_some());
    }
}
