//! All of it together: a connection's requests, each to the heartbeat, a route, or a page of our own.

use crate::access::{AccessConfig, AccessLog};
use crate::account::Pending;
use crate::body::Body;
use crate::cache::{Cache, CacheConfig, target};
use crate::cached::Counted;
use crate::check;
use crate::continuity::{Continuity, What};
use crate::direct::Bent;
use crate::files;
use crate::headers;
use crate::hits::Kept;
use crate::metrics;
use crate::origins::Origins;
use crate::outward::{self, OutwardConfig};
use crate::own::{fixed, redirect};
use crate::pages::{self, Asker};
use crate::resolve;
use crate::route::{Caching, RouteConfig, Target};
use crate::router;
use crate::rt::{Io, WeakIo};
use crate::serve::{self, Limits};
use crate::stats::{Counters, OriginStats, Outcome, Stats};
use crate::upstream::{Failed, Upstream};
use bytes::Bytes;
use engine::net::{Peer, Stream};
use http::header::{HOST, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::borrow::Cow;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Answers up to this many bytes are begun when they are whole.
const WHOLE: u64 = 64 << 10;

/// What a proxy is made of.
#[derive(Debug, Clone, Default)]
pub struct ProxyConfig {
    /// Our name in `Via`; also how loops are noticed, so it differs from suite to suite.
    pub name: String,
    /// Where requests go.
    pub routes: Vec<RouteConfig>,
    /// Who shows this in a heartbeat gets our pid; empty answers none.
    pub heartbeat_token: String,
    /// Limits of client connections.
    pub limits: Limits,
    /// What is kept, and where.
    pub cache: CacheConfig,
    /// Who may have kept answers forgotten, by the method PURGE.
    pub purge_from: Vec<IpAddr>,
    /// The forward proxy, if there is to be one.
    pub outward: Option<OutwardConfig>,
    /// Where requests are logged.
    pub access: Option<AccessConfig>,
    /// Requests that take so long are logged apart.
    pub slow: Option<Duration>,
}

/// The proxy, shared by all event threads.
#[derive(Debug)]
pub struct Proxy {
    pub(crate) config: ProxyConfig,
    pub(crate) cache: Option<Arc<Cache>>,
    pub(crate) counters: Counters,
    pub(crate) access: Option<AccessLog>,
    /// Of each route.
    pub(crate) upstreams: Vec<Upstream>,
    /// Client connections that are open.
    open: AtomicUsize,
    started: Instant,
}

/// A connection that is counted for as long as this lives.
struct Open<'a>(&'a AtomicUsize);

impl<'a> Open<'a> {
    fn begin(count: &'a AtomicUsize) -> Open<'a> {
        count.fetch_add(1, Ordering::Relaxed);
        Open(count)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request on its way, with what is known of it.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub route: usize,
    pub client: Option<IpAddr>,
    pub host: Option<HeaderValue>,
    pub asker: Asker,
    /// Where interim answers go, if it takes any.
    pub interim: Option<WeakIo>,
    /// The protocol it asks to change to, if the route has it.
    pub upgrade: Option<HeaderValue>,
}

/// Who sends the requests of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub addr: Option<IpAddr>,
    pub io: WeakIo,
}

impl Client {
    /// Another server goes on with its connection if this one dies.
    fn is_journaled(&self) -> bool {
        self.io.io().is_some_and(|io| io.journal().is_some())
    }
}

impl Proxy {
    /// Asks for the addresses of all origins that have names: before there are clients who would have to wait for that, and while
    /// the resolver answers. Waits for nothing.
    pub fn look_up_origins(&self) {
        for route in &self.config.routes {
            if let Target::Origins { list, .. } = &route.target {
                list.iter().for_each(|o| resolve::look_up(&o.host, o.port));
            }
        }
    }

