//! Sockets and the acceptor, over real kernel sockets.

use engine::acceptor::{Acceptor, AcceptorConfig, AtLimit, ConnPlacement};
use engine::net::{Listener, Stream};
use engine::{Engine, GroupConfig, io::Async};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(20);

async fn echo(mut stream: Stream) -> std::io::Result<()> {
    let mut buf = [0; 512];
    loop {
        match stream.read(&mut buf).await? {
            0 => return stream.shutdown_write(),
            n => stream.write_all(&buf[..n]).await?,
        }
    }
}

#[test]
fn streams_connect_accept_and_carry_bytes_both_ways() {
    engine::block_on(async {
        let listener = Listener::try_from(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let server = engine::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            echo(stream).await.unwrap();
        });
        let mut client = Stream::connect_tcp(addr).await.unwrap();
        client.set_nodelay(true).unwrap();
        let sent: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let to_send = sent.clone();
        let mut got = Vec::new();
        let mut buf = [0; 4096];
        for chunk in to_send.chunks(1000) {
            client.write_all(chunk).await.unwrap();
            let n = client.read(&mut buf).await.unwrap();
            got.extend_from_slice(&buf[..n]);
        }
        client.shutdown_write().unwrap();
        loop {
            match client.read(&mut buf).await.unwrap() {
                0 => break,
                n => got.extend_from_slice(&buf[..n]),
            }
        }
        assert_eq!(got, sent);
        server.await.unwrap();
    });
}

#[test]
fn an_end_of_stream_that_comes_with_the_last_bytes_is_seen() {
    engine::block_on(async {
        let (a, mut b) = UnixStream::pair().unwrap();
        let mut a = Stream::try_from(a).unwrap();
        b.write_all(b"last").unwrap();
        drop(b);
        engine::yield_now().await;
        let mut buf = [0; 100];
        assert_eq!(a.read(&mut buf).await.unwrap(), 4);
        assert_eq!(a.read(&mut buf).await.unwrap(), 0);
    });
}

