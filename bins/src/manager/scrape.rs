//! The numbers of the server that serves, asked for through its real port when somebody wants them.

use super::keep::Keep;
use crate::suite;
use engine::net::Stream;
use proxy::metrics::{begin, flag};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

/// A server that takes longer is without numbers this time.
const LIMIT: Duration = Duration::from_secs(1);
/// More bytes aren't read.
const MOST: usize = 8 << 20;

/// What the server says; only that it said nothing if it doesn't, or isn't ours.
pub async fn server(keep: &Rc<Keep>) -> String {
    let ours = keep.config.borrow().server.is_ours();
    if !ours || !keep.is_ready() {
        return said(false);
    }
    let first = keep.listeners.borrow().first().map(|l| l.bound.clone());
    let asked = async {
        let token = keep.runtime.token()?;
        ask(&first.unwrap_or_default(), &token).await
    };
    match engine::time::timeout(LIMIT, asked).await {
        Ok(Ok(text)) => text + &said(true),
        Ok(Err(e)) => {
            log::debug!("event=scrape-failed: {e}");
            said(false)
        }
        Err(_) => said(false),
    }
}

fn said(good: bool) -> String {
    let (mut out, name) = (String::new(), "traffic_server_told");
    begin(&mut out, name, "gauge", "1 if the server has told its numbers.");
    out + &format!("{name} {}\n", flag(good))
}

async fn ask(address: &str, token: &str) -> io::Result<String> {
    let mut stream = match address.strip_prefix("unix:") {
        Some(path) => Stream::connect_unix(path).await?,
        None => {
            let addr: SocketAddr = address.parse().map_err(|_| bad("no address"))?;
            Stream::connect_tcp(reachable(addr)).await?
        }
    };
    let fields = suite::heartbeat_headers(token, "").join("\r\n");
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: traffic\r\nConnection: close\r\n{fields}\r\n\r\n",
        proxy::pages::METRICS_PATH
    );
    stream.write_all(request.as_bytes()).await?;
    let (mut answer, mut part) = (Vec::new(), vec![0; 16 << 10]);
    loop {
        match stream.read(&mut part).await? {
            0 => break,
            n if answer.len() + n > MOST => return Err(bad("too much")),
            n => answer.extend_from_slice(&part[..n]),
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    match head.parse(&answer) {
        Ok(httparse::Status::Complete(n)) if head.code == Some(200) => {
            String::from_utf8(answer.split_off(n)).map_err(|_| bad("no text"))
        }
        _ => Err(bad("no numbers")),
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the server's answer: {what}"))
}

/// Where one who listens on all addresses can be reached.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}
