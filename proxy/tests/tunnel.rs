//! Connections that stop being HTTP.

mod common;
use common::*;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const ASK: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: x\r\n\r\n";
const AGREED: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: y\r\n\r\n";

fn websockets(origin: &Origin) -> proxy::ProxyConfig {
    let mut c = config(vec![to(&[origin])]);
    c.routes[0].upgrade = vec!["websocket".into()];
    c
}

/// Agrees, then does what it is told with the connection.
fn agrees(then: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> Origin {
    let then = Arc::new(then);
    Origin::new(move |_| {
        let then = then.clone();
        Do::Own(Box::new(move |stream| {
            stream.write_all(AGREED).unwrap();
            then(stream);
        }))
    })
}

fn echoes(stream: &mut TcpStream) {
    let mut buf = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buf) {
        if stream.write_all(&buf[..n]).is_err() {
            return;
        }
    }
}

#[test]
fn a_websocket_goes_through_both_ways() {
    let o = agrees(|stream| {
        // at once, in the same packet as the head perhaps
        stream.write_all(b"welcome").unwrap();
        echoes(stream);
    });
    let s = Suite::new(websockets(&o));
    let mut c = s.client();
    let r = c.ask(ASK);
    assert_eq!((r.status, r.field("upgrade").as_deref()), (101, Some("websocket")));
    assert_eq!(r.field("connection").as_deref(), Some("upgrade"));
    assert_eq!(r.field("sec-websocket-accept").as_deref(), Some("y"));
    let seen = &o.seen()[0];
    assert_eq!(seen.field("upgrade").as_deref(), Some("WebSocket"));
    assert_eq!(seen.field("connection").as_deref(), Some("upgrade"));
    assert_eq!(seen.field("sec-websocket-key").as_deref(), Some("x"));
    assert_eq!(c.exactly(7), b"welcome");
    // what is no HTTP, and what would be a broken one
    for text in ["\x01\x02\x03", "GET / HTTP/1.1\nHost: a\n\n", "\r\n\r\n"] {
        c.send(text);
        assert_eq!(c.exactly(text.len()), text.as_bytes());
    }
    let requests = s.proxy.stats().total(proxy::stats::Outcome::Tunnel);
    assert_eq!(requests, 1);
}

#[test]
fn each_side_ends_for_itself() {
    let o = agrees(|stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(format!("{} bytes", all.len()).as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Both).unwrap();
    });
    let s = Suite::new(websockets(&o));
    let mut c = s.client();
    assert_eq!(c.ask(ASK).status, 101);
    c.send(vec![b'x'; 300_000]);
    c.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(c.exactly(12), b"300000 bytes");
    assert!(c.closes());
}

#[test]
fn who_does_not_take_holds_the_other_back() {
    const PIECES: usize = 2000;
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let o = agrees(move |stream| {
        for _ in 0..PIECES {
            if stream.write_all(&[b'x'; 65536]).is_err() {
                return;
            }
            counted.fetch_add(65536, Ordering::SeqCst);
        }
    });
    let s = Suite::new(websockets(&o));
    let mut c = s.client();
    assert_eq!(c.ask(ASK).status, 101);
    // never more on its way than what sockets and buffers hold
    let mut most = 0;
    for read in 1..=PIECES {
        assert!(c.exactly(65536).iter().all(|b| *b == b'x'));
        most = most.max(sent.load(Ordering::SeqCst).saturating_sub(read * 65536));
        std::thread::yield_now();
    }
    assert!(most < 48 << 20, "{most} bytes were on their way");
}

#[test]
fn nothing_moves_for_too_long() {
    let o = agrees(echoes);
    let mut config = websockets(&o);
    config.routes[0].timeouts.tunnel = Duration::from_millis(50);
    let s = Suite::new(config);
    let mut c = s.client();
    assert_eq!(c.ask(ASK).status, 101);
    assert!(c.closes());
}

#[test]
fn an_origin_may_refuse_and_the_connection_goes_on() {
    let o = Origin::says(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno".to_vec());
    let s = Suite::new(websockets(&o));
    let mut c = s.client();
    for _ in 0..2 {
        let r = c.ask(ASK);
        assert_eq!((r.status, r.body.as_str(), r.field("upgrade")), (403, "no", None));
    }
}

#[test]
fn only_what_the_route_has_is_changed_to() {
    let o = Origin::says(ok("", "plain"));
    let s = Suite::new(websockets(&o));
    for fields in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
        // not named: it is an end-to-end mistake
        "Upgrade: websocket\r\n",
    ] {
        let r = s.ask(&get("/", fields));
        assert_eq!((r.status, r.body.as_str()), (200, "plain"), "{fields}");
        let seen = o.seen().pop().unwrap();
        assert_eq!((seen.field("upgrade"), seen.field("connection")), (None, None), "{fields}");
    }
    // 1.0 knows no change of protocol
    let r = s.ask("GET / HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(r.body, "plain");
}

#[test]
fn another_protocol_than_was_asked_for_is_no_answer() {
    let o = Origin::new(|_| {
        Do::Close(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n".to_vec(),
        )
    });
    assert_eq!(Suite::new(websockets(&o)).ask(ASK).status, 502);
}
