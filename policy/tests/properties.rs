//! What holds for all numbers and all sequences: back-off, ladder and heartbeat.

use policy::Time;
use policy::backoff::{self, Backoff, FREE, Respawn};
use policy::heartbeat::{self, Action, Heartbeat};
use policy::ladder::{Ladder, Rung, Rungs};
use proptest::prelude::*;
use std::time::Duration;

const MS: fn(u64) -> Duration = Duration::from_millis;

prop_compose! {
    fn respawn()(
        initial in 0u64..100_000,
        factor in prop_oneof![Just(1.0), 1.0..4.0, Just(100.0), Just(f64::MAX)],
        max in 1u64..100_000,
        jitter in 0.0..=1.0,
        stable in 0u64..100_000,
        give_up_after in prop_oneof![Just(0u32), 1u32..50],
    ) -> backoff::Limits {
        backoff::Limits { initial: MS(initial), factor, max: MS(max), jitter, stable_after: MS(stable), give_up_after }
    }
}

prop_compose! {
    fn beat()(interval in 1u64..20_000, timeout in 20u64..200_000, failures in 1u32..5) -> heartbeat::Limits {
        heartbeat::Limits { interval: MS(interval), timeout: MS(timeout), failures }
    }
}

/// The sequence of served times: `None` is a child that never became ready.
fn lives() -> impl Strategy<Value = Vec<(Option<u64>, f64)>> {
    prop::collection::vec((prop::option::of(0u64..200_000), 0.0..1.0), 1..120)
}

