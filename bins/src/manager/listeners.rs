//! The listening sockets: taken over from whoever kept them, else bound; never closed while the manager lives.

use crate::config::{self, Config, Listen};
use crate::exit::Exit;
use crate::logging::Fatal;
use crate::privileges;
use crate::suite::{self, Runtime};
use rustix::fs::{Mode, fchmod};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, getsockname, listen, socket_with, sockopt,
};
use rustix::process::umask;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use supervisor::listen_fds::{Inherited, name_for};
use supervisor::notify::Notifier;
use supervisor::{dirs, port};

/// Connections the kernel holds for us while nobody accepts; cut to net.core.somaxconn by the kernel.
const BACKLOG: i32 = 65_535;

/// A listening socket with what it stands for.
#[derive(Debug)]
pub struct Listener {
    /// As configured.
    pub wanted: Listen,
    /// The name under which it is stored and handed over.
    name: String,
    /// As bound: differs from `wanted` for port 0.
    pub bound: String,
    /// The socket.
    pub fd: OwnedFd,
}

impl Listener {
    /// One that was kept, on the address of another one.
    pub fn kept(of: &Listener, name: String, fd: OwnedFd) -> Listener {
        Listener { wanted: of.wanted.clone(), name, bound: of.bound.clone(), fd }
    }

    /// One more socket on the same TCP address, between which the kernel shares connections; of a Unix socket, the same one.
    ///
    /// # Errors
    /// It can't be bound: the first one isn't of those that share.
    pub fn another(&self, name: String) -> io::Result<Listener> {
        let fd = match self.bound.parse() {
            Ok(addr) => open(&Listen::Tcp(addr), For::Job { several: true, access: OURS })?,
            Err(_) => self.fd.try_clone()?,
        };
        Ok(Listener::kept(self, name, fd))
    }

    /// The name under which it is stored and handed over.
    pub fn fd_name(&self) -> String {
        self.name.clone()
    }

    /// The same, to look at.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// For us and our group: what a job's socket is unless the job has another group, and where it makes no difference.
const OURS: Access = Access { mode: 0o660, group: None };

/// For whom a socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// Our server, and us while there is none: non-blocking.
    Server(Access),
    /// A job: blocking, as systemd hands them over, since who wants it otherwise says so, and then it stays so.
    Job {
        /// More of them may be bound to its address (SO_REUSEPORT).
        several: bool,
        /// Who may connect.
        access: Access,
    },
}

/// Who may connect to a Unix socket that we make; whatever our umask is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// As of a file.
    pub mode: u32,
    /// Its group; `None`: ours.
    pub group: Option<u32>,
}

impl Access {
    /// To the server's sockets: that group, else the server's own.
    ///
    /// # Errors
    /// There is no such group.
    pub fn of_server(config: &Config) -> Result<Access, Fatal> {
        let own = || privileges::server(config).ok().flatten().map(|who| who.gid);
        let group = privileges::server_sockets_group(config)?.or_else(own);
        Ok(Access { mode: config.server.unix_mode, group })
    }

    /// To a job's sockets: the job's group.
    pub fn of_job(job: &config::Job) -> Access {
        let who = privileges::job(job).ok().flatten();
        Access { group: who.map(|w| w.gid), ..OURS }
    }
}

/// The name under which the listener of an address of the server is stored.
pub fn stored_name(wanted: &Listen) -> String {
    name_for(&format!("listen {wanted}"))
}

/// One listener for each configured address: the inherited one where there is one, else a new one.
///
/// # Errors
/// An address can't be bound: the reason, and who has it if that can be seen.
pub fn take_or_bind(
    wanted: &[Listen],
    access: Access,
    mut inherited: Vec<Inherited>,
) -> anyhow::Result<Vec<Listener>> {
    // from systemd's socket units: no name of ours, but the right address
    let is_free = |name: &str| !suite::is_listener(name);
    take_or_bind_as(wanted, &mut inherited, For::Server(access), stored_name, is_free)
}

