//! A private suite for a test: the real programs, a directory of its own, free ports, and its log as the stream of events
//! that tests wait for. Nothing here sleeps: every wait is for a log line, a process's end or an answer, with a deadline.

#![allow(dead_code, unused_imports, reason = "each test program uses its part")]

pub mod jobs;
pub mod lint;
pub mod origin;
pub mod rig;

use lockfile::Lockfile;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use supervisor::pidfd::PidFd;
use tempfile::TempDir;

pub const COP: &str = env!("CARGO_BIN_EXE_traffic_cop");
pub const MANAGER: &str = env!("CARGO_BIN_EXE_traffic_manager");
pub const SERVER: &str = env!("CARGO_BIN_EXE_traffic_server");

pub use nix::libc::{SIGCONT, SIGHUP, SIGKILL, SIGSEGV, SIGSTOP, SIGTERM, SIGUSR1};

/// Longer than anything here may take, also with both cores busy.
pub const LONG: Duration = Duration::from_secs(30);

/// Heartbeats as tight as they may be on a busy machine, so that a hang is found soon.
pub const TIGHT: &str =
    "[cop]\ninterval = \"200ms\"\ntimeout = \"800ms\"\nfailures = 2\nkill_timeout = \"5s\"\n";

/// The lines that all programs of a suite have logged.
#[derive(Default)]
pub struct Log {
    lines: Mutex<Vec<String>>,
    more: Condvar,
}

impl Log {
    pub fn follow(self: &Arc<Log>, from: impl Read + Send + 'static) {
        let log = self.clone();
        std::thread::spawn(move || {
            let mut from = BufReader::new(from);
            let mut line = Vec::new();
            while from.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                log.lines.lock().unwrap().push(String::from_utf8_lossy(&line).trim_end().to_owned());
                log.more.notify_all();
                line.clear();
            }
        });
    }

    /// The number of lines so far: what is waited for next comes after it.
    pub fn mark(&self) -> usize {
        self.lines.lock().unwrap().len()
    }

    /// The first line after `mark` that holds all of `needles`.
    pub fn try_wait(&self, mark: usize, needles: &[&str], within: Duration) -> Option<String> {
        let until = Instant::now() + within;
        let mut lines = self.lines.lock().unwrap();
        let mut seen = mark;
        loop {
            if let Some(l) = lines[seen..].iter().find(|l| needles.iter().all(|n| l.contains(n))) {
                return Some(l.clone());
            }
            seen = lines.len();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            lines = self.more.wait_timeout(lines, left).unwrap().0;
        }
    }

    pub fn text(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }
}

pub struct Suite {
    pub dir: TempDir,
    pub log: Arc<Log>,
    /// Where the programs are, if not where they were built.
    pub programs: Option<PathBuf>,
    /// A command in front of cop's.
    pub wrap: Vec<String>,
    /// For cop's environment.
    pub env: Vec<(String, String)>,
    cop: Option<Child>,
    old: Vec<Child>,
}

impl Suite {
    /// Writes the configuration: a port of its own, and `more` (whole sections).
    pub fn new(more: &str) -> Suite {
        let suite = Suite {
            dir: tempfile::Builder::new().prefix("traffic-test-").tempdir().unwrap(),
            log: Arc::default(),
            programs: None,
            wrap: Vec::new(),
            env: Vec::new(),
            cop: None,
            old: Vec::new(),
        };
        suite.write_config(&format!("[server]\nlisten = [\"127.0.0.1:0\"]\ndrain_timeout = \"3s\"\n{more}"));
        suite
    }

    /// Configured so, started, serving.
    pub fn serving(more: &str) -> Suite {
        let mut s = Suite::new(more);
        s.start();
        s
    }

    pub fn write_config(&self, text: &str) {
        let head = format!(
            "[suite]\nallow_root = true\nruntime_dir = {:?}\nstate_dir = {:?}\n",
            self.run_dir(),
            self.path("state")
        );
        std::fs::write(self.path("traffic.toml"), head + text).unwrap();
    }

