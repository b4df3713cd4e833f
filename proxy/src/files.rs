//! Files below a directory as an origin.
//!
//! A name is opened by openat2(2) with `RESOLVE_BENEATH`: the kernel itself sees to it that neither `..` nor a symbolic
//! link leads out of the root (a link that stays below it is followed). Names that begin with a dot aren't served, but for
//! `.well-known`. Everything that may wait for a disk happens off the event threads.

mod kinds;

use crate::body::{Body, BodyError};
use crate::conditional::{self, Verdict};
use crate::pages::{self, Asker};
use crate::percent;
use crate::range::{self, Part};
use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, LAST_MODIFIED,
    LOCATION,
};
use http::{Method, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

/// Read at once; a file up to this size needs one trip to the other threads.
const PIECE: u64 = 128 << 10;

/// What a name stands for.
enum Found {
    /// A file, with its beginning.
    File(Opened),
    /// A directory without the slash at its end.
    Directory,
    /// Nothing that is served.
    Nothing,
    /// Something that may not be read.
    Forbidden,
}

struct Opened {
    file: File,
    len: u64,
    modified: Option<SystemTime>,
    tag: String,
    first: Bytes,
}

/// Answers a request with the file below `root` that `path` names (percent-encoded, without the route's prefix).
pub async fn serve<B>(root: &Path, path: &str, request: &Request<B>, asker: Asker) -> Response<Body> {
    match *request.method() {
        Method::GET | Method::HEAD => {}
        Method::OPTIONS => return pages::options(),
        _ => return pages::error(StatusCode::METHOD_NOT_ALLOWED, "files are only read", asker),
    }
    let Some(name) = relative(path) else {
        return pages::error(StatusCode::NOT_FOUND, "no such file", asker);
    };
    let (root, wanted) = (root.to_owned(), name.clone());
    let found = match engine::blocking::run(move || open(&root, &wanted)).await {
        Ok(Ok(found)) => found,
        Ok(Err(e)) => {
            log::warn!("event=file-failed request={:016x} name={name:?}: {e}", asker.id);
            return pages::error(StatusCode::INTERNAL_SERVER_ERROR, "the file can't be read", asker);
        }
        Err(e) => return pages::error(StatusCode::SERVICE_UNAVAILABLE, &e.to_string(), asker),
    };
    match found {
        Found::File(file) => answer(file, &name, request, asker),
        Found::Nothing => pages::error(StatusCode::NOT_FOUND, "no such file", asker),
        Found::Forbidden => pages::error(StatusCode::FORBIDDEN, "the file may not be read", asker),
        Found::Directory => {
            let mut r =
                pages::error(StatusCode::MOVED_PERMANENTLY, "this is a directory: add a slash", asker);
            let query = request.uri().query().map_or(String::new(), |q| format!("?{q}"));
            // relative to the request's own path, which may have a prefix we don't know; never `//host`
            let last = request.uri().path().rsplit('/').next().unwrap_or("");
            if let Ok(v) = HeaderValue::from_str(&format!("./{last}/{query}")) {
                r.headers_mut().insert(LOCATION, v);
            }
            r
        }
    }
}

/// A path of a URL to a name below the root; None for what isn't served.
pub fn relative(path: &str) -> Option<PathBuf> {
    let mut name = PathBuf::new();
    for segment in path.trim_start_matches('/').split('/').filter(|s| !s.is_empty()) {
        let segment = percent_decoded(segment)?;
        let hidden = segment.starts_with('.') && segment != ".well-known";
        if hidden || segment.contains(['/', '\0', '\\']) {
            return None;
        }
        name.push(segment);
    }
    if path.ends_with('/') || path.is_empty() {
        name.push("index.html");
    }
    Some(name)
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let (b, left) = match *first {
            b'%' => (percent::encoded(rest)?, &after[2..]),
            b => (b, after),
        };
        out.push(b);
        rest = left;
    }
    String::from_utf8(out).ok()
}

fn open(root: &Path, name: &Path) -> io::Result<Found> {
    use rustix::io::Errno;
    let dir = File::open(root)?;
    // NONBLOCK: opening a FIFO must not wait for its other end
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = match rustix::fs::openat2(&dir, name, flags, Mode::empty(), resolve) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::XDEV | Errno::LOOP | Errno::NAMETOOLONG) => {
            return Ok(Found::Nothing);
        }
        Err(Errno::ACCESS) => return Ok(Found::Forbidden),
        Err(e) => return Err(e.into()),
    };
    let meta = file.metadata()?;
    if meta.is_dir() {
        return Ok(Found::Directory);
    }
    if !meta.is_file() {
        return Ok(Found::Nothing);
    }
    let len = meta.len();
    let mut first = vec![0; len.min(PIECE) as usize];
    let got = read_at(&file, &mut first, 0)?;
    first.truncate(got);
    // unlike that of the last modification, the time of the last change can't be set back
    let tag = format!("\"{:x}-{:x}-{:x}{:08x}\"", meta.ino(), len, meta.ctime(), meta.ctime_nsec());
    Ok(Found::File(Opened { file, len, modified: meta.modified().ok(), tag, first: first.into() }))
}

/// As much as there is, up to the buffer's length.
fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

