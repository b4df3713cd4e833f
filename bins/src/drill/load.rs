//! The clients: one thread, one epoll, an open loop.
//!
//! Requests are due by the clock, whether or not earlier ones were answered, and latency counts from when one was due: a
//! suite that stands still for a second is seen to have done so by everybody who came in that second.

use super::client::{Page, Progress, look};
use super::kills::{connect_failure, io_failure};
use super::stats::{Failure, Stats};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with, sockopt,
};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Connections at once that make one request each; more is a suite that doesn't answer at all.
const MAX_ONCE: usize = 20_000;
/// Requests that are due on a keep-alive connection while one is out; what comes after them has failed.
const MAX_WAITING: usize = 5_000;

/// What the load is told.
const GO_ON: u8 = 0;
const STOP: u8 = 1;
const ABANDON: u8 = 2;

/// What to ask for, and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The suite's port.
    pub addr: SocketAddr,
    /// The pages, in turn.
    pub paths: Vec<Page>,
    /// Keep-alive connections.
    pub connections: u32,
    /// Requests a second on each of them.
    pub keepalive_rate: u32,
    /// New connections a second.
    pub rate: u32,
    /// No new request after so many seconds.
    pub seconds: u64,
    /// A request without its whole answer after this long has failed.
    pub timeout: Duration,
}

/// The running load.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicU8>,
    thread: JoinHandle<()>,
}

impl Load {
    /// Starts its thread.
    pub fn start(plan: Plan, stats: Arc<Mutex<Stats>>) -> Load {
        let stop = Arc::new(AtomicU8::new(GO_ON));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            if let Err(e) = Clients::new(plan, stats).and_then(|mut c| c.run(&told)) {
                eprintln!("the load broke off: {e}");
            }
        });
        Load { stop, thread }
    }

    /// No new requests; those that are out get their time.
    pub fn stop(&self) {
        self.stop.fetch_max(STOP, Ordering::Relaxed);
    }

    /// Ends at once: what is out isn't waited for, and not counted.
    pub fn abandon(&self) {
        self.stop.store(ABANDON, Ordering::Relaxed);
    }

    /// All answered or given up?
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the end.
    pub fn join(self) {
        let _ = self.thread.join();
    }
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// A connection with one request.
    New,
    /// A request on this keep-alive client.
    Request(usize),
    /// The request of this client, if it is still that one.
    Timeout(usize, u64),
}

/// A client with at most one connection and one request out.
#[derive(Default)]
struct Client {
    keep_alive: bool,
    fd: Option<OwnedFd>,
    connected: bool,
    /// The request that is out: when it was due, its page, what was sent of it.
    out: Option<(Instant, Page, usize)>,
    request: Vec<u8>,
    answer: Vec<u8>,
    /// Requests that became due meanwhile.
    waiting: VecDeque<Instant>,
    generation: u64,
}

struct Clients {
    plan: Plan,
    stats: Arc<Mutex<Stats>>,
    epoll: OwnedFd,
    clients: Vec<Client>,
    free: Vec<usize>,
    due: BinaryHeap<Reverse<(Instant, Due)>>,
    turn: usize,
    out: usize,
}

