//! A process held by pidfd: its number can be recycled, this can't.

use nix::sys::wait::WaitStatus;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, WaitId, WaitIdOptions, pidfd_getfd, pidfd_open,
    pidfd_send_signal, waitid,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// By itself, with this code.
    Exited(i32),
    /// By a signal.
    Signaled {
        /// Which one.
        signal: i32,
        /// Whether it left a core.
        core_dumped: bool,
    },
}

impl ExitStatus {
    /// The exit code, if it ended by itself.
    pub fn code(self) -> Option<i32> {
        match self {
            ExitStatus::Exited(code) => Some(code),
            ExitStatus::Signaled { .. } => None,
        }
    }

    /// How a process will have ended whose threads are dead, and of which the kernel is still clearing something away: as its
    /// parent is going to be told. `None` if it lives, if it can't be seen, and if it ends by itself with code 0, which
    /// /proc doesn't tell from the others.
    pub fn of_dying(pid: i32) -> Option<ExitStatus> {
        let status = procfs::process::Process::new(pid).ok()?.stat().ok()?.exit_code?;
        match WaitStatus::from_raw(nix::unistd::Pid::from_raw(pid), status).ok()? {
            WaitStatus::Exited(_, code) => Some(ExitStatus::Exited(code)).filter(|_| code != 0),
            WaitStatus::Signaled(_, signal, core_dumped) => {
                Some(ExitStatus::Signaled { signal: signal as i32, core_dumped })
            }
            _ => None,
        }
    }
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            ExitStatus::Exited(code) => write!(f, "exit code {code}"),
            ExitStatus::Signaled { signal, core_dumped } => {
                let name = nix::sys::signal::Signal::try_from(signal).map_or("unknown", |s| s.as_str());
                let core = if core_dumped { ", core dumped" } else { "" };
                write!(f, "signal {signal} ({name}{core})")
            }
        }
    }
}

/// A process.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl From<OwnedFd> for PidFd {
    /// A pidfd that somebody else has opened, and that was kept since: it names the process that it always did.
    fn from(fd: OwnedFd) -> PidFd {
        PidFd(fd)
    }
}

impl PidFd {
    /// Is this fd one? For fds that somebody has kept for us.
    pub fn is_one(fd: &OwnedFd) -> bool {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()));
        info.is_ok_and(|text| text.lines().any(|l| l.starts_with("Pid:")))
    }

    /// Takes hold of the process that has this number now. Whether it is the one that is meant, the caller has to look
    /// at after this, not before.
    ///
    /// # Errors
    /// There is no such process, or no fd for it.
    pub fn open(pid: i32) -> io::Result<PidFd> {
        let pid = if pid > 0 { Pid::from_raw(pid) } else { None };
        let pid = pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a process id"))?;
        Ok(PidFd(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Sends a signal by number.
    ///
    /// # Errors
    /// It is gone, we may not, or there's no such signal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let known = Signal::from_named_raw(signal);
        let signal = known.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no such signal"))?;
        Ok(pidfd_send_signal(&self.0, signal)?)
    }

    /// False once it has ended, reaped or not.
    pub fn is_alive(&self) -> bool {
        // a poll(2) that fails is no news of a death
        !matches!(self.poll_exit(Duration::ZERO), Ok(Some(())))
    }

    /// Waits for its end, at most `timeout`: `Some(())` when it has ended.
    ///
    /// # Errors
    /// poll(2) fails.
    pub fn poll_exit(&self, timeout: Duration) -> io::Result<Option<()>> {
        let timeout = crate::clock::timespec(timeout);
        match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(None),
            Ok(_) => Ok(Some(())),
            Err(e) => Err(e.into()),
        }
    }

    /// A duplicate of one of its fds, by pidfd_getfd(2).
    ///
    /// # Errors
    /// It has none of that number, or we mayn't trace it: that takes root, or an ancestor of the same user.
    pub fn duplicate(&self, fd: RawFd) -> io::Result<OwnedFd> {
        Ok(pidfd_getfd(&self.0, fd, PidfdGetfdFlags::empty())?)
    }

    /// Reaps it if it is our child and has ended: how it ended. `None` while it lives.
    ///
    /// # Errors
    /// It isn't our child (ECHILD), or was reaped already.
    pub fn wait(&self) -> io::Result<Option<ExitStatus>> {
        let status = waitid(WaitId::PidFd(self.0.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG)?;
        Ok(status.map(|s| match (s.exit_status(), s.terminating_signal()) {
            (Some(code), _) => ExitStatus::Exited(code),
            (None, Some(signal)) => ExitStatus::Signaled { signal, core_dumped: s.dumped() },
            (None, None) => ExitStatus::Exited(-1),
        }))
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::process::Command;

    #[test]
    // waiting for it by pidfd is what is tested
    #[allow(clippy::zombie_processes)]
    fn says_how_a_child_ended() {
        for (script, want) in [("exit 78", "exit code 78"), ("kill -9 $$", "signal 9 (SIGKILL)")] {
            let c = Command::new("sh").args(["-c", script]).spawn().unwrap();
            let p = PidFd::open(c.id() as i32).unwrap();
            assert!(p.poll_exit(Duration::from_secs(20)).unwrap().is_some());
            assert!(!p.is_alive());
            assert_eq!(ExitStatus::of_dying(c.id() as i32).unwrap().to_string(), want);
            assert_eq!(p.wait().unwrap().unwrap().to_string(), want);
            assert!(p.wait().is_err(), "reaped once");
            assert!(p.signal(9).is_err(), "nothing is signalled any more");
        }
    }

    #[test]
    fn a_fd_of_a_child_is_duplicated() {
        let (mut ours, theirs) = std::io::pipe().unwrap();
        let mut c = Command::new("sleep").arg("60").stdout(theirs).spawn().unwrap();
        let p = PidFd::open(c.id() as i32).unwrap();
        let theirs = p.duplicate(1).unwrap();
        assert!(p.duplicate(i32::MAX).is_err());
        c.kill().unwrap();
        c.wait().unwrap();
        std::fs::File::from(theirs).write_all(b"x").unwrap();
        let mut got = [0];
        ours.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"x");
    }

    #[test]
    fn refuses_what_is_no_process() {
        assert_eq!(ExitStatus::of_dying(std::process::id() as i32), None, "it lives");
        assert_eq!(ExitStatus::of_dying(i32::MAX), None);
        assert!(PidFd::open(0).is_err());
        assert!(PidFd::open(-1).is_err());
        assert!(PidFd::open(i32::MAX).is_err());
        assert!(PidFd::is_one(&PidFd::open(std::process::id() as i32).unwrap().0));
        assert!(!PidFd::is_one(&std::fs::File::open("/dev/null").unwrap().into()));
    }
}
