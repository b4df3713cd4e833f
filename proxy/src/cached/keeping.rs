//! What becomes of an origin's answer in the cache: it is kept, freshens what is kept, or says that nothing can be.

use super::Ours;
use crate::body::Body;
use crate::cache::fill::{self, Keep};
use crate::cache::flight::{Leader, Outcome as Landing, Part};
use crate::cache::held::Epoch;
use crate::cache::object::{Head, Object};
use crate::cache::policy::{self, Refusal};
use crate::cache::store::{Found, Key};
use crate::cache::{Cache, partial};
use crate::forward::CloseDelimited;
use crate::proxy::{Asked, Proxy};
use http::header::{
    ETAG, HeaderMap, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE,
    SET_COOKIE,
};
use http::{Method, Request, Response, StatusCode};
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

impl Proxy {
    /// Has an answer kept if it may be; says whether. Of the key: when the origin was asked, see [`Cache::epoch`].
    #[allow(clippy::too_many_arguments, reason = "all of them are one fetch")]
    pub(super) fn keep(
        &self,
        cache: &Arc<Cache>,
        asked: &Asked,
        (key, epoch): (&Key, &Epoch),
        fields: &HeaderMap,
        method: &Method,
        mut answer: Response<Body>,
        delay: u64,
        leader: Option<Leader>,
    ) -> (Response<Body>, bool) {
        let now = (engine::time::now(), SystemTime::now());
        let rules = self.config.routes[asked.route].rules;
        if self.config.routes[asked.route].response_headers.removes(&SET_COOKIE) {
            // no client gets it: it says nothing about whom the answer is for
            answer.headers_mut().remove(SET_COOKIE);
        }
        let part = answer.status() == StatusCode::PARTIAL_CONTENT
            && fields.contains_key(RANGE)
            && partial::position(answer.headers()).is_some();
        let status = if part { StatusCode::OK } else { answer.status() };
        let judged = match answer.extensions().get::<CloseDelimited>() {
            // nobody knows whether that was all of it
            Some(_) => Err(Refusal::Useless),
            None => policy::judge(method, fields, status, answer.headers(), now.1, rules),
        };
        let key = &if part { partial::key(key) } else { key.clone() };
        let freshness = match judged {
            Ok(f) => f,
            Err(refusal) => {
                if refusal != Refusal::Request {
                    let (found, variant) = cache.store.find(key, fields, now.0);
                    // what was kept is older than what may not be kept
                    if answer.status().is_success() || !matches!(found, Found::Object(_)) {
                        cache.store.uncacheable(&variant, now.0);
                        cache.forget(&variant);
                    }
                }
                leader.into_iter().for_each(|l| l.done(Landing::NotStored));
                return (answer, false);
            }
        };
        let head = Head::new(answer.status(), answer.headers(), freshness, delay, now);
        let (cache, key, epoch) = (cache.clone(), key.clone(), epoch.clone());
        let keep = Keep { cache, key, epoch, request: fields.clone(), head, leader };
        let (parts, body) = answer.into_parts();
        let (body, kept) = fill::fill(body, keep);
        (Response::from_parts(parts, body), kept)
    }

    /// Puts a 304's news into what is kept.
    #[allow(clippy::too_many_arguments, reason = "all of them are one fetch")]
    pub(super) fn freshen(
        &self,
        cache: &Arc<Cache>,
        asked: &Asked,
        (key, epoch): (&Key, &Epoch),
        fields: &HeaderMap,
        o: &Object,
        news: &HeaderMap,
        delay: u64,
    ) -> Object {
        let now = (engine::time::now(), SystemTime::now());
        let headers = o.updated(news);
        let rules = self.config.routes[asked.route].rules;
        let judged = policy::judge(&Method::GET, fields, o.head.status, &headers, now.1, rules);
        let freshness =
            judged.unwrap_or(policy::Freshness { lifetime: 0, ask_always: true, ..o.head.freshness });
        let mut head = Head::new(o.head.status, &headers, freshness, delay, now);
        // the age is that of the 304, not of what it is about
        head.initial_age = policy::initial_age(news, delay, now.1);
        match judged {
            Ok(_) => cache.put(key, epoch, fields, o.renewed(head.clone())),
            Err(Refusal::Answer) => {
                cache.store.remove(key);
                cache.forget(key);
            }
            Err(_) => {}
        }
        o.renewed(head)
    }

    /// Asks the origin in the background, unless somebody does already.
    pub(super) fn refresh(
        self: &Arc<Self>,
        cache: &Arc<Cache>,
        ours: &Ours,
        asked: &Asked,
        o: Arc<Object>,
        variant: &Key,
    ) {
        let epoch = cache.epoch(&ours.key);
        let Part::Lead(leader) = cache.flights.join(variant, &epoch) else { return };
        let mut request = Request::new(Body::Empty);
        *request.uri_mut() = ours.request.uri().clone();
        *request.headers_mut() = ours.request.headers().clone();
        // whoever it was has been answered: what becomes of this is for everybody
        remove_conditions(request.headers_mut());
        condition(&mut request, &o);
        let (proxy, cache) = (self.clone(), cache.clone());
        // nobody waits for this one's interim answers
        let asked = Asked { interim: None, ..asked.clone() };
        let (key, fields) = (ours.key.clone(), ours.fields.clone());
        let work = async move {
            let upload = Rc::default();
            match proxy.fetch(&asked, request, &upload).await {
                Ok((answer, delay)) if answer.status() == StatusCode::NOT_MODIFIED => {
                    proxy.freshen(&cache, &asked, (&key, &epoch), &fields, &o, answer.headers(), delay);
                    leader.done(Landing::Stored);
                }
                // a failure doesn't take the place of what still may be used
                Ok((answer, _)) if answer.status().is_server_error() => {}
                Ok((answer, delay)) => {
                    let leader = Some(leader);
                    let get = &Method::GET;
                    let kept =
                        proxy.keep(&cache, &asked, (&key, &epoch), &fields, get, answer, delay, leader);
                    if kept.1 {
                        fill::read(kept.0.into_body()).await;
                    }
                }
                Err(e) => log::info!("event=refresh-failed key={key:?}: {}", e.why),
            }
        };
        drop(engine::spawn(async move {
            fill::unless_draining(work).await;
        }));
    }
}

fn remove_conditions(headers: &mut HeaderMap) {
    for name in [IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_RANGE, RANGE] {
        headers.remove(name);
    }
}

/// Makes a request ask whether `o` is still good, whatever the client's own condition was.
pub(super) fn condition(request: &mut Request<Body>, o: &Object) {
    if !o.has_validator() {
        return;
    }
    let h = request.headers_mut();
    remove_conditions(h);
    let mut put = |name, value: Option<&HeaderValue>| {
        if let Some(v) = value {
            h.insert(name, v.clone());
        }
    };
    put(IF_NONE_MATCH, o.head.headers.get(ETAG));
    put(IF_MODIFIED_SINCE, o.head.headers.get(LAST_MODIFIED));
}