    /// Ready to be given connections.
    pub fn new(mut config: ProxyConfig) -> Arc<Proxy> {
        config.routes.extend(config.outward.as_ref().map(OutwardConfig::route));
        // as they are looked for
        config.routes.iter_mut().for_each(|r| r.prefix = router::meant(&r.prefix).into_owned());
        let mut first_id = 0;
        let upstream = |r: &RouteConfig| {
            let (n, balance) = match &r.target {
                Target::Origins { list, balance } => (list.len(), *balance),
                _ => (0, Default::default()),
            };
            let made =
                Upstream { first_id, origins: Origins::new(n, balance, r.health), bent: Bent::default() };
            first_id += n;
            made
        };
        let upstreams = config.routes.iter().map(upstream).collect();
        let cache = Cache::new(config.cache.clone());
        let counters = Counters::new(config.routes.len());
        let access = config.access.clone().and_then(|a| match AccessLog::start(a) {
            Ok(log) => Some(log),
            Err(e) => {
                log::error!("event=access-log-failed: {e}");
                None
            }
        });
        Arc::new(Proxy {
            config,
            cache,
            counters,
            access,
            upstreams,
            open: AtomicUsize::new(0),
            started: Instant::now(),
        })
    }

    /// Writes what the access log still holds; nothing is logged after it.
    pub fn close(&self) {
        if let Some(log) = &self.access {
            log.close();
        }
    }

    /// What became of requests, and what the cache holds.
    pub fn stats(&self) -> Stats {
        let (cache_bytes, cache_objects) = self.cache.as_ref().map_or((0, 0), |c| c.store.used());
        let disk = self.cache.as_ref().map(|c| c.disk_stats()).unwrap_or_default();
        let log_dropped = self.access.as_ref().map_or(0, AccessLog::dropped);
        let (requests, fast) = (self.counters.sum(), self.counters.sum_fast());
        let (connections, origins) = (self.open.load(Ordering::Relaxed), self.origins());
        Stats { requests, fast, connections, cache_bytes, cache_objects, disk, log_dropped, origins }
    }

    /// Requests are told of one by one.
    pub(crate) fn tells(&self) -> bool {
        self.access.is_some() || self.config.slow.is_some()
    }

    /// Serves one client connection to its end; with a journal if there is to be continuity. Nagle's algorithm is off on it
    /// (`AcceptorConfig::nodelay`).
    pub async fn connection(self: Arc<Self>, stream: Stream, continuity: Option<&Continuity>) {
        let _open = Open::begin(&self.open);
        let addr = match stream.peer() {
            Peer::Tcp(a) => Some(a.ip()),
            _ => None,
        };
        let io = match continuity {
            None => Io::new(stream),
            Some(c) => {
                let (journal, resume) = c.begin(stream.as_fd().as_raw_fd());
                if addr.is_none() {
                    journal.set_uncounted();
                }
                let resume = resume.unwrap_or_default();
                let input = Bytes::from(resume.bytes);
                let io = Io::with(stream, Some(journal), input.clone());
                if let What::BadGateway { .. } = resume.what {
                    return Box::pin(self.bad_gateway(io, &input, addr)).await;
                }
                io
            }
        };
        let client = Client { addr, io: io.downgrade() };
        let handle = |request| {
            let (proxy, client) = (self.clone(), client.clone());
            async move { proxy.request(request, &client).await }
        };
        let hits = Kept { proxy: &self, client: addr };
        let retirement = continuity.map(Continuity::retirement);
        if let Err(e) = serve::serve(io, retirement, &self.config.limits, &hits, handle).await {
            log::debug!("client connection: {e}");
        }
    }

    /// Says 502 for a request whose server died while it was in progress, and tells of it as far as there is a head in `input`.
    async fn bad_gateway(self: &Arc<Self>, io: Io, input: &[u8], client: Option<IpAddr>) {
        let request = serve::head(input, self.config.limits.max_headers);
        let pending = request.map(|r| {
            let mut pending = Pending::begin(self, &r, client, Asker::of(r.headers()));
            let host = r.uri().host().or_else(|| r.headers().get(HOST)?.to_str().ok()).unwrap_or("");
            pending.route = router::find(&self.config.routes, &router::bare_host(host), r.uri().path());
            pending
        });
        let told = |sent| {
            if let Some(mut pending) = pending {
                pending.end(StatusCode::BAD_GATEWAY, Outcome::Failed, sent);
            }
        };
        serve::bad_gateway(io, input, told).await;
    }

