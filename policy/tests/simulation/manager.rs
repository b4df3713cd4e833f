//! The manager as `bins/src/manager/{mod,keep,standby}.rs`: the same steps in the same order, with two of `policy`'s child
//! machines, one for the server and one for the standby.

use crate::checker::Checker;
use crate::cop::signal_of;
use crate::setup::{Flaw, LOCK_PATIENCE, MS, Setup};
use crate::world::{MANAGER_LOCK, Message, Of, Role, SERVER_LOCK, Uid, Ward, World};
use policy::Time;
use policy::child::{Action, Child, Event, State};
use std::time::Duration;

enum At {
    Boot { until: Time },
    Locking { until: Time },
    Binding { until: Time },
    Loop,
}

pub struct Manager {
    at: At,
    boot: Duration,
    pub server: Child,
    pub ward: Option<Ward>,
    ever_ready: bool,
    standby: Child,
    standby_ward: Option<Ward>,
    cop: (Option<Uid>, u32),
    stopping: bool,
}

impl Manager {
    pub fn new(setup: &Setup, boot: Duration) -> Manager {
        Manager {
            at: At::Boot { until: Time::ZERO },
            boot,
            server: Child::new(setup.server_limits()),
            ward: None,
            ever_ready: false,
            standby: Child::new(setup.server_limits()),
            standby_ward: None,
            cop: (None, 0),
            stopping: false,
        }
    }

    pub fn run(&mut self, w: &mut World, me: Uid) {
        loop {
            match self.at {
                At::Boot { until } if until.is_zero() => self.at = At::Boot { until: w.now + self.boot },
                At::Boot { until } if w.now < until => return w.wake_at(me, until),
                At::Boot { .. } => self.at = At::Locking { until: w.now + LOCK_PATIENCE.min(w.setup.grace) },
                At::Locking { until } => {
                    if w.take(me, MANAGER_LOCK) {
                        self.at = At::Binding { until: w.now + w.rng.span(MS(1), MS(50)) };
                    } else if w.now >= until {
                        w.notify(me, w.cop, Message::Exit(75));
                        return w.exit(me, 75);
                    } else {
                        return w.wake_at(me, until);
                    }
                }
                At::Binding { until } if w.now < until => return w.wake_at(me, until),
                At::Binding { .. } => {
                    w.manager = Some(me);
                    let cop = w.procs[me].parent;
                    self.cop = (cop, cop.map_or(0, |c| w.procs[c].pid));
                    self.at = At::Loop;
                    self.begin(w, me);
                }
                At::Loop => {
                    self.turn(w, me);
                    let all = [self.server.deadline(), self.standby.deadline()];
                    return all.into_iter().flatten().for_each(|t| w.wake_at(me, t));
                }
            }
        }
    }

    fn begin(&mut self, w: &mut World, me: Uid) {
        w.kill_strays(me, Role::Server, SERVER_LOCK);
        if let Ok(Some(ward)) = w.ward_of_lock(me, SERVER_LOCK, 1) {
            w.note("is adopted: server", ward.pid, 0);
            self.ever_ready = true;
            self.ward = Some(ward);
            self.feed(w, me, Event::Adopted { ready: true });
            self.feed(w, me, Event::WantUp);
            self.announce(w, me);
            self.want_standby(w, me);
        }
        self.feed(w, me, Event::WantUp);
    }

