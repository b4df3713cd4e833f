//! The lock files that this process has open, so that none is opened twice.
//!
//! Whoever opens or closes a lock file does it with the register locked: between another thread's look and its close no
//! lock can be taken that the close would then drop.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a file is, whatever its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileId {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
}

/// How this process uses a lock file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Open, and not locked by us.
    Open,
    /// Locked by us.
    Held,
}

#[derive(Debug)]
struct Entry {
    /// Of the process that made it: a forked child has a copy of the register, but not the locks.
    pid: u32,
    used: Use,
    /// Descriptors that got opened although they should not have been; closing one would drop the lock.
    never_close: Vec<OwnedFd>,
}

#[derive(Debug, Default)]
pub(crate) struct Registry {
    files: BTreeMap<FileId, Entry>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { files: BTreeMap::new() });

pub(crate) fn lock() -> MutexGuard<'static, Registry> {
    // the register is a plain map, valid after each of its operations
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    pub(crate) fn used(&self, id: FileId) -> Option<Use> {
        self.files.get(&id).filter(|e| e.pid == std::process::id()).map(|e| e.used)
    }

    pub(crate) fn set(&mut self, id: FileId, used: Use) {
        let pid = std::process::id();
        let entry = self.files.entry(id).or_insert(Entry { pid, used, never_close: Vec::new() });
        (entry.pid, entry.used) = (pid, used);
    }

    /// The file is not open any more (the caller closes its own descriptor while it still has the register).
    pub(crate) fn remove(&mut self, id: FileId) {
        if self.used(id).is_some() {
            self.files.remove(&id);
        }
    }

    /// Keeps a descriptor that must not be closed before the lock is given up anyway.
    pub(crate) fn keep(&mut self, id: FileId, fd: OwnedFd) {
        match self.files.get_mut(&id) {
            Some(entry) => entry.never_close.push(fd),
            None => drop(fd),
        }
    }
}
