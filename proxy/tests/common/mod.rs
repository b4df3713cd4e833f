//! A proxy on a real engine, an origin that does what it is told, and a client that reads what comes.
#![allow(dead_code)]

pub mod alike;

use engine::acceptor::{Accepted, Acceptor, AcceptorConfig};
use engine::{Engine, GroupConfig};
use proxy::continuity::{Continuity, Size};
use proxy::route::{Balance, Timeouts};
use proxy::serve::Limits;
use proxy::{OriginConfig, Proxy, ProxyConfig, RouteConfig, Target};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Nothing in a test takes so long unless it hangs.
pub const LONG: Duration = Duration::from_secs(20);

/// A running proxy; it ends with the test.
pub struct Suite {
    pub addr: SocketAddr,
    pub proxy: Arc<Proxy>,
    acceptor: Option<Acceptor>,
    engine: Option<Engine>,
}

impl Suite {
    pub fn new(config: ProxyConfig) -> Suite {
        Suite::with(config, None)
    }

    /// With a journal of every connection.
    pub fn continuous(config: ProxyConfig) -> Suite {
        Suite::with(config, Some(Continuity::new(Size { slots: 4096, buffers: 64 }).unwrap()))
    }

    fn with(config: ProxyConfig, continuity: Option<Continuity>) -> Suite {
        let continuity = Arc::new(continuity);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let group = |threads| GroupConfig { threads, ..GroupConfig::default() };
        let engine = Engine::builder().group("net", group(2)).group("task", group(1)).start().unwrap();
        let proxy = Proxy::new(config);
        let shared = proxy.clone();
        let serve = move |accepted: Accepted| {
            let (proxy, continuity) = (shared.clone(), continuity.clone());
            async move {
                let (stream, guard) = accepted.into_stream().unwrap();
                proxy.connection(stream, Option::as_ref(&continuity)).await;
                drop(guard);
            }
        };
        let handle = engine.handle();
        let net = handle.group("net").unwrap();
        let config = AcceptorConfig { listeners: vec![listener.into()], ..AcceptorConfig::default() };
        proxy::probes::start(&proxy, &handle, net);
        let acceptor = Acceptor::start(&handle, net, config, serve).unwrap();
        Suite { addr, proxy, acceptor: Some(acceptor), engine: Some(engine) }
    }

    /// All requests to these origins.
    pub fn to(origins: &[&Origin]) -> Suite {
        Suite::new(config(vec![to(origins)]))
    }

    /// Ends in an orderly way; true if nothing had to be cut off.
    pub fn drains(mut self) -> bool {
        self.acceptor.take().unwrap().stop();
        self.engine.take().unwrap().shutdown(LONG).drained
    }

    /// Connections that live.
    pub fn connections(&self) -> usize {
        self.acceptor.as_ref().map_or(0, Acceptor::connections)
    }

    pub fn client(&self) -> Client {
        Client::new(self.addr)
    }

    /// One request on a connection of its own.
    pub fn ask(&self, request: &str) -> Reply {
        let mut c = self.client();
        c.send(request);
        c.reply()
    }

    pub fn get(&self, path: &str) -> Reply {
        self.ask(&get(path, ""))
    }
}

impl Drop for Suite {
    fn drop(&mut self) {
        if let Some(a) = self.acceptor.take() {
            a.stop();
        }
        if let Some(e) = self.engine.take() {
            e.shutdown(Duration::ZERO);
        }
    }
}

pub fn config(routes: Vec<RouteConfig>) -> ProxyConfig {
    ProxyConfig {
        name: "proxy-under-test".into(),
        routes,
        heartbeat_token: String::new(),
        limits: Limits::default(),
        ..ProxyConfig::default()
    }
}

pub fn to(origins: &[&Origin]) -> RouteConfig {
    let list = origins.iter().map(|o| origin(o.addr)).collect();
    RouteConfig {
        host: "*".into(),
        prefix: "/".into(),
        target: Target::Origins { list, balance: Balance::RoundRobin },
        timeouts: Timeouts { connect: LONG, first_byte: LONG, between: LONG, ..Timeouts::default() },
        ..RouteConfig::default()
    }
}

pub fn origin(addr: SocketAddr) -> OriginConfig {
    OriginConfig { host: addr.ip().to_string(), port: addr.port(), path_prefix: String::new() }
}

/// An address where nobody listens.
pub fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A GET request with more fields, each with its line end.
pub fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: example.org\r\n{fields}\r\n")
}

/// A whole answer with a length.
pub fn ok(fields: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// A request as an origin has read it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub head: String,
    pub body: Vec<u8>,
    /// Which connection of the origin, from 0.
    pub connection: usize,
    /// Which request of that connection, from 0.
    pub on_connection: usize,
    /// Which request of the origin, from 0.
    pub number: usize,
}

