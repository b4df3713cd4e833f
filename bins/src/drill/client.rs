//! One answer as a client reads it: bytes in, verdict out. No I/O.

use super::stats::Failure;

/// What a page must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Path and query.
    pub path: String,
    /// Whom it is asked of.
    pub host: String,
    /// Its exact body; `None`: it changes, so that any is right.
    pub body: Option<Vec<u8>>,
    /// Asked for by POST: `path` and `body` begin so, and a number that no other request has follows in both.
    pub post: bool,
}

impl Page {
    /// A page that is asked for by GET.
    pub fn get(path: impl Into<String>, body: impl Into<Vec<u8>>) -> Page {
        Page { path: path.into(), host: "drill".into(), body: Some(body.into()), post: false }
    }

    /// What is really asked for the `n`th time.
    pub fn numbered(&self, n: u64) -> Page {
        match self.post {
            false => self.clone(),
            true => Page {
                path: format!("{}{n}", self.path),
                body: self.body.as_ref().map(|b| [&b[..], n.to_string().as_bytes()].concat()),
                ..self.clone()
            },
        }
    }

    /// The request for it.
    pub fn request(&self, close: bool) -> Vec<u8> {
        let (method, length) = if self.post { ("POST", "Content-Length: 5\r\n") } else { ("GET", "") };
        let close = if close { "Connection: close\r\n" } else { "" };
        let body = if self.post { "drill" } else { "" };
        format!("{method} {} HTTP/1.1\r\nHost: {}\r\n{length}{close}\r\n{body}", self.path, self.host)
            .into_bytes()
    }
}

/// Where an answer stands.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// More is to come.
    More,
    /// It is whole and right; `close`: the server has said that it closes now.
    Good {
        /// See above.
        close: bool,
    },
    /// It is wrong.
    Bad(Failure),
}

/// How the body of an answer ends.
enum Framing {
    Length(usize),
    Chunked,
    Close,
}

/// Looks at all bytes of an answer so far; `eof`: no more will come.
pub fn look(bytes: &[u8], eof: bool, page: &Page) -> Progress {
    match answer(bytes, eof) {
        None => Progress::More,
        Some(Err(how)) => Progress::Bad(how),
        Some(Ok(a)) if a.code != 200 => Progress::Bad(Failure::Status(a.code)),
        Some(Ok(a)) if page.body.as_ref().is_some_and(|b| a.body != *b) => Progress::Bad(Failure::Body),
        Some(Ok(a)) => Progress::Good { close: a.close },
    }
}

/// Status and body of an answer, once it is whole.
pub fn body_of(bytes: &[u8], eof: bool) -> Option<Result<(u16, Vec<u8>), Failure>> {
    Some(answer(bytes, eof)?.map(|a| (a.code, a.body)))
}

/// A whole answer.
struct Answer {
    code: u16,
    body: Vec<u8>,
    close: bool,
}

/// `None`: more is to come.
fn answer(bytes: &[u8], eof: bool) -> Option<Result<Answer, Failure>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut headers);
    let early = || eof.then_some(Err(Failure::ClosedEarly));
    let end = match head.parse(bytes) {
        Ok(httparse::Status::Complete(n)) => n,
        Ok(httparse::Status::Partial) => return early(),
        Err(_) => return Some(Err(Failure::Protocol)),
    };
    let field = |name: &str| {
        head.headers
            .iter()
            .find(|h| h.name.eq_ignore_ascii_case(name))
            .map(|h| String::from_utf8_lossy(h.value))
    };
    let framing = match (field("transfer-encoding"), field("content-length")) {
        (Some(_), _) => Framing::Chunked,
        (None, Some(n)) => match n.trim().parse() {
            Ok(n) => Framing::Length(n),
            Err(_) => return Some(Err(Failure::Protocol)),
        },
        (None, None) => Framing::Close,
    };
    let rest = &bytes[end..];
    let body = match framing {
        Framing::Length(n) if rest.len() < n => return early(),
        Framing::Length(n) => rest[..n].to_vec(),
        Framing::Chunked => match dechunk(rest) {
            Some(Ok(body)) => body,
            Some(Err(())) => return Some(Err(Failure::Protocol)),
            None => return early(),
        },
        Framing::Close if !eof => return None,
        Framing::Close => rest.to_vec(),
    };
    let close = matches!(framing, Framing::Close)
        || head.version == Some(0)
        || field("connection").is_some_and(|v| v.to_ascii_lowercase().contains("close"));
    Some(Ok(Answer { code: head.code.unwrap_or(0), body, close }))
}

/// `None`: not all there yet.
fn dechunk(mut rest: &[u8]) -> Option<Result<Vec<u8>, ()>> {
    let mut body = Vec::new();
    loop {
        match httparse::parse_chunk_size(rest) {
            Ok(httparse::Status::Complete((start, 0))) => {
                // no trailers are expected of our pages
                return rest.get(start..start + 2).map(|end| if end == b"\r\n" { Ok(body) } else { Err(()) });
            }
            Ok(httparse::Status::Complete((start, n))) => {
                let n = usize::try_from(n).ok()?;
                body.extend_from_slice(rest.get(start..start.checked_add(n)?)?);
                rest = rest.get(start + n + 2..)?;
            }
            Ok(httparse::Status::Partial) => return None,
            Err(_) => return Some(Err(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_every_way_an_answer_can_end() {
        let page = Page::get("/", b"hello");
        let more = || Progress::More;
        let good = |close| Progress::Good { close };
        let bad = Progress::Bad;
        for (bytes, eof, want) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", false, good(false)),
            ("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", false, good(true)),
            ("HTTP/1.1 200 OK\r\n\r\nhello", false, more()),
            ("HTTP/1.1 200 OK\r\n\r\nhello", true, good(true)),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
                false,
                good(false),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n",
                false,
                more(),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n",
                true,
                bad(Failure::ClosedEarly),
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", false, more()),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", true, bad(Failure::ClosedEarly)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhellO", false, bad(Failure::Body)),
            ("HTTP/1.1 502 Bad\r\nContent-Length: 1\r\n\r\nx", false, bad(Failure::Status(502))),
            ("", true, bad(Failure::ClosedEarly)),
            ("", false, more()),
            ("SSH-2.0\r\n", false, bad(Failure::Protocol)),
        ] {
            assert_eq!(look(bytes.as_bytes(), eof, &page), want, "{bytes:?}");
        }
    }
}
