//! Requests that two parsers could read in two ways: each is answered 400 and ends its connection, and nothing of it
//! reaches the origin.

mod common;
use common::*;
use std::time::Duration;

fn suite() -> (Origin, Suite) {
    let o = Origin::new(|q| Do::Send(ok("", q.path())));
    let mut c = config(vec![to(&[&o])]);
    c.limits.max_head = 16 << 10;
    let s = Suite::new(c);
    (o, s)
}

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn ambiguous_heads_are_refused_before_anything_is_passed_on() {
    let (o, s) = suite();
    for fields in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5, 6\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length: \r\n",
        "Content-Length : 5\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding:\x0bchunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding\r\n : chunked\r\n",
        "X: a\r\n folded\r\n",
        "X: a\r\n\tTransfer-Encoding: chunked\r\n",
        " X: a\r\n",
        "X: a\nTransfer-Encoding: chunked\r\n",
        "X: a\rY: b\r\n",
        "X: a\x00b\r\n",
        "X\x00: a\r\n",
        "X Y: a\r\n",
        ": a\r\n",
        "no colon\r\n",
    ] {
        let mut c = s.client();
        c.send(format!("POST /x HTTP/1.1\r\nHost: a\r\n{fields}\r\n0\r\n\r\n{SMUGGLED}"));
        let r = c.reply();
        assert_eq!(r.status, 400, "{fields:?}: {r:?}");
        assert!(c.closes(), "{fields:?}");
    }
    assert_eq!(o.count(), 0, "{:?}", o.seen());
}

#[test]
fn ambiguous_request_lines_and_hosts_are_refused() {
    let (o, s) = suite();
    for text in [
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        "GET /\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
        "GET / HTTP/1,1\r\nHost: a\r\n\r\n",
        "GET / http/1.1\r\nHost: a\r\n\r\n",
        "G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
        "GET /../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "\0GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let r = s.ask(text);
        assert_eq!(r.status, 400, "{text:?}: {r:?}");
    }
    assert_eq!(o.count(), 0, "{:?}", o.seen());
}

#[test]
fn broken_chunks_are_refused_and_end_the_connection() {
    let (o, s) = suite();
    for chunks in [
        "5\nhello\r\n0\r\n\r\n",
        "5;a=\nb\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "0\r\nX: a\nY: b\r\n\r\n",
        "0\r\nno colon\r\n\r\n",
    ] {
        let mut c = s.client();
        let head = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        c.send(format!("{head}{chunks}{SMUGGLED}"));
        let r = c.reply();
        assert_eq!(r.status, 400, "{chunks:?}: {r:?}");
        assert!(c.closes(), "{chunks:?}");
    }
    let bad: Vec<_> = o.seen().into_iter().filter(|q| q.path() == "/smuggled").collect();
    assert!(bad.is_empty(), "{bad:?}");
    // what is only odd goes through
    let r = s.ask("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n00005 ;a=\"b\"\r\nhello\r\n000\r\n\r\n");
    assert_eq!((r.status, o.seen().last().unwrap().body.as_slice()), (200, &b"hello"[..]));
}

#[test]
fn what_is_too_large_has_its_own_status() {
    let (o, s) = suite();
    let r = s.get(&format!("/{}", "a".repeat(70_000)));
    assert!([414, 431].contains(&r.status), "{}", r.status);
    let many: String = (0..200).map(|n| format!("X-{n}: 1\r\n")).collect();
    assert_eq!(s.ask(&get("/", &many)).status, 431);
    let mut c = s.client();
    let _ = std::io::Write::write_all(
        &mut c.stream,
        get("/", &format!("X: {}\r\n", "a".repeat(20_000))).as_bytes(),
    );
    assert_eq!(c.reply().status, 431);
    assert_eq!(o.count(), 0);
    // to the byte, in one piece and in several
    let of = |len: usize| {
        let rest = get("/", "X: \r\n").len();
        get("/", &format!("X: {}\r\n", "a".repeat(len - rest)))
    };
    for (len, status) in [(16 << 10, 200), ((16 << 10) + 1, 431)] {
        assert_eq!(s.ask(&of(len)).status, status, "{len}");
        let mut c = s.client();
        of(len).as_bytes().chunks(3000).for_each(|piece| c.send(piece));
        assert_eq!(c.reply().status, status, "{len} in pieces");
    }

    let mut c = config(vec![to(&[&o])]);
    c.routes[0].max_body.0 = 10;
    let s = Suite::new(c);
    assert_eq!(s.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n").status, 413);
    assert_eq!(s.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789").status, 200);
    let chunked =
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n0123456789a\r\n0\r\n\r\n";
    assert_eq!(s.ask(chunked).status, 413);
    let target = format!("/{}", "a".repeat(proxy::check::MAX_TARGET));
    assert_eq!(s.get(&target).status, 414);
}

#[test]
fn slow_clients_are_let_go() {
    let o = Origin::says(ok("", ""));
    let mut c = config(vec![to(&[&o])]);
    c.limits.idle_timeout = Duration::from_millis(100);
    c.routes[0].timeouts.between = Duration::from_millis(100);
    let s = Suite::new(c);
    let mut idle = s.client();
    assert!(idle.closes());
    let mut head = s.client();
    head.send("GET / HTTP/1.1\r\nHost:");
    assert!(head.closes());
    let mut body = s.client();
    body.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab");
    assert_eq!(body.reply().status, 408);
    assert!(body.closes());
}

#[test]
fn a_client_that_takes_nothing_is_disconnected() {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let o = Origin::new(move |_| {
        let tell = tell.clone();
        Do::Own(Box::new(move |stream| {
            use std::io::Write;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while stream.write_all(&[b'x'; 65536]).is_ok() {}
            let _ = tell.send(());
        }))
    });
    let mut c = config(vec![to(&[&o])]);
    c.limits.send_timeout = Duration::from_millis(100);
    let s = Suite::new(c);
    let mut c = s.client();
    c.send(get("/", ""));
    told.recv_timeout(LONG).expect("the proxy lets the origin go too");
    assert!(!c.reply().whole);
}
