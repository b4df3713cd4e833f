//! Requests and answers of a form that few have, and servers that die meanwhile: each request is carried out once, and each byte of an
//! answer comes once and in its place.

mod common;

use common::origin::{BIG, big};
use common::*;
use rustix::net::{SendFlags, send};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// An origin that says what `answer` makes of a request's head: first, and when it has read the request's body.
struct Origin {
    addr: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Origin {
    fn start(answer: impl Fn(&str) -> [Vec<u8>; 2] + Send + Sync + 'static) -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let (seen, answer) = (heads.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, answer) = (seen.clone(), answer.clone());
                std::thread::spawn(move || while serve(&stream, &seen, &*answer).is_some() {});
            }
        });
        Origin { addr, heads }
    }

    fn suite(&self, more: &str) -> Suite {
        let route = format!("[[route]]\nhost = \"*\"\nprefix = \"/\"\norigin = [\"http://{}\"]\n", self.addr);
        let suite = Suite::serving(&format!("{more}{route}"));
        suite.wait(0, &["event=standby-ready"]);
        suite
    }

    /// How many requests began like this.
    fn seen(&self, what: &str) -> usize {
        self.heads.lock().unwrap().iter().filter(|h| h.starts_with(what)).count()
    }
}

fn serve(
    mut stream: &TcpStream,
    seen: &Mutex<Vec<String>>,
    answer: impl Fn(&str) -> [Vec<u8>; 2],
) -> Option<()> {
    let mut from = BufReader::with_capacity(1, stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        from.read_line(&mut head).ok().filter(|n| *n > 0)?;
    }
    let length =
        head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    seen.lock().unwrap().push(head.clone());
    let [first, then] = answer(&head);
    stream.write_all(&first).ok()?;
    from.read_exact(&mut vec![0; length.unwrap_or(0)]).ok()?;
    stream.write_all(&then).ok()
}

/// An answer with the path as its body, before the request's body has come.
fn path(head: &str) -> [Vec<u8>; 2] {
    let path = head.split(' ').nth(1).unwrap();
    [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len()).into_bytes(), Vec::new()]
}

/// What an origin says that wants the body.
const LEAVE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Kills the server, or has it replaced, and waits until the next one has taken over.
fn follow(s: &mut Suite, kill: bool) {
    let (server, mark) = (s.pid("server"), s.mark());
    match kill {
        true => drop(s.kill("server", SIGKILL)),
        false => drop(expect_code(&s.run(MANAGER, &["restart"]), 0)),
    }
    s.until("there's another one", || s.try_pid("server").is_some_and(|pid| pid != server));
    s.wait(mark, &["event=standby-ready"]);
}

/// A client sends this POST by `ask`, and the server is followed by another one: killed, and replaced in order. The POST is sent once,
/// and the connection goes on.
fn is_sent_once(origin: &Origin, post: &str, ask: impl Fn(&mut Client)) {
    let mut s = origin.suite("");
    for kill in [true, false] {
        let mut c = s.client();
        let before = origin.seen(post);
        ask(&mut c);
        follow(&mut s, kill);
        assert_eq!(c.get("/next").unwrap().text(), "/next", "kill {kill}");
        assert_eq!(origin.seen(post), before + 1, "kill {kill}");
    }
    s.stop();
}

#[test]
fn an_answer_with_trailers_keeps_its_connection() {
    let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n";
    let origin =
        Origin::start(|head| if head.contains(" /t ") { [answer.to_vec(), Vec::new()] } else { path(head) });
    let mut s = origin.suite("threads = 1\n");
    for fields in ["", "TE: trailers\r\nConnection: te\r\n"] {
        let mut stream = TcpStream::connect(s.addr()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        for _ in 0..2 {
            write!(stream, "GET /t HTTP/1.1\r\nHost: t\r\n{fields}\r\n").unwrap();
            let mut got = String::new();
            let mut from = BufReader::new(&stream);
            while !got.ends_with("\r\n0\r\n\r\n") && !got.ends_with("\r\n0\r\nx-sum: 1\r\n\r\n") {
                assert!(from.read_line(&mut got).unwrap() > 0, "{got}");
            }
            assert!(got.contains("\r\n3\r\nabc\r\n"), "{got}");
        }
        // also for the next server it is between two requests; by then this one has noted it
        assert_eq!(s.get("/y").text(), "/y");
        follow(&mut s, true);
        write!(stream, "GET /x HTTP/1.0\r\n\r\n").unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).unwrap();
        assert!(got.ends_with("\r\n\r\n/x"), "{got}");
    }
    s.stop();
}

#[test]
fn an_answer_together_with_leave_to_send_the_body_is_an_answer() {
    // an origin that needs no body
    let origin = Origin::start(|head| match head.to_ascii_lowercase().contains("expect:") {
        true => path(head).map(|answer| if answer.is_empty() { answer } else { [LEAVE, &answer].concat() }),
        false => path(head),
    });
    is_sent_once(&origin, "POST /pay", |c| {
        c.send("POST /pay HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n").unwrap();
        assert_eq!(c.read_head().unwrap().code, 100);
        assert_eq!(c.read().unwrap().text(), "/pay");
        c.send("abc").unwrap();
        // read by the same thread as the body before it
        assert_eq!(c.get("/between").unwrap().text(), "/between");
    });
}

