//! What was measured, as tables and in the page.

use crate::sample::{Sample, Series};
use anyhow::{Context, ensure};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// One axis of a plot.
#[derive(Debug, Clone, Copy)]
pub struct Axis {
    pub name: &'static str,
    pub log: bool,
}

impl Axis {
    /// A logarithmic one.
    pub fn log(name: &'static str) -> Axis {
        Axis { name, log: true }
    }

    /// One from 0.
    pub fn linear(name: &'static str) -> Axis {
        Axis { name, log: false }
    }
}

/// Some series over the same axis.
#[derive(Debug)]
pub struct Chart {
    pub title: &'static str,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
}

impl Chart {
    /// One to be drawn.
    pub fn new(title: &'static str, x: Axis, y: Axis, series: Vec<Series>) -> Chart {
        Chart { title, x, y, series }
    }
}

/// All charts of one thing that grows: one file, one table.
#[derive(Debug)]
pub struct Part {
    pub name: &'static str,
    pub charts: Vec<Chart>,
    pub notes: Vec<String>,
}

impl Part {
    /// A Markdown table: a row for each point, a column for each series, and the notes.
    ///
    /// # Errors
    /// A point wasn't measured.
    pub fn table(&self) -> anyhow::Result<String> {
        let mut columns: Vec<(&str, Vec<(usize, Sample)>)> = Vec::new();
        for series in self.charts.iter().flat_map(|c| &c.series) {
            columns.push((&series.name, series.points()?));
        }
        let rows: BTreeSet<usize> =
            columns.iter().flat_map(|(_, points)| points.iter().map(|p| p.0)).collect();
        let x = self.charts.first().context("no chart")?.x.name;
        let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
        let mut text = format!("| {x} | {} |\n|---:|{}\n", names.join(" | "), "---:|".repeat(names.len()));
        for row in rows {
            let _ = write!(text, "| {} |", grouped(row));
            for (name, points) in &columns {
                let point = points.iter().find(|(at, _)| *at == row);
                let (_, s) = point.with_context(|| format!("{name:?} wasn't measured at {row}"))?;
                let _ = write!(text, " {} ({} – {}) |", figure(s.median), figure(s.least), figure(s.most));
            }
            text.push('\n');
        }
        for note in &self.notes {
            let _ = writeln!(text, "\n{note}");
        }
        Ok(text)
    }
}

/// A figure with three digits, or all before the point.
pub fn figure(v: f64) -> String {
    match v.abs() {
        a if a >= 1000.0 => grouped(v.round() as usize),
        a if a >= 100.0 => format!("{v:.0}"),
        a if a >= 10.0 => format!("{v:.1}"),
        _ => format!("{v:.2}"),
    }
}

fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, d) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(d);
    }
    out
}

/// The page with what stands between the marks of a part replaced.
///
/// # Errors
/// The page has no such marks.
pub fn replace(page: &str, name: &str, text: &str) -> anyhow::Result<String> {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->\n"));
    let cut = page.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    let (before, after) = cut.with_context(|| format!("the page has no place marked for {name}"))?;
    ensure!(!text.trim().is_empty(), "nothing to write for {name}");
    Ok(format!("{before}{begin}{text}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(points: &[(usize, f64)], others: &[(usize, f64)]) -> Part {
        let series = |name: &str, points: &[(usize, f64)]| {
            let mut s = Series::new(name);
            points.iter().for_each(|(x, y)| s.add(*x, *y));
            s
        };
        let all = vec![series("one, ms", points), series("other, ms", others)];
        let charts = vec![Chart::new("t", Axis::log("jobs"), Axis::linear("ms"), all)];
        Part { name: "jobs", charts, notes: vec!["A note.".into()] }
    }

    #[test]
    fn a_table_has_every_point_and_a_missing_one_is_an_error() {
        let table = part(&[(1, 0.5), (1000, 1234.5)], &[(1, 20.25), (1000, 300.0)]).table().unwrap();
        assert!(table.contains("| jobs | one, ms | other, ms |\n"), "{table}");
        assert!(table.contains("| 1 | 0.50 (0.50 – 0.50) | 20.2 (20.2 – 20.2) |\n"), "{table}");
        assert!(
            table.contains("| 1,000 | 1,235 (1,235 – 1,235) | 300 (300 – 300) |\n\nA note.\n"),
            "{table}"
        );
        let missing = part(&[(1, 1.0), (1000, 1.0)], &[(1, 1.0)]).table().unwrap_err().to_string();
        assert!(missing.contains("other, ms") && missing.contains("1000"), "{missing}");
        assert!(part(&[(1, 0.0)], &[(1, 1.0)]).table().is_err());
        assert!(part(&[(1, 1.0)], &[]).table().is_err());
    }

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let page = "a\n<!-- jobs -->\nold\n<!-- end of jobs -->\nb\n";
        assert_eq!(replace(page, "jobs", "new\n").unwrap(), page.replace("old", "new"));
        assert!(replace(page, "queue", "new\n").is_err());
        assert!(replace(page, "jobs", "").is_err());
    }
}
