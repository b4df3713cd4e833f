//! The cache over sockets. Nothing waits for an age: origins say `Age` where an answer is to be old.

mod common;
use common::*;
use proxy::cache::CacheConfig;
use proxy::route::Caching;
use proxy::stats::Outcome;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Says these fields, and counts in its body.
fn counting(fields: &'static str) -> Origin {
    Origin::new(move |q| Do::Send(ok(fields, &format!("answer {}", q.number))))
}

fn pair(fields: &'static str) -> (Origin, Suite) {
    let o = counting(fields);
    let s = Suite::to(&[&o]);
    (o, s)
}

#[test]
fn a_fresh_answer_is_asked_for_once() {
    let (o, s) = pair("Cache-Control: max-age=60\r\nX-A: b\r\nContent-Type: text/x\r\n");
    let first = s.get("/");
    assert_eq!(first.cache(), "fwd=miss; fwd-status=200; stored");
    for _ in 0..5 {
        let r = s.get("/");
        assert_eq!((r.status, r.body.as_str(), r.field("x-a").as_deref()), (200, "answer 0", Some("b")));
        assert_eq!(r.field("age").as_deref(), Some("0"));
        assert_eq!((r.field("date"), r.field("via")), (first.field("date"), first.field("via")));
        assert!(r.cache().starts_with("hit; ttl="), "{}", r.cache());
    }
    assert_eq!(s.get("/?q").body, "answer 1", "the query is part of the target");
    assert_eq!(s.ask("GET / HTTP/1.1\r\nHost: other\r\n\r\n").body, "answer 2", "and so is the host");
    assert_eq!(s.ask("GET / HTTP/1.1\r\nHost: EXAMPLE.org:80\r\n\r\n").body, "answer 0");
    assert_eq!(o.count(), 3);
    let stats = s.proxy.stats();
    assert_eq!((stats.total(Outcome::Hit), stats.total(Outcome::Miss)), (6, 3));
    assert!(stats.cache_bytes > 0 && stats.cache_objects == 3);
}

#[test]
fn what_may_not_be_kept_is_not() {
    for fields in [
        "Cache-Control: no-store\r\n",
        "Cache-Control: private, max-age=60\r\n",
        "Cache-Control: max-age=0\r\n",
        "Cache-Control: max-age=60\r\nVary: *\r\n",
        "Cache-Control: max-age=60\r\nAge: 60\r\n",
        "Expires: 0\r\n",
        "",
    ] {
        let (o, s) = pair(fields);
        assert_eq!([s.get("/").body, s.get("/").body], ["answer 0", "answer 1"], "{fields:?}");
        assert_eq!(o.count(), 2);
    }
    let (_o, s) = pair("Cache-Control: max-age=60\r\n");
    let auth = get("/", "Authorization: Basic eA==\r\n");
    assert_eq!([s.ask(&auth).body, s.ask(&auth).body], ["answer 0", "answer 1"]);
    let (_o, s) = pair("Cache-Control: s-maxage=60\r\n");
    assert_eq!([s.ask(&auth).body, s.ask(&auth).body], ["answer 0", "answer 0"]);
    // switched off, for a route or for all
    let o = counting("Cache-Control: max-age=60\r\n");
    let mut c = config(vec![to(&[&o])]);
    c.routes[0].cache = Caching::Off;
    let s = Suite::new(c);
    assert_ne!(s.get("/").body, s.get("/").body);
    let mut c = config(vec![to(&[&o])]);
    c.cache = CacheConfig { memory: 0, ..CacheConfig::default() };
    let s = Suite::new(c);
    assert_ne!(s.get("/").body, s.get("/").body);
}

