//! Header fields that are about one hop (RFC 9110, 7.6), and those a proxy adds.

use http::header::{
    CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{Request, Version};
use std::net::IpAddr;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Removes what is meant for one hop: the fixed list, and what `Connection` names.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            .filter(|name| !is_end_to_end_always(name))
            .collect();
        named.iter().for_each(|name| {
            headers.remove(name);
        });
        headers.remove(CONNECTION);
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
}

/// Fields a client must not have us drop by naming them in `Connection`.
fn is_end_to_end_always(name: &HeaderName) -> bool {
    [HOST, http::header::CONTENT_LENGTH, X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST, VIA]
        .contains(name)
}

/// Says who passed the message on.
pub fn add_via(headers: &mut HeaderMap, version: Version, name: &str) {
    let protocol = if version == Version::HTTP_10 { "1.0" } else { "1.1" };
    let mut text = String::new();
    for before in headers.get_all(VIA) {
        if let Ok(before) = before.to_str() {
            text.push_str(before);
            text.push_str(", ");
        }
    }
    text.push_str(protocol);
    text.push(' ');
    text.push_str(name);
    if let Ok(v) = HeaderValue::from_str(&text) {
        headers.insert(VIA, v);
    }
}

/// True if a message has come through `name` before.
pub fn went_through(headers: &HeaderMap, name: &str) -> bool {
    let values = headers.get_all(VIA).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|hop| hop.split_whitespace().nth(1) == Some(name))
}

/// Says for whom a request is passed on.
pub fn add_forwarded(headers: &mut HeaderMap, client: Option<IpAddr>, host: Option<HeaderValue>) {
    if let Some(ip) = client {
        let before = headers.get(X_FORWARDED_FOR).and_then(|v| v.to_str().ok());
        let text = before.map_or_else(|| ip.to_string(), |b| format!("{b}, {ip}"));
        if let Ok(v) = HeaderValue::from_str(&text) {
            headers.insert(X_FORWARDED_FOR, v);
        }
    }
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    if let Some(host) = host {
        headers.entry(X_FORWARDED_HOST).or_insert(host);
    }
}

/// The host a request is for: of an absolute-form target, else of the one `Host` field.
///
/// # Errors
/// HTTP/1.1 without `Host`, several of them, or one that is no host.
pub fn host_of<B>(request: &Request<B>) -> Result<Option<HeaderValue>, &'static str> {
    let mut all = request.headers().get_all(HOST).iter();
    let (first, second) = (all.next(), all.next());
    if second.is_some() {
        return Err("several Host fields");
    }
    if let Some(authority) = request.uri().authority() {
        return HeaderValue::from_str(authority.as_str()).map(Some).map_err(|_| "the target names no host");
    }
    match first {
        None if request.version() == Version::HTTP_11 => Err("no Host field"),
        Some(v) if v.to_str().map_or(true, |h| h.contains(['/', '@', '?', '#', ' ', ','])) => {
            Err("Host is no host")
        }
        other => Ok(other.cloned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn one_hop_fields_go_and_named_ones_too() {
        let mut h = map(&[
            ("connection", "close, X-Mine"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("accept", "*/*"),
        ]);
        remove_hop_by_hop(&mut h);
        assert_eq!(h, map(&[("accept", "*/*")]));
    }

    #[test]
    fn a_client_cannot_have_us_drop_what_origins_rely_on() {
        let mut h =
            map(&[("connection", "x-forwarded-for, host"), ("x-forwarded-for", "1.2.3.4"), ("host", "a")]);
        remove_hop_by_hop(&mut h);
        assert_eq!(h.len(), 2);
    }

    #[test]
    fn via_grows_and_is_recognised() {
        let mut h = map(&[("via", "1.0 fred")]);
        assert!(!went_through(&h, "traffic-1"));
        add_via(&mut h, Version::HTTP_11, "traffic-1");
        assert_eq!(h["via"], "1.0 fred, 1.1 traffic-1");
        assert!(went_through(&h, "traffic-1") && went_through(&h, "fred"));
    }

    #[test]
    fn forwarded_for_grows() {
        let mut h = map(&[("x-forwarded-for", "9.9.9.9")]);
        add_forwarded(&mut h, Some([127, 0, 0, 1].into()), Some(HeaderValue::from_static("a")));
        assert_eq!(h["x-forwarded-for"], "9.9.9.9, 127.0.0.1");
        assert_eq!(h["x-forwarded-host"], "a");
    }

    #[test]
    fn hosts_that_are_none_are_refused() {
        let r = |uri: &str, hosts: &[&str]| {
            let mut b = Request::builder().uri(uri);
            for h in hosts {
                b = b.header(HOST, *h);
            }
            host_of(&b.body(()).unwrap()).map(|h| h.map(|h| h.to_str().unwrap().to_owned()))
        };
        assert_eq!(r("/", &["a:80"]), Ok(Some("a:80".into())));
        assert_eq!(r("http://b/", &["a"]), Ok(Some("b".into())));
        assert_eq!(r("/", &[]), Err("no Host field"));
        assert_eq!(r("/", &["a", "b"]), Err("several Host fields"));
        assert_eq!(r("/", &["a/b"]), Err("Host is no host"));
    }
}
