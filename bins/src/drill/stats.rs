//! What is counted, and what follows from it.

use super::figures::Figures;
use super::kills::Target;
use super::series::Series;
use super::strike::Record;
use crate::exit::Exit;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// How a request ended badly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// The connection was refused.
    Refused,
    /// It couldn't be made for another reason.
    Connect,
    /// It was reset.
    Reset,
    /// It ended before the answer did.
    ClosedEarly,
    /// No whole answer in time.
    Timeout,
    /// A status other than 200.
    Status(u16),
    /// Another body than the origin's.
    Body,
    /// Not HTTP.
    Protocol,
}

impl Failure {
    /// Is it what may become of a request that was in progress in two deaths, or of half an answer?
    fn is_fate(self) -> bool {
        matches!(self, Failure::Status(502 | 503) | Failure::Reset | Failure::ClosedEarly)
    }

    /// Its name in the summary and in JSON.
    pub fn name(self) -> String {
        match self {
            Failure::Refused => "refused".into(),
            Failure::Connect => "connect_error".into(),
            Failure::Reset => "reset".into(),
            Failure::ClosedEarly => "closed_early".into(),
            Failure::Timeout => "timeout".into(),
            Failure::Status(code) => format!("status_{code}"),
            Failure::Body => "wrong_body".into(),
            Failure::Protocol => "not_http".into(),
        }
    }
}

/// Durations in buckets of about 3 % width: bounded, whatever comes.
#[derive(Debug, Clone)]
pub struct Histogram {
    buckets: Vec<u64>,
    max_us: u64,
    count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { buckets: vec![0; 64 << SUB], max_us: 0, count: 0 }
    }
}

/// Bits of resolution within a power of two.
const SUB: u32 = 5;

impl Histogram {
    /// Counts one.
    pub fn add(&mut self, d: Duration) {
        let us = d.as_micros().min(u128::from(u64::MAX)) as u64;
        self.buckets[bucket(us)] += 1;
        self.max_us = self.max_us.max(us);
        self.count += 1;
    }

    /// The value that a part `q` (0 to 1) of all stays under, in milliseconds; `None` when nothing was counted.
    pub fn quantile_ms(&self, q: f64) -> Option<f64> {
        let rank = (q * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let at = self.buckets.iter().position(|n| {
            seen += n;
            seen >= rank
        })?;
        Some(upper(at).min(self.max_us) as f64 / 1000.0)
    }

    /// The largest, in milliseconds.
    pub fn max_ms(&self) -> f64 {
        self.max_us as f64 / 1000.0
    }
}

fn bucket(us: u64) -> usize {
    let high = u64::BITS - us.leading_zeros();
    if high <= SUB + 1 {
        return us as usize;
    }
    let shift = high - SUB - 1;
    ((shift as usize) << SUB) + (us >> shift) as usize
}

/// The largest value of a bucket.
fn upper(bucket: usize) -> u64 {
    let (shift, rest) = (bucket >> SUB, bucket & ((1 << SUB) - 1));
    if shift <= 1 {
        return bucket as u64;
    }
    let shift = shift - 1;
    ((((1u64 << SUB) + rest as u64 + 1) as u128) << shift).saturating_sub(1).min(u128::from(u64::MAX)) as u64
}

/// What the clients saw.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// Requests that ended, well or badly.
    pub requests: u64,
    /// Well: 200 with the right body.
    pub ok: u64,
    /// Badly, by kind.
    pub failed: BTreeMap<Failure, u64>,
    /// POSTs that were answered with 502: cut in flight, and not repeated.
    pub posts_cut: u64,
    /// POSTs that reached the origin more than once.
    pub posts_twice: u64,
    /// Keep-alive connections that ended without the server having said so.
    pub connections_lost: u64,
    /// Connections that were made.
    pub connections: u64,
    /// From when a request was due to its whole answer.
    pub latency: Histogram,
    /// The same over time.
    pub series: Series,
}

impl Stats {
    /// A request that was due at `due` ended well.
    pub fn good(&mut self, due: Instant, took: Duration) {
        self.requests += 1;
        self.ok += 1;
        self.latency.add(took);
        self.series.good(due, took);
    }

    /// A POST that nobody knows the fate of, and that was said to be so.
    pub fn doubtful(&mut self) {
        self.requests += 1;
        self.posts_cut += 1;
    }

    /// A request that was due at `due` ended badly.
    pub fn bad(&mut self, due: Instant, how: Failure) {
        self.requests += 1;
        self.series.bad(due);
        *self.failed.entry(how).or_default() += 1;
    }

    /// All that ended badly.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }
}

/// The whole drill.
#[derive(Debug)]
pub struct Outcome {
    /// The clients' side.
    pub stats: Stats,
    /// The kills.
    pub kills: Vec<Record>,
    /// How long it took.
    pub seconds: f64,
    /// What else speaks against it.
    pub complaints: Vec<String>,
    /// What chaos did, if there was some.
    pub chaos: Option<ChaosOutcome>,
    /// What a scenario came to, if it was one.
    pub scenario: Option<ScenarioOutcome>,
}

/// A scenario's steps.
#[derive(Debug)]
pub struct ScenarioOutcome {
    /// Its title.
    pub title: String,
    /// All of its steps, those included that there was no more reason to take.
    pub steps: Vec<StepOutcome>,
}

