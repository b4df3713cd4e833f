//! `[[route]]`: host and path prefix to origins.

use super::route_values::{
    balance, host, host_header, name, origins, pair, parameter, prefix, protocol, redirect, redirect_status,
    whole_query,
};
use super::value::{self, Raw, Wrong};
use std::path::PathBuf;
use std::time::Duration;

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// `*`, a host, or `*.suffix`; lower case.
    pub host: String,
    /// Begins with `/`.
    pub prefix: String,
    /// Servers behind us; empty if something else answers.
    pub origins: Vec<Origin>,
    /// Files below this directory answer.
    pub files: Option<PathBuf>,
    /// This status answers, with `respond_body`.
    pub respond: Option<u16>,
    /// Text.
    pub respond_body: String,
    /// The client is sent there, with `redirect_status`.
    pub redirect: Option<String>,
    /// 301, 302, 303, 307 or 308.
    pub redirect_status: u16,
    /// Which of several origins gets a request.
    pub balance: Balance,
    /// The prefix is taken away before the request is passed on.
    pub strip_prefix: bool,
    /// `keep`, `origin`, or a name.
    pub host_header: String,
    /// Names, and `Name: value`: changes to requests.
    pub request_headers: Changes,
    /// Changes to answers.
    pub response_headers: Changes,
    /// Name and TCP connection.
    pub connect_timeout: Duration,
    /// From the request to the head of the answer.
    pub first_byte_timeout: Duration,
    /// Between two parts of a body.
    pub read_timeout: Duration,
    /// From the request to the end of the answer; zero is no limit.
    pub total_timeout: Duration,
    /// How long nothing may move in a tunnel.
    pub tunnel_timeout: Duration,
    /// Protocols a client may change to, in lower case.
    pub upgrade: Vec<String>,
    /// Bytes of a request's body.
    pub max_body: u64,
    /// Failures in a row until an origin is left out.
    pub max_failures: u32,
    /// For how long at first.
    pub eject_time: Duration,
    /// A path that origins are asked for regularly.
    pub health_check: Option<String>,
    /// How often.
    pub health_interval: Duration,
    /// Answers may be kept in the cache.
    pub cache: bool,
    /// Lifetimes instead of what origins say; zero is what they say.
    pub cache_ttl: Duration,
    /// Lifetime of what says nothing about it; zero is by heuristics.
    pub cache_default_ttl: Duration,
    /// Lifetime of failures that say nothing about it; zero keeps none.
    pub cache_negative_ttl: Duration,
    /// The parameters of a query that tell answers apart; none: all of them.
    pub cache_query: Option<Vec<String>>,
    /// Those that don't.
    pub cache_ignore_query: Vec<String>,
}

/// Header fields to remove and to set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Names.
    pub remove: Vec<String>,
    /// `Name: value`.
    pub set: Vec<String>,
}

/// Which of several origins gets a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The one with the fewest requests in progress.
    LeastConnections,
}

impl Default for Route {
    fn default() -> Self {
        Route {
            host: "*".into(),
            prefix: "/".into(),
            origins: Vec::new(),
            files: None,
            respond: None,
            respond_body: String::new(),
            redirect: None,
            redirect_status: 302,
            balance: Balance::RoundRobin,
            strip_prefix: false,
            host_header: "keep".into(),
            request_headers: Changes::default(),
            response_headers: Changes::default(),
            connect_timeout: Duration::from_secs(5),
            first_byte_timeout: Duration::from_secs(60),
            read_timeout: Duration::from_secs(60),
            total_timeout: Duration::ZERO,
            tunnel_timeout: Duration::from_secs(600),
            upgrade: vec!["websocket".into()],
            max_body: 1 << 30,
            max_failures: 3,
            eject_time: Duration::from_secs(5),
            health_check: None,
            health_interval: Duration::from_secs(5),
            cache: true,
            cache_ttl: Duration::ZERO,
            cache_default_ttl: Duration::ZERO,
            cache_negative_ttl: Duration::ZERO,
            cache_query: None,
            cache_ignore_query: Vec::new(),
        }
    }
}

