//! `[[job]]`: a program that the manager keeps running.

use super::Listen;
use super::job_values::{self as values, Url};
use super::value::{self, Raw, Wrong};
use policy::jobs::Restart;
use policy::schedule::{Missed, Schedule};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// More workers than this are a mistake.
pub const MAX_WORKERS: u64 = 1000;

/// One job.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Letters, digits, `-`, `_` and `.`; what commands call it.
    pub name: String,
    /// The program and its arguments; `{fd}`, `{fd1}` … stand for the numbers of its listeners.
    pub command: Vec<String>,
    /// How many of it.
    pub workers: usize,
    /// Start when those are ready; stop before them.
    pub after: Vec<String>,
    /// Of those, the ones whose restart restarts this too.
    pub restart_with: Vec<String>,
    /// Start it with the manager.
    pub autostart: bool,
    /// Start it when the first connection comes.
    pub on_demand: bool,
    /// And stop it when there was none for so long; zero: never.
    pub idle_stop: Duration,
    /// Start it at these times; None: it runs all the time.
    pub schedule: Option<Schedule>,
    /// What becomes of a run that was missed.
    pub missed: Missed,
    /// When it counts as ready.
    pub ready: Ready,
    /// It says `WATCHDOG=1` at least so often; zero: it doesn't.
    pub watchdog: Duration,
    /// How it is asked whether it still works.
    pub alive: Alive,
    /// Between a good answer and the next question.
    pub probe_interval: Duration,
    /// For one answer, also before it is ready.
    pub probe_timeout: Duration,
    /// So many bad or missing answers in a row: it has hung.
    pub probe_failures: u32,
    /// What is done when it ends by itself.
    pub restart: Restart,
    /// Longest wait before a respawn in a crash loop.
    pub respawn_max: Duration,
    /// Ready for so long: its crashes are forgiven.
    pub stable_after: Duration,
    /// So many crashes in a row are answered; 0: all.
    pub give_up_after: u32,
    /// From spawn to ready.
    pub start_grace: Duration,
    /// Sent to end it.
    pub stop_signal: i32,
    /// From then to SIGKILL.
    pub stop_timeout: Duration,
    /// Sockets that the manager holds for it.
    pub listen: Vec<Listen>,
    /// Each worker has sockets of its own on them.
    pub reuseport: bool,
    /// Working directory.
    pub cwd: Option<PathBuf>,
    /// `NAME=value`, besides PATH and what the manager adds.
    pub env: Vec<(String, String)>,
    /// It gets our environment too.
    pub inherit_env: bool,
    /// File mode creation mask.
    pub umask: u32,
    /// Open files; 0 leaves the limit as it is.
    pub nofile: u64,
    /// Who it runs as; None: who we are.
    pub user: Option<String>,
    /// Its group, if not that of its user.
    pub group: Option<String>,
    /// nice(2): added to ours.
    pub nice: i32,
    /// Bytes of memory of all its workers; 0: no limit.
    pub memory_max: u64,
    /// Processors; 0: no limit.
    pub cpu_max: f64,
    /// Processes and threads; 0: no limit.
    pub pids_max: u64,
    /// How readily the kernel kills it when memory is short.
    pub oom_score_adj: Option<i32>,
    /// Where its standard output goes.
    pub stdout: Output,
    /// Where its standard error goes.
    pub stderr: Output,
    /// Bytes after which a file of its output is rotated; 0: it writes to it itself.
    pub output_max_size: u64,
    /// So many rotated ones are kept.
    pub output_keep: usize,
}

/// When a job counts as ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ready {
    /// When it has run for so long.
    Running(Duration),
    /// It says `READY=1` on NOTIFY_SOCKET.
    Notify,
    /// It writes a newline to the descriptor in NOTIFY_FD, or `{notify_fd}` in its command (s6).
    Fd,
    /// Somebody accepts there.
    Tcp(SocketAddr),
    /// Somebody accepts there.
    Unix(PathBuf),
    /// It answers with 2xx or 3xx there.
    Http(Url),
    /// This command ends with code 0.
    Exec(Vec<String>),
}

/// How a job that is ready is asked whether it still works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alive {
    /// It isn't.
    Unasked,
    /// It answers with 2xx or 3xx there.
    Http(Url),
    /// This command ends with code 0.
    Exec(Vec<String>),
    /// It answers on the socket in TRAFFIC_PING_FD, or `{ping_fd}` in its command.
    Ping,
}

