//! The control socket: HTTP/1.1 over a Unix socket, mode 0600, for root and our own user.
//!
//! | request | answer |
//! |---|---|
//! | `GET /heartbeat` | `200 traffic_manager pid=N`; the header `traffic-cop: PID` introduces a cop, and `traffic-server-answered: MS` says when the server answered it |
//! | `GET /status` | the state as JSON |
//! | `GET /config` | the configuration file as it was accepted, as JSON: its path and its text |
//! | `GET /metrics` | the numbers as Prometheus reads them |
//! | `POST /restart` | when the next server is ready, or why it isn't |
//! | `POST /reload` | the same, with the configuration taken anew; 422 with all its faults |
//! | `POST /pause`, `POST /pause?max_wait=60s` | new connections wait in the manager |
//! | `POST /resume` | how many had waited: the server has them now |
//!
//! Those of jobs are in [`command`](super::jobs::command).
//!
//! `manager.admin` answers `GET /` (a page for people), `GET /status`, `/metrics`, `/healthz` and `/proxy.pac` over TCP, to anybody who can reach it, and nothing else.

use super::jobs;
use super::keep::Keep;
use super::{pac, scrape};
use crate::config::value;
use crate::suite::Runtime;
use engine::net::{Listener, Stream};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use proxy::Body;
use proxy::serve::{self, Limits};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::time::Duration;

/// Control connections at once; more are closed at once, unless it is cop who comes.
pub(super) const MAX_CONNECTIONS: usize = 64;

