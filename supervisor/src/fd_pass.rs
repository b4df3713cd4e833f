//! Messages with fds over a SOCK_SEQPACKET pair: each arrives whole or not at all.

use crate::notify::MAX_FDS;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Longest message, in bytes.
pub const MAX_MESSAGE: usize = 20 << 10;

/// A connected pair, close-on-exec, blocking.
///
/// # Errors
/// The system refuses.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Is there a message that nobody has received yet? It stays where it is.
pub fn is_unread(socket: impl AsFd) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    rustix::net::recv(socket, &mut [0; 1][..], flags).is_ok_and(|(n, _)| n > 0)
}

/// Bounds how long [`send`] and [`recv`] block.
///
/// # Errors
/// The socket doesn't take it.
pub fn set_timeout(socket: impl AsFd, timeout: Duration) -> io::Result<()> {
    let fd = socket.as_fd();
    sockopt::set_socket_timeout(fd, sockopt::Timeout::Recv, Some(timeout))?;
    sockopt::set_socket_timeout(fd, sockopt::Timeout::Send, Some(timeout))?;
    Ok(())
}

/// Sends one message.
///
/// # Errors
/// Nobody is at the other end, more than [`MAX_FDS`] fds, or a message over [`MAX_MESSAGE`].
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_with(socket, bytes, fds, SendFlags::NOSIGNAL)
}

/// The same, if there is room for it now.
///
/// # Errors
/// As [`send`]; `WouldBlock`: there is none.
pub fn try_send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_with(socket, bytes, fds, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

fn send_with(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>], flags: SendFlags) -> io::Result<()> {
    if bytes.is_empty() || bytes.len() > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a message of a length that isn't sent"));
    }
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many fds for one message"));
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other.map(|_| ())?),
        }
    }
}

/// A message as it came.
#[derive(Debug)]
pub struct Message {
    /// What it says.
    pub bytes: Vec<u8>,
    /// Its fds, with rising numbers; the first of them, if it is cut.
    pub fds: Vec<OwnedFd>,
    /// We have no room for all of its fds.
    pub is_cut: bool,
}

/// Receives one message; `None` when the other end is gone.
///
/// # Errors
/// `WouldBlock` after the timeout; `InvalidData` if something was cut off (fds that came along are closed).
pub fn recv(socket: impl AsFd) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    match recv_what_fits(socket)? {
        Some(m) if m.is_cut => Err(cut()),
        other => Ok(other.map(|m| (m.bytes, m.fds))),
    }
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a message with fds was cut off")
}

/// The same, but where we may have no more fds the message comes with as many as there is room for.
///
/// # Errors
/// As [`recv`], if the text was cut off.
pub fn recv_what_fits(socket: impl AsFd) -> io::Result<Option<Message>> {
    let mut bytes = vec![0u8; MAX_MESSAGE];
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for m in control.drain() {
        if let RecvAncillaryMessage::ScmRights(list) = m {
            fds.extend(list);
        }
    }
    if got.flags.contains(ReturnFlags::TRUNC) {
        return Err(cut());
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(got.bytes);
    // the buffer holds what one message can carry: what is missing is room in our table
    Ok(Some(Message { bytes, fds, is_cut: got.flags.contains(ReturnFlags::CTRUNC) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_whole_with_their_fds_and_the_end_is_told() {
        let (a, b) = pair().unwrap();
        send(&a, b"one", &[a.as_fd(), b.as_fd()]).unwrap();
        send(&a, b"two", &[]).unwrap();
        let (bytes, fds) = recv(&b).unwrap().unwrap();
        assert_eq!((bytes.as_slice(), fds.len()), (&b"one"[..], 2));
        drop(fds);
        assert_eq!(recv(&b).unwrap().unwrap().0, b"two");
        set_timeout(&b, Duration::from_millis(10)).unwrap();
        assert_eq!(recv(&b).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(send(&a, &[0; MAX_MESSAGE + 1], &[]).is_err());
        assert!(send(&a, b"", &[]).is_err());
        while try_send(&a, &[0; MAX_MESSAGE], &[]).is_ok() {}
        assert_eq!(try_send(&a, &[0; MAX_MESSAGE], &[]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        while recv(&b).is_ok() {}
        drop(a);
        assert!(recv(&b).unwrap().is_none());
    }
}
