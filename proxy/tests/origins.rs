//! Origins that misbehave.

mod common;
use common::*;
use proxy::probes::Check;
use proxy::route::HostHeader;
use proxy::{ProxyConfig, RouteConfig};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[test]
fn nobody_there_is_a_502() {
    let o = Origin::says(ok("", ""));
    let mut c = config(vec![to(&[&o])]);
    let proxy::Target::Origins { list, .. } = &mut c.routes[0].target else { panic!() };
    list[0] = origin(nobody());
    let s = Suite::new(c);
    assert_eq!(s.get("/").status, 502);
    assert_eq!(s.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").status, 502);
}

#[test]
fn silence_is_a_504() {
    let o = Origin::new(|_| Do::Stall(vec![]));
    let half = Origin::new(|_| Do::Stall(b"HTTP/1.1 200 OK\r\nContent-".to_vec()));
    for o in [&o, &half] {
        let mut c = config(vec![to(&[o])]);
        c.routes[0].timeouts.first_byte = Duration::from_millis(50);
        assert_eq!(Suite::new(c).get("/").status, 504);
        assert_eq!(o.count(), 1, "a timeout is no reason to ask again");
    }
}

#[test]
fn a_body_that_stalls_or_breaks_is_seen_to_be_cut_short() {
    let part = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc";
    let chunk = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    for text in [part, chunk] {
        let stalls = Origin::new(move |_| Do::Stall(text.into()));
        let closes = Origin::new(move |_| Do::Close(text.into()));
        for o in [&stalls, &closes] {
            let mut c = config(vec![to(&[o])]);
            c.routes[0].timeouts.between = Duration::from_millis(50);
            let s = Suite::new(c);
            let mut client = s.client();
            client.send(get("/", ""));
            let r = client.reply();
            assert!(r.status == 200 && !r.whole, "{text:?} {r:?}");
            assert!(client.closes());
        }
    }
}

#[test]
fn garbage_is_a_502() {
    for text in [
        "hello\r\n\r\n",
        "HTTP/1.1 abc OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n folded\r\nno colon\r\n\r\n",
        "",
    ] {
        let o = Origin::new(move |_| Do::Close(text.into()));
        let s = Suite::to(&[&o]);
        let r = s.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx");
        assert_eq!(r.status, 502, "{text:?} {r:?}");
        assert_eq!(o.count(), 1, "{text:?}");
    }
}

#[test]
fn lies_about_lengths_reach_nobody_else() {
    // more than announced: the rest isn't the next answer
    let o = Origin::new(|q| {
        match q.on_connection {
        0 => Do::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison".to_vec()),
        _ => Do::Send(ok("", "good")),
    }
    });
    let s = Suite::to(&[&o]);
    let mut c = s.client();
    for _ in 0..3 {
        assert_eq!(c.ask(&get("/", "")).body, "abc");
    }
    assert_eq!(o.connections(), 3);
    // both framings: chunked counts, and the length isn't passed on
    let o = Origin::new(|_| {
        Do::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 300\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n".to_vec())
    });
    let r = Suite::to(&[&o]).get("/");
    assert_eq!((r.body.as_str(), r.field("content-length"), r.whole), ("ab", None, true));
    // a body where none can be
    let o = Origin::new(|_| Do::Close(b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\nabc".to_vec()));
    let r = Suite::to(&[&o]).get("/");
    assert_eq!((r.status, r.field("content-length")), (204, None));
}

#[test]
fn an_answer_without_a_length_ends_with_its_connection() {
    let o = Origin::new(|_| Do::Close(b"HTTP/1.0 200 OK\r\n\r\nuntil the end".to_vec()));
    let r = Suite::to(&[&o]).get("/");
    assert_eq!((r.body.as_str(), r.whole), ("until the end", true));
}

#[test]
fn a_pooled_connection_that_was_closed_costs_safe_requests_nothing() {
    // answers one request on each connection and closes at the second, after reading it
    let o = Origin::new(|q| if q.on_connection == 0 { Do::Send(ok("", "x")) } else { Do::Reset });
    let s = Suite::to(&[&o]);
    let mut c = s.client();
    for n in 0..5 {
        assert_eq!(c.ask(&get(&format!("/{n}"), "")).status, 200);
    }
    let o = Origin::new(|q| if q.on_connection == 0 { Do::Send(ok("", "x")) } else { Do::Reset });
    let s = Suite::to(&[&o]);
    let mut c = s.client();
    assert_eq!(c.ask(&get("/", "")).status, 200);
    let post = "POST /once HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx";
    assert_eq!(c.ask(post).status, 502, "what may have been done is not done again");
    assert_eq!(o.seen().iter().filter(|q| q.path() == "/once").count(), 1);
}

#[test]
fn an_early_answer_to_a_large_upload_arrives() {
    let o = Origin::new(|_| Do::Send(ok("", "")));
    drop(o);
    // reads the head only
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut s, _) = listener.accept().unwrap();
        let _ = s.read(&mut [0; 1000]);
        let _ = s.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
        let _ = s.read(&mut [0; 1000]);
    });
    let mut c = config(vec![to(&[])]);
    let proxy::Target::Origins { list, .. } = &mut c.routes[0].target else { panic!() };
    list.push(origin(addr));
    let s = Suite::new(c);
    let mut client = s.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nbegin");
    let r = client.reply();
    assert_eq!((r.status, r.body.as_str()), (403, "no"));
}

