//! The heartbeat's fetch: one small HTTP request over TCP or a Unix socket, a state machine for somebody else's poll set.
//!
//! ```text
//!   Connecting --writable--> Sending --all sent--> Receiving --whole answer--> done
//! ```
//!
//! It never blocks and never waits: its deadline is the heartbeat's. The answer is bounded.

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send,
    socket_with, sockopt,
};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// Longest answer taken, head included.
const MAX_ANSWER: usize = 64 << 10;

/// Where to fetch from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
}

impl Target {
    /// The address through which a listener on `bound` is reached from this machine: a wildcard becomes loopback.
    pub fn reaching(bound: SocketAddr) -> Target {
        let mut a = bound;
        match a {
            SocketAddr::V4(v) if v.ip().is_unspecified() => a.set_ip(Ipv4Addr::LOCALHOST.into()),
            SocketAddr::V6(v) if v.ip().is_unspecified() => a.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        Target::Tcp(a)
    }

    /// Reads a line of the `ports` file: `host:port` or `unix:/path`.
    pub fn parse(line: &str) -> Option<Target> {
        match line.strip_prefix("unix:") {
            Some(path) => Some(Target::Unix(path.into())),
            None => line.parse().ok().map(Target::reaching),
        }
    }
}

/// A whole answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub code: u16,
    /// The body, up to what was announced or the end.
    pub body: Vec<u8>,
}

#[derive(Debug)]
enum Phase {
    Connecting,
    Sending(usize),
    Receiving,
}

