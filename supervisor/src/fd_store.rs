//! The fd store: sockets kept for a process that may die, as systemd's `FileDescriptorStoreMax=` keeps them.

use crate::listen_fds::Inherited;
use std::os::fd::{AsFd, OwnedFd};

/// Why an fd was not kept.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    /// The store has its bound.
    #[error("the fd store is full ({0} fds)")]
    Full(usize),
    /// The names of all fds are handed on in one variable of an environment, which has its bound.
    #[error("the names in the fd store are too long ({NAMES} bytes together)")]
    Names,
}

/// All names together, each with its separator, in bytes: one variable of an environment holds 128 KiB
/// (`MAX_ARG_STRLEN`).
pub const NAMES: usize = 120 << 10;

/// Named fds, bounded. A name may stand for several fds; the same open file is kept once under a name.
#[derive(Debug)]
pub struct FdStore {
    fds: Vec<(String, OwnedFd)>,
    max: usize,
    /// Bytes of names, with separators.
    names: usize,
}

impl FdStore {
    /// An empty store that takes up to `max` fds.
    pub fn new(max: usize) -> Self {
        FdStore { fds: Vec::new(), max, names: 0 }
    }

    /// Keeps `fds` under `name`. One that is stored already (the same open file, by `kcmp`-free comparison of
    /// device and inode) is not stored again.
    ///
    /// # Errors
    /// The store is full; what doesn't fit is closed.
    pub fn add(&mut self, name: &str, fds: Vec<OwnedFd>) -> Result<(), StoreError> {
        for fd in fds {
            let id = identity(&fd);
            if id.is_some() && self.fds.iter().any(|(n, have)| n == name && identity(have) == id) {
                continue;
            }
            if self.fds.len() >= self.max {
                return Err(StoreError::Full(self.max));
            }
            if self.names + name.len() + 1 > NAMES {
                return Err(StoreError::Names);
            }
            self.names += name.len() + 1;
            self.fds.push((name.to_owned(), fd));
        }
        Ok(())
    }

    /// Forgets (closes) all fds of that name.
    pub fn remove(&mut self, name: &str) {
        let before = self.fds.len();
        self.fds.retain(|(n, _)| n != name);
        self.names -= (before - self.fds.len()) * (name.len() + 1);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.fds.clear();
        self.names = 0;
    }

    /// How many fds are kept.
    pub fn len(&self) -> usize {
        self.fds.len()
    }

    /// True if none is kept.
    pub fn is_empty(&self) -> bool {
        self.fds.is_empty()
    }

    /// All of them, for handing on.
    pub fn iter(&self) -> impl Iterator<Item = &(String, OwnedFd)> {
        self.fds.iter()
    }

    /// Takes in what this process itself inherited.
    ///
    /// # Errors
    /// The store is full.
    pub fn adopt(&mut self, inherited: Vec<Inherited>) -> Result<(), StoreError> {
        inherited.into_iter().try_for_each(|i| self.add(&i.name, vec![i.fd]))
    }
}

/// What the kernel says this fd is open on. Two sockets never share an inode.
pub(crate) fn identity(fd: impl AsFd) -> Option<(u64, u64)> {
    rustix::fs::fstat(fd).ok().map(|s| (s.st_dev, s.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> OwnedFd {
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into()
    }

    #[test]
    fn keeps_each_open_file_once_and_never_more_than_its_bound() {
        let mut s = FdStore::new(2);
        let a = socket();
        s.add("listen", vec![a.try_clone().unwrap()]).unwrap();
        s.add("listen", vec![a]).unwrap();
        assert_eq!(s.len(), 1);
        assert_eq!(s.add("listen", vec![socket(), socket()]), Err(StoreError::Full(2)));
        s.remove("other");
        assert_eq!(s.len(), 2);
        let mut s = FdStore::new(usize::MAX);
        let long = "x".repeat(NAMES / 2 - 1);
        s.add(&long, vec![socket(), socket()]).unwrap();
        assert_eq!(s.add("y", vec![socket()]), Err(StoreError::Names));
        s.remove(&long);
        s.add(&long, vec![socket(), socket()]).unwrap();
        let mut s = FdStore::new(2);
        s.add("listen", vec![socket(), socket()]).unwrap();
        s.remove("listen");
        assert!(s.is_empty());
    }
}
