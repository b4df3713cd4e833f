//! A private suite: the release programs, a directory of its own, free ports, and its log as the stream of what happens.

use anyhow::{Context, bail, ensure};
use lockfile::Lockfile;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use supervisor::pidfd::PidFd;
use tempfile::TempDir;

/// Longer than anything may take here, with all else that the machine does.
pub const LONG: Duration = Duration::from_secs(60);
const SIGKILL: i32 = 9;

/// Lines that were logged, each with the time when it came.
#[derive(Default)]
struct Log {
    lines: Mutex<Vec<(Instant, String)>>,
    ended: AtomicBool,
    more: Condvar,
}

impl Log {
    fn follow(self: &Arc<Log>, from: impl Read + Send + 'static) {
        let log = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                log.lines.lock().expect("no panic").push((Instant::now(), line));
                log.more.notify_all();
            }
            // under the lock, so that nobody misses it who has just looked
            let _lines = log.lines.lock().expect("no panic");
            log.ended.store(true, Ordering::Relaxed);
            log.more.notify_all();
        });
    }
}

/// One that runs; it ends with this value, and with this process.
pub struct Suite {
    dir: TempDir,
    programs: PathBuf,
    log: Arc<Log>,
    cop: Child,
}

impl Suite {
    /// Starts it and waits until it serves. `config` goes on from `[server]`.
    ///
    /// # Errors
    /// It doesn't serve in time.
    pub fn start(config: &str) -> anyhow::Result<Suite> {
        let programs =
            std::env::var_os("TRAFFIC_BIN").context("TRAFFIC_BIN isn't set: use benches/scale/run")?;
        let programs = PathBuf::from(programs).canonicalize().context("TRAFFIC_BIN")?;
        let dir = tempfile::Builder::new().prefix("traffic-scale-").tempdir()?;
        let path = |name: &str| dir.path().join(name);
        let text = format!(
            "[suite]\nallow_root = true\nruntime_dir = {:?}\nstate_dir = {:?}\n\
             [server]\nlisten = [\"127.0.0.1:0\"]\n{config}",
            path("run"),
            path("state"),
        );
        std::fs::write(path("traffic.toml"), text)?;
        let mut cop = Command::new(programs.join("traffic_cop"))
            .args(["start", "-f", "-c"])
            .arg(path("traffic.toml"))
            .env("TRAFFIC_STOP_ON_STDIN_EOF", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting traffic_cop in {}", programs.display()))?;
        let log = Arc::new(Log::default());
        log.follow(cop.stderr.take().context("cop's log")?);
        let suite = Suite { dir, programs, log, cop };
        suite.wait(0, &["traffic_cop", "event=serving"])?;
        Ok(suite)
    }

    /// The number of lines so far.
    pub fn mark(&self) -> usize {
        self.log.lines.lock().expect("no panic").len()
    }

    /// When the first line after `mark` came that holds all of `needles`.
    ///
    /// # Errors
    /// None comes; with the end of the log.
    pub fn wait(&self, mark: usize, needles: &[&str]) -> anyhow::Result<Instant> {
        self.wait_all(mark, needles, 1)
    }

    /// The same of the last of so many lines.
    ///
    /// # Errors
    /// So many don't come; with the end of the log.
    pub fn wait_all(&self, mark: usize, needles: &[&str], many: usize) -> anyhow::Result<Instant> {
        let begun = Instant::now();
        let mut lines = self.log.lines.lock().expect("no panic");
        let (mut seen, mut left) = (mark, many);
        loop {
            for (at, line) in &lines[seen..] {
                left -= usize::from(needles.iter().all(|n| line.contains(n)));
                if left == 0 {
                    return Ok(*at);
                }
            }
            seen = lines.len();
            let time = LONG.saturating_sub(begun.elapsed());
            if time.is_zero() || self.log.ended.load(Ordering::Relaxed) {
                let end: Vec<&str> = lines.iter().rev().take(20).rev().map(|(_, l)| l.as_str()).collect();
                bail!(
                    "{left} of {many} lines with {needles:?} are missing after {:?}:\n{}",
                    begun.elapsed(),
                    end.join("\n")
                );
            }
            lines = self.log.more.wait_timeout(lines, time).expect("no panic").0;
        }
    }

    /// The last time that such a line came.
    ///
    /// # Errors
    /// There is none.
    pub fn last(&self, needles: &[&str]) -> anyhow::Result<Instant> {
        let lines = self.log.lines.lock().expect("no panic");
        let found = lines.iter().rev().find(|(_, line)| needles.iter().all(|n| line.contains(n)));
        found.map(|(at, _)| *at).with_context(|| format!("no line with {needles:?}"))
    }

    /// A file of its runtime directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("run").join(name)
    }

