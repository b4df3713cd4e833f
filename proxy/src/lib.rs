//! An HTTP/1.1 reverse proxy on the engine; hyper speaks the protocol.
//!
//! What it must not know: who supervises it, how it is started, where its listeners come from. It is given connections
//! and a [`ProxyConfig`], and answers.
//!
//! Read in this order:
//!
//! 1. [`rt`]: hyper's runtime traits on the engine; [`strict`], [`guard`]: what stands between the socket and hyper;
//!    [`serve`]: one connection, with its timeouts and its drain;
//! 2. [`body`], [`headers`], [`date`](mod@date), [`edit`], [`pages`]: what messages are made of; [`check`]: what a request must fulfil;
//! 3. [`route`], [`router`]: routes, and which one a request takes; pure;
//! 4. [`pool`]: connections to origins, per thread; [`resolve`]: their names; [`origins`], [`probes`]: which of them is up;
//! 5. [`forward`], [`upstream`]: one request's way to an origin and back; [`interim`]: what comes before the answer;
//!    [`tunnel`]: what comes after the last one; [`outward`]: the forward proxy; `own`: without an origin;
//! 6. [`conditional`], [`range`](mod@range): pure; [`files`]: files as an origin;
//! 7. [`cache`]: what may be kept, and what is; [`cached`]: requests through it; [`stats`], [`metrics`]: what became of
//!    them; [`account`], [`access`], [`access_line`]: the same, one by one;
//! 8. [`plain`], [`fast`], `hits`: plain requests for what is kept, answered before hyper sees them; [`direct`]: those for what
//!    isn't;
//! 9. [`continuity`]: connections that outlive a process;
//! 10. [`proxy`](mod@proxy): all of it together.

pub mod access;
pub mod access_line;
pub mod account;
pub mod body;
pub mod cache;
pub mod cached;
pub mod check;
pub mod conditional;
pub mod continuity;
pub mod date;
pub mod direct;
pub mod edit;
pub mod fast;
pub mod files;
pub mod forward;
pub mod guard;
pub mod headers;
mod hits;
pub mod interim;
pub mod metrics;
pub mod origins;
pub mod outward;
mod own;
pub mod pages;
mod percent;
pub mod plain;
pub mod pool;
pub mod probes;
pub mod proxy;
pub mod range;
pub mod resolve;
pub mod route;
pub mod router;
pub mod rt;
pub mod serve;
pub mod stats;
pub mod strict;
mod trim;
pub mod tunnel;
pub mod upstream;

pub use access::AccessConfig;
pub use body::Body;
pub use cache::CacheConfig;
pub use proxy::{Proxy, ProxyConfig};
pub use route::{OriginConfig, RouteConfig, Target};
