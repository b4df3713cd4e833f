//! Where a byte of a text stands.

/// The beginnings of a text's lines, found once: a file of a thousand jobs is asked for thousands of places.
#[derive(Debug)]
pub(crate) struct Lines {
    starts: Vec<usize>,
    end: usize,
}

impl Lines {
    /// Of this text.
    pub(crate) fn of(text: &str) -> Lines {
        let after = |(at, byte)| (byte == b'\n').then_some(at + 1);
        let starts = std::iter::once(0).chain(text.bytes().enumerate().filter_map(after)).collect();
        Lines { starts, end: text.len() }
    }

    /// Line and column, both from 1 and in bytes, of a byte offset.
    pub(crate) fn at(&self, offset: usize) -> (usize, usize) {
        let at = offset.min(self.end);
        let line = self.starts.partition_point(|start| *start <= at);
        (line, at - self.starts[line - 1] + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::Lines;

    #[test]
    fn every_byte_has_its_line_and_column() {
        let lines = Lines::of("ab\n\nc\n");
        let places = [(1, 1), (1, 2), (1, 3), (2, 1), (3, 1), (3, 2), (4, 1), (4, 1)];
        assert_eq!((0..8).map(|at| lines.at(at)).collect::<Vec<_>>(), places);
        assert_eq!(Lines::of("").at(0), (1, 1));
    }
}
