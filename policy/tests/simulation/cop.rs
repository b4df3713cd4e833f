//! The cop as `bins/src/cop/watch.rs`, `watch/{events,verdict,end}.rs` and `beats.rs`: the same steps in the same order,
//! with the machines of `policy` that it really uses.

use crate::checker::Checker;
use crate::setup::{Flaw, MS, Setup};
use crate::world::{MANAGER_LOCK, Message, Of, Role, SERVER_LOCK, Signal, Uid, Ward, World};
use policy::Time;
use policy::check::{Check, Lock, Observation, OnManagerDeath, Pulse, Verdict};
use policy::child::{Action, Child, Event, State};
use policy::heartbeat::{self, Heartbeat};
use policy::ladder::{Ladder, Rung};

enum Phase {
    Starting { until: Time },
    Running,
    Stopping { server: Option<(Ward, Ladder)> },
}

/// `beats.rs`.
pub struct Beat {
    machine: Heartbeat,
    fetch: Option<(u64, u64)>,
    pub failed: bool,
}

pub struct Cop {
    pub manager: Child,
    pub ward: Option<Ward>,
    pub server: Option<Ward>,
    server_wanted: bool,
    manager_beat: Beat,
    server_beat: Beat,
    check: Check,
    next_check: Time,
    said_exit: Option<i32>,
    phase: Phase,
    fetches: u64,
    begun: bool,
    /// It found neither a manager nor a server: what it starts is a first start, which may fail.
    first: bool,
    cored: Option<Uid>,
}

impl Beat {
    fn new(limits: heartbeat::Limits) -> Beat {
        Beat { machine: Heartbeat::new(limits), fetch: None, failed: false }
    }
    fn start(&mut self, now: Time) {
        (self.failed, self.fetch) = (false, None);
        self.machine.start(now);
    }
    fn stop(&mut self) {
        (self.failed, self.fetch) = (false, None);
        self.machine.stop();
    }
    /// `Beat::tick` up to the probe: its generation, if one is to be sent.
    fn tick(&mut self, now: Time, w: &World) -> Option<u64> {
        // as if it had been there at each deadline
        while w.setup.has(Flaw::BlameWhenLate) && self.machine.deadline().is_some_and(|d| d + MS(1) < now) {
            let deadline = self.machine.deadline().unwrap_or(now);
            if let heartbeat::Action::Verdict { .. } = self.machine.tick(deadline) {
                self.verdict();
            }
        }
        match self.machine.tick(now) {
            heartbeat::Action::Wait => {
                self.fetch = self.fetch.filter(|(g, _)| self.machine.expects(*g));
                None
            }
            heartbeat::Action::Probe(generation) => Some(generation),
            heartbeat::Action::Verdict { .. } => {
                self.verdict();
                None
            }
        }
    }
    fn settle(&mut self, generation: u64, good: bool, now: Time) {
        if let heartbeat::Action::Verdict { .. } = self.machine.answered(generation, good, now) {
            self.verdict();
        }
    }
    fn verdict(&mut self) {
        (self.fetch, self.failed) = (None, true);
    }
}

impl Cop {
    pub fn new(setup: &Setup, now: Time) -> Cop {
        Cop {
            manager: Child::new(setup.manager_limits()),
            ward: None,
            server: None,
            server_wanted: true,
            manager_beat: Beat::new(setup.beat),
            server_beat: Beat::new(setup.beat),
            check: Check::default(),
            next_check: now + setup.beat.interval,
            said_exit: None,
            phase: Phase::Starting { until: now + setup.grace },
            fetches: 0,
            begun: false,
            first: true,
            cored: None,
        }
    }

    fn is_stopping(&self) -> bool {
        matches!(self.phase, Phase::Stopping { .. })
    }