    /// Signals, datagrams, requests, ends, timers: in the engine these are tasks; here they have their turn in one order.
    fn turn(&mut self, w: &mut World, me: Uid) {
        if std::mem::take(&mut w.procs[me].term) {
            self.stop(w, me);
        }
        self.listen(w, me);
        if let Some(ward) = self.ward.filter(|x| w.has_ended(x.uid)) {
            self.exited(w, me, ward);
        }
        if let Some(ward) = self.standby_ward.filter(|x| w.has_ended(x.uid)) {
            self.standby_exited(w, me, ward);
        }
        let (ours, spare) = (self.ward.map(|x| x.pid), self.standby_ward.map(|x| x.pid));
        w.reap_strangers(me, |p| Some(p) == ours || Some(p) == spare);
        if self.server.deadline().is_some_and(|d| w.now >= d) {
            self.feed(w, me, Event::Tick);
        }
        if self.standby.deadline().is_some_and(|d| w.now >= d) {
            self.feed_standby(w, me, Event::Tick);
        }
        if w.setup.has(Flaw::KillWithoutGrace)
            && matches!(self.server.state(), State::Starting { .. })
            && w.rng.one_in(50)
        {
            self.feed(w, me, Event::Unhealthy(self.server.generation()));
        }
    }

    fn listen(&mut self, w: &mut World, me: Uid) {
        while let Some((from, message)) = w.procs[me].inbox.pop_front() {
            match message {
                Message::Heartbeat { cop, pid, fetch } => {
                    self.met_cop(w, me, cop, pid);
                    w.answer(me, cop, Of::Manager, fetch);
                    continue;
                }
                // who is ending doesn't begin anew
                Message::Restart if self.stopping && !w.setup.has(Flaw::RestartUndoesStop) => continue,
                Message::Restart => {
                    if let Some(s) = self.ward {
                        Checker::excuse(w, s.uid);
                    }
                    Checker::restarted(w, me);
                    self.feed(w, me, Event::Restart);
                    continue;
                }
                _ => {}
            }
            if self.standby_ward.is_some_and(|x| x.pid == from) {
                if message == Message::Standby {
                    self.feed_standby(w, me, Event::Ready(self.standby.generation()));
                }
                continue;
            }
            if self.ward.is_some_and(|x| x.pid == from) && message == Message::Ready {
                self.ever_ready = true;
                self.feed(w, me, Event::Ready(self.server.generation()));
                self.announce(w, me);
                self.want_standby(w, me);
            }
        }
    }

    fn met_cop(&mut self, w: &mut World, me: Uid, cop: Uid, pid: u32) {
        let known = match w.setup.has(Flaw::KnowCopByPid) {
            true => self.cop.1 == pid,
            false => self.cop.0 == Some(cop),
        };
        if !known {
            self.cop = (Some(cop), pid);
            self.announce(w, me);
        }
    }

    fn announce(&self, w: &mut World, me: Uid) {
        w.notify(me, w.cop, Message::Ready);
        self.tell_server(w, me);
    }

    fn tell_server(&self, w: &mut World, me: Uid) {
        let pid = match (self.server.is_wanted(), self.server.state(), self.ward) {
            (true, State::Ready { .. }, Some(x)) => i64::from(x.pid),
            (true, ..) => -1,
            (false, ..) => 0,
        };
        w.notify(me, w.cop, Message::Server(pid));
    }

    fn stop(&mut self, w: &mut World, me: Uid) {
        self.stopping = true;
        w.procs[me].stopping = true;
        self.feed_standby(w, me, Event::WantDown);
        w.notify(me, w.cop, Message::Server(0));
        self.feed(w, me, Event::WantDown);
        self.maybe_end(w, me);
    }

    fn feed(&mut self, w: &mut World, me: Uid, event: Event) {
        let was_ready = matches!(self.server.state(), State::Ready { .. });
        let random = w.rng.unit();
        let mut action = self.server.handle(event, w.now, random);
        if w.setup.has(Flaw::NoWait) && matches!(self.server.state(), State::Waiting { .. }) {
            action = self.server.handle(Event::Tick, w.now + w.setup.respawn.max, random);
        }
        Checker::on_child(w, me, &self.server, action);
        match action {
            Action::Spawn if w.setup.has(Flaw::NoRespawn) && self.ever_ready => {}
            Action::Spawn => self.launch(w, me),
            Action::Send(rung) => {
                if was_ready {
                    self.tell_server(w, me);
                }
                if let (Some(x), Some(signal)) = (self.ward, signal_of(rung, w)) {
                    w.gap(me);
                    w.signal(me, x.uid, signal);
                }
            }
            Action::Nothing | Action::AnnounceGaveUp => {}
        }
    }

