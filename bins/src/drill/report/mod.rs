//! The report: one HTML file that needs nothing else, for who was not there.
//!
//! What a scenario or a program said is text in it, never markup.

mod plot;

use super::stats::{Outcome, StepOutcome, quantile};
use super::strike::Record;
use super::view::{by_kind, result};
use crate::exit::Exit;
use anyhow::Context;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Instant, SystemTime};

const STYLE: &str = include_str!("report.css");

/// Makes the file, before anything is done for it.
///
/// # Errors
/// It can't be made.
pub fn begin(path: Option<&Path>) -> anyhow::Result<Option<(File, &Path)>> {
    let Some(path) = path else { return Ok(None) };
    let file = File::create(path).with_context(|| format!("--report: making {}", path.display()))?;
    Ok(Some((file, path)))
}

/// Writes it.
///
/// # Errors
/// The disk is full, or the like.
pub fn write(mut file: File, o: &Outcome) -> io::Result<()> {
    file.write_all(html(o).as_bytes())?;
    file.sync_all()
}

/// The page.
pub fn html(o: &Outcome) -> String {
    let title = o.scenario.as_ref().map_or("A drill of the traffic suite", |s| &s.title);
    let passed = o.verdict() == Exit::Done;
    let (class, verdict) = if passed { ("good", "passed") } else { ("bad", "FAILED") };
    let when = humantime::format_rfc3339_seconds(SystemTime::now());
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n<h1>{title} <span class=\"{class}\">{verdict}</span></h1>\n\
         <p class=\"soft\">{when}, {:.1} s, version {}</p>\n",
        o.seconds,
        env!("CARGO_PKG_VERSION"),
        title = escape(title)
    );
    for why in &o.complaints {
        let _ = writeln!(out, "<p class=\"bad\">{}</p>", escape(why));
    }
    out += &totals(o);
    out += "<h2>Latency of requests by when they were due</h2>\n";
    out += &plot::latency(o);
    out += "<h2>Outcome of requests by when they were due</h2>\n";
    out += &plot::outcomes(o);
    out += "<h2>Time to the next answer on a new connection</h2>\n";
    out += &plot::takeovers(o);
    if let Some(s) = &o.scenario {
        out += &steps(&s.steps, o.stats.series.begun);
    }
    out + &strokes(&o.kills, o.stats.series.begun) + "</html>\n"
}

fn totals(o: &Outcome) -> String {
    let s = &o.stats;
    let ms = |v: Option<f64>| v.map_or("–".to_owned(), |v| format!("{v:.1} ms"));
    let kinds: Vec<String> = by_kind(s).into_iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    let failed = match kinds.is_empty() {
        true => "0".to_owned(),
        false => format!("{} ({})", s.failures(), kinds.join(", ")),
    };
    let t = o.takeovers();
    let rows = [
        ("requests", s.requests.to_string()),
        ("answered", s.ok.to_string()),
        ("failed", failed),
        ("connections", format!("{}, of which {} lost", s.connections, s.connections_lost)),
        ("POSTs", format!("{} answered 502, {} arrived twice", s.posts_cut, s.posts_twice)),
        (
            "latency",
            format!(
                "p50 {}, p99 {}, longest {:.1} ms",
                ms(s.latency.quantile_ms(0.5)),
                ms(s.latency.quantile_ms(0.99)),
                s.latency.max_ms()
            ),
        ),
        (
            "next answer after a stroke",
            format!(
                "p50 {}, p99 {}, longest {}",
                ms(quantile(&t, 0.5)),
                ms(quantile(&t, 0.99)),
                ms(t.last().copied())
            ),
        ),
    ];
    let rows = rows.iter().map(|(name, v)| format!("<tr><th>{name}</th><td>{}</td></tr>\n", escape(v)));
    format!("<table>\n{}</table>\n", rows.collect::<String>())
}

fn steps(steps: &[StepOutcome], begun: Instant) -> String {
    let mut out =
        "<h2>Steps</h2>\n<table>\n<tr><th>at</th><th>took</th><th></th><th>step</th></tr>\n".to_owned();
    for s in steps {
        let (word, why) = result(s);
        let class = if word == "ok" { "good" } else { "bad" };
        let at = s.at.saturating_duration_since(begun).as_secs_f64();
        let _ = writeln!(
            out,
            "<tr><td>{at:.1} s</td><td>{:.1} s</td><td class=\"{class}\">{word}</td><td>{}{}</td></tr>",
            s.took.as_secs_f64(),
            escape(&s.text),
            escape(&why)
        );
    }
    out + "</table>\n"
}

