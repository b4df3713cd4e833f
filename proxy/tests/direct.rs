//! Plain requests for what isn't kept are passed on before hyper sees them. Neither clients nor origins must be able to tell.

mod common;
use common::alike::{Random, Way, alike};
use common::*;
use proxy::Target;
use proxy::edit::Edits;
use proxy::route::{Caching, HostHeader, Timeouts};
use proxy::stats::Outcome;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

/// Of an answer: mostly such as most origins give, now and then with something odd; the same for the same path.
fn answer(path: &str) -> Vec<Vec<u8>> {
    let mut hash = DefaultHasher::new();
    path.hash(&mut hash);
    let mut r = Random(hash.finish() | 1);
    let mut line = "HTTP/1.1 200 OK";
    if r.once_in(8) {
        line = r.one(&[
            "HTTP/1.1 200 Fine",
            "HTTP/1.1 200 ",
            "HTTP/1.1 201 Created",
            "HTTP/1.1 204 No Content",
            "HTTP/1.1 205 Reset Content",
            "HTTP/1.1 206 Partial Content",
            "HTTP/1.1 304 Not Modified",
            "HTTP/1.1 404 Not Found",
            "HTTP/1.1 503 Service Unavailable",
            "HTTP/1.1 600 Unknown",
            "HTTP/1.0 200 OK",
            "HTTP/1.1 200 OK",
            "HTTP/1.1 200 OK",
        ]);
    }
    let mut text = String::new();
    if r.once_in(20) {
        text += r.one(&[
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n",
        ]);
    }
    text += line;
    text += "\r\n";
    text += r.one(&[
        "Cache-Control: no-store\r\n",
        "Cache-Control: private\r\n",
        "Cache-Control: no-store\r\nCache-Control: max-age=9\r\n",
        "Cache-Control: no-cache\r\n",
        "Cache-Control: no-store, must-understand\r\n",
        "CDN-Cache-Control: no-store\r\nCache-Control: private\r\n",
        "Set-Cookie: a=b\r\nSet-Cookie: c=d\r\n",
        "Expires: 0\r\n",
        "",
        "",
    ]);
    for _ in 0..r.below(4) {
        text += r.one(&[
            "ETag: \"x\"\r\n",
            "Server: odd\r\n",
            "X-A: 1\r\n",
            "x-a:  2 \r\n",
            "Vary: *\r\n",
            "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
            "Content-Type: text/plain\r\n",
            "Content-Encoding: gzip\r\n",
            "Keep-Alive: timeout=5\r\n",
            "Connection: keep-alive\r\n",
            "X-Latin: \u{e4}\r\n",
            "X-Empty:\r\n",
        ]);
    }
    if !r.once_in(14) {
        text += "Date: Sun, 06 Nov 2033 08:49:37 GMT\r\n";
    }
    if r.once_in(16) {
        text += r.one(&[
            "Connection: close\r\n",
            "Connection: x-a\r\n",
            "Connection: keep-alive, x-a\r\n",
            "Via: 1.1 behind\r\n",
            "Via: 1.0 behind\r\nVia: 1.1 it\r\n",
            "Trailer: X\r\n",
            "Upgrade: h2c\r\n",
            "Proxy-Authenticate: Basic\r\n",
            "Proxy-Connection: close\r\n",
            "Cache-Status: far; hit\r\n",
            "X-B: 1\nX-C: 2\r\n",
            " folded\r\n",
            "A B: c\r\n",
            "X-Nul: \0\r\n",
        ]);
    }
    let size = match r.below(12) {
        0 => 0,
        1 => 2049,
        2 => 20_000,
        3 if r.once_in(3) => 70_000,
        n => n * 7,
    };
    let body = "b".repeat(size);
    let framed = match r.below(40) {
        0 => format!("Transfer-Encoding: chunked\r\n\r\n{size:x}\r\n{body}\r\n0\r\n\r\n"),
        1 => format!("Content-Length: {size}\r\nContent-Length: {size}\r\n\r\n{body}"),
        2 => format!("Content-Length: +{size}\r\n\r\n{body}"),
        3 => format!("Content-Length: {size}, {size}\r\n\r\n{body}"),
        4 => format!("Transfer-Encoding: gzip\r\n\r\n{body}"),
        5 => "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n".to_owned(),
        6 => format!("\r\n{body}"),
        _ => format!("Content-Length: {size}\r\n\r\n{body}"),
    };
    let empty = size == 0 && framed.contains("chunked\r\n\r\n0\r\n0");
    text += if empty { "Content-Length: 0\r\n\r\n" } else { &framed };
    let bytes = text.into_bytes();
    if r.once_in(6) {
        let cut = r.below(bytes.len());
        return vec![bytes[..cut].to_vec(), bytes[cut..].to_vec()];
    }
    vec![bytes]
}

