//! `Cache-Control` as numbers and flags (RFC 9111, 5.2; RFC 5861; RFC 9213); pure.
//!
//! What can't be read errs on the safe side: a lifetime that is no number is zero. Of two the first one counts (RFC 9111,
//! 4.2.1). A qualified `no-cache="field"` or `private="field"` of an answer is about that field alone ([`withheld`]): it isn't kept.
//! A targeted field that is no structured one is as if it weren't there.

use http::header::{CACHE_CONTROL, HeaderMap, HeaderName, PRAGMA};
use sfv::{BareItem, Dictionary, ListEntry, Parser};

/// Larger numbers are as good as this one (RFC 9111, 1.2.2).
const MOST: u64 = 1 << 31;

/// Of an answer, for caches like this one.
pub(super) const TARGETED: HeaderName = HeaderName::from_static("cdn-cache-control");

/// All directives, of a request or a response. Times are seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(clippy::struct_excessive_bools, reason = "they are what the field says")]
pub struct Directives {
    /// There is any directive at all.
    pub any: bool,
    /// Must not be kept.
    pub no_store: bool,
    /// Must not be used without asking.
    pub no_cache: bool,
    /// For one user.
    pub private: bool,
    /// For all, even if something else says otherwise.
    pub public: bool,
    /// Must not be used when stale.
    pub must_revalidate: bool,
    /// The same, for shared caches.
    pub proxy_revalidate: bool,
    /// May only be kept by who knows its status.
    pub must_understand: bool,
    /// Of a request: don't ask the origin.
    pub only_if_cached: bool,
    /// How long it is fresh, or how old it may be.
    pub max_age: Option<u64>,
    /// The same, for shared caches.
    pub s_maxage: Option<u64>,
    /// How long it may be used while another one is fetched.
    pub stale_while_revalidate: Option<u64>,
    /// How long it may be used when the origin fails.
    pub stale_if_error: Option<u64>,
    /// Of a request: how long it must stay fresh.
    pub min_fresh: Option<u64>,
    /// Of a request: how stale it may be; without a number, the most there is.
    pub max_stale: Option<u64>,
}

impl Directives {
    /// Of a response: a field for caches like this one goes before the general one.
    pub fn of_response(headers: &HeaderMap) -> Directives {
        if headers.contains_key(TARGETED)
            && let Some(targeted) = Directives::targeted(headers, &TARGETED)
        {
            return targeted;
        }
        Directives::of(headers, &CACHE_CONTROL, true)
    }

    /// Of a targeted field (RFC 9213): a dictionary; none if it is empty or anything else.
    fn targeted(headers: &HeaderMap, name: &HeaderName) -> Option<Directives> {
        let lines: Vec<&str> =
            headers.get_all(name).iter().map(|v| v.to_str().ok()).collect::<Option<_>>()?;
        let dictionary: Dictionary = Parser::new(&lines.join(", ")).parse().ok()?;
        if dictionary.is_empty() {
            return None;
        }
        let mut d = Directives { any: true, ..Directives::default() };
        for (key, entry) in &dictionary {
            let ListEntry::Item(item) = entry else { continue };
            match &item.bare_item {
                BareItem::Boolean(true) => d.add(key.as_str(), true),
                BareItem::Integer(n) => d.add(&format!("{}={}", key.as_str(), i64::from(*n)), true),
                BareItem::String(s) if ["no-cache", "private"].contains(&key.as_str()) => {
                    d.add(&format!("{}=\"{}\"", key.as_str(), s.as_str()), true);
                }
                // of another type than any directive has
                _ => {}
            }
        }
        Some(d)
    }

    /// Of a request; `Pragma: no-cache` counts where there is nothing newer.
    pub fn of_request(headers: &HeaderMap) -> Directives {
        let mut d = Directives::of(headers, &CACHE_CONTROL, false);
        if !headers.contains_key(CACHE_CONTROL)
            && headers.get(PRAGMA).and_then(|v| v.to_str().ok()).is_some_and(|v| v.contains("no-cache"))
        {
            d.no_cache = true;
        }
        d
    }

    fn of(headers: &HeaderMap, name: &HeaderName, answer: bool) -> Directives {
        let mut d = Directives::default();
        for value in headers.get_all(name) {
            // bytes beyond ASCII are in quoted strings at best
            let text = String::from_utf8_lossy(value.as_bytes());
            split(&text).for_each(|one| d.add(one, answer));
        }
        d
    }

    fn add(&mut self, one: &str, answer: bool) {
        let (name, value) = match one.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (one, None),
        };
        if name.trim().is_empty() {
            return;
        }
        self.any = true;
        let qualified = answer && value.is_some_and(|v| fields(v).is_some());
        let number = value.and_then(seconds);
        let first = |had: Option<u64>| had.or(Some(number.unwrap_or(0)));
        match name.to_ascii_lowercase().as_str() {
            "no-store" => self.no_store = true,
            "no-cache" if !qualified => self.no_cache = true,
            "private" if !qualified => self.private = true,
            "public" => self.public = true,
            "must-revalidate" => self.must_revalidate = true,
            "proxy-revalidate" => self.proxy_revalidate = true,
            "must-understand" => self.must_understand = true,
            "only-if-cached" => self.only_if_cached = true,
            "max-age" => self.max_age = first(self.max_age),
            "s-maxage" => self.s_maxage = first(self.s_maxage),
            "stale-while-revalidate" => self.stale_while_revalidate = first(self.stale_while_revalidate),
            "stale-if-error" => self.stale_if_error = first(self.stale_if_error),
            "min-fresh" => self.min_fresh = number,
            "max-stale" => self.max_stale = if value.is_none() { Some(u64::MAX) } else { number },
            _ => {}
        }
    }
}

