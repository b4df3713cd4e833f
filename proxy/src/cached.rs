//! Requests to origins through the cache.

mod keeping;

use self::keeping::condition;
use crate::body::{Body, Upload};
use crate::cache::directives::Directives;
use crate::cache::flight::{Leader, Outcome as Landing, Part};
use crate::cache::held::Epoch;
use crate::cache::object::Object;
use crate::cache::policy::{self, Decision};
use crate::cache::store::{Found, Key};
use crate::cache::{self, Cache, partial, serve, target};
use crate::date;
use crate::headers;
use crate::outward;
use crate::proxy::{Asked, Proxy};
use crate::stats::Outcome;
use crate::upstream::Failed;
use http::header::{
    AUTHORIZATION, HeaderMap, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE, RANGE,
    SET_COOKIE,
};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// How often a request takes part in a fetch for all before it goes by itself.
const ROUNDS: usize = 3;

/// An answer and what it is counted as.
pub type Counted = (Response<Body>, Outcome);

/// A request of a client's, ready for an origin, with what the cache needs of its original.
struct Ours {
    request: Request<Body>,
    upload: Rc<Upload>,
    /// As the client sent them.
    fields: HeaderMap,
    key: Key,
    directives: Directives,
    arrived: Instant,
}

impl Proxy {
    /// Answers from the cache, or from the origin and maybe into the cache.
    pub(crate) async fn through_cache(
        self: &Arc<Self>,
        cache: &Arc<Cache>,
        request: Request<Incoming>,
        asked: &Asked,
    ) -> Result<Counted, Failed> {
        let host = asked.host.as_ref().and_then(|h| h.to_str().ok()).unwrap_or("localhost");
        // what a route keeps for a host, and what that host itself says, are two things
        let outward = self.config.outward.is_some() && asked.route + 1 == self.config.routes.len();
        let scoped = outward.then(|| format!("{}{host}", outward::NAME));
        let host = scoped.as_deref().unwrap_or(host);
        let (method, uri) = (request.method().clone(), request.uri());
        let fields = request.headers();
        let directives = Directives::of_request(fields);
        let conditions = fields.contains_key(IF_MATCH) || fields.contains_key(IF_UNMODIFIED_SINCE);
        let readable = method == Method::GET || method == Method::HEAD;
        // a body means something only its origin knows, and so does what the client has us keep from the origin
        let special = !request.body().is_end_stream() || headers::keeps_from_origin(fields);
        if !readable || conditions || special || directives.no_store {
            return self.around(cache, request, asked, host).await;
        }
        let arrived = engine::time::now();
        let target = target::normal(uri, &self.config.routes[asked.route].query);
        // the usual case copies neither key nor fields
        let kept = |key: &str| cache.store.get(key, |_| Cow::Borrowed(fields));
        if let Some(o) = cache::with_key(host, cache::target_of(&target), kept)
            && policy::decide(&directives, &o.head.freshness, o.head.age(arrived)) == Decision::Use
        {
            let mut hit = serve::kept(&o, &method, fields, &self.config.name, "hit", arrived);
            if let Cow::Borrowed(_) = target {
                self.learn(&o, &mut hit, asked.route, arrived);
            }
            return Ok((hit, Outcome::Hit));
        }
        let key = cache::key(host, &target);
        let fields = fields.clone();
        let (request, upload) = self.prepared(request, asked)?;
        let ours = Ours { request, upload, fields, key, directives, arrived };
        self.look(cache, ours, asked).await
    }

    /// Past the cache; what succeeds by an unsafe method makes what is kept invalid.
    async fn around(
        self: &Arc<Self>,
        cache: &Arc<Cache>,
        request: Request<Incoming>,
        asked: &Asked,
        host: &str,
    ) -> Result<Counted, Failed> {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let fields = (method == Method::POST).then(|| request.headers().clone());
        let (request, upload) = self.prepared(request, asked)?;
        let query = &self.config.routes[asked.route].query;
        // what may be kept of it, and how things were before
        let asked_with = fields.map(|fields| {
            let key = cache::key(host, &target::normal(&uri, query));
            let before = cache.epoch(&key);
            (fields, key, before)
        });
        let (mut answer, delay) = self.fetch(asked, request, &upload).await?;
        if policy::invalidates(&method, answer.status()) {
            cache.invalidate(host, &target::normal(&uri, query), answer.headers()).await;
        }
        if policy::stands_for_get(host, &uri, &answer)
            && let Some((fields, key, before)) = asked_with
        {
            // unless it isn't the last word: somebody else has changed it meanwhile
            let key = (&key, &before.next());
            answer = self.keep(cache, asked, key, &fields, &Method::GET, answer, delay, None).0;
        }
        let why = if method == Method::GET || method == Method::HEAD { "bypass" } else { "method" };
        serve::say(answer.headers_mut(), &self.config.name, &format!("fwd={why}"));
        Ok((answer, Outcome::Bypass))
    }