#[test]
fn requests_can_refuse_what_is_kept() {
    let (o, s) = pair("Cache-Control: max-age=60\r\nAge: 20\r\n");
    let ask = |cc: &str| s.ask(&get("/", &format!("{cc}\r\n")));
    assert_eq!(ask("Cache-Control: only-if-cached").status, 504);
    assert_eq!(s.get("/").body, "answer 0");
    assert_eq!(ask("Cache-Control: only-if-cached").body, "answer 0");
    assert_eq!(ask("Cache-Control: max-age=30").body, "answer 0");
    assert_eq!(ask("Cache-Control: max-age=10").body, "answer 1");
    assert_eq!(ask("Cache-Control: min-fresh=50").body, "answer 2");
    assert_eq!(ask("Cache-Control: no-cache").body, "answer 3");
    assert_eq!(ask("Pragma: no-cache").body, "answer 4");
    assert_eq!(ask("Cache-Control: no-store").body, "answer 5");
    assert_eq!(s.get("/").body, "answer 4", "what came last is kept");
    assert_eq!(o.count(), 6);
}

#[test]
fn clients_that_have_it_get_304_and_parts_come_from_the_whole() {
    let (o, s) =
        pair("Cache-Control: max-age=60\r\nETag: \"x\"\r\nLast-Modified: Sat, 29 Oct 1994 19:43:31 GMT\r\n");
    s.get("/");
    let r = s.ask(&get("/", "If-None-Match: \"y\", W/\"x\"\r\n"));
    assert_eq!((r.status, r.field("etag").as_deref(), r.field("content-length")), (304, Some("\"x\""), None));
    assert_eq!(s.ask(&get("/", "If-Modified-Since: Sat, 29 Oct 1994 19:43:31 GMT\r\n")).status, 304);
    assert_eq!(s.ask(&get("/", "If-None-Match: \"y\"\r\n")).status, 200);
    let r = s.ask(&get("/", "Range: bytes=2-4\r\n"));
    assert_eq!(
        (r.status, r.body.as_str(), r.field("content-range").as_deref()),
        (206, "swe", Some("bytes 2-4/8"))
    );
    assert_eq!(s.ask(&get("/", "Range: bytes=2-4\r\nIf-Range: \"y\"\r\n")).body, "answer 0");
    assert_eq!(s.ask(&get("/", "Range: bytes=8-\r\n")).status, 416);
    let r = s.ask("HEAD / HTTP/1.1\r\nHost: example.org\r\n\r\n");
    assert_eq!((r.status, r.field("content-length").as_deref()), (200, Some("8")));
    assert_eq!(o.count(), 1);
}

#[test]
fn stale_answers_are_validated_and_updated() {
    let o = Origin::new(|q| match q.field("if-none-match").as_deref() {
        Some("\"x\"") if q.path() == "/same" => Do::Send(
            b"HTTP/1.1 304 Not Modified\r\nCache-Control: max-age=60\r\nX-New: 1\r\nETag: \"x\"\r\n\r\n"
                .to_vec(),
        ),
        Some("\"x\"") => Do::Send(ok("Cache-Control: max-age=60\r\nETag: \"y\"\r\n", "another")),
        _ => Do::Send(ok("Cache-Control: max-age=60\r\nAge: 60\r\nETag: \"x\"\r\nX-Old: 1\r\n", "first")),
    });
    let s = Suite::to(&[&o]);
    s.get("/same");
    let r = s.get("/same");
    assert_eq!((r.status, r.body.as_str(), r.field("x-new").as_deref()), (200, "first", Some("1")));
    assert!(r.cache().starts_with("hit; fwd=stale; fwd-status=304"), "{}", r.cache());
    assert_eq!(r.field("x-old").as_deref(), Some("1"));
    let r = s.get("/same");
    assert_eq!((r.body.as_str(), r.field("x-new").as_deref()), ("first", Some("1")));
    assert_eq!(o.count(), 2, "it is fresh again");
    s.get("/other");
    assert_eq!([s.get("/other").body, s.get("/other").body], ["another", "another"]);
    // a client's own condition is not the one that is asked with
    let o = Origin::new(|q| match q.field("if-none-match").as_deref() {
        Some("\"x\"") => Do::Send(b"HTTP/1.1 304 Not Modified\r\nCache-Control: max-age=60\r\n\r\n".to_vec()),
        _ => Do::Send(ok("Cache-Control: max-age=60\r\nAge: 60\r\nETag: \"x\"\r\n", "first")),
    });
    let s = Suite::to(&[&o]);
    s.get("/");
    assert_eq!(s.ask(&get("/", "If-None-Match: \"mine\"\r\n")).body, "first");
    assert_eq!(s.ask(&get("/", "If-None-Match: \"x\"\r\n")).status, 304);
}