fn strokes(records: &[Record], begun: Instant) -> String {
    if records.is_empty() {
        return String::new();
    }
    let mut out = "<h2>Strokes</h2>\n<table>\n<tr><th>at</th><th></th><th>whom</th><th>pid</th>\
                   <th>next answer</th><th>failed before</th></tr>\n"
        .to_owned();
    for r in records {
        let at = r.at.saturating_duration_since(begun).as_secs_f64();
        let pids: Vec<String> = r.hit.iter().map(|(_, pid)| pid.to_string()).collect();
        let answer = r.takeover.map_or("none".to_owned(), |t| format!("{:.1} ms", t.as_secs_f64() * 1000.0));
        let _ = writeln!(
            out,
            "<tr><td>{at:.1} s</td><td>{}</td><td>{}</td><td>{}</td><td>{answer}</td><td>{}</td></tr>",
            r.stroke.name(),
            r.who(),
            pids.join(" "),
            r.misses
        );
    }
    out + "</table>\n"
}

/// Text as it stands.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::kills::Target;
    use super::super::stats::{Failure, ScenarioOutcome, Stats};
    use super::super::strike::Stroke;
    use super::*;
    use std::time::Duration;

    fn outcome() -> Outcome {
        let mut stats = Stats::default();
        let begun = stats.series.begun;
        for ms in 0..2000u64 {
            stats.good(begun + Duration::from_millis(ms), Duration::from_micros(300 + ms % 700));
        }
        stats.good(begun + Duration::from_millis(900), Duration::from_millis(80));
        stats.bad(begun + Duration::from_millis(950), Failure::Reset);
        let stroke = |ms, target, took| Record {
            stroke: Stroke::Kill,
            hit: vec![(target, 77)],
            at: begun + Duration::from_millis(ms),
            takeover: took,
            misses: 0,
        };
        let kills = vec![
            stroke(900, Target::Server, Some(Duration::from_millis(2))),
            stroke(1500, Target::Cop, None),
        ];
        let step = StepOutcome {
            text: "kill <server>".into(),
            at: begun,
            took: Duration::from_secs(1),
            result: Some(Err("f.toml:3: step 1 (kill): why & so".into())),
        };
        let scenario = Some(ScenarioOutcome { title: "A <b>title</b>".into(), steps: vec![step] });
        Outcome {
            stats,
            kills,
            seconds: 2.0,
            complaints: vec!["a \"complaint\"".into()],
            chaos: None,
            scenario,
        }
    }

    #[test]
    fn it_needs_nothing_from_elsewhere_and_text_stays_text() {
        let page = html(&outcome());
        for outside in ["http://", "https://", "src=", "@import", "url(", "<script", "<b>", "<server>"] {
            assert!(!page.contains(outside), "it has {outside}");
        }
        for there in
            ["A &lt;b&gt;title", "FAILED", "kill &lt;server&gt;", "why &amp; so", "a &quot;complaint"]
        {
            assert!(page.contains(there), "{there} in\n{page}");
        }
    }

    #[test]
    fn every_tag_is_closed_in_its_order() {
        let page = html(&outcome());
        let mut open = Vec::new();
        for tag in page.split('<').skip(1).map(|t| t.split('>').next().unwrap_or("")) {
            let name = tag.split([' ', '/']).find(|w| !w.is_empty()).unwrap_or("");
            let alone = tag.ends_with('/') || tag.starts_with('!') || name == "meta";
            if tag.starts_with('/') {
                // the head and paragraphs need not be said to end
                assert_eq!(open.pop(), Some(name), "{tag}");
            } else if !alone {
                open.push(name);
            }
        }
        assert_eq!(open, [""; 0]);
    }

    #[test]
    fn nothing_at_all_is_a_page_too() {
        let stats = Stats::default();
        let page = html(&Outcome {
            stats,
            kills: vec![],
            seconds: 0.0,
            complaints: vec![],
            chaos: None,
            scenario: None,
        });
        assert!(page.contains("</html>") && !page.contains("NaN") && !page.contains("inf"), "{page}");
    }
}