/// Ends where the answer does only if it has a length that is believed: the origin closes otherwise.
fn origin() -> Origin {
    Origin::new(|q| {
        let parts = answer(q.path());
        let text = String::from_utf8_lossy(&parts.concat()).into_owned();
        let head = text.split("\r\n\r\n").next().unwrap_or("").to_ascii_lowercase();
        let clear = head.starts_with("http/1.1 200") && head.matches("content-length").count() == 1;
        let bytes = parts.concat();
        if !clear || head.contains("close") || head.contains("transfer-encoding") {
            return Do::Close(bytes);
        }
        match parts.len() {
            1 => Do::Send(bytes),
            _ => Do::Own(Box::new(move |stream| {
                let _ = stream.set_nodelay(true);
                for part in &parts {
                    let _ = stream.write_all(part);
                    std::thread::yield_now();
                }
            })),
        }
    })
}

fn request(r: &mut Random) -> String {
    let host = r.one(&[
        "example.org",
        "off.example",
        "off.example",
        "cut.example",
        "fixed.example",
        "[::1]:80",
        "Off.Example.",
    ]);
    let path = match r.below(10) {
        0..7 => format!("/api/{}", r.below(40)),
        7 => format!("/api/{}?q=1", r.below(40)),
        8 => format!("/api?q={}", r.below(9)),
        _ => format!("/{}", r.below(400)),
    };
    let mut text = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n");
    for _ in 0..r.below(4) {
        text += r.one(&[
            "Accept: */*\r\n",
            "Cookie: a=b\r\n",
            "cookie: c=d\r\n",
            "User-Agent: x\r\n",
            "Authorization: Basic x\r\n",
            "If-None-Match: \"x\"\r\n",
            "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
            "X-Forwarded-For: 9.9.9.9\r\n",
            "X-Forwarded-For: \u{e4}\r\n",
            "X-Forwarded-Host: evil\r\n",
            "X-Forwarded-Proto: https\r\n",
            "Forwarded: for=9.9.9.9\r\n",
            "Keep-Alive: timeout=9\r\n",
            "Proxy-Connection: close\r\n",
            "HTTP2-Settings: x\r\n",
            "Connection: keep-alive\r\n",
            "X-Mine: 1\r\n",
            "X-Gone: 1\r\n",
            "X-Latin: \u{e4}\r\n",
            "X-Empty:\r\n",
        ]);
    }
    if r.once_in(12) {
        text += r.one(&[
            "Connection: close\r\n",
            "TE: trailers\r\n",
            "Range: bytes=0-1\r\n",
            "Cache-Control: no-cache\r\n",
        ]);
    }
    text + "\r\n"
}

