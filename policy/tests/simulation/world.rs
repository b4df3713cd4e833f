//! The simulated kernel: one queue of events; processes with pids that are used again, pidfds and signals. Locks and
//! sockets are in [`ipc`](crate::ipc).

use crate::checker::Checker;
use crate::cop::Cop;
use crate::faults::Faults;
use crate::manager::Manager;
use crate::server::Server;
use crate::setup::{COP_ALARM, COP_RESTART, Flaw, MS, Rng, SLOW_DEATH, Setup};
use policy::Time;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

/// One process for ever, as a pidfd names it; a pid may name another one later.
pub type Uid = usize;
pub type Pid = u32;
const PIDS: usize = 24;
const TRACE: usize = 150;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Cop,
    Manager,
    Server,
    Stranger,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Term,
    Core,
    Kill,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    Running,
    /// It was killed, and is still in the kernel.
    Dying,
    /// It has ended: with a code, or by a signal.
    Zombie(Option<i32>),
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    Ready,
    Standby,
    Server(i64),
    Exit(i32),
    Promote,
    ChannelClosed,
    Heartbeat { cop: Uid, pid: Pid, fetch: u64 },
    Restart,
}

/// Whose heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Of {
    Manager,
    Server,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ev {
    Run(Uid),
    Cont(Uid),
    Die(Uid),
    Stutter(Uid, u32),
    FreeLock(usize, Uid),
    Reply { cop: Uid, of: Of, fetch: u64, by: Option<Pid> },
    StartCop,
    Fault,
    Quiet,
    Deadline,
}

pub enum Program {
    Nothing,
    Cop(Box<Cop>),
    Manager(Box<Manager>),
    Server(Box<Server>),
}

pub struct Proc {
    pub pid: Pid,
    pub role: Role,
    pub parent: Option<Uid>,
    pub life: Life,
    pub stopped: bool,
    pub hung: bool,
    /// Somebody asked for its end.
    pub excused: bool,
    /// It is ending itself and what it started.
    pub stopping: bool,
    /// And it may, since a first start has failed.
    pub rightly: bool,
    pub term: bool,
    /// A core signal waits until it goes on.
    core: bool,
    /// It was stopped or paused, last from then till then.
    pub absent: (Time, Time),
    /// Spawned, or given the word to serve.
    pub since: Time,
    /// It has said that it is ready, then.
    pub ready: Option<Time>,
    /// It was last not as it should be, then: a reason to replace it.
    pub disturbed: Time,
    pub inbox: VecDeque<(Pid, Message)>,
    pub replies: Vec<(Of, u64, Option<Pid>)>,
    pub program: Program,
    /// Its channel's other end.
    pub channel: Option<Uid>,
    run_at: Option<Time>,
    resumed: bool,
}

/// A process in somebody's care, as `bins/src/ward.rs`.
#[derive(Debug, Clone, Copy)]
pub struct Ward {
    pub uid: Uid,
    pub pid: Pid,
    pub generation: u64,
}

pub const MANAGER_LOCK: usize = 0;
pub const SERVER_LOCK: usize = 1;