impl Route {
    /// Puts a value in its place; None if there is no such key.
    pub fn set(&mut self, key: &str, v: &Raw) -> Option<Result<(), Wrong>> {
        let done = match key {
            "host" => host(v).map(|h| self.host = h),
            "prefix" => prefix(v).map(|p| self.prefix = p),
            "origin" => self.set_origin(v),
            "respond" => value::integer(v, 200, 599).map(|n| self.respond = Some(n as u16)),
            "respond_body" => value::text(v).map(|t| self.respond_body = t),
            "redirect" => value::text(v).and_then(redirect).map(|t| self.redirect = Some(t)),
            "redirect_status" => redirect_status(v).map(|n| self.redirect_status = n),
            "balance" => balance(v).map(|b| self.balance = b),
            "strip_prefix" => value::boolean(v).map(|b| self.strip_prefix = b),
            "host_header" => host_header(v).map(|h| self.host_header = h),
            "request_headers" => value::list(v, pair).map(|l| self.request_headers.set = l),
            "remove_request_headers" => value::list(v, name).map(|l| self.request_headers.remove = l),
            "response_headers" => value::list(v, pair).map(|l| self.response_headers.set = l),
            "remove_response_headers" => value::list(v, name).map(|l| self.response_headers.remove = l),
            "connect_timeout" => value::positive(v).map(|d| self.connect_timeout = d),
            "first_byte_timeout" => value::positive(v).map(|d| self.first_byte_timeout = d),
            "read_timeout" => value::positive(v).map(|d| self.read_timeout = d),
            "total_timeout" => value::duration(v).map(|d| self.total_timeout = d),
            "tunnel_timeout" => value::positive(v).map(|d| self.tunnel_timeout = d),
            "upgrade" => value::list(v, protocol).map(|l| self.upgrade = l),
            "max_body" => value::bytes(v).map(|n| self.max_body = n),
            "max_failures" => value::integer(v, 1, 1000).map(|n| self.max_failures = n as u32),
            "eject_time" => value::positive(v).map(|d| self.eject_time = d),
            "health_check" => prefix(v).map(|p| self.health_check = Some(p)),
            "health_interval" => value::positive(v).map(|d| self.health_interval = d),
            "cache" => value::boolean(v).map(|b| self.cache = b),
            "cache_ttl" => value::duration(v).map(|d| self.cache_ttl = d),
            "cache_default_ttl" => value::duration(v).map(|d| self.cache_default_ttl = d),
            "cache_negative_ttl" => value::duration(v).map(|d| self.cache_negative_ttl = d),
            "cache_query" => value::list(v, parameter).map(|l| self.cache_query = whole_query(l)),
            "cache_ignore_query" => value::list(v, parameter).map(|l| self.cache_ignore_query = l),
            _ => return None,
        };
        Some(done)
    }

    fn set_origin(&mut self, v: &Raw) -> Result<(), Wrong> {
        let list = value::list(v, value::text)?;
        if let Some(path) = list.first().and_then(|u| u.strip_prefix("file://")) {
            let [url] = &list[..] else { return Err("file:// is the only origin of its route".into()) };
            if !path.starts_with('/') {
                return Err(format!("{url:?} must be an absolute path: \"file:///srv/www\""));
            }
            self.files = Some(path.into());
            return Ok(());
        }
        origins(v).map(|o| self.origins = o)
    }

    /// Who answers, in words; None if nobody does.
    pub fn target(&self) -> Option<String> {
        self.targets().into_iter().flatten().next()
    }

    /// Only one of them can answer.
    pub fn has_several_targets(&self) -> bool {
        self.targets().iter().flatten().count() > 1
    }

    fn targets(&self) -> [Option<String>; 4] {
        let origins = || self.origins.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        [
            (!self.origins.is_empty()).then(origins),
            self.files.as_ref().map(|p| format!("file://{}", p.display())),
            self.respond.map(|n| format!("status {n}")),
            self.redirect.as_ref().map(|to| format!("redirect {} {to}", self.redirect_status)),
        ]
    }
}

/// A server behind us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Put before the path of each request; empty, or begins with `/` and doesn't end with one.
    pub path_prefix: String,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}:{}{}", self.host, self.port, self.path_prefix)
    }
}

