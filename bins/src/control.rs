//! A small blocking client of the manager's control socket (HTTP/1.1 over a Unix socket, one request per connection).
//!
//! Used by the commands (`status`, `reload`, the drill …), never by a supervising loop: those use
//! `supervisor::probe`, which doesn't block.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Answers above this many bytes are refused.
const MAX_ANSWER: u64 = 4 << 20;

/// Sends one request and returns the status code and the body.
///
/// # Errors
/// The socket can't be reached, the peer doesn't answer within `timeout`, or what it says isn't HTTP.
pub fn request(
    socket: &Path,
    method: &str,
    target: &str,
    timeout: Duration,
) -> std::io::Result<(u16, String)> {
    request_while(socket, method, target, timeout, |_| false)
}

/// The same, but who says nothing for `timeout` is waited for as long as `lives` says so of its pid. For what takes its time, and
/// whose time only the other side knows.
///
/// # Errors
/// As [`request`].
pub fn request_while(
    socket: &Path,
    method: &str,
    target: &str,
    timeout: Duration,
    lives: impl Fn(i32) -> bool,
) -> std::io::Result<(u16, String)> {
    let bad = |what: &str| std::io::Error::other(format!("{}: {what}", socket.display()));
    let mut s = UnixStream::connect(socket)?;
    s.set_read_timeout(Some(timeout))?;
    s.set_write_timeout(Some(timeout))?;
    s.write_all(
        format!("{method} {target} HTTP/1.1\r\nHost: manager\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let peer = rustix::net::sockopt::socket_peercred(&s)?.pid.as_raw_nonzero().get();
    let (mut answer, mut rest) = (Vec::new(), s.take(MAX_ANSWER));
    while let Err(e) = rest.read_to_end(&mut answer) {
        // what has been read stays in `answer`
        if e.kind() != ErrorKind::WouldBlock || !lives(peer) {
            return Err(e);
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let end = match head.parse(&answer) {
        Ok(httparse::Status::Complete(n)) => n,
        Ok(httparse::Status::Partial) => return Err(bad("the answer ends within its head")),
        Err(e) => return Err(bad(&format!("the answer isn't HTTP: {e}"))),
    };
    let code = head.code.unwrap_or(0);
    let body = String::from_utf8(answer.split_off(end)).map_err(|_| bad("the answer isn't UTF-8"))?;
    Ok((code, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::os::unix::net::UnixListener;

    #[test]
    fn who_takes_his_time_is_waited_for_while_he_lives() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let manager = std::thread::spawn(move || {
            let (mut s, _) = listener.accept().unwrap();
            // closed with something unread, it would be reset
            assert!(s.read(&mut [0; 512]).unwrap() > 10);
            s.write_all(b"HTTP/1.1 200 OK\r\n").unwrap();
            let _ = told.recv();
            s.write_all(b"\r\ndone").unwrap();
            drop(s);
            // the second is never answered
            listener.accept().unwrap()
        });
        let soon = Duration::from_millis(1);
        let asked = Cell::new(0);
        let lives = |pid| {
            assert_eq!(pid, std::process::id() as i32);
            asked.set(asked.get() + 1);
            if asked.get() == 3 {
                tell.send(()).unwrap();
            }
            true
        };
        let answer = request_while(&socket, "POST", "/slow", soon, lives).unwrap();
        assert_eq!(answer, (200, "done".to_owned()));
        assert!(asked.get() >= 3);
        let error = request(&socket, "POST", "/slow", soon).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        drop(manager.join());
    }
}
