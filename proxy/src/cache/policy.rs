//! The rules of RFC 9111 for a shared cache; pure: no clock, no store.
//!
//! Two questions: may this answer be kept, and for how long is it fresh ([`judge`]); may what is kept answer this request
//! ([`decide`]). Times are seconds.

use super::directives::{self, Directives};
use crate::conditional::date;
use http::header::{
    AGE, AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_LOCATION, DATE, ETAG, EXPIRES, HeaderMap,
    HeaderName, LAST_MODIFIED, SET_COOKIE, VARY,
};
use http::{Method, Response, StatusCode, Uri};
use std::time::SystemTime;

/// A tenth of the age of what was not changed for long is taken for its lifetime, up to a day.
const HEURISTIC_PART: u64 = 10;
const HEURISTIC_MOST: u64 = 86_400;
/// How long something stale may answer where the origin can't be reached at all and nothing forbids it (RFC 9111, 4.2.4).
const DISCONNECTED: u64 = 86_400;

/// What is known of a kept answer's usability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    /// How old it may be.
    pub lifetime: u64,
    /// How long after that it may be used while another one is fetched.
    pub stale_while_revalidate: u64,
    /// How long after its lifetime it may be used when the origin fails; None: not said.
    pub stale_if_error: Option<u64>,
    /// It must not be used when stale.
    pub strict: bool,
    /// It must not be used without asking.
    pub ask_always: bool,
}

#[cfg(test)]
impl Freshness {
    /// A minute, and nothing else.
    pub(crate) const MINUTE: Freshness = Freshness {
        lifetime: 60,
        stale_while_revalidate: 0,
        stale_if_error: None,
        strict: false,
        ask_always: false,
    };
}

/// Why an answer isn't kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// By the request's nature: another request for the same may well be kept.
    Request,
    /// By the answer's own words: the next one will say so too.
    Answer,
    /// It would be of no use.
    Useless,
}

/// Statuses whose answers may be kept although nothing says how long (RFC 9110, 15.1), without 206, which isn't kept at all.
const HEURISTIC: &[u16] = &[200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501];
/// Statuses whose meaning for caches is known here; for `must-understand`.
const UNDERSTOOD: &[u16] = &[
    200, 203, 204, 300, 301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 406, 410, 414, 421, 451, 500, 501,
    502, 503, 504,
];

/// An operator's own lifetimes, in seconds, where they differ from what origins say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    /// Of everything that may be kept, whatever its origin says; failures (400 and above) excepted.
    pub ttl: Option<u64>,
    /// Of what says nothing about it.
    pub default_ttl: Option<u64>,
    /// Of failures ([`NEGATIVE`]) that say nothing about it.
    pub negative_ttl: Option<u64>,
}

/// Failures that may be remembered, if that is wanted.
pub const NEGATIVE: &[u16] = &[400, 403, 404, 405, 410, 414, 500, 501, 502, 503, 504];

/// Does [`judge`] look at this field of an answer? `name` in any case.
pub(crate) fn reads(name: &str) -> bool {
    let is = |other: &HeaderName| name.eq_ignore_ascii_case(other.as_str());
    match name.len() {
        4 => is(&DATE) || is(&ETAG) || is(&VARY),
        7 => is(&EXPIRES),
        10 => is(&SET_COOKIE),
        13 => is(&LAST_MODIFIED) || is(&CACHE_CONTROL),
        17 => is(&directives::TARGETED),
        _ => false,
    }
}

/// May an answer be kept, and how long is it fresh? `now` is when it came.
///
/// # Errors
/// Why not.
pub fn judge(
    method: &Method,
    request: &HeaderMap,
    status: StatusCode,
    answer: &HeaderMap,
    now: SystemTime,
    rules: Rules,
) -> Result<Freshness, Refusal> {
    let d = Directives::of_response(answer);
    let asked = Directives::of_request(request);
    if *method != Method::GET || asked.no_store {
        return Err(Refusal::Request);
    }
    let code = status.as_u16();
    let understood = UNDERSTOOD.contains(&code);
    if code == 206 || code == 304 || code == 416 || code < 200 {
        return Err(Refusal::Request);
    }
    if d.must_understand && !understood {
        return Err(Refusal::Answer);
    }
    if (d.no_store && !d.must_understand) || d.private {
        return Err(Refusal::Answer);
    }
    if request.contains_key(AUTHORIZATION) && !(d.public || d.s_maxage.is_some() || d.must_revalidate) {
        return Err(Refusal::Request);
    }
    let mut varies = answer.get_all(VARY).iter().flat_map(|v| v.as_bytes().split(|b| *b == b','));
    if varies.any(|v| selects_by_what_we_add(v.trim_ascii())) {
        return Err(Refusal::Answer);
    }
    let explicit = explicit_lifetime(&d, answer, now);
    let negative = NEGATIVE.contains(&code);
    let lifetime = match explicit {
        // a cookie for one user and nothing that it may be kept for: keep it from the others, whatever the operator wants kept
        lifetime
            if answer.contains_key(SET_COOKIE) && !d.public && (d.no_cache || lifetime.unwrap_or(0) == 0) =>
        {
            return Err(Refusal::Answer);
        }
        _ if code < 400 && rules.ttl.is_some() => rules.ttl.unwrap_or(0),
        Some(n) => n,
        None if negative && rules.negative_ttl.is_some() => rules.negative_ttl.unwrap_or(0),
        None if HEURISTIC.contains(&code) || d.public => {
            rules.default_ttl.filter(|_| !negative).unwrap_or_else(|| heuristic_lifetime(answer, now))
        }
        None => return Err(Refusal::Answer),
    };
    let f = Freshness {
        lifetime,
        stale_while_revalidate: d.stale_while_revalidate.unwrap_or(0),
        stale_if_error: d.stale_if_error,
        strict: d.must_revalidate || d.proxy_revalidate || d.s_maxage.is_some(),
        ask_always: d.no_cache,
    };
    let validators = answer.contains_key(ETAG) || answer.contains_key(LAST_MODIFIED);
    let usable =
        (lifetime > 0 && !f.ask_always) || f.stale_while_revalidate > 0 || f.stale_if_error.is_some();
    if !validators && !usable {
        return Err(Refusal::Useless);
    }
    Ok(f)
}

