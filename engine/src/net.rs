//! Stream sockets, TCP and Unix, on the loop of the current thread.

use crate::io::Async;
use crate::reactor::Interest;
use crate::thread::try_with_core;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType,
    sockopt,
};
use std::fmt;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::task::{Context, Poll, ready};

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket, whose clients have no names worth mentioning.
    Unix,
    /// It could not be found out: the connection had ended before.
    Unknown,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(addr) => addr.fmt(f),
            Peer::Unix => f.write_str("unix:"),
            Peer::Unknown => f.write_str("unknown"),
        }
    }
}

impl Peer {
    pub(crate) fn from_any(addr: Option<SocketAddrAny>) -> Peer {
        match addr {
            None => Peer::Unknown,
            Some(addr) if addr.address_family() == AddressFamily::UNIX => Peer::Unix,
            Some(addr) => SocketAddr::try_from(addr).map_or(Peer::Unknown, Peer::Tcp),
        }
    }
}

/// A connected stream socket.
#[derive(Debug)]
pub struct Stream {
    io: Async<OwnedFd>,
    peer: Peer,
    turn: Turn,
}

/// How much of its turn a stream has used.
#[derive(Debug)]
struct Turn {
    limit: u32,
    /// The call of the thread that `used` is about.
    call: u64,
    used: [u32; 2],
}

impl Turn {
    const UNLIMITED: Turn = Turn { limit: u32::MAX, call: 0, used: [0; 2] };

    /// Is there anything left? If not, the task is woken, and finds itself behind all others.
    fn poll(&mut self, interest: Interest, cx: &Context<'_>) -> Poll<()> {
        if self.limit == u32::MAX {
            return Poll::Ready(());
        }
        let call = try_with_core(|core| core.call()).unwrap_or(0);
        if self.call != call {
            (self.call, self.used) = (call, [0; 2]);
        }
        if self.used[interest as usize] >= self.limit {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    fn used<T>(&mut self, interest: Interest, poll: &Poll<T>) {
        self.used[interest as usize] += u32::from(poll.is_ready() && self.limit != u32::MAX);
    }
}

impl Stream {
    /// Takes over a connected socket and makes it non-blocking.
    ///
    /// # Errors
    /// If it cannot be made non-blocking or registered.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let peer = Peer::from_any(rustix::net::getpeername(&fd).ok().flatten());
        rustix::io::ioctl_fionbio(&fd, true)?;
        Self::ready(fd, peer)
    }

    /// For a socket that is known to be non-blocking and whose peer is known, as the acceptor's are.
    ///
    /// # Errors
    /// If it cannot be registered.
    pub fn ready(fd: OwnedFd, peer: Peer) -> io::Result<Self> {
        Ok(Stream { io: Async::ready(fd)?, peer, turn: Turn::UNLIMITED })
    }

    /// Connects to a TCP address. There is no time limit but the kernel's: see [`timeout`](crate::time::timeout).
    ///
    /// # Errors
    /// What connect(2) says, at once or later.
    pub async fn connect_tcp(addr: SocketAddr) -> io::Result<Self> {
        let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let fd = socket(family)?;
        Self::finish_connect(rustix::net::connect(&fd, &addr), fd, Peer::Tcp(addr)).await
    }

    /// Connects to a Unix socket.
    ///
    /// # Errors
    /// What connect(2) says; `EAGAIN` if its backlog is full.
    pub async fn connect_unix(path: impl AsRef<Path>) -> io::Result<Self> {
        let fd = socket(AddressFamily::UNIX)?;
        let addr = SocketAddrUnix::new(path.as_ref())?;
        Self::finish_connect(rustix::net::connect(&fd, &addr), fd, Peer::Unix).await
    }

    async fn finish_connect(started: rustix::io::Result<()>, fd: OwnedFd, peer: Peer) -> io::Result<Self> {
        match started {
            Ok(()) => return Self::ready(fd, peer),
            Err(rustix::io::Errno::INPROGRESS) => {}
            Err(e) => return Err(e.into()),
        }
        let io = Async::new(fd)?;
        io.writable().await?;
        match sockopt::socket_error(io.get_ref())? {
            Ok(()) => Ok(Stream { io, peer, turn: Turn::UNLIMITED }),
            Err(e) => Err(e.into()),
        }
    }

    /// At most so many reads and so many writes in one call of the task that does them (at least one each); then it has to
    /// give way to everything that waits on its thread, which is counted among the yields. None: no limit, the default.
    pub fn limit(&mut self, operations: Option<u32>) {
        self.turn.limit = operations.unwrap_or(u32::MAX).max(1);
    }

    /// Who is at the other end.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Reads what there is into `buf` and says how much of its beginning is now initialised; 0 is the end of the stream.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [MaybeUninit<u8>],
    ) -> Poll<io::Result<usize>> {
        let wanted = buf.len();
        ready!(self.turn.poll(Interest::Readable, cx));
        let poll = self.io.poll_io(Interest::Readable, cx, |fd| {
            let (got, _) = rustix::net::recv(fd, &mut *buf, RecvFlags::empty())?;
            Ok(got.0.len())
        });
        self.turn.used(Interest::Readable, &poll);
        // Less than asked for: the socket is empty, and the next bytes make a new edge. An end of stream that has been
        // seen is remembered apart from this.
        if let Poll::Ready(Ok(n)) = poll
            && n > 0
            && n < wanted
        {
            self.io.clear_read();
        }
        poll
    }