    /// Who holds a program's lock.
    ///
    /// # Errors
    /// Nobody does.
    pub fn pid(&self, program: &str) -> anyhow::Result<i32> {
        let holder = Lockfile::holder(self.file(&format!("{program}.lock")))?;
        Ok(holder.with_context(|| format!("nobody holds {program}.lock"))?.pid)
    }

    /// All its processes: the three, the standby, keepers, jobs.
    ///
    /// # Errors
    /// What the system says.
    pub fn tree(&self) -> anyhow::Result<Vec<i32>> {
        crate::proc::tree(self.cop.id() as i32)
    }

    /// Where it listens.
    ///
    /// # Errors
    /// It doesn't say.
    pub fn addr(&self) -> anyhow::Result<SocketAddr> {
        let text = std::fs::read_to_string(self.file("ports"))?;
        text.lines().next().context("no port")?.parse().context("the suite's address")
    }

    /// SIGKILL; returns when it was sent, once the process is dead.
    ///
    /// # Errors
    /// It isn't there, or doesn't die.
    pub fn kill(&self, program: &str) -> anyhow::Result<Instant> {
        let process = PidFd::open(self.pid(program)?)?;
        let at = Instant::now();
        process.signal(SIGKILL)?;
        process.poll_exit(LONG)?.with_context(|| format!("{program} survived SIGKILL"))?;
        Ok(at)
    }

    /// A command to the manager: what it printed, and how long it took.
    ///
    /// # Errors
    /// It fails.
    pub fn command(&self, args: &[&str]) -> anyhow::Result<(String, Duration)> {
        let mut command = Command::new(self.programs.join("traffic_manager"));
        command.args(args).arg("-c").arg(self.dir.path().join("traffic.toml")).stdin(Stdio::null());
        let begun = Instant::now();
        let done = command.output()?;
        let took = begun.elapsed();
        ensure!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        Ok((String::from_utf8(done.stdout)?, took))
    }

    /// Its status.
    ///
    /// # Errors
    /// It can't be asked.
    pub fn status(&self) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.command(&["status"])?.0)?)
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// It doesn't end, or says that something was wrong.
    pub fn stop(mut self) -> anyhow::Result<()> {
        ensure!(self.end(), "the suite doesn't end within {LONG:?}");
        let status = self.cop.wait()?;
        ensure!(status.success(), "the suite ended with {status}");
        Ok(())
    }

    /// Has it end; did it?
    fn end(&mut self) -> bool {
        drop(self.cop.stdin.take());
        let cop = PidFd::open(self.cop.id() as i32);
        cop.and_then(|c| c.poll_exit(LONG)).is_ok_and(|ended| ended.is_some())
    }
}

impl Drop for Suite {
    fn drop(&mut self) {
        if matches!(self.cop.try_wait(), Ok(Some(_))) {
            return;
        }
        if !self.end() {
            for pid in self.tree().unwrap_or_default() {
                let _ = PidFd::open(pid).and_then(|p| p.signal(SIGKILL));
            }
        }
        let _ = self.cop.wait();
    }
}