/// Where output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// To our log, each line with the job's name.
    Log,
    /// Nowhere.
    Null,
    /// Appended to a file.
    File(PathBuf),
}

impl Default for Job {
    fn default() -> Job {
        Job {
            name: String::new(),
            command: Vec::new(),
            workers: 1,
            after: Vec::new(),
            restart_with: Vec::new(),
            autostart: true,
            on_demand: false,
            idle_stop: Duration::ZERO,
            schedule: None,
            missed: Missed::Run,
            ready: Ready::Running(Duration::from_secs(1)),
            watchdog: Duration::ZERO,
            alive: Alive::Unasked,
            probe_interval: Duration::from_secs(5),
            probe_timeout: Duration::from_secs(2),
            probe_failures: 3,
            restart: Restart::Always,
            respawn_max: Duration::from_secs(30),
            stable_after: Duration::from_secs(10),
            give_up_after: 0,
            start_grace: Duration::from_secs(30),
            stop_signal: nix::libc::SIGTERM,
            stop_timeout: Duration::from_secs(10),
            listen: Vec::new(),
            reuseport: false,
            cwd: None,
            env: Vec::new(),
            inherit_env: false,
            umask: 0o022,
            nofile: 0,
            user: None,
            group: None,
            nice: 0,
            memory_max: 0,
            cpu_max: 0.0,
            pids_max: 0,
            oom_score_adj: None,
            stdout: Output::Log,
            stderr: Output::Log,
            output_max_size: 64 << 20,
            output_keep: 10,
        }
    }
}