pub struct World {
    pub now: Time,
    pub rng: Rng,
    pub setup: Setup,
    pub procs: Vec<Proc>,
    pub cop: Option<Uid>,
    /// Who has bound the notify socket and the control socket.
    pub manager: Option<Uid>,
    /// Requests that wait for a server to accept them.
    pub backlog: VecDeque<(Uid, u64)>,
    pub faults: Faults,
    pub checker: Checker,
    pub steps: u64,
    pub over: bool,
    paused_until: Time,
    by_pid: [Option<Uid>; PIDS],
    last_freed: Pid,
    pub locks: [Option<(Uid, Pid)>; 2],
    queue: BinaryHeap<Reverse<(Time, u64, Ev)>>,
    sequence: u64,
    trace: VecDeque<(Time, &'static str, Pid, i64)>,
}

impl World {
    pub fn new(seed: u64, flaws: &[Flaw], quiet: Duration) -> World {
        let mut rng = Rng(seed);
        let setup = Setup { flaws: flaws.to_vec(), ..Setup::of(&mut rng) };
        let mut w = World {
            now: MS(1000),
            faults: Faults::of(&mut rng),
            rng,
            setup,
            procs: Vec::new(),
            cop: None,
            manager: None,
            backlog: VecDeque::new(),
            checker: Checker::default(),
            steps: 0,
            over: false,
            paused_until: Time::ZERO,
            by_pid: [None; PIDS],
            last_freed: 0,
            locks: [None; 2],
            queue: BinaryHeap::new(),
            sequence: 0,
            trace: VecDeque::new(),
        };
        w.at(w.now, Ev::StartCop);
        w.at(w.now + MS(10), Ev::Fault);
        w.at(w.now + quiet, Ev::Quiet);
        w
    }

    pub fn at(&mut self, when: Time, what: Ev) {
        self.sequence += 1;
        self.queue.push(Reverse((when, self.sequence, what)));
    }

    pub fn note(&mut self, what: &'static str, pid: Pid, n: i64) {
        if self.trace.len() == TRACE {
            self.trace.pop_front();
        }
        self.trace.push_back((self.now, what, pid, n));
    }

    pub fn trace(&self) -> String {
        let line = |(t, what, pid, n): &(Time, &str, Pid, i64)| {
            format!("{:>12.6}  pid {pid:<3} {what} {n}\n", t.as_secs_f64())
        };
        self.trace.iter().map(line).collect()
    }

    /// Until the end, or until an invariant is broken.
    pub fn run(&mut self) -> Result<u64, String> {
        while let Some(Reverse((when, _, what))) = self.queue.pop() {
            if when < self.paused_until {
                self.put_off(what);
                continue;
            }
            self.now = when;
            if self.step(what) {
                self.steps += 1;
                Checker::after_step(self);
            }
            if let Some(broken) = self.checker.broken.take() {
                return Err(broken);
            }
            if self.over {
                break;
            }
        }
        Ok(self.steps)
    }

    /// The whole machine stands still while the clock goes on. What was due is done right after it, in any order.
    pub fn pause(&mut self, length: Duration) {
        self.note("everything is paused", 0, length.as_millis() as i64);
        self.paused_until = self.now + length;
        for u in self.living() {
            let p = &mut self.procs[u];
            if !p.stopped {
                (p.resumed, p.absent) = (true, (self.now, self.paused_until));
            }
        }
    }

    fn put_off(&mut self, what: Ev) {
        let when = self.paused_until + Duration::from_micros(self.rng.below(2000));
        match what {
            Ev::Run(uid) if self.procs[uid].run_at.take().is_none() => return,
            Ev::Run(uid) => self.procs[uid].run_at = Some(when),
            _ => {}
        }
        self.at(when, what);
    }

    fn step(&mut self, what: Ev) -> bool {
        match what {
            Ev::Run(uid) => return self.run_process(uid),
            Ev::Cont(uid) => self.cont(uid),
            Ev::Die(uid) => self.die(uid, None),
            Ev::Stutter(uid, more) => Faults::stutter(self, uid, more),
            Ev::FreeLock(lock, uid) => self.free_lock(lock, uid),
            Ev::Reply { cop, of, fetch, by } => {
                if self.alive(cop) {
                    self.procs[cop].replies.push((of, fetch, by));
                    self.wake(cop);
                }
            }
            Ev::StartCop => self.start_cop(),
            Ev::Fault => Faults::strike(self),
            Ev::Quiet => Faults::end(self),
            Ev::Deadline => Checker::deadline(self),
        }
        true
    }

    // ---- running ----

    /// It has something to do soon.
    pub fn wake(&mut self, uid: Uid) {
        let late = Duration::from_micros(10 + self.rng.below(500));
        self.wake_at(uid, self.now + late);
    }

