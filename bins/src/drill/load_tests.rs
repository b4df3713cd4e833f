//! The load against servers that misbehave on purpose: each kind of failure is seen, and counted once.

use super::*;
use std::io::{Read, Write};
use std::net::TcpListener;

const PAGE: &str = "hello";
/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// Runs a short load against `serve`, which gets each accepted connection with its number.
fn against(plan: Plan, serve: impl Fn(usize, std::net::TcpStream) + Send + 'static) -> Stats {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().flatten().enumerate().for_each(|(n, s)| serve(n, s)));
    run(Plan { addr, ..plan })
}

fn run(plan: Plan) -> Stats {
    let stats = Arc::new(Mutex::new(Stats::default()));
    Load::start(plan, stats.clone()).join();
    stats.lock().unwrap().clone()
}

fn plan(connections: u32, rate: u32) -> Plan {
    let page = Page::get("/", PAGE);
    Plan {
        addr: "127.0.0.1:1".parse().unwrap(),
        paths: vec![page],
        connections,
        keepalive_rate: 50,
        rate,
        seconds: 1,
        timeout: Duration::from_secs(10),
    }
}

/// Reads one request's head; false at the end of the connection.
fn request(s: &mut std::net::TcpStream) -> bool {
    let mut got = Vec::new();
    let mut byte = [0u8; 1];
    while !got.ends_with(b"\r\n\r\n") {
        match s.read(&mut byte) {
            Ok(1) => got.push(byte[0]),
            _ => return false,
        }
    }
    true
}

fn good(s: &mut std::net::TcpStream) {
    let _ = write!(s, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{PAGE}", PAGE.len());
}

#[test]
fn a_good_server_is_found_good() {
    let s = against(plan(2, 50), |_, mut s| {
        std::thread::spawn(move || {
            while request(&mut s) {
                good(&mut s)
            }
        });
    });
    assert_eq!((s.failures(), s.connections_lost), (0, 0), "{:?}", s.failed);
    assert!(s.ok >= 100, "{} requests in a second at 150 a second", s.ok);
    assert_eq!(s.requests, s.ok);
}

#[test]
fn each_misdeed_has_its_name() {
    let bad = |answer: &'static str| {
        against(plan(0, 20), move |_, mut s| {
            if request(&mut s) {
                let _ = s.write_all(answer.as_bytes());
            }
        })
    };
    let only = |s: Stats, how: Failure| {
        assert_eq!(s.ok, 0, "{:?}", s.failed);
        assert_eq!(s.failed.get(&how), Some(&s.requests), "{:?}", s.failed);
        assert!(s.requests >= 15);
    };
    only(bad("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"), Failure::Status(502));
    only(bad("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhellO"), Failure::Body);
    only(bad("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe"), Failure::ClosedEarly);
    only(bad(""), Failure::ClosedEarly);
    only(bad("what?\r\n\r\n"), Failure::Protocol);
}

#[test]
fn refusals_are_refusals() {
    // bound, and nobody listens there
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let socket = TcpListener::from(socket);
    let addr = socket.local_addr().unwrap();
    let s = run(Plan { addr, ..plan(1, 20) });
    assert_eq!((s.ok, s.failed.get(&Failure::Refused)), (0, Some(&s.requests)), "{:?}", s.failed);
    assert_eq!(s.connections_lost, 0, "what never was can't be lost");
}

#[test]
fn an_idle_connection_that_is_closed_is_lost_and_no_request_failed() {
    let s = against(plan(1, 0), |_, mut s| {
        request(&mut s);
        good(&mut s);
    });
    assert!(s.connections_lost >= 10, "{} of {}", s.connections_lost, s.connections);
    assert_eq!(s.failed.get(&Failure::Status(502)), None);
}

#[test]
fn a_close_that_was_announced_is_no_loss() {
    let s = against(plan(1, 0), |_, mut s| {
        request(&mut s);
        let _ = write!(s, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n{PAGE}");
    });
    assert_eq!((s.connections_lost, s.failures()), (0, 0), "{:?}", s.failed);
    assert!(s.ok >= 30);
}

#[test]
fn a_server_that_never_answers_does_not_prolong_the_load() {
    // the kernel takes the connections, and nobody answers
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let timeout = Duration::from_secs(1);
    let begun = Instant::now();
    let s = run(Plan { addr, timeout, ..plan(1, 0) });
    // one after the other, they would take a second each
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert!(s.requests > 20 && s.ok == 0, "{} requests", s.requests);
    assert_eq!(s.failed.get(&Failure::Timeout), Some(&s.requests), "{:?}", s.failed);
}

#[test]
fn a_load_that_is_abandoned_waits_for_nobody() {
    // the kernel takes the connections, and nobody answers
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let stats = Arc::new(Mutex::new(Stats::default()));
    let load = Load::start(Plan { addr, seconds: 600, timeout: LONG, ..plan(2, 0) }, stats.clone());
    while stats.lock().unwrap().connections < 2 {
        std::thread::yield_now();
    }
    let begun = Instant::now();
    load.stop();
    load.abandon();
    load.join();
    assert!(begun.elapsed() < LONG / 2, "it waited for answers");
}