/// What a step came to.
#[derive(Debug)]
pub struct StepOutcome {
    /// What it was.
    pub text: String,
    /// When it began.
    pub at: Instant,
    /// How long it took.
    pub took: Duration,
    /// `None`: it wasn't taken. An error is why it failed.
    pub result: Option<Result<String, String>>,
}

/// What was done at random, and what the suite takes at rest before and after it.
#[derive(Debug)]
pub struct ChaosOutcome {
    /// Everything that was done follows from it.
    pub seed: u64,
    /// How often each kind was done.
    pub done: BTreeMap<&'static str, u64>,
    /// Signals to each program.
    pub hit: BTreeMap<&'static str, usize>,
    /// The last things that were done, and when.
    pub acts: VecDeque<(Instant, String)>,
    /// Before the load.
    pub before: Figures,
    /// When it is at rest again.
    pub after: Figures,
}

impl Outcome {
    /// A scenario is good if all of its steps are: it says itself what it expects. A drill without one is
    /// good only if no request failed, nothing else is wrong, and every kill was followed by an answer. Under chaos outages
    /// overlap: what was cut in two of them is answered 502, and half an answer may end; that is counted, and only what
    /// must never happen is held against the suite.
    pub fn verdict(&self) -> Exit {
        if let Some(s) = &self.scenario {
            let all = s.steps.iter().all(|s| matches!(s.result, Some(Ok(_))));
            let good = all && self.complaints.is_empty() && self.stats.posts_twice == 0;
            return if good { Exit::Done } else { Exit::Failure };
        }
        let answered = self.kills.iter().all(|k| k.takeover.is_some());
        let failed = match self.chaos {
            None => self.stats.connections_lost + self.stats.failures(),
            Some(_) => self.stats.failed.iter().filter(|(how, _)| !how.is_fate()).map(|(_, n)| n).sum(),
        };
        let lost = failed + self.stats.posts_twice;
        let good = lost == 0 && self.stats.ok > 0 && self.complaints.is_empty() && answered;
        if good { Exit::Done } else { Exit::Failure }
    }

    /// Kills of one program.
    pub fn killed(&self, target: Target) -> usize {
        self.kills.iter().flat_map(|k| &k.hit).filter(|(t, _)| *t == target).count()
    }

    /// Times from a stroke to the next answer in milliseconds, sorted.
    pub fn takeovers(&self) -> Vec<f64> {
        let mut list: Vec<f64> =
            self.kills.iter().filter_map(|k| k.takeover).map(|d| d.as_secs_f64() * 1000.0).collect();
        list.sort_by(f64::total_cmp);
        list
    }
}

/// The value at `q` of a sorted list.
pub fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let rank = (q * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_near_and_never_below() {
        let mut h = Histogram::default();
        assert_eq!(h.quantile_ms(0.5), None);
        for us in 1..=100_000u64 {
            h.add(Duration::from_micros(us));
        }
        for (q, exact) in [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            let got = h.quantile_ms(q).unwrap();
            assert!(got >= exact && got <= exact * 1.04, "{q}: {got}");
        }
        assert_eq!(h.max_ms(), 100.0);
    }

    #[test]
    fn every_value_lies_in_its_bucket() {
        for us in (0..5000).chain([1 << 20, (1 << 20) + 12345, u64::MAX / 2, u64::MAX]) {
            let b = bucket(us);
            assert!(us <= upper(b), "{us} > {}", upper(b));
            assert!(b == 0 || us > upper(b - 1), "{us} <= {}", upper(b - 1));
        }
    }

    #[test]
    fn one_failure_is_a_failed_drill() {
        let mut stats = Stats::default();
        stats.good(Instant::now(), Duration::from_millis(1));
        let mut o =
            Outcome { stats, kills: vec![], seconds: 1.0, complaints: vec![], chaos: None, scenario: None };
        assert_eq!(o.verdict(), Exit::Done);
        o.stats.bad(Instant::now(), Failure::Reset);
        assert_eq!(o.verdict(), Exit::Failure);
    }

    #[test]
    fn under_chaos_only_what_must_never_happen_is_a_failure() {
        let verdict = |how: &[Failure], complaints: Vec<String>| {
            let mut stats = Stats::default();
            stats.good(Instant::now(), Duration::from_millis(1));
            how.iter().for_each(|h| stats.bad(Instant::now(), *h));
            let (done, hit, acts) = Default::default();
            let (before, after) = Default::default();
            let chaos = Some(ChaosOutcome { seed: 1, done, hit, acts, before, after });
            Outcome { stats, kills: vec![], seconds: 1.0, complaints, chaos, scenario: None }.verdict()
        };
        assert_eq!(
            verdict(&[Failure::Status(502), Failure::Reset, Failure::ClosedEarly], vec![]),
            Exit::Done
        );
        for never in
            [Failure::Refused, Failure::Body, Failure::Timeout, Failure::Protocol, Failure::Status(500)]
        {
            assert_eq!(verdict(&[never], vec![]), Exit::Failure, "{never:?}");
        }
        assert_eq!(verdict(&[], vec!["fds grew".into()]), Exit::Failure);
    }

    #[test]
    fn quantiles_of_few() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[1.0, 2.0, 3.0], 0.5), Some(2.0));
        assert_eq!(quantile(&[1.0, 2.0, 3.0], 0.99), Some(3.0));
    }
}
