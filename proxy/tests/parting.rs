//! The end of a connection on which the client is still sending: it gets its answer, and nobody a request of what it sends.

mod common;
use common::*;
use proxy::route::MaxBody;
use proxy::{RouteConfig, Target};
use std::io::{ErrorKind, Write};

/// More than fits into the buffers between client and server.
const MUCH: usize = 16 << 20;

fn refuses(o: &Origin) -> proxy::ProxyConfig {
    let fixed = RouteConfig {
        prefix: "/no".into(),
        target: Target::Fixed { status: http::StatusCode::FORBIDDEN, body: "not here\n".into() },
        ..to(&[o])
    };
    let small = RouteConfig { prefix: "/small".into(), max_body: MaxBody(1000), ..to(&[o]) };
    config(vec![fixed, small, to(&[o])])
}

fn upload(path: &str, len: usize) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: example.org\r\nContent-Length: {len}\r\n\r\n")
}

/// Sends all of it before it reads a byte, as many a client does.
fn all_then_read(s: &Suite, head: &str, body: &[u8]) -> Reply {
    let mut c = s.client();
    c.send(head);
    c.send(body);
    let reply = c.reply();
    assert!(c.try_reply().is_none(), "it ends there");
    reply
}

#[test]
fn who_sends_on_gets_the_answer_that_came_early() {
    for new in [Suite::new, Suite::continuous] {
        let o = Origin::says(ok("", "from the origin"));
        let s = new(refuses(&o));
        let body = b"GET /smuggled HTTP/1.1\r\nHost: example.org\r\n\r\n".repeat(MUCH / 45);
        for (path, status) in [("/no", 403), ("/small", 413)] {
            let r = all_then_read(&s, &upload(path, body.len()), &body);
            assert!(r.status == status && r.whole, "{path}: {r:?}");
            let chunked =
                format!("POST {path} HTTP/1.1\r\nHost: example.org\r\nTransfer-Encoding: chunked\r\n\r\n");
            let size = format!("{:x}\r\n", body.len());
            let r = all_then_read(&s, &(chunked + &size), &[&body, &b"\r\n0\r\n\r\n"[..]].concat());
            assert!(r.status == status && r.whole, "{path} in chunks: {r:?}");
        }
        assert!(o.seen().iter().all(|q| q.path() == "/small"), "nothing of that is a request");
    }
}

#[test]
fn who_sends_no_http_is_told_so_however_much_it_sends() {
    let o = Origin::says(ok("", "from the origin"));
    let s = Suite::continuous(refuses(&o));
    let much = vec![b'x'; MUCH];
    let r = all_then_read(&s, "GET / HTTP/1.1\r\nHost: example.org\r\nX: ", &much);
    assert_eq!(r.status, 431);
    let r = all_then_read(&s, "no http\r\n\r\n", &much);
    assert_eq!(r.status, 400);
}

#[test]
fn one_who_sends_without_end_keeps_nobody_from_ending() {
    let o = Origin::says(ok("", "from the origin"));
    let s = Suite::continuous(refuses(&o));
    let mut c = s.client();
    c.send(upload("/no", usize::MAX >> 1));
    assert_eq!(c.reply().status, 403);
    let sender = std::thread::spawn(move || {
        loop {
            match c.stream.write(&[b'x'; 1 << 16]) {
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return e.kind(),
            }
        }
    });
    assert!(s.drains());
    let end = sender.join().unwrap();
    assert!(matches!(end, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{end:?}");
}

#[test]
fn one_who_has_sent_all_of_it_is_not_waited_for() {
    for new in [Suite::new, Suite::continuous] {
        let o = Origin::says(ok("", "from the origin"));
        let s = new(refuses(&o));
        let post = |fields: &str| {
            format!("POST / HTTP/1.1\r\nHost: example.org\r\n{fields}Content-Length: 5\r\n\r\nhello")
        };
        let mut closing = s.client();
        assert_eq!(closing.ask(&post("Connection: close\r\n")).status, 200);
        let begun = std::time::Instant::now();
        until("it is closed", || s.connections() == 0);
        assert!(begun.elapsed() < std::time::Duration::from_secs(4), "{:?}", begun.elapsed());
        drop(closing);
    }
}