    pub fn wake_at(&mut self, uid: Uid, when: Time) {
        let when = when.max(self.now);
        let p = &mut self.procs[uid];
        if p.life == Life::Running && p.run_at.is_none_or(|t| when < t) {
            p.run_at = Some(when);
            self.at(when, Ev::Run(uid));
        }
    }

    fn run_process(&mut self, uid: Uid) -> bool {
        let p = &mut self.procs[uid];
        if p.run_at != Some(self.now) || p.life != Life::Running {
            return false;
        }
        p.run_at = None;
        if p.stopped || p.hung {
            return true;
        }
        let resumed = std::mem::take(&mut p.resumed);
        match std::mem::replace(&mut p.program, Program::Nothing) {
            Program::Nothing => {}
            Program::Cop(mut c) => {
                c.run(self, uid, resumed);
                self.put_back(uid, Program::Cop(c));
            }
            Program::Manager(mut m) => {
                m.run(self, uid);
                self.put_back(uid, Program::Manager(m));
            }
            Program::Server(mut s) => {
                s.run(self, uid);
                self.put_back(uid, Program::Server(s));
            }
        }
        true
    }

    fn put_back(&mut self, uid: Uid, program: Program) {
        if self.procs[uid].life == Life::Running || self.procs[uid].life == Life::Dying {
            self.procs[uid].program = program;
        }
    }

    pub fn stop(&mut self, uid: Uid, length: Duration) {
        if self.procs[uid].stopped || !self.alive(uid) {
            return;
        }
        self.note("is stopped", self.procs[uid].pid, length.as_millis() as i64);
        (self.procs[uid].stopped, self.procs[uid].absent) = (true, (self.now, Time::MAX));
        self.at(self.now + length, Ev::Cont(uid));
    }

    pub fn cont(&mut self, uid: Uid) {
        let p = &mut self.procs[uid];
        if p.life == Life::Running && p.stopped {
            (p.stopped, p.resumed, p.run_at) = (false, true, None);
            (p.disturbed, p.absent.1) = (p.disturbed.max(self.now), self.now);
            let dies = p.core;
            self.note("goes on", self.procs[uid].pid, 0);
            match dies {
                true => self.die(uid, None),
                false => self.wake(uid),
            }
        }
    }

    /// Between two system calls of `me` anything may happen to anybody.
    pub fn gap(&mut self, me: Uid) {
        if self.faults.gaps == 0 || !self.rng.one_in(self.faults.gaps) {
            return;
        }
        let victims = self.living();
        let Some(&victim) = victims.get(self.rng.below(victims.len().max(1) as u64) as usize) else { return };
        self.note("is killed between two calls of", self.procs[victim].pid, i64::from(self.procs[me].pid));
        self.die(victim, None);
        Faults::stranger(self);
    }

    // ---- processes ----

    pub fn alive(&self, uid: Uid) -> bool {
        self.procs[uid].life == Life::Running
    }

    pub fn has_ended(&self, uid: Uid) -> bool {
        matches!(self.procs[uid].life, Life::Zombie(_) | Life::Gone)
    }

    /// Whoever has a pid.
    pub fn each_pid(&self) -> impl Iterator<Item = Uid> + '_ {
        self.by_pid.iter().flatten().copied()
    }

    /// Living processes of the suite.
    pub fn living(&self) -> Vec<Uid> {
        self.each_pid().filter(|u| self.alive(*u) && self.procs[*u].role != Role::Stranger).collect()
    }

    pub fn strangers(&self) -> Vec<Uid> {
        self.each_pid().filter(|u| self.procs[*u].role == Role::Stranger).collect()
    }

