//! The text that Prometheus reads (exposition format 0.0.4), read strictly: a line that isn't of the format is named.

use std::collections::BTreeMap;

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The name of the metric, with `_bucket`, `_sum` or `_count` where it has one.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

/// What a text says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exposition {
    /// All values, in their order.
    pub samples: Vec<Sample>,
    /// `# TYPE`, by name.
    pub types: BTreeMap<String, String>,
    /// `# HELP`, by name.
    pub helps: BTreeMap<String, String>,
}

const TYPES: [&str; 5] = ["counter", "gauge", "histogram", "summary", "untyped"];

impl Exposition {
    /// Reads a text.
    ///
    /// # Errors
    /// The first line that isn't of the format, with its number and what is wrong with it.
    pub fn parse(text: &str) -> Result<Exposition, String> {
        let mut all = Exposition::default();
        for (i, line) in text.lines().enumerate() {
            all.line(line).map_err(|why| format!("line {}: {why}: {line:?}", i + 1))?;
        }
        match text.is_empty() || text.ends_with('\n') {
            true => Ok(all),
            false => Err("the last line isn't ended".into()),
        }
    }

    /// All values of that name together.
    pub fn sum(&self, name: &str) -> Option<f64> {
        self.sum_where(name, |_| true)
    }

    /// Those whose labels fit; `None` if there is none of that name at all.
    pub fn sum_where(&self, name: &str, fits: impl Fn(&BTreeMap<String, String>) -> bool) -> Option<f64> {
        let mut named = self.samples.iter().filter(|s| s.name == name).peekable();
        named.peek()?;
        Some(named.filter(|s| fits(&s.labels)).map(|s| s.value).sum())
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
            return once(&mut self.helps, name, help);
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or("TYPE without a type")?;
            if !TYPES.contains(&kind) {
                return Err(format!("{kind:?} is no type"));
            }
            if self.samples.iter().any(|s| family(&s.name) == name) {
                return Err("TYPE after values of that name".into());
            }
            return once(&mut self.types, name, kind);
        }
        if line.trim().is_empty() || line.starts_with('#') {
            return Ok(());
        }
        self.samples.push(sample(line)?);
        Ok(())
    }
}

/// The name without the ending of a histogram's or a summary's parts.
pub fn family(name: &str) -> &str {
    ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

fn once(table: &mut BTreeMap<String, String>, name: &str, what: &str) -> Result<(), String> {
    if !is_name(name, ":") {
        return Err(format!("{name:?} is no name"));
    }
    match table.insert(name.to_owned(), what.to_owned()) {
        None => Ok(()),
        Some(_) => Err(format!("{name} is described twice")),
    }
}

fn is_name(name: &str, more: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || more.contains(c);
    !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(fits)
}

fn sample(line: &str) -> Result<Sample, String> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let name = &line[..end];
    if !is_name(name, ":") {
        return Err(format!("{name:?} is no name"));
    }
    let mut labels = BTreeMap::new();
    let mut rest = &line[end..];
    if let Some(inside) = rest.strip_prefix('{') {
        rest = read_labels(inside, &mut labels)?;
    }
    // a time stamp may follow
    let mut words = rest.split_whitespace();
    let value = words.next().ok_or("no value")?;
    if words.next().is_some_and(|t| t.parse::<i64>().is_err()) || words.next().is_some() {
        return Err("something follows the value".into());
    }
    let value = value.parse().map_err(|_| format!("{value:?} is no number"))?;
    Ok(Sample { name: name.to_owned(), labels, value })
}

/// Reads `a="x",b="y"}`, and returns what follows.
fn read_labels<'a>(mut rest: &'a str, labels: &mut BTreeMap<String, String>) -> Result<&'a str, String> {
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Ok(after);
        }
        let (name, quoted) = rest.split_once("=\"").ok_or("a label without a value")?;
        if !is_name(name, "") {
            return Err(format!("{name:?} is no name of a label"));
        }
        let mut value = String::new();
        let mut chars = quoted.char_indices();
        let end = loop {
            match chars.next().ok_or("a value that isn't ended")? {
                (i, '"') => break i + 1,
                (_, '\\') => value.push(match chars.next() {
                    Some((_, 'n')) => '\n',
                    Some((_, c @ ('\\' | '"'))) => c,
                    _ => return Err("an escape that there isn't".into()),
                }),
                (_, c) => value.push(c),
            }
        };
        if labels.insert(name.to_owned(), value).is_some() {
            return Err(format!("the label {name} is there twice"));
        }
        rest = &quoted[end..];
        rest = match rest.strip_prefix(',') {
            Some(after) => after,
            None if rest.starts_with('}') => rest,
            None => return Err("no comma between labels".into()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_name_and_label() {
        let text = "# HELP a_total All.\n# TYPE a_total counter\na_total{k=\"x\",l=\"q\\\"\\\\\\n,}\"} 3\na_total{k=\"y\"} 4 1700000000000\n\n# a word\nb 1e-3\nc +Inf\n";
        let e = Exposition::parse(text).unwrap();
        assert_eq!((e.sum("a_total"), e.sum("b"), e.sum("d")), (Some(7.0), Some(0.001), None));
        assert_eq!(e.sum_where("a_total", |l| l["k"] == "x"), Some(3.0));
        assert_eq!(e.samples[0].labels["l"], "q\"\\\n,}");
        assert_eq!((e.types["a_total"].as_str(), e.helps["a_total"].as_str()), ("counter", "All."));
        assert_eq!(e.sum("c"), Some(f64::INFINITY));
    }

    #[test]
    fn what_is_not_of_the_format_is_named_with_its_line() {
        for (text, why) in [
            ("a 1\nb\n", "line 2: no value"),
            ("a x\n", "\"x\" is no number"),
            ("a 1 2 3\n", "follows the value"),
            ("1a 1\n", "is no name"),
            ("a{k=1} 1\n", "without a value"),
            ("a{k=\"1\"l=\"2\"} 1\n", "no comma"),
            ("a{k=\"1\",k=\"2\"} 1\n", "twice"),
            ("a{k=\"\\t\"} 1\n", "an escape"),
            ("a{k=\"1\n", "isn't ended"),
            ("# TYPE a number\n", "is no type"),
            ("# TYPE a gauge\n# TYPE a gauge\n", "described twice"),
            ("a_sum 1\n# TYPE a summary\n", "after values"),
            ("a 1", "the last line"),
        ] {
            let e = Exposition::parse(text).unwrap_err();
            assert!(e.contains(why), "{text:?}: {e}");
        }
    }
}
