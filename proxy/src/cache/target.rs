//! Targets that mean the same, as one; pure.
//!
//! Percent-encoding that isn't needed is undone, and what is needed is written in capitals (RFC 3986, 6.2.2). A path or a query
//! with a percent sign that encodes nothing is left as it is: who reads it how is anybody's guess, and undoing what follows the
//! sign would make it the key of another target (`/%%32F` that of `/%2F`). Which parts of a query tell answers apart is for the
//! operator to say. This is for keys alone: origins see what clients have sent.

use crate::percent;
use http::Uri;
use std::borrow::Cow;

/// Which parameters of a query tell answers apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Query {
    /// All of it, as it is.
    #[default]
    All,
    /// These, in the order of their names; none of them: no query at all.
    Only(Vec<String>),
    /// All but these.
    Without(Vec<String>),
}

impl Query {
    fn takes(&self, parameter: &str) -> bool {
        // as an origin reads it: `%69d` is `id`
        let name = parameter.split_once('=').map_or(parameter, |(name, _)| name);
        let is = |n: &String| n == name || meant(n) == meant(name);
        match self {
            Query::All => true,
            Query::Only(names) => names.iter().any(is),
            Query::Without(names) => !names.iter().any(is),
        }
    }
}

/// The target under which an answer is kept. The usual one is taken as it is.
pub fn normal<'a>(uri: &'a Uri, query: &Query) -> Cow<'a, Uri> {
    let Some(target) = uri.path_and_query() else { return Cow::Borrowed(uri) };
    let text = target.as_str();
    if (*query == Query::All || target.query().is_none()) && !text.contains('%') {
        return Cow::Borrowed(uri);
    }
    let mut new = decoded(target.path());
    if let Some(all) = target.query() {
        let mut parts: Vec<&str> = all.split('&').filter(|p| query.takes(p)).collect();
        if let Query::Only(_) = query {
            // stable: of one name the values stay in their order
            parts.sort_by_key(|p| meant(p.split_once('=').map_or(*p, |(name, _)| name)));
        }
        if *query == Query::All || !parts.is_empty() {
            new.push('?');
            new += &decoded(&parts.join("&"));
        }
    }
    new.parse().map_or(Cow::Borrowed(uri), Cow::Owned)
}

/// The bytes that a parameter's name stands for.
fn meant(name: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, after @ ..] = rest {
        let (b, left) = match (percent::encoded(rest), first) {
            (Some(b), _) => (b, &after[2..]),
            (None, b'+') => (b' ', after),
            (None, b) => (*b, after),
        };
        out.push(b);
        rest = left;
    }
    out
}

/// Percent-encoding that isn't needed undone, if all of it is such.
fn decoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        out += &rest[..at];
        match percent::encoded(&rest.as_bytes()[at..]) {
            Some(b) if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => out.push(char::from(b)),
            Some(b) => out += &format!("%{b:02X}"),
            None => return text.to_owned(),
        }
        rest = &rest[at + 3..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_targets_are_one() {
        let names = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let some = Query::Only(names(&["a", "b"]));
        let none = Query::Only(vec![]);
        let without = Query::Without(names(&["utm"]));
        for (text, query, want) in [
            ("/a?b", &Query::All, "/a?b"),
            ("/%7Euser/%61%2f?%7e", &Query::All, "/~user/a%2F?~"),
            ("/a?", &Query::All, "/a?"),
            ("/a%", &Query::All, "/a%"),
            ("/a%zz%4", &Query::All, "/a%zz%4"),
            // not that of /%2F or /%25
            ("/%%32F", &Query::All, "/%%32F"),
            ("/%%32%35?%61", &Query::All, "/%%32%35?a"),
            ("/%61?%%32F", &Query::All, "/a?%%32F"),
            ("/x?b=2&c=3&a=1&a=0", &some, "/x?a=1&a=0&b=2"),
            ("/x?c=3", &some, "/x"),
            ("/x?b=2", &none, "/x"),
            ("/x?utm=1&b=2&a=1&utm", &without, "/x?b=2&a=1"),
            ("/x?utmost=1", &without, "/x?utmost=1"),
            // who reads it knows one parameter, not two
            ("/x?b=2&%61=1", &some, "/x?a=1&b=2"),
            ("/x?%75tm=1", &without, "/x"),
            ("/x?%75tm=1&%zz", &without, "/x?%zz"),
        ] {
            assert_eq!(normal(&text.parse().unwrap(), query).to_string(), want, "{text}");
        }
    }
}