/// An answer that varies by this can't be found again: by anything (`*`), or by what origins get from us instead of the client.
fn selects_by_what_we_add(name: &[u8]) -> bool {
    let ours: [&[u8]; 3] = [b"*", b"forwarded", b"x-forwarded-for"];
    ours.iter().any(|n| name.eq_ignore_ascii_case(n))
}

fn explicit_lifetime(d: &Directives, answer: &HeaderMap, now: SystemTime) -> Option<u64> {
    if let Some(n) = d.s_maxage.or(d.max_age) {
        return Some(n);
    }
    // one that can't be read, or several of them, are in the past (RFC 9111, 5.3)
    answer.contains_key(EXPIRES).then(|| {
        let from = date(answer, &DATE).unwrap_or(now);
        let until = date(answer, &EXPIRES);
        until.and_then(|u| u.duration_since(from).ok()).map_or(0, |d| d.as_secs())
    })
}

fn heuristic_lifetime(answer: &HeaderMap, now: SystemTime) -> u64 {
    let from = date(answer, &DATE).unwrap_or(now);
    let age =
        date(answer, &LAST_MODIFIED).and_then(|m| from.duration_since(m).ok()).map_or(0, |d| d.as_secs());
    (age / HEURISTIC_PART).min(HEURISTIC_MOST)
}

/// May the answer to a POST be kept for GET? It says for how long, and that it is what its target has now (RFC 9110, 9.3.3).
pub fn stands_for_get<B>(host: &str, target: &Uri, answer: &Response<B>) -> bool {
    let h = answer.headers();
    let location = h.get(CONTENT_LOCATION).and_then(|v| v.to_str().ok()).unwrap_or("");
    let path = target.path_and_query().map_or("/", |p| p.as_str());
    let same =
        location == path || location.strip_prefix("http://").is_some_and(|l| l == format!("{host}{path}"));
    let d = Directives::of_response(h);
    answer.status() == StatusCode::OK
        && same
        && (d.s_maxage.or(d.max_age).is_some() || h.contains_key(EXPIRES))
}

/// Does the answer to a HEAD request tell of the same representation as a kept one? (RFC 9111, 4.3.5)
pub fn head_agrees(kept: &HeaderMap, news: &HeaderMap) -> bool {
    [ETAG, LAST_MODIFIED, CONTENT_LENGTH].iter().all(|n| news.get(n).is_none_or(|v| kept.get(n) == Some(v)))
}

/// How old an answer was when it came (RFC 9111, 4.2.3).
pub fn initial_age(answer: &HeaderMap, delay: u64, now: SystemTime) -> u64 {
    let first = answer.get(AGE).and_then(|v| v.to_str().ok()).and_then(|v| v.split(',').next());
    let said = first.map(str::trim).filter(|v| !v.is_empty() && v.bytes().all(|b| b.is_ascii_digit()));
    let said = said.map_or(0, |v| v.parse().unwrap_or(1u64 << 31).min(1 << 31));
    let apparent = date(answer, &DATE).and_then(|d| now.duration_since(d).ok()).map_or(0, |d| d.as_secs());
    apparent.max(said + delay)
}

/// What a kept answer of a certain age is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Answers.
    Use,
    /// Answers, and another one is fetched.
    UseAndRefresh,
    /// The origin is asked first. `forced`: because this client wants it, not because it is stale.
    Ask {
        /// See there.
        forced: bool,
    },
}

/// May what is kept answer this request?
pub fn decide(asked: &Directives, f: &Freshness, age: u64) -> Decision {
    let stale_for = (age + 1).saturating_sub(f.lifetime);
    if f.ask_always {
        return Decision::Ask { forced: false };
    }
    let too_old = asked.max_age.is_some_and(|most| age > most);
    let ends_soon = asked.min_fresh.is_some_and(|n| f.lifetime < age.saturating_add(n));
    if asked.no_cache || (too_old && asked.max_stale.is_none()) || ends_soon {
        return Decision::Ask { forced: stale_for == 0 };
    }
    if stale_for == 0 {
        return Decision::Use;
    }
    if !f.strict && asked.max_stale.is_some_and(|n| stale_for <= n) {
        return Decision::Use;
    }
    if !f.strict && stale_for <= f.stale_while_revalidate {
        return Decision::UseAndRefresh;
    }
    Decision::Ask { forced: false }
}

/// May something stale answer because the origin failed? `reached`: it answered, with an error.
pub fn use_on_error(asked: &Directives, f: &Freshness, age: u64, reached: bool) -> bool {
    if f.strict || f.ask_always || asked.no_cache {
        return false;
    }
    let stale_for = age.saturating_sub(f.lifetime);
    let allowed = f.stale_if_error.or(asked.stale_if_error);
    match (allowed, reached) {
        (Some(n), _) => stale_for <= n,
        (None, true) => false,
        (None, false) => stale_for <= DISCONNECTED,
    }
}

/// Does a request with this method make what is kept for its target invalid, if it succeeds?
pub fn invalidates(method: &Method, status: StatusCode) -> bool {
    let safe = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE);
    !safe && (status.is_success() || status.is_redirection())
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
