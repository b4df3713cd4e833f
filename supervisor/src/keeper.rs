//! The keeper: a process that shares the fd table of another one, its ward, and so keeps its sockets open when the ward is
//! killed.
//!
//! It is made by clone(2) with CLONE_FILES and without CLONE_VM, by a ward that has one thread and is past its exec (which
//! would unshare the table). While the ward lives it touches nothing, since a close here is a close there. When the ward
//! is dead, it closes what others wait for: the ward's end of its own socket, ports that the next one wants to bind, and last
//! the fd of the ward's lock, which would else stay locked in the name of a dead process. Then it says that the ward is dead,
//! and gives the connections to whoever asks over its control socket, as often as somebody asks. When it is told to end, or
//! nobody can ask any more, it closes them all.
//!
//! Dead means that no thread of the ward that has signed the [`Roll`] does anything any more. The kernel may have the ward's
//! memory to free still, and says that the process has ended when it has; until then the ward shares the table too, so that
//! what the keeper didn't close would stay open.
//!
//! ```text
//! keeper -> anyone  DEAD                                after the ward's death, and after each answer
//! asker -> keeper   TAKE nonce
//! keeper -> asker   nonce, fd numbers in the dead ward, with the fds; again and again; without any: that was all
//! owner -> keeper   END
//! ```

use crate::fd_pass::{self, Message};
use crate::notify::MAX_FDS;
use crate::pidfd::PidFd;
use crate::roll::{Fate, Roll};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, SendFlags, SocketAddrAny, SocketAddrUnix, getpeername, getsockname, recv};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// What a keeper is called (`comm`).
pub const NAME: &str = "traffic_keeper";
const NAME_C: &std::ffi::CStr = c"traffic_keeper";

/// What a keeper says when its ward is dead.
const DEAD: &[u8] = b"DEAD";
/// What is no longer needed is to be closed.
const END: &[u8] = b"END";

/// What a keeper reads in memory that it shares with its ward.
pub trait Shared {
    /// The fd of the ward's lock, once it has one.
    fn lock_fd(&self) -> Option<RawFd>;

    /// Who has to be dead, if that is known.
    fn roll(&self) -> Option<Roll>;

    /// Has the ward noted that this fd is a connection to be kept? One may be of a listener that is no more.
    fn has(&self, fd: RawFd) -> bool;
}

/// A keeper, as its ward knows it.
#[derive(Debug)]
pub struct Keeper {
    pid: i32,
}

/// Makes a keeper for the calling process.
///
/// `listeners` are the sockets whose connections are to be kept, `control` is the end it answers on. `first` are fds that
/// the ward keeps open for its whole life, and that are closed at once when it is dead: the other end of `control`, or
/// nobody could tell that nobody asks; a port that the next one wants to bind.
///
/// # Errors
/// The kernel or a sandbox refuses; nothing has changed then. To be called with one thread only.
pub fn make(
    control: OwnedFd,
    listeners: &[BorrowedFd<'_>],
    first: &[BorrowedFd<'_>],
    shared: &dyn Shared,
) -> io::Result<Keeper> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!(
            "a keeper is made before there are threads; there are {threads}"
        )));
    }
    let ward = PidFd::open(std::process::id() as i32)?;
    // their numbers may be others' by the time they are needed
    let kept: Vec<Local> = listeners.iter().filter_map(|l| Local::of(*l)).collect();
    let first: Vec<RawFd> = first.iter().map(AsRawFd::as_raw_fd).collect();
    let flags = nix::libc::CLONE_FILES | nix::libc::SIGCHLD;
    // SAFETY: without CLONE_VM and a stack this is fork(2) with a shared fd table; this process has one thread (checked
    // above), so the child may go on as an ordinary process.
    let pid = unsafe { nix::libc::syscall(nix::libc::SYS_clone, flags as nix::libc::c_ulong, 0, 0, 0, 0) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            live(&ward, &control, &kept, &first, shared);
            // SAFETY: _exit runs nothing of the ward's.
            unsafe { nix::libc::_exit(0) }
        }
        pid => {
            // the table is shared: these two stay open, or the keeper would have nothing to wait on
            std::mem::forget((ward, control));
            Ok(Keeper { pid: pid as i32 })
        }
    }
}