/// One fetch under way.
#[derive(Debug)]
pub struct Probe {
    fd: OwnedFd,
    phase: Phase,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Probe {
    /// Begins a GET of `path` with these extra header lines (each `Name: value`).
    ///
    /// # Errors
    /// The connection is refused at once, or there are no fds.
    pub fn start(target: &Target, path: &str, headers: &[String]) -> io::Result<Probe> {
        let family = match target {
            Target::Tcp(SocketAddr::V4(_)) => AddressFamily::INET,
            Target::Tcp(SocketAddr::V6(_)) => AddressFamily::INET6,
            Target::Unix(_) => AddressFamily::UNIX,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(family, SocketType::STREAM, flags, None)?;
        let connected = match target {
            Target::Tcp(a) => connect(&fd, a),
            Target::Unix(p) => connect(&fd, &SocketAddrUnix::new(p.as_path())?),
        };
        match connected {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(e) => return Err(e.into()),
        }
        let mut request = format!("GET {path} HTTP/1.1\r\nHost: heartbeat\r\nConnection: close\r\n");
        headers.iter().for_each(|h| request.extend([h.as_str(), "\r\n"]));
        request.push_str("\r\n");
        Ok(Probe { fd, phase: Phase::Connecting, request: request.into_bytes(), answer: Vec::new() })
    }

    /// What to poll its fd for.
    pub fn interest(&self) -> PollFlags {
        match self.phase {
            Phase::Connecting | Phase::Sending(_) => PollFlags::OUT,
            Phase::Receiving => PollFlags::IN,
        }
    }

    /// Goes on as far as it can; to be called when the fd is ready. `None`: not done yet.
    pub fn step(&mut self) -> Option<io::Result<Answer>> {
        self.advance().transpose()
    }

    fn advance(&mut self) -> io::Result<Option<Answer>> {
        loop {
            match self.phase {
                Phase::Connecting => {
                    sockopt::socket_error(&self.fd)??;
                    self.phase = Phase::Sending(0);
                }
                Phase::Sending(n) if n == self.request.len() => self.phase = Phase::Receiving,
                Phase::Sending(n) => match send(&self.fd, &self.request[n..], SendFlags::NOSIGNAL) {
                    Ok(sent) => self.phase = Phase::Sending(n + sent),
                    Err(Errno::AGAIN | Errno::NOTCONN) => return Ok(None),
                    Err(e) => return Err(e.into()),
                },
                Phase::Receiving => {
                    let mut chunk = [0u8; 4096];
                    match recv(&self.fd, &mut chunk[..], RecvFlags::empty()) {
                        Ok((0, _)) => return self.finish(true),
                        Ok((n, _)) => self.answer.extend_from_slice(&chunk[..n]),
                        Err(Errno::AGAIN) => return self.finish(false),
                        Err(e) => return Err(e.into()),
                    }
                    if self.answer.len() > MAX_ANSWER {
                        return Err(io::Error::other("the answer is too long"));
                    }
                }
            }
        }
    }

    fn finish(&mut self, eof: bool) -> io::Result<Option<Answer>> {
        match parse(&self.answer, eof) {
            Parsed::Whole(a) => Ok(Some(a)),
            Parsed::Partial => Ok(None),
            Parsed::Bad(why) => Err(io::Error::other(why)),
        }
    }
}

impl AsFd for Probe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What has come of an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// All of it.
    Whole(Answer),
    /// Not all of it.
    Partial,
    /// It is none, and why.
    Bad(&'static str),
}

/// Reads an answer: whole when `Content-Length` is met, or at the end of the connection (`eof`) without one.
pub fn parse(bytes: &[u8], eof: bool) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let end = match head.parse(bytes) {
        Ok(httparse::Status::Complete(n)) => n,
        Ok(httparse::Status::Partial) if eof && bytes.is_empty() => {
            return Parsed::Bad("closed without an answer");
        }
        Ok(httparse::Status::Partial) if eof => return Parsed::Bad("closed within the head of the answer"),
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(_) => return Parsed::Bad("the answer is not HTTP"),
    };
    let length = head.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"));
    let length = match length
        .map(|h| std::str::from_utf8(h.value).ok().and_then(|v| v.trim().parse::<usize>().ok()))
    {
        Some(None) => return Parsed::Bad("the answer has an impossible Content-Length"),
        Some(Some(n)) => Some(n),
        None => None,
    };
    let body = &bytes[end..];
    let code = head.code.unwrap_or(0);
    match length {
        Some(n) if body.len() >= n => Parsed::Whole(Answer { code, body: body[..n].to_vec() }),
        Some(_) if eof => Parsed::Bad("closed within the body of the answer"),
        None if eof => Parsed::Whole(Answer { code, body: body.to_vec() }),
        Some(_) | None => Parsed::Partial,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, poll};
    use std::io::{Read, Write};

    #[test]
    fn reads_answers_and_names_what_is_wrong_with_them() {
        let ok = |b: &str| Parsed::Whole(Answer { code: 200, body: b.into() });
        let cases = [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"[..], false, ok("hi")),
            (b"HTTP/1.1 200 OK\r\n\r\nhi", true, ok("hi")),
            (b"HTTP/1.1 200 OK\r\n\r\nhi", false, Parsed::Partial),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi", false, Parsed::Partial),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi",
                true,
                Parsed::Bad("closed within the body of the answer"),
            ),
            (b"HTTP/1.1 2", true, Parsed::Bad("closed within the head of the answer")),
            (b"", true, Parsed::Bad("closed without an answer")),
            (b"SSH-2.0-x\r\n", false, Parsed::Bad("the answer is not HTTP")),
        ];
        for (bytes, eof, want) in cases {
            assert_eq!(parse(bytes, eof), want, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    fn drive(mut p: Probe) -> io::Result<Answer> {
        loop {
            let flags = p.interest();
            poll(&mut [PollFd::new(&p, flags)], None)?;
            if let Some(done) = p.step() {
                return done;
            }
        }
    }

    #[test]
    fn fetches_from_a_real_port() {
        let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = Target::reaching(l.local_addr().unwrap());
        let t = std::thread::spawn(move || {
            let (mut s, _) = l.accept().unwrap();
            let mut got = [0u8; 1024];
            let n = s.read(&mut got).unwrap();
            s.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbeat").unwrap();
            String::from_utf8_lossy(&got[..n]).into_owned()
        });
        let a = drive(Probe::start(&to, "/hb", &["X: y".into()]).unwrap()).unwrap();
        assert_eq!((a.code, a.body.as_slice()), (200, &b"beat"[..]));
        let request = t.join().unwrap();
        assert!(request.starts_with("GET /hb HTTP/1.1\r\n") && request.contains("\r\nX: y\r\n"), "{request}");
    }

    #[test]
    fn a_closed_port_is_an_error_and_no_wait() {
        // bound, and nobody listens there
        let l = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)
            .unwrap();
        rustix::net::bind(&l, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let l = std::net::TcpListener::from(l);
        let to = Target::reaching(l.local_addr().unwrap());
        let e = Probe::start(&to, "/", &[]).and_then(drive).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::ConnectionRefused, "{e}");
    }

    #[test]
    fn lines_of_the_ports_file() {
        assert_eq!(Target::parse("0.0.0.0:80"), Target::parse("127.0.0.1:80"));
        assert_eq!(Target::parse("unix:/run/x"), Some(Target::Unix("/run/x".into())));
        assert_eq!(Target::parse("nonsense"), None);
    }
}
