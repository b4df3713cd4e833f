//! Which fields of a request select an answer (RFC 9111, 4.1); pure.

use http::header::{ACCEPT_ENCODING, ACCEPT_LANGUAGE, HeaderMap, HeaderName, VARY};

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

/// A field's values of a request in a form in which equal meanings are equal: lines joined, no space around commas; of
/// languages and codings, which have no order but their weights, neither order nor case. What isn't there differs from
/// what is empty. No line feed can be in it.
pub fn push_value(to: &mut String, request: &HeaderMap, name: &HeaderName) {
    let parts = request.get_all(name).iter().flat_map(|v| v.as_bytes().split(|&b| b == b','));
    // a character for each byte, whatever it is: two values are never one
    let parts = parts.map(|p| p.trim_ascii().iter().copied().map(char::from).collect::<String>());
    if *name != ACCEPT_ENCODING && *name != ACCEPT_LANGUAGE {
        for part in parts {
            to.push(',');
            to.push_str(&part);
        }
        return;
    }
    let unspaced = |p: &str| p.split(';').map(str::trim).collect::<Vec<_>>().join(";");
    let mut parts: Vec<String> = parts.map(|p| unspaced(&p.to_ascii_lowercase())).collect();
    parts.sort_unstable();
    for part in &parts {
        to.push(',');
        to.push_str(part);
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
        assert_eq!(value(&["gzip, br;q=0.5"]), value(&["br ; q=0.5", "gzip"]));
        assert_ne!(value(&["gzip, br;q=0.5"]), value(&["gzip;q=0.5, br"]));
        assert_ne!(value(&[]), value(&[""]));
        assert_ne!(value(&["\u{e8}"]), value(&["\u{e9}"]));
        let of = |byte: u8| {
            let mut h = HeaderMap::new();
            h.insert("x-user", http::HeaderValue::from_bytes(&[byte]).unwrap());
            let mut s = String::new();
            push_value(&mut s, &h, &HeaderName::from_static("x-user"));
            s
        };
        assert_ne!(of(0xe8), of(0xe9));
    }
}