impl Seen {
    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap_or("")
    }

    pub fn path(&self) -> &str {
        self.line().split(' ').nth(1).unwrap_or("")
    }

    /// All values of a field, joined.
    pub fn field(&self, name: &str) -> Option<String> {
        field(&self.head, name)
    }
}

fn field(head: &str, name: &str) -> Option<String> {
    let values: Vec<&str> = head
        .lines()
        .skip(1)
        .filter_map(|l| l.split_once(':'))
        .filter(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, v)| v.trim())
        .collect();
    if values.is_empty() { None } else { Some(values.join(", ")) }
}

/// What an origin does with a request.
pub enum Do {
    /// Sends these bytes and reads on.
    Send(Vec<u8>),
    /// Sends these bytes and closes.
    Close(Vec<u8>),
    /// Closes with a reset.
    Reset,
    /// Sends these bytes and keeps silent until the other side closes.
    Stall(Vec<u8>),
    /// Gets the connection itself, then reads on.
    Own(Box<dyn FnOnce(&mut TcpStream) + Send>),
}

#[derive(Default)]
struct Log {
    seen: Mutex<Vec<Seen>>,
    changed: Condvar,
    connections: AtomicUsize,
}

/// A server that does what a closure says.
pub struct Origin {
    pub addr: SocketAddr,
    log: Arc<Log>,
}

impl Origin {
    pub fn new(act: impl Fn(&Seen) -> Do + Send + Sync + 'static) -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let log = Arc::new(Log::default());
        let (shared, act) = (log.clone(), Arc::new(act));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (log, act) = (shared.clone(), act.clone());
                let n = log.connections.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || serve(stream, n, &log, &*act));
            }
        });
        Origin { addr, log }
    }

    /// Does with its request number `n` what it does when the gate is opened.
    pub fn late(n: usize, act: impl Fn(&Seen) -> Do + Send + Sync + 'static) -> (Gate, Origin) {
        let (go, gate) = gate();
        let origin = Origin::new(move |q| {
            if q.number == n {
                gate.wait();
            }
            act(q)
        });
        (go, origin)
    }

    /// Always the same bytes.
    pub fn says(bytes: Vec<u8>) -> Origin {
        Origin::new(move |_| Do::Send(bytes.clone()))
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.log.seen.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.log.seen.lock().unwrap().len()
    }

    pub fn connections(&self) -> usize {
        self.log.connections.load(Ordering::SeqCst)
    }

    /// Waits until so many requests have come.
    pub fn wait(&self, n: usize) -> Vec<Seen> {
        let seen = self.log.seen.lock().unwrap();
        let (seen, timeout) = self.log.changed.wait_timeout_while(seen, LONG, |seen| seen.len() < n).unwrap();
        assert!(!timeout.timed_out(), "only {} of {n} requests came", seen.len());
        seen.clone()
    }
}

fn serve(mut stream: TcpStream, connection: usize, log: &Log, act: &(dyn Fn(&Seen) -> Do + Send + Sync)) {
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut buf = Vec::new();
    for on_connection in 0.. {
        let Some(head) = read_head(&mut stream, &mut buf) else { return };
        // one that expects to be asked for it is left to who acts
        let body = if field(&head, "expect").is_some() {
            Some(Vec::new())
        } else {
            read_body(&mut stream, &mut buf, &head)
        };
        let seen = {
            let mut list = log.seen.lock().unwrap();
            let number = list.len();
            let seen =
                Seen { head, body: body.clone().unwrap_or_default(), connection, on_connection, number };
            list.push(seen.clone());
            log.changed.notify_all();
            seen
        };
        if body.is_none() {
            return;
        }
        match act(&seen) {
            Do::Send(bytes) => {
                if stream.write_all(&bytes).is_err() {
                    return;
                }
            }
            Do::Close(bytes) => {
                let _ = stream.write_all(&bytes);
                return;
            }
            Do::Reset => return reset(stream),
            Do::Stall(bytes) => {
                let _ = stream.write_all(&bytes);
                let _ = stream.read(&mut [0; 100]);
                return;
            }
            Do::Own(own) => own(&mut stream),
        }
    }
}

/// Closes so that the peer gets an RST.
pub fn reset(stream: TcpStream) {
    use std::os::fd::AsFd;
    rustix::net::sockopt::set_socket_linger(stream.as_fd(), Some(Duration::ZERO)).unwrap();
}

fn read_head(stream: &mut TcpStream, buf: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = buf.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = buf.drain(..end + 4).collect::<Vec<_>>();
            return Some(String::from_utf8_lossy(&head).into_owned());
        }
        let mut more = [0; 4096];
        match stream.read(&mut more) {
            Ok(n) if n > 0 => buf.extend_from_slice(&more[..n]),
            _ => return None,
        }
    }
}