fn answer<B>(opened: Opened, name: &Path, request: &Request<B>, asker: Asker) -> Response<Body> {
    let Opened { file, len, modified, tag, first } = opened;
    let mut h = HeaderMap::new();
    h.insert(CONTENT_TYPE, HeaderValue::from_static(kinds::of(name)));
    h.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Ok(v) = HeaderValue::from_str(&tag) {
        h.insert(ETAG, v);
    }
    // a file of this very second may change again without a new date (RFC 9110, 8.8.2.2)
    if let Some(m) = modified.filter(|m| m.elapsed().is_ok_and(|age| age > Duration::from_secs(1)))
        && let Ok(v) = HeaderValue::from_str(&httpdate::fmt_http_date(m))
    {
        h.insert(LAST_MODIFIED, v);
    }
    match conditional::evaluate(request.headers(), &h) {
        Verdict::Proceed => {}
        Verdict::NotModified => return with(StatusCode::NOT_MODIFIED, h, Body::Empty),
        Verdict::Failed => {
            return pages::error(StatusCode::PRECONDITION_FAILED, "the file is another one", asker);
        }
    }
    let ranged = *request.method() == Method::GET && conditional::range_applies(request.headers(), &h);
    let part = if ranged { range::part(request.headers(), len) } else { Part::Whole };
    let (status, from, to) = match part {
        Part::Whole => (StatusCode::OK, 0, len),
        Part::Bytes(from, to) => {
            h.insert(CONTENT_RANGE, range::content_range(from, to, len));
            (StatusCode::PARTIAL_CONTENT, from, to)
        }
        Part::Unsatisfiable => {
            h.remove(CONTENT_TYPE);
            h.insert(CONTENT_RANGE, range::content_range_none(len));
            return with(StatusCode::RANGE_NOT_SATISFIABLE, h, Body::Empty);
        }
    };
    h.insert(CONTENT_LENGTH, (to - from).into());
    let body = if *request.method() == Method::HEAD {
        Body::Empty
    } else if to <= first.len() as u64 {
        Body::Full(first.slice(from as usize..to as usize))
    } else {
        let ready = if from == 0 { first } else { Bytes::new() };
        let at = ready.len() as u64;
        let file = Arc::new(file);
        Body::Stream(Box::pin(Reading { file, at: from + at, to, ready, pending: None }))
    };
    with(status, h, body)
}

fn with(status: StatusCode, headers: HeaderMap, body: Body) -> Response<Body> {
    let mut r = Response::new(body);
    *r.status_mut() = status;
    *r.headers_mut() = headers;
    r
}

type Piece = Pin<Box<dyn Future<Output = io::Result<Bytes>>>>;

/// A file as it is read, one piece ahead of the client at most.
struct Reading {
    file: Arc<File>,
    at: u64,
    to: u64,
    ready: Bytes,
    pending: Option<Piece>,
}

impl http_body::Body for Reading {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if !this.ready.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.ready)))));
        }
        if this.at >= this.to {
            return Poll::Ready(None);
        }
        let pending = this.pending.get_or_insert_with(|| {
            let (file, at, n) = (this.file.clone(), this.at, (this.to - this.at).min(PIECE) as usize);
            Box::pin(async move {
                let read = move || {
                    let mut buf = vec![0; n];
                    match read_at(&file, &mut buf, at)? {
                        got if got == n => Ok(Bytes::from(buf)),
                        // it was cut meanwhile: what was announced can't be kept
                        _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                    }
                };
                engine::blocking::run(read).await.map_err(io::Error::other)?
            })
        });
        let piece = ready!(pending.as_mut().poll(cx));
        this.pending = None;
        Poll::Ready(Some(match piece {
            Ok(piece) => {
                this.at += piece.len() as u64;
                Ok(Frame::data(piece))
            }
            Err(e) => Err(BodyError::File(e)),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.ready.is_empty() && self.at >= self.to
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.ready.len() as u64 + (self.to - self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_the_root_and_are_not_hidden() {
        let r = |p: &str| relative(p).map(|p| p.display().to_string());
        assert_eq!(r("/a/b.txt").as_deref(), Some("a/b.txt"));
        assert_eq!(r("/").as_deref(), Some("index.html"));
        assert_eq!(r("/a/").as_deref(), Some("a/index.html"));
        assert_eq!(r("/%61%20b").as_deref(), Some("a b"));
        assert_eq!(r("/.well-known/x").as_deref(), Some(".well-known/x"));
        for bad in
            ["/../x", "/%2e%2e/x", "/.git/config", "/a%2fb", "/a%00", "/%zz", "/%ff", "/a%5cb", "/a/.."]
        {
            assert_eq!(r(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_file_that_was_changed_has_another_tag_whatever_its_time_is_set_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "one").unwrap();
        let time = std::fs::metadata(&path).unwrap().modified().unwrap();
        let tag = || match open(dir.path(), Path::new("f")).unwrap() {
            Found::File(f) => (f.tag, f.modified),
            _ => panic!("no file"),
        };
        let before = tag();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        // the kernel's clock for files may stand still for some milliseconds
        let after = loop {
            std::fs::write(&path, "two").unwrap();
            File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
            let after = tag();
            if after.0 != before.0 || std::time::Instant::now() > until {
                break after;
            }
        };
        assert_ne!(after.0, before.0);
        assert_eq!(after.1, before.1);
    }
}
