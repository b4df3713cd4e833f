//! Requests, and the fields of messages, as clients and origins send them.

use http::header::{HOST, HeaderMap, HeaderName, HeaderValue, REFERER, USER_AGENT};
use http::{Method, Request, Uri};
use proxy::access::Format;
use proxy::access_line::{self, Entry};
use proxy::cache::directives::{self, Directives};
use proxy::cache::{partial, target, vary};
use proxy::direct::heads::{self, Onward};
use proxy::edit::Edits;
use proxy::plain::Plain;
use proxy::route::HostHeader;
use proxy::stats::Outcome;
use proxy::strict::Scanner;
use proxy::{Body, RouteConfig, check, conditional, forward, headers, range, router, upstream};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Component;
use std::time::{Duration, SystemTime};

/// A request that the fast path takes is one that the scanner lets through, that ends where it says, and that is in order;
/// and an origin gets from it what it would have got from hyper.
pub fn plain(bytes: &[u8]) {
    let mut room = proxy::plain::room();
    let Some(plain) = proxy::plain::parse(bytes, &mut room) else { return };
    assert!(plain.len <= bytes.len());
    let mut head = bytes[..plain.len].to_vec();
    let mut scanner = Scanner::default();
    scanner.feed(&mut head);
    assert_eq!(scanner.finding(), None, "the scanner refuses it");
    assert!(scanner.between_requests(), "its head isn't all of it");
    assert_eq!(head, &bytes[..plain.len]);
    let (request, _) = parse(bytes).expect("hyper's parser takes it");
    assert_eq!(request.uri().path_and_query().map(|t| t.as_str()), Some(plain.target));
    let host = check::request(&request, "fuzz", false, usize::MAX).expect("it is in order");
    assert_eq!(host.as_ref().map(HeaderValue::as_bytes), Some(plain.host.as_bytes()));
    assert_eq!(range::part(request.headers(), 100), range::Part::Whole);
    let directives = Directives::of_request(request.headers());
    assert!(!directives.any, "it has a word for caches");
    let names = [http::header::ACCEPT_ENCODING, http::header::COOKIE];
    for (name, value) in &plain.fields(&names) {
        assert!(request.headers().get_all(name).iter().any(|v| v == value));
    }
    passed_on(&plain, request, &host.expect("it has one"));
}

/// With a route that changes something, and one that doesn't.
fn passed_on(plain: &Plain<'_>, request: Request<()>, host: &HeaderValue) {
    let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let edits = Edits::new(&["Cookie", "Via"], &["X-A: ours", "Forwarded: for=us"]).expect("fields");
    let fixed = HeaderValue::from_static("other:81");
    let changing = RouteConfig {
        request_headers: edits,
        host_header: HostHeader::Fixed(fixed.clone()),
        ..RouteConfig::default()
    };
    for (route, host_sent, cut, prefix) in
        [(RouteConfig::default(), host, "", ""), (changing, &fixed, "/a", "/b")]
    {
        let mut head = Vec::new();
        let onward = Onward {
            name: "us",
            client,
            cut,
            prefix,
            host: host_sent.as_bytes(),
            edits: &route.request_headers,
        };
        heads::request(&mut head, plain, &onward);
        let mut want = Request::new(Body::Empty);
        *want.headers_mut() = request.headers().clone();
        upstream::prepare(&mut want, &route, "us", Some(client), Some(host));
        let got = one_request(&mut head);
        assert_eq!(Some(got.uri()), forward::target(request.uri(), cut, prefix).as_ref());
        assert_eq!(listed(got.headers()), listed(want.headers()));
    }
}

/// The request that these bytes are, and nothing before or after it.
fn one_request(head: &mut [u8]) -> Request<()> {
    let mut scanner = Scanner::default();
    scanner.feed(head);
    assert_eq!(scanner.finding(), None, "the scanner refuses it");
    assert!(scanner.between_requests(), "its head isn't all of it");
    parse(head).expect("hyper's parser takes it").0
}

/// However a stream is cut into reads, the scanner poisons the same byte, and after that nothing.
pub fn strict(bytes: &[u8]) {
    let Some((cut, stream)) = bytes.split_first() else { return };
    let (mut whole, mut pieces) = (stream.to_vec(), stream.to_vec());
    let (mut one, mut other) = (Scanner::default(), Scanner::default());
    one.feed(&mut whole);
    pieces.chunks_mut(usize::from(*cut % 16) + 1).for_each(|piece| other.feed(piece));
    assert_eq!((one.finding(), one.between_requests()), (other.finding(), other.between_requests()));
    assert!(whole == pieces, "the cut decides what is poisoned");
    let changed = whole.iter().zip(stream).filter(|(new, old)| new != old).count();
    assert!(changed <= usize::from(one.finding().is_some()));
}

/// A path of a URL as the name of a file: it stays below its root, and isn't hidden.
pub fn files(bytes: &[u8]) {
    let Ok(path) = std::str::from_utf8(bytes) else { return };
    let Some(name) = proxy::files::relative(path) else { return };
    for part in name.components() {
        let Component::Normal(part) = part else { panic!("{path:?} leads to {}", name.display()) };
        let part = part.to_str().expect("text");
        assert!(!part.starts_with('.') || part == ".well-known", "{path:?} leads to a hidden {part:?}");
        assert!(!part.contains('\0'), "{path:?} ends early");
    }
}

