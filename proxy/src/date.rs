//! `Date`: when an answer was made. Written once a second by each thread.
//!
//! hyper would add it too, but its own stands still when the wall clock is set back, until that is as late again.

use http::header::{DATE, HeaderMap, HeaderValue};
use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

/// The last second that has a date (of the year 9999).
const LAST: u64 = 253_402_300_799;

thread_local! {
    /// The second that it was written for, and what was written.
    static WRITTEN: RefCell<Option<(u64, HeaderValue)>> = const { RefCell::new(None) };
}

/// Sees to it that an answer says when it was made.
pub fn stamp(headers: &mut HeaderMap, now: SystemTime) {
    if !headers.contains_key(DATE) {
        headers.insert(DATE, value(now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()).min(LAST)));
    }
}

fn value(second: u64) -> HeaderValue {
    WRITTEN.with_borrow_mut(|written| match written {
        Some((of, text)) if *of == second => text.clone(),
        _ => {
            let text = httpdate::fmt_http_date(UNIX_EPOCH + std::time::Duration::from_secs(second));
            let text = HeaderValue::try_from(text).expect("ASCII");
            *written = Some((second, text.clone()));
            text
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn it_goes_with_the_clock_forward_and_back() {
        let at = |second: u64| {
            let mut headers = HeaderMap::new();
            stamp(&mut headers, UNIX_EPOCH + Duration::from_secs(second));
            headers[DATE].to_str().unwrap().to_owned()
        };
        assert_eq!(at(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(at(784_111_778), "Sun, 06 Nov 1994 08:49:38 GMT");
        assert_eq!(at(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(at(u64::MAX >> 2), "Fri, 31 Dec 9999 23:59:59 GMT");
        let mut headers = HeaderMap::new();
        headers.insert(DATE, HeaderValue::from_static("said"));
        stamp(&mut headers, UNIX_EPOCH);
        assert_eq!(headers[DATE], "said");
    }
}
