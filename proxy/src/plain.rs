//! Plain requests: those that ask for nothing but what is there, so that a kept answer can be given, or the request be passed
//! on, without looking at anything but the target, the host and whether the connection goes on. Pure.
//!
//! What isn't plain is nobody's loss: hyper gets it, and decides. So this refuses whatever it isn't sure about: anything that
//! is refused by [`crate::strict`] or [`crate::check`], has a body, a range, or a word for caches. The parser is hyper's own,
//! so that a field is the same field on both ways.

use crate::headers;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use httparse::Header;
use std::mem::MaybeUninit;

/// More fields than this are for hyper to judge.
pub(crate) const MAX_FIELDS: usize = 64;

/// Where the fields of a head are put by [`parse`].
pub type Room<'a> = [MaybeUninit<Header<'a>>; MAX_FIELDS];

/// An empty one.
pub const fn room<'a>() -> Room<'a> {
    [const { MaybeUninit::uninit() }; MAX_FIELDS]
}

/// A plain request.
#[derive(Debug)]
pub struct Plain<'a> {
    /// Bytes of its head, which is all of it.
    pub len: usize,
    /// Path and query.
    pub target: &'a str,
    /// As the client wrote it.
    pub host: &'a str,
    /// The client closes after the answer.
    pub close: bool,
    /// What is kept is good enough for it. Else it has a condition or says who asks, which is for the origin to judge.
    pub keepable: bool,
    /// All of its fields.
    pub all: &'a [Header<'a>],
}

impl Plain<'_> {
    /// The fields with these names, for an answer that varies by them.
    pub fn fields(&self, names: &[HeaderName]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for field in self.all {
            if let Some(name) = names.iter().find(|n| field.name.eq_ignore_ascii_case(n.as_str()))
                && let Ok(value) = HeaderValue::from_bytes(field.value)
            {
                map.append(name, value);
            }
        }
        map
    }
}

/// Is there a plain request at the beginning of `bytes`?
pub fn is_plain(bytes: &[u8]) -> bool {
    parse(bytes, &mut room()).is_some()
}

/// The request at the beginning of `bytes`, if all of its head is there and it is a plain one.
pub fn parse<'a>(bytes: &'a [u8], room: &'a mut Room<'a>) -> Option<Plain<'a>> {
    if !bytes.starts_with(b"GET /") {
        return None;
    }
    let mut request = httparse::Request::new(&mut []);
    let len = match request.parse_with_uninit_headers(bytes, room) {
        Ok(httparse::Status::Complete(len)) => len,
        _ => return None,
    };
    let target = request.path?;
    if request.version != Some(1) || !is_plain_target(target) || !ends_lines_with_crlf(&bytes[..len]) {
        return None;
    }
    let (mut host, mut close, mut keepable) = (None, false, true);
    let all = request.headers;
    for field in &*all {
        match meaning(field.name) {
            Meaning::None => {}
            // one that can't be read is one all the same: a second one after it must not count in its place
            Meaning::Host if host.is_none() => host = Some(std::str::from_utf8(field.value).ok()?),
            Meaning::Connection if field.value.eq_ignore_ascii_case(b"keep-alive") => {}
            Meaning::Connection if field.value.eq_ignore_ascii_case(b"close") => close = true,
            Meaning::Origin => keepable = false,
            _ => return None,
        }
    }
    // one in capitals is written in small letters for origins: see `headers::host_of`
    let is_plain_host =
        |h: &&str| !h.is_empty() && headers::is_host(h) && !h.bytes().any(|b| b.is_ascii_uppercase());
    let host = host.filter(is_plain_host)?;
    Some(Plain { len, target, host, close, keepable, all })
}

/// What a field of a request has to do with the answer to it.
enum Meaning {
    None,
    Host,
    Connection,
    /// For the origin alone.
    Origin,
    /// More than can be said here.
    More,
}

fn meaning(name: &str) -> Meaning {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    let any = |others: &[&str]| if others.iter().any(|o| is(o)) { Meaning::More } else { Meaning::None };
    // by length: few of a browser's fields are compared with anything
    match name.len() {
        2 => any(&["te"]),
        3 => any(&["via"]),
        4 if is("host") => Meaning::Host,
        5 => any(&["range"]),
        6 => any(&["expect", "pragma"]),
        7 => any(&["upgrade", "trailer"]),
        8 => any(&["if-match", "if-range"]),
        10 if is("connection") => Meaning::Connection,
        12 => any(&["max-forwards"]),
        13 if is("if-none-match") || is("authorization") => Meaning::Origin,
        13 => any(&["cache-control"]),
        14 => any(&["content-length"]),
        17 if is("if-modified-since") => Meaning::Origin,
        17 => any(&["transfer-encoding", "traffic-heartbeat"]),
        19 => any(&["if-unmodified-since", "proxy-authorization"]),
        _ => Meaning::None,
    }
}

