//! Cop's check against its rules: every pair of observations, one after the other, for both ways of treating a server
//! whose manager has died.
//!
//! The oracle isn't written as the check is: it knows no order of cases and keeps no memory. Each verdict has one
//! condition on the two observations, in the words of the rules; exactly one condition must hold, and it names the verdict.

use policy::check::{Check, Lock, Observation, OnManagerDeath, Pulse, Verdict};

fn observations() -> Vec<Observation> {
    let locks = [Lock::Free, Lock::Held, Lock::HeldByDead, Lock::Unknown];
    let pulse = |n: usize| if n == 0 { Pulse::Fine } else { Pulse::Failed };
    let all = (0..4 * 4 * 16).map(|n| Observation {
        manager: locks[n % 4],
        server: locks[n / 4 % 4],
        manager_starting: n / 16 % 2 == 1,
        server_wanted: n / 32 % 2 == 1,
        manager_pulse: pulse(n / 64 % 2),
        server_pulse: pulse(n / 128 % 2),
    });
    all.collect()
}

/// A manager that lives, holds its lock, has started and answers.
fn manager_is_well(o: &Observation) -> bool {
    o.manager == Lock::Held && !o.manager_starting && o.manager_pulse == Pulse::Fine
}

/// The server is missed: it should be there, and nobody has its lock.
fn server_is_missed(o: &Observation) -> bool {
    manager_is_well(o) && o.server_wanted && o.server == Lock::Free
}

fn manager_is_dead(o: &Observation) -> bool {
    o.manager == Lock::HeldByDead && !o.manager_starting
}

/// Every verdict that has a reason.
fn reasons(before: Option<&Observation>, o: &Observation, how: OnManagerDeath) -> Vec<Verdict> {
    let no_manager = o.manager == Lock::Free && !o.manager_starting;
    let kill_first = how == OnManagerDeath::Kill && o.server == Lock::Held;
    let rules = [
        (Verdict::SpawnManager, no_manager && !kill_first),
        (Verdict::KillServerThenSpawnManager, no_manager && kill_first),
        (Verdict::KillManagerStrays, manager_is_dead(o) && before.is_some_and(manager_is_dead)),
        (
            Verdict::KillManager,
            o.manager == Lock::Held && !o.manager_starting && o.manager_pulse == Pulse::Failed,
        ),
        (Verdict::KillManagerGroup, server_is_missed(o) && before.is_some_and(server_is_missed)),
        (
            Verdict::KillServer,
            manager_is_well(o)
                && o.server_wanted
                && o.server == Lock::Held
                && o.server_pulse == Pulse::Failed,
        ),
    ];
    rules.into_iter().filter_map(|(verdict, holds)| holds.then_some(verdict)).collect()
}

/// The one verdict that follows.
fn follows(before: Option<&Observation>, o: &Observation, how: OnManagerDeath) -> Verdict {
    match reasons(before, o, how).as_slice() {
        [] => Verdict::Nothing,
        [one] => *one,
        many => panic!("the rules contradict each other: {many:?} for {before:?} then {o:?}"),
    }
}

#[test]
fn every_pair_of_observations() {
    let all = observations();
    for how in [OnManagerDeath::Adopt, OnManagerDeath::Kill] {
        for first in &all {
            for second in &all {
                let mut check = Check::default();
                assert_eq!(check.programs(first, how), follows(None, first, how), "{first:?}");
                let next = check.programs(second, how);
                assert_eq!(next, follows(Some(first), second, how), "{first:?} then {second:?}");
            }
        }
    }
}

/// What was seen twice and acted upon is forgotten: the next verdict needs to see it twice again.
#[test]
fn a_verdict_begins_the_count_anew() {
    let all = observations();
    let twice = [Verdict::KillManagerGroup, Verdict::KillManagerStrays];
    let mut seen = 0;
    for o in &all {
        let mut check = Check::default();
        let verdicts = [0; 4].map(|_| check.programs(o, OnManagerDeath::Adopt));
        if twice.contains(&verdicts[1]) {
            seen += 1;
            let expected = [Verdict::Nothing, verdicts[1], Verdict::Nothing, verdicts[1]];
            assert_eq!(verdicts, expected, "{o:?}");
        }
    }
    assert!(seen > 0);
}
