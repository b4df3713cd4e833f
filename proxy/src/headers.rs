//! Header fields that are about one hop (RFC 9110, 7.6), and those a proxy adds.

use http::header::{
    CONNECTION, CONTENT_LENGTH, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, MAX_FORWARDS,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{Request, Version};
use std::net::IpAddr;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
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
        TRANSFER_ENCODING,
        UPGRADE,
        HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
}

/// A client names fields in `Connection` that its origin then doesn't get: the answer is one to another request than it seems.
pub fn keeps_from_origin(headers: &HeaderMap) -> bool {
    let usual = ["close", "keep-alive", "te", "upgrade", "http2-settings", "proxy-connection"];
    let is_usual =
        |name: &[u8]| name.is_empty() || usual.iter().any(|u| name.eq_ignore_ascii_case(u.as_bytes()));
    let names = headers.get_all(CONNECTION).iter().flat_map(|v| v.as_bytes().split(|b| *b == b','));
    names.into_iter().any(|name| !is_usual(name.trim_ascii()))
}

/// Fields a client must not have us drop by naming them in `Connection`.
fn is_end_to_end_always(name: &HeaderName) -> bool {
    [HOST, CONTENT_LENGTH, X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST, FORWARDED, VIA]
        .contains(name)
        || [http::header::CACHE_CONTROL, http::header::AUTHORIZATION, http::header::COOKIE].contains(name)
}

/// Makes a request's head one of ours: what was meant for us goes; that we can take trailers is said.
pub fn for_next_hop(headers: &mut HeaderMap) {
    let trailers = wants_trailers(headers);
    remove_hop_by_hop(headers);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
}

/// The protocol a request asks to change to, if it is one of `allowed`; in lower case.
pub fn wanted_upgrade(headers: &HeaderMap, allowed: &[String]) -> Option<HeaderValue> {
    let mut all = headers.get_all(UPGRADE).iter();
    let (Some(one), None) = (all.next(), all.next()) else { return None };
    let values = headers.get_all(CONNECTION).iter().filter_map(|v| v.to_str().ok());
    let named = values.flat_map(|v| v.split(',')).any(|t| t.trim().eq_ignore_ascii_case("upgrade"));
    let protocol = one.to_str().ok()?.trim().to_ascii_lowercase();
    (named && allowed.contains(&protocol)).then(|| one.clone())
}

/// True if a client said that it takes trailer fields.
fn wants_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(TE).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|t| t.trim().eq_ignore_ascii_case("trailers"))
}

/// Counts `Max-Forwards` down; true if the request may go no further.
pub fn last_hop(headers: &mut HeaderMap) -> bool {
    let left = headers.get(MAX_FORWARDS).and_then(|v| v.to_str().ok()?.trim().parse::<u32>().ok());
    match left {
        Some(0) => true,
        Some(n) => {
            headers.insert(MAX_FORWARDS, HeaderValue::from(n - 1));
            false
        }
        None => false,
    }
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

/// Says for whom a request is passed on, in the old form and in that of RFC 7239.
pub fn add_forwarded(headers: &mut HeaderMap, client: Option<IpAddr>, host: Option<&HeaderValue>) {
    if let Some(ip) = client {
        let text = joined(headers, &X_FORWARDED_FOR, &ip.to_string());
        headers.insert(X_FORWARDED_FOR, text);
    }
    let element = Forwarded { client, host: host.and_then(|h| h.to_str().ok()) };
    let text = joined(headers, &FORWARDED, &element.to_string());
    headers.insert(FORWARDED, text);
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    // never the client's own: origins make links of it, and a cache would hand them to others
    match host {
        Some(host) => headers.insert(X_FORWARDED_HOST, host.clone()),
        None => headers.remove(X_FORWARDED_HOST),
    };
}

/// An element of `Forwarded` (RFC 7239).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Forwarded<'a> {
    pub client: Option<IpAddr>,
    /// With neither quotes nor backslashes: see [`host_of`].
    pub host: Option<&'a str>,
}

impl std::fmt::Display for Forwarded<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.client {
            Some(IpAddr::V4(ip)) => write!(f, "for={ip};")?,
            Some(IpAddr::V6(ip)) => write!(f, "for=\"[{ip}]\";")?,
            None => {}
        }
        if let Some(host) = self.host {
            write!(f, "host=\"{host}\";")?;
        }
        f.write_str("proto=http")
    }
}

