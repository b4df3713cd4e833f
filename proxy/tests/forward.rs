//! The forward proxy.

mod common;
use common::*;
use proxy::outward::OutwardConfig;
use proxy::stats::Outcome;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

fn outward(connect_to: &[SocketAddr]) -> OutwardConfig {
    OutwardConfig {
        clients: vec!["127.0.0.0/8".parse().unwrap()],
        connect_ports: connect_to.iter().map(SocketAddr::port).collect(),
        private: true,
        ..OutwardConfig::default()
    }
}

fn with(outward: OutwardConfig) -> Suite {
    let mut c = config(vec![]);
    c.outward = Some(outward);
    Suite::new(c)
}

/// A server that says what it hears.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut buf = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut buf) {
                    stream.write_all(&buf[..n]).unwrap();
                }
            });
        }
    });
    addr
}

#[test]
fn a_request_in_absolute_form_goes_to_the_host_it_names() {
    let o = Origin::says(ok("Cache-Control: max-age=60\r\n", "from there"));
    let s = with(outward(&[]));
    let ask =
        |fields: &str| s.ask(&format!("GET http://{}/x?y HTTP/1.1\r\nHost: another\r\n{fields}\r\n", o.addr));
    let r = ask("Proxy-Connection: keep-alive\r\nProxy-Authorization: x\r\nCookie: a=b\r\n");
    assert_eq!((r.status, r.body.as_str()), (200, "from there"));
    let seen = &o.seen()[0];
    assert_eq!((seen.line(), seen.field("host")), ("GET /x?y HTTP/1.1", Some(o.addr.to_string())));
    assert_eq!(seen.field("cookie").as_deref(), Some("a=b"));
    assert!(seen.field("via").unwrap().contains("proxy-under-test"));
    for gone in ["proxy-connection", "proxy-authorization", "x-forwarded-for", "forwarded"] {
        assert_eq!(seen.field(gone), None, "{gone}");
    }
    assert!(ask("").cache().starts_with("hit"));
    let r = s.ask(&format!("POST http://{}/p HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi", o.addr));
    assert_eq!((r.status, o.seen()[1].body.as_slice()), (200, &b"hi"[..]));
    let gone = nobody();
    assert_eq!(s.ask(&format!("GET http://{gone}/ HTTP/1.1\r\nHost: a\r\n\r\n")).status, 502);
    assert_eq!(s.ask("GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n").status, 400);
}

#[test]
fn connect_leads_to_allowed_ports() {
    let addr = echo();
    let s = with(outward(&[addr]));
    let mut c = s.client();
    let head = format!("CONNECT {addr} HTTP/1.1\r\nHost: {addr}\r\n\r\n");
    c.send(&head);
    let mut got = Vec::new();
    while !got.ends_with(b"\r\n\r\n") {
        got.extend(c.exactly(1));
    }
    let text = String::from_utf8(got).unwrap().to_lowercase();
    assert!(text.starts_with("http/1.1 200 ") && !text.contains("content-length"), "{text}");
    assert!(!text.contains("transfer-encoding"), "{text}");
    for text in ["\x16\x03\x01 no HTTP", "GET / HTTP/1.1\n\n"] {
        c.send(text);
        assert_eq!(c.exactly(text.len()), text.as_bytes());
    }
    assert_eq!(s.proxy.stats().total(Outcome::Tunnel), 1);
    let refused =
        |target: &str| s.ask(&format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")).status;
    assert_eq!(refused("127.0.0.1:22"), 403);
    assert_eq!(refused("127.0.0.1"), 400);
    let closed = nobody();
    let s = with(outward(&[closed]));
    assert_eq!(s.ask(&format!("CONNECT {closed} HTTP/1.1\r\nHost: {closed}\r\n\r\n")).status, 502);
}

#[test]
fn it_is_for_its_clients_and_for_public_addresses() {
    let o = Origin::says(ok("", ""));
    let ask = |config: OutwardConfig| {
        let s = with(config);
        let get = s.ask(&format!("GET http://{}/ HTTP/1.1\r\nHost: a\r\n\r\n", o.addr)).status;
        let connect = s.ask(&format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", o.addr)).status;
        (get, connect)
    };
    let strangers = OutwardConfig { clients: vec!["10.0.0.0/8".parse().unwrap()], ..outward(&[o.addr]) };
    assert_eq!(ask(strangers), (403, 403));
    let public = OutwardConfig { private: false, ..outward(&[o.addr]) };
    assert_eq!(ask(public.clone()), (403, 403));
    // by name it is the same address
    let s = with(public);
    let port = o.addr.port();
    assert_eq!(s.ask(&format!("GET http://localhost:{port}/ HTTP/1.1\r\nHost: a\r\n\r\n")).status, 403);
    assert_eq!(o.count(), 0);
    // and without any, there is no such thing
    let s = Suite::new(config(vec![]));
    assert_eq!(s.ask("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n").status, 405);
    assert_eq!(s.ask("GET http://a/x HTTP/1.1\r\nHost: a\r\n\r\n").status, 404);
}

#[test]
fn routes_for_a_host_come_first_and_share_nothing_with_it() {
    let theirs = Origin::says(ok("Cache-Control: max-age=60\r\n", "theirs"));
    let ours = Origin::says(ok("Cache-Control: max-age=60\r\n", "ours"));
    let mut c = config(vec![to(&[&ours]), to(&[&ours])]);
    c.routes[1].host = "ours.example".into();
    c.outward = Some(outward(&[]));
    let s = Suite::new(c);
    let absolute = |host: &str| s.ask(&format!("GET http://{host}/ HTTP/1.1\r\nHost: x\r\n\r\n")).body;
    assert_eq!(absolute("ours.example"), "ours");
    // a Host field is anybody's word: what a route for all hosts keeps for it is not what that host says
    let host = theirs.addr.to_string();
    assert_eq!(s.ask(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).body, "ours");
    assert_eq!(absolute(&host), "theirs");
    assert_eq!(s.ask(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).body, "ours");
}

#[test]
fn connections_are_used_again_for_the_same_host() {
    let (a, b) = (Origin::says(ok("", "a")), Origin::says(ok("", "b")));
    let s = with(outward(&[]));
    let mut c = s.client();
    for _ in 0..3 {
        for (o, body) in [(&a, "a"), (&b, "b")] {
            assert_eq!(c.ask(&format!("GET http://{}/ HTTP/1.1\r\nHost: x\r\n\r\n", o.addr)).body, body);
        }
    }
    assert_eq!((a.connections(), b.connections()), (1, 1));
}
