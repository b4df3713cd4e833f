//! One client connection: hyper's state machine with our timeouts, and an orderly end when the engine drains.

use crate::body::{self, Body};
use crate::continuity::journal::{Answer, Journal};
use crate::continuity::retire::Retirement;
use crate::date;
use crate::fast::{self, Hits, Next};
use crate::guard::Guard;
use crate::hits::Learned;
use crate::plain;
use crate::rt::{Io, Timer};
use crate::tunnel::{self, Far};
use bytes::Bytes;
use engine::net::Stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

/// A connection that has been idle for this long keeps no state but its socket and its record.
const PARK_AFTER: Duration = Duration::from_secs(1);

/// How long a client that is still sending may go on after the last answer.
const PARTING: Duration = Duration::from_secs(30);

/// How long it may pause in that.
const PAUSE: Duration = Duration::from_secs(5);

/// How long any client has if the server is to end.
const LAST: Duration = Duration::from_secs(2);

/// Limits of a client connection.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the end of an answer (or the accept) to the end of the next request's head.
    pub idle_timeout: Duration,
    /// Bytes of a request's head, and of the read buffer.
    pub max_head: usize,
    /// Header fields of a request.
    pub max_headers: usize,
    /// How long a client may take nothing of its answer.
    pub send_timeout: Duration,
    /// Plain requests for what is kept are answered before hyper sees them. Off, for comparison, everything goes through
    /// hyper.
    pub fast: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            idle_timeout: Duration::from_secs(60),
            max_head: 64 << 10,
            max_headers: 100,
            send_timeout: Duration::from_secs(60),
            fast: true,
        }
    }
}

/// Serves requests on `stream` until its end, or until the engine drains: then the request in progress is finished,
/// `Connection: close` is said, and an idle connection is closed.
///
/// # Errors
/// hyper's, about this connection alone: the peer broke the protocol, was too slow, or went away.
pub async fn connection<F, R>(stream: Stream, limits: Limits, handle: F) -> hyper::Result<()>
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<Body>>,
{
    let _ = stream.set_nodelay(true);
    serve(Io::new(stream), None, &limits, &(), handle).await
}

/// As [`connection`], on a stream that may have a journal, and with kept answers that are given without hyper
/// ([`fast`]). One that has been idle for a while has no state of hyper's.
///
/// # Errors
/// As [`connection`].
pub async fn serve<F, R>(
    io: Io,
    retirement: Option<&Retirement>,
    limits: &Limits,
    hits: &impl Hits,
    handle: F,
) -> hyper::Result<()>
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<Body>>,
{
    loop {
        match fast::serve(&io, retirement, limits, hits).await {
            Next::Hyper => {}
            Next::Close => return Ok(()),
            Next::Retire => break,
        }
        // on the heap of its own, so that a connection that waits doesn't hold the place of what it isn't doing
        match Box::pin(active(&io, retirement, limits, &handle)).await? {
            End::Closed => return Ok(()),
            End::Idle => crate::trim::parked(),
            End::Plain => {}
            End::Retired => break,
            End::Tunnel(far, early) => {
                Box::pin(tunnel::run(io, early, *far)).await;
                return Ok(());
            }
        }
    }
    if let (Some(retirement), Some(retired)) = (retirement, io.into_retired()) {
        retirement.take(retired);
    }
    Ok(())
}

pub(crate) async fn begun(retirement: Option<&Retirement>) {
    match retirement {
        Some(r) => r.begun().await,
        None => std::future::pending().await,
    }
}

/// The request at the beginning of `input`, without its body; `None`: there isn't a whole head of one.
pub(crate) fn head(input: &[u8], max_headers: usize) -> Option<Request<()>> {
    let mut fields = vec![httparse::EMPTY_HEADER; max_headers];
    let mut parsed = httparse::Request::new(&mut fields);
    if !parsed.parse(input).ok()?.is_complete() {
        return None;
    }
    let version = if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let request = Request::builder().method(parsed.method?).uri(parsed.path?).version(version);
    let request = parsed.headers.iter().fold(request, |r, f| r.header(f.name, f.value));
    request.body(()).ok()
}

/// Says 502 for a request whose server died while it was in progress, and ends the connection cleanly. `request`: what there is
/// of it. `told` hears how many bytes of a body the client took; `None`: it has gone.
pub async fn bad_gateway(io: Io, request: &[u8], told: impl FnOnce(Option<u64>)) {
    let text = "502 Bad Gateway: the server that had forwarded this request died; it is not repeated\n";
    let body = if request.trim_ascii_start().starts_with(b"HEAD ") { "" } else { text };
    let answer = format!(
        "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n{body}",
        text.len()
    );
    let has_it = say(&io, answer.as_bytes()).await;
    told(has_it.then_some(body.len() as u64));
    end(&io).await;
}

/// Writes `answer`, ends the connection, and gives the client two seconds to read it: closed with bytes unread, it would get
/// a reset instead.
pub async fn last_words(io: Io, answer: &[u8]) {
    if say(&io, answer).await {
        end(&io).await;
    }
}