/// The keys of `[[job]]`: name, default as an operator would write it (empty: required), what it is for.
pub static JOB_KEYS: &[(&str, &str, &str)] = &[
    (
        "name",
        "",
        "What commands call it: letters, digits, \"-\", \"_\" and \".\", at most 32; not \"server\".",
    ),
    (
        "command",
        "",
        "An array: the program (looked for in PATH without a slash) and its arguments. {fd}, {fd1} … stand for the numbers of its listeners, {notify_fd} for that of `ready = \"fd\"`, {ping_fd} for that of `alive = \"ping\"`.",
    ),
    ("workers", "1", "How many of it, 0 to 1000; `traffic_manager want NAME N` changes it while it runs."),
    ("after", "[]", "Names of jobs: it starts when they are ready, and stops before they do."),
    (
        "restart_with",
        "[]",
        "Those of `after` whose restart (asked for, or for a crash) restarts this too, one worker after the other, when they are ready again.",
    ),
    ("autostart", "true", "false: it waits for `traffic_manager start NAME`."),
    (
        "on_demand",
        "false",
        "true: it starts when the first connection to an address of `listen` comes; that one waits until then.",
    ),
    (
        "idle_stop",
        "\"0s\"",
        "With `on_demand`: it is stopped when no connection to its addresses was open for so long. \"0s\": never.",
    ),
    (
        "schedule",
        "\"none\"",
        "It runs at these times and ends by itself: \"every 5m\", \"daily 03:30\", \"mon-fri 08:00,20:00\" (local time). A run never begins beside the last one.",
    ),
    (
        "missed",
        "\"run\"",
        "What becomes of runs that were missed by more than a minute, since nothing ran or the clock was set: run (one at once, for all of them) or skip.",
    ),
    (
        "ready",
        "\"running 1s\"",
        "When it counts as ready: \"notify\" (READY=1 on NOTIFY_SOCKET), \"fd\" (a newline on the descriptor NOTIFY_FD, as s6), \"http://IP:PORT/path\" or \"http://unix:/SOCKET:/path\" (2xx or 3xx is answered), \"tcp IP:PORT\" or \"unix /PATH\" (somebody accepts there: also the manager, on a socket that it holds), an array (a command that ends with code 0), \"running 1s\".",
    ),
    (
        "watchdog",
        "\"0s\"",
        "It gets WATCHDOG_USEC and says WATCHDOG=1 at least so often, else it is replaced. \"0s\": nothing is asked of it.",
    ),
    (
        "alive",
        "\"none\"",
        "How one that is ready is asked whether it still works: \"ping\" (over the socket TRAFFIC_PING_FD, see docs/jobs.md), an HTTP address or a command as in `ready`. {worker} in an address is the worker's number.",
    ),
    ("probe_interval", "\"5s\"", "Between a good answer and the next question of `alive`."),
    (
        "probe_timeout",
        "\"2s\"",
        "For one answer to `ready` or `alive`; a command's process group is killed then.",
    ),
    ("probe_failures", "3", "So many bad or missing answers in a row: it has hung, and is replaced."),
    (
        "restart",
        "\"always\"",
        "What is done when it ends by itself: always, on-failure (unless with code 0), never.",
    ),
    ("respawn_max", "\"30s\"", "The first respawn is immediate; in a crash loop the wait grows up to this."),
    ("stable_after", "\"10s\"", "One that was ready for so long is forgiven its earlier crashes."),
    ("give_up_after", "0", "So many crashes in a row are answered with a respawn; 0: all."),
    ("start_grace", "\"30s\"", "One that isn't ready after this long has hung."),
    ("stop_signal", "\"SIGTERM\"", "Sent to end it."),
    ("stop_timeout", "\"10s\"", "From then to SIGKILL of its process group."),
    (
        "listen",
        "[]",
        "Sockets that the manager binds and holds for ever, and hands over as LISTEN_FDS: as `server.listen`.",
    ),
    (
        "reuseport",
        "false",
        "true: each worker gets sockets of its own on the TCP addresses of `listen` (SO_REUSEPORT), and the kernel shares connections between them; false: all share one.",
    ),
    ("cwd", "\"/\"", "Working directory."),
    ("env", "[]", "\"NAME=value\", besides PATH, LANG and what the manager adds."),
    ("inherit_env", "false", "true: it gets the manager's environment too."),
    ("umask", "\"022\"", "File mode creation mask, octal."),
    ("user", "\"none\"", "Who it runs as, without any privilege of ours; \"none\": who the manager is."),
    ("group", "\"none\"", "Its group, if not that of `user`; needs `user`."),
    ("nice", "0", "-20 to 19: added to the manager's; a negative one needs CAP_SYS_NICE."),
    ("nofile", "0", "Limit of open files; 0: as the manager's."),
    (
        "memory_max",
        "\"0\"",
        "Memory of all its workers together, such as \"512MiB\"; \"0\": no limit. This and the next two need control groups: see `manager.cgroup`.",
    ),
    ("cpu_max", "0", "Processors, 0.5 for half of one; 0: no limit."),
    ("pids_max", "0", "Processes and threads; 0: no limit."),
    (
        "oom_score_adj",
        "\"none\"",
        "-1000 to 1000: how readily the kernel kills it when memory is short. \"none\": 0, not the manager's; below the manager's only with CAP_SYS_RESOURCE.",
    ),
    ("stdout", "\"log\"", "\"log\" (each line with the job's name), \"null\", or a file to append to."),
    ("stderr", "\"log\"", "As `stdout`."),
    (
        "output_max_size",
        "\"64MiB\"",
        "A file of its output is rotated when it is larger. \"0\": the job writes to the file itself, and nothing is rotated.",
    ),
    ("output_keep", "10", "No more rotated files than these are kept."),
];