#[test]
fn no_cache_is_kept_but_always_asked_for() {
    let o = Origin::new(|q| match q.field("if-none-match") {
        Some(_) => Do::Send(b"HTTP/1.1 304 Not Modified\r\n\r\n".to_vec()),
        None => Do::Send(ok("Cache-Control: no-cache, max-age=60\r\nETag: \"x\"\r\n", "first")),
    });
    let s = Suite::to(&[&o]);
    (0..3).for_each(|_| assert_eq!(s.get("/").body, "first"));
    assert_eq!(o.count(), 3);
}

#[test]
fn variants_are_kept_apart() {
    let o = Origin::new(|q| {
        let lang = q.field("accept-language").unwrap_or("none".into());
        let enc = q.field("accept-encoding").unwrap_or("none".into());
        let vary = if q.path() == "/two" { "Accept-Language, Accept-Encoding" } else { "Accept-Language" };
        Do::Send(ok(
            &format!("Cache-Control: max-age=60\r\nVary: {vary}\r\n"),
            &format!("{lang} {enc} {}", q.number),
        ))
    });
    let s = Suite::to(&[&o]);
    let ask = |path: &str, lang: &str, enc: &str| {
        s.ask(&get(path, &format!("Accept-Language: {lang}\r\nAccept-Encoding: {enc}\r\n"))).body
    };
    assert_eq!(ask("/", "de", "gzip"), "de gzip 0");
    assert_eq!(ask("/", "en", "gzip"), "en gzip 1");
    assert_eq!(ask("/", "de", "br"), "de gzip 0", "what isn't named doesn't matter");
    assert_eq!(ask("/", "en", "gzip"), "en gzip 1");
    assert_eq!(s.get("/").body, "none none 2");
    assert_eq!(ask("/two", "de", "gzip, br"), "de gzip, br 3");
    assert_eq!(ask("/two", "de", "br"), "de br 4");
    assert_eq!(ask("/two", "de", "gzip,BR"), "de gzip, br 3");
    // all of them go at once
    s.ask("DELETE /two HTTP/1.1\r\nHost: example.org\r\n\r\n");
    assert_eq!(ask("/two", "de", "br"), "de br 6");
    assert_eq!(ask("/two", "de", "gzip, br"), "de gzip, br 7");
}