proptest! {
    #[test]
    fn no_wait_is_longer_than_the_longest(limits in respawn(), lives in lives()) {
        let mut b = Backoff::new(limits);
        let mut now = Time::ZERO;
        for (served, random) in lives {
            let ready = now;
            now += MS(served.unwrap_or(0));
            match b.crashed(served.map(|_| ready), now, random) {
                Respawn::After(wait) => {
                    prop_assert!(wait <= limits.max);
                    now += wait;
                }
                Respawn::GiveUp => prop_assert!(limits.give_up_after > 0 && b.crashes() > limits.give_up_after),
            }
        }
    }

    #[test]
    fn a_loop_of_crashes_waits_longer_each_time_and_is_braked_after_a_handful(limits in respawn()) {
        let limits = backoff::Limits { jitter: 0.0, give_up_after: 0, ..limits };
        let mut b = Backoff::new(limits);
        let mut last = Duration::ZERO;
        for n in 1..200 {
            let Respawn::After(wait) = b.crashed(None, Time::ZERO, 0.5) else { panic!("gave up") };
            prop_assert!(wait >= last, "crash {n}: {wait:?} after {last:?}");
            prop_assert!(n <= FREE || !wait.is_zero(), "crash {n} is free");
            last = wait;
        }
        // whatever the numbers, growth ends at the longest wait, unless there is none
        prop_assert!(limits.factor == 1.0 || limits.factor < 1.2 || last == limits.max);
    }

    #[test]
    fn jitter_only_shortens_and_by_no_more_than_its_part(limits in respawn(), random in 0.0..1.0, crashes in 1usize..60) {
        let wait = |jitter, random| {
            let mut b = Backoff::new(backoff::Limits { jitter, give_up_after: 0, ..limits });
            (0..crashes).map(|_| b.crashed(None, Time::ZERO, random)).last()
        };
        let (Some(Respawn::After(full)), Some(Respawn::After(cut))) = (wait(0.0, 0.0), wait(limits.jitter, random))
        else { panic!("gave up") };
        let least = full.as_secs_f64() * (1.0 - limits.jitter);
        prop_assert!(cut <= full && cut.as_secs_f64() >= least - 1e-6);
    }

    #[test]
    fn a_ladder_is_climbed_rung_by_rung_never_too_early_and_has_an_end(
        polite in 0u64..1000,
        core in prop::option::of(0u64..1000),
        kill in 0u64..1000,
        steps in prop::collection::vec(0u64..700, 1..80),
    ) {
        let rungs = Rungs { polite: MS(polite), core: core.map(MS), kill: MS(kill) };
        let height = |r: Rung| match r { Rung::Polite => 0, Rung::Core => 1, Rung::Kill => 2, Rung::Stuck => 3 };
        let given = |r: Rung| match r {
            Rung::Polite => rungs.polite,
            Rung::Core => rungs.core.expect("a core rung without a core signal"),
            Rung::Kill => rungs.kill,
            Rung::Stuck => Duration::ZERO,
        };
        let mut now = Time::ZERO;
        let (mut ladder, mut at) = Ladder::begin(rungs, now);
        let mut since = now;
        prop_assert_eq!(at == Rung::Polite, polite > 0);
        for step in steps {
            now += MS(step);
            match ladder.tick(now) {
                Some(next) => {
                    prop_assert!(height(next) > height(at), "{next:?} after {at:?}");
                    prop_assert!(now - since >= given(at), "{at:?} was given {:?}", now - since);
                    prop_assert!(next != Rung::Stuck || at == Rung::Kill, "given up before SIGKILL");
                    (at, since) = (next, now);
                }
                None => prop_assert!(at == Rung::Stuck || now - since < given(at), "{at:?} was over"),
            }
            prop_assert_eq!(ladder.rung(), at);
            prop_assert_eq!(ladder.deadline().is_none(), at == Rung::Stuck);
        }
    }

    /// Whatever stops the watcher, how often and for how long, and whether it then looks at the clock or into its socket
    /// first: who always answers within a tenth of the timeout is never blamed. (A watcher that is late by less than a
    /// twentieth of the timeout can't be told from one that is on time: there the socket has to come first.)
    #[test]
    fn who_answers_is_never_blamed_however_late_the_watcher_is(
        limits in beat(),
        wakes in prop::collection::vec((prop_oneof![Just(0.0), 0.0f64..3.0], any::<bool>()), 1..200),
    ) {
        let mut h = Heartbeat::new(limits);
        let mut now = MS(1);
        h.start(now);
        let mut answer: Option<(u64, Time)> = None;
        for (late, clock_first) in wakes {
            let due = answer.map(|(_, at)| at).into_iter().chain(h.deadline()).min().expect("on");
            now = now.max(due) + limits.timeout.mul_f64(late);
            let clock_first = clock_first && h.deadline().is_some_and(|d| now > d + limits.timeout / 20);
            for turn in 0..2 {
                if turn == 1 || clock_first {
                    match h.tick(now) {
                        Action::Probe(g) => answer = Some((g, now + limits.timeout / 10)),
                        Action::Verdict { misses } => panic!("blamed after {misses} misses"),
                        Action::Wait => {}
                    }
                }
                if let Some((g, _)) = answer.filter(|(_, at)| *at <= now) {
                    prop_assert_eq!(h.answered(g, true, now), Action::Wait);
                    answer = None;
                }
            }
        }
    }

    /// Silence is a verdict in time, and of a watcher that is always late by less than the timeout after twice as many looks.
    #[test]
    fn who_is_silent_is_found(limits in beat(), late in 0.0f64..0.99) {
        let mut h = Heartbeat::new(limits);
        h.start(MS(1));
        let mut now = MS(1);
        let (mut looks, mut probes) = (0, 0);
        loop {
            now = now.max(h.deadline().expect("on")) + limits.timeout.mul_f64(late);
            looks += 1;
            match h.tick(now) {
                Action::Probe(_) => probes += 1,
                Action::Wait => {}
                Action::Verdict { misses } => {
                    prop_assert_eq!(misses, limits.failures);
                    break;
                }
            }
            prop_assert!(looks < 4 * limits.failures + 4, "not found after {looks} looks");
        }
        prop_assert_eq!(probes, limits.failures);
        if late == 0.0 {
            prop_assert!(now <= MS(1) + (limits.timeout + limits.interval / 4) * limits.failures);
        }
    }

    /// Old answers, answers that nobody asked for and answers after the end change nothing.
    #[test]
    fn only_the_answer_that_is_waited_for_counts(
        limits in beat(),
        steps in prop::collection::vec((0u64..5, any::<bool>(), 0u64..3), 1..100),
    ) {
        let mut h = Heartbeat::new(limits);
        let mut now = MS(1);
        h.start(now);
        let mut current = 0;
        for (age, good, what) in steps {
            if what == 0 {
                now = now.max(h.deadline().expect("on"));
                if let Action::Probe(g) = h.tick(now) {
                    current = g;
                }
                continue;
            }
            let generation = current.saturating_sub(age);
            let expected = h.expects(generation);
            let before = (h.misses(), h.deadline(), h.last_good());
            let action = h.answered(generation, good, now);
            if !expected {
                prop_assert_eq!(action, Action::Wait);
                prop_assert_eq!(before, (h.misses(), h.deadline(), h.last_good()));
            } else if good {
                prop_assert_eq!((h.misses(), h.last_good()), (0, Some(now)));
            }
        }
    }
}