    async fn request(self: &Arc<Self>, request: Request<Incoming>, client: &Client) -> Response<Body> {
        if request.uri().path() == pages::METRICS_PATH
            && pages::shows(request.headers(), &self.config.heartbeat_token)
        {
            return pages::metrics(metrics::text(&self.stats(), &self.config.routes));
        }
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
        let asker = Asker::of(request.headers());
        let mut pending = Pending::begin(self, &request, client.addr, asker);
        let gets_whole = *request.method() != Method::HEAD && client.is_journaled();
        let answered = match self.routed(request, client, asker, &mut pending.route).await {
            Ok((answer, outcome)) if gets_whole => whole(answer).await.map(|answer| (answer, outcome)),
            other => other,
        };
        let (answer, outcome) = match answered {
            Ok(counted) => counted,
            Err(Failed { status, why, outcome }) => {
                log::debug!("event=refused request={:016x} status={}: {why}", asker.id, status.as_u16());
                (pages::error(status, &why, asker), outcome)
            }
        };
        pending.answered(answer, outcome)
    }

    async fn routed(
        self: &Arc<Self>,
        mut request: Request<Incoming>,
        client: &Client,
        asker: Asker,
        found: &mut Option<usize>,
    ) -> Result<Counted, Failed> {
        let refused = |(status, why): check::Refusal| Failed::new(status, why);
        let host = check::request(
            &request,
            &self.config.name,
            self.config.outward.is_some(),
            self.config.limits.max_head,
        )
        .map_err(refused)?;
        if *request.method() == Method::OPTIONS
            && (request.uri().path() == "*" || headers::last_hop(request.headers_mut()))
        {
            return Ok((pages::options(), Outcome::Own));
        }
        if !normalise(&mut request) {
            return Err(refused((StatusCode::BAD_REQUEST, "the path leads out of the root")));
        }
        let bare = router::bare_host(host.as_ref().and_then(|h| h.to_str().ok()).unwrap_or(""));
        let path = request.uri().path();
        let outward = self.config.outward.as_ref();
        let outward = outward.filter(|_| outward::is_outward(&request, &self.config.routes, &bare));
        if let Some(config) = outward {
            *found = Some(self.config.routes.len() - 1);
            outward::allowed(config, client, &request)?;
            if *request.method() == Method::CONNECT {
                return Ok((self.connect(config, client, &request).await?, Outcome::Tunnel));
            }
        }
        let Some(route) = found.or_else(|| router::find(&self.config.routes, &bare, path)) else {
            return match self.is_unconfigured() && path == "/" {
                true => Ok((pages::welcome(asker), Outcome::Own)),
                false => Err(refused((StatusCode::NOT_FOUND, "no route for this host and path"))),
            };
        };
        *found = Some(route);
        if !show_prefix(&mut request, &self.config.routes[route]) {
            return Err(refused((StatusCode::BAD_REQUEST, "the path can't be passed on")));
        }
        let path = request.uri().path();
        if request.method().as_str() == "PURGE" && !self.config.purge_from.is_empty() {
            let target = target::normal(request.uri(), &self.config.routes[route].query);
            return self.purge(client.addr, host.as_ref(), &target, asker).await;
        }
        let config = &self.config.routes[route];
        let newer = request.version() == Version::HTTP_11;
        let upgrade = Some(&config.upgrade).filter(|u| newer && !u.is_empty());
        let asked = Asked {
            route,
            client: client.addr,
            host,
            asker,
            interim: newer.then(|| client.io.clone()),
            upgrade: upgrade.and_then(|u| headers::wanted_upgrade(request.headers(), u)),
        };
        let (mut answer, outcome) = match &config.target {
            Target::Origins { .. } if asked.upgrade.is_some() => {
                let (request, upload) = self.prepared(request, &asked)?;
                let answer = self.send(&asked, request, &upload).await?;
                let outcome = match answer.status() {
                    StatusCode::SWITCHING_PROTOCOLS => Outcome::Tunnel,
                    _ => Outcome::Bypass,
                };
                (self.passed_on(answer), outcome)
            }
            Target::Origins { .. } | Target::Outward => match &self.cache {
                Some(cache) if config.cache == Caching::Standard => {
                    self.through_cache(cache, request, &asked).await?
                }
                _ => {
                    let (request, upload) = self.prepared(request, &asked)?;
                    let mut answer = self.send(&asked, request, &upload).await?;
                    self.learn_form(&mut answer, route);
                    (self.passed_on(answer), Outcome::Bypass)
                }
            },
            Target::Files(root) => {
                let path = match config.strip_prefix {
                    true => path.strip_prefix(config.prefix.trim_end_matches('/')).unwrap_or(path),
                    false => path,
                };
                (files::serve(root, path, &request, asker).await, Outcome::Own)
            }
            Target::Fixed { status, body } => (fixed(*status, body.clone()), Outcome::Own),
            Target::Redirect { status, to } => (redirect(*status, to, &asked, request.uri()), Outcome::Own),
        };
        config.response_headers.apply(answer.headers_mut());
        Ok((answer, outcome))
    }

