//! The head of a kept answer as it goes out to a plain request, made once; pure.
//!
//! It is taken from an answer as hyper would write it, so nothing is decided here. Only two numbers differ from one answer
//! to the next: the age, and in `Cache-Status` how long it is still fresh.

use crate::edit::Edits;
use http::header::{AGE, CONNECTION, CONTENT_LENGTH, DATE, HeaderName, TRAILER, TRANSFER_ENCODING};
use http::{Response, StatusCode};
use std::io::Write;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// A head, with places for the numbers.
#[derive(Debug)]
pub struct Wire {
    /// All of it but the numbers and the empty line.
    text: Box<[u8]>,
    /// Where the age belongs, and where the seconds that are left do; in either order.
    age_at: usize,
    ttl_at: usize,
    /// The route its requests take.
    pub route: usize,
    /// Of the answer, for the journal; see `serve::validator`.
    pub validator: u64,
}

impl Wire {
    /// Of the whole answer to a plain request, that is `age` seconds old and stays fresh for `ttl`, before the route's edits.
    /// None if it can't be told what of it will change.
    pub fn of<B>(answer: &Response<B>, edits: &Edits, age: u64, ttl: i64, route: usize) -> Option<Wire> {
        if answer.status() != StatusCode::OK || edits.touch(&[AGE, CACHE_STATUS]) {
            return None;
        }
        let mut headers = answer.headers().clone();
        edits.apply(&mut headers);
        let framing = [CONNECTION, TRANSFER_ENCODING, TRAILER].iter().any(|n| headers.contains_key(n));
        if framing || headers.get_all(CONTENT_LENGTH).iter().count() != 1 || !headers.contains_key(DATE) {
            return None;
        }
        let (age, ttl) = (age.to_string(), format!("ttl={ttl}"));
        // ours is the last of several
        let mut members = headers.get_all(CACHE_STATUS).iter().count();
        let mut text = b"HTTP/1.1 200 OK\r\n".to_vec();
        let (mut age_at, mut ttl_at) = (None, None);
        for (name, value) in &headers {
            text.extend_from_slice(name.as_str().as_bytes());
            text.extend_from_slice(b": ");
            let mut value = value.as_bytes();
            if *name == AGE {
                value = value.strip_suffix(age.as_bytes()).filter(|rest| rest.is_empty())?;
                age_at = Some(text.len());
            }
            if *name == CACHE_STATUS {
                members -= 1;
                if members == 0 {
                    value = &value[..value.strip_suffix(ttl.as_bytes())?.len() + "ttl=".len()];
                    ttl_at = Some(text.len() + value.len());
                }
            }
            text.extend_from_slice(value);
            text.extend_from_slice(b"\r\n");
        }
        let validator = crate::serve::validator(StatusCode::OK, &headers);
        Some(Wire { text: text.into(), age_at: age_at?, ttl_at: ttl_at?, route, validator })
    }

    /// Appends the head with these numbers; `close` says that the connection ends after the answer.
    pub fn write(&self, to: &mut Vec<u8>, age: u64, ttl: i64, close: bool) {
        let mut at = 0;
        let mut until = |to: &mut Vec<u8>, end: usize| {
            to.extend_from_slice(&self.text[at..end]);
            at = end;
        };
        let number = "a vector takes all";
        if self.age_at < self.ttl_at {
            until(to, self.age_at);
            write!(to, "{age}").expect(number);
            until(to, self.ttl_at);
            write!(to, "{ttl}").expect(number);
        } else {
            until(to, self.ttl_at);
            write!(to, "{ttl}").expect(number);
            until(to, self.age_at);
            write!(to, "{age}").expect(number);
        }
        until(to, self.text.len());
        to.extend_from_slice(if close { b"connection: close\r\n\r\n" } else { b"\r\n" });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(list: &[(&str, &str)]) -> Response<()> {
        let mut b = Response::builder();
        for (k, v) in list {
            b = b.header(*k, *v);
        }
        b.body(()).unwrap()
    }

    #[test]
    fn numbers_change_and_nothing_else() {
        let a = answer(&[
            ("cache-status", "other; hit; ttl=7"),
            ("cache-status", "us; hit; ttl=7"),
            ("date", "d"),
            ("content-length", "3"),
            ("age", "12"),
            ("x-b", "12"),
        ]);
        let edits = Edits::new(&["x-b"], &["X-A: 1"]).unwrap();
        let w = Wire::of(&a, &edits, 12, 7, 3).unwrap();
        let mut out = Vec::new();
        w.write(&mut out, 1999, -5, true);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "HTTP/1.1 200 OK\r\ncache-status: other; hit; ttl=7\r\ncache-status: us; hit; ttl=-5\r\ndate: d\r\n\
             content-length: 3\r\nage: 1999\r\nx-a: 1\r\nconnection: close\r\n\r\n"
        );
    }

    #[test]
    fn what_cannot_be_told_is_not_guessed() {
        let good = [("date", "d"), ("content-length", "3"), ("age", "1"), ("cache-status", "us; hit; ttl=7")];
        let of = |list: &[(&str, &str)], edits: &Edits| Wire::of(&answer(list), edits, 1, 7, 0).is_some();
        assert!(of(&good, &Edits::default()));
        assert!(!of(&good[1..], &Edits::default()));
        assert!(!of(&good[..3], &Edits::default()));
        assert!(!of(&good, &Edits::new(&[], &["Age: 1"]).unwrap()));
        assert!(!of(&good, &Edits::new(&["Cache-Status"], &[]).unwrap()));
        assert!(!of(&[&good[..], &[("transfer-encoding", "chunked")]].concat(), &Edits::default()));
        assert!(!of(&[&good[..], &[("content-length", "3")]].concat(), &Edits::default()));
    }
}