/// What was kept for a configuration that is no more is kept no longer: a port on which nobody accepts would stay open.
pub fn forget_others(kept: &[String], used: &[&str], upstream: &Notifier) {
    for name in kept.iter().filter(|n| suite::is_listener(n) && !used.contains(&n.as_str())) {
        log::info!("event=listener-dropped name={name:?}: not configured any more");
        upstream.forget_fds(name);
    }
}

/// The same, under other names; one that has none of them is taken by its address if its name `is_free`. What isn't wanted stays
/// where it is.
///
/// # Errors
/// As [`take_or_bind`].
pub fn take_or_bind_as(
    wanted: &[Listen],
    inherited: &mut Vec<Inherited>,
    whose: For,
    name: impl Fn(&Listen) -> String,
    is_free: impl Fn(&str) -> bool,
) -> anyhow::Result<Vec<Listener>> {
    let mut list = Vec::with_capacity(wanted.len());
    for w in wanted {
        let name = name(w);
        let at = inherited
            .iter()
            .position(|i| i.name == name)
            .or_else(|| inherited.iter().position(|i| is_free(&i.name) && is_bound_to(&i.fd, w)));
        let fd = match at {
            Some(i) => {
                let fd = inherited.swap_remove(i).fd;
                if matches!(whose, For::Server(_)) {
                    rustix::io::ioctl_fionbio(&fd, true)?;
                }
                fd
            }
            None => open(w, whose).map_err(|e| refused(w, &e))?,
        };
        let bound = address(&fd, w).map_err(|e| refused(w, &e))?;
        list.push(Listener { wanted: w.clone(), name, bound, fd });
    }
    Ok(list)
}

fn refused(w: &Listen, e: &io::Error) -> Fatal {
    let taken = match w {
        Listen::Tcp(addr) if e.kind() == io::ErrorKind::AddrInUse => port::listener_on(*addr),
        _ => None,
    };
    match taken {
        Some((pid, name)) => {
            Fatal::new(Exit::Os, format!("cannot listen on {w}: {e}: pid {pid} ({name}) has it"))
        }
        None => Fatal::new(Exit::Os, format!("cannot listen on {w}: {e}")),
    }
}

fn open(w: &Listen, whose: For) -> io::Result<OwnedFd> {
    let (flags, access) = match whose {
        For::Server(access) => (SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, access),
        For::Job { access, .. } => (SocketFlags::CLOEXEC, access),
    };
    let fd = match w {
        Listen::Tcp(a) => {
            let family = if a.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let fd = socket_with(family, SocketType::STREAM, flags, None)?;
            sockopt::set_socket_reuseaddr(&fd, true)?;
            if matches!(whose, For::Job { several: true, .. }) {
                sockopt::set_socket_reuseport(&fd, true)?;
            }
            if a.is_ipv6() {
                sockopt::set_ipv6_v6only(&fd, true)?;
            }
            bind(&fd, a)?;
            fd
        }
        Listen::Unix(path) => {
            let addr = SocketAddrUnix::new(path.as_path())?;
            let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            remove_dead_socket(path)?;
            // made with its mode, and no link is followed: a job's user may own the directory, and put another file there at once
            fchmod(&fd, Mode::from_raw_mode(access.mode))?;
            let before = umask(Mode::empty());
            let bound = bind(&fd, &addr);
            umask(before);
            bound?;
            // nobody can connect before there is a backlog
            std::os::unix::fs::lchown(path, None, access.group)?;
            fd
        }
    };
    listen(&fd, BACKLOG)?;
    Ok(fd)
}

/// A socket file that nobody listens on is left over from an ended process; one that answers is somebody's.
fn remove_dead_socket(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
        Ok(m) if !m.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "a file that is no socket is in the way",
            ));
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        _ => Err(io::Error::from(io::ErrorKind::AddrInUse)),
    }
}

