//! A process that is watched: its pid for people, its pidfd for everything else.

use crate::config::Config;
use crate::suite::{Runtime, SERVER_OF};
use policy::ladder::Rung;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use supervisor::identity::{Identity, look};
use supervisor::pidfd::{ExitStatus, PidFd};
use supervisor::snapshot::Snapshots;
use supervisor::tree;

/// A process in our care.
#[derive(Debug)]
pub struct Ward {
    /// For logs and status.
    pub pid: i32,
    /// Generation of the machine it belongs to.
    pub generation: u64,
    pidfd: Rc<PidFd>,
}

impl Ward {
    /// Holds a process by its pidfd.
    pub fn new(pid: i32, pidfd: PidFd, generation: u64) -> Ward {
        Ward { pid, generation, pidfd: Rc::new(pidfd) }
    }

    /// Takes hold of a process somebody else started, if the lock `path` still shows it once we hold its pidfd: the pid
    /// in between can't have become another process's.
    ///
    /// # Errors
    /// It is gone, the lock has another holder, or it can't be asked.
    pub fn of_lock(path: &std::path::Path, generation: u64) -> io::Result<Option<Ward>> {
        let ask = || lockfile::Lockfile::holder(path).map_err(io::Error::other);
        let Some(before) = ask()? else { return Ok(None) };
        let pidfd = PidFd::open(before.pid)?;
        match ask()? {
            Some(after) if after.pid == before.pid && has_open(after.pid, path) => {
                Ok(Some(Ward::new(after.pid, pidfd, generation)))
            }
            _ => Ok(None),
        }
    }

    /// Takes hold of the server that serves: ours by its lock. One that isn't ours (`server.command`) by the mark that it was started
    /// with, which what it has started has too: of several that have no parent among them, nobody can say which one it is.
    ///
    /// # Errors
    /// As [`Ward::of_lock`].
    pub fn of_server(config: &Config, runtime: &Runtime, generation: u64) -> io::Result<Option<Ward>> {
        if config.server.is_ours() {
            return Ward::of_lock(&runtime.lock("server"), generation);
        }
        let mut found = tree::marked_of(&[SERVER_OF], runtime.dir())?;
        let pids: Vec<i32> = found.iter().map(|f| f.pid).collect();
        found.retain(|f| look(f.pid).is_ok_and(|l| !pids.contains(&l.parent)));
        if let [_, _, ..] = found[..] {
            log::warn!("event=server-unclear pids={pids:?}: which of them is the server?");
        }
        let only = found.pop().filter(|_| found.is_empty());
        Ok(only.map(|f| Ward::new(f.pid, f.pidfd, generation)))
    }

    /// A duplicate of one of its fds.
    ///
    /// # Errors
    /// As [`PidFd::duplicate`].
    pub fn duplicate(&self, fd: RawFd) -> io::Result<OwnedFd> {
        self.pidfd.duplicate(fd)
    }

    /// Its pidfd, for who waits for its end.
    pub fn pidfd(&self) -> Rc<PidFd> {
        self.pidfd.clone()
    }

    /// The same process in another role.
    pub fn promoted(self, generation: u64) -> Ward {
        Ward { generation, ..self }
    }

    /// Has it ended?
    pub fn has_ended(&self) -> bool {
        !self.pidfd.is_alive()
    }

    /// How it ended, if it is our child: this reaps it.
    pub fn reap(&self) -> Option<ExitStatus> {
        self.pidfd.wait().ok().flatten()
    }

    /// Keeps a picture of it, see [`picture`].
    pub fn picture(&self, suite: &crate::config::Suite, why: &str) {
        picture(suite, self.pid, why);
    }

    /// Sends a rung's signal. A stopped process (SIGSTOP) is woken for a polite one, which it couldn't act on else.
    pub fn send(&self, rung: Rung, core_signal: Option<i32>) {
        use nix::libc::{SIGKILL, SIGTERM};
        let signal = match rung {
            Rung::Polite => SIGTERM,
            Rung::Core => core_signal.unwrap_or(SIGKILL),
            Rung::Kill => SIGKILL,
            Rung::Stuck => {
                log::error!("event=stuck pid={} : SIGKILL was sent and it still exists", self.pid);
                return;
            }
        };
        if let Err(e) = self.signal(signal) {
            log::warn!("event=signal-failed pid={} signal={signal}: {e}", self.pid);
        } else if rung == Rung::Polite {
            let _ = self.signal(nix::libc::SIGCONT);
        }
    }

    /// Sends a signal by number.
    ///
    /// # Errors
    /// It is gone, or we may not.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        self.pidfd.signal(signal)
    }
}

/// Keeps a picture of a process that is about to be ended for a fault, in the state directory's `snapshots`.
pub fn picture(suite: &crate::config::Suite, pid: i32, why: &str) {
    let place = Snapshots { dir: suite.state_dir.join("snapshots"), keep: suite.snapshots };
    if place.keep == 0 {
        return;
    }
    match Identity::of(pid) {
        Ok(who) => place.take(&who, why),
        Err(e) => log::warn!("event=snapshot-failed pid={pid}: {e}"),
    }
}

/// Has the process that file open? A keeper holds a dead process's lock for a moment, and the kernel shows the dead one's
/// number, which may be another's by then.
fn has_open(pid: i32, path: &std::path::Path) -> bool {
    let Ok(fds) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        // not ours to look at, so not ours to be wrong about: the kernel's word has to do
        return true;
    };
    fds.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target == path))
}

impl AsFd for Ward {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
