//! The servers that are compared: the same hyper service on the engine and on tokio, each in a process of its own.
//!
//! Each prints its port, serves on one thread on CPU 0, and ends when its standard input does.

use crate::pin;
use bytes::Bytes;
use engine::acceptor::{Acceptor, AcceptorConfig};
use engine::net::Stream;
use engine::{Engine, GroupConfig};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::Future;
use std::io::Read;
use std::net::TcpListener;
use std::time::Duration;

/// The limit from one request to the next, as a server has it in earnest.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);

pub fn main(kind: &str, timed: bool) {
    pin(0);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    println!("{}", listener.local_addr().expect("an address").port());
    match kind {
        "engine" => on_engine(listener, move |stream| engine_connection(stream, timed)),
        "parked" => on_engine(listener, parked_connection),
        "tokio" => on_tokio(listener, timed),
        other => panic!("no such server: {other}"),
    }
}

async fn hello(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(b"Hello, world\n"))))
}

fn until_input_ends() {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

fn on_engine<F>(listener: TcpListener, connection: impl Fn(Stream) -> F + Copy + Send + Sync + 'static)
where
    F: Future<Output = ()> + 'static,
{
    let group = GroupConfig { threads: 1, cpus: vec![0], ..GroupConfig::default() };
    let engine = Engine::builder().group("net", group).start().expect("an engine");
    let handle = engine.handle();
    let config =
        AcceptorConfig { listeners: vec![listener.into()], accept_threads: 0, ..AcceptorConfig::default() };
    let serve = move |accepted: engine::acceptor::Accepted| async move {
        let Ok((stream, _guard)) = accepted.into_stream() else { return };
        connection(stream).await;
    };
    let net = handle.group("net").expect("net");
    let _acceptor = Acceptor::start(&handle, net, config, serve).expect("to accept");
    until_input_ends();
}

async fn engine_connection(stream: Stream, timed: bool) {
    let _ = stream.set_nodelay(true);
    let mut http = http1::Builder::new();
    if timed {
        http.timer(proxy::rt::Timer).header_read_timeout(HEADER_TIMEOUT);
    }
    let _ = http.serve_connection(proxy::rt::Io::new(stream), service_fn(hello)).await;
}

/// No HTTP: what the engine alone needs for a connection that waits for its next request, with its timeout.
async fn parked_connection(mut stream: Stream) {
    loop {
        let ready = std::future::poll_fn(|cx| stream.poll_read_ready(cx));
        match engine::time::timeout(HEADER_TIMEOUT, ready).await {
            // Boxed, so that its buffer does not live as long as the wait.
            Ok(Ok(())) if Box::pin(answer(&mut stream)).await => {}
            _ => return,
        }
    }
}

async fn answer(stream: &mut Stream) -> bool {
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    stream.read(&mut [0; 1024]).await.unwrap_or(0) > 0 && stream.write_all(answer).await.is_ok()
}

fn on_tokio(listener: TcpListener, timed: bool) {
    std::thread::spawn(|| {
        until_input_ends();
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        listener.set_nonblocking(true).expect("non-blocking");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            tokio::spawn(tokio_connection(stream, timed));
        }
    });
}

async fn tokio_connection(stream: tokio::net::TcpStream, timed: bool) {
    let _ = stream.set_nodelay(true);
    let mut http = http1::Builder::new();
    if timed {
        http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    }
    let _ = http.serve_connection(TokioIo::new(stream), service_fn(hello)).await;
}
