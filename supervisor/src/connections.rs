//! Does anybody have a connection to an address of this machine that is open at this end? Asked of the kernel, for who holds a
//! listening socket that somebody else accepts on.

use procfs::net::{TcpState, UnixState};
use procfs::process::Process;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};
use std::io;
use std::net::SocketAddr;
use std::path::Path;

/// linux/sock_diag.h, linux/netlink.h, linux/inet_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST_DUMP: u16 = 0x301;
const HEADER: usize = 16;
const REQUEST: usize = 72;
/// TCP_ESTABLISHED, TCP_SYN_RECV (being made), TCP_CLOSE_WAIT (the peer has ended its half).
const OPEN: u32 = 1 << 1 | 1 << 3 | 1 << 8;

/// Is a TCP connection open whose address at this end has that port, on any address of that family?
///
/// # Errors
/// The kernel can't be asked.
pub fn tcp(listener: SocketAddr) -> io::Result<bool> {
    match ask(listener) {
        // without inet_diag in the kernel, or kept from asking: the long way
        Err(_) => by_list(listener),
        found => found,
    }
}

/// Is a connection to that Unix socket open?
///
/// # Errors
/// `/proc` can't be read.
pub fn unix(path: &Path) -> io::Result<bool> {
    let all = myself()?.unix().map_err(io::Error::other)?;
    let open = |s: &UnixState| matches!(s, UnixState::CONNECTED | UnixState::CONNECTING);
    Ok(all.iter().any(|e| open(&e.state) && e.path.as_deref() == Some(path)))
}

/// `/proc/self/net`: `/proc/net` is hidden where only processes are to be seen (`ProcSubset=pid`).
fn myself() -> io::Result<Process> {
    Process::myself().map_err(io::Error::other)
}

fn by_list(listener: SocketAddr) -> io::Result<bool> {
    let me = myself()?;
    let all = if listener.is_ipv4() { me.tcp() } else { me.tcp6() };
    let open = |s: &TcpState| matches!(s, TcpState::Established | TcpState::SynRecv | TcpState::CloseWait);
    let mut all = all.map_err(io::Error::other)?.into_iter();
    Ok(all.any(|e| open(&e.state) && e.local_address.port() == listener.port()))
}

/// sock_diag(7): the kernel sends only those of that port.
fn ask(listener: SocketAddr) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::SOCK_DIAG))?;
    send(&socket, &request(listener), SendFlags::DONTWAIT)?;
    let mut bytes = vec![0; 16 << 10];
    loop {
        let (_, n) = recv(&socket, bytes.as_mut_slice(), RecvFlags::DONTWAIT)?;
        match read(&bytes[..n.min(16 << 10)]) {
            Said::Found => return Ok(true),
            Said::NoMore => return Ok(false),
            Said::Error(errno) => return Err(io::Error::from_raw_os_error(errno)),
            Said::More => {}
        }
    }
}

fn request(listener: SocketAddr) -> [u8; REQUEST] {
    let family = if listener.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let mut out = [0; REQUEST];
    out[..4].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
    out[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    out[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    out[HEADER] = family.as_raw() as u8;
    out[HEADER + 1] = nix::libc::IPPROTO_TCP as u8;
    out[HEADER + 4..HEADER + 8].copy_from_slice(&OPEN.to_ne_bytes());
    out[HEADER + 8..HEADER + 10].copy_from_slice(&listener.port().to_be_bytes());
    out
}

#[derive(Debug, PartialEq)]
enum Said {
    Found,
    More,
    NoMore,
    Error(i32),
}

/// Reads the messages of one datagram: any answer is one that was asked for.
fn read(mut bytes: &[u8]) -> Said {
    while bytes.len() >= HEADER {
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let length = word(0) as usize;
        match u16::from_ne_bytes([bytes[4], bytes[5]]) {
            SOCK_DIAG_BY_FAMILY => return Said::Found,
            NLMSG_DONE => return Said::NoMore,
            NLMSG_ERROR if bytes.len() >= HEADER + 4 => return Said::Error(-(word(HEADER) as i32)),
            _ => {}
        }
        // each begins at a multiple of four
        let next = length.max(HEADER).next_multiple_of(4);
        bytes = bytes.get(next..).unwrap_or_default();
    }
    Said::More
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};

    /// A child that another test has just forked may have a socket for a moment.
    #[track_caller]
    fn soon(mut what: impl FnMut() -> bool) {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !what() {
            assert!(std::time::Instant::now() < until);
            std::thread::yield_now();
        }
    }

    #[test]
    fn tcp_connections_are_seen_until_this_end_closes_them() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(l) = TcpListener::bind(host) else { continue };
            let addr = l.local_addr().unwrap();
            for way in [ask, by_list, tcp] {
                assert!(!way(addr).unwrap(), "{host}: nobody yet");
                let client = TcpStream::connect(addr).unwrap();
                assert!(way(addr).unwrap(), "{host}: it waits to be accepted");
                let (mut server, _) = l.accept().unwrap();
                assert!(way(addr).unwrap(), "{host}");
                drop(client);
                // it has come here when the end of the other half has
                assert_eq!(server.read(&mut [0]).unwrap(), 0);
                assert!(way(addr).unwrap(), "{host}: this half is open still");
                drop(server);
                soon(|| !way(addr).unwrap());
            }
        }
    }

    #[test]
    fn unix_connections_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let l = UnixListener::bind(&path).unwrap();
        assert!(!unix(&path).unwrap());
        let client = UnixStream::connect(&path).unwrap();
        assert!(unix(&path).unwrap(), "it waits to be accepted");
        let (server, _) = l.accept().unwrap();
        assert!(unix(&path).unwrap());
        drop((client, server));
        soon(|| !unix(&path).unwrap());
    }

    #[test]
    fn messages_of_the_kernel() {
        let message = |kind: u16, body: &[u8]| {
            let length = (HEADER + body.len()) as u32;
            let mut m = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], body].concat();
            m.resize(m.len().next_multiple_of(4), 0);
            m
        };
        let noop = message(1, b"xyz");
        assert_eq!(read(&[noop.clone(), message(NLMSG_DONE, &[0; 4])].concat()), Said::NoMore);
        assert_eq!(read(&[noop.clone(), message(SOCK_DIAG_BY_FAMILY, &[0; 72])].concat()), Said::Found);
        assert_eq!(read(&message(NLMSG_ERROR, &(-2i32).to_ne_bytes())), Said::Error(2));
        assert_eq!(read(&noop), Said::More);
        // what is cut off or says nonsense of its length
        for bad in [&b""[..], b"abc", &[0; 15], &[0; 64], &message(NLMSG_ERROR, b"")] {
            assert_eq!(read(bad), Said::More);
        }
    }
}
