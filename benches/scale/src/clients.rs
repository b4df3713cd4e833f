//! Clients: connections that ask once and stay, and an origin that says the same to everybody.

use anyhow::{Context, bail, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// So many have one source address: fewer than there are ports.
const PER_ADDRESS: usize = 10_000;
/// What the suite and we need besides connections.
const SPARE_FDS: u64 = 500;

/// Raises our limit of descriptors, and with it that of all that we start. Returns how many connections it allows.
pub fn most_connections() -> anyhow::Result<usize> {
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })?;
    Ok(hard.unwrap_or(u64::MAX).saturating_sub(SPARE_FDS).min(1 << 20) as usize)
}

/// A path under which the origin's answer is kept, and one that is answered without an origin.
pub const CACHED: &str = "/cached";
pub const FIXED: &str = "/fixed";

/// The routes of these two, for the configuration.
pub fn routes(origin: SocketAddr) -> String {
    format!(
        "[[route]]\norigin = [\"http://{origin}\"]\n[[route]]\nprefix = \"{FIXED}\"\nrespond = 200\n\
         respond_body = \"here\"\n"
    )
}

/// Starts an origin: 100 bytes, good for an hour. It ends with this process.
pub fn origin() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    Ok(addr)
}

fn serve(mut stream: TcpStream) {
    let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=3600\r\nContent-Length: 100\r\n\r\n";
    let answer = format!("{head}{}", "x".repeat(100));
    let mut asked = [0; 4096];
    // nobody sends two requests at once here, nor a body
    while stream.read(&mut asked).is_ok_and(|n| n > 0) && stream.write_all(answer.as_bytes()).is_ok() {}
}

/// A connection from one of several addresses. Its end leaves nothing behind in the kernel.
pub fn connect(to: SocketAddr, number: usize) -> anyhow::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    let source =
        Ipv4Addr::new(127, 0, 0, u8::try_from(2 + number / PER_ADDRESS).context("too many clients")?);
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_read_timeout(Some(crate::suite::LONG))?;
    socket.connect(&to.into()).with_context(|| format!("connection {number} to {to}"))?;
    Ok(socket.into())
}

/// Sends a request.
pub fn ask(mut stream: &TcpStream, path: &str) -> std::io::Result<()> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: scale\r\n\r\n").as_bytes())
}

/// Reads one answer; it has to be 200 and whole.
pub fn answer(mut stream: &TcpStream) -> anyhow::Result<()> {
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let n = stream.read(&mut piece).context("waiting for an answer")?;
        ensure!(n > 0, "closed instead of answered");
        bytes.extend_from_slice(&piece[..n]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        ensure!(head.starts_with("HTTP/1.1 200 "), "the answer is {:?}", head.lines().next());
        let length = head.to_ascii_lowercase().split_once("content-length: ").and_then(|(_, n)| {
            let digits: String = n.chars().take_while(char::is_ascii_digit).collect();
            digits.parse::<usize>().ok()
        });
        if body.len() >= length.with_context(|| format!("an answer without a length: {head:?}"))? {
            return Ok(());
        }
    }
}

/// Connections that were answered, and wait.
pub struct Crowd {
    addr: SocketAddr,
    all: Vec<TcpStream>,
}

impl Crowd {
    /// Nobody yet.
    pub fn new(addr: SocketAddr) -> Crowd {
        Crowd { addr, all: Vec::new() }
    }

    /// Opens more until there are so many; each is answered.
    ///
    /// # Errors
    /// One of them isn't.
    pub fn grow(&mut self, to: usize) -> anyhow::Result<()> {
        for number in self.all.len()..to {
            let stream = connect(self.addr, number)?;
            ask(&stream, CACHED)?;
            answer(&stream).with_context(|| format!("connection {number}"))?;
            self.all.push(stream);
        }
        Ok(())
    }

    /// Closes all but so many.
    pub fn shrink(&mut self, to: usize) {
        self.all.truncate(to);
    }

    /// One of them.
    pub fn one(&self, number: usize) -> &TcpStream {
        &self.all[number % self.all.len()]
    }

    /// Asks all of them once more.
    ///
    /// # Errors
    /// Some are lost: how many, and how the first of them was.
    pub fn all_answer(&self) -> anyhow::Result<()> {
        let asked =
            self.all.iter().map(|s| ask(s, CACHED).map_err(anyhow::Error::from).and_then(|()| answer(s)));
        let mut lost: Vec<anyhow::Error> = asked.filter_map(Result::err).collect();
        match lost.len() {
            0 => Ok(()),
            n => bail!("{n} of {} connections are lost, the first: {:#}", self.all.len(), lost.remove(0)),
        }
    }
}
