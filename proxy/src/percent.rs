//! Percent-encoding (RFC 3986, 2.1); pure.

/// The byte that is encoded at the beginning, in three bytes. None: a percent sign that encodes nothing, or none at all.
pub(crate) fn encoded(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = text else { return None };
    let hex = |b: &u8| char::from(*b).to_digit(16);
    Some((hex(high)? << 4 | hex(low)?) as u8)
}

#[cfg(test)]
mod tests {
    use super::encoded;

    #[test]
    fn three_bytes_are_one_or_nothing() {
        for (text, want) in [
            ("%61", Some(b'a')),
            ("%fFx", Some(0xff)),
            ("%0", None),
            ("%", None),
            ("", None),
            ("%+1", None),
            ("%g1", None),
            ("a%61", None),
            ("%%61", None),
        ] {
            assert_eq!(encoded(text.as_bytes()), want, "{text}");
        }
    }
}
