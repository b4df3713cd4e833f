//! Host and path to a route: exact host before `*.suffix` before `*`, then the longest prefix of whole segments.

/// One `[[route]]`.
#[derive(Debug, Clone)]
pub struct RouteConfig {
    /// `*`, a host, or `*.suffix`; lower case.
    pub host: String,
    /// Path prefix; begins with `/`.
    pub prefix: String,
    /// Where it goes.
    pub origins: Vec<OriginConfig>,
}

/// A server behind us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginConfig {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Put before the path; empty or `/…` without a slash at its end.
    pub path_prefix: String,
}

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

/// The index of the best route for a host (without port, lower case) and a path.
pub fn find(routes: &[RouteConfig], host: &str, path: &str) -> Option<usize> {
    let fitting = routes.iter().enumerate().filter(|(_, r)| fits(&r.prefix, path));
    let ranked = fitting.filter_map(|(i, r)| host_rank(&r.host, host).map(|h| (h, r.prefix.len(), i)));
    // of equals the first: configuration refuses equals anyway
    ranked.max_by_key(|&(h, p, i)| (h, p, usize::MAX - i)).map(|(_, _, i)| i)
}

/// `host[:port]` to a host in lower case.
pub fn bare_host(authority: &str) -> String {
    let host = match authority.rfind(':') {
        Some(i) if authority[i + 1..].bytes().all(|b| b.is_ascii_digit()) => &authority[..i],
        _ => authority,
    };
    host.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_route_wins() {
        let r = |host: &str, prefix: &str| RouteConfig {
            host: host.into(),
            prefix: prefix.into(),
            origins: vec![],
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
    }

    #[test]
    fn hosts_without_their_port() {
        assert_eq!(bare_host("A.Example.org.:8080"), "a.example.org");
        assert_eq!(bare_host("[::1]:80"), "[::1]");
        assert_eq!(bare_host("[::1]"), "[::1]");
    }
}