/// The fields that an answer's qualified directives are about: only its first client gets them.
pub fn withheld(answer: &HeaderMap) -> Vec<HeaderName> {
    let mut all = Vec::new();
    let both = answer.get_all(CACHE_CONTROL).into_iter().chain(answer.get_all(TARGETED));
    for text in both.filter_map(|v| v.to_str().ok()) {
        for (name, value) in split(text).filter_map(|one| one.split_once('=')) {
            if ["no-cache", "private"].iter().any(|n| name.eq_ignore_ascii_case(n)) {
                all.extend(fields(value).unwrap_or_default());
            }
        }
    }
    all
}

/// The names in a quoted list; none if it is anything else.
fn fields(value: &str) -> Option<Vec<HeaderName>> {
    let list = value.strip_prefix('"')?.strip_suffix('"')?;
    let names = split(list).map(|n| n.parse().ok()).collect::<Option<Vec<_>>>()?;
    (!names.is_empty()).then_some(names)
}

/// Digits, maybe in quotes.
fn seconds(text: &str) -> Option<u64> {
    let text = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text.trim_end());
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().map_or(MOST, |n: u64| n.min(MOST)))
}

/// The elements of a list; commas within quotes are part of one.
pub fn split(text: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c: char| {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' => return !quoted,
            _ => {}
        }
        false
    })
    .map(str::trim)
    .filter(|s| !s.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Directives {
        let mut h = HeaderMap::new();
        text.split('|').for_each(|v| {
            h.append(CACHE_CONTROL, v.parse().unwrap());
        });
        Directives::of_response(&h)
    }

    #[test]
    fn numbers() {
        for (text, want) in [
            ("max-age=60", Some(60)),
            ("MAX-AGE=60", Some(60)),
            ("max-age=\"60\"", Some(60)),
            ("max-age=060", Some(60)),
            ("max-age=99999999999999999999", Some(MOST)),
            ("max-age=60, max-age=30", Some(60)),
            ("max-age=30|max-age=60", Some(30)),
            ("max-age=x, max-age=60", Some(0)),
            ("max-age", Some(0)),
            ("max-age=", Some(0)),
            ("max-age=-1", Some(0)),
            ("max-age=1.5", Some(0)),
            ("max-age='60'", Some(0)),
            ("max-age= 60", Some(0)),
            ("max-age =60", None),
            ("x=\"a, max-age=1\"", None),
            ("x=\"a\\\", max-age=1\", max-age=2", Some(2)),
            ("xmax-age=1", None),
        ] {
            assert_eq!(of(text).max_age, want, "{text}");
        }
    }

    #[test]
    fn flags_and_the_rest() {
        let d = of("private, no-cache=a , , no-store,must-revalidate");
        assert!(d.private && d.no_cache && d.no_store && d.must_revalidate && !d.public);
        let d = of("private=\"\", no-cache=\"a b\"");
        assert!(d.private && d.no_cache, "nothing that names a field");
        assert_eq!(of("max-stale").max_stale, Some(u64::MAX));
        assert_eq!(of("max-stale=5").max_stale, Some(5));
        assert!(!of(" ,").any);
    }

    #[test]
    fn qualified_directives_are_about_fields() {
        let mut h = HeaderMap::new();
        h.insert(CACHE_CONTROL, "no-cache=\"Set-Cookie, x-a\", Private=\"x-b\", max-age=1".parse().unwrap());
        let d = Directives::of_response(&h);
        assert!(!d.no_cache && !d.private && d.max_age == Some(1));
        assert_eq!(withheld(&h), ["set-cookie", "x-a", "x-b"]);
        h.insert(TARGETED, "max-age=1, private=\"x-c\"".parse().unwrap());
        assert_eq!(withheld(&h), ["set-cookie", "x-a", "x-b", "x-c"]);
        assert!(Directives::of_request(&h).no_cache, "of a request it is the whole");
    }

    #[test]
    fn targeted_fields_are_structured_or_not_there() {
        for (text, want) in [
            ("max-age=60", Some(60)),
            ("max-age=60, no-cache=\"a\"", Some(60)),
            ("max-age=60, &&&", Some(1)),
            ("max-age =60", Some(1)),
            ("MAX-AGE=60", Some(1)),
            ("", Some(1)),
            ("max-age=\"60\"", None),
            ("max-age=60.5", None),
            ("max-age=-60", Some(0)),
        ] {
            let mut h = HeaderMap::new();
            h.insert("cdn-cache-control", text.parse().unwrap());
            h.insert(CACHE_CONTROL, "max-age=1".parse().unwrap());
            assert_eq!(Directives::of_response(&h).max_age, want, "{text}");
        }
    }

    #[test]
    fn pragma_counts_alone() {
        let mut h = HeaderMap::new();
        h.insert(PRAGMA, "no-cache".parse().unwrap());
        assert!(Directives::of_request(&h).no_cache);
        h.insert(CACHE_CONTROL, "max-age=1".parse().unwrap());
        assert!(!Directives::of_request(&h).no_cache);
    }
}
