//! What an idle keep-alive connection costs in memory: parked in the engine, and held by hyper on the engine and on tokio.

use crate::hello::Server;
use crate::table::{Goal, Sample, Table};
use std::io::{Read, Write};
use std::net::TcpStream;

/// As many as descriptors allow, with some to spare.
fn connections() -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    (hard as usize).saturating_sub(500).min(20_000)
}

pub fn measure(table: &mut Table) {
    let count = connections();
    let parked = per_connection("parked", count);
    let engine = per_connection("engine", count);
    let tokio = per_connection("tokio", count);
    let what = format!("one of {count} idle connections, parked in the engine with its timeout");
    table.row(&what, "bytes", parked, Goal::AtMost(2048.0), None);
    table.row("the same, held by hyper", "bytes", engine, Goal::None, Some(("hyper on tokio", tokio)));
}

/// Growth of the server's resident memory, each connection having had one answer.
fn per_connection(kind: &str, count: usize) -> Sample {
    let server = Server::start(kind, true);
    let mut first = answered(server.port);
    let before = resident(server.pid());
    let all: Vec<TcpStream> = (1..count).map(|_| answered(server.port)).collect();
    ask(&mut first);
    let each = (resident(server.pid()) - before) / all.len() as f64;
    Sample { median: each, least: each, most: each }
}

fn answered(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    ask(&mut stream);
    stream
}

fn ask(stream: &mut TcpStream) {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n").expect("to ask");
    assert!(stream.read(&mut [0; 1024]).expect("an answer") > 0);
}

/// Resident memory of a process in bytes.
fn resident(pid: u32) -> f64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("statm");
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<f64>().ok()).expect("pages") * 4096.0
}
