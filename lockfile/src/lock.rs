//! Taking and leaving a lock.
//!
//! ```text
//!             open()            get()
//!   closed ----------> open ----------> held
//!      ^                 |                |
//!      +-----------------+----------------+
//!               close(), drop
//! ```
//!
//! The file is open in one [`Lockfile`] of the process at most.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::file::{self, Purpose};
use crate::holder::{Holder, State};
use crate::registry::{self, FileId, Registry, Use};

/// A lock that is its holder's sign of life. See the crate's documentation for its rules.
#[derive(Debug)]
pub struct Lockfile {
    path: PathBuf,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    id: FileId,
    held: bool,
    /// The process that opened it; a forked child inherits this value, but not the lock.
    pid: u32,
}

/// What came of trying to take a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Got {
    /// It is ours, and the file has our pid.
    Acquired,
    /// Somebody else has it.
    Held(Holder),
}

/// How often the lock is tried when the kernel refuses it and then says that it is free, or when the file is replaced.
const ATTEMPTS: u32 = 8;

impl Lockfile {
    /// A lock on the file at `path`. Nothing is opened yet.
    pub fn new(path: impl Into<PathBuf>) -> Lockfile {
        Lockfile { path: path.into(), open: None }
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this process has the lock by this value.
    pub fn is_held(&self) -> bool {
        self.open.as_ref().is_some_and(|o| o.held && o.ours())
    }

    /// Whether the lock is ours and its path still names the file that is locked. A lock on a file that was removed excludes
    /// nobody, and nobody finds its holder.
    pub fn is_in_place(&self) -> bool {
        self.open.as_ref().is_some_and(|o| o.held && o.ours() && file::names(&self.path, o.id))
    }

    /// Opens the file, creating it if necessary, and asks whether somebody else has the lock. Never takes it.
    ///
    /// Says [`State::Free`] too if the lock is ours already.
    pub fn open(&mut self) -> Result<State, Error> {
        let mut register = registry::lock();
        let path = self.path.clone();
        let open = self.ensure_open(&mut register)?;
        Ok(file::holder(&open.file, &path)?.map_or(State::Free, State::Held))
    }

    /// Takes the lock if nobody else has it, and writes our pid into the file. Never waits.
    ///
    /// A lock does not go over a `fork`, so a daemon takes it after its last one.
    pub fn get(&mut self) -> Result<Got, Error> {
        let mut register = registry::lock();
        for _ in 0..ATTEMPTS {
            let path = self.path.clone();
            let open = self.ensure_open(&mut register)?;
            if open.held {
                return Ok(Got::Acquired);
            }
            if !file::try_lock(&open.file, &path)? {
                match file::holder(&open.file, &path)? {
                    Some(holder) => return Ok(Got::Held(holder)),
                    // given up between the two calls
                    None => continue,
                }
            }
            open.held = true;
            register.set(open.id, Use::Held);
            if !file::names(&path, open.id) {
                // removed or replaced since it was opened: the next one would lock another file
                self.leave(&mut register)?;
                continue;
            }
            if let Err(e) = open.write_pid() {
                let _ = self.leave(&mut register);
                return Err(Error::os("write", &path)(e));
            }
            return Ok(Got::Acquired);
        }
        Err(Error::Contended { path: self.path.clone(), attempts: ATTEMPTS })
    }

    /// Gives the lock up by closing the file, emptied first, so that no stale pid stays. Nothing happens if it is not open.
    ///
    /// The file is closed in any case; an error says that it could not be emptied.
    pub fn close(&mut self) -> Result<(), Error> {
        self.leave(&mut registry::lock())
    }

    /// Asks who holds the lock at `path`, without taking it and without creating the file.
    ///
    /// In the process that holds the lock the close at the end would drop it, so there this is
    /// [`Error::HeldHere`] before anything is opened.
    pub fn holder(path: impl AsRef<Path>) -> Result<Option<Holder>, Error> {
        Ok(probe(path.as_ref())?.and_then(|(holder, _)| holder))
    }

    fn ensure_open(&mut self, register: &mut Registry) -> Result<&mut Open, Error> {
        if self.open.as_ref().is_some_and(|o| !o.ours()) {
            // inherited over a fork: our copy of the descriptor, and nobody's lock
            self.open = None;
        }
        if self.open.is_none() {
            let (file, id) = file::open(&self.path, Purpose::Lock, register)?
                .expect("opening for a lock creates the file");
            register.set(id, Use::Open);
            self.open = Some(Open { file, id, held: false, pid: std::process::id() });
        }
        Ok(self.open.as_mut().expect("opened above"))
    }

    fn leave(&mut self, register: &mut Registry) -> Result<(), Error> {
        let Some(open) = self.open.take() else { return Ok(()) };
        if !open.ours() {
            return Ok(());
        }
        let emptied = if open.held { open.file.set_len(0) } else { Ok(()) };
        drop(open.file);
        register.remove(open.id);
        emptied.map_err(Error::os("empty", &self.path))
    }
}

/// More than this is no pid of a dead holder.
const LONGEST: usize = 64;

impl Open {
    fn ours(&self) -> bool {
        self.pid == std::process::id()
    }

    /// Over what is there, so that no room is needed where a dead holder's pid stands: the disk may be full. Between the two
    /// calls a longer one is covered by empty lines.
    fn write_pid(&self) -> std::io::Result<()> {
        let text = format!("{}\n", self.pid);
        let old = usize::try_from(self.file.metadata()?.len()).unwrap_or(0).min(LONGEST);
        let padding = "\n".repeat(old.saturating_sub(text.len()));
        self.file.write_all_at(format!("{text}{padding}").as_bytes(), 0)?;
        self.file.set_len(text.len() as u64)
    }
}

impl Drop for Lockfile {
    fn drop(&mut self) {
        let _ = self.close();
    }
}

impl Lockfile {
    /// The open file, for whoever has to close it behind our back: a process that shares our descriptor table and
    /// outlives us. In this process, never close a duplicate of it.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.open.as_ref().map(|o| o.file.as_fd())
    }
}

/// Who holds the lock at `path`, and which file that is; `None` if there is no such file.
pub(crate) fn probe(path: &Path) -> Result<Option<(Option<Holder>, FileId)>, Error> {
    let mut register = registry::lock();
    let Some((file, id)) = file::open(path, Purpose::Probe, &mut register)? else { return Ok(None) };
    let holder = file::holder(&file, path);
    // closed before the register is unlocked, on every way out
    drop(file);
    drop(register);
    Ok(Some((holder?, id)))
}
