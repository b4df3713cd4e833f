//! Conditional requests (RFC 9110, 13) against what we have ourselves: a file, or a stored answer; pure.

use http::header::{
    DATE, ETAG, HeaderMap, HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, LAST_MODIFIED,
};
use std::time::SystemTime;

/// What a conditional request comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Answer as if there were no condition.
    Proceed,
    /// 304: the client has it already.
    NotModified,
    /// 412: it isn't what the client thinks.
    Failed,
}

/// Evaluates the conditions of a GET or HEAD request in the order of RFC 9110, 13.2.2.
pub fn evaluate(request: &HeaderMap, have: &HeaderMap) -> Verdict {
    let tag = have.get(ETAG).map(HeaderValue::as_bytes);
    if request.contains_key(IF_MATCH) {
        if !any_tag(request, &IF_MATCH, |t| t == b"*" || tag.is_some_and(|h| strong_equal(t, h))) {
            return Verdict::Failed;
        }
    } else if let (Some(since), Some(modified)) =
        (date(request, &IF_UNMODIFIED_SINCE), date(have, &LAST_MODIFIED))
        && modified > since
    {
        return Verdict::Failed;
    }
    if request.contains_key(IF_NONE_MATCH) {
        let same = any_tag(request, &IF_NONE_MATCH, |t| t == b"*" || tag.is_some_and(|h| weak_equal(t, h)));
        return if same { Verdict::NotModified } else { Verdict::Proceed };
    }
    // what has no date of its own is not newer than its message (RFC 9111, 4.3.2)
    let modified = if have.contains_key(LAST_MODIFIED) { &LAST_MODIFIED } else { &DATE };
    match (date(request, &IF_MODIFIED_SINCE), date(have, modified)) {
        (Some(since), Some(modified)) if modified <= since => Verdict::NotModified,
        _ => Verdict::Proceed,
    }
}