    async fn look(
        self: &Arc<Self>,
        cache: &Arc<Cache>,
        ours: Ours,
        asked: &Asked,
    ) -> Result<Counted, Failed> {
        let method = ours.request.method().clone();
        // one that can be answered in a way of its own is no leader for others, and doesn't wait for them
        let own = [RANGE, IF_NONE_MATCH, IF_MODIFIED_SINCE, AUTHORIZATION];
        let alone = method == Method::HEAD || own.iter().any(|n| ours.fields.contains_key(n));
        if let Some(hit) = self.part_hit(cache, &ours) {
            return Ok((hit, Outcome::Hit));
        }
        let mut waited = 0;
        let patience = engine::time::now() + cache.coalesce;
        for _ in 0..ROUNDS {
            let epoch = cache.epoch(&ours.key);
            let (mut found, mut variant) = cache.store.find(&ours.key, &ours.fields, engine::time::now());
            // from disk: the way to a variant first, then the variant
            for _ in 0..2 {
                if !matches!(found, Found::Nothing) || !cache.load(&variant).await {
                    break;
                }
                (found, variant) = cache.store.find(&ours.key, &ours.fields, engine::time::now());
            }
            let now = engine::time::now();
            let hit = |o: &Object, status: &str| {
                serve::kept(o, &method, &ours.fields, &self.config.name, status, now)
            };
            let stale = match found {
                Found::Uncacheable if !ours.directives.only_if_cached => {
                    return self.miss(cache, ours, asked, (None, epoch), None, waited).await;
                }
                Found::Nothing | Found::Uncacheable => None,
                Found::Object(o) => {
                    let f = &o.head.freshness;
                    let age = o.head.age(now);
                    // fetched while we waited: new enough for us, however short its life is
                    if waited > 0 && o.head.received >= ours.arrived && !f.ask_always {
                        return Ok((hit(&o, "hit; collapsed"), Outcome::Hit));
                    }
                    match policy::decide(&ours.directives, f, age) {
                        Decision::Ask { .. } if ours.directives.only_if_cached => return Err(not_kept()),
                        Decision::Use => return Ok((hit(&o, "hit"), Outcome::Hit)),
                        Decision::UseAndRefresh => {
                            let answer = hit(&o, "hit");
                            self.refresh(cache, &ours, asked, o, &variant);
                            return Ok((answer, Outcome::Stale));
                        }
                        Decision::Ask { forced } if forced || f.ask_always => {
                            return self.miss(cache, ours, asked, (Some(o), epoch), None, waited).await;
                        }
                        Decision::Ask { .. } => Some(o),
                    }
                }
            };
            if stale.is_none() && ours.directives.only_if_cached {
                return Err(not_kept());
            }
            if alone && stale.is_none() {
                return self.miss(cache, ours, asked, (None, epoch), None, waited).await;
            }
            match cache.flights.join(&variant, &epoch) {
                Part::Lead(leader) => {
                    return self.miss(cache, ours, asked, (stale, epoch), Some(leader), waited).await;
                }
                Part::Follow(other) => {
                    waited += 1;
                    match engine::time::timeout_at(patience, other.wait()).await {
                        Ok(Landing::Stored | Landing::Gone) => {}
                        Ok(Landing::Failed(status, why)) => {
                            let f = |o: &Arc<Object>| {
                                let age = o.head.age(engine::time::now());
                                policy::use_on_error(&ours.directives, &o.head.freshness, age, false)
                            };
                            return match stale.filter(f) {
                                Some(o) => Ok((hit(&o, "hit; fwd=stale; collapsed"), Outcome::Stale)),
                                None => Err(Failed::new(status, why)),
                            };
                        }
                        _ => return self.miss(cache, ours, asked, (stale, epoch), None, waited).await,
                    }
                }
            }
        }
        let epoch = cache.epoch(&ours.key);
        self.miss(cache, ours, asked, (None, epoch), None, waited).await
    }

