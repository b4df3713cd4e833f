//! A small blocking client of the manager's control socket (HTTP/1.1 over a Unix socket, one request per connection).
//!
//! Used by the commands (`status`, `reload`, the drill …), never by a supervising loop: those use
//! `supervisor::probe`, which doesn't block.

use std::io::{Read, Write};
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
    let bad = |what: &str| std::io::Error::other(format!("{}: {what}", socket.display()));
    let mut s = UnixStream::connect(socket)?;
    s.set_read_timeout(Some(timeout))?;
    s.set_write_timeout(Some(timeout))?;
    s.write_all(
        format!("{method} {target} HTTP/1.1\r\nHost: manager\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = Vec::new();
    s.take(MAX_ANSWER).read_to_end(&mut answer)?;
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
