//! What became of requests over time: a bounded number of slots, which grow wider as a drill grows longer.

use std::time::{Duration, Instant};

/// Slots at most; with one more, all become twice as wide.
const SLOTS: usize = 512;
/// How wide slots are at first.
const FIRST: Duration = Duration::from_millis(50);
/// Classes of latency within a doubling.
const STEPS: f64 = 4.0;
/// Latencies up to 2^26 µs, which is more than a minute.
const CLASSES: usize = 26 * STEPS as usize + 1;

/// Requests that were due in one slot of time.
#[derive(Debug, Clone)]
pub struct Slot {
    /// Answered well.
    pub ok: u64,
    /// Not.
    pub failed: u64,
    classes: [u32; CLASSES],
    /// The longest latency.
    pub longest: Duration,
}

impl Default for Slot {
    fn default() -> Slot {
        Slot { ok: 0, failed: 0, classes: [0; CLASSES], longest: Duration::ZERO }
    }
}

impl Slot {
    fn join(&mut self, other: &Slot) {
        self.ok += other.ok;
        self.failed += other.failed;
        self.longest = self.longest.max(other.longest);
        self.classes.iter_mut().zip(other.classes).for_each(|(a, b)| *a += b);
    }

    /// The latency that a part `q` (0 to 1) stays under, up to 19 % too long.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let all: u64 = self.classes.iter().map(|n| u64::from(*n)).sum();
        let rank = (q * all as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let class = self.classes.iter().position(|n| {
            seen += u64::from(*n);
            seen >= rank
        })?;
        Some(Duration::from_micros(2f64.powf((class + 1) as f64 / STEPS) as u64).min(self.longest))
    }
}

/// The slots since the first request.
#[derive(Debug, Clone)]
pub struct Series {
    /// When the first slot begins.
    pub begun: Instant,
    /// How wide each is.
    pub width: Duration,
    /// All of them, in their order.
    pub slots: Vec<Slot>,
}

impl Default for Series {
    fn default() -> Series {
        Series { begun: Instant::now(), width: FIRST, slots: Vec::new() }
    }
}

impl Series {
    /// A request that was due at `due` was answered after so long.
    pub fn good(&mut self, due: Instant, took: Duration) {
        let slot = self.slot(due);
        slot.ok += 1;
        slot.longest = slot.longest.max(took);
        let class = (took.as_micros().max(1) as f64).log2() * STEPS;
        slot.classes[(class as usize).min(CLASSES - 1)] += 1;
    }

    /// One that was due at `due` ended badly.
    pub fn bad(&mut self, due: Instant) {
        self.slot(due).failed += 1;
    }

    fn slot(&mut self, due: Instant) -> &mut Slot {
        let since = due.saturating_duration_since(self.begun);
        while since.as_nanos() >= self.width.as_nanos() * SLOTS as u128 {
            self.width *= 2;
            let pairs = self.slots.chunks(2).map(|pair| {
                let mut whole = pair[0].clone();
                pair.iter().skip(1).for_each(|other| whole.join(other));
                whole
            });
            self.slots = pairs.collect();
        }
        let at = (since.as_nanos() / self.width.as_nanos()) as usize;
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, Slot::default);
        }
        &mut self.slots[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_stay_few_however_long_it_takes_and_nothing_is_lost() {
        let mut s = Series::default();
        for second in 0..10_000u64 {
            let due = s.begun + Duration::from_secs(second);
            s.good(due, Duration::from_millis(1 + second % 10));
            s.bad(due);
        }
        assert!(s.slots.len() <= SLOTS && s.slots.len() > SLOTS / 4, "{}", s.slots.len());
        let all = |f: fn(&Slot) -> u64| s.slots.iter().map(f).sum::<u64>();
        assert_eq!((all(|s| s.ok), all(|s| s.failed)), (10_000, 10_000));
        assert!(s.slots.iter().all(|s| s.longest >= Duration::from_millis(8)));
    }

    #[test]
    fn quantiles_are_near_and_never_beyond_the_longest() {
        let mut s = Series::default();
        let due = s.begun;
        assert_eq!(Slot::default().quantile(0.5), None);
        (1..=1000).for_each(|ms| s.good(due, Duration::from_millis(ms)));
        let slot = &s.slots[0];
        for (q, exact) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let got = slot.quantile(q).unwrap().as_secs_f64() * 1000.0;
            assert!(got >= exact * 0.99 && got <= exact * 1.2, "{q}: {got}");
        }
        assert_eq!(slot.quantile(1.0), Some(slot.longest));
        // one that was due before the first counts with it
        s.good(due - Duration::from_secs(5), Duration::from_secs(100));
        assert_eq!((s.slots.len(), s.slots[0].ok), (1, 1001));
    }
}