fn way(fast: bool, continuity: bool) -> Way {
    let origin = origin();
    let named = |host: &str| {
        let mut route = to(&[&origin]);
        route.host = host.into();
        route.request_headers = Edits::new(&["X-Gone"], &["X-Mine: 2", "X-Ours: 3"]).unwrap();
        route
    };
    let (mut off, mut cut, mut fixed) = (named("off.example"), named("cut.example"), named("fixed.example"));
    off.cache = Caching::Off;
    off.response_headers = Edits::new(&["Server", "Via"], &["X-A: ours"]).unwrap();
    cut.cache = Caching::Off;
    (cut.prefix, cut.strip_prefix, cut.host_header) = ("/api".into(), true, HostHeader::Origin);
    fixed.host_header = HostHeader::Fixed("other.example:81".parse().unwrap());
    let routes = vec![to(&[&origin]), off, cut, fixed];
    Way::new(origin, routes, fast, continuity)
}

fn compare(seed: u64, continuity: bool) {
    // without a journal a connection that hyper has had once stays with it
    let least = if continuity { 100 } else { 20 };
    let plain = alike(way(true, continuity), way(false, continuity), seed, (700, true), request);
    assert!(plain > least, "only {plain} went without hyper");
}

#[test]
fn nobody_can_tell() {
    (1..3).for_each(|seed| compare(seed, false));
}

#[test]
fn nobody_can_tell_with_a_journal() {
    (11..13).for_each(|seed| compare(seed, true));
}

#[test]
fn an_origin_that_says_nothing_is_too_slow_on_either_way() {
    let o = Origin::new(|q| match q.path() {
        "/stalls" => Do::Stall(Vec::new()),
        "/begins" => Do::Stall(b"HTTP/1.1 200 OK\r\nDate: x\r\nContent-Le".to_vec()),
        _ => Do::Send(ok("Date: x\r\n", "a")),
    });
    let mut route = to(&[&o]);
    route.cache = Caching::Off;
    route.timeouts = Timeouts { first_byte: Duration::from_millis(100), ..route.timeouts };
    let s = Suite::continuous(config(vec![route]));
    for path in ["/stalls", "/begins"] {
        let mut c = s.client();
        let before = s.proxy.stats().fast;
        // after a failure the first one isn't
        until("it goes without hyper", || c.ask(&get("/", "")).body == "a" && s.proxy.stats().fast > before);
        assert_eq!(c.ask(&get(path, "")).status, 504, "{path}");
        assert_eq!(o.seen().iter().filter(|q| q.path() == path).count(), 1, "and is asked once");
    }
    assert_eq!(s.proxy.stats().total(Outcome::TimedOut), 2);
}

#[test]
fn connections_to_origins_are_used_again_by_both_ways() {
    let o = Origin::says(ok("Date: x\r\n", "a"));
    let mut route = to(&[&o]);
    route.cache = Caching::Off;
    let s = Suite::continuous(config(vec![route]));
    let mut c = s.client();
    for _ in 0..3 {
        // the first of them comes back from hyper, the second one is plain
        (0..2).for_each(|_| assert_eq!(c.ask(&get("/", "")).body, "a"));
        assert_eq!(c.ask(&get("/", "Range: bytes=0-9\r\n")).body, "a");
    }
    assert!(o.connections() <= 2, "{}", o.connections());
    assert!(s.proxy.stats().fast >= 3);
    assert!(s.drains(), "and don't keep a server from ending");
}

#[test]
fn connections_to_origins_that_nobody_uses_are_closed() {
    let (closed, times) = std::sync::mpsc::channel();
    let closed = std::sync::Mutex::new(closed);
    let o = Origin::new(move |_| {
        let closed = closed.lock().unwrap().clone();
        Do::Own(Box::new(move |stream| {
            stream.write_all(&ok("Date: x\r\n", "a")).unwrap();
            let answered = Instant::now();
            let read = stream.read(&mut [0; 1]);
            let _ = closed.send((answered.elapsed(), read.is_ok_and(|n| n == 0)));
        }))
    });
    let mut route = to(&[&o]);
    route.cache = Caching::Off;
    let s = Suite::continuous(config(vec![route]));
    assert_eq!(s.get("/").body, "a");
    let (after, in_order) = times.recv_timeout(LONG).unwrap();
    assert!(in_order && after > Duration::from_secs(3), "after {after:?}");
}