impl Job {
    /// Sets a key; `None` if there is no such key.
    pub fn set(&mut self, key: &str, v: &Raw) -> Option<Result<(), Wrong>> {
        let done = match key {
            "name" => name(v).map(|n| self.name = n),
            "command" => values::command(v).map(|c| self.command = c),
            "workers" => value::integer(v, 0, MAX_WORKERS).map(|n| self.workers = n as usize),
            "after" => value::list(v, name).map(|l| self.after = l),
            "restart_with" => value::list(v, name).map(|l| self.restart_with = l),
            "autostart" => value::boolean(v).map(|b| self.autostart = b),
            "on_demand" => value::boolean(v).map(|b| self.on_demand = b),
            "idle_stop" => value::duration(v).map(|d| self.idle_stop = d),
            "schedule" => values::schedule(v).map(|s| self.schedule = s),
            "missed" => values::missed(v).map(|m| self.missed = m),
            "ready" => values::ready(v).map(|r| self.ready = r),
            "watchdog" => value::duration(v).map(|d| self.watchdog = d),
            "alive" => values::alive(v).map(|a| self.alive = a),
            "probe_interval" => value::positive(v).map(|d| self.probe_interval = d),
            "probe_timeout" => value::positive(v).map(|d| self.probe_timeout = d),
            "probe_failures" => value::integer(v, 1, 1000).map(|n| self.probe_failures = n as u32),
            "restart" => restart(v).map(|r| self.restart = r),
            "respawn_max" => value::positive(v).map(|d| self.respawn_max = d),
            "stable_after" => value::positive(v).map(|d| self.stable_after = d),
            "give_up_after" => value::integer(v, 0, 1_000_000).map(|n| self.give_up_after = n as u32),
            "start_grace" => value::positive(v).map(|d| self.start_grace = d),
            "stop_signal" => stop_signal(v).map(|s| self.stop_signal = s),
            "stop_timeout" => value::duration(v).map(|d| self.stop_timeout = d),
            "listen" => value::list(v, value::listen).map(|l| self.listen = l),
            "reuseport" => value::boolean(v).map(|b| self.reuseport = b),
            "cwd" => value::path(v).map(|p| self.cwd = Some(p)),
            "env" => value::list(v, variable).map(|l| self.env = l),
            "inherit_env" => value::boolean(v).map(|b| self.inherit_env = b),
            "umask" => value::mode(v).map(|n| self.umask = n),
            "user" => value::name_or_none(v).map(|u| self.user = u),
            "group" => value::name_or_none(v).map(|g| self.group = g),
            "nice" => nice(v).map(|n| self.nice = n),
            "nofile" => value::integer(v, 0, 1 << 30).map(|n| self.nofile = n),
            "memory_max" => value::bytes(v).map(|n| self.memory_max = n),
            "cpu_max" => value::number(v, 0.0, 10_000.0).map(|n| self.cpu_max = n),
            "pids_max" => value::integer(v, 0, 1 << 22).map(|n| self.pids_max = n),
            "oom_score_adj" => oom(v).map(|n| self.oom_score_adj = n),
            "stdout" => output(v).map(|o| self.stdout = o),
            "stderr" => output(v).map(|o| self.stderr = o),
            "output_max_size" => value::bytes(v).map(|n| self.output_max_size = n),
            "output_keep" => value::integer(v, 0, 100_000).map(|n| self.output_keep = n as usize),
            _ => return None,
        };
        Some(done)
    }

    /// What its control group may have.
    pub fn limits(&self) -> supervisor::cgroup::Limits {
        supervisor::cgroup::Limits { memory: self.memory_max, cpu: self.cpu_max, pids: self.pids_max }
    }

    /// Does another configuration need other processes?
    pub fn differs(&self, other: &Job) -> bool {
        self.of_processes() != other.of_processes()
    }

    /// But for what its processes don't depend on.
    pub fn of_processes(&self) -> Job {
        Job {
            workers: 0,
            after: Vec::new(),
            restart_with: Vec::new(),
            autostart: true,
            on_demand: false,
            idle_stop: Duration::ZERO,
            schedule: None,
            missed: Missed::Run,
            ..self.clone()
        }
    }
}

fn name(v: &Raw) -> Result<String, Wrong> {
    let n = value::text(v)?;
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if n.is_empty() || n.len() > 32 || !n.chars().all(fits) || n == "server" {
        return Err(format!(
            "{n:?} is no name for a job: 1 to 32 letters, digits, \"-\", \"_\" and \".\", and not \"server\""
        ));
    }
    Ok(n)
}

fn restart(v: &Raw) -> Result<Restart, Wrong> {
    match value::text(v)?.as_str() {
        "always" => Ok(Restart::Always),
        "on-failure" => Ok(Restart::OnFailure),
        "never" => Ok(Restart::Never),
        other => Err(format!("{other:?} is none of \"always\", \"on-failure\", \"never\"")),
    }
}

fn stop_signal(v: &Raw) -> Result<i32, Wrong> {
    value::signal(v)?.ok_or_else(|| "needs a signal".into())
}

/// The variables by which the processes of jobs are known: whose (the runtime directory), the job, and the number of the worker.
pub const MARK: [&str; 3] = ["TRAFFIC_JOB_OF", "TRAFFIC_JOB", "TRAFFIC_WORKER"];

