//! Plain hits are answered before hyper sees them. Whoever compares both ways must not be able to tell which one it was.

mod common;
use common::alike::{Random, Way, alike};
use common::*;
use proxy::AccessConfig;
use proxy::access::Format;
use proxy::edit::Edits;

fn origin() -> Origin {
    Origin::new(|q| {
        let date = "Date: Sun, 06 Nov 2033 08:49:37 GMT\r\n";
        let path = q.path().split('?').next().unwrap().to_owned();
        let fields = match &*path {
            "/vary" => "Cache-Control: max-age=900\r\nVary: Accept-Encoding, X-Odd\r\n",
            "/tag" => {
                "Cache-Control: max-age=900\r\nETag: \"a\"\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
            }
            "/said" => {
                "Cache-Control: max-age=900\r\nCache-Status: far; hit; ttl=900\r\nCache-Status: near\r\nX-A: 1\r\nX-A: 2\r\n"
            }
            "/aged" => "Cache-Control: max-age=900\r\nAge: 100\r\nTrailer: X\r\n",
            "/no-store" => "Cache-Control: no-store\r\n",
            "/always" => "Cache-Control: no-cache\r\nETag: \"a\"\r\n",
            "/strict" => "Cache-Control: s-maxage=900\r\nSet-Cookie: a=b\r\nServer: odd\r\n",
            _ => "Cache-Control: public, max-age=900\r\n",
        };
        let said = format!(
            "{}{}",
            q.field("accept-encoding").unwrap_or_default(),
            q.field("x-odd").unwrap_or_default()
        );
        let body = match &*path {
            "/empty" => String::new(),
            "/vary" => said,
            "/large" => "0123456789".repeat(40_000),
            "/medium" => "x".repeat(2049),
            _ => path.clone(),
        };
        if path == "/gone" {
            return Do::Send(
                format!("HTTP/1.1 404 Not Found\r\n{date}{fields}Content-Length: 2\r\n\r\nno").into_bytes(),
            );
        }
        if path == "/chunked" {
            let chunks = format!(
                "HTTP/1.1 200 OK\r\n{date}{fields}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            );
            return Do::Send(chunks.into_bytes());
        }
        Do::Send(ok(&format!("{date}{fields}"), &body))
    })
}

/// A request: mostly plain, often nearly.
fn request(r: &mut Random) -> String {
    let paths = [
        "/",
        "/a",
        "/a?q=1",
        "/a?q=%20",
        "/vary",
        "/vary",
        "/tag",
        "/tag",
        "/said",
        "/aged",
        "/no-store",
        "/always",
        "/strict",
        "/empty",
        "/large",
        "/medium",
        "/gone",
        "/chunked",
        "/edited",
        "//a",
        "/a/",
        "/a;b=(c)!$'*,~",
    ];
    let odd_paths = [
        "/./a",
        "/b/../a",
        "/%2e/a",
        "/..",
        "/a#b",
        "*",
        "http://example.org/a",
        "/a\"b",
        "/a|b",
        "/\u{e4}",
        "a",
    ];
    let path = if r.once_in(12) { r.one(&odd_paths) } else { r.one(&paths) };
    let method =
        if r.once_in(10) { r.one(&["HEAD", "OPTIONS", "get", "G", "POST", "DELETE"]) } else { "GET" };
    let version =
        if r.once_in(25) { r.one(&["HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "http/1.1", ""]) } else { "HTTP/1.1" };
    let host = if r.once_in(12) {
        r.one(&[
            "",
            "Host: \r\n",
            "Host: a b\r\n",
            "Host: x\r\nHost: y\r\n",
            "HOST:EXAMPLE.org\r\n",
            "Host: example.org:80 \r\n",
            "Host: edited\r\n",
        ])
    } else {
        "Host: example.org\r\n"
    };
    let mut text = format!("{method} {path} {version}\r\n{host}");
    let plain = [
        "Accept: text/html",
        "Accept: */*",
        "User-Agent: x",
        "Cookie: a=b",
        "Accept-Encoding: gzip, br",
        "accept-encoding:  BR,gzip",
        "Accept-Encoding: identity",
        "Connection: keep-alive",
        "X-Odd: 1",
        "X-Odd:",
        "DNT: 1",
        "Keep-Alive: timeout=5",
        "Referer: http://x/",
        "X-Forwarded-For: 1.2.3.4",
        "Accept-Language: de",
        "Priority: u=0",
    ];
    let special = [
        "Connection: close",
        "connection: Close",
        "Connection: close, x-odd",
        "Connection: upgrade",
        "Connection: x-odd",
        "Range: bytes=0-1",
        "Range: bytes=1-",
        "Range: bytes=999999-",
        "If-Range: \"a\"",
        "If-None-Match: \"a\"",
        "If-None-Match: \"b\", W/\"a\"",
        "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT",
        "If-Match: \"a\"",
        "If-Unmodified-Since: Sun, 06 Nov 1994 08:49:37 GMT",
        "Cache-Control: no-cache",
        "Cache-Control: max-age=1000",
        "Cache-Control: no-store",
        "Cache-Control: only-if-cached",
        "Cache-Control: min-fresh=899",
        "Pragma: no-cache",
        "Authorization: Basic eDp5",
        "Via: 1.1 proxy-under-test",
        "Via: 1.1 other",
        "TE: trailers",
        "Max-Forwards: 0",
        "Content-Length: 0",
        "Content-Length: 3",
        "Content-Length: x",
        "Transfer-Encoding: chunked",
        "Expect: something",
        "Upgrade: h2c",
        "A : b",
        " folded",
        "A: b\nC: d",
        "A: b\rc",
        "A: \u{1}",
        "A: \u{e4}",
        "noline",
        ": empty",
        "Accept-Encoding: gzip\r\nAccept-Encoding: br",
        "HTTP2-Settings: x",
        "Proxy-Connection: close",
        "Trailer: X",
    ];
    for _ in 0..r.below(6) {
        let special_now = r.once_in(8);
        text += if special_now { r.one(&special) } else { r.one(&plain) };
        text += if r.once_in(60) { "\n" } else { "\r\n" };
    }
    text += "\r\n";
    if text.contains("ncoding: chunked") {
        text += "3\r\nabc\r\n0\r\n\r\n";
    } else if text.contains("ength: 3") {
        text += "abc";
    }
    text
}

fn way(fast: bool, continuity: bool) -> Way {
    let origin = origin();
    let mut edited = to(&[&origin]);
    edited.host = "edited".into();
    edited.response_headers = Edits::new(&["Server"], &["X-Edited: yes"]).unwrap();
    let routes = vec![to(&[&origin]), edited];
    Way::new(origin, routes, fast, continuity)
}

fn compare(seed: u64, continuity: bool) {
    let (fast, slow) = (way(true, continuity), way(false, continuity));
    let plain = alike(fast, slow, seed, (1500, false), request);
    assert!(plain > 150, "only {plain} were plain");
}

#[test]
fn both_ways_answer_alike() {
    for seed in 1..3 {
        compare(seed, false);
    }
}

#[test]
fn both_ways_answer_alike_with_a_journal() {
    for seed in 11..13 {
        compare(seed, true);
    }
}

fn warm(o: &Origin, continuity: bool) -> Suite {
    let c = config(vec![to(&[o])]);
    let s = if continuity { Suite::continuous(c) } else { Suite::new(c) };
    for path in ["/a", "/large", "/a", "/large"] {
        assert_eq!(s.get(path).status, 200);
    }
    s
}

#[test]
fn pipelined_requests_are_answered_in_their_order_whoever_answers_them() {
    let o = origin();
    for continuity in [false, true] {
        let s = warm(&o, continuity);
        let mut c = s.client();
        let before = s.proxy.stats().fast;
        let round = [
            get("/a", ""),
            get("/large", ""),
            get("/a", "Range: bytes=0-0\r\n"),
            get("/a", ""),
            get("/no-store", ""),
        ];
        c.send(round.concat().repeat(10));
        for _ in 0..10 {
            let bodies: Vec<_> = (0..5).map(|_| c.reply().body).collect();
            assert_eq!((bodies[0].as_str(), bodies[1].len(), bodies[2].as_str()), ("/a", 400_000, "/"));
            assert_eq!((bodies[3].as_str(), bodies[4].as_str()), ("/a", "/no-store"));
        }
        assert!(s.proxy.stats().fast >= before + 2);
    }
}

#[test]
fn a_connection_comes_back_from_hyper() {
    let o = origin();
    let s = warm(&o, true);
    let mut c = s.client();
    c.ask(&get("/no-store", ""));
    let before = s.proxy.stats().fast;
    // the first one is answered by hyper, which has the connection
    until("hits are plain again", || {
        assert_eq!(c.ask(&get("/a", "")).body, "/a");
        s.proxy.stats().fast > before
    });
}

#[test]
fn a_request_in_pieces_is_one_request() {
    let o = origin();
    let s = warm(&o, true);
    let text = get("/a", "Accept: */*\r\n");
    for cut in [1, 4, 20, text.len() - 1] {
        let mut c = s.client();
        c.send(&text[..cut]);
        std::thread::yield_now();
        c.send(&text[cut..]);
        assert_eq!(c.reply().body, "/a");
        assert_eq!(c.ask(&text).body, "/a");
    }
}

#[test]
fn a_last_answer_comes_whole_with_the_end_of_its_connection() {
    let o = origin();
    let s = warm(&o, true);
    let asks = |path: &str| get(path, "Connection: close\r\n");
    // in one packet, in several, and more than the socket takes at once; all of it from memory
    for path in ["/", "/medium", "/large"] {
        s.get(path);
        let mut c = s.client();
        let before = s.proxy.stats().fast;
        let want = s.get(path).body;
        let reply = c.ask(&asks(path));
        assert_eq!((reply.body == want, c.closes()), (true, true), "{path}");
        assert!(s.proxy.stats().fast > before);
    }
    // nobody reads what follows it: the answer isn't lost with that
    for _ in 0..50 {
        let mut c = s.client();
        c.send(format!("{}{}", asks("/"), "x".repeat(8000)));
        assert_eq!(c.reply().status, 200);
    }
}

#[test]
fn a_client_that_takes_nothing_of_its_hits_is_let_go() {
    let o = Origin::says(ok("Cache-Control: max-age=900\r\n", &"x".repeat(8 << 20)));
    let mut c = config(vec![to(&[&o])]);
    c.limits.send_timeout = std::time::Duration::from_millis(50);
    c.cache.memory = 64 << 20;
    let s = Suite::continuous(c);
    (0..2).for_each(|_| assert!(s.get("/").whole));
    let mut c = s.client();
    let before = s.proxy.stats().fast;
    c.send(get("/", "").repeat(4));
    until("it is answered", || s.proxy.stats().fast > before);
    let mut gone = false;
    until("its connection is closed", || {
        gone |= s.connections() == 0;
        gone
    });
}

#[test]
fn both_ways_are_logged_alike() {
    let dir = tempfile::tempdir().unwrap();
    let o = origin();
    let log = |fast: bool| {
        let path = dir.path().join(format!("fast-{fast}"));
        let mut c = config(vec![to(&[&o])]);
        c.limits.fast = fast;
        c.access = Some(AccessConfig { format: Format::Json, path: path.clone() });
        let s = Suite::continuous(c);
        for path in ["/a?b", "/large", "/vary"] {
            for _ in 0..3 {
                s.ask(&get(path, "User-Agent: me\r\nReferer: http://x/\r\nX-Odd: 1\r\n"));
            }
        }
        assert_eq!(s.proxy.stats().fast > 0, fast);
        // an answer is logged when it has been sent, which its client may know first
        until("every answer is logged", || s.connections() == 0);
        s.proxy.close();
        let text = std::fs::read_to_string(path).unwrap();
        let lines = text.lines().map(|line| {
            let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
            for varies in ["time", "id", "head_ms", "took_ms"] {
                assert!(line.as_object_mut().unwrap().remove(varies).is_some());
            }
            line
        });
        // two threads may log in another order than they answer
        let mut lines: Vec<_> = lines.collect();
        lines.sort_by_key(ToString::to_string);
        lines
    };
    let (fast, slow) = (log(true), log(false));
    assert_eq!((fast.len(), &fast), (9, &slow));
}
