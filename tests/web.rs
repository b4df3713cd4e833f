//! What the suite's HTTP does with the programs around it: tunnels that die, the log, what the manager tells.

mod common;

use common::origin::Origin;
use common::*;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// A server that agrees to every change of protocol, and then says what it hears.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut buf = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut buf) {
                    let agreed =
                        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
                    let said = if buf.starts_with(b"GET /") { &agreed[..] } else { &buf[..n] };
                    stream.write_all(said).unwrap();
                }
            });
        }
    });
    addr
}

/// Reads until `end` has come.
fn read_until(stream: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let (mut got, mut byte) = (Vec::new(), [0]);
    while !got.ends_with(end) {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&got));
        got.push(byte[0]);
    }
    got
}

fn tunnel(s: &Suite, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(s.addr()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let head = read_until(&mut stream, b"\r\n\r\n");
    assert!(head.starts_with(b"HTTP/1.1 101") || head.starts_with(b"HTTP/1.1 200"));
    stream.write_all(b"ping").unwrap();
    read_until(&mut stream, b"ping");
    stream
}

/// The other side closes within the deadline.
fn ends(mut stream: TcpStream) -> bool {
    match stream.read(&mut [0; 16]) {
        Ok(n) => n == 0,
        Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn tunnels_end_with_a_killed_server_and_nothing_else_does() {
    let there = echo();
    let mut s = Suite::serving(&format!(
        "[server.forward]\nclients = [\"127.0.0.1\"]\nprivate = true\nconnect_ports = [{}]\n\
         [[route]]\norigin = \"http://{there}\"\n",
        there.port()
    ));
    s.wait(0, &["event=standby-ready"]);
    let chat =
        tunnel(&s, "GET /chat HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    let led = tunnel(&s, &format!("CONNECT {there} HTTP/1.1\r\nHost: {there}\r\n\r\n"));
    let mut idle = Client::connect(s.addr()).unwrap();
    idle.send("OPTIONS * HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    assert_eq!(idle.read().unwrap().code, 200);
    s.kill("server", SIGKILL);
    assert!(ends(chat) && ends(led));
    idle.send("OPTIONS * HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    assert_eq!(idle.read().unwrap().code, 200, "on the same connection");
    s.stop();
}

#[test]
fn tunnels_outlive_a_restart_for_a_while() {
    let there = echo();
    let mut s = Suite::serving(&format!("[[route]]\norigin = \"http://{there}\"\n"));
    s.wait(0, &["event=standby-ready"]);
    let mut chat =
        tunnel(&s, "GET /chat HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    expect_code(&s.run(MANAGER, &["restart"]), 0);
    chat.write_all(b"pong").unwrap();
    read_until(&mut chat, b"pong");
    // until drain_timeout
    assert!(ends(chat));
    s.stop();
}

#[test]
fn the_manager_tells_browsers_of_the_forward_proxy() {
    let script = |more: &str| {
        let mut s = Suite::serving(&format!("{more}[manager]\nadmin = \"127.0.0.1:0\"\n"));
        let line = s.wait(0, &["event=admin listen="]);
        let admin = line.rsplit('=').next().unwrap().parse().unwrap();
        let got = Client::connect(admin).unwrap().get("/proxy.pac").unwrap();
        let proxy = format!("PROXY {}; DIRECT", s.addr());
        s.stop();
        (got.code, got.text().contains(&proxy))
    };
    assert_eq!(script(""), (404, false));
    assert_eq!(script("[server.forward]\nclients = [\"127.0.0.0/8\"]\n"), (200, true));
}

#[test]
fn the_access_log_goes_on_through_kills_and_reloads() {
    let origin = Origin::start();
    let mut s = Suite::new(&format!("access_log = \"common\"\n{}", origin.route()));
    s.start();
    s.wait(0, &["event=standby-ready"]);
    let file = s.path("state").join("access.log");
    let wait_for_line =
        |line: &str| s.until(line, || std::fs::read_to_string(&file).unwrap_or_default().contains(line));
    let wait_for = |path: &str| wait_for_line(&format!("\"GET {path} HTTP/1.1\" 200"));
    let mut c = Client::connect(s.addr()).unwrap();
    c.get("/first").unwrap();
    wait_for("/first");
    s.kill("server", SIGKILL);
    c.get("/second").unwrap();
    wait_for("/second");
    c.send("POST /held HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\nhello").unwrap();
    origin.wait_seen("POST /held", 1);
    s.kill("server", SIGKILL);
    assert_eq!(c.read().unwrap().code, 502);
    wait_for_line("\"POST /held HTTP/1.1\" 502");
    origin.release();
    let mut c = Client::connect(s.addr()).unwrap();
    std::fs::rename(&file, s.path("rotated")).unwrap();
    c.get("/third").unwrap();
    wait_for("/third");
    c.get("/fourth").unwrap();
    // it is written before the old server ends, whenever that is
    expect_code(&s.run(MANAGER, &["reload"]), 0);
    wait_for("/fourth");
    let rotated = std::fs::read_to_string(s.path("rotated")).unwrap();
    assert!(rotated.contains("/first") && rotated.contains("/second") && !rotated.contains("/third"));
    s.stop();
}
