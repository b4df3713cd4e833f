//! Ending processes for certain, within a bound, and nobody else's.
//!
//! A target is held by a pidfd, and its identity is looked at before every signal. First a picture is kept of what is to
//! be ended, then it gets the core signal, if there is one, then the kill signal. When the time is up, whatever is left is
//! reported with the reason; there is no loop around kill(2). `Killer` is the machine for a poll loop, and
//! [`safe_kill`] drives it for those who can wait.

mod killer;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use lockfile::Signal;
use rustix::event::{PollFd, PollFlags, poll};

use crate::clock;
use crate::identity::{Identity, ProcessState};
use crate::pidfd::PidFd;
use crate::snapshot::Snapshots;
pub use killer::{Killer, Next};

/// A process to be ended, held so that its number cannot be recycled unnoticed.
#[derive(Debug)]
pub struct Target {
    /// Who it is.
    pub identity: Identity,
    /// What holds it.
    pub pidfd: PidFd,
}

impl Target {
    /// The process that has this number now. Whether it is the one that is meant, the caller tells by its identity.
    ///
    /// # Errors
    /// There is none, or it ended while it was looked at.
    pub fn of_pid(pid: i32) -> io::Result<Target> {
        let pidfd = PidFd::open(pid)?;
        let identity = Identity::of(pid)?;
        if pidfd.is_alive() {
            // so it was all the time, and the identity is that of the process held
            return Ok(Target { identity, pidfd });
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "the process has ended"))
    }

    /// The process of this identity; `None` if there is no such process any more.
    ///
    /// # Errors
    /// There is, but it cannot be held: we are out of descriptors.
    pub fn of(identity: Identity) -> io::Result<Option<Target>> {
        let pidfd = match PidFd::open(identity.pid) {
            Ok(pidfd) => pidfd,
            Err(e) if e.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(None),
            Err(e) => return Err(e),
        };
        Ok((identity.still() && pidfd.is_alive()).then_some(Target { identity, pidfd }))
    }

    /// From its parts, when the pidfd was taken before the identity was looked at.
    pub fn held(identity: Identity, pidfd: PidFd) -> Target {
        Target { identity, pidfd }
    }
}

/// Who gets the signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The targets.
    Single,
    /// The process groups that the targets lead. A target that leads none, and our own group, are refused.
    Group,
}

/// How to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Sent first, so that a stuck process leaves a core.
    pub core_signal: Option<Signal>,
    /// How long the core signal is given; cut to `timeout`.
    pub core_time: Duration,
    /// Sent to whom the core signal did not end.
    pub kill_signal: Signal,
    /// The bound of the whole.
    pub timeout: Duration,
    /// Who gets the signals.
    pub scope: Scope,
    /// Whether and where to keep pictures.
    pub snapshots: Option<Snapshots>,
}

impl Plan {
    /// SIGKILL to single processes, without a core or a picture.
    pub fn kill(timeout: Duration) -> Plan {
        Plan {
            core_signal: None,
            core_time: timeout / 2,
            kill_signal: Signal::SIGKILL,
            timeout,
            scope: Scope::Single,
            snapshots: None,
        }
    }
}

/// What became of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has ended, and was reaped.
    Gone {
        /// The last signal it was sent; `None` if it ended before any.
        after: Option<Signal>,
    },
    /// It has ended, and its parent has not reaped it. It does no harm but occupy its number.
    Zombie {
        /// The last signal it was sent; `None` if it ended before any.
        after: Option<Signal>,
        /// Who should reap it.
        parent: i32,
    },
    /// A thread of it is deaf to signals, waiting for the disk or the like; it will end when that comes back.
    Uninterruptible {
        /// Where in the kernel it waits, if that can be seen.
        wchan: String,
    },
    /// It is still there.
    StillThere {
        /// What it is doing.
        state: ProcessState,
    },
    /// Its number has gone to another process. Nobody was signalled.
    NotTheSame,
    /// It must not be signalled: it is this process, init, or the group rule of [`Scope::Group`].
    Refused(&'static str),
    /// It could not be signalled.
    Failed(io::ErrorKind),
}

impl Outcome {
    /// Whether it has ended.
    pub fn is_gone(&self) -> bool {
        matches!(self, Outcome::Gone { .. } | Outcome::Zombie { .. } | Outcome::NotTheSame)
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let by = |after: &Option<Signal>| after.map_or("before any signal", Signal::as_str);
        match self {
            Outcome::Gone { after } => write!(f, "gone ({})", by(after)),
            Outcome::Zombie { after, parent } => {
                write!(f, "gone ({}), not reaped by pid {parent}", by(after))
            }
            Outcome::Uninterruptible { wchan } => write!(f, "in uninterruptible sleep ({wchan})"),
            Outcome::StillThere { state } => write!(f, "still there ({state:?})"),
            Outcome::NotTheSame => write!(f, "gone already, its number is another process's"),
            Outcome::Refused(why) => write!(f, "refused: {why}"),
            Outcome::Failed(kind) => write!(f, "could not be signalled: {kind}"),
        }
    }
}

/// What became of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Each target, and with [`Scope::Group`] the members of its group that were seen, with what became of it.
    pub outcomes: Vec<(Identity, Outcome)>,
}

impl Report {
    /// Whether every target has ended.
    pub fn all_gone(&self) -> bool {
        self.outcomes.iter().all(|(_, outcome)| outcome.is_gone())
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (n, (who, outcome)) in self.outcomes.iter().enumerate() {
            write!(f, "{}{who}: {outcome}", if n == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// Ends the targets, and says what became of each. Blocks until all have ended, at most for the plan's timeout.
pub fn safe_kill(targets: Vec<Target>, plan: Plan) -> Report {
    let mut killer = Killer::new(targets, plan, clock::now());
    loop {
        match killer.step(clock::now()) {
            Next::Done(report) => return report,
            Next::Wait { until, fds } => wait(&fds, until.saturating_sub(clock::now())),
        }
    }
}

/// Waits for one of the pidfds, or the time. Coming back early only means another step.
fn wait(fds: &[BorrowedFd<'_>], left: Duration) {
    let left = clock::timespec(left);
    let mut fds: Vec<PollFd<'_>> =
        fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let _ = poll(&mut fds, Some(&left));
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
