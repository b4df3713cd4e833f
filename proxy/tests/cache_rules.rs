//! The cache over sockets: an operator's own rules, and what stands for something else (HEAD, POST, parts).

mod common;
use common::*;
use proxy::cache::policy::Rules;
use proxy::cache::target::Query;

#[test]
fn routes_have_lifetimes_and_keys_of_their_own() {
    let o = Origin::new(|q| match q.path() {
        "/gone" => Do::Send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone".to_vec()),
        "/never" => Do::Send(ok("Cache-Control: no-store\r\n", "x")),
        path => Do::Send(ok("", path)),
    });
    let mut c = config(vec![to(&[&o])]);
    c.routes[0].rules = Rules { default_ttl: Some(60), negative_ttl: Some(60), ..Rules::default() };
    c.routes[0].query = Query::Without(vec!["utm".into()]);
    let s = Suite::new(c);
    for (first, second, hit) in [
        ("/gone", "/gone", true),
        ("/never", "/never", false),
        ("/a?x=1&utm=2", "/a?x=1", true),
        ("/a?x=1", "/a?x=2", false),
        ("/%7Eme/%c3%a4", "/~me/%C3%A4", true),
    ] {
        s.get(first);
        let r = s.get(second);
        assert_eq!(r.cache().starts_with("hit"), hit, "{first} {second} {}", r.cache());
    }
    let asked = o.seen().iter().any(|q| q.path() == "/a?x=1&utm=2");
    assert!(asked, "origins see what clients have sent");
}

#[test]
fn an_answer_to_post_may_stand_for_get() {
    let o = Origin::new(|q| {
        let fields = match q.path() {
            "/says" => "Content-Location: /says\r\nCache-Control: max-age=60\r\n",
            "/other" => "Content-Location: /elsewhere\r\nCache-Control: max-age=60\r\n",
            _ => "Cache-Control: max-age=60\r\n",
        };
        Do::Send(ok(fields, &q.number.to_string()))
    });
    let s = Suite::to(&[&o]);
    for (path, hit) in [("/says", true), ("/other", false), ("/plain", false)] {
        s.ask(&format!("POST {path} HTTP/1.1\r\nHost: example.org\r\nContent-Length: 1\r\n\r\nx"));
        assert_eq!(s.get(path).cache().starts_with("hit"), hit, "{path}");
    }
}

#[test]
fn an_answer_to_head_freshens_what_is_kept_or_ends_it() {
    let o = Origin::new(|q| {
        let tag = if q.path() == "/new" && q.line().starts_with("HEAD") { "\"2\"" } else { "\"1\"" };
        let head =
            format!("HTTP/1.1 200 OK\r\nETag: {tag}\r\nX-Number: {}\r\nContent-Length: 4\r\n", q.number);
        let stale = !q.line().starts_with("HEAD");
        let life = if stale {
            "Cache-Control: max-age=60\r\nAge: 61\r\n\r\nbody"
        } else {
            "Cache-Control: max-age=60\r\n\r\n"
        };
        Do::Send((head + life).into_bytes())
    });
    let s = Suite::to(&[&o]);
    let head = |path: &str| s.ask(&format!("HEAD {path} HTTP/1.1\r\nHost: example.org\r\n\r\n"));
    s.get("/same");
    head("/same");
    let r = s.get("/same");
    assert!(r.cache().starts_with("hit"), "{}", r.cache());
    assert_eq!((r.body.as_str(), r.field("x-number").as_deref()), ("body", Some("1")));
    s.get("/new");
    head("/new");
    assert!(s.get("/new").cache().contains("fwd=miss"), "what was kept is gone");
}

#[test]
fn fields_that_are_withheld_are_for_the_first_client() {
    let o = Origin::says(ok(
        "Cache-Control: max-age=60, no-cache=\"Set-Cookie\", private=\"X-User\"\r\nSet-Cookie: a=b\r\nX-User: me\r\nX-All: 1\r\n",
        "",
    ));
    let s = Suite::to(&[&o]);
    let (first, second) = (s.get("/"), s.get("/"));
    assert_eq!(first.field("set-cookie").as_deref(), Some("a=b"));
    assert!(second.cache().starts_with("hit"));
    assert_eq!((second.field("set-cookie"), second.field("x-user")), (None, None));
    assert_eq!(second.field("x-all").as_deref(), Some("1"));
}

#[test]
fn parts_are_kept_and_joined() {
    const ALL: &str = "0123456789";
    let o = Origin::new(|q| {
        let range = q.field("range").unwrap_or_default();
        let Some((from, to)) = range.strip_prefix("bytes=").and_then(|r| r.split_once('-')) else {
            return Do::Send(ok("Cache-Control: max-age=60\r\nETag: \"a\"\r\n", ALL));
        };
        let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap_or(9));
        let body = &ALL[from..=to];
        Do::Send(
            format!(
                "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{to}/10\r\nETag: \"a\"\r\nCache-Control: max-age=60\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .into_bytes(),
        )
    });
    let s = Suite::to(&[&o]);
    let range = |r: &str, more: &str| s.ask(&get("/x", &format!("Range: bytes={r}\r\n{more}")));
    let r = range("0-5", "");
    assert_eq!((r.status, r.body.as_str(), r.cache().contains("stored")), (206, "012345", true));
    let r = range("2-3", "If-Range: \"a\"\r\n");
    assert_eq!((r.status, r.body.as_str(), r.cache().starts_with("hit")), (206, "23", true));
    assert_eq!(r.field("content-range").as_deref(), Some("bytes 2-3/10"));
    assert_eq!((r.field("content-length").as_deref(), o.count()), (Some("2"), 1));
    assert!(range("2-3", "If-Range: \"b\"\r\n").cache().contains("fwd=miss"), "of another one");
    let whole = s.get("/y");
    assert_eq!((whole.status, o.count()), (200, 3), "a part of one is none of another");
    assert!(range("5-", "").cache().contains("fwd=miss"));
    let r = s.get("/x");
    assert_eq!(
        (r.status, r.body.as_str(), r.cache().starts_with("hit")),
        (200, ALL, true),
        "nothing was missing"
    );
    assert_eq!((r.field("content-range"), o.count()), (None, 4));
    // what is forgotten is forgotten with its parts
    assert_eq!(s.ask("DELETE /x HTTP/1.1\r\nHost: example.org\r\n\r\n").status, 200);
    assert!(range("0-5", "").cache().contains("fwd=miss"));
    s.ask("DELETE /x HTTP/1.1\r\nHost: example.org\r\n\r\n");
    assert!(range("2-3", "").cache().contains("fwd=miss"));
}