/// Binds the control socket in place of an ended manager's (we hold `manager.lock`, so there is no living one).
///
/// # Errors
/// The system refuses.
pub fn bind(runtime: &Runtime) -> io::Result<UnixListener> {
    let path = runtime.control();
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // nobody gets in between bind and chmod: the directory is ours, and the peer is checked besides
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers for ever.
pub async fn serve(keep: Rc<Keep>, listener: UnixListener) {
    let listener = match Listener::from_fd(listener.into()) {
        Ok(l) => l,
        Err(e) => return log::error!("event=control-failed: {e}"),
    };
    let live = Rc::new(());
    let mut full = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match allowed(&stream) {
                // whoever holds so many connections must not make cop believe that we hang
                Ok(Some(peer)) if Rc::strong_count(&live) > MAX_CONNECTIONS && !keep.is_cop(peer) => {
                    if !std::mem::replace(&mut full, true) {
                        log::warn!(
                            "event=control-full connections={MAX_CONNECTIONS}: more are closed, but for cop's"
                        );
                    }
                }
                Ok(Some(_)) => {
                    full = false;
                    let (keep, guard) = (keep.clone(), live.clone());
                    drop(engine::spawn(async move {
                        connection(keep, stream, false).await;
                        drop(guard);
                    }));
                }
                Ok(None) => log::warn!("event=control-refused: neither root nor our own user"),
                Err(e) => log::warn!("event=control-refused: {e}"),
            },
            Err(e) => {
                log::warn!("event=control-accept-failed: {e}");
                engine::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The peer's process if it is root's, or of who we are.
fn allowed(stream: &Stream) -> io::Result<Option<i32>> {
    let peer = rustix::net::sockopt::socket_peercred(stream.source().get_ref().as_fd())?;
    let ours = peer.uid.is_root() || peer.uid == rustix::process::geteuid();
    Ok(ours.then(|| peer.pid.as_raw_nonzero().get()))
}

pub(super) async fn connection(keep: Rc<Keep>, stream: Stream, read_only: bool) {
    let limits = Limits {
        idle_timeout: Duration::from_secs(10),
        max_head: 16 << 10,
        max_headers: 32,
        ..Limits::default()
    };
    let handle = move |request: Request<hyper::body::Incoming>| {
        let keep = keep.clone();
        async move {
            let (method, path, query) =
                (request.method(), request.uri().path(), request.uri().query().unwrap_or(""));
            match read_only {
                true => answer_admin(&keep, method, path, request.headers()).await,
                false => answer(&keep, method, path, query, request.headers()).await,
            }
        }
    };
    if let Err(e) = serve::connection(stream, limits, handle).await {
        log::debug!("control connection: {e}");
    }
}

async fn answer_admin(keep: &Rc<Keep>, method: &Method, path: &str, headers: &HeaderMap) -> Response<Body> {
    match (method, path) {
        (&Method::GET | &Method::HEAD, "/") => page(),
        (&Method::GET | &Method::HEAD, "/status") => status(keep),
        (&Method::GET | &Method::HEAD, "/metrics") => metrics(keep).await,
        (&Method::GET | &Method::HEAD, "/proxy.pac") => match pac::script(keep, headers) {
            Some(script) => {
                let mut r = text(StatusCode::OK, script);
                let kind = header::HeaderValue::from_static("application/x-ns-proxy-autoconfig");
                r.headers_mut().insert(header::CONTENT_TYPE, kind);
                r
            }
            None => text(StatusCode::NOT_FOUND, "server.forward.clients names nobody\n".into()),
        },
        (&Method::GET | &Method::HEAD, "/healthz") => match keep.is_ready() {
            true => text(StatusCode::OK, "ok\n".into()),
            false => text(StatusCode::SERVICE_UNAVAILABLE, "the server is not ready\n".into()),
        },
        (&Method::GET | &Method::HEAD, _) => {
            text(StatusCode::NOT_FOUND, "try /, /status, /metrics, /healthz or /proxy.pac\n".into())
        }
        _ => text(StatusCode::METHOD_NOT_ALLOWED, "this port is read-only\n".into()),
    }
}

/// The status for people: one page without anything from elsewhere, which asks for `/status` every two seconds.
fn page() -> Response<Body> {
    const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let mut r = text(StatusCode::OK, include_str!("page.html").to_owned());
    let headers = r.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, header::HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    r
}

async fn metrics(keep: &Rc<Keep>) -> Response<Body> {
    let mut r = text(StatusCode::OK, keep.metrics() + &scrape::server(keep).await);
    let kind = header::HeaderValue::from_static("text/plain; version=0.0.4");
    r.headers_mut().insert(header::CONTENT_TYPE, kind);
    r
}

fn status(keep: &Rc<Keep>) -> Response<Body> {
    let mut r = text(StatusCode::OK, keep.status().to_string());
    r.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    r
}

async fn answer(
    keep: &Rc<Keep>,
    method: &Method,
    path: &str,
    query: &str,
    headers: &HeaderMap,
) -> Response<Body> {
    match (method, path) {
        (&Method::GET, "/heartbeat") => {
            if let Some(cop) = headers.get("traffic-cop").and_then(|v| v.to_str().ok()) {
                keep.met_cop(cop);
            }
            let answered =
                headers.get(crate::suite::SERVER_ANSWERED).and_then(|v| v.to_str().ok()?.parse().ok());
            if let Some(ms) = answered {
                keep.server_answered(Duration::from_millis(ms));
            }
            text(StatusCode::OK, format!("traffic_manager pid={}\n", std::process::id()))
        }
        (&Method::GET, "/status") => status(keep),
        (&Method::GET, "/config") => text(StatusCode::OK, format!("{}\n", keep.running_config())),
        (&Method::GET, "/metrics") => metrics(keep).await,
        (&Method::POST, "/restart") => {
            if keep.is_stopping() {
                return text(StatusCode::CONFLICT, "the suite is being stopped\n".into());
            }
            keep.restart();
            replaced(keep, keep.wait_ready(keep.patience()).await, "the server was replaced")
        }
        (&Method::POST, "/reload") => match keep.reload() {
            Ok(mut what) => {
                let ready = keep.wait_ready(keep.patience()).await;
                // who is told that it was accepted may rely on that, whoever dies next
                if ready.is_ok() && !keep.cop_has_heard().await {
                    what += "; cop doesn't listen, so it would be undone if the manager died now";
                }
                replaced(keep, ready, &what)
            }
            Err(e) => text(StatusCode::UNPROCESSABLE_ENTITY, format!("{e:#}\n")),
        },
        (&Method::POST, "/pause") => match pause_for(query) {
            Ok(_) if !keep.config.borrow().server.is_ours() => {
                let why = "a server that isn't ours (server.command) can't be told to accept nothing\n";
                text(StatusCode::CONFLICT, why.into())
            }
            Ok(_) if !keep.is_ready() => {
                text(StatusCode::CONFLICT, "no server serves that could be paused\n".into())
            }
            Ok(max_wait) => {
                keep.pause(max_wait);
                match keep.wait_held().await {
                    Ok(()) => {
                        text(StatusCode::OK, "paused: new connections wait here; open ones go on\n".into())
                    }
                    Err(why) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
                }
            }
            Err(why) => text(StatusCode::BAD_REQUEST, why),
        },
        (&Method::POST, "/resume") => {
            let waited = keep.go_on();
            text(StatusCode::OK, format!("resumed: {waited} connections had waited\n"))
        }
        (
            _,
            "/heartbeat" | "/status" | "/config" | "/metrics" | "/restart" | "/reload" | "/pause" | "/resume",
        ) => text(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not for {path}\n")),
        _ => match jobs::command::answer(keep, method, path, query).await {
            Some((status, said)) => text(status, said),
            None => text(StatusCode::NOT_FOUND, format!("{path}: no such command\n")),
        },
    }
}

/// `max_wait=60s`
fn pause_for(query: &str) -> Result<Option<Duration>, String> {
    match query.strip_prefix("max_wait=") {
        None if query.is_empty() => Ok(None),
        None => Err(format!("{query:?} isn't known: max_wait=DURATION\n")),
        Some(d) => value::duration_of(d).map(Some).map_err(|e| format!("max_wait: {e}\n")),
    }
}

/// The answer says what happened and not what was hoped for: whether the next server has become ready.
fn replaced(keep: &Keep, ready: Result<(), String>, what: &str) -> Response<Body> {
    match ready {
        Ok(()) => {
            let pid = keep.server_pid().unwrap_or(0);
            text(StatusCode::OK, format!("{what}: pid {pid} serves\n"))
        }
        Err(why) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
    }
}

fn text(status: StatusCode, text: String) -> Response<Body> {
    let mut r = Response::new(Body::of(text));
    *r.status_mut() = status;
    r
}
