//! Ending the holder of a lock, and nobody else.
//!
//! The steps, and what each is for:
//!
//! 1. `F_GETLK` names a pid (the file's text is not asked).
//! 2. A pidfd of that pid is taken.
//! 3. `F_GETLK` again: still that pid? Then the pidfd is the holder's, unless the number was recycled before step 1.
//! 4. Has that process the file open? If not, the lock is kept by a descriptor table that outlived its process, and the
//!    pid is a stranger's.
//! 5. Signals go to the pidfd, and the end is seen by it. The whole is bounded by a timeout.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::io::Errno;
use rustix::process::{Pid, getpgid, getpgrp};

use crate::error::Error;
use crate::evidence::{self, Evidence};
use crate::holder::Process;
use crate::lock::{Lockfile, probe};
use crate::registry::FileId;
use crate::sys;

/// What came of killing a holder. The pids are the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Killed {
    /// The lock was free.
    NobodyHeldIt,
    /// The holder has ended.
    Gone {
        /// The holder.
        pid: i32,
        /// The last signal sent before it ended: the core signal, or the kill signal.
        after: Signal,
        /// Whether the lock is free now. If not, somebody was faster, or a process that shares the dead one's
        /// descriptors keeps it.
        lock_free: bool,
    },
    /// The holder was signalled, and was still there when the time was up: a process in uninterruptible sleep, or one
    /// that withstands a signal that can be withstood.
    StillThere {
        /// The holder.
        pid: i32,
    },
    /// The holder was dead before any signal; a process that shares its descriptors keeps the lock.
    HolderDead {
        /// The pid the kernel still shows.
        pid: i32,
    },
    /// The pid belongs to a process that has not even opened the file: the number of a dead holder was given to a
    /// stranger. It was not signalled.
    Recycled {
        /// The stranger.
        pid: i32,
    },
    /// The kernel shows 0 or a negative number: the holder is outside our pid namespace or on another host.
    Unreachable {
        /// What the kernel shows.
        pid: i32,
    },
}

/// How often holders may come and go while one is looked at.
const ATTEMPTS: u32 = 8;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Single,
    Group,
}

impl Lockfile {
    /// Ends the holder of the lock: with `core_signal` first, if given, so that a stuck process leaves a core; then, if it
    /// is still there when half of `timeout` is over, with `signal`. Blocks until it has ended, but never longer than
    /// `timeout`.
    ///
    /// SIGCONT goes along with every signal but SIGKILL, since a stopped process takes no other.
    pub fn kill(
        &self,
        signal: Signal,
        core_signal: Option<Signal>,
        timeout: Duration,
    ) -> Result<Killed, Error> {
        self.end(signal, core_signal, timeout, Scope::Single)
    }

    /// The same with the process group of the holder, which the holder must lead. The group gets `signal` even when
    /// its leader has ended by the core signal. Whether the holder has ended is waited for, not the others.
    ///
    /// Refused ([`Error::Group`]) for our own group, for that of init, and when the holder is
    /// merely a member, for then the group may contain the shell that started it, and more.
    pub fn kill_group(
        &self,
        signal: Signal,
        core_signal: Option<Signal>,
        timeout: Duration,
    ) -> Result<Killed, Error> {
        self.end(signal, core_signal, timeout, Scope::Group)
    }

    fn end(
        &self,
        signal: Signal,
        core: Option<Signal>,
        timeout: Duration,
        scope: Scope,
    ) -> Result<Killed, Error> {
        let start = Instant::now();
        let (pid, pidfd) = match self.find()? {
            Found::Process(pid, pidfd) => (pid, pidfd),
            Found::Nothing(answer) => return Ok(answer),
        };
        if scope == Scope::Group {
            self.check_group(pid)?;
        }
        let number = pid.as_raw_nonzero().get();
        let mut after = signal;
        let mut gone = false;
        if let Some(core) = core {
            after = core;
            self.send(&pidfd, pid, core, scope)?;
            gone = sys::exits_before(&pidfd, start + timeout / 2);
        }
        if !gone || scope == Scope::Group {
            self.send(&pidfd, pid, signal, scope)?;
        }
        if !gone {
            after = signal;
            gone = sys::exits_before(&pidfd, start + timeout);
        }
        if !gone {
            return Ok(Killed::StillThere { pid: number });
        }
        let lock_free = Lockfile::holder(self.path())?.is_none();
        Ok(Killed::Gone { pid: number, after, lock_free })
    }

