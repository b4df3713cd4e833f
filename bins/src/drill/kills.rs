//! The kills: SIGKILL to whoever holds a lock, and the time to the next answer on a new connection.

use super::client::{Page, Progress, look};
use super::stats::{Failure, Stats};
use super::suite::Suite;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use supervisor::pidfd::PidFd;

/// Whom to kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// traffic_server
    Server,
    /// traffic_manager
    Manager,
    /// traffic_cop
    Cop,
    /// Nobody: load alone
    None,
}

impl Target {
    /// Its lock's name.
    pub fn name(self) -> &'static str {
        match self {
            Target::Server => "server",
            Target::Manager => "manager",
            Target::Cop => "cop",
            Target::None => "none",
        }
    }
}

/// One kill.
#[derive(Debug, Clone)]
pub struct Record {
    /// Who.
    pub target: Target,
    /// Its pid.
    pub pid: i32,
    /// SIGKILL to the next answer on a connection begun after the process was dead; `None` if none came in time.
    pub takeover: Option<Duration>,
}

/// The plan and what came of it.
#[derive(Debug)]
pub struct Kills {
    targets: Vec<Target>,
    every: Duration,
    addr: SocketAddr,
    pages: Vec<Page>,
    records: Vec<Record>,
    turn: usize,
}

/// How long an answer may take after a kill.
const PATIENCE: Duration = Duration::from_secs(30);

impl Kills {
    /// In turn, every so often.
    pub fn new(targets: &[Target], every: Duration, addr: SocketAddr, pages: Vec<Page>) -> Kills {
        let targets = targets.iter().copied().filter(|t| *t != Target::None).collect();
        Kills { targets, every, addr, pages, records: Vec::new(), turn: 0 }
    }

    /// When the next one is due, from the start.
    pub fn due(&self) -> Duration {
        if self.targets.is_empty() { Duration::MAX } else { self.every * (self.turn as u32 + 1) }
    }

    /// Those so far.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Kills the next one and waits for the next answer; a probe that fails counts as a failed request.
    ///
    /// # Errors
    /// Cop can't be started again.
    pub fn next(&mut self, suite: &mut Suite, stats: &Mutex<Stats>) -> anyhow::Result<String> {
        let target = self.targets[self.turn % self.targets.len()];
        self.turn += 1;
        let Some((pid, process)) = hold(suite, target) else {
            return Ok(format!("{:<8} nobody holds its lock: not killed", target.name()));
        };
        let begun = Instant::now();
        process.signal(nix::libc::SIGKILL)?;
        // a connection begun before the process is dead could still be accepted by it
        process.poll_exit(Duration::from_secs(5))?;
        if target == Target::Cop {
            suite.tend()?;
        }
        // the first four of any origin are small and quick
        let page = &self.pages[self.turn % self.pages.len().min(4)];
        let mut takeover = None;
        let mut misses = 0;
        while takeover.is_none() && begun.elapsed() < PATIENCE {
            match try_fetch(self.addr, page, PATIENCE.saturating_sub(begun.elapsed())) {
                Ok(()) => takeover = Some(begun.elapsed()),
                Err(how) => {
                    misses += 1;
                    if let Ok(mut s) = stats.lock() {
                        s.bad(how);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        self.records.push(Record { target, pid, takeover });
        let answer = match takeover {
            Some(t) => format!("next answer after {:.1} ms", t.as_secs_f64() * 1000.0),
            None => format!("no answer within {PATIENCE:?}"),
        };
        let missed = if misses > 0 { format!(" ({misses} failed before)") } else { String::new() };
        Ok(format!("SIGKILL {:<8} pid {pid:<8} {answer}{missed}", target.name()))
    }
}

/// The holder of a lock, held by pidfd, and asked again once held.
fn hold(suite: &Suite, target: Target) -> Option<(i32, PidFd)> {
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        if let Some(pid) = suite.pid(target)
            && let Ok(p) = PidFd::open(pid)
            && suite.pid(target) == Some(pid)
            && p.is_alive()
        {
            return Some((pid, p));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

/// One request on a new connection; the page must be right.
///
/// # Errors
/// What went wrong, in words.
pub fn fetch(addr: SocketAddr, page: &Page, limit: Duration) -> Result<(), String> {
    try_fetch(addr, page, limit).map_err(|f| f.name())
}

fn try_fetch(addr: SocketAddr, page: &Page, limit: Duration) -> Result<(), Failure> {
    let until = Instant::now() + limit;
    let request = format!("GET {} HTTP/1.1\r\nHost: drill\r\nConnection: close\r\n\r\n", page.path);
    let mut s = TcpStream::connect_timeout(&addr, limit.max(Duration::from_millis(1)))
        .map_err(|e| connect_failure(&e))?;
    s.write_all(request.as_bytes()).map_err(|e| io_failure(&e))?;
    let mut got = Vec::new();
    let mut chunk = [0u8; 16 << 10];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::Timeout);
        }
        s.set_read_timeout(Some(left)).map_err(|e| io_failure(&e))?;
        let n = s.read(&mut chunk).map_err(|e| io_failure(&e))?;
        got.extend_from_slice(&chunk[..n]);
        match look(&got, n == 0, page) {
            Progress::More => {}
            Progress::Good { .. } => return Ok(()),
            Progress::Bad(how) => return Err(how),
        }
    }
}

/// How a connection that couldn't be made failed.
pub fn connect_failure(e: &io::Error) -> Failure {
    match e.kind() {
        io::ErrorKind::ConnectionRefused => Failure::Refused,
        io::ErrorKind::ConnectionReset => Failure::Reset,
        io::ErrorKind::TimedOut => Failure::Timeout,
        _ => Failure::Connect,
    }
}

/// How an established connection failed.
pub fn io_failure(e: &io::Error) -> Failure {
    match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::Timeout,
        _ => Failure::Reset,
    }
}

/// A plain GET: the body of a 200.
///
/// # Errors
/// No connection, another status, no whole answer.
pub fn get(addr: SocketAddr, host: &str, path: &str, limit: Duration) -> io::Result<Vec<u8>> {
    let mut s = TcpStream::connect_timeout(&addr, limit)?;
    s.set_read_timeout(Some(limit))?;
    // HTTP/1.0: the answer ends with the connection, or by its length
    s.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut got = Vec::new();
    let mut chunk = [0u8; 16 << 10];
    loop {
        let n = s.read(&mut chunk)?;
        got.extend_from_slice(&chunk[..n]);
        match super::client::body_of(&got, n == 0) {
            Some(Ok((200, body))) => return Ok(body),
            Some(Ok((code, _))) => return Err(io::Error::other(format!("it answers {code}"))),
            Some(Err(how)) => return Err(io::Error::other(how.name())),
            None => {}
        }
    }
}
