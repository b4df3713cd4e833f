//! What became of a request, told when its answer is over: a line of the access log, and of the log if it was slow.

use crate::access_line::Entry;
use crate::body::{Body, BodyError};
use crate::pages::Asker;
use crate::plain::Plain;
use crate::proxy::Proxy;
use crate::stats::Outcome;
use bytes::Bytes;
use http::header::{HOST, HeaderMap, HeaderName, HeaderValue, REFERER, USER_AGENT};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

/// Slow requests that are logged in a second; more are only counted.
const SLOW_A_SECOND: u64 = 10;

/// What is told as the status of a request whose client didn't wait for an answer, as nginx has it.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// A request that nobody has answered yet. If it stays so, its client has gone, and that is counted and told too.
pub(crate) struct Pending<'a> {
    proxy: &'a Arc<Proxy>,
    begun: Instant,
    account: Option<Account>,
    /// Which route it has, once that is known.
    pub route: Option<usize>,
    is_over: bool,
}

impl<'a> Pending<'a> {
    /// It has come just now.
    pub fn begin<B>(
        proxy: &'a Arc<Proxy>,
        request: &Request<B>,
        client: Option<IpAddr>,
        asker: Asker,
    ) -> Pending<'a> {
        let begun = Instant::now();
        let account = proxy.tells().then(|| Account::open(proxy, request, client, asker, begun));
        Pending { proxy, begun, account, route: None, is_over: false }
    }

    /// Counts it, and tells of it when this answer is over.
    pub fn answered(mut self, answer: Response<Body>, outcome: Outcome) -> Response<Body> {
        let took = self.count(outcome);
        match self.account.take() {
            Some(account) => account.close_with(answer, self.route, outcome, took),
            None => answer,
        }
    }

    /// Counts and tells of it, answered with so many bytes of a body, or not answered at all (`None`).
    pub fn end(&mut self, status: StatusCode, outcome: Outcome, sent: Option<u64>) {
        let took = self.count(outcome);
        if let Some(account) = self.account.take() {
            let mut told = account.plainly(status, self.route, outcome, took);
            told.sent(sent.unwrap_or(0), sent.is_some());
        }
    }

    fn count(&mut self, outcome: Outcome) -> Duration {
        self.is_over = true;
        let took = self.begun.elapsed();
        self.proxy.counters.count(self.route, outcome, took);
        took
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let status = StatusCode::from_u16(CLIENT_CLOSED_REQUEST).expect("a status");
        self.end(status, Outcome::Gone, None);
    }
}

/// A request in progress, as far as it is to be told of.
pub(crate) struct Account {
    proxy: Arc<Proxy>,
    at: SystemTime,
    begun: Instant,
    id: u64,
    client: Option<IpAddr>,
    method: Method,
    uri: Uri,
    version: Version,
    host: Option<HeaderValue>,
    referer: Option<HeaderValue>,
    agent: Option<HeaderValue>,
}

impl Account {
    /// Of a request that came at `begun`.
    pub fn open<B>(
        proxy: &Arc<Proxy>,
        request: &Request<B>,
        client: Option<IpAddr>,
        asker: Asker,
        begun: Instant,
    ) -> Account {
        let field = |h: &HeaderMap, name: HeaderName| h.get(name).cloned();
        let h = request.headers();
        Account {
            proxy: proxy.clone(),
            at: SystemTime::now(),
            begun,
            id: asker.id,
            client,
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            host: field(h, HOST),
            referer: field(h, REFERER),
            agent: field(h, USER_AGENT),
        }
    }

    /// Of a plain request that came at `begun`.
    pub fn of_plain(
        proxy: &Arc<Proxy>,
        request: &Plain<'_>,
        client: Option<IpAddr>,
        begun: Instant,
    ) -> Account {
        let h = request.fields(&[HOST, REFERER, USER_AGENT]);
        Account {
            proxy: proxy.clone(),
            at: SystemTime::now(),
            begun,
            id: Asker::of(&h).id,
            client,
            method: Method::GET,
            uri: request.target.parse().unwrap_or_default(),
            version: Version::HTTP_11,
            host: h.get(HOST).cloned(),
            referer: h.get(REFERER).cloned(),
            agent: h.get(USER_AGENT).cloned(),
        }
    }

