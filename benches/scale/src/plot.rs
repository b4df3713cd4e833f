//! The plots: one SVG for a part, its charts beside each other, medians as lines and the range of the repeats as bars.

use crate::report::{Axis, Chart, Part, figure};
use crate::sample::Sample;
use anyhow::{Context, anyhow};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;

const WIDTH: u32 = 480;
const HEIGHT: u32 = 340;
const FOOT: u32 = 22;
const COLOURS: [RGBColor; 4] =
    [RGBColor(31, 119, 180), RGBColor(214, 39, 40), RGBColor(44, 160, 44), RGBColor(148, 103, 189)];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws a part; `foot` says when and where it was measured.
///
/// # Errors
/// A point wasn't measured.
pub fn svg(part: &Part, foot: &str) -> anyhow::Result<String> {
    let columns = part.charts.len().min(2);
    let rows = part.charts.len().div_ceil(columns.max(1));
    let (width, height) = (WIDTH * columns as u32, HEIGHT * rows as u32);
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (width, height + FOOT)).into_drawing_area();
        root.fill(&WHITE).map_err(drawing)?;
        let (charts, below) = root.split_vertically(height);
        for (chart, area) in part.charts.iter().zip(charts.split_evenly((rows, columns))) {
            draw(chart, &area).with_context(|| format!("{}: {}", part.name, chart.title))?;
        }
        let grey = TextStyle::from(("sans-serif", 12)).color(&RGBColor(90, 90, 90));
        below.draw_text(foot, &grey, (10, 4)).map_err(drawing)?;
        root.present().map_err(drawing)?;
    }
    Ok(text)
}

fn drawing(e: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing: {e}")
}

fn draw(chart: &Chart, area: &Area<'_>) -> anyhow::Result<()> {
    let series = chart.series.iter().map(|s| Ok((s.name.as_str(), s.points()?)));
    let series: Vec<(&str, Vec<(usize, Sample)>)> = series.collect::<anyhow::Result<_>>()?;
    let points = || series.iter().flat_map(|(_, points)| points);
    let least = points().map(|(_, s)| s.least).fold(f64::MAX, f64::min);
    let most = points().map(|(_, s)| s.most).fold(0.0, f64::max);
    let x = Ticks::at(chart.x, points().map(|(x, _)| *x as f64).collect());
    let y = Ticks::over(chart.y, least, most);
    let marks = (x.keys.len(), y.keys.len());
    let mut context = ChartBuilder::on(area)
        .caption(chart.title, ("sans-serif", 15))
        .margin(10)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(x, y)
        .map_err(drawing)?;
    let mut mesh = context.configure_mesh();
    mesh.x_labels(marks.0).y_labels(marks.1).x_desc(chart.x.name).y_desc(chart.y.name);
    mesh.draw().map_err(drawing)?;
    for ((name, points), colour) in series.iter().zip(COLOURS.iter().cycle()) {
        let at = |x: usize, v: f64| (x as f64, v);
        let line = LineSeries::new(points.iter().map(|(n, s)| at(*n, s.median)), colour.stroke_width(2));
        let drawn = context.draw_series(line).map_err(drawing)?;
        drawn
            .label(*name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2)));
        let dots = points.iter().map(|(n, s)| Circle::new(at(*n, s.median), 3, colour.filled()));
        context.draw_series(dots).map_err(drawing)?;
        let bars =
            points.iter().map(|(n, s)| PathElement::new(vec![at(*n, s.least), at(*n, s.most)], *colour));
        context.draw_series(bars).map_err(drawing)?;
    }
    context
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 12))
        .draw()
        .map_err(drawing)
}

/// An axis with its marks.
#[derive(Clone)]
struct Ticks {
    log: bool,
    keys: Vec<f64>,
    low: f64,
    high: f64,
}

impl Ticks {
    /// With marks at the values themselves.
    fn at(axis: Axis, mut keys: Vec<f64>) -> Ticks {
        keys.sort_by(f64::total_cmp);
        keys.dedup();
        let (low, high) = (keys[0], keys[keys.len() - 1]);
        let (low, high) = if axis.log { (low / 1.2, high * 1.2) } else { (low, high) };
        Ticks { log: axis.log, keys, low, high }
    }

    /// With round marks; a linear one begins with 0. Above there is room for the legend.
    fn over(axis: Axis, least: f64, most: f64) -> Ticks {
        if axis.log {
            let decades = least.log10().floor() as i32..=(most * 3.0).log10().ceil() as i32;
            let keys: Vec<f64> = decades.map(|n| 10f64.powi(n)).collect();
            return Ticks { log: true, low: keys[0], high: keys[keys.len() - 1], keys };
        }
        let unit = 10f64.powf((most / 4.0).log10().floor());
        let step =
            [1.0, 2.0, 5.0].map(|f| f * unit).into_iter().find(|s| most / s <= 5.0).unwrap_or(10.0 * unit);
        let keys: Vec<f64> = (0..=(most * 1.3 / step).ceil() as u32).map(|n| f64::from(n) * step).collect();
        Ticks { log: false, low: 0.0, high: keys[keys.len() - 1], keys }
    }

    fn linear(&self, v: f64) -> f64 {
        if self.log { v.log10() } else { v }
    }
}

impl Ranged for Ticks {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let (low, high) = (self.linear(self.low), self.linear(self.high));
        let at = (self.linear(*value) - low) / (high - low);
        from + (at * f64::from(to - from)).round() as i32
    }

    fn key_points<H: KeyPointHint>(&self, hint: H) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.keys.clone() }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Ticks {
    fn format_ext(&self, value: &f64) -> String {
        let text = figure(*value);
        match text.contains('.') {
            true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
            false => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Series;

    fn part(value: f64) -> Part {
        let mut s = Series::new("start, ms");
        [(1, 2.0), (10, value), (1000, 250.0)].iter().for_each(|(x, y)| s.add(*x, *y));
        let charts = [true, false]
            .map(|log| Chart::new("T", Axis::log("jobs"), Axis { name: "ms", log }, vec![s.clone()]));
        Part { name: "jobs", charts: charts.into(), notes: Vec::new() }
    }

    #[test]
    fn a_plot_has_a_dot_for_every_point_its_marks_and_its_foot() {
        let svg = svg(&part(20.0), "21 November").unwrap();
        assert_eq!(svg.matches("<circle").count(), 6, "{svg}");
        ["1,000", "start, ms", "21 November", "jobs"]
            .iter()
            .for_each(|w| assert!(svg.contains(w), "{w}: {svg}"));
    }

    #[test]
    fn a_point_that_was_not_measured_is_not_drawn_but_an_error() {
        let said = format!("{:#}", svg(&part(0.0), "foot").unwrap_err());
        assert!(said.contains("start, ms") && said.contains("at 10"), "{said}");
    }
}