    pub fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    /// One turn of the loop. A turn that was stopped may find its deadlines before it finds what has come in.
    pub fn run(&mut self, w: &mut World, me: Uid, resumed: bool) {
        if !self.begun {
            self.begun = true;
            let found = [MANAGER_LOCK, SERVER_LOCK].into_iter().any(|l| w.holder(l).is_some());
            self.first = !found;
            if found && !w.setup.has(Flaw::StartDeadline) {
                self.phase = Phase::Running;
            }
            self.feed(w, me, Event::WantUp);
        }
        if resumed && w.rng.one_in(2) {
            self.timers(w, me);
        }
        self.on_notify(w, me);
        self.on_manager_exit(w, me);
        let ward = self.ward.map(|w| w.pid);
        w.reap_strangers(me, |p| Some(p) == ward);
        self.on_server_exit(w);
        self.on_replies(w, me);
        self.timers(w, me);
        if self.finished() {
            w.note("stops in order", w.procs[me].pid, 0);
            return w.exit(me, 1);
        }
        if let Some(t) = self.deadline() {
            w.wake_at(me, t);
        }
    }

    fn deadline(&self) -> Option<Time> {
        let phase = match &self.phase {
            Phase::Starting { until } => Some(*until),
            Phase::Running => None,
            Phase::Stopping { server } => server.as_ref().and_then(|(_, l)| l.deadline()),
        };
        let check = (!self.is_stopping()).then_some(self.next_check);
        let beats = [self.manager_beat.machine.deadline(), self.server_beat.machine.deadline()];
        [phase, check, self.manager.deadline()].into_iter().chain(beats).flatten().min()
    }

    fn timers(&mut self, w: &mut World, me: Uid) {
        if self.manager.deadline().is_some_and(|d| w.now >= d) {
            // what it has said is heard before it is judged
            self.on_notify(w, me);
            self.feed(w, me, Event::Tick);
        }
        if let Some(generation) = self.manager_beat.tick(w.now, w) {
            self.fetches += 1;
            match w.manager.filter(|m| !w.has_ended(*m)) {
                Some(m) => {
                    self.manager_beat.fetch = Some((generation, self.fetches));
                    let pid = w.procs[me].pid;
                    w.send(pid, m, Message::Heartbeat { cop: me, pid, fetch: self.fetches });
                }
                None => self.manager_beat.settle(generation, false, w.now),
            }
        }
        if let Some(generation) = self.server_beat.tick(w.now, w) {
            self.fetches += 1;
            self.server_beat.fetch = Some((generation, self.fetches));
            w.backlog.push_back((me, self.fetches));
            if let Some(s) = w.checker.serving() {
                w.wake(s);
            }
        }
        if self.manager_beat.failed || self.server_beat.failed {
            self.next_check = w.now;
        }
        if w.now >= self.next_check && !self.is_stopping() {
            self.next_check = w.now + w.setup.beat.interval;
            self.check(w, me);
        }
        match &self.phase {
            Phase::Starting { until } if w.now > *until + MS(500) && !w.setup.has(Flaw::StartDeadline) => {
                self.phase = Phase::Starting { until: w.now + w.setup.grace };
            }
            Phase::Starting { until } if w.now >= *until => {
                self.first &= w.now <= *until + MS(500);
                self.begin_stop(w, me);
            }
            Phase::Stopping { .. } => self.step_stop(w, me),
            _ => {}
        }
    }

    fn check(&mut self, w: &mut World, me: Uid) {
        let pulse = |failed| if failed { Pulse::Failed } else { Pulse::Fine };
        let counts_ended = w.setup.has(Flaw::CountEnded);
        let observation = Observation {
            manager: lock_state(w, MANAGER_LOCK, self.ward),
            manager_starting: !matches!(self.manager.state(), State::Ready { .. }),
            manager_pulse: pulse(self.manager_beat.failed),
            // one that has just ended isn't missing: its end is about to be heard of
            server_wanted: self.server_wanted
                && self.server.is_some_and(|s| counts_ended || !w.has_ended(s.uid)),
            server: lock_state(w, SERVER_LOCK, self.server),
            server_pulse: pulse(self.server_beat.failed),
        };
        let how = if w.setup.adopt { OnManagerDeath::Adopt } else { OnManagerDeath::Kill };
        let verdict = self.check.programs(&observation, how);
        match verdict {
            Verdict::Nothing | Verdict::KillManagerStrays => {}
            Verdict::SpawnManager
            | Verdict::KillServerThenSpawnManager
            | Verdict::KillManager
            | Verdict::KillManagerGroup => {
                w.note("cop's verdict on its manager", self.ward.map_or(0, |x| x.pid), verdict as i64);
                self.manager_beat.stop();
                self.feed(w, me, Event::Unhealthy(self.manager.generation()));
            }
            Verdict::KillServer => {
                let failed = std::mem::take(&mut self.server_beat.failed);
                if let Some(s) = self.server.filter(|_| failed) {
                    w.note("cop's verdict on the server", s.pid, verdict as i64);
                    // who is still there after the core signal won't go for another
                    let cored =
                        self.cored.replace(s.uid) == Some(s.uid) && !w.setup.has(Flaw::CoreSignalOnly);
                    self.signal(
                        w,
                        me,
                        s,
                        if w.setup.core_signal && !cored { Rung::Core } else { Rung::Kill },
                    );
                    self.server_beat.start(w.now);
                }
            }
        }
    }

