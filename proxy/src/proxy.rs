//! All of it together: a connection's requests, each to the heartbeat, a route, or a page of our own.

use crate::body::Body;
use crate::continuity::{Continuity, What};
use crate::forward::{self, Failure, Timeouts};
use crate::headers;
use crate::pages;
use crate::router::{self, OriginConfig, RouteConfig};
use crate::rt::Io;
use crate::serve::{self, Limits};
use engine::net::{Peer, Stream};
use http::header::{HOST, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// An origin that failed isn't asked for this long while there are others.
const SKIP: Duration = Duration::from_secs(1);

/// What a proxy is made of.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// Our name in `Via`; also how loops are noticed, so it differs from suite to suite.
    pub name: String,
    /// Where requests go.
    pub routes: Vec<RouteConfig>,
    /// Who shows this in a heartbeat gets our pid; empty answers none.
    pub heartbeat_token: String,
    /// Limits of client connections.
    pub limits: Limits,
    /// Limits towards origins.
    pub timeouts: Timeouts,
}

/// The proxy, shared by all event threads.
#[derive(Debug)]
pub struct Proxy {
    config: ProxyConfig,
    /// Of each route: the number of its first origin, and whose turn it is.
    turns: Vec<(usize, AtomicUsize)>,
    /// Of each origin: until when it is skipped, in milliseconds since `started`.
    skip_until: Vec<AtomicU64>,
    started: Instant,
}

