//! Out of descriptors: alone in its process, because the limit is the process's.

use engine::acceptor::{Acceptor, AcceptorConfig, AtLimit};
use engine::{Engine, GroupConfig};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(20);

fn serve(at_limit: AtLimit) -> (Engine, Acceptor, std::net::SocketAddr) {
    let engine = Engine::builder().group("net", GroupConfig::default()).start().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let h = engine.handle();
    let config =
        AcceptorConfig { listeners: vec![OwnedFd::from(listener)], at_limit, ..AcceptorConfig::default() };
    let acceptor = Acceptor::start(&h, h.group("net").unwrap(), config, |conn| async move {
        let (mut stream, _guard) = conn.into_stream().unwrap();
        stream.write_all(b"served").await.unwrap();
    })
    .unwrap();
    (engine, acceptor, addr)
}

/// Opens files until there is no descriptor left, keeping `spare` of them free.
fn use_up(spare: usize) -> Vec<File> {
    let mut files: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    files.truncate(files.len() - spare);
    files
}

fn hear(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    said
}

#[test]
fn it_pauses_or_refuses_and_goes_on_when_there_are_descriptors_again() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(128), maximum: limit.maximum }).unwrap();

    let (engine, acceptor, addr) = serve(AtLimit::Pause);
    let files = use_up(1);
    let mut waits = TcpStream::connect(addr).unwrap(); // takes the last one
    let until = Instant::now() + LONG;
    while acceptor.stats().out_of_fds == 0 {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
    assert_eq!(acceptor.stats().accepted, 0);
    // Pausing is not spinning.
    let before = acceptor.stats().out_of_fds;
    assert!(before < 100, "{before} attempts at accepting");
    drop(files);
    assert_eq!(hear(&mut waits), "served");
    drop(acceptor);
    drop(engine);

    let refuse = |fd: OwnedFd, _| drop(TcpStream::from(fd).write_all(b"busy"));
    let (engine, acceptor, addr) = serve(AtLimit::Refuse(Arc::new(refuse)));
    let files = use_up(1);
    assert_eq!(hear(&mut TcpStream::connect(addr).unwrap()), "busy");
    assert!(acceptor.stats().out_of_fds > 0 && acceptor.stats().refused == 1);
    drop(files);
    assert_eq!(hear(&mut TcpStream::connect(addr).unwrap()), "served");
    drop((acceptor, engine));
}
