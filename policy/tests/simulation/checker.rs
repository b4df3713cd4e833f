//! The invariants. Each says in its message what is broken.
//!
//! | invariant | where |
//! |---|---|
//! | never two servers that accept; none that accepts without the lock | after each step |
//! | never a signal to a process that isn't ours | at each signal |
//! | no signal before the start grace is over, unless the suite is being stopped | at each signal |
//! | no signal to a process that answers, whatever was done to its watcher | at each signal |
//! | no wait longer than the configured one; no storm of starts | at each decision of a child machine |
//! | once faults are over the suite serves within [`Setup::bound`](crate::setup::Setup::bound), and then nothing dies any more | at the deadline, and after |

use crate::setup::MS;
use crate::world::{Ev, Life, Program, Role, SERVER_LOCK, Signal, Uid, World};
use policy::Time;
use policy::backoff::FREE;
use policy::child::{Action, Child, State};
use std::collections::BTreeMap;

#[derive(Default)]
pub struct Checker {
    pub broken: Option<String>,
    /// All faults are over, and the suite serves: from here on nobody may end.
    pub calm: bool,
    serving: Option<Uid>,
    starts: BTreeMap<Uid, Starts>,
}

#[derive(Default)]
struct Starts {
    in_a_row: u32,
    last: Time,
}

impl Checker {
    pub fn fail(&mut self, what: &str) {
        self.broken.get_or_insert_with(|| what.to_owned());
    }

    pub fn serving(&self) -> Option<Uid> {
        self.serving
    }

    pub fn after_step(w: &mut World) {
        let (mut count, mut last, mut unlocked) = (0, None, false);
        for u in w.each_pid() {
            if let Program::Server(s) = &w.procs[u].program
                && s.accepts()
                && w.alive(u)
            {
                (count, last) = (count + 1, Some(u));
                unlocked |= !w.holds(u, SERVER_LOCK);
            }
        }
        if unlocked {
            w.checker.fail("a server accepts without the lock");
        }
        if count > 1 {
            w.checker.fail("two servers accept");
        }
        if last != w.checker.serving {
            w.checker.serving = last;
            if let Some(u) = last {
                w.wake(u);
            }
        }
    }

    pub fn on_signal(w: &mut World, me: Uid, target: Uid, signal: Signal) {
        // whoever ends in order takes with it what hasn't started yet
        let (stopping, rightly) = (w.procs[me].stopping, w.procs[me].rightly);
        let absent = w.procs[me].absent;
        let grace_over = w.procs[target].since + w.setup.grace;
        // the watcher wasn't there when the grace was over: it can't know what it has missed
        let slept_over =
            absent.0 < grace_over && absent.1 > grace_over + MS(251) && w.now < absent.1 + w.setup.grace / 2;
        let p = &mut w.procs[target];
        let fine = p.life == Life::Running && !p.stopped && !p.hung;
        let broken = if p.role == Role::Stranger {
            Some("is signalled though it is not ours")
        } else if w.checker.calm {
            Some("is signalled though all faults are long over")
        } else if p.excused || rightly || stopping && p.role == Role::Manager {
            None
        } else if p.ready.is_none() && !stopping && (w.now < grace_over || slept_over) {
            Some("is signalled within its start grace")
        } else if p.ready.is_some() && fine && w.now > p.disturbed + w.setup.detection() {
            Some("is signalled though it answers")
        } else {
            None
        };
        if let Some(why) = broken {
            let text = format!("pid {} ({:?}) {why}: {signal:?}", p.pid, p.role);
            w.checker.fail(&text);
        }
        // what follows on the ladder follows from this
        (p.excused, p.rightly) = (true, p.rightly || rightly);
    }

    /// Its end is wanted.
    pub fn excuse(w: &mut World, uid: Uid) {
        w.procs[uid].excused = true;
    }

    /// An operator's restart forgives all crashes.
    pub fn restarted(w: &mut World, me: Uid) {
        w.checker.starts.remove(&me);
    }

    pub fn on_child(w: &mut World, me: Uid, child: &Child, action: Action) {
        let limits = child.limits().respawn;
        if let State::Waiting { until } = child.state()
            && *until > w.now + limits.max
        {
            w.checker.fail("a respawn waits longer than the longest wait");
        }
        let starts = w.checker.starts.entry(me).or_default();
        match (child.state(), action) {
            (State::Ready { .. }, _) => starts.in_a_row = 0,
            (_, Action::Spawn) => {
                let soon = w.now < starts.last + MS(50).mul_f64(1.0 - limits.jitter);
                (starts.in_a_row, starts.last) = (starts.in_a_row + 1, w.now);
                if starts.in_a_row > FREE + 2 && soon {
                    w.checker.fail("a storm of starts");
                }
            }
            _ => {}
        }
    }

    pub fn deadline(w: &mut World) {
        if w.checker.calm {
            w.over = true;
            return;
        }
        if let Err(why) = serves(w).and_then(|()| nobody_else(w)) {
            let text = format!("the suite doesn't serve {:?} after the last fault: {why}", w.setup.bound());
            return w.checker.fail(&text);
        }
        w.checker.calm = true;
        // whoever is to be blamed wrongly would be by then
        w.at(w.now + w.setup.detection() * 2, Ev::Deadline);
    }
}

/// Nobody is left over from suites that have ended.
fn nobody_else(w: &World) -> Result<(), String> {
    let all = w.living();
    let count = |role| all.iter().filter(|u| w.procs[**u].role == role).count();
    match (count(Role::Cop), count(Role::Manager), count(Role::Server)) {
        (1, 1, 1) => Ok(()),
        (1, 1, 2) if w.setup.standby => Ok(()),
        other => Err(format!("cops, managers, servers alive: {other:?}")),
    }
}

/// A cop that watches a manager that holds a server that accepts.
fn serves(w: &World) -> Result<(), String> {
    let server = w.checker.serving.ok_or("no server accepts")?;
    if w.procs[server].stopped || w.procs[server].hung {
        return Err(format!("the server, pid {}, hangs", w.procs[server].pid));
    }
    let cop = w.cop.filter(|c| w.alive(*c)).ok_or("there is no cop")?;
    let Program::Cop(c) = &w.procs[cop].program else { return Err("the cop is no cop".into()) };
    let manager = c.ward.ok_or("the cop has no manager")?;
    let Program::Manager(m) = &w.procs[manager.uid].program else {
        return Err("the manager has ended".into());
    };
    match (c.is_running(), c.server, m.ward, m.server.state()) {
        (false, ..) => Err("the cop isn't past its start".into()),
        (_, None, ..) => Err("the cop watches no server".into()),
        (_, Some(s), Some(x), State::Ready { .. }) if s.uid == server && x.uid == server => Ok(()),
        (_, s, x, state) => {
            Err(format!("{server} serves; cop watches {s:?}, manager holds {x:?}, {}", state.name()))
        }
    }
}