#[test]
fn unsafe_requests_make_it_invalid_if_they_succeed() {
    let o = Origin::new(|q| {
        match q.line().split(' ').next().unwrap() {
        "GET" => Do::Send(ok("Cache-Control: max-age=60\r\n", &q.number.to_string())),
        _ if q.path().ends_with("?fail") => Do::Send(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n".to_vec()),
        _ => Do::Send(b"HTTP/1.1 201 Created\r\nLocation: /b\r\nContent-Location: http://elsewhere/c\r\nContent-Length: 0\r\n\r\n".to_vec()),
    }
    });
    let s = Suite::to(&[&o]);
    for path in ["/a", "/b", "/c"] {
        s.get(path);
    }
    let post = |path: &str| {
        s.ask(&format!("POST {path} HTTP/1.1\r\nHost: example.org\r\nContent-Length: 0\r\n\r\n"))
    };
    post("/a?fail");
    assert_eq!(s.get("/a").body, "0");
    assert_eq!(post("/a").cache(), "fwd=method");
    assert_eq!([s.get("/a").body, s.get("/b").body, s.get("/c").body], ["5", "6", "2"]);
}

#[test]
fn stale_while_another_one_is_fetched() {
    let o = Origin::new(|q| match q.number {
        0 => Do::Send(ok("Cache-Control: max-age=10, stale-while-revalidate=100\r\nAge: 20\r\n", "old")),
        _ => Do::Send(ok("Cache-Control: max-age=10\r\n", "new")),
    });
    let s = Suite::to(&[&o]);
    s.get("/");
    assert_eq!(s.get("/").body, "old", "nobody waits for it");
    until("it is there", || s.get("/").body == "new");
    assert_eq!(o.count(), 2, "it was asked for once");
    assert!(s.proxy.stats().total(Outcome::Stale) >= 1);
}

#[test]
fn stale_when_the_origin_fails() {
    let fails = Arc::new(AtomicBool::new(false));
    let failing = fails.clone();
    let o = Origin::new(move |q| {
        let sie = if q.path() == "/allowed" { ", stale-if-error=100" } else { "" };
        let strict = if q.path() == "/strict" { ", must-revalidate" } else { "" };
        match failing.load(Ordering::SeqCst) {
            true if q.field("x-reset").is_some() => Do::Reset,
            true => Do::Send(b"HTTP/1.1 503 Down\r\nContent-Length: 4\r\n\r\ndown".to_vec()),
            false => Do::Send(ok(&format!("Cache-Control: max-age=10{sie}{strict}\r\nAge: 20\r\n"), "good")),
        }
    });
    let s = Suite::to(&[&o]);
    for path in ["/allowed", "/plain", "/strict"] {
        assert_eq!(s.get(path).body, "good");
    }
    fails.store(true, Ordering::SeqCst);
    let r = s.get("/allowed");
    assert_eq!((r.status, r.body.as_str()), (200, "good"));
    assert!(r.cache().starts_with("hit; fwd=stale; fwd-status=503"), "{}", r.cache());
    assert_eq!(s.get("/plain").status, 503, "it said so itself");
    assert_eq!(s.ask(&get("/plain", "X-Reset: 1\r\n")).body, "good", "it couldn't be reached");
    assert_eq!(s.ask(&get("/strict", "X-Reset: 1\r\n")).status, 502);
}

#[test]
fn many_that_ask_for_the_same_wait_for_one_fetch() {
    const CLIENTS: usize = 40;
    let (go, gate) = gate();
    let o = Origin::new(move |q| {
        gate.wait();
        Do::Send(ok("Cache-Control: max-age=60\r\n", &q.number.to_string()))
    });
    let s = Suite::to(&[&o]);
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| s.client()).collect();
    clients.iter_mut().for_each(|c| c.send(get("/", "")));
    o.wait(1);
    go.open();
    for c in &mut clients {
        assert_eq!(c.reply().body, "0");
    }
    assert_eq!(o.count(), 1);
}

#[test]
fn what_cannot_be_kept_holds_nobody_up() {
    const CLIENTS: usize = 20;
    let (go, o) = Origin::late(0, |q| Do::Send(ok("Cache-Control: private\r\n", &q.number.to_string())));
    let mut c = config(vec![to(&[&o])]);
    c.cache.coalesce = LONG;
    let s = Suite::new(c);
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| s.client()).collect();
    clients.iter_mut().for_each(|c| c.send(get("/", "")));
    o.wait(1);
    go.open();
    let mut bodies: Vec<String> = clients.iter_mut().map(|c| c.reply().body).collect();
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), CLIENTS, "each got an answer of its own");
    // it is remembered: while one hangs, another goes by itself
    let (go, o) = Origin::late(1, |q| Do::Send(ok("Cache-Control: private\r\n", &q.number.to_string())));
    let mut c = config(vec![to(&[&o])]);
    c.cache.coalesce = LONG;
    let s = Suite::new(c);
    assert_eq!(s.get("/").body, "0");
    let mut hangs = s.client();
    hangs.send(get("/", ""));
    o.wait(2);
    assert_eq!(s.get("/").body, "2");
    go.open();
    assert_eq!(hangs.reply().body, "1");
}

#[test]
fn a_fetch_that_takes_too_long_is_not_waited_for() {
    let (go, o) = Origin::late(0, |q| Do::Send(ok("Cache-Control: max-age=60\r\n", &q.number.to_string())));
    let mut c = config(vec![to(&[&o])]);
    c.cache.coalesce = Duration::from_millis(30);
    let s = Suite::new(c);
    let mut first = s.client();
    first.send(get("/", ""));
    o.wait(1);
    assert_eq!(s.get("/").body, "1");
    go.open();
    assert_eq!(first.reply().body, "0");
}

