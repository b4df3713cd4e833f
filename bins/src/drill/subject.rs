//! What is drilled: a private suite, or the one that runs.

use super::attach::Attached;
use super::kills::Target;
use super::suite::Suite;
use crate::suite::Runtime;
use lockfile::Lockfile;
use rustix::event::{PollFd, PollFlags, poll};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use supervisor::pidfd::PidFd;
use supervisor::signals::Signals;

/// How long somebody may take to hold a lock.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is drilled.
#[derive(Debug)]
pub enum Subject {
    /// A suite of our own, for which we are init.
    Own(Box<Suite>),
    /// One that runs already, and goes on afterwards.
    Running(Box<Attached>),
}

impl Subject {
    /// Its files.
    pub fn runtime(&self) -> &Runtime {
        match self {
            Subject::Own(s) => s.runtime(),
            Subject::Running(a) => a.runtime(),
        }
    }

    /// Its state directory.
    pub fn state_dir(&self) -> PathBuf {
        match self {
            Subject::Own(s) => s.state_dir(),
            Subject::Running(a) => a.state_dir(),
        }
    }

    /// Who holds a program's lock.
    pub fn pid(&self, target: Target) -> Option<i32> {
        Lockfile::holder(self.runtime().lock(target.name())).ok().flatten().map(|h| h.pid)
    }

    /// The holder of a lock, held by pidfd, and asked again once held. `None`: nobody holds it, for seconds.
    ///
    /// # Errors
    /// It may not be touched.
    pub fn hold(&self, target: Target) -> anyhow::Result<Option<(i32, PidFd)>> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(pid) = self.pid(target)
                && let Ok(process) = PidFd::open(pid)
                && self.pid(target) == Some(pid)
                && process.is_alive()
            {
                if let Subject::Running(a) = self {
                    a.may_touch(target, pid)?;
                }
                return Ok(Some((pid, process)));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(None)
    }

    /// Where load and probes go.
    ///
    /// # Errors
    /// It hasn't said.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        match self {
            Subject::Own(s) => s.address(),
            Subject::Running(a) => Ok(a.asked().addr),
        }
    }

    /// What init does; nothing for a suite that has one.
    ///
    /// # Errors
    /// Cop can't be started again.
    pub fn tend(&mut self) -> anyhow::Result<()> {
        match self {
            Subject::Own(s) => s.tend(),
            Subject::Running(_) => Ok(()),
        }
    }

    /// Waits for `at_most`, or until something is to be done (it is done), or somebody interrupts (true).
    ///
    /// # Errors
    /// Cop can't be started again.
    pub fn watch(&mut self, at_most: Duration, signals: &mut Signals) -> anyhow::Result<bool> {
        match self {
            Subject::Own(s) => s.watch(at_most, signals),
            Subject::Running(_) => {
                let timeout = supervisor::clock::timespec(at_most);
                let _ = poll(&mut [PollFd::new(&*signals, PollFlags::IN)], Some(&timeout));
                Ok(!signals.pending().is_empty())
            }
        }
    }

    /// The end of its log, if we have it.
    pub fn log_tail(&self, lines: usize) -> String {
        match self {
            Subject::Own(s) => s.log_tail(lines),
            Subject::Running(_) => "(it is where the suite logs)".into(),
        }
    }

    /// Our own is ended; one that runs goes on.
    ///
    /// # Errors
    /// It didn't end in order.
    pub fn end(&mut self) -> anyhow::Result<()> {
        match self {
            Subject::Own(s) => s.stop(),
            Subject::Running(_) => Ok(()),
        }
    }
}
