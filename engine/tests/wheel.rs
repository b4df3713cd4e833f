//! The timer wheel against a model that does everything the slow and obvious way.

use engine::wheel::{MAX_TICK, TimerKey, Wheel};
use proptest::prelude::*;

/// A list, searched from end to end.
#[derive(Default)]
struct Naive {
    now: u64,
    stamp: u64,
    /// (deadline, order of insertion, name)
    timers: Vec<(u64, u64, usize)>,
}

impl Naive {
    fn insert(&mut self, deadline: u64, name: usize) {
        self.stamp += 1;
        self.timers.push((deadline.clamp(self.now, MAX_TICK), self.stamp, name));
    }

    fn cancel(&mut self, name: usize) -> bool {
        let before = self.timers.len();
        self.timers.retain(|t| t.2 != name);
        self.timers.len() < before
    }

    fn due(&mut self, now: u64) -> Vec<usize> {
        self.now = self.now.max(now).min(MAX_TICK);
        self.timers.sort_unstable();
        let due = self.timers.iter().take_while(|t| t.0 <= self.now).count();
        self.timers.drain(..due).map(|t| t.2).collect()
    }

    fn next(&self) -> Option<u64> {
        self.timers.iter().map(|t| t.0).min()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u64),
    Cancel(usize),
    Reset(usize, u64),
    /// Forward by so much; now and then the caller's clock goes back, which the wheel ignores.
    Advance(i64),
}

/// Distances of every order of magnitude, edges of slots and levels among them.
fn distance() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..70u64,
        0..5000u64,
        (0..42u32, 0..3u64).prop_map(|(bits, off)| ((1u64 << bits) + off).saturating_sub(1)),
        Just(u64::MAX / 2),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => distance().prop_map(Step::Insert),
        2 => any::<usize>().prop_map(Step::Cancel),
        2 => (any::<usize>(), distance()).prop_map(|(n, d)| Step::Reset(n, d)),
        3 => distance().prop_map(|d| Step::Advance(d.min(1 << 41) as i64)),
        1 => (-100..0i64).prop_map(Step::Advance),
    ]
}

fn pop_all(wheel: &mut Wheel<usize>, now: u64) -> Vec<usize> {
    std::iter::from_fn(|| wheel.pop(now)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_does_what_a_list_would_do(start in 0..10_000u64, steps in proptest::collection::vec(step(), 1..200)) {
        let mut now = start;
        let mut wheel = Wheel::new(start);
        let mut naive = Naive { now: start, ..Naive::default() };
        let mut keys: Vec<TimerKey> = Vec::new();
        let mut cancelled = false;
        for step in steps {
            match step {
                Step::Insert(d) => {
                    naive.insert(now.saturating_add(d), keys.len());
                    keys.push(wheel.insert(now.saturating_add(d), keys.len()));
                }
                Step::Cancel(n) if !keys.is_empty() => {
                    let n = n % keys.len();
                    cancelled = true;
                    prop_assert_eq!(wheel.cancel(keys[n]), naive.cancel(n).then_some(n));
                }
                Step::Reset(n, d) if !keys.is_empty() => {
                    let n = n % keys.len();
                    let live = naive.cancel(n);
                    cancelled = true;
                    prop_assert_eq!(wheel.reset(keys[n], now.saturating_add(d)), live);
                    if live {
                        naive.insert(now.saturating_add(d), n);
                    }
                }
                Step::Advance(by) => {
                    let told = now.saturating_add_signed(by);
                    prop_assert_eq!(pop_all(&mut wheel, told), naive.due(told));
                    now = now.max(told).min(MAX_TICK);
                }
                Step::Cancel(_) | Step::Reset(..) => {}
            }
            prop_assert_eq!(wheel.len(), naive.timers.len());
            match (wheel.next(), naive.next()) {
                (None, None) => {}
                (Some(w), Some(n)) => {
                    prop_assert!(w <= n, "it would sleep past a timer: {} > {}", w, n);
                    prop_assert!(cancelled || w == n, "it would wake up for nothing: {} < {}", w, n);
                }
                (w, n) => prop_assert_eq!(w, n),
            }
        }
    }
}

#[test]
fn sleeping_until_next_never_wakes_in_vain_without_cancels() {
    let mut wheel = Wheel::new(0);
    for deadline in [1, 63, 64, 65, 4095, 4096, 60_000, 3_600_000, 86_400_000] {
        wheel.insert(deadline, deadline);
    }
    let mut woken = 0;
    while let Some(next) = wheel.next() {
        assert_eq!(wheel.pop(next), Some(next));
        woken += 1;
    }
    assert_eq!(woken, 9);
}

#[test]
fn a_stale_key_does_nothing() {
    let mut wheel = Wheel::new(0);
    let old = wheel.insert(5, "old");
    assert_eq!(wheel.pop(5), Some("old"));
    let new = wheel.insert(10, "new");
    assert_eq!(wheel.cancel(old), None);
    assert!(!wheel.reset(old, 7));
    assert_eq!(TimerKey::from_bits(new.to_bits()), new);
    assert_eq!(wheel.cancel(new), Some("new"));
}
