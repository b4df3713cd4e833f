//! Which fields of a request select an answer (RFC 9111, 4.1); pure.

use http::header::{ACCEPT_ENCODING, HeaderMap, HeaderName, VARY};

/// The fields an answer varies by, each once.
pub fn names(answer: &HeaderMap) -> Vec<HeaderName> {
    let mut list: Vec<HeaderName> = Vec::new();
    for value in answer.get_all(VARY).iter().filter_map(|v| v.to_str().ok()) {
        for name in value.split(',').filter_map(|n| n.trim().parse().ok()) {
            if !list.contains(&name) {
                list.push(name);
            }
        }
    }
    list
}

/// A field's values of a request in a form in which equal meanings are equal: lines joined, no space around commas. What
/// isn't there differs from what is empty. No line feed can be in it.
pub fn push_value(to: &mut String, request: &HeaderMap, name: &HeaderName) {
    for value in request.get_all(name) {
        for part in value.as_bytes().split(|&b| b == b',') {
            to.push(',');
            let part = String::from_utf8_lossy(part.trim_ascii());
            match *name == ACCEPT_ENCODING {
                true => to.push_str(&part.to_ascii_lowercase()),
                false => to.push_str(&part),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_meanings_are_equal() {
        let value = |list: &[&str]| {
            let mut h = HeaderMap::new();
            list.iter().for_each(|v| {
                h.append(ACCEPT_ENCODING, v.parse().unwrap());
            });
            let mut s = String::new();
            push_value(&mut s, &h, &ACCEPT_ENCODING);
            s
        };
        assert_eq!(value(&["gzip, br"]), value(&["gzip", "BR"]));
        assert_ne!(value(&["gzip, br"]), value(&["br, gzip"]));
        assert_ne!(value(&[]), value(&[""]));
    }
}