    /// Tells of it when [`Told::sent`] has said how much of the answer went out; its head is there after `head`.
    pub fn plainly(self, status: StatusCode, route: Option<usize>, outcome: Outcome, head: Duration) -> Told {
        let (account, body) = (self, Body::Empty);
        Told { account, body, status, route, outcome, head, bytes: 0, ended: false, cut: true }
    }

    /// Tells of it when this answer, which is there after `head`, is over.
    pub fn close_with(
        self,
        answer: Response<Body>,
        route: Option<usize>,
        outcome: Outcome,
        head: Duration,
    ) -> Response<Body> {
        let status = answer.status();
        answer.map(|body| {
            let mut told = self.plainly(status, route, outcome, head);
            // whether it broke off is for the body to say
            (told.body, told.cut) = (body, false);
            Body::Told(Box::new(told))
        })
    }
}

/// An answer's body that tells of its request when it is dropped.
pub struct Told {
    account: Account,
    body: Body,
    status: StatusCode,
    route: Option<usize>,
    outcome: Outcome,
    head: Duration,
    bytes: u64,
    ended: bool,
    /// It broke off, whatever the body says.
    cut: bool,
}

impl Told {
    /// Without the account.
    pub fn inner(&self) -> &Body {
        &self.body
    }

    /// So much of the body went out; all of it or not.
    pub(crate) fn sent(&mut self, bytes: u64, ended: bool) {
        (self.bytes, self.cut) = (bytes, !ended);
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(f))) => self.bytes += f.data_ref().map_or(0, |d| d.len() as u64),
            Poll::Ready(None) => self.ended = true,
            _ => {}
        }
        polled
    }

    pub(crate) fn is_over(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(crate) fn hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let a = &self.account;
        let took = a.begun.elapsed();
        let slow = a.proxy.config.slow.is_some_and(|limit| took >= limit);
        if !slow && a.proxy.access.is_none() {
            return;
        }
        let route = self.route.and_then(|i| a.proxy.config.routes.get(i));
        let entry = Entry {
            at: a.at,
            id: a.id,
            client: a.client,
            method: &a.method,
            uri: &a.uri,
            version: a.version,
            host: a.host.as_ref(),
            referer: a.referer.as_ref(),
            agent: a.agent.as_ref(),
            status: self.status.as_u16(),
            bytes: self.bytes,
            cut: self.cut || (!self.ended && !self.body.is_end_stream()),
            head: self.head,
            took,
            outcome: self.outcome,
            route: route.map(|r| (r.host.as_str(), r.prefix.as_str())),
        };
        if let Some(log) = &a.proxy.access {
            log.put(&entry);
        }
        if slow {
            tell_slow(&entry);
        }
    }
}

/// At most so many a second: a slow origin makes everything slow.
fn tell_slow(e: &Entry<'_>) {
    static SECOND: AtomicU64 = AtomicU64::new(0);
    static TOLD: AtomicU64 = AtomicU64::new(0);
    let now = e.at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    if SECOND.swap(now, Ordering::Relaxed) != now {
        let more = TOLD.swap(0, Ordering::Relaxed).saturating_sub(SLOW_A_SECOND);
        if more > 0 {
            log::warn!("event=slow-requests-untold count={more}");
        }
    }
    if TOLD.fetch_add(1, Ordering::Relaxed) >= SLOW_A_SECOND {
        return;
    }
    let (host, prefix) = e.route.unwrap_or(("-", ""));
    log::warn!(
        "event=slow request={:016x} head={:?} took={:?} outcome={} status={} bytes={} cut={} route={host}{prefix} \
         client={} {} {:?}",
        e.id,
        e.head,
        e.took,
        e.outcome.name(),
        e.status,
        e.bytes,
        e.cut,
        e.client.map_or("-".to_owned(), |c| c.to_string()),
        e.method,
        e.uri.path(),
    );
}