    fn origins(&self) -> Vec<OriginStats> {
        let now = self.millis();
        let mut all: Vec<OriginStats> = Vec::new();
        for (route, (config, up)) in self.config.routes.iter().zip(&self.upstreams).enumerate() {
            let Target::Origins { list, .. } = &config.target else { continue };
            let first = all.len();
            for (i, o) in list.iter().enumerate() {
                let name = format!("{}:{}{}", o.host, o.port, o.path_prefix);
                let (ejected, in_flight) = (up.origins.is_ejected(i, now), up.origins.in_flight(i));
                // one that is listed twice, to get twice as much, is one
                match all[first..].iter_mut().find(|s| s.name == name) {
                    Some(same) => {
                        same.ejected &= ejected;
                        same.in_flight += in_flight;
                    }
                    None => all.push(OriginStats { route, name, ejected, in_flight }),
                }
            }
        }
        all
    }

    pub(crate) fn millis(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

/// A small answer is begun when all of it is there: then it goes out in one piece, and a server that dies leaves it either
/// unsent or sent. (What is half out, and can't be made again the same, can only be cut.)
async fn whole(answer: Response<Body>) -> Result<Response<Body>, Failed> {
    let small = answer.body().size_hint().exact().is_some_and(|n| n > 0 && n <= WHOLE);
    if !small || answer.body().is_end_stream() || answer.body().is_whole() {
        return Ok(answer);
    }
    let (head, body) = answer.into_parts();
    match BodyExt::collect(body).await {
        Ok(all) => Ok(Response::from_parts(head, Body::of(all.to_bytes()))),
        Err(e) => {
            log::info!("event=origin-failed: its answer broke off: {e}");
            Err(Failed::new(StatusCode::BAD_GATEWAY, "the origin's answer broke off"))
        }
    }
}

/// Takes dot segments out of the path; false if they lead out of the root.
fn normalise<B>(request: &mut Request<B>) -> bool {
    let Some(normal) = router::normal_path(request.uri().path()) else { return false };
    match normal {
        Cow::Owned(path) => set_path(request, &path),
        Cow::Borrowed(_) => true,
    }
}

/// Makes a route's prefix be there as it is, if it is to be cut off: routes are found in whatever way it is written.
fn show_prefix<B>(request: &mut Request<B>, route: &RouteConfig) -> bool {
    let prefix = route.prefix.trim_end_matches('/');
    if !route.strip_prefix || request.uri().path().starts_with(prefix) {
        return true;
    }
    let path = router::behind(request.uri().path(), prefix).map(|rest| format!("{prefix}{rest}"));
    path.is_some_and(|path| set_path(request, &path))
}

fn set_path<B>(request: &mut Request<B>, path: &str) -> bool {
    let query = request.uri().query().map_or(String::new(), |q| format!("?{q}"));
    let Ok(path) = format!("{path}{query}").parse() else { return false };
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.path_and_query = Some(path);
    match Uri::from_parts(parts) {
        Ok(uri) => *request.uri_mut() = uri,
        Err(_) => return false,
    }
    true
}