/// Is it a socket of that address?
pub fn is_bound_to(fd: &OwnedFd, w: &Listen) -> bool {
    match w {
        Listen::Tcp(a) => {
            getsockname(fd).ok().and_then(|s| SocketAddr::try_from(s).ok()).is_some_and(|s| s == *a)
        }
        Listen::Unix(p) => getsockname(fd)
            .ok()
            .and_then(|s| SocketAddrUnix::try_from(s).ok())
            .and_then(|s| s.path_bytes().map(|b| b == p.as_os_str().as_encoded_bytes()))
            .unwrap_or(false),
    }
}

fn address(fd: &OwnedFd, w: &Listen) -> io::Result<String> {
    match w {
        Listen::Tcp(_) => {
            let a =
                SocketAddr::try_from(getsockname(fd)?).map_err(|_| io::Error::other("not a TCP socket"))?;
            Ok(a.to_string())
        }
        Listen::Unix(p) => Ok(format!("unix:{}", p.display())),
    }
}

/// Writes the `ports` file, unless it says the same already: a full disk is no reason not to follow the last manager.
///
/// # Errors
/// It can't be written.
pub fn publish(list: &[Listener], runtime: &Runtime) -> io::Result<()> {
    let text: String = list.iter().map(|l| format!("{}\n", l.bound)).collect();
    // the next manager mostly has the same to say, and the disk may be full
    if std::fs::read_to_string(runtime.ports()).is_ok_and(|there| there == text) {
        return Ok(());
    }
    dirs::write_atomically(&runtime.ports(), text.as_bytes(), 0o644)
}

/// The bound addresses.
pub fn names(list: &[Listener]) -> Vec<&str> {
    list.iter().map(|l| l.bound.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn tcp() -> Listen {
        Listen::Tcp("127.0.0.1:0".parse().unwrap())
    }

    #[test]
    fn what_was_kept_is_taken_and_not_bound_again() {
        let first = take_or_bind(&[tcp()], OURS, Vec::new()).unwrap().remove(0);
        let kept = Inherited { name: first.fd_name(), fd: first.fd.try_clone().unwrap() };
        let second = take_or_bind(&[tcp()], OURS, vec![kept]).unwrap().remove(0);
        assert_eq!(first.bound, second.bound);
        assert!(!first.bound.ends_with(":0"));
    }

    #[test]
    fn a_port_in_use_is_named() {
        let first = take_or_bind(&[tcp()], OURS, Vec::new()).unwrap().remove(0);
        let taken = Listen::Tcp(first.bound.parse().unwrap());
        let e = take_or_bind(&[taken], OURS, Vec::new()).unwrap_err().to_string();
        let me = format!("pid {} (", std::process::id());
        assert!(e.contains(&first.bound) && e.contains("in use") && e.contains(&me), "{e}");
    }

    #[test]
    fn who_may_connect_to_a_unix_socket_is_said_and_not_left_to_the_umask() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        for (n, wanted) in [0o600, 0o660, 0o666].into_iter().enumerate() {
            let path = dir.path().join(n.to_string());
            let access = Access { mode: wanted, group: None };
            let _server = take_or_bind(&[Listen::Unix(path.clone())], access, Vec::new()).unwrap();
            assert_eq!(mode(&path), wanted);
            std::os::unix::net::UnixStream::connect(&path).unwrap();
        }
        let mut config = Config::default();
        config.server.unix_group = Some("no-such-group-anywhere".into());
        assert!(Access::of_server(&config).unwrap_err().text.contains("no-such-group-anywhere"));
    }

    #[test]
    fn a_dead_socket_file_is_replaced_and_a_living_one_is_not() {
        let d = tempfile::tempdir().unwrap();
        let w = Listen::Unix(d.path().join("s"));
        let first = take_or_bind(std::slice::from_ref(&w), OURS, Vec::new()).unwrap();
        assert!(take_or_bind(std::slice::from_ref(&w), OURS, Vec::new()).is_err());
        drop(first);
        assert!(take_or_bind(std::slice::from_ref(&w), OURS, Vec::new()).is_ok());
        let file = d.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert!(take_or_bind(&[Listen::Unix(file.clone())], OURS, Vec::new()).is_err());
        assert_eq!(std::fs::read_to_string(file).unwrap(), "precious");
    }
}
