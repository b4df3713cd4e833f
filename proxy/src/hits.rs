//! The proxy's kept answers for plain requests.

use crate::account::Account;
use crate::body::Body;
use crate::cache::object::Object;
use crate::cache::policy::{self, Decision};
use crate::cache::{self, directives::Directives, wire::Wire};
use crate::fast::{Hit, Hits};
use crate::plain::Plain;
use crate::proxy::Proxy;
use http::Response;
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
}

/// What is kept, for one client.
#[derive(Debug)]
pub(crate) struct Kept<'a> {
    pub proxy: &'a Arc<Proxy>,
    pub client: Option<IpAddr>,
}

impl Hits for Kept<'_> {
    fn find(&self, request: &Plain<'_>, head: &mut Vec<u8>) -> Option<Hit> {
        let proxy = self.proxy;
        let store = &proxy.cache.as_ref()?.store;
        let fields = |names: &[http::HeaderName]| Cow::Owned(request.fields(names));
        let o = cache::with_key(request.host, request.target, |key| store.get(key, fields))?;
        let wire = o.wire()?;
        let age = o.head.age(engine::time::now());
        if policy::decide(&Directives::default(), &o.head.freshness, age) != Decision::Use {
            return None;
        }
        wire.write(head, age, o.ttl(age), request.close);
        proxy.counters.count_fast(wire.route);
        let told = proxy.tells().then(|| {
            let body = Body::Full(o.body.clone());
            Box::new(Account::of_plain(proxy, request, self.client, wire.route, body))
        });
        Some(Hit { body: o.body.clone(), validator: wire.validator, told })
    }
}