/// True if a Range may be answered with a part: there is no If-Range, or it names what we have.
pub fn range_applies(request: &HeaderMap, have: &HeaderMap) -> bool {
    let Some(condition) = request.get(IF_RANGE) else { return true };
    let text = condition.as_bytes().trim_ascii();
    if text.starts_with(b"\"") || text.starts_with(b"W/") {
        return have.get(ETAG).is_some_and(|h| strong_equal(text, h.as_bytes()));
    }
    match (date(request, &IF_RANGE), date(have, &LAST_MODIFIED)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

/// A date of a field that is there once.
pub fn date(headers: &HeaderMap, name: &http::HeaderName) -> Option<SystemTime> {
    let mut all = headers.get_all(name).iter();
    let (one, more) = (all.next()?, all.next());
    if more.is_some() { None } else { parse_date(one.to_str().ok()?) }
}

/// Any of the three forms of RFC 9110, 5.6.7; whether letters are large or small doesn't matter, nor whether it was that day
/// of the week, which says nothing that the date doesn't.
fn parse_date(text: &str) -> Option<SystemTime> {
    if let Ok(t) = httpdate::parse_http_date(text) {
        return Some(t);
    }
    let word = |w: &str| match w {
        w if w.eq_ignore_ascii_case("gmt") => "GMT".to_owned(),
        w if w.starts_with(|c: char| c.is_ascii_alphabetic()) => {
            w[..1].to_uppercase() + &w[1..].to_lowercase()
        }
        w => w.to_owned(),
    };
    // split at each single space: what else is wrong must stay wrong
    let words: Vec<String> =
        text.split(' ').map(|w| w.split('-').map(word).collect::<Vec<_>>().join("-")).collect();
    let (day, rest) = words.split_first()?;
    const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
    let name = day.trim_end_matches(',');
    let known = DAYS.iter().any(|d| *d == name || &d[..3] == name);
    let as_on = |d: &&str| {
        let short = if name.len() == 3 { &d[..3] } else { d };
        httpdate::parse_http_date(&format!("{} {}", day.replace(name, short), rest.join(" "))).ok()
    };
    DAYS.iter().filter(|_| known).find_map(as_on)
}

fn strong_equal(a: &[u8], b: &[u8]) -> bool {
    a == b && !a.starts_with(b"W/")
}

/// Equal but for the mark of weakness.
pub fn weak_equal(a: &[u8], b: &[u8]) -> bool {
    a.strip_prefix(b"W/").unwrap_or(a) == b.strip_prefix(b"W/").unwrap_or(b)
}

/// True if any entity tag of a field fulfils `test`. Commas within quotes are part of a tag.
fn any_tag(headers: &HeaderMap, name: &http::HeaderName, test: impl Fn(&[u8]) -> bool) -> bool {
    headers.get_all(name).iter().any(|v| {
        let (mut quoted, mut start) = (false, 0);
        let bytes = v.as_bytes();
        for (i, &b) in bytes.iter().enumerate() {
            match b {
                b'"' => quoted = !quoted,
                b',' if !quoted => {
                    if test(bytes[start..i].trim_ascii()) {
                        return true;
                    }
                    start = i + 1;
                }
                _ => {}
            }
        }
        test(bytes[start..].trim_ascii())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(list: &[(&str, &str)]) -> HeaderMap {
        list.iter()
            .map(|(k, v)| (k.parse::<http::HeaderName>().unwrap(), HeaderValue::from_str(v).unwrap()))
            .collect()
    }

    const OLD: &str = "Sat, 29 Oct 1994 19:43:31 GMT";
    const NEW: &str = "Sun, 30 Oct 1994 19:43:31 GMT";

    #[test]
    fn conditions_in_their_order() {
        let have = map(&[("etag", "\"a\""), ("last-modified", OLD)]);
        use Verdict::*;
        for (request, want) in [
            (vec![], Proceed),
            (vec![("if-none-match", "\"a\"")], NotModified),
            (vec![("if-none-match", "W/\"a\"")], NotModified),
            (vec![("if-none-match", "\"x,y\", \"a\"")], NotModified),
            (vec![("if-none-match", "\"x, \"a\"\"")], Proceed),
            (vec![("if-none-match", "*")], NotModified),
            (vec![("if-none-match", "\"b\""), ("if-modified-since", NEW)], Proceed),
            (vec![("if-modified-since", OLD)], NotModified),
            (vec![("if-modified-since", "garbage")], Proceed),
            (vec![("if-match", "\"a\"")], Proceed),
            (vec![("if-match", "W/\"a\"")], Failed),
            (vec![("if-match", "\"b\"")], Failed),
            (vec![("if-match", "*")], Proceed),
            (vec![("if-unmodified-since", OLD)], Proceed),
            (vec![("if-unmodified-since", "Fri, 28 Oct 1994 19:43:31 GMT")], Failed),
        ] {
            assert_eq!(evaluate(&map(&request), &have), want, "{request:?}");
        }
    }

    #[test]
    fn dates_in_all_forms() {
        for good in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "SUN, 06 nov 1994 08:49:37 gMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Thu Nov  6 08:49:37 1994",
            "Thu, 06 Nov 1994 08:49:37 GMT",
        ] {
            assert!(parse_date(good).is_some(), "{good}");
        }
        for bad in [
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun,  06 Nov 1994 08:49:37 GMT",
            "0",
            "",
            "-",
            "é, 06",
            "Sux, 06 Nov 1994 08:49:37 GMT",
            "Wed, 31 Feb 2024 08:49:37 GMT",
        ] {
            assert_eq!(parse_date(bad), None, "{bad}");
        }
    }

    #[test]
    fn ranges_of_something_else_are_none() {
        let have = map(&[("etag", "\"a\""), ("last-modified", OLD)]);
        for (v, want) in [("\"a\"", true), ("W/\"a\"", false), ("\"b\"", false), (OLD, true), (NEW, false)] {
            assert_eq!(range_applies(&map(&[("if-range", v)]), &have), want, "{v}");
        }
        assert!(range_applies(&HeaderMap::new(), &have));
    }
}
