//! Heads of plain requests and answers as they are passed on; pure: text in, text out.
//!
//! What is done to them is what [`crate::upstream::prepare`], [`crate::forward`] and hyper do; whatever would need more than
//! is written here is odd, and theirs.

use crate::cache::policy::{self, Refusal, Rules};
use crate::cache::store::Key;
use crate::edit::Edits;
use crate::plain::{MAX_FIELDS, Plain};
use crate::serve::{self, Tag};
use crate::{forward, headers};
use http::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, DATE, ETAG, FORWARDED, HeaderMap, HeaderName, HeaderValue,
    LAST_MODIFIED,
};
use http::{Method, Response, StatusCode, Version};
use httparse::Header;
use hyper::ext::ReasonPhrase;
use std::io::Write;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::time::SystemTime;

/// Head and body of an answer that goes this way, in bytes; a larger one isn't waited for until it is whole.
pub const MOST: usize = 64 << 10;

/// What is said of an answer that went through the cache, which must not keep it.
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// How a request is passed on.
#[derive(Debug)]
pub struct Onward<'a> {
    /// Of ours, for `Via`.
    pub name: &'a str,
    /// Who asks.
    pub client: IpAddr,
    /// What is cut from the beginning of the path.
    pub cut: &'a str,
    /// What is put there.
    pub prefix: &'a str,
    /// What the origin sees as its name.
    pub host: &'a [u8],
    /// An operator's changes.
    pub edits: &'a Edits,
}

/// Appends the head that an origin gets.
pub fn request(to: &mut Vec<u8>, request: &Plain<'_>, o: &Onward<'_>) {
    let path = forward::path(request.target, o.cut, o.prefix);
    put(to, &[b"GET ", path.as_bytes(), b" HTTP/1.1\r\nhost: ", o.host, b"\r\n"]);
    for field in request.all {
        if !is_written_anew(field.name) && !o.edits.changes(field.name) {
            line(to, field.name, field.value);
        }
    }
    let mut ours = |name: &str, write: &dyn Fn(&mut Vec<u8>)| {
        if !o.edits.changes(name) {
            put(to, &[name.as_bytes(), b": "]);
            write(to);
            to.extend_from_slice(b"\r\n");
        }
    };
    ours("via", &|to| put(to, &[b"1.1 ", o.name.as_bytes()]));
    ours("x-forwarded-for", &|to| {
        before(to, request.all, "x-forwarded-for");
        print(to, format_args!("{}", o.client));
    });
    ours("forwarded", &|to| {
        before(to, request.all, FORWARDED.as_str());
        let host = Some(request.host);
        print(to, format_args!("{}", headers::Forwarded { client: Some(o.client), host }));
    });
    ours("x-forwarded-proto", &|to| to.extend_from_slice(b"http"));
    ours("x-forwarded-host", &|to| to.extend_from_slice(request.host.as_bytes()));
    o.edits.each_set(|name, value| line(to, name.as_str(), value.as_bytes()));
    to.extend_from_slice(b"\r\n");
}

/// Fields of a plain request that are meant for us alone, or that say something else behind us.
fn is_written_anew(name: &str) -> bool {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    match name.len() {
        4 => is("host"),
        9 => is("forwarded"),
        10 => is("connection") || is("keep-alive"),
        14 => is("http2-settings"),
        15 => is("x-forwarded-for"),
        16 => is("proxy-connection") || is("x-forwarded-host"),
        17 => is("x-forwarded-proto"),
        18 => is("proxy-authenticate"),
        _ => false,
    }
}

/// What a list has had before our member.
fn before(to: &mut Vec<u8>, all: &[Header<'_>], name: &str) {
    for field in all.iter().filter(|f| f.name.eq_ignore_ascii_case(name)) {
        if let Some(text) = visible(field.value) {
            put(to, &[text.as_bytes(), b", "]);
        }
    }
}

/// As `HeaderValue::to_str` has it.
fn visible(value: &[u8]) -> Option<&str> {
    let good = value.iter().all(|b| matches!(b, b' '..=b'~' | b'\t'));
    std::str::from_utf8(value).ok().filter(|_| good)
}

fn put(to: &mut Vec<u8>, pieces: &[&[u8]]) {
    pieces.iter().for_each(|p| to.extend_from_slice(p));
}

fn print(to: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    to.write_fmt(text).expect("a vector takes all");
}

fn line(to: &mut Vec<u8>, name: &str, value: &[u8]) {
    let at = to.len();
    put(to, &[name.as_bytes(), b": ", value, b"\r\n"]);
    to[at..at + name.len()].make_ascii_lowercase();
}

/// What has come of an answer.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Come {
    /// Not all of it.
    Part,
    /// It isn't one for this way.
    Odd,
    /// All of it.
    Whole(Whole),
}

