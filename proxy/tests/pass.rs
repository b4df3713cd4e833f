//! What goes through, and how: fields, methods, bodies, framing.

mod common;
use common::*;
use proxy::Target;
use std::io::{Read, Write};

#[test]
fn fields_of_one_hop_stay_there_and_ours_are_added() {
    let o = Origin::says(ok(
        "Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=9\r\nX-End: 2\r\nVia: 1.0 behind\r\n",
        "hello",
    ));
    let s = Suite::to(&[&o]);
    let r = s.ask(&get(
        "/a?b",
        "Connection: close, X-Mine\r\nX-Mine: 1\r\nProxy-Authorization: x\r\nTE: gzip, trailers\r\nX-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Proto: https\r\n",
    ));
    assert_eq!((r.status, r.body.as_str()), (200, "hello"));
    assert_eq!(r.field("x-end").as_deref(), Some("2"));
    assert_eq!(r.field("via").as_deref(), Some("1.0 behind, 1.1 proxy-under-test"));
    for gone in ["x-hop", "keep-alive"] {
        assert_eq!(r.field(gone), None, "{gone}");
    }
    let q = &o.seen()[0];
    assert_eq!(q.line(), "GET /a?b HTTP/1.1");
    for (name, want) in [
        ("host", Some("example.org")),
        ("x-mine", None),
        ("proxy-authorization", None),
        ("te", Some("trailers")),
        ("via", Some("1.1 proxy-under-test")),
        ("x-forwarded-for", Some("9.9.9.9, 127.0.0.1")),
        ("x-forwarded-proto", Some("http")),
        ("x-forwarded-host", Some("example.org")),
        ("forwarded", Some("for=127.0.0.1;host=\"example.org\";proto=http")),
    ] {
        assert_eq!(q.field(name).as_deref(), want, "{name}");
    }
}

#[test]
fn a_request_in_absolute_form_goes_to_its_host() {
    let o = Origin::says(ok("", ""));
    let s = Suite::to(&[&o]);
    assert_eq!(s.ask("GET http://other.example/x?y HTTP/1.1\r\nHost: example.org\r\n\r\n").status, 200);
    assert_eq!(o.seen()[0].line(), "GET /x?y HTTP/1.1");
    assert_eq!(o.seen()[0].field("host").as_deref(), Some("other.example"));
}