    /// A new process, unless there are no pids left.
    pub fn fork(&mut self, role: Role, parent: Option<Uid>, program: Program) -> Option<Uid> {
        let free: Vec<usize> = (1..PIDS).filter(|p| self.by_pid[*p].is_none()).collect();
        if free.is_empty() {
            return None;
        }
        let last = self.last_freed as usize;
        // pids are used again sooner than is good for anybody
        let pid = if free.contains(&last) && self.rng.one_in(2) { last } else { self.rng.pick(&free) };
        let uid = self.procs.len();
        self.by_pid[pid] = Some(uid);
        self.procs.push(Proc {
            pid: pid as Pid,
            role,
            parent,
            life: Life::Running,
            stopped: false,
            hung: false,
            excused: false,
            stopping: false,
            rightly: false,
            term: false,
            core: false,
            absent: (Time::ZERO, Time::ZERO),
            since: self.now,
            ready: None,
            disturbed: self.now,
            inbox: VecDeque::new(),
            replies: Vec::new(),
            program,
            channel: None,
            run_at: None,
            resumed: false,
        });
        self.wake(uid);
        Some(uid)
    }

    fn start_cop(&mut self) {
        if self.cop.is_some_and(|c| !self.has_ended(c)) {
            return;
        }
        let cop = Program::Cop(Box::new(Cop::new(&self.setup, self.now)));
        match self.fork(Role::Cop, None, cop) {
            Some(uid) => {
                self.note("is the new cop", self.procs[uid].pid, 0);
                self.cop = Some(uid);
            }
            None => self.at(self.now + MS(100), Ev::StartCop),
        }
    }

    /// `spawn` of a manager or server; the caller is its parent.
    pub fn spawn(&mut self, me: Uid, role: Role) -> Option<Uid> {
        if !self.alive(me) || self.faults.spawns_fail(&mut self.rng) {
            return None;
        }
        let boot = self.rng.span(MS(1), MS(100));
        let program = match role {
            Role::Manager => Program::Manager(Box::new(Manager::new(&self.setup, boot))),
            _ => Program::Server(Box::new(Server::new(self.faults.fate(&mut self.rng), boot))),
        };
        let uid = self.fork(role, Some(me), program)?;
        self.procs[uid].channel = Some(me);
        self.note(
            if role == Role::Manager { "is spawned: manager" } else { "is spawned: server" },
            self.procs[uid].pid,
            0,
        );
        Some(uid)
    }

    /// It hangs from here on, for ever; only a cop has an alarm clock.
    pub fn hang(&mut self, uid: Uid) {
        self.note("hangs", self.procs[uid].pid, 0);
        self.procs[uid].hung = true;
        if self.procs[uid].role == Role::Cop {
            self.at(self.now + COP_ALARM, Ev::Die(uid));
        }
    }

    pub fn exit(&mut self, me: Uid, code: i32) {
        if self.alive(me) {
            self.die(me, Some(code));
        }
    }

    pub fn die(&mut self, uid: Uid, code: Option<i32>) {
        if self.has_ended(uid) {
            return;
        }
        if self.checker.calm && self.procs[uid].role != Role::Stranger {
            self.checker.fail("a process ended though all faults are long over");
        }
        self.note("ends", self.procs[uid].pid, code.map_or(-9, i64::from));
        let p = &mut self.procs[uid];
        p.life = Life::Zombie(code);
        p.program = Program::Nothing;
        let (role, parent, inbox) = (p.role, p.parent, std::mem::take(&mut p.inbox));
        for (_, m) in inbox {
            if let Message::Heartbeat { cop, fetch, .. } = m {
                self.at(self.now + MS(1), Ev::Reply { cop, of: Of::Manager, fetch, by: None });
            }
        }
        for lock in [MANAGER_LOCK, SERVER_LOCK] {
            if self.locks[lock].is_some_and(|(holder, _)| holder == uid) {
                // a manager's goes with it; a server's when its keeper has seen the death
                let wait =
                    if lock == SERVER_LOCK { self.faults.keeper(&mut self.rng) } else { Duration::ZERO };
                match wait.is_zero() {
                    true => self.free_lock(lock, uid),
                    false => self.at(self.now + wait, Ev::FreeLock(lock, uid)),
                }
            }
        }
        self.orphans_of(uid);
        if parent.is_none_or(|p| self.has_ended(p)) {
            self.bury(uid);
        }
        if role == Role::Cop {
            let wait = self.rng.span(MS(20), COP_RESTART);
            self.at(self.now + wait, Ev::StartCop);
        }
        // whoever holds a pidfd of it is woken; a wake-up too many does no harm
        for other in [self.cop, self.manager].into_iter().flatten() {
            self.wake(other);
        }
    }