/// A whole answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Whole {
    /// As the client gets it.
    pub status: StatusCode,
    /// Bytes of its head.
    pub head: usize,
    /// Bytes of its body, which follow.
    pub body: usize,
    /// See [`crate::continuity::journal::Answer::validator`].
    pub validator: u64,
    /// The next answer will not be kept either.
    pub noted: bool,
    /// The origin's connection may be used again.
    pub goes_on: bool,
}

/// An answer passes a cache that is not to keep it.
#[derive(Debug)]
pub struct Passing {
    /// An operator's, about what is kept.
    pub rules: Rules,
    /// The request says who asks.
    pub authorized: bool,
    /// Where it is to be noted anew that the answer can't be kept.
    pub key: Option<Key>,
}

/// How an answer is passed on.
#[derive(Debug)]
pub struct Back<'a> {
    /// Of ours, for `Via`.
    pub name: &'a str,
    /// An operator's changes.
    pub edits: &'a Edits,
    /// The cache it passes, if it passes one.
    pub passing: Option<&'a Passing>,
    /// The client's connection ends after it.
    pub close: bool,
}

/// Looks at what has come of an answer to a GET; appends the head that the client gets if that is all of it.
pub fn answer(bytes: &[u8], to: &mut Vec<u8>, back: &Back<'_>) -> Come {
    let mut room = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let head = match config.parse_response_with_uninit_headers(&mut parsed, bytes, &mut room) {
        Ok(httparse::Status::Complete(n)) => n,
        Ok(httparse::Status::Partial) if bytes.len() < MOST => return Come::Part,
        _ => return Come::Odd,
    };
    let Some(status) = usual(&parsed) else { return Come::Odd };
    let fields = parsed.headers.iter().map(|f| (f.name, f.value));
    let Some(framing) = framing(fields) else { return Come::Odd };
    let refusal = back.passing.map(|p| refusal(p, status, parsed.headers));
    if head + framing.body > MOST || refusal == Some(None) {
        return Come::Odd;
    }
    if bytes.len() < head + framing.body {
        return Come::Part;
    }
    let reason = status.canonical_reason().unwrap_or("");
    print(to, format_args!("HTTP/1.1 {} {reason}\r\n", status.as_u16()));
    for field in &*parsed.headers {
        let own = ["content-length", "connection", "keep-alive", "proxy-connection"];
        let ours = own.iter().any(|o| field.name.eq_ignore_ascii_case(o));
        if !ours && !back.edits.changes(field.name) {
            line(to, field.name, field.value);
        }
    }
    print(to, format_args!("content-length: {}\r\n", framing.body));
    if !back.edits.changes("via") {
        put(to, &[b"via: 1.1 ", back.name.as_bytes(), b"\r\n"]);
    }
    if back.passing.is_some() && !back.edits.changes(CACHE_STATUS.as_str()) {
        print(to, format_args!("cache-status: {}; fwd=miss; fwd-status={}\r\n", back.name, status.as_u16()));
    }
    back.edits.each_set(|name, value| line(to, name.as_str(), value.as_bytes()));
    to.extend_from_slice(if back.close { b"connection: close\r\n\r\n" } else { b"\r\n" });
    let text = |name: &HeaderName| {
        let found = parsed.headers.iter().find(|f| f.name.eq_ignore_ascii_case(name.as_str()));
        visible(found?.value)
    };
    let tags = parsed.headers.iter().filter(|f| f.name.eq_ignore_ascii_case(ETAG.as_str()));
    let validator = serve::validator_of(status, Tag::of(tags.map(|f| f.value)), text);
    // more than was announced is nobody's answer
    let goes_on = framing.goes_on && bytes.len() == head + framing.body;
    let noted = refusal.flatten().is_some_and(|r| r != Refusal::Request);
    Come::Whole(Whole { status, head, body: framing.body, validator, noted, goes_on })
}

/// Its status, if hyper would write the same line for it and it has the body that it says it has.
fn usual(parsed: &httparse::Response<'_, '_>) -> Option<StatusCode> {
    let status = StatusCode::from_u16(parsed.code?).ok()?;
    let usual = parsed.version == Some(1) && status.canonical_reason() == parsed.reason;
    (usual && has_usual_body(status)).then_some(status)
}

/// Neither interim, nor one without a body or with a part of one.
fn has_usual_body(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200..=599) && !matches!(status.as_u16(), 204..=206 | 304)
}

struct Framing {
    body: usize,
    goes_on: bool,
}

/// The length of the body and what becomes of the connection; None if anything about it is odd.
fn framing<'a>(all: impl Iterator<Item = (&'a str, &'a [u8])>) -> Option<Framing> {
    let (mut body, mut goes_on, mut dated) = (None, true, false);
    for (name, value) in all {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        match name.len() {
            2 if is("te") => return None,
            3 if is("via") => return None,
            4 if is("date") => dated = true,
            7 if is("trailer") || is("upgrade") => return None,
            10 if is("connection") && value.eq_ignore_ascii_case(b"keep-alive") => {}
            10 if is("connection") && value.eq_ignore_ascii_case(b"close") => goes_on = false,
            10 if is("connection") => return None,
            14 if is("content-length") => {
                let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
                let n = std::str::from_utf8(value).ok().filter(|_| digits && body.is_none())?;
                body = Some(n.parse().ok().filter(|n| *n <= MOST)?);
            }
            14 if is("http2-settings") => return None,
            17 if is("transfer-encoding") => return None,
            18 if is("proxy-authenticate") => return None,
            19 if is("proxy-authorization") => return None,
            _ => {}
        }
    }
    Some(Framing { body: body?, goes_on }).filter(|_| dated)
}