impl Proxy {
    /// Ready to be given connections.
    pub fn new(config: ProxyConfig) -> Arc<Proxy> {
        let mut first = 0;
        let mut turns = Vec::new();
        for r in &config.routes {
            turns.push((first, AtomicUsize::new(0)));
            first += r.origins.len();
        }
        let skip_until = (0..first).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Proxy { config, turns, skip_until, started: Instant::now() })
    }

    /// Serves one client connection to its end; with a journal if there is to be continuity.
    pub async fn connection(self: Arc<Self>, stream: Stream, continuity: Option<&Continuity>) {
        let client = match stream.peer() {
            Peer::Tcp(a) => Some(a.ip()),
            _ => None,
        };
        let _ = stream.set_nodelay(true);
        let io = match continuity {
            None => Io::new(stream),
            Some(c) => {
                let (journal, resume) = c.begin(stream.as_fd().as_raw_fd());
                let resume = resume.unwrap_or_default();
                let io = Io::with(stream, Some(journal), resume.bytes.into());
                if let What::BadGateway { .. } = resume.what {
                    return serve::bad_gateway(io).await;
                }
                io
            }
        };
        let limits = self.config.limits;
        let handle = move |request| {
            let proxy = self.clone();
            async move { proxy.request(request, client).await }
        };
        if let Err(e) = serve::serve(io, limits, handle).await {
            log::debug!("client connection: {e}");
        }
    }

    async fn request(&self, request: Request<Incoming>, client: Option<IpAddr>) -> Response<Body> {
        if request.uri().path() == pages::HEARTBEAT_PATH
            && let Some(answer) = pages::heartbeat(request.headers(), &self.config.heartbeat_token)
        {
            // what a poisonous request does to a server, for the tests of it
            #[cfg(debug_assertions)]
            if request.uri().query() == Some("abort") {
                std::process::abort();
            }
            return answer;
        }
        let refuse = |status, why: &str| pages::error(status, why, request.headers());
        let host = match headers::host_of(&request) {
            Ok(host) => host,
            Err(why) => return refuse(StatusCode::BAD_REQUEST, why),
        };
        match *request.method() {
            Method::CONNECT => return refuse(StatusCode::METHOD_NOT_ALLOWED, "this is no forward proxy"),
            Method::TRACE => return refuse(StatusCode::METHOD_NOT_ALLOWED, "TRACE is not served"),
            _ => {}
        }
        let bare = router::bare_host(host.as_ref().and_then(|h| h.to_str().ok()).unwrap_or(""));
        let Some(route) = router::find(&self.config.routes, &bare, request.uri().path()) else {
            return match self.config.routes.is_empty() && request.uri().path() == "/" {
                true => pages::welcome(request.headers()),
                false => refuse(StatusCode::NOT_FOUND, "no route for this host and path"),
            };
        };
        if headers::went_through(request.headers(), &self.config.name) {
            return refuse(StatusCode::LOOP_DETECTED, "the request came back to this proxy");
        }
        self.forward(route, request, client, host).await
    }

    async fn forward(
        &self,
        route: usize,
        request: Request<Incoming>,
        client: Option<IpAddr>,
        host: Option<HeaderValue>,
    ) -> Response<Body> {
        let client_headers = accept_only(request.headers());
        let uri = request.uri().clone();
        let mut request = self.prepare(request, client, host);
        let origins = &self.config.routes[route].origins;
        let mut last = None;
        for (id, origin) in self.in_turn(route, origins) {
            match forward::target(&uri, &origin.path_prefix) {
                Some(target) => *request.uri_mut() = target,
                None => {
                    return pages::error(
                        StatusCode::BAD_REQUEST,
                        "the path can't be passed on",
                        &client_headers,
                    );
                }
            }
            match forward::send(id, origin, request, self.config.timeouts).await {
                Ok(answer) => return self.passed_on(answer),
                Err(Failure { status, why, unsent }) => {
                    self.skip_until[id].store(self.millis() + SKIP.as_millis() as u64, Ordering::Relaxed);
                    log::info!(
                        "event=origin-failed origin={}:{} status={}: {why}",
                        origin.host,
                        origin.port,
                        status.as_u16()
                    );
                    last = Some((status, why));
                    match unsent {
                        Some(back) => request = back,
                        None => break,
                    }
                }
            }
        }
        let (status, why) = last.unwrap_or((StatusCode::SERVICE_UNAVAILABLE, "no origin".into()));
        pages::error(status, &why, &client_headers)
    }

    /// The request as an origin gets it.
    fn prepare(
        &self,
        request: Request<Incoming>,
        client: Option<IpAddr>,
        host: Option<HeaderValue>,
    ) -> Request<Body> {
        let version = request.version();
        let mut request = request.map(Body::from_request);
        let h = request.headers_mut();
        headers::remove_hop_by_hop(h);
        headers::add_via(h, version, &self.config.name);
        headers::add_forwarded(h, client, host.clone());
        match host {
            Some(host) => h.insert(HOST, host),
            None => h.insert(HOST, HeaderValue::from_static("localhost")),
        };
        *request.version_mut() = Version::HTTP_11;
        request
    }

    /// The answer as the client gets it.
    fn passed_on(&self, mut answer: Response<Body>) -> Response<Body> {
        let version = answer.version();
        let h = answer.headers_mut();
        headers::remove_hop_by_hop(h);
        headers::add_via(h, version, &self.config.name);
        *answer.version_mut() = Version::HTTP_11;
        answer
    }

    /// The origins of a route from the one whose turn it is; those that failed just now come last.
    fn in_turn<'a>(
        &self,
        route: usize,
        origins: &'a [OriginConfig],
    ) -> impl Iterator<Item = (usize, &'a OriginConfig)> + use<'a> {
        let (first, turn) = &self.turns[route];
        let start = if origins.len() > 1 { turn.fetch_add(1, Ordering::Relaxed) } else { 0 };
        let now = if origins.len() > 1 { self.millis() } else { 0 };
        let skipped = |i: usize| self.skip_until[first + i].load(Ordering::Relaxed) > now;
        let order = (0..origins.len()).map(|n| (start + n) % origins.len());
        let (bad, good): (Vec<_>, Vec<_>) = order.partition(|&i| origins.len() > 1 && skipped(i));
        let first = *first;
        good.into_iter().chain(bad).map(move |i| (first + i, &origins[i]))
    }

    fn millis(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

/// What an error page needs of the client's headers, after the request itself has gone on.
fn accept_only(headers: &http::HeaderMap) -> http::HeaderMap {
    headers.get(http::header::ACCEPT).map(|v| (http::header::ACCEPT, v.clone())).into_iter().collect()
}