    /// Steps 1 to 4.
    fn find(&self) -> Result<Found, Error> {
        for _ in 0..ATTEMPTS {
            let Some((number, process, file)) = self.look()? else {
                return Ok(Found::Nothing(Killed::NobodyHeldIt));
            };
            let Some(pid) = Pid::from_raw(number.max(0)) else {
                return Ok(Found::Nothing(Killed::Unreachable { pid: number }));
            };
            let pidfd = match sys::pidfd(pid) {
                Ok(pidfd) => Some(pidfd),
                Err(Errno::SRCH) => None,
                Err(e) => return Err(Error::os("take a pidfd of the holder of", self.path())(e)),
            };
            let evidence = evidence::look(number, file);
            // asked after both: whatever they found is about the holder only if it still is the holder
            if self.look()? != Some((number, process, file)) {
                continue;
            }
            return Ok(match (pidfd, evidence) {
                (None, _) => Found::Nothing(Killed::HolderDead { pid: number }),
                (Some(fd), _) if sys::exited(&fd) => Found::Nothing(Killed::HolderDead { pid: number }),
                (Some(_), Evidence::HasNot) => Found::Nothing(Killed::Recycled { pid: number }),
                // where we may not look, the kernel's word, given twice, must do
                (Some(fd), Evidence::HasItOpen | Evidence::CannotTell) => Found::Process(pid, fd),
            });
        }
        Err(Error::Contended { path: self.path().to_owned(), attempts: ATTEMPTS })
    }

    fn look(&self) -> Result<Option<(i32, Process, FileId)>, Error> {
        Ok(probe(self.path())?.and_then(|(holder, file)| holder.map(|h| (h.pid, h.process, file))))
    }

    fn check_group(&self, pid: Pid) -> Result<(), Error> {
        let refuse = |pgid: i32, why| {
            Err(Error::Group { path: self.path().to_owned(), pid: pid.as_raw_nonzero().get(), pgid, why })
        };
        let pgid = match getpgid(Some(pid)) {
            Ok(pgid) => pgid,
            // it ended meanwhile; the only group its pidfd can name is the one it led
            Err(Errno::SRCH) => pid,
            Err(e) => return Err(Error::os("look at the process group of the holder of", self.path())(e)),
        };
        forbidden(pgid, getpgrp(), pid).map_or(Ok(()), |why| refuse(pgid.as_raw_nonzero().get(), why))
    }

    fn send(&self, pidfd: &OwnedFd, pid: Pid, signal: Signal, scope: Scope) -> Result<(), Error> {
        let send = |signal| match scope {
            Scope::Single => sys::signal(pidfd.as_fd(), signal).map_err(std::io::Error::from),
            Scope::Group => sys::signal_group(pidfd.as_fd(), pid.as_raw_nonzero().get(), signal),
        };
        match send(signal) {
            Ok(()) => {}
            // gone already: that is what was wanted
            Err(e) if e.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {}
            Err(source) => {
                let (path, pid) = (self.path().to_owned(), pid.as_raw_nonzero().get());
                return Err(Error::Signal { path, pid, signal, source });
            }
        }
        if signal != Signal::SIGKILL {
            // only helps; what the first signal did is what counts
            let _ = send(Signal::SIGCONT);
        }
        Ok(())
    }
}

/// Why the holder's group must not be signalled, if it must not.
fn forbidden(group: Pid, ours: Pid, holder: Pid) -> Option<&'static str> {
    match () {
        () if group.is_init() => Some("it is the group of init"),
        () if group == ours => Some("it is our own"),
        () if group != holder => Some("the holder does not lead it"),
        () => None,
    }
}

enum Found {
    Process(Pid, OwnedFd),
    Nothing(Killed),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_gone_already_needs_no_signal() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let pidfd = sys::pidfd(pid).unwrap();
        child.wait().unwrap();
        let lock = Lockfile::new("nowhere");
        for scope in [Scope::Single, Scope::Group] {
            assert!(lock.send(&pidfd, pid, Signal::SIGTERM, scope).is_ok());
        }
    }

    #[test]
    fn a_group_is_signalled_only_if_it_is_the_holders_own() {
        let pid = |n| Pid::from_raw(n).unwrap();
        let why = |group, ours, holder| forbidden(pid(group), pid(ours), pid(holder));
        assert_eq!(why(1, 7, 1), Some("it is the group of init"));
        assert_eq!(why(1, 1, 8), Some("it is the group of init"));
        assert_eq!(why(7, 7, 7), Some("it is our own"));
        assert_eq!(why(9, 7, 8), Some("the holder does not lead it"));
        assert_eq!(why(8, 7, 8), None);
    }
}