    /// Writes as much of `buf` as the socket takes.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, buf, SendFlags::NOSIGNAL)
    }

    /// As [`Stream::poll_write_vectored`], for the last bytes: what doesn't fill a packet waits for
    /// [`Stream::shutdown_write`], which must follow at once, and goes out with it in one packet. The peer is woken once, and
    /// not twice.
    pub fn poll_write_last(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.poll_send_vectored(cx, bufs, SendFlags::NOSIGNAL | SendFlags::MORE)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, buf: &[u8], flags: SendFlags) -> Poll<io::Result<usize>> {
        ready!(self.turn.poll(Interest::Writable, cx));
        let poll = self.io.poll_io(Interest::Writable, cx, |fd| Ok(rustix::net::send(fd, buf, flags)?));
        self.turn.used(Interest::Writable, &poll);
        self.note_short_write(&poll, buf.len());
        poll
    }

    /// Writes as much of the buffers as the socket takes, in one system call.
    pub fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send_vectored(cx, bufs, SendFlags::NOSIGNAL)
    }

    fn poll_send_vectored(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
        flags: SendFlags,
    ) -> Poll<io::Result<usize>> {
        // send(2) costs less than sendmsg(2)
        if let [one] = bufs {
            return self.poll_send(cx, one, flags);
        }
        ready!(self.turn.poll(Interest::Writable, cx));
        let poll = self.io.poll_io(Interest::Writable, cx, |fd| {
            let mut none = rustix::net::SendAncillaryBuffer::default();
            Ok(rustix::net::sendmsg(fd, bufs, &mut none, flags)?)
        });
        self.turn.used(Interest::Writable, &poll);
        self.note_short_write(&poll, bufs.iter().map(|b| b.len()).sum());
        poll
    }

    fn note_short_write(&self, poll: &Poll<io::Result<usize>>, wanted: usize) {
        if let Poll::Ready(Ok(n)) = poll
            && *n < wanted
        {
            self.io.clear_write();
        }
    }

    /// Ready when there is something to read, without reading it: what a parked connection waits for.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.poll_read_ready(cx)
    }

    /// Ready when something can be written.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.poll_write_ready(cx)
    }

    /// Reads into `buf`; 0 is the end of the stream.
    ///
    /// # Errors
    /// Those of recv(2).
    pub async fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let wanted = buf.len();
        let n = std::future::poll_fn(|cx| {
            ready!(self.turn.poll(Interest::Readable, cx));
            let recv = |fd: &OwnedFd| Ok(rustix::net::recv(fd, &mut *buf, RecvFlags::empty())?.0);
            let poll = self.io.poll_io(Interest::Readable, cx, recv);
            self.turn.used(Interest::Readable, &poll);
            poll
        })
        .await?;
        if n > 0 && n < wanted {
            self.io.clear_read();
        }
        Ok(n)
    }

    /// Writes all of `buf`.
    ///
    /// # Errors
    /// Those of send(2); `WriteZero` if the socket takes nothing.
    pub async fn write_all(&mut self, mut buf: &[u8]) -> io::Result<()> {
        while !buf.is_empty() {
            let n = std::future::poll_fn(|cx| self.poll_write(cx, buf)).await?;
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            buf = &buf[n..];
        }
        Ok(())
    }

    /// Says that nothing more will be written.
    ///
    /// # Errors
    /// Those of shutdown(2).
    pub fn shutdown_write(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(self.io.get_ref(), Shutdown::Write)?)
    }

    /// Switches Nagle's algorithm off (TCP; on a Unix socket nothing happens).
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn set_nodelay(&self, on: bool) -> io::Result<()> {
        if self.peer == Peer::Unix {
            return Ok(());
        }
        Ok(sockopt::set_tcp_nodelay(self.io.get_ref(), on)?)
    }

    /// The socket with its registration, for what is not here (sendfile, splice, MSG_PEEK).
    pub fn source(&self) -> &Async<OwnedFd> {
        &self.io
    }

    /// Deregisters and gives the socket away.
    pub fn into_fd(self) -> OwnedFd {
        self.io.into_inner()
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.as_fd()
    }
}

