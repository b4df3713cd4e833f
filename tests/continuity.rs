//! Kill the server at a known moment of a connection, and see that the connection goes on as docs/continuity.md says.

mod common;

use common::origin::{BIG, Origin, big, serving};
use common::*;
use std::io::{Read, Write};
use std::net::TcpStream;

#[test]
fn an_idle_connection_goes_on() {
    let (_origin, mut s) = serving("");
    let mut c = s.client();
    for n in 0..5 {
        let path = format!("/{n}");
        assert_eq!(c.get(&path).unwrap().text(), path);
        s.kill("server", SIGKILL);
    }
    assert_eq!(c.get("/end").unwrap().text(), "/end");
    s.stop();
}

#[test]
fn many_idle_connections_go_on_through_many_kills() {
    let (_origin, mut s) = serving("");
    let mut all: Vec<Client> = (0..300).map(|_| s.client()).collect();
    for round in 0..4 {
        for (n, c) in all.iter_mut().enumerate() {
            assert_eq!(c.get(&format!("/{n}")).unwrap().text(), format!("/{n}"), "in round {round}");
        }
        s.kill("server", SIGKILL);
    }
    s.stop();
}

#[test]
fn half_a_head_is_kept() {
    let (origin, mut s) = serving("");
    let mut c = s.client();
    c.get("/before").unwrap();
    c.send("GET /half HTTP/1.1\r\nHost: t").unwrap();
    // a request on another connection that the same server has answered: it has surely read the half by now, or the
    // kernel has it still; both must do
    s.get("/other");
    s.kill("server", SIGKILL);
    c.send("est\r\n\r\n").unwrap();
    assert_eq!(c.read().unwrap().text(), "/half");
    assert_eq!(origin.seen("GET /half"), 1);
    s.stop();
}