#[test]
fn one_of_several_that_is_down_is_passed_over_and_comes_back() {
    let up = Arc::new(AtomicBool::new(false));
    let works = up.clone();
    let a =
        Origin::new(move |_| if works.load(Ordering::SeqCst) { Do::Send(ok("", "a")) } else { Do::Reset });
    let b = Origin::says(ok("", "b"));
    let mut c = config(vec![to(&[&a, &b])]);
    c.routes[0].health.failures = 2;
    c.routes[0].health.eject = Duration::from_millis(30);
    let s = Suite::new(c);
    let mut client = s.client();
    for _ in 0..20 {
        let r = client.ask(&get("/", ""));
        assert_eq!((r.status, r.body.as_str()), (200, "b"), "a request that is safe goes to the other one");
    }
    up.store(true, Ordering::SeqCst);
    until("it has its share again", || client.ask(&get("/", "")).body == "a");
    let answers: Vec<String> = (0..10).map(|_| client.ask(&get("/", "")).body).collect();
    assert_eq!(answers.iter().filter(|b| *b == "a").count(), 5, "{answers:?}");
}

#[test]
fn all_addresses_of_a_name_are_tried() {
    // on most machines it has two addresses, and the origin listens on one of them
    let o = Origin::says(ok("", "found"));
    let mut c = config(vec![to(&[&o])]);
    let proxy::Target::Origins { list, .. } = &mut c.routes[0].target else { panic!() };
    list[0].host = "localhost".into();
    assert_eq!(Suite::new(c).get("/").body, "found");
}

#[test]
fn the_whole_has_a_limit_too() {
    // parts come often enough, and never end
    let drips = Origin::new(|_| {
        Do::Own(Box::new(|stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            while stream.write_all(b"1\r\nx\r\n").is_ok() {
                std::thread::yield_now();
            }
        }))
    });
    let silent = Origin::new(|_| Do::Stall(vec![]));
    let with_total = |o: &Origin| {
        let mut c = config(vec![to(&[o])]);
        c.routes[0].timeouts.total = Some(Duration::from_millis(100));
        Suite::new(c)
    };
    let r = with_total(&drips).get("/");
    assert!(r.status == 200 && !r.whole);
    assert_eq!(with_total(&silent).get("/").status, 504);
}

#[test]
fn the_answer_is_awaited_from_the_end_of_the_body_on() {
    let o = Origin::new(|q| Do::Send(ok("", &q.body.len().to_string())));
    let mut c = config(vec![to(&[&o])]);
    c.routes[0].timeouts.first_byte = Duration::from_millis(250);
    let s = Suite::new(c);
    let mut c = s.client();
    c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n");
    // longer than the limit in all: this is the client's pace, and nothing that could be waited for
    for _ in 0..8 {
        std::thread::park_timeout(Duration::from_millis(60));
        c.send("x");
    }
    let r = c.reply();
    assert_eq!((r.status, r.body.as_str()), (200, "8"));
}

