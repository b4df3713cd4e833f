//! Files of Python's configparser, as supervisord reads them: sections, `key = value` or `key: value`, values that go on on
//! indented lines, `;` and `#` before comments.

use super::Mistake;

/// A section, in the order of the file; one that comes twice is one.
#[derive(Debug, PartialEq)]
pub(super) struct Section {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) entries: Vec<Entry>,
}

/// A key, which is lower case, and its value. The last one of a name counts.
#[derive(Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) line: usize,
}

impl Section {
    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.key == key)
    }
}

/// Reads it.
///
/// # Errors
/// A line that is none of that.
pub(super) fn parse(text: &str) -> Result<Vec<Section>, Mistake> {
    let mut sections: Vec<Section> = Vec::new();
    // where the last value is, if the next line may go on with it
    let mut open: Option<(usize, usize)> = None;
    for (n, raw) in text.lines().enumerate() {
        let line = n + 1;
        let content = without_comment(raw);
        let trimmed = content.trim();
        if trimmed.is_empty() {
            continue;
        }
        if content.starts_with(char::is_whitespace)
            && let Some((s, e)) = open
        {
            let value = &mut sections[s].entries[e].value;
            value.push('\n');
            value.push_str(trimmed);
            continue;
        }
        if let Some(rest) = trimmed.strip_prefix('[') {
            let name = rest.split_once(']').map(|(name, _)| name);
            let Some(name) = name else {
                return Err(Mistake { line, why: format!("{trimmed:?}: a section ends with \"]\"") });
            };
            if !sections.iter().any(|s| s.name == name) {
                sections.push(Section { name: name.to_owned(), line, entries: Vec::new() });
            }
            // its entries are added to it
            let at = sections.iter().position(|s| s.name == name).unwrap_or(0);
            let last = sections.len() - 1;
            sections.swap(at, last);
            open = None;
            continue;
        }
        let Some(section) = sections.last_mut() else {
            return Err(Mistake { line, why: format!("{trimmed:?} is in no section") });
        };
        let Some((key, value)) = trimmed.split_once(['=', ':']) else {
            return Err(Mistake { line, why: format!("{trimmed:?} is no \"key = value\"") });
        };
        let entry = Entry { key: key.trim().to_lowercase(), value: value.trim().to_owned(), line };
        section.entries.retain(|e| e.key != entry.key);
        section.entries.push(entry);
        open = Some((sections.len() - 1, sections.last().map_or(0, |s| s.entries.len() - 1)));
    }
    sections.sort_by_key(|s| s.line);
    Ok(sections)
}

/// Comments begin a line, or come after a space.
fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with([';', '#']) {
        return "";
    }
    let begins = |at: &usize| line[..*at].ends_with(char::is_whitespace);
    let at = line.match_indices([';', '#']).map(|(at, _)| at).find(begins);
    at.map_or(line, |at| &line[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_keys_comments_and_long_values() {
        let text = "; head\n[a]\nOne = 1 ; first\ntwo:2#not\n  more ; x\n\n\tand more\n[b]\n[a]\none=3\n";
        let all = parse(text).unwrap();
        let entry = |s: usize, key: &str| all[s].get(key).map(|e| (e.value.as_str(), e.line));
        assert_eq!(all.iter().map(|s| (s.name.as_str(), s.line)).collect::<Vec<_>>(), [("a", 2), ("b", 8)]);
        assert_eq!((entry(0, "one"), entry(0, "two")), (Some(("3", 10)), Some(("2#not\nmore\nand more", 4))));
    }

    #[test]
    fn what_it_is_not_is_named_with_its_line() {
        let wrong = |text: &str| parse(text).unwrap_err();
        assert_eq!(wrong("\na = 1\n").line, 2);
        assert!(wrong("[a\n").why.contains("]"));
        assert!(wrong("[a]\n\nnonsense\n").why.contains("nonsense"));
    }
}
