//! Does a worker that is ready still work? It is asked again and again; one that doesn't answer so many times in a row hangs,
//! and is replaced. The verdict is `policy::heartbeat`'s, which blames nobody for a manager that was stopped itself.
//!
//! `alive = "ping"` goes over a socket pair that the worker inherits; its number is in `TRAFFIC_PING_FD`. Either side may write
//! `ping WORD` and a newline, and the other one answers with `pong`, the same word, and a newline: so a worker can find out
//! too whether it still has a manager. The socket outlives a manager: the next one goes on asking.

use super::worker::Worker;
use super::{Job, probe};
use crate::config::job::Alive;
use crate::config::job_values::Place;
use crate::manager::keep::Keep;
use engine::net::Stream;
use engine::time::timeout;
use policy::heartbeat::{Action, Heartbeat, Limits};
use rustix::fs::FileType;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use supervisor::clock;

/// A longer line of a worker isn't looked at.
const LINE: usize = 64;
/// Reads in a row, until others get their turn.
const READS: u32 = 8;

/// A pair for pings: ours and theirs.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Of what was kept of a worker, the end for pings is the only socket.
pub(super) fn is_socket(fd: &OwnedFd) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Socket)
}

/// Begins to ask a worker that has become ready, in the way its job has it.
pub(super) fn begin(keep: &Rc<Keep>, job: &Rc<Job>, w: &Rc<Worker>) {
    let (alive, limits) = {
        let c = job.config.borrow();
        let limits =
            Limits { interval: c.probe_interval, timeout: c.probe_timeout, failures: c.probe_failures };
        (c.alive.clone(), limits)
    };
    if w.asked.replace(w.generation()) == w.generation() {
        return;
    }
    let asker = match alive {
        Alive::Unasked => return,
        Alive::Http(url) => url.of(w.index).map(Asker::Http),
        Alive::Exec(command) => Some(Asker::Exec(command)),
        Alive::Ping => w.ping.borrow().as_ref().and_then(|fd| Line::new(fd).ok()).map(Asker::Ping),
    };
    match asker {
        Some(asker) => drop(engine::spawn(watch(keep.clone(), job.clone(), w.clone(), asker, limits))),
        None => log::warn!("event=not-watched of=job job={} worker={}", job.name, w.index),
    }
}

async fn watch(keep: Rc<Keep>, job: Rc<Job>, w: Rc<Worker>, mut asker: Asker, limits: Limits) {
    let generation = w.generation();
    let mut beat = Heartbeat::new(limits);
    beat.start(clock::now());
    let mut action = beat.tick(clock::now());
    while w.generation() == generation && w.is_ready() && w.pid().is_some() {
        action = match action {
            Action::Verdict { misses } => {
                let how = format!("no good answer to {asker} {misses} times in a row");
                return keep.job_hangs(&job, &w, &how);
            }
            Action::Probe(number) => {
                let answer = asker.ask(&keep, &job, &w, number);
                hear(&mut beat, number, answer).await
            }
            Action::Wait => {
                let left = beat.deadline().unwrap_or_default().saturating_sub(clock::now());
                let _ = timeout(left, asker.rest()).await;
                beat.tick(clock::now())
            }
        };
    }
}

/// Waits for an answer, as long as it counts.
async fn hear(beat: &mut Heartbeat, number: u64, answer: impl Future<Output = bool>) -> Action {
    let mut answer = pin!(answer);
    let mut action = Action::Wait;
    while action == Action::Wait && beat.expects(number) {
        let left = beat.deadline().unwrap_or_default().saturating_sub(clock::now());
        action = match timeout(left, answer.as_mut()).await {
            Ok(good) => beat.answered(number, good, clock::now()),
            Err(_) => beat.tick(clock::now()),
        };
    }
    action
}

/// How somebody is asked.
enum Asker {
    Http(Place),
    Exec(Vec<String>),
    Ping(Line),
}

impl std::fmt::Display for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Asker::Http(place) => write!(f, "GET {}", place.path),
            Asker::Exec(command) => write!(f, "{:?}", command[0]),
            Asker::Ping(_) => f.write_str("ping"),
        }
    }
}

impl Asker {
    async fn ask(&mut self, keep: &Rc<Keep>, job: &Job, w: &Worker, number: u64) -> bool {
        match self {
            Asker::Http(place) => probe::http(place).await,
            Asker::Exec(command) => probe::exec(keep, job, w.index, command).await,
            Asker::Ping(line) => line.ask(number).await,
        }
    }

    /// Between two questions: who may ask us is answered.
    async fn rest(&mut self) {
        if let Asker::Ping(line) = self {
            while line.next().await.is_some() {}
        }
        std::future::pending::<()>().await;
    }
}

/// Our end of a worker's socket for pings.
struct Line {
    stream: Stream,
    pending: Vec<u8>,
}

impl Line {
    fn new(fd: &OwnedFd) -> io::Result<Line> {
        let mut stream = Stream::from_fd(fd.try_clone()?)?;
        stream.limit(Some(READS));
        Ok(Line { stream, pending: Vec::new() })
    }

    async fn ask(&mut self, number: u64) -> bool {
        self.say("ping", &number.to_string());
        while let Some(word) = self.next().await {
            if word == number.to_string() {
                return true;
            }
        }
        false
    }

    /// The word of the next pong; pings are answered on the way. `None` when the other end is closed.
    async fn next(&mut self) -> Option<String> {
        loop {
            while let Some(end) = self.pending.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                let text = String::from_utf8_lossy(&line);
                match text.trim_end().split_once(' ') {
                    Some(("pong", word)) => return Some(word.to_owned()),
                    Some(("ping", word)) => self.say("pong", word),
                    _ => {}
                }
            }
            if self.pending.len() > LINE {
                self.pending.clear();
            }
            let mut bytes = [0; LINE];
            match self.stream.read(&mut bytes).await {
                Ok(n) if n > 0 => self.pending.extend_from_slice(&bytes[..n]),
                _ => return None,
            }
        }
    }

    /// What there is no room for isn't said: who doesn't read doesn't answer either.
    fn say(&self, what: &str, word: &str) {
        let line = format!("{what} {word}\n");
        let _ =
            send(self.stream.source().get_ref(), line.as_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn only_the_right_word_is_an_answer_and_pings_are_answered() {
        let (ours, theirs) = pair().unwrap();
        let peer = std::thread::spawn(move || {
            let mut theirs = BufReader::new(UnixStream::from(theirs));
            let mut line = String::new();
            theirs.read_line(&mut line).unwrap();
            assert_eq!(line, "ping 7\n");
            let long = "x".repeat(500);
            let said = format!("pong 6\n\u{7f}\npong\nping mine\n{long}\npong 7\n");
            theirs.get_mut().write_all(said.as_bytes()).unwrap();
            line.clear();
            theirs.read_line(&mut line).unwrap();
            line
        });
        engine::block_on(async {
            let mut l = Line::new(&ours).unwrap();
            assert!(l.ask(7).await);
            // it is closed then
            assert!(!l.ask(8).await);
        });
        assert_eq!(peer.join().unwrap(), "pong mine\n");
    }

    #[test]
    fn the_socket_is_found_among_what_was_kept() {
        let (ours, _theirs) = pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(is_socket(&ours) && !is_socket(&file.into()));
    }
}