#[test]
fn a_client_that_goes_away_leaves_the_answer_to_the_others() {
    let (go, gate) = gate();
    let o = Origin::new(move |_| {
        let gate = gate.clone();
        Do::Own(Box::new(move |stream| {
            use std::io::Write;
            let _ = stream.write_all(
                b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 10\r\n\r\n01234",
            );
            gate.wait();
            let _ = stream.write_all(b"56789");
        }))
    });
    let mut c = config(vec![to(&[&o])]);
    c.cache.coalesce = LONG;
    let s = Suite::new(c);
    let mut first = s.client();
    first.send(get("/", ""));
    use std::io::Read;
    assert!(first.stream.read(&mut [0; 100]).unwrap() > 0);
    let mut second = s.client();
    second.send(get("/", ""));
    drop(first);
    go.open();
    assert_eq!(second.reply().body, "0123456789");
    assert_eq!(o.count(), 1);
}

#[test]
fn an_answer_that_is_cut_short_is_not_kept() {
    for text in [
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 10\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n\r\nabc",
    ] {
        let o = Origin::new(move |_| Do::Close(text.into()));
        let s = Suite::to(&[&o]);
        s.get("/");
        s.get("/");
        assert_eq!(o.count(), 2, "{text:?}");
    }
}

#[test]
fn chunked_answers_and_empty_ones_are_kept_with_their_length() {
    let o = Origin::new(|q| {
        match q.path() {
        "/empty" => Do::Send(ok("Cache-Control: max-age=60\r\n", "")),
        _ => Do::Send(b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n".to_vec()),
    }
    });
    let s = Suite::to(&[&o]);
    for (path, body) in [("/", "abcde"), ("/empty", "")] {
        assert_eq!(s.get(path).body, body);
        let r = s.get(path);
        assert_eq!((r.body.as_str(), r.field("content-length")), (body, Some(body.len().to_string())));
    }
    assert_eq!(o.count(), 2);
}

#[test]
fn memory_stays_within_its_bound_and_what_is_asked_for_often_stays() {
    let o = Origin::new(|q| {
        let size = if q.path() == "/large" { 3 << 20 } else { 10_000 };
        Do::Send(ok("Cache-Control: max-age=60\r\n", &"x".repeat(size)))
    });
    let mut c = config(vec![to(&[&o])]);
    c.cache.memory = 1 << 20;
    let s = Suite::new(c);
    let mut client = s.client();
    let hot = get("/hot", "");
    for n in 0..1000 {
        assert_eq!(client.ask(&get(&format!("/{n}"), "")).status, 200);
        if n % 10 == 0 {
            assert_eq!(client.ask(&hot).body.len(), 10_000);
        }
        assert!(s.proxy.stats().cache_bytes <= 1 << 20);
    }
    let asked = o.seen().iter().filter(|q| q.path() == "/hot").count();
    assert!(asked <= 3, "a scan of ten times the memory pushed it out {asked} times");
    for _ in 0..2 {
        let r = client.ask(&get("/large", ""));
        assert!(r.whole && r.body.len() == 3 << 20 && !r.cache().contains("stored"));
    }
}

#[test]
fn a_slow_client_does_not_hold_up_those_who_wait_for_his_fetch() {
    const SIZE: usize = 12 << 20;
    let (go, gate) = gate();
    let o = Origin::new(move |_| {
        let gate = gate.clone();
        Do::Own(Box::new(move |stream| {
            use std::io::Write;
            let head =
                format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: {SIZE}\r\n\r\n");
            let _ = stream.write_all(head.as_bytes());
            gate.wait();
            let _ = stream.write_all(&"0123456789abcdef".repeat(SIZE / 16).into_bytes());
        }))
    });
    let mut c = config(vec![to(&[&o])]);
    c.cache = CacheConfig { memory: 512 << 20, coalesce: LONG, disk: None };
    let s = Suite::new(c);
    let mut slow = s.client();
    slow.send(get("/", ""));
    use std::io::Read;
    let mut head = [0; 10];
    slow.stream.read_exact(&mut head).unwrap();
    // he reads no more; the other one joins while nothing has come
    let mut other = s.client();
    other.send(get("/", ""));
    go.open();
    let r = other.reply();
    assert!(r.whole && r.body.len() == SIZE && r.body.starts_with("0123456789abcdef"));
    assert_eq!(o.count(), 1);
    // and he gets all of it when he likes
    let mut rest = Vec::new();
    while rest.len() < SIZE {
        let mut buf = [0; 65536];
        let n = slow.stream.read(&mut buf).unwrap();
        assert!(n > 0, "cut short after {}", rest.len());
        rest.extend_from_slice(&buf[..n]);
    }
    let text = String::from_utf8(rest).unwrap();
    let body = &text[text.find("\r\n\r\n").unwrap() + 4..];
    assert!("0123456789abcdef".repeat(SIZE / 16).starts_with(body));
}

#[test]
fn what_grows_too_large_on_the_way_passes_on_whole() {
    // chunked, so that nobody knows; beyond what is read at the client's pace, and beyond what an object may be
    let o = Origin::new(|_| {
        Do::Own(Box::new(|stream| {
            use std::io::Write;
            let _ = stream.write_all(
                b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n",
            );
            for n in 0..300 {
                let piece = format!("{n:05}").repeat(4000);
                let _ = stream.write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes());
            }
            let _ = stream.write_all(b"0\r\n\r\n");
        }))
    });
    let mut c = config(vec![to(&[&o])]);
    c.cache.memory = 4 << 20;
    let s = Suite::new(c);
    for _ in 0..2 {
        let r = s.get("/");
        assert!(r.whole && r.body.len() == 300 * 20_000);
        assert!(
            r.body
                .as_bytes()
                .chunks(20_000)
                .enumerate()
                .all(|(n, c)| c.starts_with(format!("{n:05}").as_bytes()))
        );
    }
    assert_eq!(o.count(), 2);
    // and one that is just not too large is kept
    let mut c = config(vec![to(&[&o])]);
    c.cache.memory = 64 << 20;
    let s = Suite::new(c);
    assert!(s.get("/").whole);
    let r = s.get("/");
    assert!(r.body.len() == 300 * 20_000 && r.cache().starts_with("hit"), "{}", r.cache());
}