    /// Asks the origin, whether what is kept is still good or for something new.
    async fn miss(
        self: &Arc<Self>,
        cache: &Arc<Cache>,
        mut ours: Ours,
        asked: &Asked,
        (kept, epoch): (Option<Arc<Object>>, Epoch),
        leader: Option<Leader>,
        waited: usize,
    ) -> Result<Counted, Failed> {
        // what has been made invalid since it was found isn't asked about
        let kept = kept.filter(|_| epoch.is_current());
        let why = if kept.is_some() { "stale" } else { "miss" };
        let collapsed = if waited > 0 { "; collapsed" } else { "" };
        let method = ours.request.method().clone();
        if let Some(o) = &kept {
            condition(&mut ours.request, o);
        }
        let name = &self.config.name;
        let from_kept = |o: &Object, fields: &HeaderMap, status: String| {
            serve::kept(o, &method, fields, name, &status, engine::time::now())
        };
        let (mut answer, delay) = match self.fetch(asked, ours.request, &ours.upload).await {
            Ok(answer) => answer,
            Err(failed) => {
                let now = engine::time::now();
                if let Some(leader) = leader {
                    // it may be this one request that its origin doesn't like; hardly all of them
                    let is_down = matches!(failed.outcome, Outcome::Unreachable | Outcome::TimedOut);
                    leader.done(match is_down || waited + 1 >= ROUNDS {
                        true => Landing::Failed(failed.status, failed.why.clone()),
                        false => Landing::Gone,
                    });
                }
                return match kept {
                    Some(o)
                        if policy::use_on_error(
                            &ours.directives,
                            &o.head.freshness,
                            o.head.age(now),
                            false,
                        ) =>
                    {
                        Ok((
                            from_kept(&o, &ours.fields, format!("hit; fwd={why}{collapsed}")),
                            Outcome::Stale,
                        ))
                    }
                    _ => Err(failed),
                };
            }
        };
        let status = answer.status();
        if let Some(o) = kept {
            let age = o.head.age(engine::time::now());
            if status == StatusCode::NOT_MODIFIED && !is_for_client(&ours.fields, &o, answer.headers()) {
                let key = (&ours.key, &epoch);
                let o = self.freshen(cache, asked, key, &ours.fields, &o, answer.headers(), delay);
                if let Some(leader) = leader {
                    leader.done(Landing::Stored);
                }
                let said = format!("hit; fwd={why}; fwd-status=304{collapsed}");
                let mut hit = from_kept(&o, &ours.fields, said);
                give_cookies(hit.headers_mut(), answer.headers());
                return Ok((hit, Outcome::Revalidated));
            }
            if method == Method::HEAD && status.is_success() {
                // what it says of the representation is as good as what a 304 says
                if policy::head_agrees(&o.head.headers, answer.headers()) && o.head.status == status {
                    let key = (&ours.key, &epoch);
                    let o = self.freshen(cache, asked, key, &ours.fields, &o, answer.headers(), delay);
                    let news = std::mem::replace(answer.headers_mut(), o.head.headers.clone());
                    give_cookies(answer.headers_mut(), &news);
                } else {
                    cache.purge(ours.key.clone()).await;
                }
            }
            if matches!(status.as_u16(), 500 | 502 | 503 | 504)
                && policy::use_on_error(&ours.directives, &o.head.freshness, age, true)
            {
                if let Some(leader) = leader {
                    leader.done(Landing::Failed(status, "the origin fails".to_owned()));
                }
                let said = format!("hit; fwd={why}; fwd-status={}{collapsed}", status.as_u16());
                return Ok((from_kept(&o, &ours.fields, said), Outcome::Stale));
            }
        }
        let key = (&ours.key, &epoch);
        let stored = self.keep(cache, asked, key, &ours.fields, &method, answer, delay, leader);
        answer = stored.0;
        if !stored.1 {
            self.learn_form(&mut answer, asked.route);
        }
        let said = if stored.1 { "; stored" } else { "" };
        let code = status.as_u16();
        serve::say(answer.headers_mut(), name, &format!("fwd={why}; fwd-status={code}{collapsed}{said}"));
        Ok((answer, Outcome::Miss))
    }

    /// A range out of a part that is kept and fresh.
    fn part_hit(&self, cache: &Arc<Cache>, ours: &Ours) -> Option<Response<Body>> {
        if ours.request.method() != Method::GET || !ours.fields.contains_key(RANGE) {
            return None;
        }
        let now = engine::time::now();
        let part = cache.store.get(&partial::key(&ours.key), |_| Cow::Borrowed(&ours.fields))?;
        let usable = policy::decide(&ours.directives, &part.head.freshness, part.head.age(now));
        if usable != Decision::Use {
            return None;
        }
        partial::answer(&part, &ours.fields, &self.config.name, now)
    }

    /// Sends a request, and says how many seconds the answer took.
    async fn fetch(
        &self,
        asked: &Asked,
        request: Request<Body>,
        upload: &Rc<Upload>,
    ) -> Result<(Response<Body>, u64), Failed> {
        let sent = Instant::now();
        let answer = self.send(asked, request, upload).await?;
        let mut answer = self.passed_on(answer);
        date::stamp(answer.headers_mut(), SystemTime::now());
        Ok((answer, sent.elapsed().as_secs()))
    }
}

/// What a client is told who wants nothing but what is kept, and usable as it is.
fn not_kept() -> Failed {
    let why = "only an answer from the cache was asked for, and there is none";
    Failed { outcome: Outcome::Refused, ..Failed::new(StatusCode::GATEWAY_TIMEOUT, why) }
}

/// The cookies of an origin's answer are for who has asked it, whatever is kept.
fn give_cookies(to: &mut HeaderMap, news: &HeaderMap) {
    if news.contains_key(SET_COOKIE) {
        to.remove(SET_COOKIE);
        for value in news.get_all(SET_COOKIE) {
            to.append(SET_COOKIE, value.clone());
        }
    }
}

/// A 304 that answers the client's own condition: we had nothing to ask with.
fn is_for_client(fields: &HeaderMap, o: &Object, _news: &HeaderMap) -> bool {
    !o.has_validator() && (fields.contains_key(IF_NONE_MATCH) || fields.contains_key(IF_MODIFIED_SINCE))
}