/// One that is sick for as long as the flag says, by its checks alone, and one that never is.
fn sick_and_good() -> (Arc<AtomicBool>, Origin, Origin, ProxyConfig) {
    let sick = Arc::new(AtomicBool::new(true));
    let is = sick.clone();
    let bad = Origin::new(move |q| match (q.path(), is.load(Ordering::SeqCst)) {
        ("/health", true) => Do::Send(b"HTTP/1.1 503 Sick\r\nContent-Length: 0\r\n\r\n".to_vec()),
        _ => Do::Send(ok("Cache-Control: no-store\r\n", "once bad")),
    });
    let good = Origin::says(ok("Cache-Control: no-store\r\n", "good"));
    let mut c = config(vec![to(&[&bad, &good])]);
    c.routes[0].check = Some(Check { path: "/health".into(), interval: Duration::from_millis(20) });
    (sick, bad, good, c)
}

#[test]
fn a_check_counts_whatever_requests_are_answered() {
    let (sick, bad, _good, mut c) = sick_and_good();
    c.routes[0].host_header = HostHeader::Fixed("inner.example".parse().unwrap());
    let s = Suite::new(c);
    // asked all the time
    until("it is left out", || s.get("/").body == "good" && s.proxy.stats().origins[0].ejected);
    assert!((0..10).all(|_| s.get("/").body == "good"));
    assert!(bad.seen().iter().all(|q| q.field("host").as_deref() == Some("inner.example")));
    sick.store(false, Ordering::SeqCst);
    until("it is back", || s.get("/").body == "once bad");
}

#[test]
fn interim_answers_without_end_hold_up_nobody_else() {
    let done = Arc::new(AtomicBool::new(false));
    let over = done.clone();
    let endless = Origin::new(move |_| {
        let over = over.clone();
        Do::Own(Box::new(move |stream| {
            let many = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(2000);
            while !over.load(Ordering::Relaxed) && stream.write_all(&many).is_ok() {}
        }))
    });
    let o = Origin::says(ok("", "x"));
    let mut c = config(vec![RouteConfig { prefix: "/endless".into(), ..to(&[&endless]) }, to(&[&o])]);
    c.routes[0].timeouts.first_byte = Duration::from_millis(500);
    let s = Suite::new(c);
    let mut all: Vec<Client> = (0..4).map(|_| s.client()).collect();
    // on both threads
    for (n, c) in all.iter_mut().enumerate() {
        // who understands 103 is told each of the first
        c.send(get(&format!("/endless/{n}"), "").replace("HTTP/1.1", "HTTP/1.0"));
    }
    endless.wait(4);
    assert_eq!(s.get("/").body, "x");
    for c in &mut all {
        assert_eq!(c.reply().status, 504, "and it has an end");
    }
    done.store(true, Ordering::Relaxed);
}

#[test]
fn a_get_has_its_body_also_without_a_length() {
    let o = Origin::new(|q| Do::Send(ok("", &String::from_utf8_lossy(&q.body))));
    let s = Suite::to(&[&o]);
    let r = s.ask(&(get("/", "Transfer-Encoding: chunked\r\n") + "4\r\nwhat\r\n0\r\n\r\n"));
    assert_eq!(r.body, "what", "{:?}", o.seen());
    let r = s.ask(&(get("/", "Content-Length: 4\r\n") + "what"));
    assert_eq!(r.body, "what");
}

#[test]
fn checks_find_out_who_is_down_and_who_is_back() {
    let (sick, bad, _good, mut c) = sick_and_good();
    c.routes[0].health.eject = Duration::from_secs(60);
    let s = Suite::new(c);
    let up = |i: usize| !s.proxy.stats().origins[i].ejected;
    until("the sick one is left out", || !up(0));
    assert!(up(1));
    for _ in 0..6 {
        assert_eq!(s.get("/").body, "good", "no request had to find out");
    }
    sick.store(false, Ordering::SeqCst);
    until("it is back", || up(0));
    until("it is asked again", || s.get("/").body == "once bad");
    assert!(bad.seen()[0].field("user-agent").unwrap().contains("health check"));
    assert!(s.drains(), "checks hold nothing up");
}