/// Why the cache doesn't keep it; none if it would.
fn refusal(passing: &Passing, status: StatusCode, all: &[Header<'_>]) -> Option<Refusal> {
    let (mut asked, mut said) = (HeaderMap::new(), HeaderMap::new());
    if passing.authorized {
        asked.insert(AUTHORIZATION, HeaderValue::from_static("some"));
    }
    for field in all.iter().filter(|f| policy::reads(f.name)) {
        let (name, value) =
            (HeaderName::from_bytes(field.name.as_bytes()), HeaderValue::from_bytes(field.value));
        said.append(name.ok()?, value.ok()?);
    }
    policy::judge(&Method::GET, &asked, status, &said, SystemTime::now(), passing.rules).err()
}

/// In the extensions of an answer that hyper has read: it could have gone this way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usual;

/// Notes of an answer, as an origin has sent it, whether it could have gone this way.
pub(crate) fn note_usual<B>(answer: &mut Response<B>) {
    let fields = answer.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let short = framing(fields).is_some_and(|f| f.body < MOST / 2);
    let line = answer.version() == Version::HTTP_11 && answer.extensions().get::<ReasonPhrase>().is_none();
    if short && line && has_usual_body(answer.status()) {
        answer.extensions_mut().insert(Usual);
    }
}

/// Do an operator's changes leave alone what is looked at here?
pub(crate) fn leaves_alone(edits: &Edits) -> bool {
    !edits.touch(&[DATE, ETAG, LAST_MODIFIED, CONTENT_ENCODING, CONTENT_TYPE])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(text: &str, close: bool) -> (Come, String) {
        let edits = Edits::new(&["Server"], &["X-Ours: 1"]).unwrap();
        let mut to = Vec::new();
        let come =
            answer(text.as_bytes(), &mut to, &Back { name: "us", edits: &edits, passing: None, close });
        (come, String::from_utf8(to).unwrap())
    }

    fn answer_with(fields: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nDate: d\r\n{fields}\r\nabc")
    }

    #[test]
    fn usual_answers_are_passed_on() {
        let text = answer_with("Server: s\r\nX-A:  b \r\nConnection: close\r\nContent-Length: 003\r\n");
        let (come, head) = look(&text, true);
        let head_len = text.len() - 3;
        let whole = Whole {
            status: StatusCode::OK,
            head: head_len,
            body: 3,
            validator: 0,
            noted: false,
            goes_on: false,
        };
        assert_eq!(come, Come::Whole(whole));
        let want = "HTTP/1.1 200 OK\r\ndate: d\r\nx-a: b\r\ncontent-length: 3\r\nvia: 1.1 us\r\nx-ours: 1\r\n\
                    connection: close\r\n\r\n";
        assert_eq!(head, want);
        for n in 0..text.len() {
            assert_eq!(look(&text[..n], false).0, Come::Part, "{n} bytes");
        }
    }

    #[test]
    fn an_origin_that_sends_too_much_is_not_asked_again_on_that_connection() {
        let text = answer_with("Content-Length: 3\r\n");
        let goes_on = |text: &str| match look(text, false).0 {
            Come::Whole(whole) => whole.goes_on,
            other => panic!("{other:?}"),
        };
        assert!(goes_on(&text));
        assert!(!goes_on(&(text + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_odd() {
        for fields in [
            "",
            "Content-Length: 3\r\nContent-Length: 3\r\n",
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Content-Length: +3\r\n",
            "Content-Length: 3, 3\r\n",
            "Content-Length: 0x3\r\n",
            "Content-Length:\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Length: 3\r\n folded\r\n",
            "Content-Length : 3\r\n",
            "Content-Length: 3\r\nConnection: x\r\n",
            "Content-Length: 3\r\nUpgrade: x\r\n",
        ] {
            assert_eq!(look(&answer_with(fields), false).0, Come::Odd, "{fields:?}");
        }
        for line in [
            "HTTP/1.0 200 OK",
            "HTTP/1.1 204 No Content",
            "HTTP/1.1 101 Switching Protocols",
            "HTTP/1.1 200 Yes",
        ] {
            let text = format!("{line}\r\nDate: d\r\nContent-Length: 0\r\n\r\n");
            assert_eq!(look(&text, false).0, Come::Odd, "{line}");
        }
        assert_eq!(look(&"x".repeat(MOST), false).0, Come::Odd);
    }
}