impl TryFrom<TcpStream> for Stream {
    type Error = io::Error;
    fn try_from(stream: TcpStream) -> io::Result<Self> {
        Self::from_fd(stream.into())
    }
}

impl TryFrom<UnixStream> for Stream {
    type Error = io::Error;
    fn try_from(stream: UnixStream) -> io::Result<Self> {
        Self::from_fd(stream.into())
    }
}

fn socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
}

/// A listening stream socket.
#[derive(Debug)]
pub struct Listener {
    io: Async<OwnedFd>,
}

impl Listener {
    /// Takes over a listening socket, an inherited one for example, and makes it non-blocking.
    ///
    /// # Errors
    /// If it cannot be made non-blocking or registered.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Listener { io: Async::new(fd)?.assume_ready() })
    }

    /// As [`Listener::from_fd`]; of several loops that listen to the same socket one is woken per connection.
    pub(crate) fn exclusive(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Listener { io: Async::exclusive(fd)?.assume_ready() })
    }

    /// Takes the next connection; it is non-blocking and close-on-exec.
    pub fn poll_accept_fd(&self, cx: &mut Context<'_>) -> Poll<io::Result<(OwnedFd, Peer)>> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accepted =
            self.io.poll_io(Interest::Readable, cx, |fd| Ok(rustix::net::acceptfrom_with(fd, flags)?));
        let (fd, peer) = ready!(accepted)?;
        Poll::Ready(Ok((fd, Peer::from_any(peer))))
    }

    /// Takes the next connection.
    ///
    /// # Errors
    /// Those of accept(2): `ECONNABORTED` and the like concern one connection, `EMFILE` and `ENFILE` all of them.
    pub async fn accept(&self) -> io::Result<(Stream, Peer)> {
        let (fd, peer) = std::future::poll_fn(|cx| self.poll_accept_fd(cx)).await?;
        Ok((Stream::ready(fd, peer)?, peer))
    }

    /// The address it is bound to; None for a Unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        rustix::net::getsockname(self.io.get_ref()).ok().and_then(|addr| SocketAddr::try_from(addr).ok())
    }

    /// Deregisters and gives the socket away.
    pub fn into_fd(self) -> OwnedFd {
        self.io.into_inner()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.as_fd()
    }
}

impl TryFrom<TcpListener> for Listener {
    type Error = io::Error;
    fn try_from(listener: TcpListener) -> io::Result<Self> {
        Self::from_fd(listener.into())
    }
}

impl TryFrom<UnixListener> for Listener {
    type Error = io::Error;
    fn try_from(listener: UnixListener) -> io::Result<Self> {
        Self::from_fd(listener.into())
    }
}