#[test]
fn a_safe_request_in_progress_is_asked_again() {
    // through the HTTP library, and without it
    for more in ["", "[server.cache]\nmemory = \"0\"\n"] {
        let (origin, mut s) = serving(more);
        let mut c = s.client();
        c.send("GET /held HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
        origin.wait_seen("GET /held", 1);
        s.kill("server", SIGKILL);
        origin.wait_seen("GET /held", 2);
        origin.release();
        assert_eq!(c.read().unwrap().text(), "/held");
        assert_eq!(c.get("/after").unwrap().text(), "/after");
        s.stop();
    }
}

#[test]
fn a_forwarded_post_gets_502_and_is_never_sent_twice() {
    let (origin, mut s) = serving("");
    let mut c = s.client();
    c.send("POST /held HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\nhello").unwrap();
    origin.wait_seen("POST /held", 1);
    s.kill("server", SIGKILL);
    let answer = c.read().unwrap();
    assert_eq!(answer.code, 502, "{answer:?}");
    assert!(answer.head.to_ascii_lowercase().contains("connection: close"), "{answer:?}");
    origin.release();
    assert_eq!(s.get("/after").code, 200);
    assert_eq!(origin.seen("POST /held"), 1);
    s.stop();
}

#[test]
fn a_post_whose_body_is_still_coming_is_sent_once_and_whole() {
    let (origin, mut s) = serving("");
    let mut c = s.client();
    // the head alone, so that nothing has been forwarded when the server dies
    c.send("POST /p HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r").unwrap();
    s.get("/other");
    s.kill("server", SIGKILL);
    c.send("\n\r\n0123456789").unwrap();
    assert_eq!(c.read().unwrap().text(), "/p");
    assert_eq!(origin.bodies(), [b"0123456789".to_vec()]);
    s.stop();
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (origin, mut s) = serving("");
    let mut c = s.client();
    let all: String =
        ["/held", "/two", "/three"].map(|p| format!("GET {p} HTTP/1.1\r\nHost: t\r\n\r\n")).concat();
    c.send(&all).unwrap();
    origin.wait_seen("GET /held", 1);
    s.kill("server", SIGKILL);
    origin.wait_seen("GET /held", 2);
    origin.release();
    for path in ["/held", "/two", "/three"] {
        assert_eq!(c.read().unwrap().text(), path);
    }
    s.stop();
}

/// How the big body is asked for: the version of HTTP, fields, and which bytes of it come.
const PARTS: [(&str, &str, std::ops::Range<usize>); 6] = [
    ("1.1", "", 0..BIG),
    ("1.0", "", 0..BIG),
    ("1.1", "Range: bytes=0-15999999\r\n", 0..16_000_000),
    ("1.1", "Range: bytes=1000-15999999\r\n", 1000..16_000_000),
    ("1.1", "Range: bytes=1000-\r\n", 1000..BIG),
    ("1.0", "Range: bytes=1000-\r\n", 1000..BIG),
];

/// What came of an answer that was cut in the middle.
struct Came {
    stream: TcpStream,
    head: String,
    body: Vec<u8>,
    whole: bool,
}

impl Came {
    /// All of it is what there was from this position on, when it was begun.
    fn is_right(&self, from: usize) -> bool {
        self.body.iter().zip(from..).all(|(b, at)| *b == big(at))
    }
}

/// Begins to read a big answer, kills the server in the middle, and reads on.
fn cut_in_the_middle(s: &Suite, path: &str, version: &str, fields: &str, meanwhile: impl FnOnce()) -> Came {
    let mut stream = TcpStream::connect(s.addr()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    write!(stream, "GET {path} HTTP/{version}\r\nHost: t\r\n{fields}\r\n").unwrap();
    // enough that the answer has begun, little enough that the rest is not in buffers
    let mut body = vec![0; 100 << 10];
    stream.read_exact(&mut body).unwrap();
    meanwhile();
    s.kill("server", SIGKILL);
    let end = body.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let head = String::from_utf8(body.drain(..end).collect()).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(BIG);
    let mut part = [0; 64 << 10];
    while body.len() < length {
        match stream.read(&mut part) {
            Ok(0) | Err(_) => break,
            Ok(n) => body.extend(&part[..n]),
        }
    }
    let whole = body.len() == length;
    Came { stream, head, body, whole }
}

#[test]
fn a_begun_answer_goes_on_at_the_byte_if_it_can_be_told_to_be_the_same() {
    for more in ["", "[server.cache]\nmemory = \"0\"\n"] {
        let (origin, mut s) = serving(more);
        for (n, (version, fields, range)) in PARTS.into_iter().enumerate() {
            let mark = s.mark();
            let path = format!("/big?etag={n}");
            let mut came = cut_in_the_middle(&s, &path, version, fields, || ());
            let what =
                format!("HTTP/{version} {fields:?} {more:?}: {} bytes, {}", came.body.len(), came.head);
            let status = if fields.is_empty() { "200" } else { "206" };
            assert!(came.head.starts_with(&format!("http/{version} {status} ")), "{what}");
            assert!(came.whole && came.body.len() == range.len(), "{what}");
            assert!(came.is_right(range.start), "a byte is wrong: {what}");
            assert_eq!(origin.seen(&format!("GET {path}")), 2, "{what}");
            s.wait(mark, &["event=took-over", "continued=1"]);
            // and not a byte more
            if version == "1.1" {
                write!(came.stream, "GET /after HTTP/1.0\r\n\r\n").unwrap();
            }
            let mut rest = String::new();
            came.stream.read_to_string(&mut rest).unwrap();
            let after = rest.starts_with("HTTP/1.0 200 ") && rest.ends_with("/after");
            assert!(if version == "1.1" { after } else { rest.is_empty() }, "{what}, then {rest}");
        }
        s.stop();
    }
}

/// While the client reads nothing, nothing more is written, however many servers die: that is no sign that it kills them.
#[test]
fn a_client_that_reads_slowly_is_no_suspect() {
    let (_origin, mut s) = serving("threads = 1\n[server.cache]\nmemory = \"0\"\n");
    let mut slow = TcpStream::connect(s.addr()).unwrap();
    slow.set_read_timeout(Some(LONG)).unwrap();
    write!(slow, "GET /big?etag=slow HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").unwrap();
    let whole = |path: &str| {
        let answer = s.get(path);
        assert_eq!((answer.code, answer.body.len()), (200, BIG));
    };
    for n in 0..4 {
        // whole ones on the same thread: meanwhile the other has come to where it waits
        (0..2).for_each(|_| whole(&format!("/big?etag={n}")));
        s.kill("server", SIGKILL);
    }
    let mut all = Vec::new();
    slow.read_to_end(&mut all).unwrap();
    let body = all.split_off(all.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4);
    assert_eq!(body.len(), BIG, "cut");
    assert!(body.iter().enumerate().all(|(at, b)| *b == big(at)), "a byte is wrong");
    s.stop();
}

#[test]
fn a_begun_answer_to_which_there_is_another_one_now_is_cut_and_never_mixed() {
    for (version, fields, range) in PARTS {
        let (origin, mut s) = serving("");
        let came = cut_in_the_middle(&s, "/big?etag", version, fields, || origin.change());
        let what = format!("HTTP/{version} {fields:?}: {} bytes, {}", came.body.len(), came.head);
        assert!(!came.whole, "{what}");
        assert!(came.is_right(range.start), "of two answers: {what}");
        assert_eq!(origin.seen("GET /big?etag"), 2, "{what}");
        s.stop();
    }
}

#[test]
fn a_begun_answer_without_a_validator_or_a_length_is_cut_and_never_wrong() {
    let (_origin, mut s) = serving("");
    for (version, fields, range) in PARTS {
        let mark = s.mark();
        let came = cut_in_the_middle(&s, "/big", version, fields, || ());
        assert!(!came.whole, "HTTP/{version} {fields:?}: {} bytes", came.body.len());
        assert!(came.is_right(range.start), "HTTP/{version} {fields:?}: a byte is wrong");
        s.wait(mark, &["event=took-over", "answer_cut=1"]);
    }
    assert!(!cut_in_the_middle(&s, "/chunked", "1.1", "", || ()).whole);
    s.stop();
}

#[test]
fn a_poisonous_request_is_found_out_and_the_others_are_served() {
    let mut s = Suite::serving("");
    s.wait(0, &["event=standby-ready"]);
    let token = std::fs::read_to_string(s.run_dir().join("heartbeat.token")).unwrap();
    let mut other = s.client();
    other.get("/").unwrap();
    let mark = s.mark();
    let mut poison = s.client();
    poison
        .send(&format!(
            "GET /.traffic/heartbeat?abort HTTP/1.1\r\nHost: t\r\ntraffic-heartbeat: {token}\r\n\r\n"
        ))
        .unwrap();
    let answer = poison.read().unwrap();
    assert_eq!(answer.code, 502);
    let line = s.wait(mark, &["event=suspect"]);
    assert!(line.contains("/.traffic/heartbeat?abort"), "{line}");
    assert_eq!(other.get("/").unwrap().code, 200);
    assert_eq!(s.get("/").code, 200);
    // to a HEAD nothing but a head is answered
    let mut poison = TcpStream::connect(s.addr()).unwrap();
    poison.set_read_timeout(Some(LONG)).unwrap();
    let fields = format!("Host: t\r\ntraffic-heartbeat: {token}\r\n\r\n");
    write!(poison, "HEAD /.traffic/heartbeat?abort HTTP/1.1\r\n{fields}").unwrap();
    let mut answer = String::new();
    poison.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    s.stop();
}

#[test]
fn manager_and_server_killed_together_cost_no_connection() {
    let (_origin, mut s) = serving("");
    let mut c = s.client();
    for n in 0..3 {
        assert_eq!(
            c.get("/x").unwrap_or_else(|e| panic!("{e}\n{}", s.log.text())).text(),
            "/x",
            "in round {n}"
        );
        let mark = s.mark();
        s.kill("manager", SIGKILL);
        s.kill("server", SIGKILL);
        s.wait(mark, &["event=ready"]);
    }
    assert_eq!(c.get("/x").unwrap_or_else(|e| panic!("{e}\n{}", s.log.text())).text(), "/x");
    s.stop();
}

#[test]
fn a_manager_that_was_replaced_still_hands_everything_on() {
    let (_origin, mut s) = serving("");
    let mut c = s.client();
    c.get("/x").unwrap();
    let mark = s.mark();
    s.kill("manager", SIGKILL);
    s.wait(mark, &["traffic_manager", "event=adopt of=server"]);
    s.kill("server", SIGKILL);
    assert_eq!(c.get("/x").unwrap().text(), "/x");
    s.kill("server", SIGKILL);
    assert_eq!(c.get("/x").unwrap().text(), "/x");
    s.stop();
}

#[test]
fn a_new_cop_is_given_what_is_needed_for_that() {
    let (_origin, mut s) = serving(TIGHT);
    let mut c = s.client();
    c.get("/x").unwrap();
    s.kill("cop", SIGKILL);
    let mark = s.mark();
    s.start();
    s.wait(mark, &["event=new-cop"]);
    common::jobs::until_kept(&s);
    let mark = s.mark();
    s.kill("manager", SIGKILL);
    s.kill("server", SIGKILL);
    s.wait(mark, &["event=ready"]);
    assert_eq!(c.get("/x").unwrap().text(), "/x");
    s.stop();
}

#[test]
fn a_stopped_server_costs_a_pause_and_no_connection() {
    let (origin, mut s) = serving(TIGHT);
    let (mut idle, mut busy) = (s.client(), s.client());
    idle.get("/x").unwrap();
    busy.send("GET /held HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    origin.wait_seen("GET /held", 1);
    s.kill("server", SIGSTOP);
    origin.wait_seen("GET /held", 2);
    origin.release();
    assert_eq!(busy.read().unwrap().text(), "/held");
    assert_eq!(idle.get("/x").unwrap().text(), "/x");
    s.stop();
}

#[test]
fn without_a_standby_it_only_takes_longer() {
    let origin = Origin::start();
    let mut s = Suite::new("");
    s.write_config(&format!("[server]\nlisten = [\"127.0.0.1:0\"]\nstandby = false\n{}", origin.route()));
    s.start();
    let mut c = s.client();
    c.get("/x").unwrap();
    s.kill("server", SIGKILL);
    assert_eq!(c.get("/x").unwrap().text(), "/x");
    assert!(!s.log.text().contains("standby"));
    s.stop();
}

#[test]
fn without_continuity_a_kill_costs_the_connection_and_nothing_else() {
    let mut s = Suite::new("");
    s.write_config("[server]\nlisten = [\"127.0.0.1:0\"]\ncontinuity = false\n");
    s.start();
    let mut c = s.client();
    c.get("/").unwrap();
    s.kill("server", SIGKILL);
    assert!(c.get("/").is_err());
    assert_eq!(s.get("/").code, 200);
    s.stop();
}

/// The kernel counts no bytes of a Unix socket: between a write and its record nobody can tell whether the answer is out,
/// and such a connection is closed. All others go on.
#[test]
fn clients_of_a_unix_socket_go_on_or_are_closed_cleanly() {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    let origin = Origin::start();
    let mut s = Suite::new("");
    let path = s.path("http.sock");
    s.write_config(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\", \"unix:{}\"]\n{}",
        path.display(),
        origin.route()
    ));
    s.start();
    let ask = |c: &mut UnixStream| -> std::io::Result<Vec<u8>> {
        c.write_all(b"GET /u HTTP/1.1\r\nHost: t\r\n\r\n")?;
        let mut got = Vec::new();
        while !got.ends_with(b"\r\n\r\n/u") {
            let mut part = [0; 1024];
            match c.read(&mut part)? {
                0 => return Ok(got),
                n => got.extend(&part[..n]),
            }
        }
        Ok(got)
    };
    let mut went_on = 0;
    for _ in 0..10 {
        let mut c = UnixStream::connect(&path).unwrap();
        c.set_read_timeout(Some(LONG)).unwrap();
        assert!(ask(&mut c).unwrap().starts_with(b"HTTP/1.1 200"));
        s.get("/other");
        s.kill("server", SIGKILL);
        match ask(&mut c) {
            Ok(got) if got.is_empty() => {}
            Ok(got) => {
                assert!(got.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&got));
                went_on += 1;
            }
            Err(e) => {
                use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
                assert!([BrokenPipe, ConnectionReset].contains(&e.kind()), "{e}");
            }
        }
    }
    assert!(went_on > 0);
    s.stop();
}

#[test]
fn every_interruption_has_its_record() {
    let (_origin, mut s) = serving("");
    let mut c = s.client();
    c.get("/x").unwrap();
    let mark = s.mark();
    let dead = s.kill("server", SIGKILL);
    c.get("/x").unwrap();
    let line = s.wait(mark, &["event=incident of=server"]);
    for part in [&format!("pid={dead}") as &str, "SIGKILL", "takeover_ms=", "resumed=1"] {
        assert!(line.contains(part), "{line}");
    }
    let status = expect_code(&s.run(MANAGER, &["status"]), 0);
    let v: serde_json::Value = serde_json::from_str(status.trim()).unwrap();
    assert_eq!(v["incidents"]["count"], 1);
    let last = &v["incidents"]["last"][0];
    assert_eq!((last["pid"].as_i64(), last["connections"]["resumed"].as_u64()), (Some(dead.into()), Some(1)));
    s.stop();
}

#[test]
fn metrics_are_what_prometheus_reads_and_survive_the_manager() {
    let (_origin, mut s) = serving("[manager]\nadmin = \"127.0.0.1:0\"\n");
    let metrics = |s: &Suite, mark: usize| {
        let line = s.wait(mark, &["event=admin listen="]);
        let addr = line.rsplit('=').next().unwrap().parse().unwrap();
        let get = |path: &str| Client::connect(addr).unwrap().get(path).unwrap();
        assert_eq!(get("/healthz").code, 200);
        let mut post = Client::connect(addr).unwrap();
        post.send("POST /restart HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n").unwrap();
        assert_eq!(post.read().unwrap().code, 405, "read-only");
        get("/metrics").text()
    };
    assert_eq!(Client::connect(s.addr()).unwrap().get("/page").unwrap().code, 200);
    let text = metrics(&s, 0);
    assert!(text.contains("traffic_server_told 1\n"), "{text}");
    assert!(text.contains("traffic_requests_total{route=\"*/\",outcome=\"miss\"} 1\n"), "{text}");
    let mut typed = std::collections::HashSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let known = ["gauge", "counter", "histogram"].contains(&kind);
            assert!(known && typed.insert(name.to_owned()), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            if kind == "histogram" {
                typed.extend(["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")));
            }
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(typed.contains(name.split('{').next().unwrap()), "{line} has no type before it");
        }
    }
    assert!(text.contains("traffic_server_up 1\n"), "{text}");
    let mark = s.mark();
    s.kill("manager", SIGKILL);
    assert!(metrics(&s, mark).contains("traffic_server_up 1\n"));
    s.stop();
}

