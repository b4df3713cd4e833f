//! Host and path to a route: exact host before `*.suffix` before `*`, then the longest prefix of whole segments.

use crate::percent;
use crate::route::RouteConfig;
use std::borrow::Cow;

/// How well a route's host fits: exact 2, suffix 1 (longer is better), any 0.
fn host_rank(pattern: &str, host: &str) -> Option<usize> {
    match pattern.strip_prefix('*') {
        Some("") => Some(0),
        Some(suffix) => (host.len() > suffix.len() && host.ends_with(suffix)).then_some(suffix.len()),
        None => (pattern == host).then_some(usize::MAX),
    }
}

/// Does `prefix` end at a segment's end within `path`?
fn fits(prefix: &str, path: &str) -> bool {
    let bare = prefix.trim_end_matches('/');
    path.strip_prefix(bare).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What the next character of a path means, and how many bytes that takes. Encoded is what has no meaning of its own in a path
/// (RFC 3986, pchar); a percent sign that encodes nothing stands for itself, as in many an origin.
fn next_meant(path: &[u8]) -> Option<(u8, usize)> {
    let first = path.first()?;
    let is_plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(b);
    Some(percent::encoded(path).filter(is_plain).map_or((*first, 1), |b| (b, 3)))
}

/// A path as routes see it, in the way in which files and many an origin read it: percent-encoding that isn't needed is undone,
/// and of several slashes in a row one counts. Else `/%61dmin` or `//admin` would lead around the route of `/admin`.
pub fn meant(path: &str) -> Cow<'_, str> {
    if !path.contains('%') && !path.contains("//") {
        return Cow::Borrowed(path);
    }
    let mut text = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((b, taken)) = next_meant(rest) {
        if b != b'/' || text.last() != Some(&b'/') {
            text.push(b);
        }
        rest = &rest[taken..];
    }
    // what was put in is ASCII
    String::from_utf8(text).map_or(Cow::Borrowed(path), Cow::Owned)
}

/// What comes behind a prefix, in whatever way that is written in the path.
pub fn behind<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let (mut at, mut left, mut before) = (0, prefix.trim_end_matches('/').as_bytes(), 0);
    while let Some((first, more)) = left.split_first() {
        let (b, taken) = next_meant(&path.as_bytes()[at..])?;
        if b == *first {
            left = more;
        } else if b != b'/' || before != b'/' {
            return None;
        }
        before = b;
        at += taken;
    }
    path.get(at..).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The index of the best route for a host (without port, lower case) and a path.
pub fn find(routes: &[RouteConfig], host: &str, path: &str) -> Option<usize> {
    let path = &*meant(path);
    let fitting = routes.iter().enumerate().filter(|(_, r)| fits(&r.prefix, path));
    let ranked = fitting.filter_map(|(i, r)| host_rank(&r.host, host).map(|h| (h, r.prefix.len(), i)));
    // of equals the first: configuration refuses equals anyway
    ranked.max_by_key(|&(h, p, i)| (h, p, usize::MAX - i)).map(|(_, _, i)| i)
}

/// True if a route is for this host and not for all.
pub fn names(routes: &[RouteConfig], host: &str) -> bool {
    routes.iter().any(|r| host_rank(&r.host, host).is_some_and(|rank| rank > 0))
}

/// `host[:port]` to a host in lower case.
pub fn bare_host(authority: &str) -> String {
    let host = match authority.rfind(':') {
        Some(i) if authority[i + 1..].bytes().all(|b| b.is_ascii_digit()) => &authority[..i],
        _ => authority,
    };
    host.trim_end_matches('.').to_ascii_lowercase()
}

/// A path without `.` and `..` segments (RFC 3986, 5.2.4), also where their dots are percent-encoded: else `/public/../admin`
/// would be routed by its first segment and served by its last. None if it would leave the root.
pub fn normal_path(path: &str) -> Option<Cow<'_, str>> {
    let suspicious = path.contains("/.") || path.contains("%2e") || path.contains("%2E");
    if !suspicious {
        return Some(Cow::Borrowed(path));
    }
    let mut out: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    for (i, segment) in segments.iter().enumerate() {
        let last = i + 1 == segments.len();
        match &*segment.replace("%2e", ".").replace("%2E", ".") {
            "." if last => out.push(""),
            "." => {}
            ".." => {
                out.pop()?;
                if last {
                    out.push("");
                }
            }
            _ => out.push(segment),
        }
    }
    Some(Cow::Owned(format!("/{}", out.join("/"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_route_wins() {
        let r = |host: &str, prefix: &str| RouteConfig {
            host: host.into(),
            prefix: prefix.into(),
            ..RouteConfig::default()
        };
        let routes = [
            r("*", "/"),
            r("*", "/api"),
            r("*.example.org", "/"),
            r("*.b.example.org", "/"),
            r("a.example.org", "/"),
            r("a.example.org", "/api/"),
        ];
        for (host, path, want) in [
            ("x", "/", 0),
            ("x", "/api", 1),
            ("x", "/api/1", 1),
            ("x", "/apis", 0),
            ("q.example.org", "/api", 2),
            ("c.b.example.org", "/", 3),
            ("example.org", "/", 0),
            ("a.example.org", "/x", 4),
            ("a.example.org", "/api", 5),
        ] {
            assert_eq!(find(&routes, host, path), Some(want), "{host}{path}");
        }
        assert_eq!(find(&routes[1..2], "x", "/other"), None);
        for path in ["/%61pi/1", "/ap%69", "//api", "///%61pi//x", "/%61pi/%", "/%61pi/%zz%6"] {
            assert_eq!(find(&routes, "x", path), Some(1), "{path}");
        }
        for path in ["/api%2F1", "/%2Fapi", "/%61pi%", "/%2561pi"] {
            assert_eq!(find(&routes, "x", path), Some(0), "{path}");
        }
        assert_eq!(find(&[r("*", "/@a;b")], "x", "/%40a%3bb/c"), Some(0));
    }

    #[test]
    fn dots_do_not_lead_around_a_route() {
        for (path, want) in [
            ("/a/b", Some("/a/b")),
            ("/a/../b", Some("/b")),
            ("/a/%2e%2E/b", Some("/b")),
            ("/a/./b/.", Some("/a/b/")),
            ("/a/b/..", Some("/a/")),
            ("/.well-known/x..y", Some("/.well-known/x..y")),
            ("/..", None),
            ("/a/../../b", None),
        ] {
            assert_eq!(normal_path(path).as_deref(), want, "{path}");
        }
    }

    #[test]
    fn a_prefix_is_cut_off_in_whatever_way_it_is_written() {
        for (path, prefix, want) in [
            ("/api/x//y%61", "/api", Some("/x//y%61")),
            ("/%61pi/http://x", "/api", Some("/http://x")),
            ("//%61%70i", "/api/", Some("")),
            ("/a//b/c", "/a/b", Some("/c")),
            ("/a/%/c", "/a/%", Some("/c")),
            ("/apis", "/api", None),
            ("/ap", "/api", None),
            ("/x", "/", Some("/x")),
            ("/\u{e4}/x", "/\u{e4}", Some("/x")),
        ] {
            assert_eq!(behind(path, prefix), want, "{path} {prefix}");
        }
    }

    #[test]
    fn hosts_without_their_port() {
        assert_eq!(bare_host("A.Example.org.:8080"), "a.example.org");
        assert_eq!(bare_host("[::1]:80"), "[::1]");
        assert_eq!(bare_host("[::1]"), "[::1]");
    }
}
