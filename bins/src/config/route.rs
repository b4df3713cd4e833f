//! `[[route]]`: host and path prefix to origins.

use super::value::{self, Raw, Wrong};

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// `*`, a host, or `*.suffix`; lower case.
    pub host: String,
    /// Begins with `/`.
    pub prefix: String,
    /// At least one.
    pub origins: Vec<Origin>,
}

/// A server behind us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Put before the path of each request; empty, or begins with `/` and doesn't end with one.
    pub path_prefix: String,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}:{}{}", self.host, self.port, self.path_prefix)
    }
}

/// The keys of a route, with their docs.
pub static ROUTE_KEYS: &[(&str, &str, &str)] = &[
    ("host", "\"*\"", "A host name, \"*.example.org\", or \"*\" for all."),
    ("prefix", "\"/\"", "Path prefix, whole segments; the longest one wins."),
    ("origin", "", "One URL or an array of them: \"http://host:port/path\". Several are used in turn."),
];

/// Reads `host`.
pub fn host(v: &Raw) -> Result<String, Wrong> {
    let h = value::text(v)?.to_ascii_lowercase();
    let name = h.strip_prefix("*.").unwrap_or(&h);
    let ok = h == "*"
        || (!name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-._[]:".contains(c)));
    if ok { Ok(h) } else { Err(format!("{h:?} is not a host name, \"*.suffix\" or \"*\"")) }
}

/// Reads `prefix`.
pub fn prefix(v: &Raw) -> Result<String, Wrong> {
    let p = value::text(v)?;
    match p.starts_with('/') && p.chars().all(|c| c.is_ascii_graphic() && c != '?' && c != '#') {
        true => Ok(p),
        false => Err(format!("{p:?} is not a path prefix: it begins with / and has no spaces, ? or #")),
    }
}

/// Reads `origin`.
pub fn origins(v: &Raw) -> Result<Vec<Origin>, Wrong> {
    let list = value::list(v, origin)?;
    if list.is_empty() { Err("needs at least one origin".into()) } else { Ok(list) }
}

fn origin(v: &Raw) -> Result<Origin, Wrong> {
    let url = value::text(v)?;
    let bad = |why: &str| format!("{url:?} is not an origin such as \"http://127.0.0.1:8081\": {why}");
    if url.starts_with("https://") {
        return Err(bad("https to origins is not supported yet"));
    }
    let rest = url.strip_prefix("http://").ok_or_else(|| bad("it must begin with http://"))?;
    let uri: http::Uri = url.parse().map_err(|e| bad(&format!("{e}")))?;
    let host = uri.host().filter(|h| !h.is_empty()).ok_or_else(|| bad("it names no host"))?;
    if rest.contains(['?', '#', '@']) {
        return Err(bad("no query, fragment or user is taken"));
    }
    let authority = rest.split('/').next().unwrap_or("");
    let port = match uri.port_u16() {
        Some(0) => return Err(bad("port 0")),
        Some(p) => p,
        None if authority.len() > host.len() => return Err(bad("the port is not a number up to 65535")),
        None => 80,
    };
    let path_prefix = uri.path().trim_end_matches('/').to_owned();
    Ok(Origin { host: host.trim_matches(['[', ']']).to_owned(), port, path_prefix })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_by_url() {
        let o = |s: &str| origin(&Raw::Text(s.into()));
        assert_eq!(o("http://a").unwrap().to_string(), "http://a:80");
        assert_eq!(o("http://a:81/x/").unwrap().to_string(), "http://a:81/x");
        assert_eq!(o("http://[::1]:81").unwrap().host, "::1");
        for (bad, why) in [
            ("a:81", "http://"),
            ("https://a", "not supported"),
            ("http://", "not an origin"),
            ("http://a:0", "port 0"),
            ("http://a:99999", "not an origin"),
            ("http://a/?x", "no query"),
            ("http://u@a/", "no query"),
        ] {
            assert!(o(bad).unwrap_err().contains(why), "{bad}: {:?}", o(bad));
        }
    }

    #[test]
    fn hosts_and_prefixes() {
        let t = |s: &str| Raw::Text(s.into());
        assert_eq!(host(&t("*.Example.ORG")).unwrap(), "*.example.org");
        assert!(host(&t("a b")).is_err() && host(&t("")).is_err() && host(&t("a*")).is_err());
        assert!(prefix(&t("x")).is_err() && prefix(&t("/a b")).is_err() && prefix(&t("/a?b")).is_err());
    }
}