#[test]
fn head_has_the_length_and_no_body() {
    let o =
        Origin::new(|_| Do::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nETag: \"x\"\r\n\r\n".to_vec()));
    let s = Suite::to(&[&o]);
    let mut c = s.client();
    let r = c.ask("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((r.status, r.field("content-length").as_deref()), (200, Some("1000")));
    let r = c.ask("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(r.status, 200, "the connection goes on");
    assert_eq!(o.connections(), 1, "and so does the origin's");
}

#[test]
fn a_304_goes_through_without_a_body() {
    let o = Origin::says(b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n".to_vec());
    let s = Suite::to(&[&o]);
    let mut c = s.client();
    for _ in 0..2 {
        let r = c.ask(&get("/", "If-None-Match: \"x\"\r\n"));
        assert_eq!((r.status, r.field("etag").as_deref()), (304, Some("\"x\"")));
    }
}

#[test]
fn bodies_go_both_ways_with_either_framing() {
    let o = Origin::new(|q| {
        let body = String::from_utf8_lossy(&q.body).into_owned();
        let half = body.len() / 2;
        let chunks = format!(
            "{:x}\r\n{}\r\n{:x};e=1\r\n{}\r\n0\r\n\r\n",
            half,
            &body[..half],
            body.len() - half,
            &body[half..]
        );
        Do::Send(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}").into_bytes())
    });
    let s = Suite::to(&[&o]);
    let mut c = s.client();
    let big = "0123456789".repeat(50_000);
    let r = c.ask(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{big}", big.len()));
    assert_eq!(r.body.len(), big.len());
    assert!(r.body == big && r.whole);
    let r = c.ask(&format!(
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{:X};x=y\r\n{big}\r\n3\r\nend\r\n0\r\n\r\n",
        big.len()
    ));
    assert!(r.body == format!("{big}end"));
    // HTTP/1.0 knows no chunks: the end of the connection is the end of the body
    let r = s.ask("POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 4\r\n\r\nabcd");
    assert_eq!((r.body.as_str(), r.field("transfer-encoding")), ("abcd", None));
}

#[test]
fn trailers_go_through_where_they_are_wanted() {
    let o = Origin::new(|_| {
        Do::Send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 6\r\n\r\n".to_vec(),
        )
    });
    let s = Suite::to(&[&o]);
    let mut c = s.client();
    let r = c.ask("POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: te\r\nTrailer: X-Up\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Up: 1\r\n\r\n");
    assert_eq!(r.body, "abc[x-sum: 6]");
    assert_eq!(String::from_utf8_lossy(&o.seen()[0].body), "x[x-up: 1]");
    let r = c.ask(&get("/", ""));
    assert_eq!(r.body, "abc");
}

#[test]
fn interim_answers_go_ahead_of_the_answer() {
    let o = Origin::new(|_| {
        Do::Send(
            [
                b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\n".to_vec(),
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n".to_vec(),
                ok("", "real"),
            ]
            .concat(),
        )
    });
    let s = Suite::to(&[&o]);
    let mut c = s.client();
    for _ in 0..2 {
        let hint = c.ask(&get("/", ""));
        assert_eq!((hint.status, hint.field("link").as_deref()), (103, Some("</x>")));
        assert_eq!((hint.field("x-hop"), hint.field("via").as_deref()), (None, Some("1.1 proxy-under-test")));
        assert_eq!(c.reply().status, 102);
        assert_eq!(c.reply().body, "real");
    }
    // who can't know of them doesn't get any
    assert_eq!(s.ask("GET / HTTP/1.0\r\n\r\n").body, "real");
}

#[test]
fn interim_answers_arrive_while_the_answer_is_awaited() {
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let gone = std::sync::Arc::new(std::sync::Mutex::new(gone));
    let o = Origin::new(move |_| {
        let gone = gone.clone();
        Do::Own(Box::new(move |stream| {
            stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n").unwrap();
            gone.lock().unwrap().recv().unwrap();
            stream.write_all(&ok("", "real")).unwrap();
        }))
    });
    let s = Suite::to(&[&o]);
    let mut c = s.client();
    assert_eq!(c.ask(&get("/", "")).status, 103);
    go.send(()).unwrap();
    assert_eq!(c.reply().body, "real");
}

const EXPECTS: &str = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";

#[test]
fn a_body_is_sent_when_the_origin_wants_it() {
    let o = Origin::new(|_| {
        Do::Own(Box::new(|stream| {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
            let mut body = [0; 4];
            stream.read_exact(&mut body).unwrap();
            stream.write_all(&ok("", &String::from_utf8_lossy(&body))).unwrap();
        }))
    });
    let s = Suite::to(&[&o]);
    let mut c = s.client();
    for _ in 0..2 {
        c.send(EXPECTS);
        assert_eq!(c.reply().status, 100);
        c.send("body");
        assert_eq!(c.reply().body, "body");
    }
    assert_eq!(o.seen()[0].field("expect").as_deref(), Some("100-continue"));
    assert_eq!(o.connections(), 1);
}

#[test]
fn a_body_that_is_refused_by_its_head_is_not_sent() {
    let o = Origin::says(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig".to_vec());
    let s = Suite::to(&[&o]);
    let mut c = s.client();
    c.send(EXPECTS);
    let r = c.reply();
    assert_eq!((r.status, r.body.as_str()), (413, "big"), "and no 100 before it");
    assert_eq!(s.get("/").status, 413);
    assert_eq!(o.connections(), 2, "that connection has a body to come");
    // nor when there is nobody to send it to
    let s = Suite::new(config(vec![]));
    let r = s.ask("POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    assert_eq!(r.status, 404);
    assert_eq!(s.ask(&get("/", "Expect: more\r\n")).status, 417);
}

#[test]
fn an_origin_that_knows_no_expectations_gets_the_body_after_a_while() {
    let o = Origin::new(|_| {
        Do::Own(Box::new(|stream| {
            let mut body = [0; 4];
            stream.read_exact(&mut body).unwrap();
            stream.write_all(&ok("", &String::from_utf8_lossy(&body))).unwrap();
        }))
    });
    let s = Suite::to(&[&o]);
    let mut c = s.client();
    c.send(EXPECTS);
    assert_eq!(c.reply().status, 100);
    c.send("late");
    assert_eq!(c.reply().body, "late");
}

#[test]
fn options_stop_where_they_are_told_to() {
    let o = Origin::says(ok("Allow: GET\r\n", ""));
    let s = Suite::to(&[&o]);
    let ask =
        |target: &str, fields: &str| s.ask(&format!("OPTIONS {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
    assert!(ask("/", "Max-Forwards: 0\r\n").field("allow").unwrap().contains("HEAD"));
    assert_eq!(ask("*", "").status, 200);
    assert_eq!(o.count(), 0);
    assert_eq!(ask("/", "Max-Forwards: 5\r\n").field("allow").as_deref(), Some("GET"));
    assert_eq!(o.seen()[0].field("max-forwards").as_deref(), Some("4"));
}

#[test]
fn trace_connect_and_loops_are_refused() {
    let o = Origin::says(ok("", ""));
    let s = Suite::to(&[&o]);
    let r = s.ask("TRACE / HTTP/1.1\r\nHost: a\r\nCookie: secret\r\n\r\n");
    assert_eq!(r.status, 405);
    assert!(!r.body.contains("secret") && r.field("allow").is_some());
    assert_eq!(s.ask("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n").status, 405);
    assert_eq!(s.ask(&get("/", "Via: 1.1 other, 1.1 proxy-under-test\r\n")).status, 508);
    assert_eq!(o.count(), 0);
}

#[test]
fn a_proxy_that_is_its_own_origin_notices() {
    let o = Origin::says(ok("", ""));
    let mut c = config(vec![to(&[&o])]);
    // this one's routes lead to a second proxy, and back from there
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let back = listener.local_addr().unwrap();
    let Target::Origins { list, .. } = &mut c.routes[0].target else { panic!() };
    list[0] = origin(back);
    let s = Suite::new(c);
    let addr = s.addr;
    std::thread::spawn(move || {
        let (mut a, _) = listener.accept().unwrap();
        let mut b = std::net::TcpStream::connect(addr).unwrap();
        let mut up = a.try_clone().unwrap();
        let mut down = b.try_clone().unwrap();
        std::thread::spawn(move || std::io::copy(&mut down, &mut up));
        let _ = std::io::copy(&mut a, &mut b);
    });
    assert_eq!(s.get("/").status, 508);
}

#[test]
fn errors_are_plain_or_html_and_name_the_request() {
    let s = Suite::new(config(vec![]));
    let r = s.get("/x");
    assert_eq!(r.status, 404);
    let id = r.field("x-request-id").unwrap();
    assert!(r.body.contains(&id) && r.field("content-type").unwrap().starts_with("text/plain"));
    let r = s.ask(&get("/x", "Accept: text/html\r\n"));
    assert!(r.body.starts_with("<!doctype html>"));
    assert_ne!(r.field("x-request-id").unwrap(), id);
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let o = Origin::new(|q| Do::Send(ok("", q.path())));
    let s = Suite::to(&[&o]);
    let mut c = s.client();
    let all: String = (0..20).map(|n| get(&format!("/{n}"), "")).collect();
    c.stream.write_all(all.as_bytes()).unwrap();
    for n in 0..20 {
        assert_eq!(c.reply().body, format!("/{n}"));
    }
}

#[test]
fn a_large_answer_streams_and_a_slow_client_holds_it_back() {
    const PIECES: usize = 2000;
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = sent.clone();
    let o = Origin::new(move |_| {
        let counted = counted.clone();
        Do::Own(Box::new(move |stream| {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", PIECES * 65536);
            stream.write_all(head.as_bytes()).unwrap();
            for _ in 0..PIECES {
                if stream.write_all(&[b'x'; 65536]).is_err() {
                    return;
                }
                counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
        }))
    });
    let s = Suite::to(&[&o]);
    let mut c = s.client();
    c.send(get("/", ""));
    // never more on its way than what sockets and buffers hold
    let (mut read, mut most, mut buf) = (0, 0, vec![0; 65536]);
    while read < PIECES * 65536 {
        let n = c.stream.read(&mut buf).unwrap();
        assert!(n > 0);
        read += n;
        let out = sent.load(std::sync::atomic::Ordering::SeqCst) * 65536;
        most = most.max(out.saturating_sub(read));
        std::thread::yield_now();
    }
    assert!(most < 48 << 20, "{most} bytes were on their way");
}

#[test]
fn a_connection_that_a_client_has_identified_itself_on_is_not_used_for_others() {
    let o = Origin::says(ok("Date: x\r\nCache-Control: no-store\r\n", "mine"));
    let s = Suite::to(&[&o]);
    let mut c = s.client();
    c.ask(&get("/", ""));
    for scheme in ["NTLM", "negotiate"] {
        let before = o.count();
        c.ask(&get("/", &format!("Authorization: {scheme} TlRMTVNTUAAB\r\n")));
        c.ask(&get("/", ""));
        let seen = o.seen();
        assert_ne!(seen[before].connection, seen[before + 1].connection, "{scheme}");
    }
    let before = o.count();
    c.ask(&get("/", "Authorization: Basic x\r\n"));
    c.ask(&get("/", ""));
    let seen = o.seen();
    assert_eq!(seen[before].connection, seen[before + 1].connection, "Basic is said with every request");
}
