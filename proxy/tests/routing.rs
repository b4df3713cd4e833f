//! Which route a request takes, and what it does with it.

mod common;
use common::*;
use proxy::edit::Edits;
use proxy::route::{Balance, HostHeader};
use proxy::{RouteConfig, Target};
use std::os::unix::fs::symlink;

fn fixed(host: &str, prefix: &str, text: &str) -> RouteConfig {
    let target = Target::Fixed { status: http::StatusCode::OK, body: text.to_owned().into() };
    RouteConfig { host: host.into(), prefix: prefix.into(), target, ..RouteConfig::default() }
}

#[test]
fn host_then_longest_prefix() {
    let s = Suite::new(config(vec![
        fixed("*", "/", "any"),
        fixed("*.example.org", "/", "wild"),
        fixed("a.example.org", "/", "exact"),
        fixed("a.example.org", "/x/y", "deep"),
    ]));
    let ask = |host: &str, path: &str| s.ask(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).body;
    assert_eq!(ask("nowhere", "/x/y"), "any");
    assert_eq!(ask("b.example.org:8080", "/x/y"), "wild");
    assert_eq!(ask("A.Example.ORG", "/x"), "exact");
    assert_eq!(ask("a.example.org", "/x/y/z?q"), "deep");
    assert_eq!(ask("a.example.org", "/x/yz"), "exact");
    assert_eq!(ask("a.example.org", "/x/y/../z"), "exact");
    assert_eq!(ask("a.example.org", "/q/%2e%2e/x/y"), "deep");
}

#[test]
fn no_way_of_writing_a_path_leads_around_a_route() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("private")).unwrap();
    std::fs::write(dir.path().join("private/s.txt"), "secret").unwrap();
    let files = RouteConfig { target: Target::Files(dir.path().to_owned()), ..fixed("*", "/", "") };
    let (all, one) = (Origin::says(ok("Cache-Control: max-age=60\r\n", "all")), Origin::says(ok("", "one")));
    let host = |host: &str, prefix: &str, o: &Origin| RouteConfig {
        host: host.into(),
        prefix: prefix.into(),
        strip_prefix: true,
        ..to(&[o])
    };
    let s = Suite::new(config(vec![
        files,
        fixed("*", "/private", "none of yours"),
        host("o", "/", &all),
        host("o", "/api", &one),
    ]));
    let paths =
        ["/private/s.txt", "/%70rivate/s.txt", "//private/s.txt", "/./%70riv%61te//s.txt", "///private"];
    for path in paths {
        assert_eq!(s.get(path).body, "none of yours", "{path}");
    }
    assert_eq!(s.get("/private%2Fs.txt").status, 404, "it is one name for files too");
    for path in ["/%61pi/x", "//api/x", "/api/x"] {
        // as many ways as there are without hyper, and with it
        for more in ["", "Cache-Control: max-age=1\r\n"] {
            let text = get(path, more).replace("example.org", "o");
            assert_eq!(s.ask(&text).body, "one", "{path}");
        }
    }
    assert!(one.seen().iter().all(|q| q.path() == "/x"), "{:?}", one.seen());
    assert_eq!(all.count(), 0);
}

#[test]
fn rewriting_and_fields() {
    let o = Origin::says(ok("Server: secret/1.0\r\n", ""));
    let mut r = to(&[&o]);
    r.prefix = "/api".into();
    r.strip_prefix = true;
    r.host_header = HostHeader::Origin;
    r.request_headers = Edits::new(&["cookie"], &["X-From: us"]).unwrap();
    r.response_headers = Edits::new(&["server"], &["X-Frame-Options: DENY"]).unwrap();
    let Target::Origins { list, .. } = &mut r.target else { panic!() };
    list[0].path_prefix = "/v2".into();
    let s = Suite::new(config(vec![r]));
    let a = s.ask(&get("/api/users?id=1", "Cookie: c\r\n"));
    assert_eq!((a.field("server"), a.field("x-frame-options").as_deref()), (None, Some("DENY")));
    let q = &o.seen()[0];
    assert_eq!(q.line(), "GET /v2/users?id=1 HTTP/1.1");
    assert_eq!(q.field("host"), Some(o.addr.to_string()));
    assert_eq!((q.field("x-from").as_deref(), q.field("cookie")), (Some("us"), None));
    assert_eq!(q.field("x-forwarded-host").as_deref(), Some("example.org"));
}

#[test]
fn redirects_name_host_and_path() {
    let target =
        Target::Redirect { status: http::StatusCode::PERMANENT_REDIRECT, to: "https://{host}{uri}".into() };
    let s = Suite::new(config(vec![RouteConfig {
        host: "*".into(),
        prefix: "/".into(),
        target,
        ..RouteConfig::default()
    }]));
    let r = s.get("/a?b=c");
    assert_eq!((r.status, r.field("location").as_deref()), (308, Some("https://example.org/a?b=c")));
    let target = Target::Redirect { status: http::StatusCode::FOUND, to: "{uri}".into() };
    let s = Suite::new(config(vec![RouteConfig {
        host: "*".into(),
        prefix: "/".into(),
        target,
        ..RouteConfig::default()
    }]));
    assert_eq!(s.get("//evil.example/").field("location").as_deref(), Some("/evil.example/"));
}

