//! What is told of requests: the access log, and the numbers.

mod common;
use common::*;
use proxy::access::Format;
use proxy::stats::Outcome;
use proxy::{AccessConfig, ProxyConfig, Target};
use std::path::Path;

fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// To this origin, with a line for each request in `path`.
fn logged(o: &Origin, path: &Path) -> ProxyConfig {
    let access = Some(AccessConfig { format: Format::Json, path: path.to_owned() });
    ProxyConfig { access, ..config(vec![to(&[o])]) }
}

#[test]
fn every_request_has_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let o = Origin::new(|q| match q.path() {
        "/cut" => Do::Close(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nabc".to_vec()),
        "/reset" => Do::Reset,
        _ => Do::Send(ok("Cache-Control: max-age=60\r\n", "hello")),
    });
    let s = Suite::new(logged(&o, &path));
    s.ask(&get("/a?b=1", "User-Agent: me\r\nReferer: http://x/\r\n"));
    s.get("/a?b=1");
    s.ask("HEAD /a?b=1 HTTP/1.1\r\nHost: example.org\r\n\r\n");
    let mut client = s.client();
    client.send(get("/cut", ""));
    assert!(!client.reply().whole);
    assert_eq!(s.get("/reset").status, 502);
    let refused = s.ask("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n");
    until("six lines", || lines(&path).len() == 6);
    let all = lines(&path);
    let of = |i: usize, name: &str| all[i][name].clone();
    for (i, (method, target, status, bytes, cut, outcome)) in [
        ("GET", "/a?b=1", 200, 5, false, "miss"),
        ("GET", "/a?b=1", 200, 5, false, "hit"),
        ("HEAD", "/a?b=1", 200, 0, false, "hit"),
        ("GET", "/cut", 200, 3, true, "miss"),
    ]
    .into_iter()
    .enumerate()
    {
        let got = (of(i, "method"), of(i, "target"), of(i, "status"), of(i, "bytes"), of(i, "cut"));
        assert_eq!(got, (method.into(), target.into(), status.into(), bytes.into(), cut.into()), "{i}");
        assert_eq!(of(i, "outcome"), outcome, "{i}");
    }
    assert_eq!((of(0, "agent"), of(0, "referer")), ("me".into(), "http://x/".into()));
    assert_eq!((of(0, "client"), of(0, "host")), ("127.0.0.1".into(), "example.org".into()));
    assert_eq!((of(4, "outcome"), of(5, "outcome")), ("broken".into(), "refused".into()));
    assert_eq!((of(5, "route"), of(4, "route")), (serde_json::Value::Null, "*/".into()));
    assert_eq!(of(5, "id"), refused.field("x-request-id").unwrap(), "as on the error page");
    assert!(of(0, "took_ms").as_f64() >= of(0, "head_ms").as_f64());
    let stats = s.proxy.stats();
    assert_eq!((stats.total(Outcome::Hit), stats.log_dropped), (2, 0));
    s.get("/last");
    s.proxy.close();
    assert_eq!(lines(&path).len(), 7, "what was left is written at the end");
}

#[test]
fn what_is_never_answered_has_its_line_too() {
    for new in [Suite::new, Suite::continuous] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let o = Origin::new(|_| Do::Stall(Vec::new()));
        let s = new(logged(&o, &path));
        let mut client = s.client();
        client.send("POST /slow HTTP/1.1\r\nHost: example.org\r\nContent-Length: 2\r\n\r\nhi");
        o.wait(1);
        reset(client.stream);
        until("its line", || lines(&path).len() == 1);
        let line = &lines(&path)[0];
        assert_eq!((&line["status"], &line["outcome"]), (&499.into(), &"gone".into()));
        assert_eq!(
            (&line["target"], &line["bytes"], &line["cut"]),
            (&"/slow".into(), &0.into(), &true.into())
        );
        assert_eq!(line["route"], "*/");
        assert_eq!(s.proxy.stats().total(Outcome::Gone), 1);
    }
}

#[test]
fn a_small_answer_that_breaks_off_is_told_as_what_its_client_got() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let o = Origin::new(|_| Do::Close(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc".to_vec()));
    let s = Suite::continuous(logged(&o, &path));
    let r = s.get("/");
    assert_eq!(r.status, 502);
    until("its line", || lines(&path).len() == 1);
    let line = &lines(&path)[0];
    assert_eq!((&line["status"], &line["outcome"]), (&502.into(), &"broken".into()));
    assert_eq!((line["bytes"].as_u64(), &line["cut"]), (Some(r.body.len() as u64), &false.into()));
    assert_eq!(line["id"], r.field("x-request-id").unwrap());
    assert_eq!(s.proxy.stats().total(Outcome::Broken), 1);
}

#[test]
fn numbers_are_for_who_shows_the_token() {
    let o = Origin::says(ok("", "the origin's"));
    let mut c = config(vec![to(&[&o])]);
    c.heartbeat_token = "secret".into();
    let s = Suite::new(c);
    assert_eq!(s.get("/.traffic/metrics").body, "the origin's");
    let r = s.ask(&get("/.traffic/metrics", "Traffic-Heartbeat: secret\r\n"));
    let line = "traffic_requests_total{route=\"*/\",outcome=\"miss\"} 1";
    assert!(r.body.lines().any(|l| l == line), "{}", r.body);
}

#[test]
fn an_origin_has_its_numbers_once() {
    let o = Origin::new(|_| Do::Stall(Vec::new()));
    let mut route = to(&[&o, &o, &o]);
    let Target::Origins { list, .. } = &mut route.target else { unreachable!() };
    list[2].path_prefix = "/other".into();
    let s = Suite::new(config(vec![route]));
    let mut clients: Vec<_> = (0..3).map(|_| s.client()).collect();
    clients.iter_mut().for_each(|c| c.send(get("/", "")));
    o.wait(3);
    let origins = s.proxy.stats().origins;
    let told: Vec<_> = origins.iter().map(|o| (o.name.clone(), o.in_flight)).collect();
    assert_eq!(told, [(o.addr.to_string(), 2), (format!("{}/other", o.addr), 1)]);
}