    fn launch(&mut self, w: &mut World, me: Uid) {
        let generation = self.server.generation() + 1;
        if !w.setup.has(Flaw::AdoptOnce)
            && let Ok(Some(ward)) = w.ward_of_lock(me, SERVER_LOCK, generation)
            && !w.has_ended(ward.uid)
        {
            w.note("is adopted: server", ward.pid, 1);
            (self.ward, self.ever_ready) = (Some(ward), true);
            self.feed(w, me, Event::Adopted { ready: true });
            return self.announce(w, me);
        }
        let waiting = matches!(self.standby.state(), State::Ready { .. });
        let spare = self.standby_ward.filter(|x| waiting && !w.has_ended(x.uid));
        let uid = match spare {
            Some(x) => {
                self.standby_ward = None;
                self.standby = Child::new(self.standby.limits());
                Some(x.uid)
            }
            None => {
                // what is heard so far was said by others, whatever pid the new one gets
                self.listen(w, me);
                w.spawn(me, Role::Server)
            }
        };
        match uid {
            Some(uid) => {
                let pid = w.procs[me].pid;
                w.send(pid, uid, Message::Promote);
                w.procs[uid].since = w.now;
                self.ward = Some(Ward { uid, pid: w.procs[uid].pid, generation });
                self.feed(w, me, Event::Spawned);
            }
            None => self.feed(w, me, Event::SpawnFailed { permanent: false }),
        }
    }

    fn exited(&mut self, w: &mut World, me: Uid, ward: Ward) {
        self.listen(w, me);
        self.ward = None;
        let code = w.reap(me, ward.uid).flatten();
        let permanent = code.is_some_and(|c| c == 64 || c == 78);
        if let (Some(code), true, false) = (code, permanent, self.ever_ready) {
            w.notify(me, w.cop, Message::Exit(code));
            return w.exit(me, code);
        }
        self.feed(w, me, Event::Exited(ward.generation, permanent));
        self.tell_server(w, me);
        self.maybe_end(w, me);
    }

    fn maybe_end(&mut self, w: &mut World, me: Uid) {
        let down = !self.server.state().is_alive() && self.ward.is_none() && self.standby_ward.is_none();
        if self.stopping && down {
            w.exit(me, 0);
        }
    }

    // ---- the standby ----

    fn want_standby(&mut self, w: &mut World, me: Uid) {
        if w.setup.standby && !self.stopping {
            self.feed_standby(w, me, Event::WantUp);
        }
    }

    fn feed_standby(&mut self, w: &mut World, me: Uid, event: Event) {
        let random = w.rng.unit();
        let action = self.standby.handle(event, w.now, random);
        match action {
            Action::Spawn => match w.spawn(me, Role::Server) {
                Some(uid) => {
                    let generation = self.standby.generation() + 1;
                    self.standby_ward = Some(Ward { uid, pid: w.procs[uid].pid, generation });
                    self.feed_standby(w, me, Event::Spawned);
                }
                None => self.feed_standby(w, me, Event::SpawnFailed { permanent: true }),
            },
            Action::Send(rung) => {
                if let (Some(x), Some(signal)) = (self.standby_ward, signal_of(rung, w)) {
                    w.signal(me, x.uid, signal);
                }
            }
            Action::Nothing | Action::AnnounceGaveUp => {}
        }
    }

    fn standby_exited(&mut self, w: &mut World, me: Uid, ward: Ward) {
        self.standby_ward = None;
        let code = w.reap(me, ward.uid).flatten();
        let permanent = code.is_some_and(|c| c == 64 || c == 78);
        self.feed_standby(w, me, Event::Exited(ward.generation, permanent));
        self.maybe_end(w, me);
    }
}