#[test]
fn purge_is_for_those_who_may() {
    let o = counting("Cache-Control: max-age=60\r\nVary: Accept\r\n");
    let purge = |s: &Suite| s.ask("PURGE /a HTTP/1.1\r\nHost: example.org\r\n\r\n").status;
    let mut c = config(vec![to(&[&o])]);
    c.purge_from = vec!["127.0.0.1".parse().unwrap()];
    let s = Suite::new(c);
    assert_eq!(s.get("/a").body, s.get("/a").body);
    assert_eq!((purge(&s), purge(&s)), (200, 404));
    assert_eq!(s.get("/a").body, "answer 1");
    let mut c = config(vec![to(&[&o])]);
    c.purge_from = vec!["192.0.2.1".parse().unwrap()];
    assert_eq!(purge(&Suite::new(c)), 403);
    assert_eq!(o.count(), 2);
    // nobody may: it is a method like any other
    assert_eq!(purge(&Suite::to(&[&o])), 200);
    assert_eq!(o.count(), 3);
}

#[test]
fn work_that_nobody_waits_for_does_not_hold_up_the_end() {
    let o = Origin::new(|q| match (q.path(), q.number) {
        ("/stale", 0) => {
            Do::Send(ok("Cache-Control: max-age=10, stale-while-revalidate=100\r\nAge: 20\r\n", "old"))
        }
        ("/stale", _) => Do::Stall(vec![]),
        _ => Do::Stall(
            b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 10\r\n\r\n01234".to_vec(),
        ),
    });
    let s = Suite::to(&[&o]);
    s.get("/stale");
    assert_eq!(s.get("/stale").body, "old");
    let mut c = s.client();
    c.send(get("/left", ""));
    use std::io::Read;
    assert!(c.stream.read(&mut [0; 1000]).unwrap() > 0);
    drop(c);
    o.wait(3);
    let from = std::time::Instant::now();
    assert!(s.drains());
    assert!(from.elapsed() < LONG / 2);
}
