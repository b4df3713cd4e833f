//! Changes to header fields that an operator asks for.

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};

/// Fields to take away, then fields to set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits {
    remove: Vec<HeaderName>,
    set: Vec<(HeaderName, HeaderValue)>,
}

impl Edits {
    /// Takes names to remove, and `Name: value` to set.
    ///
    /// # Errors
    /// What is no field, or one that is about the connection or the message's length.
    pub fn new<S: AsRef<str>>(remove: &[S], set: &[S]) -> Result<Edits, String> {
        let name = |text: &str| {
            let n: HeaderName = text.trim().parse().map_err(|_| format!("{text:?} is no header name"))?;
            match [CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE].contains(&n) {
                true => Err(format!("{n} is not to be changed")),
                false => Ok(n),
            }
        };
        let pair = |text: &str| {
            let (n, v) = text.split_once(':').ok_or_else(|| format!("{text:?} is not \"Name: value\""))?;
            let v = HeaderValue::from_str(v.trim()).map_err(|_| format!("{text:?} has a bad value"))?;
            Ok::<_, String>((name(n)?, v))
        };
        Ok(Edits {
            remove: remove.iter().map(|t| name(t.as_ref())).collect::<Result<_, _>>()?,
            set: set.iter().map(|t| pair(t.as_ref())).collect::<Result<_, _>>()?,
        })
    }

    /// Is any of these fields changed?
    pub fn touch(&self, names: &[HeaderName]) -> bool {
        names.iter().any(|n| self.remove.contains(n) || self.set.iter().any(|(set, _)| set == n))
    }

    /// Is this field taken away, whatever it is?
    pub(crate) fn removes(&self, name: &HeaderName) -> bool {
        self.remove.contains(name)
    }

    /// Is this field changed? `name` in any case.
    pub(crate) fn changes(&self, name: &str) -> bool {
        let mut all = self.remove.iter().chain(self.set.iter().map(|(set, _)| set));
        all.any(|n| n.as_str().eq_ignore_ascii_case(name))
    }

    /// The fields that are set, as [`Edits::apply`] leaves them.
    pub(crate) fn each_set(&self, mut f: impl FnMut(&HeaderName, &HeaderValue)) {
        for (i, (name, value)) in self.set.iter().enumerate() {
            // of two the later one counts
            if !self.set[i + 1..].iter().any(|(later, _)| later == name) {
                f(name, value);
            }
        }
    }

    /// Changes `headers`.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_go_and_come() {
        let e = Edits::new(&["Server"], &["X-A: b: c"]).unwrap();
        let mut h = HeaderMap::new();
        h.insert("server", HeaderValue::from_static("s"));
        e.apply(&mut h);
        assert_eq!((h.len(), &h["x-a"]), (1, &HeaderValue::from_static("b: c")));
        for bad in ["a b: c", "no colon", "Content-Length: 4", "x: a\nb"] {
            assert!(Edits::new(&[], &[bad]).is_err(), "{bad}");
        }
    }
}