#[test]
fn leave_to_send_a_body_is_not_given_in_the_middle_of_an_answer() {
    let origin = Origin::start(|_| {
        let head = format!("HTTP/1.1 200 OK\r\nETag: \"one\"\r\nContent-Length: {BIG}\r\n\r\n");
        [LEAVE.to_vec(), head.into_bytes().into_iter().chain((0..BIG).map(big)).collect()]
    });
    let mut s = origin.suite("");
    let mut stream = TcpStream::connect(s.addr()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    write!(
        stream,
        "GET /q HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    )
    .unwrap();
    let mut leave = [0; 25];
    stream.read_exact(&mut leave).unwrap();
    assert_eq!(leave, LEAVE);
    write!(stream, "abc").unwrap();
    let mut all = vec![0; 100 << 10];
    stream.read_exact(&mut all).unwrap();
    s.kill("server", SIGKILL);
    stream.read_to_end(&mut all).unwrap();
    let body = all.split_off(all.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4);
    let wrong = body.iter().enumerate().find(|(at, b)| **b != big(*at));
    assert_eq!((wrong, body.len()), (None, BIG));
    s.stop();
}

#[test]
fn empty_lines_before_a_request_are_none_of_it() {
    is_sent_once(&Origin::start(path), "POST /pay", |c| {
        c.send("\r\n\r\nPOST /pay HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n").unwrap();
        assert_eq!(c.read().unwrap().text(), "/pay");
    });
}

#[test]
fn a_connection_whose_request_was_answered_before_it_had_all_come_goes_on() {
    is_sent_once(&Origin::start(path), "POST /early", |c| {
        c.send("POST /early HTTP/1.1\r\nHost: t\r\nContent-Length: 6\r\n\r\nabc").unwrap();
        assert_eq!(c.read().unwrap().text(), "/early");
        c.send("def").unwrap();
        assert_eq!(c.get("/between").unwrap().text(), "/between");
    });
}

/// A byte that is sent as urgent counts as read before anybody has read it, were it not in line.
#[test]
fn urgent_bytes_bring_nobody_what_is_anothers() {
    let origin = Origin::start(path);
    let mut s = origin.suite("threads = 1\n");
    let mut victim = s.client();
    let secret = "s".repeat(400);
    victim
        .send(&format!("POST /victim HTTP/1.1\r\nHost: t\r\nCookie: {secret}\r\nContent-Length: 0\r\n\r\n"))
        .unwrap();
    assert_eq!(victim.read().unwrap().text(), "/victim");
    let mut stream = TcpStream::connect(s.addr()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.set_nodelay(true).unwrap();
    write!(stream, "GET /a HTTP/1.1\r\nHost: t\r\nConnection: close\r\nX-Mine: ").unwrap();
    for _ in 0..100 {
        send(&stream, b"!", SendFlags::OOB).unwrap();
        write!(stream, "z").unwrap();
    }
    // on the same thread: the other has been read by then, as far as it has come
    assert_eq!(victim.get("/after").unwrap().text(), "/after");
    follow(&mut s, true);
    write!(stream, "\r\nX-End: 1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("/a"), "{answer}");
    let heads = origin.heads.lock().unwrap();
    let mine = heads.iter().find(|h| h.starts_with("GET /a ")).unwrap().to_ascii_lowercase();
    assert!(mine.contains(&format!("x-mine: {}\r\n", "!z".repeat(100))), "{mine}");
    assert!(!mine.contains(&secret) && mine.contains("x-end: 1"), "{mine}");
    drop(heads);
    s.stop();
}

/// To a client of HTTP/1.0 the end of the connection says that all of the answer is there.
#[test]
fn an_answer_without_a_length_that_breaks_off_does_not_end_like_a_whole_one() {
    let origin = Origin::start(|head| {
        let begin = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        let chunk = [format!("{BIG:x}\r\n").into_bytes(), vec![b'x'; BIG], b"\r\n".to_vec()].concat();
        match head.contains(" /broken ") {
            // no chunk begins like that
            true => [begin, b"5\r\nhello\r\nzz".to_vec()],
            false => [begin, [chunk, b"0\r\n\r\n".to_vec()].concat()],
        }
    });
    let mut s = origin.suite("");
    // where there are chunks, the missing last one says it, and nothing that was on its way is taken back
    let mut chunks = TcpStream::connect(s.addr()).unwrap();
    chunks.set_read_timeout(Some(LONG)).unwrap();
    write!(chunks, "GET /broken HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    let mut all = Vec::new();
    chunks.read_to_end(&mut all).unwrap();
    assert!(all.ends_with(b"\r\n\r\n5\r\nhello\r\n"), "{}", String::from_utf8_lossy(&all));
    for (path, kill) in [("/broken", false), ("/long", true)] {
        let mut stream = TcpStream::connect(s.addr()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: t\r\n\r\n").unwrap();
        let mut all = vec![0; 10];
        stream.read_exact(&mut all).unwrap();
        if kill {
            s.kill("server", SIGKILL);
        }
        let end = stream.read_to_end(&mut all);
        assert!(all.starts_with(b"HTTP/1.0 200") && all.len() < BIG, "{path}");
        assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "{path}");
    }
    s.stop();
}