#[test]
fn heads_half_closed_clients_and_expectations_go_on() {
    let (origin, mut s) = serving("");
    // a HEAD has no body on the wire, whatever its Content-Length says
    let mut head = s.client();
    head.send("HEAD /held-head HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    // a client that has said that it will send no more still waits for its answer
    let half = TcpStream::connect(s.addr()).unwrap();
    half.set_read_timeout(Some(LONG)).unwrap();
    std::io::Write::write_all(&mut &half, b"GET /held-half HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    half.shutdown(std::net::Shutdown::Write).unwrap();
    // one that waits for leave to send its body; it may be given twice
    let mut expects = s.client();
    expects.send("POST /e HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n").unwrap();
    origin.wait_seen("HEAD /held-head", 1);
    origin.wait_seen("GET /held-half", 1);
    s.kill("server", SIGKILL);
    origin.wait_seen("HEAD /held-head", 2);
    origin.wait_seen("GET /held-half", 2);
    origin.release();
    assert_eq!(head.read_head().unwrap().code, 200);
    assert_eq!(head.get("/next").unwrap().text(), "/next");
    let mut got = Vec::new();
    (&half).read_to_end(&mut got).unwrap();
    assert!(got.ends_with(b"\r\n\r\n/held-half"), "{}", String::from_utf8_lossy(&got));
    expects.send("abc").unwrap();
    let mut answer = expects.read_head().unwrap();
    while answer.code == 100 {
        answer = expects.read_head().unwrap();
    }
    // forwarded before the kill it is 502; else it is carried out
    match answer.code {
        200 => assert_eq!(origin.bodies(), [b"abc".to_vec()]),
        code => assert_eq!((code, origin.seen("POST /e") <= 1), (502, true)),
    }
    s.stop();
}
