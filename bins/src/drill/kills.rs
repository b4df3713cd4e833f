//! The kills in turn: SIGKILL to whoever holds a lock, again and again.

use super::client::{Page, Progress, look};
use super::stats::{Failure, Stats};
use super::strike::{self, Probe, Record, Stroke};
use super::subject::Subject;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use supervisor::signals::Signals;

/// Whom to kill.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// traffic_server
    Server,
    /// traffic_manager
    Manager,
    /// traffic_cop
    Cop,
    /// Nobody: load alone
    #[default]
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

    /// Kills the next one and waits for the next answer. Says what happened, and whether somebody has interrupted.
    ///
    /// # Errors
    /// It may not be touched; cop can't be started again.
    pub fn next(
        &mut self,
        subject: &mut Subject,
        stats: &Mutex<Stats>,
        signals: &mut Signals,
    ) -> anyhow::Result<(String, bool)> {
        let target = self.targets[self.turn % self.targets.len()];
        self.turn += 1;
        let Some((mut record, _)) = strike::strike(subject, Stroke::Kill, &[target])? else {
            return Ok((format!("{:<8} nobody holds its lock: not killed", target.name()), false));
        };
        // the first four of any origin are small and quick
        let page = self.pages[self.turn % self.pages.len().min(4)].clone();
        let probe = Probe { addr: self.addr, page };
        let interrupted = strike::follow(subject, &mut record, &probe, stats, signals, || {})?;
        let text = record.text();
        self.records.push(record);
        Ok((text, interrupted))
    }
}

/// One request on a new connection; the page must be right.
///
/// # Errors
/// What went wrong, in words.
pub fn fetch(addr: SocketAddr, page: &Page, limit: Duration) -> Result<(), String> {
    try_fetch(addr, page, limit).map_err(|f| f.name())
}

/// The same, with the failure as it is counted.
///
/// # Errors
/// What went wrong.
pub fn try_fetch(addr: SocketAddr, page: &Page, limit: Duration) -> Result<(), Failure> {
    let until = Instant::now() + limit;
    let mut s = TcpStream::connect_timeout(&addr, limit.max(Duration::from_millis(1)))
        .map_err(|e| connect_failure(&e))?;
    s.write_all(&page.request(true)).map_err(|e| io_failure(&e))?;
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