/// The keys of a route, with their docs.
pub static ROUTE_KEYS: &[(&str, &str, &str)] = &[
    ("host", "\"*\"", "A host name, \"*.example.org\", or \"*\" for all."),
    ("prefix", "\"/\"", "Path prefix, whole segments; the longest one wins."),
    (
        "origin",
        "",
        "One URL or an array of them: \"http://host:port/path\"; or \"file:///directory\" for files. Else `respond` or `redirect`.",
    ),
    (
        "balance",
        "\"round-robin\"",
        "Which of several origins gets a request: round-robin or least-connections.",
    ),
    ("max_failures", "3", "Failures in a row after which an origin is left out while there are others."),
    ("eject_time", "\"5s\"", "For how long; twice as long each time it fails again, up to 16 times as long."),
    (
        "health_check",
        "no",
        "A path that every origin is asked for regularly; any other answer than 2xx or 3xx is a failure. `max_failures` of them in a row leave the origin out until one is good, whatever requests are answered.",
    ),
    ("health_interval", "\"5s\"", "Between two such questions; also the longest that an answer may take."),
    ("connect_timeout", "\"5s\"", "For the origin's name and all its addresses."),
    (
        "first_byte_timeout",
        "\"60s\"",
        "From the request, or the last part of its body, to the head of the answer.",
    ),
    ("read_timeout", "\"60s\"", "Between two parts of a body, the client's or the origin's."),
    ("total_timeout", "\"0\"", "From the request to the end of the answer; \"0\" is no limit."),
    (
        "upgrade",
        "[\"websocket\"]",
        "Protocols a client may change to (Upgrade), if the origin agrees; [] allows none.",
    ),
    ("tunnel_timeout", "\"10m\"", "How long nothing may move on a connection that has changed its protocol."),
    ("max_body", "\"1GiB\"", "Of a request; larger ones are answered 413."),
    ("strip_prefix", "false", "Takes the route's prefix away before the request is passed on."),
    (
        "host_header",
        "\"keep\"",
        "What the origin sees: keep (what the client said), origin (its own name), or a name.",
    ),
    ("request_headers", "[]", "\"Name: value\", set in requests that are passed on."),
    ("remove_request_headers", "[]", "Names, removed from requests before."),
    ("response_headers", "[]", "\"Name: value\", set in answers."),
    ("remove_response_headers", "[]", "Names, removed from answers before."),
    ("respond", "no", "A status to answer with at once, with `respond_body`."),
    ("respond_body", "\"\"", "Plain text."),
    ("redirect", "no", "A URL to send clients to; {host} and {uri} stand for the request's."),
    ("redirect_status", "302", "301, 302, 303, 307 or 308."),
    ("cache", "true", "Answers may be kept in the cache, as their origin allows."),
    (
        "cache_ttl",
        "\"0\"",
        "How long answers that may be kept are fresh, whatever their origin says of it (no-store, private and no-cache still count; failures, 400 and above, and cookies without a word about caches excepted); \"0\" goes by what it says.",
    ),
    (
        "cache_default_ttl",
        "\"0\"",
        "How long answers are fresh that say nothing of it; \"0\" is a tenth of the time since Last-Modified, a day at most.",
    ),
    (
        "cache_negative_ttl",
        "\"0\"",
        "How long failures (400, 403, 404, 405, 410, 414, 500 to 504) of the origin are kept that say nothing of it.",
    ),
    (
        "cache_query",
        "[\"*\"]",
        "Names of the parameters of a query that tell answers apart; [] ignores the query, [\"*\"] takes it as it is.",
    ),
    ("cache_ignore_query", "[]", "Names of parameters that don't, with `cache_query` as it is."),
];

#[cfg(test)]
mod tests {
    use super::super::load::parse_text;
    use super::*;

    #[test]
    fn every_key_of_the_table_is_taken_and_its_default_is_the_default() {
        for (key, default, _) in ROUTE_KEYS {
            let mut r = Route::default();
            assert!(r.set(key, &Raw::Other("nothing")).is_some(), "{key}");
            let Ok(v) = parse_text(default) else { continue };
            r.set(key, &v).unwrap().unwrap();
            assert_eq!(r, Route::default(), "{key}");
        }
        assert!(Route::default().set("hots", &Raw::Int(1)).is_none());
    }

    #[test]
    fn one_target_and_no_more() {
        let t = |s: &str| Raw::Text(s.into());
        let mut r = Route::default();
        assert_eq!(r.target(), None);
        r.set("origin", &t("file:///srv")).unwrap().unwrap();
        assert_eq!(r.target().as_deref(), Some("file:///srv"));
        assert!(!r.has_several_targets());
        r.set("respond", &Raw::Int(204)).unwrap().unwrap();
        assert!(r.has_several_targets());
        for (key, bad) in [
            ("origin", "file://srv"),
            ("redirect", "javascript:x"),
            ("request_headers", "no colon"),
            ("response_headers", "Content-Length: 3"),
            ("remove_response_headers", "a b"),
            ("host_header", "a b"),
            ("balance", "random"),
        ] {
            assert!(Route::default().set(key, &t(bad)).unwrap().is_err(), "{key} {bad}");
        }
    }
}
