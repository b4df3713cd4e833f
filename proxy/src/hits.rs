//! What the proxy does with plain requests: kept answers, and errands to origins.

use crate::account::Account;
use crate::body::Body;
use crate::cache::object::Object;
use crate::cache::policy::{self, Decision};
use crate::cache::store::{Entry, UNCACHEABLE};
use crate::cache::target::Query;
use crate::cache::{self, directives::Directives, wire::Wire};
use crate::direct::Errand;
use crate::direct::heads::{self, Onward, Passing, Usual};
use crate::fast::{Found, Hit, Hits};
use crate::plain::Plain;
use crate::proxy::Proxy;
use crate::route::{Caching, HostHeader, Target};
use crate::stats::Outcome;
use crate::{forward, router, upstream};
use http::header::AUTHORIZATION;
use http::{Response, StatusCode};
use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// In the extensions of an answer: a plain request for the same would be answered without hyper from here on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Learned;

impl Proxy {
    /// Remembers how the head of a kept answer goes out, from one that is about to.
    pub(crate) fn learn(&self, o: &Object, answer: &mut Response<Body>, route: usize, now: Instant) {
        let edits = &self.config.routes[route].response_headers;
        let age = o.head.age(now);
        // hyper has ways of its own with empty bodies
        let make = || Wire::of(answer, edits, age, o.ttl(age), route).filter(|_| !o.body.is_empty());
        o.learn(make);
        if o.wire().is_some() {
            answer.extensions_mut().insert(Learned);
        }
    }

    /// Notes whether an answer of an origin's, which isn't kept, could have gone without hyper.
    pub(crate) fn learn_form(&self, answer: &mut Response<Body>, route: usize) {
        if answer.extensions().get::<Usual>().is_some() {
            let bent = &self.upstreams[route].bent;
            bent.note(true);
            if bent.is_little() {
                answer.extensions_mut().insert(Learned);
            }
        }
    }
}

/// What is kept, and the ways to origins, for one client.
#[derive(Debug)]
pub(crate) struct Kept<'a> {
    pub proxy: &'a Arc<Proxy>,
    pub client: Option<IpAddr>,
}

impl Hits for Kept<'_> {
    fn find(&self, request: &Plain<'_>, head: &mut Vec<u8>) -> Found {
        let found = match self.kept(request) {
            Some(Entry::Object(o)) => self.hit(request, head, &o).map(Found::Hit),
            Some(Entry::Uncacheable(until)) => self.errand(request, head, Some(until)),
            _ => self.errand(request, head, None),
        };
        found.unwrap_or(Found::Nothing)
    }
}

impl Kept<'_> {
    fn kept(&self, request: &Plain<'_>) -> Option<Entry> {
        let store = &self.proxy.cache.as_ref()?.store;
        let fields = |names: &[http::HeaderName]| Cow::Owned(request.fields(names));
        cache::with_key(request.host, request.target, |key| store.look(key, fields))
    }

    /// Of a request that came with this round of the thread, if it is to be told of.
    fn account(&self, request: &Plain<'_>) -> Option<Box<Account>> {
        let begun = engine::time::now();
        self.proxy.tells().then(|| Box::new(Account::of_plain(self.proxy, request, self.client, begun)))
    }

    /// The answer, if `o` may be used as it is.
    fn hit(&self, request: &Plain<'_>, head: &mut Vec<u8>, o: &Object) -> Option<Hit> {
        let wire = o.wire().filter(|_| request.keepable)?;
        let begun = engine::time::now();
        let age = o.head.age(begun);
        if policy::decide(&Directives::default(), &o.head.freshness, age) != Decision::Use {
            return None;
        }
        wire.write(head, age, o.ttl(age), request.close);
        let took = begun.elapsed();
        self.proxy.counters.count_fast(wire.route, Outcome::Hit, took);
        let account = self.account(request);
        let told = account.map(|a| Box::new(a.plainly(StatusCode::OK, Some(wire.route), Outcome::Hit, took)));
        Some(Hit { body: o.body.clone(), validator: wire.validator, told })
    }

    /// How it is passed on, if it may be without hyper. `noted`: until then it is known that the answer can't be kept.
    fn errand(&self, request: &Plain<'_>, head: &mut Vec<u8>, noted: Option<Instant>) -> Option<Found> {
        let proxy = self.proxy;
        let path = request.target.split('?').next().unwrap_or("");
        let route = router::find(&proxy.config.routes, &router::bare_host(request.host), path)?;
        // a prefix that is found but not there is for others to cut off
        let prefix = proxy.config.routes[route].prefix.trim_end_matches('/');
        if proxy.config.routes[route].strip_prefix && !path.starts_with(prefix) {
            return None;
        }
        let (config, upstream) = (&proxy.config.routes[route], &proxy.upstreams[route]);
        let Target::Origins { list, .. } = &config.target else { return None };
        let client = self.client.filter(|_| upstream.bent.is_little())?;
        let begun = engine::time::now();
        let cached = proxy.cache.is_some() && config.cache == Caching::Standard;
        // which parameters count is found out with more words
        let simple = config.query == Query::All || path.len() == request.target.len();
        if cached && !(simple && noted.is_some_and(|until| until > begun)) {
            return None;
        }
        let authorization =
            || request.all.iter().filter(|f| f.name.eq_ignore_ascii_case(AUTHORIZATION.as_str()));
        if authorization().any(|f| forward::identifies_connection(f.value)) {
            return None;
        }
        let passing = cached.then(|| Passing {
            rules: config.rules,
            authorized: authorization().next().is_some(),
            key: noted
                .filter(|until| until.saturating_duration_since(begun) < UNCACHEABLE / 2)
                .map(|_| cache::with_key(request.host, request.target, |key| key.into())),
        });
        if !heads::leaves_alone(&config.response_headers) {
            return None;
        }
        let origin = upstream.origins.any()?;
        let of_origin = (config.host_header == HostHeader::Origin).then(|| upstream::host_of(&list[origin]));
        let host = match (&config.host_header, &of_origin) {
            (HostHeader::Fixed(host), _) => host.as_bytes(),
            (_, Some(host)) => host.as_bytes(),
            _ => request.host.as_bytes(),
        };
        let cut = if config.strip_prefix { config.prefix.as_str() } else { "" };
        let (name, prefix, edits) =
            (&*proxy.config.name, &*list[origin].path_prefix, &config.request_headers);
        heads::request(head, request, &Onward { name, client, cut, prefix, host, edits });
        let (proxy, busy, account) = (proxy.clone(), upstream.origins.begin(origin), self.account(request));
        Some(Found::Errand(Box::new(Errand { proxy, route, origin, busy, passing, begun, account })))
    }
}