    fn orphans_of(&mut self, uid: Uid) {
        // the cop is a subreaper: a manager's children come to it
        let heir = self.procs[uid].parent.filter(|p| !self.has_ended(*p) && self.procs[*p].role == Role::Cop);
        for child in self.by_pid.into_iter().flatten() {
            if self.procs[child].parent != Some(uid) {
                continue;
            }
            self.procs[child].parent = heir;
            if self.procs[child].role == Role::Server {
                self.send(self.procs[uid].pid, child, Message::ChannelClosed);
            }
            if heir.is_none() && matches!(self.procs[child].life, Life::Zombie(_)) {
                self.bury(child);
            }
        }
    }

    fn bury(&mut self, uid: Uid) {
        self.procs[uid].life = Life::Gone;
        self.last_freed = self.procs[uid].pid;
        self.by_pid[self.last_freed as usize] = None;
    }

    /// `waitid` by pidfd: frees the pid. The outer `None`: not our child.
    pub fn reap(&mut self, me: Uid, uid: Uid) -> Option<Option<i32>> {
        match (self.procs[uid].life, self.procs[uid].parent == Some(me)) {
            (Life::Zombie(code), true) => {
                self.bury(uid);
                Some(code)
            }
            _ => None,
        }
    }

    /// Reaps all ended children but the one that is known.
    pub fn reap_strangers(&mut self, me: Uid, known: impl Fn(Pid) -> bool) {
        for child in self.by_pid.into_iter().flatten() {
            if self.procs[child].parent == Some(me) && !known(self.procs[child].pid) {
                self.reap(me, child);
            }
        }
    }

    pub fn pidfd(&self, pid: Pid) -> Option<Uid> {
        self.by_pid[pid as usize]
    }

    /// `pidfd_send_signal`.
    pub fn signal(&mut self, me: Uid, uid: Uid, signal: Signal) {
        if !self.alive(me) || self.has_ended(uid) {
            return;
        }
        let name = match signal {
            Signal::Term => "is sent SIGTERM by",
            Signal::Core => "is sent the core signal by",
            Signal::Kill => "is sent SIGKILL by",
        };
        self.note(name, self.procs[uid].pid, i64::from(self.procs[me].pid));
        Checker::on_signal(self, me, uid, signal);
        let p = &mut self.procs[uid];
        match signal {
            Signal::Term => {
                p.term = true;
                self.wake(uid);
            }
            // a stopped process dies of nothing but SIGKILL
            Signal::Core if p.stopped => p.core = true,
            Signal::Core | Signal::Kill if p.life == Life::Running => {
                p.life = Life::Dying;
                let slow = self.faults.slow_deaths && self.rng.one_in(2);
                let wait =
                    if slow { self.rng.span(MS(100), SLOW_DEATH) } else { self.rng.span(MS(0), MS(1)) };
                self.at(self.now + wait, Ev::Die(uid));
            }
            Signal::Core | Signal::Kill => {}
        }
    }

    /// Ends processes of one role that hold no lock and belong to nobody: by name, executable and runtime directory.
    pub fn kill_strays(&mut self, me: Uid, role: Role, lock: usize) {
        if self.setup.has(Flaw::LeaveStrays) {
            return;
        }
        for u in self.living() {
            let p = &self.procs[u];
            if u != me && p.role == role && p.parent != Some(me) && !self.holds(u, lock) {
                self.procs[u].excused = true;
                self.signal(me, u, Signal::Kill);
            }
        }
    }
}