    /// Whoever is started finds those files (second of each pair) where the system has its own. Only for root.
    pub fn in_the_place_of(&mut self, files: &[(&str, &Path)]) {
        let mounts = "while [ \"$1\" != -- ]; do mount --bind \"$2\" \"$1\" || exit; shift 2; done; shift; exec \"$@\"";
        let pairs = files.iter().flat_map(|(to, from)| [(*to).to_owned(), from.display().to_string()]);
        let head = ["unshare", "--mount", "sh", "-c", mounts, "sh"].map(str::to_owned);
        self.wrap = head.into_iter().chain(pairs).chain(["--".to_owned()]).collect();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// Starts cop in the foreground, as systemd does, and returns at once.
    pub fn spawn_cop(&mut self) {
        let program = self.program(COP);
        let mut cop = match self.wrap.split_first() {
            None => clean(&program),
            Some((first, args)) => {
                let mut c = clean(first);
                c.args(args).arg(&program);
                c
            }
        };
        cop.args(["start", "-f", "-c"]).arg(self.path("traffic.toml"));
        cop.envs(self.env.iter().cloned());
        // its end is ours: the pipe ends with this process, however that ends
        cop.env("TRAFFIC_STOP_ON_STDIN_EOF", "1").stdin(Stdio::piped()).process_group(0);
        let mut cop = cop.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        self.log.follow(cop.stderr.take().unwrap());
        self.old.extend(self.cop.replace(cop));
    }

    /// Starts it and waits until it says that it serves.
    pub fn start(&mut self) {
        let mark = self.log.mark();
        self.spawn_cop();
        self.wait(mark, &["traffic_cop", "event=serving"]);
    }

    /// Waits for a line after `mark`; fails with the whole log.
    #[track_caller]
    pub fn wait(&self, mark: usize, needles: &[&str]) -> String {
        match self.log.try_wait(mark, needles, LONG) {
            Some(line) => line,
            None => {
                panic!("no line with {needles:?} within {LONG:?} after line {mark}:\n{}", self.log.text())
            }
        }
    }

    pub fn mark(&self) -> usize {
        self.log.mark()
    }

    /// Looks until it is so; fails with the whole log. For what nobody tells.
    #[track_caller]
    pub fn until(&self, what: &str, mut so: impl FnMut() -> bool) {
        let end = Instant::now() + LONG;
        while !so() {
            assert!(Instant::now() < end, "never: {what}\n{}", self.log.text());
            std::thread::yield_now();
        }
    }

    /// Who holds a program's lock.
    pub fn try_pid(&self, program: &str) -> Option<i32> {
        let path = self.run_dir().join(format!("{program}.lock"));
        Lockfile::holder(path).ok().flatten().map(|h| h.pid)
    }

    #[track_caller]
    pub fn pid(&self, program: &str) -> i32 {
        self.try_pid(program).unwrap_or_else(|| panic!("nobody holds {program}.lock:\n{}", self.log.text()))
    }

    pub fn pids(&self) -> [i32; 3] {
        ["cop", "manager", "server"].map(|p| self.pid(p))
    }

    /// Signals a program; waits until SIGKILL has killed it, until SIGSTOP has stopped all its threads. Returns its pid.
    #[track_caller]
    pub fn kill(&self, program: &str, signal: i32) -> i32 {
        let pid = self.pid(program);
        let process = PidFd::open(pid).unwrap();
        process.signal(signal).unwrap();
        if signal == SIGKILL {
            assert!(process.poll_exit(LONG).unwrap().is_some(), "{program} survived SIGKILL");
        }
        let until = Instant::now() + LONG;
        while signal == SIGSTOP && !is_stopped(pid) {
            assert!(Instant::now() < until, "{program} doesn't stop");
            std::thread::yield_now();
        }
        pid
    }

    pub fn addr(&self) -> SocketAddr {
        let text = std::fs::read_to_string(self.run_dir().join("ports")).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }

    /// A connection to it.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::connect(self.addr()).unwrap()
    }

