//! Byte ranges (RFC 9110, 14) of something whose length is known; pure.

use http::header::{HeaderMap, HeaderValue, RANGE};

/// What a `Range` field comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it: no range, one that isn't understood, or several (which may be ignored).
    Whole,
    /// 206: from the first to before the second.
    Bytes(u64, u64),
    /// 416.
    Unsatisfiable,
}

/// The part a request asks for, of `len` bytes.
pub fn part(request: &HeaderMap, len: u64) -> Part {
    let mut all = request.get_all(RANGE).iter();
    let (Some(one), None) = (all.next(), all.next()) else { return Part::Whole };
    let Some(spec) = one.to_str().ok().and_then(|v| {
        let (unit, spec) = v.trim().split_once('=')?;
        unit.trim().eq_ignore_ascii_case("bytes").then_some(spec.trim())
    }) else {
        return Part::Whole;
    };
    let Some((first, last)) = spec.split_once('-') else { return Part::Whole };
    let number = |t: &str| (!t.is_empty() && t.bytes().all(|b| b.is_ascii_digit())).then(|| clamp(t));
    match (number(first.trim()), number(last.trim())) {
        (Some(a), Some(b)) if b < a => Part::Whole,
        (Some(a), _) if a >= len && (last.trim().is_empty() || number(last.trim()).is_some()) => {
            Part::Unsatisfiable
        }
        (Some(a), Some(b)) => Part::Bytes(a, b.saturating_add(1).min(len)),
        (Some(a), None) if last.trim().is_empty() => Part::Bytes(a, len),
        (None, Some(0)) if first.trim().is_empty() => Part::Unsatisfiable,
        (None, Some(n)) if first.trim().is_empty() && len > 0 => Part::Bytes(len.saturating_sub(n), len),
        _ => Part::Whole,
    }
}

/// Digits to a number; more digits than fit are as good as infinity.
fn clamp(digits: &str) -> u64 {
    digits.parse().unwrap_or(u64::MAX)
}

/// `Content-Range` of a part.
pub fn content_range(from: u64, to: u64, len: u64) -> HeaderValue {
    let text = format!("bytes {from}-{}/{len}", to.saturating_sub(1));
    HeaderValue::from_str(&text).expect("digits and punctuation")
}

/// `Content-Range` of a 416.
pub fn content_range_none(len: u64) -> HeaderValue {
    HeaderValue::from_str(&format!("bytes */{len}")).expect("digits and punctuation")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_come_to_parts() {
        use Part::*;
        for (v, want) in [
            ("bytes=0-3", Bytes(0, 4)),
            ("bytes=2-", Bytes(2, 10)),
            ("bytes=-3", Bytes(7, 10)),
            ("bytes=-30", Bytes(0, 10)),
            ("bytes=9-99999999999999999999", Bytes(9, 10)),
            ("BYTES = 0-0", Bytes(0, 1)),
            ("bytes=10-", Unsatisfiable),
            ("bytes=10-12", Unsatisfiable),
            ("bytes=-0", Unsatisfiable),
            ("bytes=4-3", Whole),
            ("bytes=0-1,3-4", Whole),
            ("bytes=a-b", Whole),
            ("bytes=10-x", Whole),
            ("bytes=-", Whole),
            ("lines=0-1", Whole),
            ("bytes", Whole),
        ] {
            let mut h = HeaderMap::new();
            h.insert(RANGE, HeaderValue::from_str(v).unwrap());
            assert_eq!(part(&h, 10), want, "{v}");
        }
        assert_eq!(part(&HeaderMap::new(), 10), Whole);
    }
}
