//! The notify socket, both sides: sd_notify(3) between cop and manager, and between manager and server.
//!
//! A datagram holds lines `KEY=value`; fds ride along as SCM_RIGHTS; the sender is known by SCM_CREDENTIALS. Whatever a
//! sender writes (text that isn't UTF-8, no `=`, a thousand lines) is at worst ignored and counted, never fatal.

use crate::fd_store::identity;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, recvmsg, sendmsg_addr,
    socket_with, sockopt,
};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Longest datagram taken, in bytes.
pub const MAX_DATAGRAM: usize = 4096;
/// Most fds one message can carry on Linux (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;
/// Less than this, as the kernel counts (about 800 bytes for a datagram of ours), is half a queue.
const ROOM: u64 = 4096;

/// As much is said later at most; beyond that the oldest is missed.
const LATER: usize = 4096;

/// One assignment that we know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// `READY=1`
    Ready,
    /// `RELOADING=1`
    Reloading,
    /// `STOPPING=1`
    Stopping,
    /// `STATUS=…`: one line for people.
    Status(String),
    /// `ERRNO=n`
    Errno(i32),
    /// `MAINPID=n`
    MainPid(i32),
    /// `WATCHDOG=1`
    Watchdog,
    /// `WATCHDOG=trigger`: the sender knows itself to be broken.
    WatchdogTrigger,
    /// `EXTEND_TIMEOUT_USEC=n`
    ExtendTimeout(Duration),
    /// `FDSTORE=1`: the fds of this datagram are to be kept.
    FdStore,
    /// `FDSTOREREMOVE=1`
    FdStoreRemove,
    /// `FDNAME=…`
    FdName(String),
    /// `BARRIER=1`: close the fd that came along when all before it is done.
    Barrier,
    /// `X_TRAFFIC_EXIT=n`: the sender is about to end with this exit code, for the reason in `STATUS`.
    Exit(i32),
    /// `X_TRAFFIC_STANDBY=1`: the sender could serve, and waits for the word to do so.
    Standby,
    /// `X_TRAFFIC_RETIRING=1`: the sender has let go of its lock and accepts nothing any more.
    Retiring,
    /// `X_TRAFFIC_TOOK=…`: what became of the connections that the sender was offered.
    Took(String),
    /// `X_TRAFFIC_HELD=1`: the sender accepts nothing until it is told to go on.
    Held,
    /// `X_TRAFFIC_PONG=n`: the answer to the ping of that number.
    Pong(i32),
    /// `X_TRAFFIC_SETTLED=1`: the sender has taken over all connections that it was offered.
    Settled,
    /// `X_TRAFFIC_TAKEN=n`: the last connection that the sender was handed and has taken, by the number of its socket; 0: none.
    Taken(u64),
    /// `X_TRAFFIC_SHORT=1`: the sender had no room for the rest of what it was handed.
    Short,
    /// `X_TRAFFIC_SERVER=pid`: which server the manager holds (0: none is wanted, -1: none serves, -2: one would, but serving is
    /// paused).
    Server(i32),
}

/// What one datagram says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// What was understood, in order.
    pub fields: Vec<Field>,
    /// Lines that were not: unknown keys are none of them, malformed ones are.
    pub malformed: u32,
}

impl Message {
    /// Parses a datagram. Never fails: what it doesn't understand it counts.
    pub fn parse(bytes: &[u8]) -> Message {
        let mut m = Message::default();
        for line in bytes.split(|&b| b == b'\n').filter(|l| !l.is_empty()).take(64) {
            match std::str::from_utf8(line).ok().and_then(|l| l.split_once('=')) {
                Some((key, value)) if !key.is_empty() => match field(key, value) {
                    Ok(Some(f)) => m.fields.push(f),
                    Ok(None) => {}
                    Err(()) => m.malformed += 1,
                },
                _ => m.malformed += 1,
            }
        }
        m
    }

