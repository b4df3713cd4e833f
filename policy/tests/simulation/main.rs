//! The whole suite, simulated from a seed: a cop, managers, servers and standbys live, are killed, stopped and hung on a
//! virtual clock, driven by the machines of `policy` that the programs use, until all faults are over; then it must serve.
//!
//! | knob | |
//! |---|---|
//! | `TRAFFIC_SIM_SEED=N` | replay this run |
//! | `TRAFFIC_SIM_SEEDS=N` | that many runs instead of the everyday number |
//!
//! What is modelled: processes with a small number of pids that are used again at once; zombies, subreapers and reaping;
//! pidfds; stopped, hung and slowly dying processes; the two locks with the keeper that holds a dead server's for a while;
//! datagrams and their senders' pids; heartbeats with lost and late answers; spawns that fail; servers that exit (78 too),
//! hang or crash; operators' restarts; strangers' processes; kills between two system calls; pauses of the whole machine.
//! A turn of a program's loop is otherwise one step. The acting code is modelled by hand after `bins` ([`cop`],
//! [`manager`], [`server`]); where `bins` acts otherwise, that is a [`setup::Flaw`] "as built".
//!
//! What is not: client connections, their queue and their hand-over; file descriptors and the fd stores; reloads of the
//! configuration; an operator's stop; programs that aren't ours; time that a system call takes; `give_up_after`.
//!
//! Read in this order: [`setup`], [`world`] and [`ipc`] (the kernel), [`server`], [`manager`], [`cop`], [`faults`], [`checker`].

mod checker;
mod cop;
mod faults;
mod ipc;
mod manager;
mod server;
mod setup;
mod world;

use setup::Flaw;
use std::time::Instant;
use world::World;

/// Runs of the everyday test.
const EVERYDAY: u64 = 80;
/// Faults happen for so long.
const FAULTS: std::time::Duration = std::time::Duration::from_secs(300);

fn run(seed: u64, flaws: &[Flaw]) -> Result<u64, String> {
    let mut w = World::new(seed, flaws, FAULTS);
    w.run().map_err(|why| format!("{why}\nin {:?}, after:\n{}", w.setup, w.trace()))
}

fn knob(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().expect("a number"))
}

#[test]
fn the_suite_comes_through_whatever_happens() {
    let seed = knob("TRAFFIC_SIM_SEED");
    let count = seed.map_or(knob("TRAFFIC_SIM_SEEDS").unwrap_or(EVERYDAY), |_| 1);
    let first = seed.unwrap_or(1);
    let begun = Instant::now();
    let mut steps = 0;
    for seed in first..first + count {
        match run(seed, &[]) {
            Ok(n) => steps += n,
            Err(why) => panic!(
                "{why}\nreplay: TRAFFIC_SIM_SEED={seed} cargo test -p policy --test simulation the_suite_comes_through"
            ),
        }
    }
    println!("{count} runs, {steps} steps in {:?}", begun.elapsed());
}

#[test]
fn a_seed_replays_step_by_step() {
    for seed in 1..4 {
        let twice = [0; 2].map(|_| {
            let mut w = World::new(seed, &[], FAULTS);
            (w.run(), w.trace())
        });
        assert_eq!(twice[0], twice[1], "seed {seed}");
    }
}

/// Each mistake is found, and by the invariant that is there for it.
#[test]
fn the_invariants_catch_what_is_wrong() {
    use Flaw::*;
    // with the seed to begin at, so that the rare ones are found soon
    let cases: &[(&[Flaw], u64, &[&str])] = &[
        (&[KillWithoutGrace], 1, &["within its start grace"]),
        (&[NoSecondLook], 29, &["not ours"]),
        (&[SignalByNumber], 448, &["not ours"]),
        (&[AcceptBeforeLock], 1, &["accepts without the lock"]),
        (&[NoRespawn], 2, &["doesn't serve"]),
        (&[NoWait], 1, &["a storm of starts"]),
        (&[BlameWhenLate], 2, &["though it answers"]),
        (&[BelievePidOfDead], 29, &["not ours"]),
        (&[KnowCopByPid], 3, &["doesn't serve", "within its start grace"]),
        (&[AdoptAsReady], 17, &["within its start grace"]),
        (&[StartDeadline], 18, &["though it answers"]),
        (&[LeaveStrays], 6, &["alive:"]),
        (&[AdoptOnce, LeaveStrays], 246, &["watches no server"]),
        (&[CoreSignalOnly], 28, &["hangs"]),
    ];
    for (flaws, first, expected) in cases {
        let is_it = |why: String| expected.iter().any(|e| why.lines().next().unwrap_or("").contains(e));
        let found = (*first..first + 2000).find(|seed| run(*seed, flaws).is_err_and(is_it));
        println!("{flaws:?}: seed {found:?}");
        assert!(found.is_some(), "{flaws:?} went unnoticed");
    }
}
