//! What can go wrong, on which file, and why.

use std::io;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

/// A failure of a lock file operation. The operating system's reason, where there is one, is the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} lock file {}", path.display())]
    Os {
        /// What was tried: "open", "lock", "write" and the like.
        action: &'static str,
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path names a symbolic link, directory, socket or device.
    #[error("lock file {} is not a regular file", path.display())]
    NotRegular {
        /// The lock file.
        path: PathBuf,
    },
    /// Another [`Lockfile`](crate::Lockfile) of this process has the file open; closing either would drop the lock of
    /// the other.
    #[error("lock file {} is open already in this process", path.display())]
    OpenHere {
        /// The lock file.
        path: PathBuf,
    },
    /// This process holds the lock itself: a probe would drop it, and a kill would be a suicide.
    #[error("lock file {} is held by this very process", path.display())]
    HeldHere {
        /// The lock file.
        path: PathBuf,
    },
    /// The kernel refused the lock, and yet nobody held it when asked, or holders came and went, time and again.
    #[error("the holder of lock file {} changed {attempts} times while it was looked at", path.display())]
    Contended {
        /// The lock file.
        path: PathBuf,
        /// How many times it was tried.
        attempts: u32,
    },
    /// The process group of the holder must not be signalled: it is our own, or the holder does not lead it and it may
    /// contain anything.
    #[error("will not signal process group {pgid} of the holder of {}, pid {pid}: {why}", path.display())]
    Group {
        /// The lock file.
        path: PathBuf,
        /// The holder.
        pid: i32,
        /// Its process group.
        pgid: i32,
        /// The rule that forbids it.
        why: &'static str,
    },
    /// The holder could not be signalled.
    #[error("cannot send {signal} to pid {pid}, holder of {}", path.display())]
    Signal {
        /// The lock file.
        path: PathBuf,
        /// The holder.
        pid: i32,
        /// The signal.
        signal: Signal,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err` on a system call about the lock file at `path`.
    pub(crate) fn os<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Error {
        move |e| Error::Os { action, path: path.to_owned(), source: e.into() }
    }
}
