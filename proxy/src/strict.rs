//! Follows the request stream of a connection byte by byte and finds what hyper would let through although two parsers
//! could read it in two ways (RFC 9112, 11.2). Pure: bytes in, at most one byte changed.
//!
//! ```text
//!            empty line, no body                      last chunk
//!   Head ------------------------> Head   <---------------------------- Trailer
//!    |  \-- Content-Length --> Body(n) --> Head                            ^
//!    |  \-- chunked ---------> ChunkSize -> ChunkData -> ChunkSize ... ----/
//!    \---- anything ambiguous --> Broken (for ever)
//! ```
//!
//! A finding is made known by putting a NUL in the place of the byte where it was found: no parser takes one there, so
//! hyper answers 400 and closes (or fails the body), whatever it would have made of the original. What is refused beyond
//! hyper's own rules: a line that ends in a bare LF, a CR within a line, Content-Length together with Transfer-Encoding,
//! either of them twice, a length that isn't digits alone, and any transfer coding but `chunked`.

/// Longest line of a field that decides about framing; more is nobody's honest request.
const MAX_FRAMING_LINE: usize = 256;
/// hyper gives up at 16 hex digits or sooner; so do we.
const MAX_CHUNK: u64 = u64::MAX >> 4;
/// What stands in the place of the byte where something was found.
const POISON: u8 = 0;

/// Why a request was poisoned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// A line ends in LF without CR.
    BareLf,
    /// A CR that no LF follows.
    BareCr,
    /// Content-Length and Transfer-Encoding, or one of them twice.
    TwoLengths,
    /// A Content-Length that isn't a number, or too large.
    BadLength,
    /// A Transfer-Encoding other than `chunked`.
    BadCoding,
    /// A chunk's size line.
    BadChunk,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Body(u64),
    ChunkSize { size: u64, digits: bool, ext: bool },
    ChunkData(u64),
    Trailer,
    Broken(Finding),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    None,
    Length(u64),
    Chunked,
}

/// The scanner of one connection.
#[derive(Debug)]
pub struct Scanner {
    state: State,
    framing: Framing,
    /// Beginning of the line in progress, if it began in an earlier read; bounded.
    carry: Vec<u8>,
    /// Length of the line in progress, without its end.
    line_len: usize,
    /// The byte before this one was a CR.
    cr: bool,
    /// The head's request line is over.
    begun: bool,
}

impl Default for Scanner {
    fn default() -> Self {
        Scanner {
            state: State::Head,
            framing: Framing::None,
            carry: Vec::new(),
            line_len: 0,
            cr: false,
            begun: false,
        }
    }
}

impl Scanner {
    /// What was found; then the connection is lost.
    pub fn finding(&self) -> Option<Finding> {
        match self.state {
            State::Broken(f) => Some(f),
            _ => None,
        }
    }

    /// True between requests: nothing of the next one has come.
    pub fn between_requests(&self) -> bool {
        self.state == State::Head && !self.begun && self.line_len == 0
    }