#[test]
fn an_origin_whose_answers_are_unusual_is_left_to_hyper_with_few_connections() {
    for head in ["", "Date: x\r\nVia: 1.1 other\r\n", "Date: x\r\nConnection: x-a\r\n"] {
        let o = Origin::says(ok(head, "a"));
        let mut route = to(&[&o]);
        route.cache = Caching::Off;
        let s = Suite::continuous(config(vec![route]));
        for _ in 0..100 {
            // each comes on a connection of its own, which hyper hasn't had
            assert_eq!(s.get("/").body, "a");
        }
        assert_eq!(s.proxy.stats().fast, 0);
        assert!(o.connections() <= 8, "{} for {head:?}", o.connections());
    }
}

#[test]
fn requests_take_turns_and_an_origin_that_is_down_is_left_to_those_who_know() {
    let (a, b) = (Origin::says(ok("Date: x\r\n", "a")), Origin::says(ok("Date: x\r\n", "b")));
    let mut route = to(&[&a, &b]);
    route.cache = Caching::Off;
    let s = Suite::continuous(config(vec![route]));
    let mut c = s.client();
    let bodies: String = (0..20).map(|_| c.ask(&get("/", "")).body).collect();
    assert_eq!(bodies, "ab".repeat(10));
    assert_eq!(s.proxy.stats().fast, 20);
    let mut route = to(&[&a]);
    route.cache = Caching::Off;
    let Target::Origins { list, .. } = &mut route.target else { unreachable!() };
    list.insert(0, common::origin(nobody()));
    let s = Suite::continuous(config(vec![route]));
    let mut c = s.client();
    for _ in 0..20 {
        assert_eq!(c.ask(&get("/", "")).body, "a");
    }
}

/// Bytes that the other end doesn't have yet.
fn unacknowledged(stream: &TcpStream) -> i32 {
    let mut bytes = 0;
    // SAFETY: ioctl(2) with TIOCOUTQ writes one int, to which it is given a pointer.
    let done = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    bytes
}

#[test]
fn what_an_origin_says_too_much_or_too_little_is_nobody_elses_answer() {
    let (good, poison) = (ok("Date: x\r\n", "good"), ok("Date: x\r\n", "poison"));
    let turn = Arc::new(Barrier::new(2));
    let theirs = turn.clone();
    let o = Origin::new(move |q| {
        let (good, poison, turn) = (good.clone(), poison.clone(), theirs.clone());
        match q.path() {
            "/more" => Do::Send([good, poison].concat()),
            "/later" => Do::Own(Box::new(move |stream| {
                // else the kernel holds back what follows until the first answer is acknowledged
                stream.set_nodelay(true).unwrap();
                stream.write_all(&good).unwrap();
                turn.wait();
                stream.write_all(&poison).unwrap();
                until("it has arrived", || unacknowledged(stream) == 0);
                turn.wait();
            })),
            "/less" => Do::Close(b"HTTP/1.1 200 OK\r\nDate: x\r\nContent-Length: 10\r\n\r\npoison".to_vec()),
            _ => Do::Send(good),
        }
    });
    let mut route = to(&[&o]);
    route.cache = Caching::Off;
    let s = Suite::continuous(config(vec![route]));
    let mut c = s.client();
    for path in ["/more", "/later", "/less"] {
        let before = s.proxy.stats().fast;
        until("it goes without hyper", || {
            c.ask(&get("/", "")).body == "good" && s.proxy.stats().fast > before
        });
        let reply = c.ask(&get(path, ""));
        match path {
            "/less" => assert_eq!(reply.status, 502, "{reply:?}"),
            _ => assert_eq!(reply.body, "good", "{path}"),
        }
        if path == "/later" {
            // the connection is idle by now
            turn.wait();
            turn.wait();
        }
        for _ in 0..3 {
            assert_eq!(c.ask(&get("/", "")).body, "good", "after {path}");
        }
    }
}
