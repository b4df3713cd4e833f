//! What the kernel knows of a connection that no dead process can tell: how many bytes went in and out.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Where `struct tcp_info` has what we want (Linux 4.1 on; the structure only ever grows).
const STATE: usize = 0;
const BYTES_ACKED: usize = 120;
const BYTES_RECEIVED: usize = 128;
const LENGTH: usize = 136;
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;

/// A TCP connection as the kernel sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpFacts {
    /// Bytes that were read from the socket in all.
    pub bytes_read: u64,
    /// Bytes that were written to it in all, sent or not.
    pub bytes_written: u64,
    /// The peer can still be answered.
    pub alive: bool,
    /// It has said that it will send no more.
    pub half_closed: bool,
    /// Bytes that wait to be read.
    pub unread: u64,
}

/// What the kernel says is asked for so often until it stands still. Nobody reads or writes, so what can still move is bounded by the
/// socket's buffers; a peer that fills or drains them moves it for as long.
const ROUNDS: u32 = 10_000;

/// Asks the kernel. `None`: no TCP socket. Nobody may be reading from or writing to it: only the peer may move what is counted.
///
/// What was acknowledged and what still waits for that are asked for one after the other, and the peer may acknowledge in between (or send,
/// which concerns what was received and what wasn't read): both are taken together only if nothing has moved from before to after. A
/// count that was too small would be bytes written twice, or a connection given up.
///
/// # Errors
/// The kernel is too old, or the fd isn't a socket; `WouldBlock`: it doesn't stand still.
pub fn facts(socket: impl AsFd) -> io::Result<Option<TcpFacts>> {
    let fd = socket.as_fd().as_raw_fd();
    let Some(mut seen) = Info::of(fd)? else { return Ok(None) };
    for _ in 0..ROUNDS {
        let unread = queued(fd, nix::libc::FIONREAD)?;
        let unsent = queued(fd, nix::libc::TIOCOUTQ)?;
        let Some(now) = Info::of(fd)? else { return Ok(None) };
        if now == seen {
            return Ok(Some(seen.facts(unread, unsent)));
        }
        seen = now;
    }
    Err(io::Error::new(io::ErrorKind::WouldBlock, "the connection doesn't stand still"))
}

/// Of TCP_INFO, what was true at one moment.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Info {
    state: u8,
    acked: u64,
    received: u64,
}

impl Info {
    fn of(fd: i32) -> io::Result<Option<Info>> {
        let mut info = [0u8; LENGTH];
        let mut len = LENGTH as nix::libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes into `info`, and says how many.
        let got = unsafe {
            nix::libc::getsockopt(
                fd,
                nix::libc::IPPROTO_TCP,
                nix::libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        if got < 0 {
            return match io::Error::last_os_error() {
                e if matches!(e.raw_os_error(), Some(nix::libc::ENOPROTOOPT | nix::libc::EOPNOTSUPP)) => {
                    Ok(None)
                }
                e => Err(e),
            };
        }
        if (len as usize) < LENGTH {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel's TCP_INFO is too short"));
        }
        let word = |at: usize| u64::from_ne_bytes(info[at..at + 8].try_into().expect("eight bytes"));
        Ok(Some(Info { state: info[STATE], acked: word(BYTES_ACKED), received: word(BYTES_RECEIVED) }))
    }

    fn facts(self, unread: u64, unsent: u64) -> TcpFacts {
        let half_closed = self.state == CLOSE_WAIT;
        // the FIN of a client that has closed its side counts as a byte received
        let received = self.received.saturating_sub(u64::from(half_closed));
        TcpFacts {
            bytes_read: received.saturating_sub(unread),
            bytes_written: self.acked + unsent,
            alive: matches!(self.state, ESTABLISHED | CLOSE_WAIT),
            half_closed,
            unread,
        }
    }
}

/// What was sent on a socket and not received yet, in bytes as the kernel counts them: zero when nothing is under way.
///
/// # Errors
/// It is no socket.
pub fn unread_by_peer(socket: impl AsFd) -> io::Result<u64> {
    queued(socket.as_fd().as_raw_fd(), nix::libc::TIOCOUTQ)
}

fn queued(fd: i32, what: nix::libc::Ioctl) -> io::Result<u64> {
    let mut n: nix::libc::c_int = 0;
    // SAFETY: both requests write one int.
    if unsafe { nix::libc::ioctl(fd, what, &raw mut n) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(n.max(0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};

    #[test]
    fn the_kernel_counts_what_was_read_and_written() {
        let l = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(l.local_addr().unwrap()).unwrap();
        let (mut server, _) = l.accept().unwrap();
        let ask = |s: &TcpStream| facts(s).unwrap().unwrap();
        let fresh = TcpFacts { bytes_read: 0, bytes_written: 0, alive: true, half_closed: false, unread: 0 };
        assert_eq!(ask(&server), fresh);
        client.write_all(b"0123456789").unwrap();
        server.read_exact(&mut [0; 4]).unwrap();
        server.write_all(&[0; 1000]).unwrap();
        assert_eq!(ask(&server), TcpFacts { bytes_read: 4, bytes_written: 1000, unread: 6, ..fresh });
        client.shutdown(Shutdown::Write).unwrap();
        server.read_exact(&mut [0; 6]).unwrap();
        assert_eq!(server.read(&mut [0; 1]).unwrap(), 0);
        assert_eq!(
            ask(&server),
            TcpFacts { bytes_read: 10, bytes_written: 1000, half_closed: true, ..fresh }
        );
        drop(client);
        let _ = server.write_all(&[0; 1]);
        while ask(&server).alive {
            std::thread::yield_now();
        }
    }

    /// A client takes and sends while we ask.
    #[test]
    fn what_moves_meanwhile_is_counted_once() {
        const BYTES: usize = 8 << 20;
        let l = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(l.local_addr().unwrap()).unwrap();
        let (mut server, _) = l.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        let mut sends = client.try_clone().unwrap();
        let peer = [
            std::thread::spawn(move || client.read_exact(&mut vec![0; BYTES])),
            std::thread::spawn(move || sends.write_all(&vec![0; BYTES])),
        ];
        let (mut written, mut read, mut asked) = (0, 0, 0);
        let chunk = vec![0; 256 << 10];
        let mut into = vec![0; 256 << 10];
        while read < BYTES || written < BYTES || asked < 10_000 {
            written += server.write(&chunk[..chunk.len().min(BYTES - written)]).unwrap_or(0);
            read += server.read(&mut into).unwrap_or(0);
            for _ in 0..20 {
                let f = facts(&server).unwrap().unwrap();
                assert_eq!((f.bytes_written, f.bytes_read), (written as u64, read as u64), "{f:?}");
                asked += 1;
            }
        }
        peer.into_iter().for_each(|t| t.join().unwrap().unwrap());
    }

    #[test]
    fn other_sockets_have_no_such_facts() {
        let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(facts(&a).unwrap(), None);
        assert!(facts(std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
