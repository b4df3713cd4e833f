//! What the keys of a `[[route]]` take: texts into values, each with an error that says what was expected.

use super::route::{Balance, Origin};
use super::value::{self, Raw, Wrong};

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

/// Reads `balance`.
pub fn balance(v: &Raw) -> Result<Balance, Wrong> {
    match value::text(v)?.as_str() {
        "round-robin" => Ok(Balance::RoundRobin),
        "least-connections" => Ok(Balance::LeastConnections),
        other => Err(format!("{other:?} is neither \"round-robin\" nor \"least-connections\"")),
    }
}

/// Reads `redirect`.
pub fn redirect(to: String) -> Result<String, Wrong> {
    let good = ["http://", "https://", "/"].iter().any(|s| to.starts_with(s))
        && to.bytes().all(|b| b.is_ascii_graphic());
    if good { Ok(to) } else { Err(format!("{to:?} is not a URL such as \"https://{{host}}{{uri}}\"")) }
}

/// Reads `redirect_status`.
pub fn redirect_status(v: &Raw) -> Result<u16, Wrong> {
    match value::integer(v, 301, 308)? as u16 {
        n @ (301 | 302 | 303 | 307 | 308) => Ok(n),
        n => Err(format!("{n} is not a redirect: 301, 302, 303, 307 or 308")),
    }
}

/// Reads `host_header`.
pub fn host_header(v: &Raw) -> Result<String, Wrong> {
    let h = value::text(v)?;
    let ok = !h.is_empty() && h.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._[]:".contains(&b));
    if ok { Ok(h) } else { Err(format!("{h:?} is neither \"keep\", \"origin\" nor a host name")) }
}

/// About the connection or the message's length: nobody's to change.
const FIXED: &[&str] =
    &["connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade"];

fn header_name(text: &str) -> Result<(), Wrong> {
    match text.trim().parse::<http::HeaderName>() {
        Err(_) => Err(format!("{text:?} is not a header name")),
        Ok(n) if FIXED.contains(&n.as_str()) => Err(format!("{n} is not to be changed")),
        Ok(_) => Ok(()),
    }
}

/// Reads a header's name.
pub fn name(v: &Raw) -> Result<String, Wrong> {
    let text = value::text(v)?;
    header_name(&text).map(|()| text)
}

/// Reads `Name: value`.
pub fn pair(v: &Raw) -> Result<String, Wrong> {
    let text = value::text(v)?;
    let (name, content) = text.split_once(':').ok_or_else(|| format!("{text:?} is not \"Name: value\""))?;
    header_name(name)?;
    match http::HeaderValue::from_str(content.trim()) {
        Ok(_) => Ok(text),
        Err(_) => Err(format!("{text:?} has a value that can't be sent")),
    }
}

/// Reads one URL of `origin`.
pub fn origin(v: &Raw) -> Result<Origin, Wrong> {
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

/// Reads the name of a query's parameter.
pub fn parameter(v: &Raw) -> Result<String, Wrong> {
    let p = value::text(v)?;
    let good = !p.is_empty() && p.bytes().all(|b| b.is_ascii_graphic() && !b"&=?#".contains(&b));
    if good { Ok(p) } else { Err(format!("{p:?} is not the name of a query's parameter")) }
}

/// `*` among the names is all of them.
pub fn whole_query(names: Vec<String>) -> Option<Vec<String>> {
    (!names.iter().any(|n| n == "*")).then_some(names)
}

/// Reads one of `upgrade`.
pub fn protocol(v: &Raw) -> Result<String, Wrong> {
    let p = value::text(v)?.to_ascii_lowercase();
    let token = |p: &str| p.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._/".contains(&b));
    match p.as_str() {
        "h2c" => Err("h2c is another HTTP: requests in it would pass by unseen".into()),
        p if !p.is_empty() && token(p) => Ok(p.to_owned()),
        p => Err(format!("{p:?} is not a protocol such as \"websocket\"")),
    }
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
        assert_eq!(protocol(&t("WebSocket")).unwrap(), "websocket");
        assert!(parameter(&t("a=b")).is_err() && parameter(&t("")).is_err());
        assert_eq!((whole_query(vec![]), whole_query(vec!["*".into()])), (Some(vec![]), None));
        assert!(protocol(&t("h2c")).is_err() && protocol(&t("a b")).is_err());
        assert!(prefix(&t("x")).is_err() && prefix(&t("/a b")).is_err() && prefix(&t("/a?b")).is_err());
    }
}