impl Keeper {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Ends it: its ward is about to end in order, with nothing to be kept.
    pub fn end(self) {
        if let Ok(p) = PidFd::open(self.pid) {
            let _ = p.signal(nix::libc::SIGKILL);
            let _ = p.wait();
            let _ = p.poll_exit(std::time::Duration::from_secs(1));
            let _ = p.wait();
        }
    }
}

/// The keeper's life.
fn live(ward: &PidFd, control: &OwnedFd, kept: &[Local], first: &[RawFd], shared: &dyn Shared) {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // its ward's handlers would write into its ward's pipe
    for s in
        [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2]
    {
        // SAFETY: SIG_IGN installs no code of ours.
        let _ = unsafe { signal(s, SigHandler::SigIgn) };
    }
    // SAFETY: as above.
    let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) };
    let _ = nix::unistd::setpgid(nix::unistd::Pid::from_raw(0), nix::unistd::Pid::from_raw(0));
    let _ = nix::sys::prctl::set_name(NAME_C);
    if shared.roll().is_none_or(|roll| roll.wait(|| ward.is_alive()) == Fate::Unknown) {
        while ward.is_alive() {
            let _ = poll(&mut [PollFd::new(ward, PollFlags::IN)], None);
        }
    }
    // the lock last: who gets it may rely on the others being closed
    for fd in first.iter().copied().chain(shared.lock_fd()) {
        // SAFETY: the ward, whose fd this was for its whole life, is dead.
        unsafe { nix::libc::close(fd) };
    }
    let _ = fd_pass::send(control, DEAD, &[]);
    while let Ok(Some((message, _))) = fd_pass::recv(control) {
        if message == END {
            break;
        }
        let Some(nonce) = message.strip_prefix(b"TAKE ").and_then(|n| n.try_into().ok()) else { continue };
        // an asker has taken DEAD out of the socket with the rest, and the next manager looks for it there
        if give(control, nonce, kept, shared).and_then(|()| fd_pass::send(control, DEAD, &[])).is_err() {
            break;
        }
    }
    // SAFETY: nobody executes anything that uses this table any more, this process neither. Before Linux 5.9 it fails, and what
    // is open is closed with the last of the two processes.
    unsafe { nix::libc::syscall(nix::libc::SYS_close_range, 3, u32::MAX, 0) };
}

/// Sends every connection of the listeners.
fn give(control: &OwnedFd, nonce: [u8; 8], kept: &[Local], shared: &dyn Shared) -> io::Result<()> {
    let mut fds = open_fds()?;
    fds.retain(|fd| *fd > 2);
    // SAFETY: nobody else uses this table, and nothing is closed before this process ends; where a directory was listed, its
    // own fd is closed, and is found to be no socket.
    let borrowed = |fd: &RawFd| unsafe { BorrowedFd::borrow_raw(*fd) };
    let is_kept = |fd: &BorrowedFd<'_>| {
        is_connection(*fd, kept) || (shared.has(fd.as_raw_fd()) && getpeername(fd).is_ok())
    };
    let list: Vec<BorrowedFd<'_>> = fds.iter().map(borrowed).filter(is_kept).collect();
    for batch in list.chunks(MAX_FDS) {
        let mut message = nonce.to_vec();
        batch.iter().for_each(|fd| message.extend((fd.as_raw_fd() as u32).to_ne_bytes()));
        fd_pass::send(control, &message, batch)?;
    }
    fd_pass::send(control, &nonce, &[])
}

/// Numbers of the open fds, in order.
fn open_fds() -> io::Result<Vec<RawFd>> {
    // Linux 6.2 and later say how many there are
    let count = rustix::fs::stat("/proc/self/fd").map_or(0, |s| usize::try_from(s.st_size).unwrap_or(0));
    // SAFETY: F_GETFD changes nothing, and of a number that isn't open it says just that.
    let is_open = |fd: RawFd| unsafe { nix::libc::fcntl(fd, nix::libc::F_GETFD) } >= 0;
    close_together(count, is_open).map_or_else(listed_fds, Ok)
}

/// The first `count` fds that are open, if they lie so close together that looking at one number after the other finds them
/// soon. They do as a rule, since the kernel gives out the lowest free number.
///
/// A listing of /proc/self/fd finds them too, but leaves an entry in the kernel's directory cache for each, and whoever reaps
/// this process waits until all of these are gone: the manager, some 4 µs each.
fn close_together(count: usize, is_open: impl Fn(RawFd) -> bool) -> Option<Vec<RawFd>> {
    let looked_at = RawFd::try_from(2 * count + 64).ok()?;
    let found: Vec<RawFd> = (0..looked_at).filter(|fd| is_open(*fd)).take(count).collect();
    (count > 0 && found.len() == count).then_some(found)
}