/// All values of a field as one list, and one more.
fn joined(headers: &HeaderMap, name: &HeaderName, more: &str) -> HeaderValue {
    let mut text = String::new();
    for before in headers.get_all(name).iter().filter_map(|v| v.to_str().ok()) {
        text += before;
        text += ", ";
    }
    text += more;
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

/// The host a request is for: of an absolute-form target, else of the one `Host` field. In lower case (RFC 3986, 6.2.2.1), so
/// that an origin which minds can't be made to answer for a host in capitals what is then kept for the host.
///
/// # Errors
/// HTTP/1.1 without `Host`, several of them, or one that is no host.
pub fn host_of<B>(request: &Request<B>) -> Result<Option<HeaderValue>, &'static str> {
    let mut all = request.headers().get_all(HOST).iter();
    let (first, second) = (all.next(), all.next());
    if second.is_some() {
        return Err("several Host fields");
    }
    let lower = |host: &str| HeaderValue::from_str(&host.to_ascii_lowercase()).ok();
    if let Some(authority) = request.uri().authority() {
        let value = lower(authority.as_str()).filter(|_| is_host(authority.as_str()));
        return value.map(Some).ok_or("the target names no host");
    }
    match first {
        None if request.version() == Version::HTTP_11 => Err("no Host field"),
        Some(v) if !v.to_str().is_ok_and(is_host) => Err("Host is no host"),
        // allowed where the target has no authority, and as good as none
        Some(v) if v.is_empty() => Ok(None),
        Some(v) if v.as_bytes().iter().any(u8::is_ascii_uppercase) => Ok(v.to_str().ok().and_then(lower)),
        other => Ok(other.cloned()),
    }
}

/// `host[:port]`, with nothing in it that another reader could take for something else.
pub(crate) fn is_host(text: &str) -> bool {
    let (host, port) = match (text.rfind(':'), text.rfind(']')) {
        (Some(colon), None) => text.split_at(colon),
        (Some(colon), Some(bracket)) if colon > bracket => text.split_at(colon),
        _ => (text, ""),
    };
    let good = match host.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']').is_some_and(|v6| v6.parse::<std::net::Ipv6Addr>().is_ok()),
        None => host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&*+=".contains(&b)),
    };
    let port_good =
        port.is_empty() || port == ":" || port[1..].parse::<u16>().is_ok_and(|_| !port.contains('+'));
    good && port_good && (port.is_empty() || !host.is_empty())
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
    fn what_a_client_keeps_from_the_origin_is_noticed() {
        for (value, want) in [
            ("close", false),
            ("Keep-Alive, TE,", false),
            ("upgrade, HTTP2-Settings", false),
            ("accept-language", true),
            ("close, Origin", true),
            ("x y", true),
        ] {
            assert_eq!(keeps_from_origin(&map(&[("connection", value)])), want, "{value}");
        }
        assert!(!keeps_from_origin(&HeaderMap::new()));
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
        add_forwarded(&mut h, Some([127, 0, 0, 1].into()), Some(&HeaderValue::from_static("a")));
        assert_eq!(h["forwarded"], "for=127.0.0.1;host=\"a\";proto=http");
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
        assert_eq!(r("/", &["A.Example:80"]), Ok(Some("a.example:80".into())));
        assert_eq!(r("http://b/", &["a"]), Ok(Some("b".into())));
        assert_eq!(r("http://B/", &["a"]), Ok(Some("b".into())));
        assert_eq!(r("/", &[]), Err("no Host field"));
        assert_eq!(r("/", &["a", "b"]), Err("several Host fields"));
        for bad in
            ["a/b", "u@a", "a:b", "a:99999", "a:+1", ":80", "a b", "a,b", "[::1", "[::g]", "a\"b", "a:80:80"]
        {
            assert_eq!(r("/", &[bad]), Err("Host is no host"), "{bad}");
        }
        for good in ["[::1]:80", "[::1]", "a.", "a_b", "xn--a", "a:"] {
            assert!(r("/", &[good]).unwrap().is_some(), "{good}");
        }
        assert_eq!(r("/", &[""]), Ok(None));
    }
}