/// True if all of it could be written.
async fn say(io: &Io, answer: &[u8]) -> bool {
    matches!(engine::time::timeout(LAST, io.write_all(answer)).await, Ok(Ok(())))
}

async fn end(io: &Io) {
    let _ = engine::time::timeout(LAST, io.linger(LAST)).await;
}

/// Ends a connection whose client may still be sending what nobody wants: what comes is read and dropped for a while, or the
/// client would get a reset, and might lose the answer by it (RFC 9112, 9.6).
async fn part(io: &Io) {
    // what comes is no request, for those after us neither
    io.journal().into_iter().for_each(Journal::detach);
    let mut all = pin!(engine::time::timeout(PARTING, io.linger(PAUSE)));
    let mut hurry = pin!(async {
        engine::draining().await;
        engine::time::sleep(LAST).await;
    });
    poll_fn(|cx| match hurry.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => all.as_mut().poll(cx).map(drop),
    })
    .await;
}

/// How hyper's part of a connection ended.
enum End {
    /// With the connection.
    Closed,
    /// It was idle for [`PARK_AFTER`].
    Idle,
    /// It is idle, and the next request may well be a plain one.
    Plain,
    /// It is between two requests, and to be passed on.
    Retired,
    /// It isn't HTTP any more; with what hyper had read of what follows.
    Tunnel(Box<Far>, Bytes),
}

/// Serves until the connection ends or has been idle for a while.
async fn active<F, R>(
    io: &Io,
    retirement: Option<&Retirement>,
    limits: &Limits,
    handle: &F,
) -> hyper::Result<End>
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<Body>>,
{
    let service = service_fn(|request: Request<Incoming>| async {
        let mut response = journaled(io, handle, request).await;
        date::stamp(response.headers_mut(), SystemTime::now());
        Ok::<_, Infallible>(response)
    });
    let conn = http1::Builder::new()
        .timer(Timer)
        .header_read_timeout(limits.idle_timeout)
        // a client that sends no more may still wait; one that is gone is looked for below
        .half_close(io.journal().is_some())
        .max_buf_size(limits.max_head)
        .max_headers(limits.max_headers)
        .serve_connection(Guard::new(io.clone(), limits.send_timeout), service);
    let mut conn = conn;
    let mut draining = pin!(engine::draining());
    let mut retired = pin!(begun(retirement));
    let (mut told, mut retiring) = (false, false);
    // one timer that is set anew when it has fired, not with every request: for idle connections, and for resets of busy ones
    let mut park = pin!(engine::time::sleep(PARK_AFTER));
    let mut idle_since = None;
    let end = poll_fn(|cx| {
        retiring = retiring || (io.journal().is_some() && retired.as_mut().poll(cx).is_ready());
        if !told && !retiring && draining.as_mut().poll(cx).is_ready() {
            told = true;
            Pin::new(&mut conn).graceful_shutdown();
        }
        if let Poll::Ready(r) = Pin::new(&mut conn).poll(cx) {
            return Poll::Ready(r.map(|()| End::Closed));
        }
        if retiring && io.journal().is_some_and(Journal::is_between) {
            return Poll::Ready(Ok(End::Retired));
        }
        if !io.journal().is_some_and(Journal::is_idle) {
            idle_since = None;
            while io.journal().is_some() && park.as_mut().poll(cx).is_ready() {
                if io.is_reset() {
                    return Poll::Ready(Ok(End::Closed));
                }
                park.set(engine::time::sleep(PARK_AFTER));
            }
            return Poll::Pending;
        }
        if io.is_plain() {
            return Poll::Ready(Ok(End::Plain));
        }
        let since = *idle_since.get_or_insert_with(engine::time::now);
        while park.as_mut().poll(cx).is_ready() {
            let at = since + PARK_AFTER;
            if at <= engine::time::now() {
                return Poll::Ready(Ok(End::Idle));
            }
            park.set(engine::time::sleep_until(at));
        }
        Poll::Pending
    })
    .await;
    let parts = conn.into_parts();
    let Some(far) = io.take_far() else {
        let still_sends = match &end {
            Ok(End::Closed) => parts.io.is_amid(),
            Ok(_) => false,
            Err(e) => e.is_parse(),
        };
        drop(parts);
        if still_sends {
            Box::pin(part(io)).await;
        }
        return end;
    };
    match end? {
        // what had come before its time was taken for a request, and may have been changed
        End::Closed if !parts.io.is_poisoned() => Ok(End::Tunnel(far, parts.read_buf)),
        _ => Ok(End::Closed),
    }
}