    // ---- events ----

    fn on_notify(&mut self, w: &mut World, me: Uid) {
        while let Some((from, message)) = w.procs[me].inbox.pop_front() {
            if self.ward.is_none_or(|x| x.pid != from) {
                continue;
            }
            match message {
                Message::Ready => {
                    self.feed(w, me, Event::Ready(self.manager.generation()));
                    self.manager_beat.start(w.now);
                    self.maybe_serving();
                }
                Message::Server(pid) => self.server_is(w, me, pid),
                Message::Exit(code) => self.said_exit = Some(code),
                _ => {}
            }
        }
    }

    fn on_replies(&mut self, w: &mut World, me: Uid) {
        for (of, fetch, by) in std::mem::take(&mut w.procs[me].replies) {
            let beat = if of == Of::Manager { &mut self.manager_beat } else { &mut self.server_beat };
            let Some((generation, _)) = beat.fetch.filter(|(_, f)| *f == fetch) else { continue };
            beat.fetch = None;
            // of the server: an answer by another process is no evidence against ours
            beat.settle(generation, by.is_some(), w.now);
            self.maybe_serving();
        }
        // a manager that answers its first heartbeat has started
        if self.manager_beat.machine.is_on() && self.manager_beat.machine.last_good().is_some() {
            self.feed(w, me, Event::Ready(self.manager.generation()));
        }
    }

    fn server_is(&mut self, w: &mut World, me: Uid, pid: i64) {
        self.server_wanted = pid != 0;
        self.server_beat.stop();
        self.server = None;
        if pid <= 0 {
            return;
        }
        if let Ok(Some(ward)) = w.ward_of_lock(me, SERVER_LOCK, 0)
            && i64::from(ward.pid) == pid
        {
            self.server = Some(ward);
            self.server_beat.start(w.now);
        }
        self.maybe_serving();
    }

    fn on_server_exit(&mut self, w: &World) {
        if self.server.is_some_and(|s| w.has_ended(s.uid)) {
            self.server = None;
            self.server_beat.stop();
        }
    }

    fn on_manager_exit(&mut self, w: &mut World, me: Uid) {
        let Some(ward) = self.ward.filter(|x| w.has_ended(x.uid)) else { return };
        self.on_notify(w, me);
        self.ward = None;
        let status = w.reap(me, ward.uid);
        self.manager_beat.stop();
        let code = status.flatten().or(self.said_exit.take());
        // another manager has the lock: that is the one to adopt
        let beaten = code == Some(75) && !w.setup.has(Flaw::StartDeadline);
        if let (Phase::Starting { .. }, Some(_), false) = (&self.phase, code, beaten) {
            self.first &= code != Some(75);
            self.begin_stop(w, me);
        }
        let permanent = code.is_some_and(|c| c == 64 || c == 78);
        self.feed(w, me, Event::Exited(ward.generation, permanent));
    }

    // ---- acting ----

    fn feed(&mut self, w: &mut World, me: Uid, event: Event) {
        let random = w.rng.unit();
        let action = self.manager.handle(event, w.now, random);
        Checker::on_child(w, me, &self.manager, action);
        match action {
            Action::Nothing | Action::AnnounceGaveUp => {}
            Action::Spawn => self.launch(w, me),
            Action::Send(rung) => {
                if let Some(ward) = self.ward {
                    self.signal(w, me, ward, rung);
                }
            }
        }
    }

    fn signal(&self, w: &mut World, me: Uid, ward: Ward, rung: Rung) {
        let Some(signal) = signal_of(rung, w) else { return };
        w.gap(me);
        let target = if w.setup.has(Flaw::SignalByNumber) { w.pidfd(ward.pid) } else { Some(ward.uid) };
        if let Some(uid) = target {
            w.signal(me, uid, signal);
        }
    }

