//! A request on its way through the origins of a route.

use crate::body::{Body, Fate, Upload};
use crate::check;
use crate::direct::Bent;
use crate::forward::{self, Way};
use crate::headers;
use crate::origins::Origins;
use crate::proxy::{Asked, Proxy};
use crate::route::{HostHeader, OriginConfig, RouteConfig, Target};
use crate::rt::WeakIo;
use crate::stats::Outcome;
use http::header::{CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING};
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

/// No answer of an origin's.
#[derive(Debug, Clone)]
pub struct Failed {
    /// What the client is told.
    pub status: StatusCode,
    /// In words.
    pub why: String,
    /// What it is counted as.
    pub outcome: Outcome,
}

impl Failed {
    /// Counted as what the status means where nothing more is known.
    pub fn new(status: StatusCode, why: impl Into<String>) -> Failed {
        Failed { status, why: why.into(), outcome: Outcome::of_failure(status) }
    }
}

/// The origins of one route with their numbers in the pools.
#[derive(Debug)]
pub struct Upstream {
    /// Of the first origin; the others follow.
    pub first_id: usize,
    /// Who is up.
    pub origins: Origins,
    /// How usual their answers are.
    pub(crate) bent: Bent,
}

/// A request's head as any origin of the route gets it.
pub fn prepare(
    request: &mut Request<Body>,
    route: &RouteConfig,
    name: &str,
    client: Option<IpAddr>,
    host: Option<&HeaderValue>,
) {
    let version = request.version();
    let has_body = !matches!(request.body(), Body::Empty);
    let h = request.headers_mut();
    headers::for_next_hop(h);
    if has_body && !h.contains_key(CONTENT_LENGTH) {
        // hyper takes a GET that doesn't say so for one without a body
        h.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    headers::add_via(h, version, name);
    // outsiders needn't know who our clients are
    if !matches!(route.target, Target::Outward) {
        headers::add_forwarded(h, client, host);
    }
    route.request_headers.apply(h);
    let fallback = || HeaderValue::from_static("localhost");
    match &route.host_header {
        HostHeader::Fixed(v) => h.insert(HOST, v.clone()),
        _ => h.insert(HOST, host.cloned().unwrap_or_else(fallback)),
    };
    *request.version_mut() = Version::HTTP_11;
}

impl Upstream {
    /// Sends a prepared request to one origin after the other, as far as it may be sent again.
    ///
    /// # Errors
    /// The last origin's failure, or what was wrong with the request's body.
    pub async fn send(
        &self,
        route: &RouteConfig,
        list: &[OriginConfig],
        mut request: Request<Body>,
        upgrade: Option<&HeaderValue>,
        way: Way<'_>,
        millis: impl Fn() -> u64,
    ) -> Result<Response<Body>, Failed> {
        let uri = request.uri().clone();
        let cut = if route.strip_prefix { route.prefix.as_str() } else { "" };
        let mut last = Failed::new(StatusCode::SERVICE_UNAVAILABLE, "the route has no origin");
        // it may have been sent already, to one of them
        let mut sent = way.client.and_then(WeakIo::io).and_then(|io| io.take_sent());
        let first = sent.as_ref().map(|s| s.origin);
        let others = std::iter::once_with(|| self.origins.order(millis())).flatten();
        for i in first.into_iter().chain(others.filter(|i| first != Some(*i))) {
            let origin = &list[i];
            let Some(target) = forward::target(&uri, cut, &origin.path_prefix) else {
                return Err(Failed::new(StatusCode::BAD_REQUEST, "the path can't be passed on"));
            };
            *request.uri_mut() = target;
            if route.host_header == HostHeader::Origin
                && let Ok(host) = HeaderValue::from_str(&host_of(origin))
            {
                request.headers_mut().insert(HOST, host);
            }
            let id = self.first_id + i;
            let answer = match (sent.take(), upgrade) {
                (Some(sent), _) => Box::pin(forward::go_on(id, origin, *sent, request, way)).await,
                (None, Some(wanted)) => {
                    forward::upgrade(origin, self.origins.begin(i), request, wanted, way).await
                }
                (None, None) => forward::send(id, origin, self.origins.begin(i), request, way).await,
            };
            match answer {
                Ok(answer) => {
                    self.origins.good(i);
                    return Ok(answer);
                }
                Err(e) => {
                    if let Some(failed) = clients_fault(way.upload.fate()) {
                        return Err(failed);
                    }
                    let ejected = self.origins.bad(i, millis());
                    log::info!(
                        "event=origin-failed origin={}:{} status={} ejected={ejected}: {}",
                        origin.host,
                        origin.port,
                        e.status.as_u16(),
                        e.why
                    );
                    last = Failed { status: e.status, why: e.why, outcome: e.outcome };
                    match e.again {
                        Some(back) => request = *back,
                        None => break,
                    }
                }
            }
        }
        Err(last)
    }
}

impl Proxy {
    /// The request as an origin gets it, but for its target.
    pub(crate) fn prepared(
        &self,
        mut request: Request<Incoming>,
        asked: &Asked,
    ) -> Result<(Request<Body>, Rc<Upload>), Failed> {
        let route = &self.config.routes[asked.route];
        let max = route.max_body.0;
        if check::announced(&request).is_some_and(|n| n > max) {
            let why = format!("the body is larger than {max} bytes");
            return Err(Failed::new(StatusCode::PAYLOAD_TOO_LARGE, why));
        }
        let held = forward::expect(&mut request);
        let (head, body) = request.into_parts();
        let (body, upload) = Body::from_client(body, max, route.timeouts.between, held);
        let mut request = Request::from_parts(head, body);
        prepare(&mut request, route, &self.config.name, asked.client, asked.host.as_ref());
        Ok((request, upload))
    }

    pub(crate) async fn send(
        &self,
        asked: &Asked,
        request: Request<Body>,
        upload: &Rc<Upload>,
    ) -> Result<Response<Body>, Failed> {
        let config = &self.config.routes[asked.route];
        let way = Way {
            timeouts: config.timeouts,
            deadline: config.timeouts.total.map(|t| Instant::now() + t),
            upload,
            client: asked.interim.as_ref(),
            name: &self.config.name,
        };
        let list = match (&config.target, &self.config.outward) {
            (Target::Origins { list, .. }, _) => list,
            (_, Some(outward)) => return self.send_outward(outward, asked, request, upload, way).await,
            _ => unreachable!("only such routes are passed on"),
        };
        let upgrade = asked.upgrade.as_ref().filter(|_| matches!(request.body(), Body::Empty));
        self.upstreams[asked.route].send(config, list, request, upgrade, way, || self.millis()).await
    }

    /// The answer as the client gets it.
    pub(crate) fn passed_on(&self, mut answer: Response<Body>) -> Response<Body> {
        let version = answer.version();
        headers::add_via(answer.headers_mut(), version, &self.config.name);
        *answer.version_mut() = Version::HTTP_11;
        answer
    }
}

/// What a client is told whose own body was the reason.
pub(crate) fn clients_fault(fate: Fate) -> Option<Failed> {
    Some(match fate {
        Fate::Good => return None,
        Fate::TooLarge => Failed::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large"),
        Fate::TooSlow => Failed::new(StatusCode::REQUEST_TIMEOUT, "the body doesn't come"),
        Fate::Broken => Failed::new(StatusCode::BAD_REQUEST, "the body is broken"),
    })
}

/// An origin's own name, as `Host` has it.
pub(crate) fn host_of(origin: &OriginConfig) -> String {
    let name = if origin.host.contains(':') { format!("[{}]", origin.host) } else { origin.host.clone() };
    if origin.port == 80 { name } else { format!("{name}:{}", origin.port) }
}