    /// A request on a connection of its own. It waits in the backlog while nobody serves.
    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        match Client::connect(self.addr()).and_then(|mut c| c.get(path)) {
            Ok(a) => a,
            Err(e) => panic!("GET {path}: {e}\n{}", self.log.text()),
        }
    }

    /// Has it use programs of its own, so that one of them can be another one.
    pub fn own_programs(&mut self) {
        let programs = self.path("bin");
        std::fs::create_dir(&programs).unwrap();
        for built in [COP, MANAGER, SERVER] {
            std::fs::copy(built, programs.join(Path::new(built).file_name().unwrap())).unwrap();
        }
        self.programs = Some(programs);
    }

    /// Has every server that is started from now on end with code 3, until what is returned is called.
    pub fn break_server(&self) -> impl FnOnce() + use<> {
        let program = self.programs.as_ref().expect("programs of its own").join("traffic_server");
        let (aside, script) = (program.with_extension("aside"), program.with_extension("script"));
        std::fs::write(&script, "#!/bin/sh\nexit 3\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::hard_link(&program, &aside).unwrap();
        std::fs::rename(&script, &program).unwrap();
        move || std::fs::rename(&aside, &program).unwrap()
    }

    fn program(&self, built: &str) -> String {
        let moved = |dir: &PathBuf| dir.join(Path::new(built).file_name().unwrap()).display().to_string();
        self.programs.as_ref().map_or(built.to_owned(), moved)
    }

    /// A program of the suite with its configuration, to its end.
    pub fn run(&self, program: &str, args: &[&str]) -> Output {
        let mut c = clean(&self.program(program));
        c.args(args).arg("-c").arg(self.path("traffic.toml"));
        output(c)
    }

    /// Ends it in order; checks that nothing is left but locks and state.
    #[track_caller]
    pub fn stop(&mut self) {
        let wards: Vec<_> =
            ["cop", "manager", "server"].iter().filter_map(|p| PidFd::open(self.try_pid(p)?).ok()).collect();
        drop(self.cop.as_mut().unwrap().stdin.take());
        for w in &wards {
            assert!(w.poll_exit(LONG).unwrap().is_some(), "it doesn't end:\n{}", self.log.text());
        }
        let status = self.cop.take().unwrap().wait().unwrap();
        assert_eq!(status.code(), Some(0), "{}", self.log.text());
        self.assert_clean();
    }

    /// Ends it by SIGTERM to this process, and checks the same.
    #[track_caller]
    pub fn terminate(&mut self, first: i32) {
        PidFd::open(first).unwrap().signal(SIGTERM).unwrap();
        let mut cop = self.cop.take().unwrap();
        let ended = PidFd::open(cop.id() as i32).unwrap().poll_exit(LONG).unwrap();
        assert!(ended.is_some(), "it doesn't end:\n{}", self.log.text());
        assert_eq!(cop.wait().unwrap().code(), Some(0), "{}", self.log.text());
        self.assert_clean();
    }

    /// No socket, port or temporary file is left in the runtime directory.
    #[track_caller]
    pub fn assert_clean(&self) {
        for p in ["cop", "manager", "server"] {
            assert_eq!(self.try_pid(p), None, "{p} still holds its lock");
        }
        let jobs: Vec<String> =
            self.jobs_left().iter().map(|f| format!("{} of {:?}", f.pid, f.mark)).collect();
        assert!(jobs.is_empty(), "processes of jobs are left: {jobs:?}\n{}", self.log.text());
        let mut left: Vec<String> = std::fs::read_dir(self.run_dir())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| !n.ends_with(".lock"))
            .collect();
        left.sort();
        assert!(left.is_empty(), "left in the runtime directory: {left:?}");
    }
}

impl Suite {
    /// Processes of its jobs, by their mark.
    fn jobs_left(&self) -> Vec<supervisor::tree::Found> {
        supervisor::tree::marked_of(&["TRAFFIC_JOB_OF", "TRAFFIC_JOB"], &self.run_dir()).unwrap_or_default()
    }
}

impl Drop for Suite {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let files = std::fs::read_dir(self.path("state/snapshots")).into_iter().flatten().flatten();
            for text in files.filter_map(|f| std::fs::read_to_string(f.path()).ok()) {
                eprintln!("{text}");
            }
        }
        // whatever a failed test left: by the ids we know, supervisors first
        let mut seen = VecDeque::from(["cop", "manager", "server", "manager", "server"]);
        while let Some(p) = seen.pop_front() {
            if let Some(w) = self.try_pid(p).and_then(|pid| PidFd::open(pid).ok()) {
                let _ = w.signal(SIGKILL);
                let _ = w.poll_exit(Duration::from_secs(5));
            }
        }
        for mut c in self.cop.take().into_iter().chain(self.old.drain(..)) {
            let _ = c.kill();
            let _ = c.wait();
        }
        for left in self.jobs_left() {
            let _ = left.pidfd.signal(SIGKILL);
        }
    }
}

