//! What `promtool check metrics` complains about, for a text that Prometheus is to read.

use std::collections::{BTreeMap, BTreeSet};
use traffic::exposition::{Exposition, Sample, family};

/// All complaints; a text that isn't of the format has just the one.
pub fn complaints(text: &str) -> Vec<String> {
    let e = match Exposition::parse(text) {
        Ok(e) => e,
        Err(why) => return vec![why],
    };
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for s in &e.samples {
        if !seen.insert((s.name.clone(), s.labels.clone())) {
            found.push(format!("{} {:?}: there twice", s.name, s.labels));
        }
        let named = if e.types.contains_key(&s.name) { s.name.as_str() } else { family(&s.name) };
        if !e.types.contains_key(named) {
            found.push(format!("{}: has no type", s.name));
        }
        if s.labels.contains_key("le") && !s.name.ends_with("_bucket") {
            found.push(format!("{}: le is for histograms", s.name));
        }
        if s.labels.keys().any(|l| l.chars().any(|c| c.is_ascii_uppercase())) {
            found.push(format!("{}: labels in camel case", s.name));
        }
    }
    for (name, kind) in &e.types {
        found.extend(of_name(name, kind).into_iter().map(|why| format!("{name}: {why}")));
        if e.helps.get(name).is_none_or(|h| h.is_empty()) {
            found.push(format!("{name}: no help text"));
        }
        if kind == "histogram" {
            found.extend(of_histogram(name, &e.samples));
        }
    }
    // values of one name stand together
    let mut done = BTreeSet::new();
    for pair in e.samples.windows(2).filter(|p| family(&p[0].name) != family(&p[1].name)) {
        done.insert(family(&pair[0].name));
        if done.contains(family(&pair[1].name)) {
            found.push(format!("{}: not all in one place", pair[1].name));
        }
    }
    found
}

fn of_name(name: &str, kind: &str) -> Vec<&'static str> {
    let words: Vec<&str> = name.split('_').collect();
    let mut found = Vec::new();
    let mut say = |wrong: bool, what: &'static str| found.extend(wrong.then_some(what));
    say((kind == "counter") != name.ends_with("_total"), "counters, and only they, end in _total");
    say(
        ["_bucket", "_sum", "_count"].iter().any(|e| name.ends_with(e)),
        "ends as a part of a histogram does",
    );
    say(words.iter().any(|w| ["counter", "gauge", "histogram", "summary"].contains(w)), "names its type");
    say(name.contains(':'), "colons are for recording rules");
    say(name.chars().any(|c| c.is_ascii_uppercase()), "camel case");
    let units = [
        "milliseconds",
        "microseconds",
        "nanoseconds",
        "minutes",
        "hours",
        "kibibytes",
        "kilobytes",
        "megabytes",
        "mebibytes",
        "bits",
        "percent",
        "ms",
        "us",
        "ns",
        "sec",
        "min",
        "kb",
        "mb",
        "kib",
        "mib",
    ];
    say(words.iter().any(|w| units.contains(w)), "isn't in base units (seconds, bytes, ratio)");
    found
}

/// Buckets that don't fall, up to one without end that equals the count.
fn of_histogram(name: &str, samples: &[Sample]) -> Vec<String> {
    let mut rows: BTreeMap<BTreeMap<String, String>, Vec<(f64, f64)>> = BTreeMap::new();
    let mut counts = BTreeMap::new();
    for s in samples.iter().filter(|s| family(&s.name) == name) {
        let mut labels = s.labels.clone();
        match labels.remove("le").map(|le| le.parse().unwrap_or(f64::NAN)) {
            Some(le) => rows.entry(labels).or_default().push((le, s.value)),
            None if s.name.ends_with("_count") => drop(counts.insert(labels, s.value)),
            None => {}
        }
    }
    let mut found = Vec::new();
    for (labels, row) in rows {
        let (le, all) = row.last().copied().unwrap_or_default();
        if le != f64::INFINITY || counts.get(&labels) != Some(&all) {
            found.push(format!("{name} {labels:?}: +Inf isn't the count"));
        }
        if !row.windows(2).all(|p| p[0].0 < p[1].0 && p[0].1 <= p[1].1) {
            found.push(format!("{name} {labels:?}: the buckets don't grow"));
        }
    }
    found
}
