//! What is answered without an origin: fixed answers, redirects, PURGE.

use crate::body::Body;
use crate::cache;
use crate::cached::Counted;
use crate::forward;
use crate::pages::{self, Asker};
use crate::proxy::{Asked, Proxy};
use crate::route::Target;
use crate::stats::Outcome;
use crate::upstream::Failed;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use http::{Response, StatusCode, Uri};
use std::net::IpAddr;

impl Proxy {
    /// There is no route yet.
    pub(crate) fn is_unconfigured(&self) -> bool {
        self.config.routes.iter().all(|r| matches!(r.target, Target::Outward))
    }

    /// Forgets what is kept for a target.
    pub(crate) async fn purge(
        &self,
        client: Option<IpAddr>,
        host: Option<&HeaderValue>,
        uri: &Uri,
        asker: Asker,
    ) -> Result<Counted, Failed> {
        if !client.is_some_and(|c| self.config.purge_from.contains(&c.to_canonical())) {
            return Err(Failed::new(StatusCode::FORBIDDEN, "PURGE is not for you"));
        }
        let host = host.and_then(|h| h.to_str().ok()).unwrap_or("localhost");
        let had = match &self.cache {
            Some(cache) => cache.purge(cache::key(host, uri)).await,
            None => false,
        };
        log::info!("event=purge request={:016x} target={host}{uri} found={had}", asker.id);
        match had {
            true => Ok((fixed(StatusCode::OK, Bytes::from_static(b"purged\n")), Outcome::Own)),
            false => Err(Failed::new(StatusCode::NOT_FOUND, "nothing was kept")),
        }
    }
}

/// The answer of a route that always gives the same.
pub(crate) fn fixed(status: StatusCode, body: Bytes) -> Response<Body> {
    let mut r = Response::new(Body::Full(body));
    *r.status_mut() = status;
    r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    r
}

/// The way to somewhere else.
pub(crate) fn redirect(status: StatusCode, to: &str, asked: &Asked, uri: &Uri) -> Response<Body> {
    let host = asked.host.as_ref().and_then(|h| h.to_str().ok()).unwrap_or("localhost");
    let target = forward::target(uri, "", "").map_or("/".to_owned(), |t| t.to_string());
    // a path that begins with two slashes would name another host where nothing stands before it
    let target = format!("/{}", target.trim_start_matches('/'));
    let to = to.replace("{host}", host).replace("{uri}", &target);
    let mut r = pages::error(status, &to, asked.asker);
    if let Ok(v) = HeaderValue::from_str(&to) {
        r.headers_mut().insert(LOCATION, v);
    }
    r
}
