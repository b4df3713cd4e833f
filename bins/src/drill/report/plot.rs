//! The plots, as SVG.

use crate::drill::series::Series;
use crate::drill::stats::{Outcome, quantile};
use crate::drill::strike::Record;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 18.0;
const BOTTOM: f64 = 20.0;
/// Of the plots over time.
const HEIGHT: f64 = 240.0;
/// Of a line of take-overs.
const ROW: f64 = 34.0;

/// A logarithmic scale of milliseconds, in whole decades.
struct Log {
    low: f64,
    decades: f64,
}

impl Log {
    fn of(values: impl Iterator<Item = f64>) -> Log {
        let (mut low, mut high) = (f64::MAX, f64::MIN);
        for v in values.filter(|v| *v > 0.0) {
            (low, high) = (low.min(v), high.max(v));
        }
        if low > high {
            (low, high) = (1.0, 10.0);
        }
        let (low, high) = (low.log10().floor(), high.log10().ceil());
        Log { low, decades: (high - low).max(1.0) }
    }

    /// 0 to 1.
    fn at(&self, ms: f64) -> f64 {
        ((ms.max(1e-6).log10() - self.low) / self.decades).clamp(0.0, 1.0)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let low = self.low as i32;
        (low..=low + self.decades as i32).map(|e| 10f64.powi(e))
    }
}

/// Milliseconds in the unit that reads best.
fn unit(ms: f64) -> String {
    match ms {
        ms if ms < 1.0 => format!("{:.0} µs", ms * 1000.0),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.0} s", ms / 1000.0),
    }
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

/// A plot over time, with its axis and the strokes marked.
struct Frame<'a> {
    o: &'a Outcome,
    seconds: f64,
    out: String,
}

impl<'a> Frame<'a> {
    fn new(o: &'a Outcome, what: &str) -> Frame<'a> {
        let s = &o.stats.series;
        let strokes =
            marks(o).into_iter().map(|(at, ..)| at.saturating_duration_since(s.begun).as_secs_f64());
        let seconds = strokes.fold(s.slots.len() as f64 * s.width.as_secs_f64(), f64::max).max(0.1);
        let out = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{what}\">\n");
        Frame { o, seconds, out }
    }