    /// The name in its `FDNAME`.
    pub fn fd_name(&self) -> Option<&str> {
        self.fields.iter().find_map(|f| match f {
            Field::FdName(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// True if it contains that field.
    pub fn has(&self, f: &Field) -> bool {
        self.fields.contains(f)
    }
}

/// `Ok(None)` for keys that aren't ours to know, `Err` for a known key with an impossible value.
fn field(key: &str, value: &str) -> Result<Option<Field>, ()> {
    let number = || value.parse::<i32>().map_err(|_| ());
    let flag = |f: Field| if value == "1" { Ok(Some(f)) } else { Err(()) };
    let text = || value.chars().filter(|c| !c.is_control()).take(512).collect::<String>();
    match key {
        "READY" => flag(Field::Ready),
        "RELOADING" => flag(Field::Reloading),
        "STOPPING" => flag(Field::Stopping),
        "STATUS" => Ok(Some(Field::Status(text()))),
        "ERRNO" => Ok(Some(Field::Errno(number()?))),
        "MAINPID" => Ok(Some(Field::MainPid(number().and_then(|n| if n > 0 { Ok(n) } else { Err(()) })?))),
        "WATCHDOG" if value == "trigger" => Ok(Some(Field::WatchdogTrigger)),
        "WATCHDOG" => flag(Field::Watchdog),
        "EXTEND_TIMEOUT_USEC" => {
            let us: u64 = value.parse().map_err(|_| ())?;
            Ok(Some(Field::ExtendTimeout(Duration::from_micros(us.min(86_400_000_000)))))
        }
        "FDSTORE" => flag(Field::FdStore),
        "FDSTOREREMOVE" => flag(Field::FdStoreRemove),
        "FDNAME" if !value.is_empty() && crate::listen_fds::name_for(value) == value => {
            Ok(Some(Field::FdName(value.to_owned())))
        }
        "FDNAME" => Err(()),
        "BARRIER" => flag(Field::Barrier),
        "X_TRAFFIC_EXIT" => Ok(Some(Field::Exit(number()?))),
        "X_TRAFFIC_STANDBY" => flag(Field::Standby),
        "X_TRAFFIC_RETIRING" => flag(Field::Retiring),
        "X_TRAFFIC_TOOK" => Ok(Some(Field::Took(text()))),
        "X_TRAFFIC_HELD" => flag(Field::Held),
        "X_TRAFFIC_PONG" => Ok(Some(Field::Pong(number()?))),
        "X_TRAFFIC_SETTLED" => flag(Field::Settled),
        "X_TRAFFIC_TAKEN" => Ok(Some(Field::Taken(value.parse().map_err(|_| ())?))),
        "X_TRAFFIC_SHORT" => flag(Field::Short),
        "X_TRAFFIC_SERVER" => Ok(Some(Field::Server(number()?))),
        _ => Ok(None),
    }
}

/// A datagram with its sender.
#[derive(Debug)]
pub struct Datagram {
    /// Who sent it, as the kernel says.
    pub pid: i32,
    /// The sender's user.
    pub uid: u32,
    /// What it says.
    pub message: Message,
    /// Fds that came along, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// The receiving side.
#[derive(Debug)]
pub struct NotifySocket {
    fd: OwnedFd,
    path: PathBuf,
}

impl NotifySocket {
    /// Binds a datagram socket at `path`, in place of whatever socket an ended process left there. Mode 0600 at once.
    ///
    /// # Errors
    /// The path is too long, or the system refuses.
    pub fn bind(path: &Path) -> io::Result<NotifySocket> {
        let addr = SocketAddrUnix::new(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        sockopt::set_socket_passcred(&fd, true)?;
        rustix::fs::fchmod(&fd, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        bind(&fd, &addr)?;
        Ok(NotifySocket { fd, path: path.to_owned() })
    }

    /// One that was kept of somebody who is dead: what was said to that one is in it still.
    pub fn kept(fd: OwnedFd, path: &Path) -> NotifySocket {
        NotifySocket { fd, path: path.to_owned() }
    }

    /// Where it is bound.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next datagram; `None` when there is none now. A datagram that was cut or has no sender is dropped with a
    /// warning.
    ///
    /// # Errors
    /// The socket itself failed.
    pub fn recv(&self) -> io::Result<Option<Datagram>> {
        let mut bytes = [0u8; MAX_DATAGRAM];
        let mut space =
            [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS), ScmCredentials(1))];
        loop {
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut iov = [IoSliceMut::new(&mut bytes)];
            let got = match recvmsg(
                &self.fd,
                &mut iov,
                &mut control,
                RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
            ) {
                Ok(got) => got,
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            };
            let (mut fds, mut creds) = (Vec::new(), None);
            for m in control.drain() {
                match m {
                    RecvAncillaryMessage::ScmRights(list) => fds.extend(list),
                    RecvAncillaryMessage::ScmCredentials(c) => creds = Some(c),
                    _ => {}
                }
            }
            use rustix::net::ReturnFlags;
            if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
                log::warn!(
                    "notify: a datagram was too large and is dropped (socket {})",
                    self.path.display()
                );
                continue;
            }
            let Some(creds) = creds else { continue };
            let (pid, uid) = (creds.pid.as_raw_nonzero().get(), creds.uid.as_raw());
            return Ok(Some(Datagram { pid, uid, message: Message::parse(&bytes[..got.bytes]), fds }));
        }
    }
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The sending side: whoever `NOTIFY_SOCKET` names, or nobody.
#[derive(Debug, Default)]
pub struct Notifier {
    target: Option<(OwnedFd, SocketAddrUnix)>,
    /// Something couldn't be said.
    missed: AtomicBool,
    /// What is said when there is room.
    later: Mutex<VecDeque<(String, Later)>>,
}

/// About fds of a name, or words whose variable that is.
#[derive(Debug)]
enum Later {
    Store(Vec<OwnedFd>),
    Forget,
    Say(String),
}

fn storing(name: &str) -> String {
    format!("FDSTORE=1\nFDNAME={name}")
}

/// How often `WATCHDOG=1` is to be said, by the environment (`WATCHDOG_USEC`, `WATCHDOG_PID`): half of what is allowed.
pub fn watchdog_interval() -> Option<Duration> {
    let usec: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    let for_us = std::env::var("WATCHDOG_PID").map_or(true, |p| p == std::process::id().to_string());
    (for_us && usec > 1).then(|| Duration::from_micros(usec / 2))
}

impl Notifier {
    /// Reads `NOTIFY_SOCKET`. Without one, sending is a silent success, as with sd_notify(3).
    ///
    /// # Errors
    /// The variable is neither an absolute path nor an abstract name (`@…`), or is over 107 bytes.
    pub fn from_env() -> io::Result<Notifier> {
        match std::env::var_os("NOTIFY_SOCKET") {
            None => Ok(Notifier::default()),
            Some(name) => Notifier::to(&name),
        }
    }

    /// Sends to that address: an absolute path, or `@name` for the abstract name space.
    ///
    /// # Errors
    /// See [`Notifier::from_env`].
    pub fn to(name: &OsStr) -> io::Result<Notifier> {
        let bytes = name.as_bytes();
        let addr = match bytes.first() {
            Some(b'/') => SocketAddrUnix::new(bytes)?,
            Some(b'@') => SocketAddrUnix::new_abstract_name(&bytes[1..])?,
            _ => {
                let why = format!("NOTIFY_SOCKET={name:?}: neither an absolute path nor an abstract name");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        Ok(Notifier { target: Some((fd, addr)), ..Notifier::default() })
    }

    /// True when somebody listens for us.
    pub fn is_connected(&self) -> bool {
        self.target.is_some()
    }

    /// Sends lines (`"READY=1\nSTATUS=…"`).
    ///
    /// # Errors
    /// Nobody is there, or its queue is full (the socket doesn't block).
    pub fn send(&self, lines: &str) -> io::Result<()> {
        self.send_fds(lines, &[])
    }

    /// Has the receiver keep duplicates of `fds` under `name`, for who comes after us. What its queue doesn't take is said when
    /// there is room ([`Notifier::say_later`]), in order. That nobody is there is logged: we go on all the same, and are missed
    /// more when we die.
    pub fn store_fds(&self, name: &str, fds: &[BorrowedFd<'_>]) {
        self.store(name, fds, false);
    }

    /// The same, before all fds that wait: what nobody else has yet, and who dies next must not be the last to have had.
    pub fn store_fds_first(&self, name: &str, fds: &[BorrowedFd<'_>]) {
        self.store(name, fds, true);
    }

    fn store(&self, name: &str, fds: &[BorrowedFd<'_>], first: bool) {
        let mut later = self.later();
        if !first {
            self.say_rest(&mut later);
        }
        let ids: Vec<_> = fds.iter().map(identity).collect();
        let is_same = |f: &Vec<OwnedFd>| f.iter().map(identity).eq(ids.iter().copied());
        if later.iter().any(|(n, l)| n == name && matches!(l, Later::Store(fds) if is_same(fds))) {
            // it is in the queue already
            return;
        }
        // not before that name is forgotten
        let first = first && !later.iter().any(|(n, _)| n == name);
        let said = match first || later.is_empty() {
            true => self.try_send(&storing(name), fds),
            false => Err(io::ErrorKind::WouldBlock.into()),
        };
        let failed = match said {
            Ok(()) => return,
            Err(e) if self.is_later(&e) => {
                let copies = fds.iter().map(BorrowedFd::try_clone_to_owned).collect::<io::Result<Vec<_>>>();
                let wait = |fds| {
                    let one = (name.to_owned(), Later::Store(fds));
                    if first { later.push_front(one) } else { later.push_back(one) }
                };
                copies.map(wait).err()
            }
            Err(e) => Some(e),
        };
        if let Some(e) = failed {
            self.missed.store(true, Ordering::Relaxed);
            log::warn!("event=fdstore-failed name={name}: {e}");
        }
        self.bound(&mut later);
    }

    /// Has it forget them; in the same way. Who isn't there is told when there is somebody.
    pub fn forget_fds(&self, name: &str) {
        let mut later = self.later();
        // what it would forget at once it isn't told first
        later.retain(|(n, l)| n != name || !matches!(l, Later::Store(_)));
        self.say_rest(&mut later);
        if later.iter().any(|(n, l)| n == name && matches!(l, Later::Forget)) {
            return;
        }
        if !later.is_empty() || self.try_forget(name).is_err() {
            later.push_back((name.to_owned(), Later::Forget));
            self.bound(&mut later);
        }
    }

    /// Sends words that begin with an assignment (`READY=1`), before all fds that wait: what is, is not to be learned late. Those that
    /// wait themselves are replaced by the next of that variable.
    pub fn say(&self, lines: &str) {
        let mut later = self.later();
        let variable = Notifier::take_back(&mut later, lines);
        if self.try_send(lines, &[]).is_err_and(|e| self.is_later(&e)) {
            later.push_front((variable, Later::Say(lines.to_owned())));
            self.bound(&mut later);
        }
    }

    /// The same, after all fds that wait.
    pub fn say_in_turn(&self, lines: &str) {
        let mut later = self.later();
        let variable = Notifier::take_back(&mut later, lines);
        self.say_rest(&mut later);
        if !later.is_empty() || self.try_send(lines, &[]).is_err_and(|e| self.is_later(&e)) {
            later.push_back((variable, Later::Say(lines.to_owned())));
            self.bound(&mut later);
        }
    }

    fn take_back(later: &mut VecDeque<(String, Later)>, lines: &str) -> String {
        let variable = lines.split('=').next().unwrap_or(lines);
        later.retain(|(n, l)| n != variable || !matches!(l, Later::Say(_)));
        variable.to_owned()
    }

    /// Is there only no room? That nobody is there is noted.
    fn is_later(&self, e: &io::Error) -> bool {
        let is_full = e.kind() == io::ErrorKind::WouldBlock;
        self.missed.fetch_or(!is_full, Ordering::Relaxed);
        is_full
    }

    /// Says what couldn't be said, as far as there is room. Returns how much is left.
    pub fn say_later(&self) -> usize {
        let mut later = self.later();
        self.say_rest(&mut later);
        later.len()
    }

    /// Are there fds that couldn't be stored yet, of a name that `is_it`?
    pub fn has_later_of(&self, is_it: impl Fn(&str) -> bool) -> bool {
        self.later().iter().any(|(name, l)| matches!(l, Later::Store(_)) && is_it(name))
    }

    /// Is there anything that couldn't be said yet?
    pub fn has_later(&self) -> bool {
        !self.later().is_empty()
    }

    fn say_rest(&self, later: &mut VecDeque<(String, Later)>) {
        while let Some((name, what)) = later.front()
            && self.has_room()
        {
            let said = match what {
                Later::Store(fds) => {
                    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                    self.try_send(&storing(name), &fds)
                }
                Later::Forget => self.try_forget(name),
                Later::Say(line) => self.try_send(line, &[]),
            };
            // who comes next is told anew of everything that there is, but not of what there is no more
            if said.is_err_and(|e| self.is_later(&e) || matches!(what, Later::Forget)) {
                return;
            }
            later.pop_front();
        }
    }

    fn bound(&self, later: &mut VecDeque<(String, Later)>) {
        while later.len() > LATER {
            later.pop_front();
            self.missed.store(true, Ordering::Relaxed);
        }
    }

    fn later(&self) -> MutexGuard<'_, VecDeque<(String, Later)>> {
        self.later.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the receiver has dealt with all that was sent before, as sd_notify_barrier(3): it closes the fd that comes
    /// with the question. False: it hasn't within `patience`.
    pub fn barrier(&self, patience: Duration) -> bool {
        let until = crate::clock::now() + patience;
        let left = || until.saturating_sub(crate::clock::now());
        let ask = || -> io::Result<bool> {
            let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            while let Err(e) = match self.say_later() {
                0 => self.try_send("BARRIER=1", &[theirs.as_fd()]),
                _ => Err(io::ErrorKind::WouldBlock.into()),
            } {
                if e.kind() != io::ErrorKind::WouldBlock || left().is_zero() {
                    return Err(e);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(theirs);
            let time = crate::clock::timespec(left());
            let mut fds = [rustix::event::PollFd::new(&ours, rustix::event::PollFlags::empty())];
            Ok(rustix::event::poll(&mut fds, Some(&time))? > 0)
        };
        self.target.is_none() || ask().unwrap_or(false)
    }

    /// Sends lines with fds.
    ///
    /// # Errors
    /// As [`Notifier::send`]; more than [`MAX_FDS`] fds.
    pub fn send_fds(&self, lines: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.try_send(lines, fds).inspect_err(|_| self.missed.store(true, Ordering::Relaxed))
    }

    /// Has the receiver heard most of what was sent? Its queue holds few datagrams (`net.unix.max_dgram_qlen`, ten by
    /// default): who has much to say leaves room for others.
    pub fn has_room(&self) -> bool {
        self.unread() < ROOM
    }

    /// Has the receiver heard all that was sent?
    pub fn is_heard(&self) -> bool {
        self.unread() == 0
    }

    fn unread(&self) -> u64 {
        let of = |(socket, _): &(OwnedFd, SocketAddrUnix)| crate::tcp::unread_by_peer(socket).unwrap_or(0);
        self.target.as_ref().map_or(0, of)
    }

    /// As [`Notifier::store_fds`], for who tries again by himself.
    ///
    /// # Errors
    /// As [`Notifier::send`]; also while that name is still to be forgotten.
    pub fn try_store(&self, name: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut later = self.later();
        self.say_rest(&mut later);
        match later.iter().any(|(n, l)| n == name && matches!(l, Later::Forget)) {
            true => Err(io::ErrorKind::WouldBlock.into()),
            false => self.try_send(&storing(name), fds),
        }
    }

    /// As [`Notifier::forget_fds`], for who tries again by himself.
    ///
    /// # Errors
    /// As [`Notifier::send`].
    pub fn try_forget(&self, name: &str) -> io::Result<()> {
        self.try_send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
    }

    fn try_send(&self, lines: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let Some((socket, addr)) = &self.target else { return Ok(()) };
        let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many fds for one message"));
        }
        let iov = [IoSlice::new(lines.as_bytes())];
        sendmsg_addr(socket, addr, &iov, &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Was anything not said since this was asked last? A receiver that is stopped for a while has a queue of a few
    /// datagrams. Who wants it to know says everything again.
    pub fn take_missed(&self) -> bool {
        self.say_later();
        self.missed.swap(false, Ordering::Relaxed)
    }
}

#[cfg(test)]
#[path = "notify_tests.rs"]
mod tests;