fn fill(stream: &mut TcpStream, buf: &mut Vec<u8>, n: usize) -> Option<()> {
    while buf.len() < n {
        let mut more = [0; 65536];
        match stream.read(&mut more) {
            Ok(got) if got > 0 => buf.extend_from_slice(&more[..got]),
            _ => return None,
        }
    }
    Some(())
}

/// The body by its framing, chunks taken apart; None if it broke off.
fn read_body(stream: &mut TcpStream, buf: &mut Vec<u8>, head: &str) -> Option<Vec<u8>> {
    if field(head, "transfer-encoding").is_some_and(|v| v.contains("chunked")) {
        let mut body = Vec::new();
        loop {
            let mut line = read_line(stream, buf)?;
            let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
            if size == 0 {
                while !line.is_empty() {
                    line = read_line(stream, buf)?;
                    if !line.is_empty() {
                        body.extend_from_slice(format!("[{line}]").as_bytes());
                    }
                }
                return Some(body);
            }
            fill(stream, buf, size + 2)?;
            body.extend(buf.drain(..size));
            buf.drain(..2);
        }
    }
    let n: usize = field(head, "content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
    fill(stream, buf, n)?;
    Some(buf.drain(..n).collect())
}

fn read_line(stream: &mut TcpStream, buf: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = buf.windows(2).position(|w| w == b"\r\n") {
            let line: Vec<u8> = buf.drain(..end + 2).collect();
            return Some(String::from_utf8_lossy(&line[..end]).into_owned());
        }
        let n = buf.len();
        fill(stream, buf, n + 1)?;
    }
}

/// A client's connection.
pub struct Client {
    pub stream: TcpStream,
    buf: Vec<u8>,
    head_requests: bool,
}

/// An answer as the client has read it.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    /// Chunks taken apart; trailers in brackets after them.
    pub body: String,
    /// The body came to its end.
    pub whole: bool,
}

impl Reply {
    pub fn field(&self, name: &str) -> Option<String> {
        field(&self.head, name)
    }

    /// What the cache did, without the name before it.
    pub fn cache(&self) -> String {
        let v = self.field("cache-status").unwrap_or_default();
        v.split_once("; ").map_or(v.clone(), |(_, rest)| rest.to_owned())
    }
}

impl Client {
    pub fn new(addr: SocketAddr) -> Client {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream, buf: Vec::new(), head_requests: false }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.head_requests = bytes.as_ref().starts_with(b"HEAD ");
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    pub fn ask(&mut self, request: &str) -> Reply {
        self.send(request);
        self.reply()
    }

    /// The next answer.
    pub fn reply(&mut self) -> Reply {
        self.try_reply().expect("the connection was closed without an answer")
    }

    /// The next answer, or None at the end of the connection.
    pub fn try_reply(&mut self) -> Option<Reply> {
        let head = read_head(&mut self.stream, &mut self.buf)?;
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        let none = self.head_requests || status < 200 || status == 204 || status == 304;
        let framed = field(&head, "content-length").is_some() || field(&head, "transfer-encoding").is_some();
        let body = if none {
            Some(Vec::new())
        } else if framed {
            read_body(&mut self.stream, &mut self.buf, &head)
        } else {
            let mut all = std::mem::take(&mut self.buf);
            self.stream.read_to_end(&mut all).ok().map(|_| all)
        };
        let whole = body.is_some();
        let body = body.unwrap_or_else(|| std::mem::take(&mut self.buf));
        Some(Reply { status, head, body: String::from_utf8_lossy(&body).into_owned(), whole })
    }

    /// The next bytes, whatever they mean.
    pub fn exactly(&mut self, n: usize) -> Vec<u8> {
        fill(&mut self.stream, &mut self.buf, n).expect("the connection was closed");
        self.buf.drain(..n).collect()
    }

    /// True if the other side closes within the deadline, whatever it sends before.
    pub fn closes(&mut self) -> bool {
        let mut more = [0; 4096];
        loop {
            match self.stream.read(&mut more) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) => return e.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }
}

/// Looks until it is so.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !so() {
        assert!(Instant::now() < end, "not within the deadline: {what}");
        std::thread::yield_now();
    }
}

/// A door that a test opens for an origin's threads.
#[derive(Clone)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn wait(&self) {
        let open = self.0.0.lock().unwrap();
        drop(self.0.1.wait_timeout_while(open, LONG, |open| !*open).unwrap());
    }

    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

pub fn gate() -> (Gate, Gate) {
    let gate = Gate(Arc::default());
    (gate.clone(), gate)
}
