//! What a route is made of.

use crate::cache::policy::Rules;
use crate::cache::target::Query;
use crate::edit::Edits;
use crate::probes::Check;
use bytes::Bytes;
use http::StatusCode;
use http::header::HeaderValue;
use std::path::PathBuf;
use std::time::Duration;

/// One `[[route]]`.
#[derive(Debug, Clone, Default)]
pub struct RouteConfig {
    /// `*`, a host, or `*.suffix`; lower case.
    pub host: String,
    /// Path prefix; begins with `/`.
    pub prefix: String,
    /// Who answers.
    pub target: Target,
    /// The prefix is taken away before the request is passed on.
    pub strip_prefix: bool,
    /// What the origin sees as `Host`.
    pub host_header: HostHeader,
    /// Changes to requests before they are passed on.
    pub request_headers: Edits,
    /// Changes to answers before the client gets them.
    pub response_headers: Edits,
    /// Limits towards origins.
    pub timeouts: Timeouts,
    /// Bytes of a request's body.
    pub max_body: MaxBody,
    /// When an origin counts as down.
    pub health: Health,
    /// Its origins are checked so.
    pub check: Option<Check>,
    /// Answers may be kept in the cache.
    pub cache: Caching,
    /// For how long, where that differs from what origins say.
    pub rules: Rules,
    /// Which parameters tell answers apart.
    pub query: Query,
    /// Protocols that a client may change to, in lower case.
    pub upgrade: Vec<String>,
}

/// Who answers the requests of a route.
#[derive(Debug, Clone)]
pub enum Target {
    /// Servers behind us.
    Origins {
        /// At least one.
        list: Vec<OriginConfig>,
        /// Which of them gets a request.
        balance: Balance,
    },
    /// Files below a directory.
    Files(PathBuf),
    /// Always the same answer.
    Fixed {
        /// Its status.
        status: StatusCode,
        /// Its body; text.
        body: Bytes,
    },
    /// The host that the request names: see [`crate::outward`].
    Outward,
    /// Somewhere else.
    Redirect {
        /// 301, 302, 303, 307 or 308.
        status: StatusCode,
        /// The URL; `{host}` and `{uri}` stand for those of the request.
        to: String,
    },
}

impl Default for Target {
    fn default() -> Self {
        Target::Origins { list: Vec::new(), balance: Balance::RoundRobin }
    }
}

/// A server behind us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginConfig {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Put before the path; empty or `/…` without a slash at its end.
    pub path_prefix: String,
}

/// Which of several origins gets a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The one that has the fewest requests in progress.
    LeastConnections,
}

/// What an origin sees as `Host`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum HostHeader {
    /// What the client said.
    #[default]
    Keep,
    /// The origin's own name and port.
    Origin,
    /// This.
    Fixed(HeaderValue),
}

/// How long the stages may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Name and TCP connection.
    pub connect: Duration,
    /// From the request to the head of the answer.
    pub first_byte: Duration,
    /// Between two parts of a body, in either direction.
    pub between: Duration,
    /// From the request to the end of the answer; `None` is no limit.
    pub total: Option<Duration>,
    /// How long nothing may move in a tunnel.
    pub tunnel: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(60),
            between: Duration::from_secs(60),
            total: None,
            tunnel: Duration::from_secs(600),
        }
    }
}

/// When an origin counts as down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// Failures in a row.
    pub failures: u32,
    /// How long it isn't asked then, if there are others; doubled each time up to 16 times.
    pub eject: Duration,
}

impl Default for Health {
    fn default() -> Self {
        Health { failures: 3, eject: Duration::from_secs(5) }
    }
}

/// Bytes of a request's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxBody(pub u64);

impl Default for MaxBody {
    fn default() -> Self {
        MaxBody(1 << 30)
    }
}

/// May answers be kept?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Caching {
    /// As RFC 9111 says.
    #[default]
    Standard,
    /// Never.
    Off,
}