impl Clients {
    fn new(plan: Plan, stats: Arc<Mutex<Stats>>) -> io::Result<Clients> {
        let now = Instant::now();
        let mut due = BinaryHeap::new();
        let mut clients = Vec::new();
        let gap = Duration::from_secs(1) / plan.keepalive_rate.max(1);
        for i in 0..plan.connections {
            clients.push(Client { keep_alive: true, ..Client::default() });
            // spread over the gap, so that they don't march in step
            due.push(Reverse((now + gap * i / plan.connections, Due::Request(i as usize))));
        }
        if plan.rate > 0 {
            due.push(Reverse((now, Due::New)));
        }
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Clients { plan, stats, epoll, clients, free: Vec::new(), due, turn: 0, out: 0 })
    }

    fn run(&mut self, stop: &AtomicU8) -> io::Result<()> {
        let mut end = Instant::now() + Duration::from_secs(self.plan.seconds);
        let mut events: Vec<epoll::Event> = Vec::with_capacity(1024);
        loop {
            let now = Instant::now();
            let told = stop.load(Ordering::Relaxed);
            if told != GO_ON {
                end = end.min(now);
            }
            let over = now >= end;
            if now >= end + self.plan.timeout {
                self.expire();
            }
            self.timers(now, end);
            if told == ABANDON || over && self.out == 0 {
                return Ok(());
            }
            let next = self.due.peek().map_or(Duration::from_millis(100), |Reverse((t, _))| {
                t.saturating_duration_since(Instant::now()).min(Duration::from_millis(100))
            });
            let timeout = Timespec { tv_sec: 0, tv_nsec: next.as_nanos() as i64 };
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            for e in &events {
                self.ready(e.data.u64() as usize);
            }
        }
    }

    /// What became due before the end and waits for an answer to the request before it has had its time: on a server that
    /// answers nobody, each would else be begun and wait for as long again.
    fn expire(&mut self) {
        for at in self.clients.iter_mut().flat_map(|c| c.waiting.drain(..)) {
            self.stats.lock().expect("nobody panics with it").bad(at, Failure::Timeout);
        }
    }

    /// Does what is due by now; of what a client is to begin, what was due before the end, however late that is noticed.
    fn timers(&mut self, now: Instant, end: Instant) {
        while let Some(Reverse((at, what))) = self.due.peek().copied() {
            if at > now {
                return;
            }
            self.due.pop();
            match what {
                Due::New if at >= end => {}
                Due::New => {
                    self.due.push(Reverse((at + Duration::from_secs(1) / self.plan.rate, Due::New)));
                    let i = self.free.pop().unwrap_or_else(|| {
                        self.clients.push(Client::default());
                        self.clients.len() - 1
                    });
                    if i < MAX_ONCE + self.plan.connections as usize {
                        self.request(i, at);
                    }
                }
                Due::Request(_) if at >= end => {}
                Due::Request(i) => {
                    self.due.push(Reverse((
                        at + Duration::from_secs(1) / self.plan.keepalive_rate,
                        Due::Request(i),
                    )));
                    if self.clients[i].out.is_some() && self.clients[i].waiting.len() >= MAX_WAITING {
                        self.stats.lock().expect("nobody panics with it").bad(at, Failure::Timeout);
                    } else if self.clients[i].out.is_some() {
                        self.clients[i].waiting.push_back(at);
                    } else {
                        self.request(i, at);
                    }
                }
                Due::Timeout(i, generation) => {
                    if self.clients[i].generation == generation && self.clients[i].out.is_some() {
                        self.failed(i, Failure::Timeout);
                    }
                }
            }
        }
    }

    /// Begins a request that was due at `at`, on the client's connection or a new one.
    fn request(&mut self, i: usize, at: Instant) {
        let page = self.plan.paths[self.turn % self.plan.paths.len()].numbered(self.turn as u64);
        self.turn += 1;
        self.out += 1;
        let c = &mut self.clients[i];
        c.generation += 1;
        c.request = page.request(!c.keep_alive);
        c.out = Some((at, page, 0));
        c.answer.clear();
        self.due.push(Reverse((Instant::now() + self.plan.timeout, Due::Timeout(i, c.generation))));
        if c.fd.is_none()
            && let Err(e) = self.open(i)
        {
            return self.failed(i, connect_failure(&e));
        }
        self.advance(i);
    }

    fn open(&mut self, i: usize) -> io::Result<()> {
        let family = if self.plan.addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let fd = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
        sockopt::set_tcp_nodelay(&fd, true)?;
        match connect(&fd, &self.plan.addr) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(e) => return Err(e.into()),
        }
        let flags =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &fd, epoll::EventData::new_u64(i as u64), flags)?;
        let c = &mut self.clients[i];
        (c.fd, c.connected) = (Some(fd), false);
        self.stats.lock().expect("nobody panics with it").connections += 1;
        Ok(())
    }

    fn ready(&mut self, i: usize) {
        if self.clients[i].out.is_some() {
            return self.advance(i);
        }
        // idle: anything but silence is the end of the connection
        let mut byte = [0u8; 1];
        let lost = match &self.clients[i].fd {
            Some(fd) => !matches!(recv(fd, &mut byte[..], RecvFlags::PEEK), Err(Errno::AGAIN)),
            None => false,
        };
        if lost {
            self.close(i, true);
        }
    }

    /// Goes on with the request that is out, as far as the socket lets it.
    fn advance(&mut self, i: usize) {
        let c = &mut self.clients[i];
        let (Some(fd), Some((at, page, sent))) = (&c.fd, &mut c.out) else { return };
        if !c.connected {
            match sockopt::socket_error(fd) {
                Ok(Ok(())) => {}
                Ok(Err(e)) | Err(e) => return self.failed(i, connect_failure(&e.into())),
            }
        }
        let bytes = &c.request;
        while *sent < bytes.len() {
            match send(fd, &bytes[*sent..], SendFlags::NOSIGNAL) {
                Ok(n) => {
                    c.connected = true;
                    *sent += n;
                }
                Err(Errno::AGAIN | Errno::NOTCONN | Errno::INPROGRESS) => return,
                // what the peer sent before it closed may still be there to read
                Err(Errno::PIPE | Errno::CONNRESET) if c.connected => break,
                Err(e) => {
                    let how = if c.connected { io_failure(&e.into()) } else { connect_failure(&e.into()) };
                    return self.failed(i, how);
                }
            }
        }
        let mut chunk = [0u8; 16 << 10];
        loop {
            let n = match recv(fd, &mut chunk[..], RecvFlags::empty()) {
                Ok((n, _)) => n,
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => continue,
                Err(e) => return self.failed(i, io_failure(&e.into())),
            };
            c.answer.extend_from_slice(&chunk[..n]);
            match look(&c.answer, n == 0, page) {
                Progress::More => {}
                Progress::Good { close } => {
                    let (at, close) = (*at, close || !c.keep_alive);
                    return self.succeeded(i, at, close);
                }
                // it may have been carried out, so it wasn't repeated, and the client was told so
                Progress::Bad(Failure::Status(502)) if page.post => return self.doubtful(i),
                Progress::Bad(how) => return self.failed(i, how),
            }
        }
    }

    fn succeeded(&mut self, i: usize, due: Instant, close: bool) {
        self.stats.lock().expect("nobody panics with it").good(due, due.elapsed());
        self.over(i, close, false);
    }

    fn doubtful(&mut self, i: usize) {
        self.stats.lock().expect("nobody panics with it").doubtful();
        self.over(i, true, false);
    }

    fn failed(&mut self, i: usize, how: Failure) {
        let due = self.clients[i].out.as_ref().map_or_else(Instant::now, |(at, ..)| *at);
        self.stats.lock().expect("nobody panics with it").bad(due, how);
        // an error page leaves the connection whole; anything else has cost it
        let lost = !matches!(how, Failure::Status(_) | Failure::Refused | Failure::Connect);
        self.over(i, true, lost);
    }

    /// The request is over; the client's next one begins at once if it is due already.
    fn over(&mut self, i: usize, close: bool, lost: bool) {
        self.out -= 1;
        self.clients[i].out = None;
        self.clients[i].generation += 1;
        if close {
            self.close(i, lost);
        }
        if !self.clients[i].keep_alive {
            self.free.push(i);
        } else if let Some(at) = self.clients[i].waiting.pop_front() {
            self.request(i, at);
        }
    }

    fn close(&mut self, i: usize, lost: bool) {
        let c = &mut self.clients[i];
        if let Some(fd) = c.fd.take() {
            let _ = epoll::delete(&self.epoll, &fd);
            if lost && c.keep_alive {
                self.stats.lock().expect("nobody panics with it").connections_lost += 1;
            }
        }
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