#[test]
fn a_failed_connect_says_why() {
    engine::block_on(async {
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = Stream::connect_tcp(addr).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_deregistered_fd_is_out_of_epoll_although_a_duplicate_lives() {
    engine::block_on(async {
        let (a, mut b) = UnixStream::pair().unwrap();
        // a number that no other test of this process gets
        let high = |fd: &UnixStream| rustix::io::fcntl_dupfd_cloexec(fd, 900).unwrap();
        let first = high(&a);
        let number = first.as_raw_fd();
        drop(Stream::try_from(UnixStream::from(first)).unwrap());
        // what epoll knows it by is the socket and the number that it had: with both again, the old registration would be met
        // if it lived, and this one fail with EEXIST
        let again = high(&a);
        assert_eq!(again.as_raw_fd(), number);
        let again = Async::new(again).unwrap();
        b.write_all(b"x").unwrap();
        again.readable().await.unwrap();
    });
}

fn engine() -> Engine {
    Engine::builder()
        .group("net", GroupConfig { threads: 2, ..GroupConfig::default() })
        .start()
        .expect("an engine")
}

fn start(engine: &Engine, config: AcceptorConfig) -> Acceptor {
    let h = engine.handle();
    Acceptor::start(&h, h.group("net").unwrap(), config, |conn| async move {
        let (stream, _guard) = conn.into_stream().unwrap();
        let _ = echo(stream).await;
    })
    .unwrap()
}

fn listener() -> (OwnedFd, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    (listener.into(), addr)
}

fn client(addr: std::net::SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

fn says(stream: &mut TcpStream, what: &[u8]) {
    stream.write_all(what).unwrap();
    let mut buf = vec![0; what.len()];
    stream.read_exact(&mut buf).unwrap();
    assert_eq!(buf, what);
}

/// A client that has all its requests in the socket already gets its answers, but nobody waits for all of them.
#[test]
fn a_pipelining_client_starves_nobody() {
    const LIMIT: u32 = 4;
    const REQUESTS: usize = 100;
    let local = engine::Local::new().unwrap();
    let stats = || local.handle().stats()[0].clone();
    let served = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let before = stats().yields;
    local.run(async {
        let mut clients = Vec::new();
        let mut tasks = Vec::new();
        for (name, requests) in [("greedy", REQUESTS), ("modest", 1)] {
            let (mut client, server) = UnixStream::pair().unwrap();
            client.write_all(&vec![b'?'; requests]).unwrap();
            clients.push(client);
            let mut server = Stream::try_from(server).unwrap();
            server.limit(Some(LIMIT));
            let served = served.clone();
            tasks.push(engine::spawn(async move {
                for _ in 0..requests {
                    assert_eq!(server.read(&mut [0]).await.unwrap(), 1);
                    server.write_all(b"!").await.unwrap();
                    served.borrow_mut().push(name);
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
    let served = served.borrow();
    let modest = served.iter().position(|name| *name == "modest").unwrap();
    assert!(modest <= LIMIT as usize, "it waited for {modest}");
    assert_eq!(served.len(), REQUESTS + 1);
    // Once less than its turns.
    assert_eq!(stats().yields - before, (REQUESTS as u64 - 1) / u64::from(LIMIT));
}

#[test]
fn a_connection_goes_where_its_placement_says() {
    for placement in [ConnPlacement::RoundRobin, ConnPlacement::FdModulo, ConnPlacement::LeastConnections] {
        let engine = engine();
        let (fd, addr) = listener();
        let config = AcceptorConfig { listeners: vec![fd], placement, ..AcceptorConfig::default() };
        let (tx, served) = std::sync::mpsc::channel();
        let h = engine.handle();
        let acceptor = Acceptor::start(&h, h.group("net").unwrap(), config, move |conn| {
            let thread = std::thread::current().name().unwrap().to_owned();
            tx.send((conn.fd.as_raw_fd() as usize, thread)).unwrap();
            async move { drop(echo(conn.into_stream().unwrap().0).await) }
        });
        let acceptor = acceptor.unwrap();
        let mut last = None;
        for n in 0..6 {
            let mut client = client(addr);
            says(&mut client, b"hello");
            let (fd, thread) = served.recv_timeout(LONG).unwrap();
            let expected = match placement {
                ConnPlacement::RoundRobin => n % 2,
                ConnPlacement::FdModulo => fd % 2,
                // The one before this lives on, all earlier ones have ended.
                ConnPlacement::LeastConnections => n % 2,
            };
            assert_eq!(thread, format!("net-{expected}"), "{placement:?}, connection {n}");
            drop(last.replace(client));
            let deadline = std::time::Instant::now() + LONG;
            while acceptor.connections() > 1 {
                assert!(std::time::Instant::now() < deadline, "a connection that does not end");
                std::thread::yield_now();
            }
        }
    }
}

#[test]
fn port_0_is_told_by_a_file() {
    let engine = engine();
    let dir = tempfile::tempdir().unwrap();
    let (fd, addr) = listener();
    let path = dir.path().join("socket");
    let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let config = AcceptorConfig { listeners: vec![fd, unix.into()], ..AcceptorConfig::default() };
    let acceptor = start(&engine, config);
    let file = dir.path().join("ports");
    engine::acceptor::write_port_file(&file, acceptor.bound()).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text, format!("{addr}\nunix:{}\n", path.display()));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "something was left behind");
    let told = text.lines().next().unwrap().parse().unwrap();
    says(&mut client(told), b"hello");
}

#[test]
fn every_way_of_accepting_serves() {
    for accept_threads in [0, 1, 2] {
        for placement in [ConnPlacement::RoundRobin, ConnPlacement::FdModulo, ConnPlacement::LeastConnections]
        {
            let engine = engine();
            let (fd, addr) = listener();
            let (fd6, addr6) = listener();
            let config = AcceptorConfig {
                listeners: vec![fd, fd6],
                accept_threads,
                placement,
                max_queue: 1,
                ..AcceptorConfig::default()
            };
            let acceptor = start(&engine, config);
            let mut clients: Vec<_> =
                (0..10).map(|n| client(if n % 2 == 0 { addr } else { addr6 })).collect();
            for client in &mut clients {
                says(client, b"hello");
            }
            assert_eq!(acceptor.connections(), 10);
            assert_eq!(acceptor.stats().accepted, 10);
            let numbers = engine.handle().stats();
            assert_eq!(numbers.iter().map(|t| t.connections).sum::<u64>(), 10);
            if accept_threads == 1 && placement == ConnPlacement::LeastConnections {
                let by_thread: Vec<_> = acceptor.connections_by_thread().iter().map(|t| t.1).collect();
                assert_eq!(by_thread.iter().sum::<usize>(), 10);
            }
            drop(clients);
            let report = engine.shutdown(LONG);
            assert!(report.drained);
            assert_eq!(acceptor.connections(), 0);
        }
    }
}

#[test]
fn at_the_limit_it_pauses_and_goes_on() {
    let engine = engine();
    let (fd, addr) = listener();
    let acceptor = start(
        &engine,
        AcceptorConfig { listeners: vec![fd], max_connections: 1, ..AcceptorConfig::default() },
    );
    let mut first = client(addr);
    says(&mut first, b"1");
    let mut second = client(addr); // in the backlog
    second.write_all(b"2").unwrap();
    says(&mut first, b"still alone");
    assert_eq!(acceptor.connections(), 1);
    drop(first);
    let mut buf = [0];
    second.read_exact(&mut buf).unwrap();
    acceptor.stop();
}

#[test]
fn at_the_limit_it_refuses_by_name() {
    let engine = engine();
    let (fd, addr) = listener();
    let refuse = Arc::new(|fd: OwnedFd, _| {
        let _ = TcpStream::from(fd).write_all(b"busy");
    });
    let config = AcceptorConfig {
        listeners: vec![fd],
        max_connections: 1,
        at_limit: AtLimit::Refuse(refuse),
        ..AcceptorConfig::default()
    };
    let acceptor = start(&engine, config);
    let mut first = client(addr);
    says(&mut first, b"1");
    let mut refused = String::new();
    client(addr).read_to_string(&mut refused).unwrap();
    assert_eq!(refused, "busy");
    assert_eq!(acceptor.stats().refused, 1);
    says(&mut first, b"1");
}

#[test]
fn unix_sockets_and_ipv6_are_accepted_like_any_other() {
    let engine = engine();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut listeners: Vec<OwnedFd> = vec![unix.into()];
    let v6 = TcpListener::bind("[::1]:0").ok(); // not everywhere
    let v6_addr = v6.as_ref().map(|l| l.local_addr().unwrap());
    listeners.extend(v6.map(OwnedFd::from));
    let acceptor = start(&engine, AcceptorConfig { listeners, ..AcceptorConfig::default() });
    let mut unix = UnixStream::connect(&path).unwrap();
    unix.set_read_timeout(Some(LONG)).unwrap();
    unix.write_all(b"unix").unwrap();
    let mut buf = [0; 4];
    unix.read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"unix");
    if let Some(addr) = v6_addr {
        says(&mut client(addr), b"six");
    }
    acceptor.stop();
}

#[test]
fn what_is_dropped_on_another_thread_is_forgotten_at_home() {
    let engine = engine();
    let h = engine.handle();
    let threads = h.threads(h.group("net").unwrap());
    let (tx, rx) = std::sync::mpsc::channel();
    h.spawn_on(threads[0], move || async move {
        let (a, b) = UnixStream::pair().unwrap();
        tx.send((Stream::try_from(a).unwrap(), b)).unwrap();
    });
    let (mut stream, _other) = rx.recv_timeout(LONG).unwrap();
    assert_eq!(h.stats()[0].sources, 1);
    // Using it away from its thread is an error, not a hang.
    engine::block_on(async move {
        let mut buf = [0];
        assert!(stream.read(&mut buf).await.is_err());
    });
    // nobody is woken for that alone: it is forgotten in a round, and told of in one after it
    let deadline = std::time::Instant::now() + LONG;
    while h.stats()[0].sources > 0 {
        assert!(std::time::Instant::now() < deadline, "a source of nobody's");
        let (tx, rx) = std::sync::mpsc::channel();
        h.spawn_on(threads[0], move || async move { tx.send(()).unwrap() });
        rx.recv_timeout(LONG).unwrap();
    }
}

#[test]
fn connections_in_progress_end_with_the_deadline() {
    let engine = engine();
    let (fd, addr) = listener();
    let acceptor = start(&engine, AcceptorConfig { listeners: vec![fd], ..AcceptorConfig::default() });
    let mut stays = client(addr);
    says(&mut stays, b"x");
    let report = engine.shutdown(Duration::from_millis(5));
    assert!(!report.drained);
    assert_eq!(stays.read(&mut [0]).unwrap(), 0, "closed");
    assert_eq!(acceptor.connections(), 0);
}