#[test]
fn origins_take_turns_or_the_least_busy_one_does() {
    let a = Origin::says(ok("", "a"));
    let b = Origin::says(ok("", "b"));
    let s = Suite::to(&[&a, &b]);
    (0..10).for_each(|_| assert_eq!(s.get("/").status, 200));
    assert_eq!((a.count(), b.count()), (5, 5));

    let a = Origin::new(|q| if q.path() == "/hang" { Do::Stall(vec![]) } else { Do::Send(ok("", "a")) });
    let b = Origin::says(ok("", "b"));
    let mut c = config(vec![to(&[&a, &b])]);
    let Target::Origins { balance, .. } = &mut c.routes[0].target else { panic!() };
    *balance = Balance::LeastConnections;
    let s = Suite::new(c);
    let mut busy = s.client();
    busy.send(get("/hang", ""));
    a.wait(1);
    (0..10).for_each(|_| assert_eq!(s.get("/").body, "b"));
    assert_eq!(a.count(), 1);
}

fn files() -> (tempfile::TempDir, Suite) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir_all(root.join("sub")).unwrap();
    std::fs::write(dir.path().join("secret"), "secret").unwrap();
    std::fs::write(root.join("index.html"), "<p>home").unwrap();
    std::fs::write(root.join("a b.txt"), "0123456789").unwrap();
    std::fs::write(root.join(".hidden"), "hidden").unwrap();
    let big: Vec<u8> = (0..3_000_000u32).map(|n| b'a' + (n % 26) as u8).collect();
    std::fs::write(root.join("big.bin"), big).unwrap();
    symlink("../secret", root.join("out")).unwrap();
    symlink(dir.path().join("secret"), root.join("absolute")).unwrap();
    symlink("a b.txt", root.join("in.txt")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, root.join("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    let r = RouteConfig {
        host: "*".into(),
        prefix: "/s".into(),
        strip_prefix: true,
        target: Target::Files(root),
        ..RouteConfig::default()
    };
    let s = Suite::new(config(vec![r]));
    (dir, s)
}

#[test]
fn files_are_served_and_nothing_else() {
    let (_dir, s) = files();
    let r = s.get("/s/");
    assert_eq!(
        (r.body.as_str(), r.field("content-type").as_deref()),
        ("<p>home", Some("text/html; charset=utf-8"))
    );
    let r = s.get("/s/a%20b.txt");
    assert_eq!(
        (r.status, r.body.as_str(), r.field("content-length").as_deref()),
        (200, "0123456789", Some("10"))
    );
    assert_eq!(s.get("/s/in.txt").body, "0123456789", "a link that stays below the root");
    let r = s.get("/s/sub");
    assert_eq!((r.status, r.field("location").as_deref()), (301, Some("./sub/")));
    for none in [
        "/s/nothing",
        "/s/sub/",
        "/s/out",
        "/s/absolute",
        "/s/loop",
        "/s/.hidden",
        "/s/fifo",
        "/s/%2e%2e/secret",
        "/s/sub/..%2f..%2fsecret",
        "/s/a%00",
        "/s/index.html/x",
        "/s/%c0%ae%c0%ae/secret",
    ] {
        let r = s.get(none);
        assert_eq!(r.status, 404, "{none} {r:?}");
    }
    assert_eq!(s.ask("POST /s/ HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").status, 405);
}

#[test]
fn files_have_validators_and_ranges() {
    let (_dir, s) = files();
    let mut c = s.client();
    let tag = c.ask(&get("/s/a%20b.txt", "")).field("etag").unwrap();
    assert_eq!(c.ask(&get("/s/a%20b.txt", &format!("If-None-Match: {tag}\r\n"))).status, 304);
    assert_eq!(c.ask(&get("/s/a%20b.txt", "If-Match: \"x\"\r\n")).status, 412);
    let part = |c: &mut Client, range: &str, more: &str| {
        c.ask(&get("/s/a%20b.txt", &format!("Range: {range}\r\n{more}")))
    };
    let r = part(&mut c, "bytes=2-4", "");
    assert_eq!(
        (r.status, r.body.as_str(), r.field("content-range").as_deref()),
        (206, "234", Some("bytes 2-4/10"))
    );
    assert_eq!(part(&mut c, "bytes=-3", "").body, "789");
    assert_eq!(part(&mut c, "bytes=2-4", &format!("If-Range: {tag}\r\n")).status, 206);
    assert_eq!(part(&mut c, "bytes=2-4", "If-Range: \"x\"\r\n").status, 200);
    let r = part(&mut c, "bytes=10-", "");
    assert_eq!((r.status, r.field("content-range").as_deref()), (416, Some("bytes */10")));
    let r = c.ask("HEAD /s/big.bin HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((r.status, r.field("content-length").as_deref()), (200, Some("3000000")));
    let r = c.ask(&get("/s/big.bin", ""));
    assert!(r.whole && r.body.len() == 3_000_000);
    assert!(r.body.bytes().enumerate().all(|(i, b)| b == b'a' + (i % 26) as u8));
    let r = c.ask(&get("/s/big.bin", "Range: bytes=200000-2199999\r\n"));
    assert!(
        r.body.len() == 2_000_000
            && r.body.bytes().enumerate().all(|(i, b)| b == b'a' + ((i + 200_000) % 26) as u8)
    );
}
