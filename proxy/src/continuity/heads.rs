//! What the heads of requests and answers say of where they end, and of what comes behind them.

use std::hash::{DefaultHasher, Hash, Hasher};

/// A validator that holds for an answer with this status line only; 0 if such answers aren't gone on with. The usual line
/// leaves it as it is, which is what servers that went on with no other have noted.
pub(super) fn with_line(head: &[u8], validator: u64) -> u64 {
    let line = head.get(..LINE.len()).unwrap_or_default();
    match line {
        _ if validator == 0 => 0,
        LINE => validator,
        b"HTTP/1.1 206" | b"HTTP/1.0 200" | b"HTTP/1.0 206" => {
            let mut hash = DefaultHasher::new();
            (line, validator).hash(&mut hash);
            hash.finish().max(1)
        }
        _ => 0,
    }
}

/// Does a connection end with an answer that has this head (of hyper's, which says one of the two if it isn't as usual)?
pub(super) fn is_last(head: &[u8]) -> bool {
    let says = |word: &[u8]| {
        let mut fields =
            head.split(|b| *b == b'\n').filter_map(|line| line.split_at_checked(b"connection:".len()));
        fields.any(|(name, value)| {
            let mut words = value.split(|b| *b == b',').map(<[u8]>::trim_ascii);
            name.eq_ignore_ascii_case(b"connection:") && words.any(|w| w.eq_ignore_ascii_case(word))
        })
    };
    says(b"close") || head.starts_with(b"HTTP/1.0") && !says(b"keep-alive")
}

/// Is this a request of HTTP/1.0?
pub(super) fn is_http_10(request: &[u8]) -> bool {
    let line = request.trim_ascii_start().split(|b| *b == b'\n').next().unwrap_or_default();
    line.trim_ascii_end().ends_with(b"HTTP/1.0")
}

/// The usual beginning of a status line.
const LINE: &[u8] = b"HTTP/1.1 200";

/// Bytes of a head, its empty line included.
pub(super) fn head_len(bytes: &[u8]) -> Option<usize> {
    // empty lines before a request are none of its
    let mut from = bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    while let Some(n) = bytes[from..].iter().position(|b| *b == b'\n') {
        let at = from + n + 1;
        match &bytes[at..] {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => from = at,
        }
    }
    None
}

/// Bytes of a request with a chunked body, if all of it is there.
pub(super) fn chunked_request_len(bytes: &[u8]) -> Option<usize> {
    let mut at = head_len(bytes)?;
    loop {
        let line = bytes.get(at..)?.iter().position(|b| *b == b'\n')?;
        let text = std::str::from_utf8(&bytes[at..at + line]).ok()?.trim();
        let size = usize::from_str_radix(text.split(';').next()?.trim(), 16).ok()?;
        at += line + 1;
        if size == 0 {
            // trailers, ended by an empty line
            loop {
                let line = bytes.get(at..)?.iter().position(|b| *b == b'\n')?;
                let empty = bytes[at..at + line].iter().all(|b| *b == b'\r');
                at += line + 1;
                if empty {
                    return Some(at);
                }
            }
        }
        at = at.checked_add(size)?.checked_add(2)?;
    }
}
