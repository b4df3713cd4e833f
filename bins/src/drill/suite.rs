//! The private suite: its directory, its cop, and its end.

use super::kills::{self, Target};
use super::origin::Origin;
use crate::logging::Fatal;
use crate::suite::{Runtime, STOP_ON_EOF};
use anyhow::Context;
use lockfile::Lockfile;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use supervisor::pidfd::PidFd;
use supervisor::reaper;
use supervisor::signals::Signals;

/// A suite of our own.
#[derive(Debug)]
pub struct Suite {
    dir: PathBuf,
    keep: bool,
    runtime: Runtime,
    cop: Child,
    cop_pidfd: PidFd,
    cop_restarts: u64,
}

impl Suite {
    /// Makes the directory, writes the configuration, starts cop.
    ///
    /// # Errors
    /// A directory or a process can't be made.
    pub fn start(origin: &str, keep: bool) -> anyhow::Result<Suite> {
        let dir = fresh_dir()?;
        let runtime = Runtime::new(&dir.join("run"));
        let config = format!(
            "[suite]\nruntime_dir = {run:?}\nstate_dir = {state:?}\nallow_root = true\n\
             [server]\nlisten = [\"127.0.0.1:0\"]\ndrain_timeout = \"5s\"\n\
             [[route]]\nhost = \"*\"\nprefix = \"/\"\norigin = [{origin:?}]\n",
            run = runtime.dir(),
            state = dir.join("state"),
        );
        fs::write(dir.join("traffic.toml"), config)?;
        let cop = start_cop(&dir)?;
        let cop_pidfd = PidFd::open(cop.id() as i32)?;
        Ok(Suite { dir, keep, runtime, cop, cop_pidfd, cop_restarts: 0 })
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How often cop had to be started again.
    pub fn cop_restarts(&self) -> u64 {
        self.cop_restarts
    }

    /// Who holds a program's lock.
    pub fn pid(&self, target: Target) -> Option<i32> {
        Lockfile::holder(self.runtime.lock(target.name())).ok().flatten().map(|h| h.pid)
    }

    /// The first address it listens on.
    ///
    /// # Errors
    /// It hasn't said.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        let text = fs::read_to_string(self.runtime.ports()).context("reading the suite's ports")?;
        Ok(text.lines().next().unwrap_or("").parse()?)
    }

    /// Waits for the first answer.
    ///
    /// # Errors
    /// Cop ended, somebody interrupted, or it took too long.
    pub fn wait_serving(
        &mut self,
        origin: &Origin,
        limit: Duration,
        signals: &mut Signals,
    ) -> anyhow::Result<()> {
        let until = Instant::now() + limit;
        let page = &origin.paths()[0];
        loop {
            if let Some(status) = self.cop.try_wait()? {
                anyhow::bail!("the suite didn't start: traffic_cop ended with {status}");
            }
            let last = match self.address() {
                Ok(addr) => match kills::fetch(addr, page, Duration::from_secs(2)) {
                    Ok(()) => return Ok(()),
                    Err(e) => e,
                },
                Err(e) => format!("{e:#}"),
            };
            anyhow::ensure!(Instant::now() < until, "the suite doesn't serve after {limit:?}: {last}");
            // a change of the suite has no event for us here; its processes and signals have
            if self.watch(Duration::from_millis(20), signals)? {
                return Err(Fatal::new(crate::exit::Exit::Failure, "interrupted").into());
            }
        }
    }

    /// Waits for `at_most`, or until cop ends (it is started again) or somebody interrupts (true).
    ///
    /// # Errors
    /// Cop can't be started again.
    pub fn watch(&mut self, at_most: Duration, signals: &mut Signals) -> anyhow::Result<bool> {
        let timeout =
            Timespec { tv_sec: at_most.as_secs() as i64, tv_nsec: i64::from(at_most.subsec_nanos()) };
        let mut fds = [PollFd::new(&self.cop_pidfd, PollFlags::IN), PollFd::new(&*signals, PollFlags::IN)];
        let _ = poll(&mut fds, Some(&timeout));
        if !self.cop_pidfd.is_alive() {
            self.restart_cop()?;
        }
        reaper::reap_strangers(|pid| pid == self.cop.id() as i32);
        Ok(!signals.pending().is_empty())
    }

    /// What systemd would do.
    ///
    /// # Errors
    /// It can't be started.
    pub fn restart_cop(&mut self) -> anyhow::Result<()> {
        let _ = self.cop.wait();
        self.cop = start_cop(&self.dir)?;
        self.cop_pidfd = PidFd::open(self.cop.id() as i32)?;
        self.cop_restarts += 1;
        Ok(())
    }

    /// Ends it in order, and with force what doesn't end; removes the directory unless it is to be kept.
    ///
    /// # Errors
    /// It had to be ended with force.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let polite = self.cop_pidfd.signal(nix::libc::SIGTERM);
        let gone = self.cop_pidfd.poll_exit(Duration::from_secs(40))?.is_some();
        if !gone {
            let _ = self.cop_pidfd.signal(nix::libc::SIGKILL);
        }
        let _ = self.cop.wait();
        // we are the subreaper of all of them: whoever is left is our child now
        let mut left = 0;
        for _ in 0..100 {
            reaper::reap_strangers(|_| false);
            let children = reaper::children();
            if children.is_empty() {
                break;
            }
            for p in children.iter().filter_map(|&pid| PidFd::open(pid).ok()) {
                left += 1;
                let _ = p.signal(nix::libc::SIGKILL);
                let _ = p.poll_exit(Duration::from_secs(2));
            }
        }
        if !self.keep {
            fs::remove_dir_all(&self.dir).with_context(|| format!("removing {}", self.dir.display()))?;
        }
        anyhow::ensure!(polite.is_ok() || gone, "cop couldn't be asked to end");
        anyhow::ensure!(gone, "cop didn't end within 40 s");
        anyhow::ensure!(left == 0, "{left} processes were left behind");
        Ok(())
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// A new directory that nobody else may enter, with a path short enough for sockets.
fn fresh_dir() -> anyhow::Result<PathBuf> {
    for n in 0..1000 {
        let dir = std::env::temp_dir().join(format!("traffic-drill-{}-{n}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).with_context(|| format!("making {}", dir.display())),
        }
    }
    anyhow::bail!("no free name for a directory in {}", std::env::temp_dir().display())
}

fn start_cop(dir: &Path) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(dir.join("log"))?;
    let program = std::env::current_exe()?;
    let mut command = Command::new(&program);
    command
        .args(["start", "--foreground", "--config"])
        .arg(dir.join("traffic.toml"))
        .env(STOP_ON_EOF, "1")
        // its end is ours: the pipe ends with this process, however that ends
        .stdin(Stdio::piped())
        .stdout(log.as_fd().try_clone_to_owned()?)
        .stderr(log)
        .process_group(0);
    for (key, _) in std::env::vars_os().filter(|(k, _)| k.to_string_lossy().starts_with("TRAFFIC_")) {
        command.env_remove(key);
    }
    command.env(STOP_ON_EOF, "1");
    command.spawn().with_context(|| format!("starting {}", program.display()))
}