    fn launch(&mut self, w: &mut World, me: Uid) {
        let generation = self.manager.generation() + 1;
        if let Ok(Some(ward)) = w.ward_of_lock(me, MANAGER_LOCK, generation) {
            w.note("is adopted: manager", ward.pid, 0);
            // its adopter doesn't know since when it has been starting
            w.procs[ward.uid].since = w.now;
            self.ward = Some(ward);
            self.feed(w, me, Event::Adopted { ready: w.setup.has(Flaw::AdoptAsReady) });
            return self.manager_beat.start(w.now);
        }
        if !w.setup.adopt
            && let Ok(Some(s)) = w.ward_of_lock(me, SERVER_LOCK, 0)
        {
            Checker::excuse(w, s.uid);
            self.signal(w, me, s, Rung::Kill);
        }
        w.kill_strays(me, Role::Manager, MANAGER_LOCK);
        // what is heard so far was said by others, whatever pid the new one gets
        self.on_notify(w, me);
        match w.spawn(me, Role::Manager) {
            Some(uid) => {
                self.ward = Some(Ward { uid, pid: w.procs[uid].pid, generation });
                self.feed(w, me, Event::Spawned);
            }
            None => {
                if let Phase::Starting { .. } = self.phase {
                    self.begin_stop(w, me);
                }
                self.feed(w, me, Event::SpawnFailed { permanent: false });
            }
        }
    }

    fn maybe_serving(&mut self) {
        let ready = matches!(self.manager.state(), State::Ready { .. });
        if matches!(self.phase, Phase::Starting { .. })
            && ready
            && self.server_beat.machine.last_good().is_some()
        {
            self.phase = Phase::Running;
        }
    }

    fn begin_stop(&mut self, w: &mut World, me: Uid) {
        if self.is_stopping() {
            return;
        }
        w.note("cop gives its start up", w.procs[me].pid, 0);
        self.phase = Phase::Stopping { server: None };
        (w.procs[me].stopping, w.procs[me].rightly) = (true, self.first);
        self.manager_beat.stop();
        self.server_beat.stop();
        self.feed(w, me, Event::WantDown);
        self.step_stop(w, me);
    }

    fn step_stop(&mut self, w: &mut World, me: Uid) {
        let manager_gone = self.ward.is_none() && !self.manager.state().is_alive();
        let Phase::Stopping { server } = &mut self.phase else { return };
        let send = if let Some((ward, ladder)) = server {
            let (ward, rung) = (*ward, ladder.tick(w.now));
            if w.has_ended(ward.uid) {
                w.reap(me, ward.uid);
                *server = None;
            }
            rung.map(|r| (ward, r))
        } else if manager_gone && let Ok(Some(ward)) = w.ward_of_lock(me, SERVER_LOCK, 0) {
            let (ladder, first) = Ladder::begin(w.setup.server_rungs(), w.now);
            *server = Some((ward, ladder));
            Some((ward, first))
        } else {
            None
        };
        if let Some((ward, rung)) = send {
            self.signal(w, me, ward, rung);
        }
    }

    fn finished(&self) -> bool {
        let Phase::Stopping { server } = &self.phase else { return false };
        let stuck = server.as_ref().is_some_and(|(_, l)| l.rung() == Rung::Stuck);
        stuck || self.ward.is_none() && !self.manager.state().is_alive() && server.is_none()
    }
}

/// `Ward::send`.
pub fn signal_of(rung: Rung, w: &World) -> Option<Signal> {
    match rung {
        Rung::Polite => Some(Signal::Term),
        Rung::Core if w.setup.core_signal => Some(Signal::Core),
        Rung::Core | Rung::Kill => Some(Signal::Kill),
        Rung::Stuck => None,
    }
}

/// `lock_state`.
fn lock_state(w: &World, lock: usize, ward: Option<Ward>) -> Lock {
    let Some(pid) = w.holder(lock) else { return Lock::Free };
    let ended = match ward {
        Some(x) if x.pid == pid => w.has_ended(x.uid),
        _ => w.pidfd(pid).is_none_or(|u| w.has_ended(u)),
    };
    if ended { Lock::HeldByDead } else { Lock::Held }
}
