//! What goes wrong, from the seed: at any instant until the quiet begins.

use crate::server::{At, Fate};
use crate::setup::{MS, Rng};
use crate::world::{Ev, Message, Program, Role, Uid, World};
use policy::Time;
use std::time::Duration;

/// The faults of a run, and those that are on at the moment.
pub struct Faults {
    /// Mean time between two.
    pace: Duration,
    /// Between two system calls somebody is killed once in so many times; 0 is never.
    pub gaps: u64,
    pub slow_deaths: bool,
    spawns: bool,
    answers: Answers,
    sick: bool,
    slow_keeper: bool,
    over: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Answers {
    Good,
    Late,
    Lost,
}

impl Faults {
    pub fn of(rng: &mut Rng) -> Faults {
        Faults {
            pace: rng.pick(&[MS(100), MS(1000), MS(5000), MS(20_000)]),
            gaps: rng.pick(&[0, 20, 200]),
            slow_deaths: false,
            spawns: false,
            answers: Answers::Good,
            sick: false,
            slow_keeper: false,
            over: false,
        }
    }

    // ---- what the kernel asks ----

    pub fn spawns_fail(&self, rng: &mut Rng) -> bool {
        self.spawns && !rng.one_in(3)
    }

    pub fn fate(&self, rng: &mut Rng) -> Fate {
        if !self.sick {
            return Fate::Good;
        }
        match rng.below(6) {
            0 => Fate::Exits(78),
            1 | 2 => Fate::Exits(1),
            3 => Fate::HangsAtStart,
            _ => Fate::Crashes(rng.span(MS(1), MS(20_000))),
        }
    }

    /// From a server's death until its keeper has let go of its lock.
    pub fn keeper(&self, rng: &mut Rng) -> Duration {
        match self.slow_keeper {
            true => rng.span(MS(10), MS(5000)),
            false if rng.one_in(2) => Duration::ZERO,
            false => rng.span(MS(0), MS(2)),
        }
    }

    /// Of an answer; `None`: it is lost.
    pub fn latency(&self, rng: &mut Rng, timeout: Duration) -> Option<Duration> {
        let good = rng.span(MS(0), MS(5));
        match self.answers {
            Answers::Good => Some(good),
            Answers::Late => Some(rng.span(timeout / 4, timeout * 3)),
            Answers::Lost => rng.one_in(2).then_some(good),
        }
    }

    // ---- what happens by itself ----

    pub fn strike(w: &mut World) {
        if w.faults.over {
            return;
        }
        let wait = w.rng.span(w.faults.pace / 10, w.faults.pace * 3);
        w.at(w.now + wait, Ev::Fault);
        match w.rng.below(20) {
            0..=4 => kill(w),
            5..=7 => stop(w),
            8 => pause(w),
            9 => {
                if let Some(u) = anybody(w) {
                    w.hang(u);
                }
            }
            10 => flip(w, |f| &mut f.slow_deaths, "deaths are slow"),
            11 => flip(w, |f| &mut f.spawns, "spawns fail"),
            12 | 13 => {
                w.faults.answers = w.rng.pick(&[Answers::Good, Answers::Good, Answers::Late, Answers::Lost]);
                w.note("answers: 0 good, 1 late, 2 lost:", 0, w.faults.answers as i64);
            }
            14 | 15 => flip(w, |f| &mut f.sick, "servers are sick"),
            16 => flip(w, |f| &mut f.slow_keeper, "keepers are slow"),
            17 => restart(w),
            18 => {
                if let Some(u) = w.cop.filter(|c| w.alive(*c)) {
                    Faults::stutter(w, u, 12);
                }
            }
            _ => Faults::stranger(w),
        }
    }

    /// It is stopped again and again, each time for a little longer than a heartbeat may take.
    pub fn stutter(w: &mut World, uid: Uid, more: u32) {
        if more == 0 || w.faults.over || !w.alive(uid) {
            return;
        }
        let (timeout, interval) = (w.setup.beat.timeout, w.setup.beat.interval);
        let length = timeout.mul_f64(0.9 + w.rng.unit());
        let awake = w.rng.span(MS(1), interval / 2);
        w.stop(uid, length);
        w.at(w.now + length + awake, Ev::Stutter(uid, more - 1));
    }

    /// Somebody else's process appears, or one ends.
    pub fn stranger(w: &mut World) {
        let all = w.strangers();
        if all.len() < 8 && !w.rng.one_in(3) {
            w.fork(Role::Stranger, None, Program::Nothing);
        } else if !all.is_empty() {
            let one = w.rng.pick(&all);
            w.die(one, None);
        }
    }

    /// From here on everything goes as it should; what hangs goes on hanging, except cops, whom nobody watches.
    pub fn end(w: &mut World) {
        w.note("all faults are over", 0, 0);
        w.faults = Faults {
            over: true,
            gaps: 0,
            slow_deaths: false,
            spawns: false,
            answers: Answers::Good,
            sick: false,
            slow_keeper: false,
            pace: w.faults.pace,
        };
        for u in w.living() {
            if w.procs[u].role == Role::Cop {
                w.cont(u);
            }
            if let Program::Server(s) = &mut w.procs[u].program
                && let At::Serving { crash } = &mut s.at
            {
                *crash = None;
            }
            if let Program::Server(s) = &mut w.procs[u].program
                && let Fate::Crashes(_) = s.fate
            {
                s.fate = Fate::Good;
            }
        }
        let bound: Time = w.setup.bound();
        w.at(w.now + bound, Ev::Deadline);
    }
}

fn anybody(w: &mut World) -> Option<Uid> {
    let all = w.living();
    (!all.is_empty()).then(|| w.rng.pick(&all))
}

/// One, or several in the same instant.
fn kill(w: &mut World) {
    let all = w.living();
    let one = anybody(w);
    let several = w.rng.one_in(3);
    for u in all {
        if Some(u) == one || several && w.rng.one_in(2) {
            w.die(u, None);
        }
    }
}

fn stop(w: &mut World) {
    if let Some(u) = anybody(w) {
        // nobody watches the cop; of the others some are stopped for ever
        let ever = w.procs[u].role != Role::Cop && w.rng.one_in(4);
        let length = if ever { MS(100_000_000) } else { w.rng.span(MS(10), MS(90_000)) };
        w.stop(u, length);
    }
}

fn pause(w: &mut World) {
    let length = w.rng.span(MS(100), MS(120_000));
    w.pause(length);
}

fn restart(w: &mut World) {
    if let Some(m) = w.manager {
        w.note("an operator asks for a restart", w.procs[m].pid, 0);
        w.send(0, m, Message::Restart);
    }
}

fn flip(w: &mut World, which: fn(&mut Faults) -> &mut bool, name: &'static str) {
    let flag = which(&mut w.faults);
    *flag = !*flag;
    let n = i64::from(*flag);
    w.note(name, 0, n);
}
