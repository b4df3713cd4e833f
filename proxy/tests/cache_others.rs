//! The cache over sockets: what one client asks for, and what he is told, changes nothing for the others.

mod common;
use common::*;
use proxy::cache::CacheConfig;
use proxy::cache::policy::Rules;
use proxy::cache::target::Query;
use proxy::edit::Edits;

/// Says what it was asked with.
fn telling(fields: &'static str, name: &'static str) -> Origin {
    Origin::new(move |q| Do::Send(ok(fields, &q.field(name).unwrap_or_else(|| "none".into()))))
}

fn patient(o: &Origin) -> Suite {
    let mut c = config(vec![to(&[o])]);
    c.cache.coalesce = LONG;
    c.purge_from = vec!["127.0.0.1".parse().unwrap()];
    Suite::new(c)
}

#[test]
fn an_operators_lifetimes_are_for_what_is_meant_for_all() {
    let o = Origin::new(|q| {
        let text = |status: &str, fields: &str| {
            let body = q.number.to_string();
            let length = body.len();
            Do::Send(
                format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {length}\r\n\r\n{body}").into_bytes(),
            )
        };
        match q.path() {
            "/login" => text("200 OK", "Set-Cookie: session=1\r\n"),
            "/moved" => text("302 Found", "Location: /x\r\nSet-Cookie: session=1\r\n"),
            "/unknown" => text("404 Not Found", "Set-Cookie: session=1\r\n"),
            "/who" => text("401 Unauthorized", "WWW-Authenticate: Basic\r\n"),
            "/often" => text("429 Too Many Requests", ""),
            "/fields" => text("431 Request Header Fields Too Large", ""),
            "/now" => text("200 OK", "Set-Cookie: session=1\r\nCache-Control: max-age=0\r\nETag: \"a\"\r\n"),
            "/all" => text("200 OK", "Set-Cookie: theme=1\r\nCache-Control: public\r\n"),
            "/found" => text("302 Found", "Location: /x\r\n"),
            "/missing" => text("404 Not Found", ""),
            _ => text("200 OK", ""),
        }
    });
    let mut c = config(vec![to(&[&o])]);
    c.routes[0].rules = Rules { ttl: Some(600), negative_ttl: Some(600), ..Rules::default() };
    let s = Suite::new(c);
    for path in ["/login", "/now", "/moved", "/unknown", "/who", "/often", "/fields"] {
        assert_ne!(s.get(path).body, s.get(path).body, "{path}");
    }
    for path in ["/all", "/found", "/missing", "/plain"] {
        assert_eq!(s.get(path).body, s.get(path).body, "{path}");
    }
    // nobody gets them: then they say nothing
    let mut c = config(vec![to(&[&o])]);
    c.routes[0].rules = Rules { ttl: Some(600), ..Rules::default() };
    c.routes[0].response_headers = Edits::new(&["set-cookie"], &[]).unwrap();
    let s = Suite::new(c);
    assert_eq!(s.get("/login").body, s.get("/login").body);
    assert_eq!(s.get("/login").field("set-cookie"), None);
}

#[test]
fn a_cookie_that_comes_with_news_is_for_who_has_asked() {
    let o = Origin::new(|q| {
        if q.field("if-none-match").is_some() {
            return Do::Send(
                format!("HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nSet-Cookie: user={}\r\n\r\n", q.number)
                    .into_bytes(),
            );
        }
        Do::Send(ok("Cache-Control: max-age=60, stale-while-revalidate=1\r\nAge: 70\r\nETag: \"a\"\r\n", "x"))
    });
    let s = Suite::to(&[&o]);
    assert_eq!(s.get("/").field("set-cookie"), None);
    let news = s.get("/");
    assert!(news.cache().contains("fwd-status=304"), "{}", news.cache());
    assert_eq!(news.field("set-cookie").as_deref(), Some("user=1"));
    // of the answer that has come with it nobody else gets it
    let next = s.get("/");
    assert!(next.cache().starts_with("hit;"), "{}", next.cache());
    assert!(next.field("set-cookie").is_none_or(|c| c == "user=2"));
    let o =
        Origin::says(ok("CDN-Cache-Control: max-age=60, private=\"set-cookie\"\r\nSet-Cookie: a=b\r\n", ""));
    let s = Suite::to(&[&o]);
    assert!(s.get("/").field("set-cookie").is_some());
    let next = s.get("/");
    assert_eq!((next.cache().starts_with("hit"), next.field("set-cookie")), (true, None));
}

#[test]
fn what_a_client_keeps_from_the_origin_is_not_what_others_get() {
    let o = telling("Cache-Control: max-age=60\r\nVary: Accept-Language\r\n", "accept-language");
    let s = Suite::to(&[&o]);
    let ask = |more: &str| s.ask(&get("/", &format!("Accept-Language: de\r\n{more}")));
    assert_eq!(ask("Connection: accept-language\r\n").body, "none");
    assert_eq!(ask("").body, "de");
    assert!(ask("").cache().starts_with("hit"));
    assert_eq!(ask("Connection: close, Accept-Language\r\n").body, "none", "nor does it get what others do");
}

