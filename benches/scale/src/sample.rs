//! One measured point: the median of its repeats. What couldn't be measured is an error, never a zero.

use anyhow::{Context, ensure};

/// Median, least and greatest of several repeats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Sample {
    /// Of all repeats of a point.
    ///
    /// # Errors
    /// There are none, or one of them can't be a measured quantity (all that is measured here is greater than 0).
    pub fn of(repeats: &[f64]) -> anyhow::Result<Sample> {
        if let Some(bad) = repeats.iter().find(|v| !v.is_finite() || **v <= 0.0) {
            anyhow::bail!("{bad} was measured, which can't be");
        }
        let mut sorted = repeats.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = sorted.first().zip(sorted.last()).context("nothing was measured")?;
        Ok(Sample { median: sorted[sorted.len() / 2], least: *least, most: *most })
    }
}

/// One line of a plot, one column of a table.
#[derive(Debug, Clone)]
pub struct Series {
    pub name: String,
    repeats: Vec<(usize, Vec<f64>)>,
}

impl Series {
    /// Without a point.
    pub fn new(name: impl Into<String>) -> Series {
        Series { name: name.into(), repeats: Vec::new() }
    }

    /// One repeat of the point at `x`.
    pub fn add(&mut self, x: usize, value: f64) {
        match self.repeats.iter_mut().find(|(at, _)| *at == x) {
            Some((_, values)) => values.push(value),
            None => self.repeats.push((x, vec![value])),
        }
    }

    /// The points, by `x`.
    ///
    /// # Errors
    /// One of them wasn't measured, or there are none: which, and why.
    pub fn points(&self) -> anyhow::Result<Vec<(usize, Sample)>> {
        ensure!(!self.repeats.is_empty(), "{:?}: nothing was measured", self.name);
        let point = |(x, values): &(usize, Vec<f64>)| {
            Ok((*x, Sample::of(values).with_context(|| format!("{:?} at {x}", self.name))?))
        };
        let mut points = self.repeats.iter().map(point).collect::<anyhow::Result<Vec<_>>>()?;
        points.sort_by_key(|(x, _)| *x);
        Ok(points)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_the_median_of_its_repeats_with_their_range() {
        let mut s = Series::new("s");
        [(300, 9.0), (100, 2.0), (100, 7.0), (100, 3.0)].iter().for_each(|(x, v)| s.add(*x, *v));
        let hundred = Sample { median: 3.0, least: 2.0, most: 7.0 };
        let three = Sample { median: 9.0, least: 9.0, most: 9.0 };
        assert_eq!(s.points().unwrap(), [(100, hundred), (300, three)]);
    }

    #[test]
    fn what_was_not_measured_is_an_error_that_names_it_and_never_a_zero() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let mut s = Series::new("take-over, ms");
            s.add(100, 5.0);
            s.add(300, 5.0);
            s.add(300, bad);
            let said = format!("{:#}", s.points().unwrap_err());
            assert!(said.contains("take-over, ms") && said.contains("at 300"), "{said}");
        }
        assert!(Sample::of(&[]).is_err());
        assert!(Series::new("empty").points().unwrap_err().to_string().contains("empty"));
    }
}