/// Only root may mount, and be somebody else.
pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("needs root: not tried");
    }
    root
}

/// A program without anything in its environment that means something to the suite.
pub fn clean(program: &str) -> Command {
    let mut c = Command::new(program);
    for (key, _) in std::env::vars_os() {
        let k = key.to_string_lossy();
        if k.starts_with("TRAFFIC_")
            || k.starts_with("LISTEN_")
            || k == "NOTIFY_SOCKET"
            || k == "JOURNAL_STREAM"
        {
            c.env_remove(key);
        }
    }
    c.current_dir("/").stdin(Stdio::null());
    c
}

/// Are all threads of a process stopped? Nobody but its parent is told when, so it is looked at.
pub fn is_stopped(pid: i32) -> bool {
    let Ok(mut tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    tasks.all(|task| {
        let stat = task.and_then(|t| std::fs::read_to_string(t.path().join("stat"))).unwrap_or_default();
        stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
    })
}

/// Runs to the end, with a deadline.
#[track_caller]
pub fn output(mut c: Command) -> Output {
    let mut child = c.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let process = PidFd::open(child.id() as i32).unwrap();
    // a daemon may keep a pipe open: what it wrote until its parent ended is enough, and pipes are read as they fill
    let (out, err) = (slurp(child.stdout.take().unwrap()), slurp(child.stderr.take().unwrap()));
    if process.poll_exit(2 * LONG).unwrap().is_none() {
        let _ = child.kill();
        panic!("{c:?} doesn't end");
    }
    let status = child.wait().unwrap();
    Output { status, stdout: out.join().unwrap(), stderr: err.join().unwrap() }
}

fn slurp(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        let _ = from.read_to_end(&mut all);
        all
    })
}

#[track_caller]
pub fn expect_code(o: &Output, code: i32) -> String {
    let err = String::from_utf8_lossy(&o.stderr).into_owned();
    let out = String::from_utf8_lossy(&o.stdout).into_owned();
    assert_eq!(o.status.code(), Some(code), "stdout: {out}\nstderr: {err}");
    out + &err
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub code: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A client that keeps its connection and never retries.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(to: SocketAddr) -> std::io::Result<Client> {
        Client::connect_within(to, LONG)
    }

    /// One that waits so long for each thing.
    pub fn connect_within(to: SocketAddr, limit: Duration) -> std::io::Result<Client> {
        let stream = TcpStream::connect_timeout(&to, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        Ok(Client { stream: BufReader::new(stream) })
    }

    pub fn get(&mut self, path: &str) -> std::io::Result<Answer> {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))?;
        self.read()
    }

    pub fn send(&mut self, text: &str) -> std::io::Result<()> {
        self.stream.get_mut().write_all(text.as_bytes())
    }

    /// One answer with a Content-Length.
    pub fn read(&mut self) -> std::io::Result<Answer> {
        let bad = |why: &str| std::io::Error::other(why.to_owned());
        let mut answer = self.read_head()?;
        let length = answer
            .head
            .lines()
            .find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length:").map(|n| n.trim().parse()))
            .ok_or_else(|| bad("no length"))?
            .map_err(|_| bad("bad length"))?;
        answer.body = vec![0; length];
        self.stream.read_exact(&mut answer.body)?;
        Ok(answer)
    }

    /// The head of one answer, for those without a body.
    pub fn read_head(&mut self) -> std::io::Result<Answer> {
        let bad = |why: &str| std::io::Error::other(why.to_owned());
        let mut head = String::new();
        loop {
            let before = head.len();
            if self.stream.read_line(&mut head)? == 0 {
                return Err(bad("the connection ended"));
            }
            if &head[before..] == "\r\n" {
                break;
            }
        }
        let code = head.split(' ').nth(1).and_then(|c| c.parse().ok()).ok_or_else(|| bad("no status"))?;
        Ok(Answer { code, head, body: Vec::new() })
    }
}

/// A text file's lines that hold `needle`.
pub fn lines_with(path: &Path, needle: &str) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter(|l| l.contains(needle)).map(str::to_owned).collect()
}