#[test]
fn what_we_add_to_requests_selects_nothing() {
    for name in ["x-forwarded-for", "forwarded"] {
        let fields = if name == "forwarded" {
            "Cache-Control: max-age=60\r\nVary: Forwarded\r\n"
        } else {
            "Cache-Control: max-age=60\r\nVary: accept, X-Forwarded-For\r\n"
        };
        let o = telling(fields, name);
        let s = Suite::to(&[&o]);
        for _ in 0..2 {
            assert!(s.get("/").cache().contains("fwd="));
        }
        assert_eq!(o.count(), 2);
    }
    let o = telling("Cache-Control: max-age=60\r\n", "host");
    let s = Suite::to(&[&o]);
    let capitals = s.ask(&get("/", "").replace("example.org", "Example.ORG"));
    assert_eq!((capitals.body.as_str(), s.get("/").body.as_str()), ("example.org", "example.org"));
    assert_eq!(o.count(), 1);
}

#[test]
fn a_parameter_is_the_one_that_the_origin_reads() {
    let o = Origin::new(|q| Do::Send(ok("Cache-Control: max-age=60\r\n", q.path())));
    let mut c = config(vec![to(&[&o])]);
    c.routes[0].query = Query::Only(vec!["id".into()]);
    let s = Suite::new(c);
    assert_eq!(s.get("/item?%69d=2").body, "/item?%69d=2");
    assert_eq!(s.get("/item").body, "/item");
    assert_eq!(s.get("/item?id=1&%69d=9").body, "/item?id=1&%69d=9");
    assert_eq!(s.get("/item?id=1").body, "/item?id=1");
    assert_eq!(s.get("/item?id=2&other=3").body, "/item?%69d=2", "it is the same");
}

#[test]
fn what_was_fetched_before_a_change_is_not_kept_after_it() {
    for change in ["POST / HTTP/1.1\r\nHost: example.org\r\nContent-Length: 0\r\n\r\n", "PURGE"] {
        let (go, o) = Origin::late(0, |q| {
            Do::Send(ok("Cache-Control: max-age=60\r\n", &format!("{} {}", q.line(), q.number)))
        });
        let s = patient(&o);
        let mut first = s.client();
        first.send(get("/", ""));
        o.wait(1);
        let purge = change == "PURGE";
        let changed = s.ask(if purge { "PURGE / HTTP/1.1\r\nHost: example.org\r\n\r\n" } else { change });
        assert_eq!(changed.status, if purge { 404 } else { 200 });
        // doesn't wait for the fetch of before
        let asked = if purge { 1 } else { 2 };
        let after = s.get("/");
        assert_eq!(after.body, format!("GET / HTTP/1.1 {asked}"));
        go.open();
        assert_eq!(first.reply().body, "GET / HTTP/1.1 0", "who has asked before may get it");
        assert_eq!(s.get("/").body, after.body, "but nobody else");
        assert_eq!(o.count(), asked + 1);
    }
}

#[test]
fn what_was_purged_does_not_come_back_by_one_who_waited() {
    let (go, o) = Origin::late(1, |q| match q.field("if-none-match") {
        Some(_) => Do::Send(
            b"HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nCache-Control: max-age=60\r\n\r\n".to_vec(),
        ),
        None => {
            let age = if q.number == 0 { "Age: 61\r\n" } else { "" };
            Do::Send(ok(&format!("Cache-Control: max-age=60\r\nETag: \"a\"\r\n{age}"), &q.number.to_string()))
        }
    });
    let mut c = config(vec![to(&[&o])]);
    c.cache.coalesce = std::time::Duration::from_millis(300);
    c.purge_from = vec!["127.0.0.1".parse().unwrap()];
    let s = Suite::new(c);
    assert_eq!(s.get("/").body, "0");
    let (mut first, mut second) = (s.client(), s.client());
    first.send(get("/", ""));
    o.wait(2);
    second.send(get("/", ""));
    until("both are there", || s.connections() == 2);
    assert_eq!(s.ask("PURGE / HTTP/1.1\r\nHost: example.org\r\n\r\n").status, 200);
    let body = second.reply().body;
    go.open();
    first.reply();
    assert_ne!(body, "0", "it was forgotten while this one waited");
    assert_ne!(s.get("/").body, "0");
}

#[test]
fn of_two_posts_the_later_one_counts() {
    let (go, o) = Origin::late(0, |q| {
        Do::Send(ok("Content-Location: /x\r\nCache-Control: max-age=60\r\n", &q.number.to_string()))
    });
    let s = patient(&o);
    let post = "POST /x HTTP/1.1\r\nHost: example.org\r\nContent-Length: 0\r\n\r\n";
    let mut slow = s.client();
    slow.send(post);
    o.wait(1);
    assert_eq!(s.ask(post).body, "1");
    assert_eq!(s.get("/x").body, "1");
    go.open();
    assert_eq!(slow.reply().body, "0");
    assert_ne!(s.get("/x").body, "0", "who answered later was asked earlier");
}

