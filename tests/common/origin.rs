//! An origin that does what a test tells it: answers at once, when it is let go, slowly, or never.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

#[derive(Default)]
struct State {
    /// Requests seen, by `METHOD path`.
    seen: HashMap<String, usize>,
    bodies: Vec<Vec<u8>>,
    held: bool,
    changed: bool,
}

/// Paths: `/held` is answered when [`Origin::release`] was called; `/cacheable` may be kept for an hour; `/big?etag`, `/big` have a body of [`BIG`] bytes with
/// and without a validator, of which it sends the part it is asked for; `/chunked` the same without a length; anything else is answered at once with its own path.
pub struct Origin {
    pub addr: SocketAddr,
    shared: Arc<(Mutex<State>, Condvar)>,
}

/// More than the socket buffers of both ends take.
pub const BIG: usize = 16 << 20;

/// The byte at a position of the big body, before [`Origin::change`].
pub fn big(at: usize) -> u8 {
    (at % 251) as u8 ^ (at / 65_536) as u8
}

impl Origin {
    pub fn start() -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let shared: Arc<(Mutex<State>, Condvar)> = Arc::default();
        shared.0.lock().unwrap().held = true;
        let state = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = state.clone();
                let _ = stream.set_nodelay(true);
                std::thread::spawn(move || while serve(&stream, &state).is_some() {});
            }
        });
        Origin { addr, shared }
    }

    /// A route to it, for the configuration.
    pub fn route(&self) -> String {
        format!("[[route]]\nhost = \"*\"\nprefix = \"/\"\norigin = [\"http://{}\"]\n", self.addr)
    }

    /// Waits until `what` (`METHOD path`) was seen so often.
    #[track_caller]
    pub fn wait_seen(&self, what: &str, times: usize) {
        let until = Instant::now() + super::LONG;
        let mut state = self.shared.0.lock().unwrap();
        while state.seen.get(what).copied().unwrap_or(0) < times {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what} wasn't seen {times} times, but {:?}", state.seen);
            state = self.shared.1.wait_timeout(state, left).unwrap().0;
        }
    }

    pub fn seen(&self, what: &str) -> usize {
        self.shared.0.lock().unwrap().seen.get(what).copied().unwrap_or(0)
    }

    pub fn bodies(&self) -> Vec<Vec<u8>> {
        self.shared.0.lock().unwrap().bodies.clone()
    }

    /// The big body is another one from now on, for those who ask from now on.
    pub fn change(&self) {
        self.shared.0.lock().unwrap().changed = true;
    }

    /// Answers what is held, now and from now on.
    pub fn release(&self) {
        self.shared.0.lock().unwrap().held = false;
        self.shared.1.notify_all();
    }
}

fn serve(mut stream: &TcpStream, shared: &(Mutex<State>, Condvar)) -> Option<()> {
    let mut from = BufReader::new(stream);
    let (mut first, mut length, mut range) = (String::new(), 0, None);
    from.read_line(&mut first).ok().filter(|n| *n > 0)?;
    loop {
        let mut line = String::new();
        from.read_line(&mut line).ok().filter(|n| *n > 0)?;
        if line == "\r\n" {
            break;
        }
        if let Some(n) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = n.trim().parse().ok()?;
        }
        if let Some(spec) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            let (from, to) = spec.trim().split_once('-')?;
            range = Some((from.parse::<usize>().ok()?, to.parse().map_or(BIG, |last: usize| last + 1)));
        }
    }
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut body = vec![0; length];
    from.read_exact(&mut body).ok()?;
    let changed = {
        let mut state = shared.0.lock().unwrap();
        *state.seen.entry(format!("{method} {path}")).or_default() += 1;
        if method == "POST" {
            state.bodies.push(body);
        }
        shared.1.notify_all();
        if path.starts_with("/held") {
            let until = Instant::now() + Duration::from_secs(60);
            while state.held && Instant::now() < until {
                state = shared.1.wait_timeout(state, Duration::from_secs(60)).unwrap().0;
            }
        }
        state.changed
    };
    if path.starts_with("/big") || path.starts_with("/chunked") {
        let chunked = path.starts_with("/chunked");
        let tag = match path.contains("etag") {
            true if changed => "ETag: \"two\"\r\n",
            true => "ETag: \"one\"\r\n",
            false => "",
        };
        let (from, to) = range.unwrap_or((0, BIG));
        let status = match range {
            Some(_) => format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{BIG}", to - 1),
            None => "200 OK".to_owned(),
        };
        let framing = match chunked {
            true => "Transfer-Encoding: chunked".to_owned(),
            false => format!("Content-Length: {}", to - from),
        };
        write!(stream, "HTTP/1.1 {status}\r\n{tag}{framing}\r\n\r\n").ok()?;
        for part in (from..to).step_by(64 << 10) {
            let part = part..to.min(part + (64 << 10));
            let part: Vec<u8> = part.map(|at| if changed { !big(at) } else { big(at) }).collect();
            if chunked {
                write!(stream, "{:x}\r\n", part.len()).ok()?;
            }
            stream.write_all(&part).ok()?;
            if chunked {
                stream.write_all(b"\r\n").ok()?;
            }
        }
        if chunked {
            stream.write_all(b"0\r\n\r\n").ok()?;
        }
        return Some(());
    }
    if method == "HEAD" {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", path.len());
        return stream.write_all(head.as_bytes()).ok();
    }
    let keep = if path.starts_with("/cacheable") { "Cache-Control: max-age=3600\r\n" } else { "" };
    // in one piece
    stream
        .write_all(
            format!("HTTP/1.1 200 OK\r\n{keep}Content-Length: {}\r\n\r\n{path}", path.len()).as_bytes(),
        )
        .ok()
}

/// A suite in front of an origin, with a standby.
pub fn serving(more: &str) -> (Origin, super::Suite) {
    let origin = Origin::start();
    let suite = super::Suite::serving(&format!("{more}{}", origin.route()));
    suite.wait(0, &["event=standby-ready"]);
    (origin, suite)
}