fn listed_fds() -> io::Result<Vec<RawFd>> {
    let names = std::fs::read_dir("/proc/self/fd")?;
    let mut fds: Vec<RawFd> = names.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect();
    fds.sort_unstable();
    Ok(fds)
}

fn is_connection(fd: BorrowedFd<'_>, kept: &[Local]) -> bool {
    let Some(local) = Local::of(fd) else { return false };
    kept.iter().any(|l| l.accepts(&local)) && getpeername(fd).is_ok()
}

/// An address at our end.
enum Local {
    Tcp(SocketAddr),
    Unix(Vec<u8>),
}

impl Local {
    fn of(fd: impl AsFd) -> Option<Local> {
        let any: SocketAddrAny = getsockname(fd).ok()?;
        if let Ok(a) = SocketAddr::try_from(any.clone()) {
            return Some(Local::Tcp(a));
        }
        let unix = SocketAddrUnix::try_from(any).ok()?;
        unix.path_bytes().filter(|p| !p.is_empty()).map(|p| Local::Unix(p.to_vec()))
    }

    /// Would a listener here have accepted a connection with that address at our end?
    fn accepts(&self, other: &Local) -> bool {
        match (self, other) {
            (Local::Tcp(l), Local::Tcp(c)) => {
                l.port() == c.port() && (l.ip().is_unspecified() || l.ip() == c.ip())
            }
            (Local::Unix(l), Local::Unix(c)) => l == c,
            _ => false,
        }
    }
}

/// Has the keeper behind `control` said anything? It does only when its ward is dead. What it said isn't taken out; false: it is
/// gone.
///
/// # Errors
/// `WouldBlock`: it hasn't, so far. Else the socket can't be read.
pub fn has_spoken(control: impl AsFd) -> io::Result<bool> {
    let (n, _) = recv(control, &mut [0; DEAD.len()], RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    Ok(n > 0)
}

/// Has the keeper behind `control`, whose ward is dead, close everything and end. Doesn't block.
///
/// # Errors
/// It is gone, or hears nothing.
pub fn end(control: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::send(control, END, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).map(|_| ())?)
}

/// What a keeper gave.
#[derive(Debug, Default)]
pub struct Given {
    /// Pairs of the number in the dead ward and the fd here.
    pub connections: Vec<(RawFd, OwnedFd)>,
    /// So many more it has that there was no room for here.
    pub missed: usize,
}

/// Asks the keeper behind `control` for everything it has.
///
/// # Errors
/// The keeper is gone, doesn't answer within the timeout of `control`, or talks nonsense.
pub fn take(control: impl AsFd, nonce: u64) -> io::Result<Given> {
    let nonce = nonce.to_ne_bytes();
    fd_pass::send(&control, &[b"TAKE ", &nonce[..]].concat(), &[])?;
    let mut all = Given::default();
    loop {
        let Some(Message { bytes: message, fds, is_cut }) = fd_pass::recv_what_fits(&control)? else {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the keeper is gone"));
        };
        // what was sent to somebody who died before he read it is dropped here, and that the ward is dead
        let Some(numbers) = message.strip_prefix(&nonce[..]) else { continue };
        if numbers.is_empty() {
            return Ok(all);
        }
        let missed = (numbers.len() / 4).checked_sub(fds.len()).filter(|missed| is_cut || *missed == 0);
        let Some(missed) = missed.filter(|_| numbers.len() % 4 == 0) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the keeper's list and its fds differ"));
        };
        all.missed += missed;
        let numbers =
            numbers.chunks_exact(4).map(|n| u32::from_ne_bytes(n.try_into().expect("four")) as RawFd);
        all.connections.extend(numbers.zip(fds));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fds_that_lie_close_together_are_found_without_a_listing() {
        let open = [0, 1, 2, 5, 9, 40];
        let is_open = |fd: RawFd| open.contains(&fd);
        assert_eq!(close_together(open.len(), is_open).unwrap(), open);
        // one is too far away, or it isn't known how many there are
        assert_eq!(close_together(3, |fd| [0, 1, 70].contains(&fd)), None);
        assert_eq!(close_together(0, is_open), None);
    }
}
