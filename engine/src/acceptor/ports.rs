//! The addresses that listeners are really bound to, and the file in which others find them: port 0 becomes a port only
//! when it is bound.

use rustix::net::{SocketAddrAny, SocketAddrUnix, getsockname};
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What a listener is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// A TCP address; the port is never 0.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
    /// A Unix socket without a path (abstract).
    Other,
}

impl Bound {
    /// The address of a listening socket.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn of(listener: impl AsFd) -> io::Result<Self> {
        let addr: SocketAddrAny = getsockname(listener)?;
        if let Ok(addr) = SocketAddr::try_from(addr.clone()) {
            return Ok(Bound::Tcp(addr));
        }
        let path = SocketAddrUnix::try_from(addr).ok().and_then(|unix| {
            let path = unix.path()?;
            Some(PathBuf::from(std::ffi::OsStr::from_bytes(path.to_bytes())))
        });
        Ok(path.map_or(Bound::Other, Bound::Unix))
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::Tcp(addr) => addr.fmt(f),
            Bound::Unix(path) => write!(f, "unix:{}", path.display()),
            Bound::Other => f.write_str("unix:"),
        }
    }
}

/// Writes the addresses into a file, one a line. Who reads it sees the old file or the whole new one.
///
/// # Errors
/// What the file system says.
pub fn write_port_file(path: &Path, bound: &[Bound]) -> io::Result<()> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{}", std::process::id()));
    let next = path.with_file_name(name);
    let write = || {
        let mut file = fs::File::create(&next)?;
        for one in bound {
            writeln!(file, "{one}")?;
        }
        fs::rename(&next, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&next)))
}