#[test]
fn one_who_goes_leaves_one_fetch_to_the_others() {
    let (go, gate) = gate();
    let o = Origin::new(move |q| {
        gate.wait();
        Do::Send(ok("Cache-Control: max-age=60\r\n", &q.number.to_string()))
    });
    let s = patient(&o);
    let mut first = s.client();
    first.send(get("/", ""));
    o.wait(1);
    let mut others: Vec<Client> = (0..15).map(|_| s.client()).collect();
    others.iter_mut().for_each(|c| c.send(get("/", "")));
    until("all are there", || s.connections() == 16);
    drop(first);
    o.wait(2);
    go.open();
    others.iter_mut().for_each(|c| assert_eq!(c.reply().status, 200));
    // who has come late may have found nobody who leads
    assert!(o.count() <= 3, "{} fetches", o.count());
}

#[test]
fn one_whom_the_origin_does_not_like_is_no_reason_to_refuse_the_others() {
    let (go, o) = Origin::late(0, |q| match q.field("x-evil") {
        Some(_) => Do::Close(Vec::new()),
        None => Do::Send(ok("Cache-Control: max-age=60\r\n", "good")),
    });
    let s = patient(&o);
    let mut evil = s.client();
    evil.send(get("/", "X-Evil: 1\r\n"));
    o.wait(1);
    let mut others: Vec<Client> = (0..5).map(|_| s.client()).collect();
    others.iter_mut().for_each(|c| c.send(get("/", "")));
    until("all are there", || s.connections() == 6);
    go.open();
    others.iter_mut().for_each(|c| assert_eq!(c.reply().body, "good"));
    assert_eq!(evil.reply().status, 502);
}

#[test]
fn a_condition_of_a_client_is_none_of_what_is_fetched_beside() {
    let o = Origin::new(|q| match q.field("if-none-match") {
        Some(_) => Do::Send(b"HTTP/1.1 304 Not Modified\r\n\r\n".to_vec()),
        None => {
            let age = if q.number == 0 { "Age: 61\r\n" } else { "" };
            let fields = format!("Cache-Control: max-age=60, stale-while-revalidate=600\r\n{age}");
            Do::Send(ok(&fields, &q.number.to_string()))
        }
    });
    let s = Suite::to(&[&o]);
    assert_eq!(s.get("/").body, "0");
    s.ask(&get("/", "If-None-Match: *\r\n"));
    o.wait(2);
    until("the new one is there", || s.get("/").body == "1");
}

#[test]
fn only_what_is_kept_and_good_is_wanted() {
    let o = Origin::says(ok("Cache-Control: max-age=60\r\nAge: 61\r\nETag: \"a\"\r\n", "x"));
    let s = Suite::to(&[&o]);
    s.get("/");
    let r = s.ask(&get("/", "Cache-Control: only-if-cached\r\n"));
    assert_eq!((r.status, o.count()), (504, 1));
    let r = s.ask(&get("/", "Cache-Control: only-if-cached, max-stale\r\n"));
    assert_eq!((r.status, o.count()), (200, 1), "it says that old is good enough");
}

#[test]
fn a_get_with_a_body_is_for_its_origin() {
    let o = Origin::new(|q| Do::Send(ok("Cache-Control: max-age=60\r\n", &String::from_utf8_lossy(&q.body))));
    let s = Suite::to(&[&o]);
    assert_eq!(s.get("/").body, "");
    let r = s.ask(&(get("/", "Content-Length: 4\r\n") + "what"));
    assert_eq!((r.body.as_str(), r.cache().contains("fwd=bypass")), ("what", true));
    assert!(s.get("/").cache().starts_with("hit"));
}

#[test]
fn parts_are_kept_in_memory_also_beside_a_disk() {
    const ALL: usize = 5 << 20;
    let o = Origin::new(|_| {
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-{}/{ALL}\r\nETag: \"a\"\r\nCache-Control: max-age=60\r\nContent-Length: {ALL}\r\n\r\n",
            ALL - 1
        );
        Do::Send((head + &"x".repeat(ALL)).into_bytes())
    });
    let dir = tempfile::tempdir().unwrap();
    let mut c = config(vec![to(&[&o])]);
    c.cache = CacheConfig { disk: Some((dir.path().to_owned(), 64 << 20)), ..CacheConfig::default() };
    let s = Suite::new(c);
    let ask = || s.ask(&get("/", "Range: bytes=0-\r\n"));
    assert_eq!(ask().body.len(), ALL);
    let again = ask();
    assert!(again.cache().starts_with("hit") && again.body.len() == ALL, "{}", again.cache());
    assert_eq!(o.count(), 1);
    assert!(s.get("/").cache().starts_with("hit"), "a part that misses nothing is all of it");
}