/// Nothing in it that a URI parser could take for something else, and no segments of dots.
fn is_plain_target(target: &str) -> bool {
    const PLAIN: [bool; 256] = {
        let mut plain = [false; 256];
        let all = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@/?";
        let mut i = 0;
        while i < all.len() {
            plain[all[i] as usize] = true;
            i += 1;
        }
        plain
    };
    let mut before = 0;
    // a percent sign may hide a dot
    target.len() <= crate::check::MAX_TARGET
        && target.bytes().all(|b| {
            let good = PLAIN[usize::from(b)] && !(before == b'/' && b == b'.');
            before = b;
            good
        })
}

/// As [`crate::strict`] wants it: the parser takes a bare LF too.
fn ends_lines_with_crlf(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).all(|at| at > 0 && head[at - 1] == b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(rest: &str) -> String {
        format!("GET /a?b HTTP/1.1\r\nHost: x:80\r\n{rest}\r\n")
    }

    #[test]
    fn what_browsers_send_is_plain() {
        let text =
            get("Accept: */*\r\nCookie: a=b\r\nConnection: Keep-Alive\r\nSec-Fetch-Mode: navigate\r\n");
        let both = format!("{text}GET");
        let mut room = room();
        let p = parse(both.as_bytes(), &mut room).unwrap();
        assert_eq!((p.len, p.target, p.host, p.close, p.keepable), (text.len(), "/a?b", "x:80", false, true));
        let map = p.fields(&[http::header::ACCEPT, http::header::RANGE]);
        assert_eq!((map.len(), map["accept"].as_bytes()), (1, &b"*/*"[..]));
        assert!(parse(get("connection: close\r\n").as_bytes(), &mut super::room()).unwrap().close);
        for field in ["If-None-Match: \"a\"", "IF-MODIFIED-SINCE: x", "Authorization: Basic x"] {
            let text = get(&format!("{field}\r\n"));
            assert!(!parse(text.as_bytes(), &mut super::room()).unwrap().keepable, "{field:?}");
        }
    }

    #[test]
    fn what_is_more_is_left_to_hyper() {
        for field in [
            "Host: y",
            "HOST: \u{e4}",
            "Range: bytes=0-1",
            "Content-Length: 0",
            "Transfer-Encoding: chunked",
            "Expect: 100-continue",
            "Upgrade: x",
            "Connection: upgrade",
            "Connection: keep-alive, te",
            "Cache-Control: no-cache",
            "Pragma: no-cache",
            "Via: 1.1 x",
            "TE: trailers",
            "If-Range: x",
            "If-Match: *",
            "If-Unmodified-Since: x",
            "A : b",
            " folded",
            "A: b\nC: d",
            "A: b\rC: d",
            "A: \0",
        ] {
            assert!(!is_plain(get(&format!("{field}\r\n")).as_bytes()), "{field:?}");
        }
        for line in [
            "POST / HTTP/1.1",
            "HEAD / HTTP/1.1",
            "GET / HTTP/1.0",
            "GET http://x/ HTTP/1.1",
            "GET * HTTP/1.1",
            "GET /.. HTTP/1.1",
            "GET /a/./b HTTP/1.1",
            "GET /%2e HTTP/1.1",
            "GET /a#b HTTP/1.1",
            "GET /a\"b HTTP/1.1",
            "GET  / HTTP/1.1",
            "GET / HTTP/1.1 ",
            "get / HTTP/1.1",
            "GET /\u{e4} HTTP/1.1",
        ] {
            assert!(!is_plain(format!("{line}\r\nHost: x\r\n\r\n").as_bytes()), "{line:?}");
        }
        for text in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: A\r\n\r\n",
            "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        ] {
            assert!(!is_plain(text.as_bytes()), "{text:?}");
        }
        let bare = get("").replace("\r\n\r\n", "\n\n");
        assert!(!is_plain(bare.as_bytes()));
        let whole = get("A: b\r\n");
        for n in 0..whole.len() {
            assert!(!is_plain(&whole.as_bytes()[..n]), "a part of {n} bytes");
        }
    }
}
