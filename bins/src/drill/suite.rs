//! The private suite: its directory, its cop, and its end.

use super::figures::{Figures, PROCESSES};
use super::init::Init;
use super::kills::{self, Target};
use super::origin::Origin;
use crate::logging::Fatal;
use crate::suite::Runtime;
use anyhow::Context;
use lockfile::Lockfile;
use rustix::event::{PollFd, PollFlags, poll};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use supervisor::pidfd::PidFd;
use supervisor::reaper;
use supervisor::signals::Signals;
use supervisor::spawn::{Spec, spawn};

/// How a suite of our own is to be.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// Its directory stays.
    pub keep: bool,
    /// Where its directory is made; the system's place for temporary files if not said.
    pub dir: Option<PathBuf>,
    /// Sections of its configuration besides `[suite]` and `[server]`, which may go on from `[server]`.
    pub more: String,
}

/// A suite of our own.
#[derive(Debug)]
pub struct Suite {
    dir: PathBuf,
    keep: bool,
    runtime: Runtime,
    init: Init,
}

/// A cop that says nothing for so long is replaced.
const WATCHDOG: Duration = Duration::from_secs(2);

impl Suite {
    /// Makes the directory, writes the configuration, starts cop. `more` of the setup must not open its sections again.
    ///
    /// # Errors
    /// A directory or a process can't be made.
    pub fn start(origin: &str, setup: &Setup) -> anyhow::Result<Suite> {
        let keep = setup.keep;
        let dir = fresh_dir(setup.dir.as_deref())?;
        let runtime = Runtime::new(&dir.join("run"));
        let config = format!(
            "[suite]\nruntime_dir = {run:?}\nstate_dir = {state:?}\nallow_root = true\n\
             [server]\nlisten = [\"127.0.0.1:0\"]\ndrain_timeout = \"5s\"\n\
             {more}\n[[route]]\nhost = \"*\"\nprefix = \"/\"\norigin = [{origin:?}]\n",
            run = runtime.dir(),
            state = dir.join("state"),
            more = setup.more,
        );
        fs::write(dir.join("traffic.toml"), config)?;
        let log = File::options().create(true).append(true).open(dir.join("log"))?;
        let program = std::env::current_exe()?;
        let mut init = Init::new(&program, &dir, &dir.join("traffic.toml"), log, Some(WATCHDOG))?;
        init.start()?;
        Ok(Suite { dir, keep, runtime, init })
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its files.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Its state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Who keeps its cop running.
    pub fn init(&self) -> &Init {
        &self.init
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
            if let Some((_, cop)) = self.init.cop()
                && !cop.is_alive()
            {
                let how = cop.wait()?.map_or_else(String::new, |s| s.to_string());
                anyhow::bail!("the suite didn't start: traffic_cop ended: {how}");
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
        let timeout = supervisor::clock::timespec(at_most);
        let mut fds = vec![PollFd::new(&*signals, PollFlags::IN)];
        fds.extend(self.init.cop().map(|(_, cop)| PollFd::new(cop, PollFlags::IN)));
        let _ = poll(&mut fds, Some(&timeout));
        self.tend()?;
        Ok(!signals.pending().is_empty())
    }

    /// What init does: the next cop for one that has ended or hangs, and orphans are reaped.
    ///
    /// # Errors
    /// Cop can't be started again.
    pub fn tend(&mut self) -> anyhow::Result<()> {
        self.init.tend(Duration::ZERO)?;
        let cop = self.init.cop().map(|(pid, _)| pid);
        reaper::reap_strangers(|pid| Some(pid) == cop);
        Ok(())
    }

    /// Runs `traffic_manager` with that word. What it says goes to the log; its end is seen by [`Suite::tend`].
    ///
    /// # Errors
    /// It can't be started.
    pub fn command(&self, word: &'static str) -> anyhow::Result<()> {
        let program = crate::suite::sibling("traffic_manager")?;
        let log = File::options().append(true).open(self.dir.join("log"))?;
        let mut env = crate::suite::child_env(&[]);
        env.retain(|(k, _)| !k.to_string_lossy().starts_with("TRAFFIC_"));
        let argv = ["traffic_manager", word, "--config"].map(OsString::from);
        spawn(&Spec {
            program,
            argv: argv.into_iter().chain([self.dir.join("traffic.toml").into()]).collect(),
            env,
            fds: Vec::new(),
            plain: Vec::new(),
            stdio: [None, Some(log.as_fd()), Some(log.as_fd())],
            cwd: None,
            umask: 0o027,
            nofile: None,
            nice: 0,
            cgroup: None,
            oom_score_adj: None,
            credentials: None,
        })?;
        Ok(())
    }

    /// Waits until the suite is whole and has closed for `quiet` what it no longer needs (idle connections to the origin),
    /// `limit` at most: what it takes then.
    ///
    /// # Errors
    /// Cop can't be started again, or somebody interrupts.
    pub fn rest(
        &mut self,
        quiet: Duration,
        limit: Duration,
        signals: &mut Signals,
    ) -> anyhow::Result<Figures> {
        let until = Instant::now() + limit;
        let (mut open, mut since) = ((0, 0), Instant::now());
        loop {
            let figures = Figures::of(&self.dir, self.init.stored().len());
            let held = [Target::Cop, Target::Manager, Target::Server].iter().all(|t| self.pid(*t).is_some());
            let (whole, now) = (held && figures.processes == PROCESSES, (figures.fds, figures.stored));
            if !whole || now != open {
                (open, since) = (now, Instant::now());
            }
            if whole && since.elapsed() >= quiet || Instant::now() >= until {
                return Ok(figures);
            }
            if self.watch(Duration::from_millis(100), signals)? {
                return Err(Fatal::new(crate::exit::Exit::Failure, "interrupted").into());
            }
        }
    }

    /// Ends it in order, and with force what doesn't end; removes the directory unless it is to be kept.
    ///
    /// # Errors
    /// It had to be ended with force.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let ended = self.init.stop(Duration::from_secs(40))?;
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
        let ended = ended.context("cop didn't end within 40 s")?;
        anyhow::ensure!(ended.code() == Some(0), "cop ended with {ended}");
        anyhow::ensure!(left == 0, "{left} processes were left behind");
        Ok(())
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        // the end of it: after a day of chaos it is large
        let read = || -> std::io::Result<String> {
            let mut log = File::open(self.dir.join("log"))?;
            let size = log.metadata()?.len();
            log.seek(SeekFrom::Start(size.saturating_sub(64 << 10)))?;
            let mut end = Vec::new();
            log.read_to_end(&mut end)?;
            Ok(String::from_utf8_lossy(&end).into_owned())
        };
        let text = read().unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// A new directory that nobody else may enter, with a path short enough for sockets.
fn fresh_dir(place: Option<&Path>) -> anyhow::Result<PathBuf> {
    let place = place.map_or_else(std::env::temp_dir, Path::to_owned);
    for n in 0..1000 {
        let dir = place.join(format!("traffic-drill-{}-{n}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).with_context(|| format!("making {}", dir.display())),
        }
    }
    anyhow::bail!("no free name for a directory in {}", place.display())
}