/// One request with its record.
async fn journaled<F, R>(io: &Io, handle: &F, mut request: Request<Incoming>) -> Response<Tracked>
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<Body>>,
{
    // chunks say where an answer ends
    let has_no_chunks = request.version() < Version::HTTP_11;
    let Some(journal) = io.journal() else {
        let response = handle(request).await;
        drop(io.take_sent());
        let is_open = has_no_chunks && response.body().size_hint().exact().is_none();
        return response.map(|body| Tracked { body, io: io.clone(), is_open });
    };
    // hyper may parse the next request while the last answer waits for the client to take it
    journal.answered().await;
    let method = request.method();
    let safe = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    let bodiless = *method == Method::HEAD;
    let mark = journal.request(safe, request.body().size_hint().exact());
    request.extensions_mut().insert(mark);
    let response = handle(request).await;
    // it may have turned out to need no origin
    drop(io.take_sent());
    io.set_plain(response.extensions().get::<Learned>().is_some() && plain::is_plain(journal.input()));
    let bodiless = bodiless || matches!(response.status().as_u16(), 204 | 304);
    let body_len = if bodiless { Some(0) } else { response.body().size_hint().exact() };
    match io.leads_on() {
        // what follows isn't HTTP
        true => journal.detach(),
        false => {
            journal.answer(Answer { body_len, validator: validator(response.status(), response.headers()) })
        }
    }
    response.map(|body| Tracked { body, io: io.clone(), is_open: has_no_chunks && body_len.is_none() })
}

/// A number that differs when the body does, byte by byte: of a 200's representation, or of it and which part of it a 206 has.
/// 0 if there is none: it takes a strong ETag, or without any a Last-Modified that is old enough to be strong (RFC 9110, 8.8.2.2).
pub(crate) fn validator(status: StatusCode, headers: &HeaderMap) -> u64 {
    // the first of two would prove nothing
    if headers.get_all(header::CONTENT_RANGE).iter().nth(1).is_some() {
        return 0;
    }
    let tags = headers.get_all(header::ETAG).iter().map(HeaderValue::as_bytes);
    validator_of(status, Tag::of(tags), |name| headers.get(name).and_then(|v| v.to_str().ok()))
}

/// What an answer says by its ETag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag<'a> {
    /// Nothing.
    None,
    /// It is this one, byte by byte.
    Strong(&'a [u8]),
    /// Nothing that tells one body from another: it is weak, no tag at all, or there are two.
    Other,
}

impl<'a> Tag<'a> {
    /// Of all fields of this name.
    pub fn of(mut fields: impl Iterator<Item = &'a [u8]>) -> Tag<'a> {
        match (fields.next(), fields.next()) {
            (None, _) => Tag::None,
            (Some(tag @ [b'"', .., b'"']), None) => Tag::Strong(tag),
            _ => Tag::Other,
        }
    }
}

/// The same of fields that are found by `text`.
pub(crate) fn validator_of<'a>(
    status: StatusCode,
    tag: Tag<'a>,
    text: impl Fn(&HeaderName) -> Option<&'a str>,
) -> u64 {
    let range = match status {
        StatusCode::OK => None,
        // that of several parts has none
        StatusCode::PARTIAL_CONTENT => match text(&header::CONTENT_RANGE) {
            None => return 0,
            range => range,
        },
        _ => return 0,
    };
    let strong = match tag {
        Tag::Strong(tag) => tag,
        Tag::Other => return 0,
        // a date stands for the body only where there is no tag (RFC 9110, 13.1.5)
        Tag::None => {
            let time = |name| text(name).and_then(|t| httpdate::parse_http_date(t).ok());
            let (Some(changed), Some(now)) = (time(&header::LAST_MODIFIED), time(&header::DATE)) else {
                return 0;
            };
            match now.duration_since(changed) {
                Ok(age) if age >= Duration::from_secs(60) => {
                    text(&header::LAST_MODIFIED).unwrap_or("").as_bytes()
                }
                _ => return 0,
            }
        }
    };
    let (encoding, kind) = (text(&header::CONTENT_ENCODING), text(&header::CONTENT_TYPE));
    let mut hash = DefaultHasher::new();
    match std::str::from_utf8(strong) {
        // as servers of earlier versions have noted it
        Ok(text) => (text, encoding, kind).hash(&mut hash),
        Err(_) => (strong, encoding, kind).hash(&mut hash),
    }
    if let Some(range) = range {
        range.hash(&mut hash);
    }
    hash.finish().max(1)
}

/// An answer's body that tells the journal when it has ended, and the client that it broke off.
struct Tracked {
    body: Body,
    io: Io,
    /// Nothing but its end says how long it is.
    is_open: bool,
}

impl HttpBody for Tracked {
    type Data = <Body as HttpBody>::Data;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let is_last = matches!(&polled, Poll::Ready(frame) if body::is_last(frame));
        if (is_last || self.body.is_end_stream())
            && let Some(journal) = self.io.journal()
        {
            journal.body_ended();
        }
        if self.is_open && matches!(polled, Poll::Ready(Some(Err(_)))) {
            // else a client of HTTP/1.0 would take what it has for all of it
            self.io.end_with_reset();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