fn variable(v: &Raw) -> Result<(String, String), Wrong> {
    let text = value::text(v)?;
    match text.split_once('=') {
        Some((k, _)) if MARK.contains(&k) => {
            Err(format!("{k} is what the manager knows the job's processes by"))
        }
        Some(_) if text.contains('\0') => Err("no variable can have a NUL in it".into()),
        Some((k, v)) if !k.is_empty() => Ok((k.into(), v.into())),
        _ => Err(format!("{text:?} is not NAME=value")),
    }
}

fn nice(v: &Raw) -> Result<i32, Wrong> {
    match v {
        Raw::Int(n) if (-20..=19).contains(n) => Ok(*n as i32),
        other => Err(format!("{other} is not -20 to 19")),
    }
}

fn oom(v: &Raw) -> Result<Option<i32>, Wrong> {
    match v {
        Raw::Text(t) if t == "none" => Ok(None),
        Raw::Int(n) if (-1000..=1000).contains(n) => Ok(Some(*n as i32)),
        other => Err(format!("{other} is neither \"none\" nor -1000 to 1000")),
    }
}

fn output(v: &Raw) -> Result<Output, Wrong> {
    match value::text(v)?.as_str() {
        "log" => Ok(Output::Log),
        "null" => Ok(Output::Null),
        _ => value::path(v).map(Output::File).map_err(|e| format!("{e} (or \"log\", or \"null\")")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::parse_text;
    use super::*;

    #[test]
    fn every_key_of_the_table_is_taken_and_its_default_is_the_default() {
        for (key, default, _) in JOB_KEYS {
            let mut j = Job::default();
            assert!(j.set(key, &Raw::Other("nothing")).is_some(), "{key}");
            let Ok(v) = parse_text(default) else { continue };
            j.set(key, &v).unwrap().unwrap_or_else(|e| panic!("{key}: {e}"));
            if *key == "cwd" {
                j.cwd = None;
            }
            assert_eq!(j, Job::default(), "{key}");
        }
        assert!(Job::default().set("moon", &Raw::Bool(true)).is_none());
    }

    #[test]
    fn what_is_wrong_says_what_was_expected() {
        let wrong = |key: &str, toml: &str| {
            Job::default()
                .set(key, &parse_text(toml).unwrap())
                .unwrap()
                .expect_err(&format!("{key} = {toml}"))
        };
        assert!(wrong("name", "\"a b\"").contains("no name"));
        assert!(wrong("name", "\"server\"").contains("not \"server\""));
        assert!(wrong("command", "\"sleep 1\"").contains("array"));
        assert!(wrong("command", "[]").contains("program"));
        assert!(wrong("command", "[\"a\", \"b\\u0000c\"]").contains("NUL"));
        assert!(wrong("env", "[\"A=b\\u0000c\"]").contains("NUL"));
        assert!(wrong("ready", "\"maybe\"").contains("notify"));
        assert!(wrong("ready", "\"tcp nowhere\"").contains("IP:PORT"));
        assert!(wrong("ready", "\"http://nowhere/\"").contains("IP:PORT"));
        assert!(wrong("ready", "[]").contains("program"));
        assert!(wrong("alive", "\"https://127.0.0.1:1/\"").contains("http://"));
        assert!(wrong("alive", "true").contains("text"));
        assert!(wrong("probe_timeout", "\"0s\"").contains("zero"));
        assert!(wrong("restart", "\"sometimes\"").contains("on-failure"));
        assert!(wrong("env", "[\"A\"]").contains("NAME=value"));
        assert!(wrong("env", "[\"TRAFFIC_JOB=x\"]").contains("TRAFFIC_JOB is what"));
        assert!(wrong("umask", "\"9\"").contains("octal"));
        assert!(wrong("oom_score_adj", "2000").contains("1000"));
        assert!(wrong("stdout", "\"relative\"").contains("log"));
        assert!(wrong("workers", "100000").contains("range"));
    }

    #[test]
    fn only_what_processes_depend_on_makes_a_difference() {
        let a = Job { name: "a".into(), ..Job::default() };
        assert!(!a.differs(&Job { workers: 7, after: vec!["b".into()], autostart: false, ..a.clone() }));
        assert!(a.differs(&Job { command: vec!["x".into()], ..a.clone() }));
        assert!(a.differs(&Job { stop_timeout: Duration::from_secs(1), ..a.clone() }));
    }
}