/// Whatever a request says, it is one line, of which each part can be told from the next one.
fn told(request: &Request<()>) {
    let field = |name: HeaderName| request.headers().get(name);
    let entry = Entry {
        at: SystemTime::UNIX_EPOCH,
        id: 1,
        client: None,
        method: request.method(),
        uri: request.uri(),
        version: request.version(),
        host: field(HOST),
        referer: field(REFERER),
        agent: field(USER_AGENT),
        status: 200,
        bytes: 1,
        cut: false,
        head: Duration::ZERO,
        took: Duration::ZERO,
        outcome: Outcome::Hit,
        route: Some(("*", "/")),
    };
    for format in [Format::Json, Format::Common, Format::Combined] {
        let mut line = Vec::new();
        access_line::write(&mut line, format, &entry);
        let text = std::str::from_utf8(line.strip_suffix(b"\n").expect("a line")).expect("text");
        assert!(!text.contains(|c: char| c.is_ascii_control()), "{text:?}");
        let parts = text.split('"').count();
        match format {
            Format::Json => assert!(serde_json::from_str::<serde_json::Value>(text).is_ok(), "{text:?}"),
            Format::Common => assert_eq!(parts, 3, "{text:?}"),
            Format::Combined => assert_eq!(parts, 7, "{text:?}"),
        }
    }
}

/// Everything that reads fields.
pub fn fields(bytes: &[u8]) {
    let Some((mut request, _)) = parse(bytes) else { return };
    told(&request);
    let len = bytes.len() as u64;
    if let range::Part::Bytes(from, to) = range::part(request.headers(), len) {
        assert!(from < to && to <= len, "{from}..{to} of {len}");
        let _ = range::content_range(from, to, len);
    }
    let _ = (Directives::of_request(request.headers()), Directives::of_response(request.headers()));
    let withheld = directives::withheld(request.headers());
    assert!(withheld.len() <= len as usize);
    for name in vary::names(request.headers()) {
        vary::push_value(&mut String::new(), request.headers(), &name);
    }
    if let Some((from, size)) = partial::position(request.headers()) {
        assert!(from <= size);
    }
    let _ = conditional::evaluate(request.headers(), request.headers());
    let _ = conditional::range_applies(request.headers(), request.headers());
    proxy::date::stamp(&mut request.headers().clone(), SystemTime::UNIX_EPOCH);
    key_of(request.uri());
    let host = check::request(&request, "fuzz", true, usize::MAX);
    let h = request.headers_mut();
    let _ = (headers::last_hop(h), headers::wanted_upgrade(h, &["websocket".to_owned()]));
    headers::for_next_hop(h);
    headers::add_via(h, http::Version::HTTP_11, "fuzz");
    assert!(headers::went_through(h, "fuzz"));
    headers::add_forwarded(h, None, host.ok().flatten().as_ref());
    for gone in ["keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "proxy-authorization"] {
        assert!(!h.contains_key(gone), "{gone} is about one hop");
    }
    // the one thing that we say for ourselves
    assert_eq!(h.get("connection").is_some_and(|v| v == "te"), h.contains_key("te"));
    assert_eq!(h.contains_key("connection"), h.contains_key("te"));
}

/// A target is kept under one key, and that is a target which is kept under itself.
fn key_of(uri: &Uri) {
    let once = target::normal(uri, &target::Query::All).into_owned();
    assert_eq!(target::normal(&once, &target::Query::All).as_ref(), &once);
    // what can be understood doesn't share its key with what can't
    assert_eq!(encodes_nothing(&once), encodes_nothing(uri));
    // a target that is an authority alone has no path
    if let Some(path) = router::normal_path(uri.path()).filter(|_| !uri.path().is_empty()) {
        assert!(path.starts_with('/') || path == "*", "{path:?}");
        assert_eq!(router::normal_path(&path).as_deref(), Some(&*path), "normal isn't normal");
    }
}

/// Has it a percent sign without two hexadecimal digits behind it?
fn encodes_nothing(uri: &Uri) -> bool {
    let text = uri.path_and_query().map_or("", |t| t.as_str());
    text.split('%').skip(1).any(|t| t.len() < 2 || !t.bytes().take(2).all(|b| b.is_ascii_hexdigit()))
}

/// A request's head, as hyper's parser takes it, and its length.
pub(crate) fn parse(bytes: &[u8]) -> Option<(Request<()>, usize)> {
    // as many as hyper takes
    let mut parsed = [httparse::EMPTY_HEADER; 100];
    let mut head = httparse::Request::new(&mut parsed);
    let httparse::Status::Complete(len) = head.parse(bytes).ok()? else { return None };
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(head.method?.as_bytes()).ok()?;
    *request.uri_mut() = head.path?.parse().ok()?;
    *request.headers_mut() = fields_of(head.headers)?;
    Some((request, len))
}

/// As they have been parsed.
pub(crate) fn fields_of(parsed: &[httparse::Header<'_>]) -> Option<HeaderMap> {
    let field = |f: &httparse::Header<'_>| {
        Some((f.name.parse::<HeaderName>().ok()?, HeaderValue::from_bytes(f.value).ok()?))
    };
    let list: Option<Vec<_>> = parsed.iter().map(field).collect();
    let mut map = HeaderMap::new();
    list?.into_iter().for_each(|(name, value)| {
        map.append(name, value);
    });
    Some(map)
}

/// Names with their values; in which order different names come has no meaning.
pub(crate) fn listed(fields: &HeaderMap) -> Vec<(&str, &[u8])> {
    let mut all: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    all.sort_by_key(|(name, _)| *name);
    all
}
