//! An HTTP/1.1 reverse proxy on the engine; hyper speaks the protocol.
//!
//! What it must not know: who supervises it, how it is started, where its listeners come from. It is given connections
//! and a [`ProxyConfig`], and answers.
//!
//! Read in this order:
//!
//! 1. [`rt`]: hyper's runtime traits on the engine; [`serve`]: one connection, with its timeouts and its drain;
//! 2. [`body`], [`headers`], [`pages`]: what messages are made of;
//! 3. [`router`]: host and path to a route; pure;
//! 4. [`pool`]: connections to origins, per thread; [`resolve`]: their names;
//! 5. [`forward`]: one request's way to an origin and back; [`proxy`](mod@proxy): all of it together.

pub mod body;
pub mod continuity;
pub mod forward;
pub mod guard;
pub mod headers;
pub mod pages;
pub mod pool;
pub mod proxy;
pub mod resolve;
pub mod router;
pub mod rt;
pub mod serve;
pub mod strict;

pub use body::Body;
pub use proxy::{Proxy, ProxyConfig};
pub use router::{OriginConfig, RouteConfig};