    /// Looks at bytes that were read, in their order, and poisons at most one of them.
    pub fn feed(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &mut bytes[at..];
            let (used, found) = match self.state {
                State::Broken(_) => return,
                State::Body(left) => (self.skip(rest.len(), left, State::Head), None),
                State::ChunkData(left) => {
                    let next = State::ChunkSize { size: 0, digits: false, ext: false };
                    (self.skip(rest.len(), left, next), None)
                }
                State::Head | State::Trailer => self.line(rest),
                State::ChunkSize { size, digits, ext } => self.chunk_size(rest, size, digits, ext),
            };
            at += used;
            if let Some(finding) = found {
                // of all bytes hyper takes only an LF for an error within a chunk's extension, and there it is one
                if finding != Finding::BadChunk || bytes[at - 1] != b'\n' {
                    bytes[at - 1] = POISON;
                }
                self.state = State::Broken(finding);
            }
        }
    }

    fn skip(&mut self, have: usize, left: u64, next: State) -> usize {
        let used = left.min(have as u64);
        self.state = match (left - used, self.state) {
            (0, _) => next,
            (left, State::Body(_)) => State::Body(left),
            (left, _) => State::ChunkData(left),
        };
        if next == State::Head && left == used {
            self.next_head();
        }
        used as usize
    }

    fn next_head(&mut self) {
        self.state = State::Head;
        self.framing = Framing::None;
        self.begun = false;
        self.line_len = 0;
        self.cr = false;
        self.carry.clear();
    }

    /// Up to and with the next line's end, in a head or in trailers.
    fn line(&mut self, rest: &[u8]) -> (usize, Option<Finding>) {
        if self.cr {
            // the CR came as the last byte of the read before
            if rest[0] != b'\n' {
                return (1, Some(Finding::BareCr));
            }
            let line = std::mem::take(&mut self.carry);
            let found = self.end_of_line(&line);
            self.carry = line;
            self.carry.clear();
            return (1, found);
        }
        let Some(end) = rest.iter().position(|&b| b == b'\n' || b == b'\r') else {
            self.keep(rest);
            return (rest.len(), None);
        };
        if rest[end] == b'\n' {
            return (end + 1, Some(Finding::BareLf));
        }
        match rest.get(end + 1) {
            None => {
                self.keep(&rest[..end]);
                self.cr = true;
                (rest.len(), None)
            }
            Some(b'\n') if self.carry.is_empty() && self.line_len == 0 => {
                self.line_len = end;
                (end + 2, self.end_of_line(&rest[..end]))
            }
            Some(b'\n') => {
                self.keep(&rest[..end]);
                let line = std::mem::take(&mut self.carry);
                let found = self.end_of_line(&line);
                self.carry = line;
                self.carry.clear();
                (end + 2, found)
            }
            Some(_) => (end + 2, Some(Finding::BareCr)),
        }
    }

    fn keep(&mut self, part: &[u8]) {
        self.line_len += part.len();
        let room = (MAX_FRAMING_LINE + 1).saturating_sub(self.carry.len());
        self.carry.extend_from_slice(&part[..part.len().min(room)]);
    }

    fn end_of_line(&mut self, line: &[u8]) -> Option<Finding> {
        let empty = self.line_len == 0;
        self.line_len = 0;
        self.cr = false;
        match self.state {
            State::Trailer if empty => {
                self.next_head();
                None
            }
            State::Trailer => None,
            // hyper skips empty lines before a request
            _ if empty && !self.begun => None,
            _ if empty => {
                match self.framing {
                    Framing::None | Framing::Length(0) => self.next_head(),
                    Framing::Length(n) => self.state = State::Body(n),
                    Framing::Chunked => {
                        self.state = State::ChunkSize { size: 0, digits: false, ext: false };
                    }
                }
                None
            }
            _ if !self.begun => {
                self.begun = true;
                None
            }
            _ => self.field(line).err(),
        }
    }

    /// A header field's line; only those about framing matter.
    fn field(&mut self, line: &[u8]) -> Result<(), Finding> {
        let name_is = |name: &str| {
            let named = line.get(..name.len()).is_some_and(|n| n.eq_ignore_ascii_case(name.as_bytes()));
            // whatever ends the name: hyper refuses all but the colon
            named && line.get(name.len()).is_none_or(|&b| b == b':' || b <= b' ')
        };
        // of a line that came in several reads no more than this is kept: what it ends in isn't known
        let value = |name: &str| {
            let value = line.get(name.len() + 1..).filter(|_| line.len() <= MAX_FRAMING_LINE)?;
            Some(trimmed(value))
        };
        if name_is("content-length") {
            let n = value("content-length").and_then(number).ok_or(Finding::BadLength)?;
            return self.set(Framing::Length(n));
        }
        if name_is("transfer-encoding") {
            if !value("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case(b"chunked")) {
                return Err(Finding::BadCoding);
            }
            return self.set(Framing::Chunked);
        }
        Ok(())
    }

    fn set(&mut self, framing: Framing) -> Result<(), Finding> {
        if self.framing != Framing::None {
            return Err(Finding::TwoLengths);
        }
        self.framing = framing;
        Ok(())
    }

    /// Within `SIZE [;extension] CRLF`, or the CRLF that ends the chunk before.
    fn chunk_size(
        &mut self,
        rest: &[u8],
        mut size: u64,
        mut digits: bool,
        mut ext: bool,
    ) -> (usize, Option<Finding>) {
        for (i, &b) in rest.iter().enumerate() {
            if self.cr {
                self.cr = false;
                if b != b'\n' || !digits {
                    return (i + 1, Some(Finding::BadChunk));
                }
                self.state = match size {
                    0 => State::Trailer,
                    // with the CRLF at its end
                    n => State::ChunkData(n + 2),
                };
                self.line_len = 0;
                return (i + 1, None);
            }
            match (b, char::from(b).to_digit(16)) {
                (_, Some(d)) if !ext => {
                    if size > MAX_CHUNK >> 4 {
                        return (i + 1, Some(Finding::BadChunk));
                    }
                    size = size << 4 | u64::from(d);
                    digits = true;
                }
                (b'\r', _) => self.cr = true,
                (b'\n', _) => return (i + 1, Some(Finding::BadChunk)),
                (b';' | b' ' | b'\t', _) if digits => ext = true,
                _ if ext => {}
                _ => return (i + 1, Some(Finding::BadChunk)),
            }
        }
        self.state = State::ChunkSize { size, digits, ext };
        (rest.len(), None)
    }
}

/// Without the white space of a field's value (RFC 9110, 5.6.3), which is less than ASCII's.
fn trimmed(value: &[u8]) -> &[u8] {
    let is_text = |b: &u8| !matches!(b, b' ' | b'\t');
    let begin = value.iter().position(is_text).unwrap_or(value.len());
    let end = value.iter().rposition(is_text).map_or(begin, |last| last + 1);
    &value[begin..end]
}

/// Digits alone, as a number that hyper takes too.
fn number(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let n: u64 = std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()?;
    (n < u64::MAX - 2).then_some(n)
}

#[cfg(test)]
#[path = "strict_tests.rs"]
mod tests;
