//! Opening a lock file safely, and the two fcntl(2) calls.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{Mode, OFlags};

use crate::error::Error;
use crate::holder::{Holder, TEXT_LIMIT};
use crate::registry::{FileId, Registry, Use};

/// For what a lock file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Just to ask. Never creates the file.
    Probe,
    /// To be locked. Creates the file.
    Lock,
}

/// Opens the file, or says `None` if it is not there and is only to be probed. The caller holds the register over its
/// whole use of a probe, and enters what it keeps.
pub(crate) fn open(
    path: &Path,
    purpose: Purpose,
    register: &mut Registry,
) -> Result<Option<(File, FileId)>, Error> {
    // look before opening: a refusal then has no descriptor to close. What can't be looked at can't be opened either
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.is_file() => return Err(Error::NotRegular { path: path.to_owned() }),
        Ok(meta) => permitted(path, purpose, register.used(id(&meta)))?,
        Err(_) => {}
    }
    let access = match purpose {
        // F_GETLK of a write lock needs no write access, F_SETLK does
        Purpose::Probe => OFlags::RDONLY,
        Purpose::Lock => OFlags::RDWR | OFlags::CREATE,
    };
    // non-blocking, for somebody may put a FIFO there between the look and the open
    let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match rustix::fs::open(path, flags, Mode::from_raw_mode(0o644)) {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::NOENT) if purpose == Purpose::Probe => return Ok(None),
        Err(rustix::io::Errno::LOOP) => return Err(Error::NotRegular { path: path.to_owned() }),
        Err(e) => return Err(Error::os("open", path)(e)),
    };
    let meta = file.metadata().map_err(Error::os("look at", path))?;
    if let Err(refusal) = permitted(path, purpose, register.used(id(&meta))) {
        // the path was made to name our own lock file after we looked: it is open now, and must stay open
        register.keep(id(&meta), OwnedFd::from(file));
        return Err(refusal);
    }
    if !meta.is_file() {
        return Err(Error::NotRegular { path: path.to_owned() });
    }
    Ok(Some((file, id(&meta))))
}

fn permitted(path: &Path, purpose: Purpose, used: Option<Use>) -> Result<(), Error> {
    match (purpose, used) {
        (_, None) | (Purpose::Probe, Some(Use::Open)) => Ok(()),
        (Purpose::Lock, Some(_)) => Err(Error::OpenHere { path: path.to_owned() }),
        (Purpose::Probe, Some(Use::Held)) => Err(Error::HeldHere { path: path.to_owned() }),
    }
}

fn id(meta: &std::fs::Metadata) -> FileId {
    FileId { dev: meta.dev(), ino: meta.ino() }
}

/// Whether `path` still names the file of this identity; a lock on a file that was unlinked excludes nobody.
pub(crate) fn names(path: &Path, file: FileId) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|meta| id(&meta) == file)
}

fn whole_file() -> libc::flock {
    libc::flock { l_type: libc::F_WRLCK as _, l_whence: libc::SEEK_SET as _, l_start: 0, l_len: 0, l_pid: 0 }
}

/// Takes the lock, or says `false` if somebody has it.
pub(crate) fn try_lock(fd: impl AsFd, path: &Path) -> Result<bool, Error> {
    match fcntl(fd, FcntlArg::F_SETLK(&whole_file())) {
        Ok(_) => Ok(true),
        // either, says fcntl(2)
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
        Err(e) => Err(Error::os("lock", path)(e)),
    }
}

/// Asks who else has the lock, and reads what the file says.
pub(crate) fn holder(file: &File, path: &Path) -> Result<Option<Holder>, Error> {
    let mut lock = whole_file();
    fcntl(file, FcntlArg::F_GETLK(&mut lock)).map_err(Error::os("query", path))?;
    if i32::from(lock.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    let mut text = [0; TEXT_LIMIT];
    let n = file.read_at(&mut text, 0).map_err(Error::os("read", path))?;
    Ok(Some(Holder::new(lock.l_pid, &text[..n])))
}