    fn series(&self) -> &'a Series {
        &self.o.stats.series
    }

    fn x(&self, seconds: f64) -> f64 {
        LEFT + (seconds / self.seconds).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(part: f64) -> f64 {
        HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
    }

    /// The middle of a slot.
    fn middle(&self, slot: usize) -> f64 {
        self.x((slot as f64 + 0.5) * self.series().width.as_secs_f64())
    }

    fn level(&mut self, part: f64, text: &str) {
        let (y, right) = (Frame::y(part), WIDTH - RIGHT);
        let _ = writeln!(
            self.out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
            LEFT - 6.0,
            y + 4.0
        );
    }

    fn end(mut self) -> String {
        let step = [0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 3600.0, 14_400.0];
        let step = step.into_iter().find(|s| self.seconds / s <= 12.0).unwrap_or(86_400.0);
        for n in 0..=(self.seconds / step) as usize {
            let at = n as f64 * step;
            let (x, y) = (self.x(at), HEIGHT - 5.0);
            let at = (at * 10.0).round() / 10.0;
            let _ = writeln!(self.out, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{at} s</text>");
        }
        for (at, label, what) in marks(self.o) {
            let x = self.x(at.saturating_duration_since(self.series().begun).as_secs_f64());
            let _ = writeln!(
                self.out,
                "<line class=\"stroke\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"><title>{}</title></line>\
                 <text class=\"who\" x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{label}</text>",
                HEIGHT - BOTTOM,
                super::escape(&what),
                TOP - 5.0,
            );
        }
        self.out + "</svg>\n"
    }
}

/// What was done to the suite: when, whom by their first letters, and in words.
fn marks(o: &Outcome) -> Vec<(Instant, String, String)> {
    let stroke = |r: &Record| {
        let who: String = r.hit.iter().filter_map(|(t, _)| t.name().chars().next()).collect();
        (r.at, who.to_uppercase(), r.text())
    };
    let acts = o.chaos.iter().flat_map(|c| &c.acts);
    let act = |(at, text): &(Instant, String)| (*at, String::new(), text.clone());
    o.kills.iter().map(stroke).chain(acts.map(act)).collect()
}

/// Median, 99th percentile and longest latency, logarithmic.
pub fn latency(o: &Outcome) -> String {
    let mut f = Frame::new(o, "latency over time");
    let slots = &f.series().slots;
    let answered: Vec<_> = slots.iter().enumerate().filter(|(_, s)| s.ok > 0).collect();
    let scale = Log::of(answered.iter().flat_map(|(_, s)| [s.quantile(0.5).map_or(0.0, ms), ms(s.longest)]));
    for tick in scale.ticks() {
        f.level(scale.at(tick), &unit(tick));
    }
    for (i, s) in &answered {
        let _ = writeln!(
            f.out,
            "<circle class=\"max\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"1.5\"/>",
            f.middle(*i),
            Frame::y(scale.at(ms(s.longest)))
        );
    }
    for (class, q) in [("p99", 0.99), ("p50", 0.5)] {
        let point = |(i, s): &(usize, &crate::drill::series::Slot)| {
            let value = s.quantile(q).map_or(0.0, ms);
            format!("{:.1},{:.1}", f.middle(*i), Frame::y(scale.at(value)))
        };
        let points: Vec<_> = answered.iter().map(point).collect();
        let _ = writeln!(f.out, "<polyline class=\"{class}\" points=\"{}\"/>", points.join(" "));
    }
    f.end()
        + "<p class=\"soft\">Lines: median and 99th percentile; dots: the longest. Dashed: who was struck (S server, M manager, C cop).</p>\n"
}

/// Requests a second that were answered, and that failed.
pub fn outcomes(o: &Outcome) -> String {
    let mut f = Frame::new(o, "outcomes over time");
    let series = f.series();
    let per_second = |n: u64| n as f64 / series.width.as_secs_f64();
    let most = series.slots.iter().map(|s| per_second(s.ok + s.failed)).fold(1.0, f64::max);
    for part in [0.0, 0.5, 1.0] {
        f.level(part, &format!("{:.0}/s", most * part));
    }
    let width = (f.x(series.width.as_secs_f64()) - LEFT).max(0.5);
    for (i, s) in series.slots.iter().enumerate() {
        let left = f.middle(i) - width / 2.0;
        let mut below = 0.0;
        for (class, n) in [("failed", s.failed), ("ok", s.ok)].into_iter().filter(|(_, n)| *n > 0) {
            let part = per_second(n) / most;
            // one that failed is seen among thousands
            let height = (Frame::y(0.0) - Frame::y(part)).max(if class == "failed" { 3.0 } else { 0.0 });
            let y = Frame::y(below) - height;
            let _ = writeln!(
                f.out,
                "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{height:.1}\"/>"
            );
            below += part;
        }
    }
    f.end() + "<p class=\"soft\">Green: answered; red: failed.</p>\n"
}

/// A dot for each stroke that was answered, by whom it hit, logarithmic.
pub fn takeovers(o: &Outcome) -> String {
    let mut rows: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for r in &o.kills {
        let row = rows.entry(format!("{} {}", r.stroke.name(), r.who())).or_default();
        row.extend(r.takeover.map(ms));
    }
    if rows.is_empty() {
        return "<p class=\"soft\">Nobody was struck.</p>\n".into();
    }
    let scale = Log::of(rows.values().flatten().copied());
    let left = 200.0;
    let x = |v: f64| left + scale.at(v) * (WIDTH - left - 30.0);
    let height = TOP + ROW * rows.len() as f64 + BOTTOM;
    let mut out = format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"take-overs\">\n");
    for tick in scale.ticks() {
        let (at, end) = (x(tick), height - BOTTOM);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{end}\"/>\
             <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            height - 5.0,
            unit(tick)
        );
    }
    for (i, (who, mut times)) in rows.into_iter().enumerate() {
        times.sort_by(f64::total_cmp);
        let y = TOP + ROW * (i as f64 + 0.5);
        let name = format!("{who} ({})", times.len());
        let _ = writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
            left - 8.0,
            y + 4.0
        );
        for t in &times {
            let _ = writeln!(out, "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4\"/>", x(*t));
        }
        if let Some(median) = quantile(&times, 0.5) {
            let (at, up, down) = (x(median), y - 10.0, y + 10.0);
            let _ = writeln!(
                out,
                "<line class=\"median\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{up:.1}\" y2=\"{down:.1}\"><title>median {median:.1} ms</title></line>"
            );
        }
    }
    out + "</svg>\n"
}
