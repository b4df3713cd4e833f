//! The way to the end: the manager first, then a server that it left behind.

use super::*;

impl Cop {
    pub(super) fn begin_stop(&mut self, because: Option<Fatal>, now: Time) {
        if self.is_stopping() {
            return;
        }
        if let Some(f) = &because {
            log::error!("event=start-failed exit={}: {f}", f.exit.code());
        }
        let _ = self.upstream.send("STOPPING=1");
        self.record.stop(&because.as_ref().map_or_else(|| "asked to".to_owned(), ToString::to_string));
        self.sweep = None;
        let to_sweep = vec!["traffic_server", "traffic_manager"];
        self.phase = Phase::Stopping { because, server: None, to_sweep };
        self.manager_beat.stop();
        self.server_beat.stop();
        self.feed(Event::WantDown, now);
        self.step_stop(now);
    }

    /// When the manager is gone: see to a server that it left behind.
    pub(super) fn step_stop(&mut self, now: Time) {
        let manager_gone = self.ward.is_none() && !self.manager.state().is_alive();
        let rungs = self.config.server_rungs();
        let core = self.config.cop.core_signal;
        // where another suite has begun, what is there is its
        let ours = self.lock.is_in_place();
        let Phase::Stopping { server, to_sweep, .. } = &mut self.phase else { return };
        if !ours {
            to_sweep.clear();
        }
        if let Some((w, ladder)) = server {
            if w.has_ended() {
                w.reap();
                *server = None;
            } else if let Some(rung) = ladder.tick(now) {
                w.send(rung, core);
            }
        } else if manager_gone
            && ours
            && let Ok(Some(w)) = Ward::of_server(&self.config, &self.runtime, 0)
        {
            log::warn!("event=stop-orphan of=server pid={}", w.pid);
            let (ladder, first) = Ladder::begin(rungs, now);
            w.send(first, core);
            *server = Some((w, ladder));
        } else if manager_gone {
            // those that hold no lock: a server that finishes its last requests, one that never got that far
            while self.sweep.as_mut().is_none_or(|s| now >= s.deadline() && s.step(now)) {
                let Some(program) = to_sweep.pop() else {
                    self.sweep = None;
                    break;
                };
                self.sweep = Sweep::begin(&self.config, program, &[], Some(self.config.server.drain_timeout));
            }
        }
    }

    /// Managers that hang before they take their lock, and whose parent is gone, are found by nothing else.
    pub(super) fn sweep_managers(&mut self, now: Time) {
        if self.is_stopping() {
            return;
        }
        let due = self.sweep_at.take_if(|at| now >= *at).is_some();
        if due && self.sweep.is_none() && self.lock.is_in_place() {
            let ours: Vec<i32> = self.ward.iter().map(|w| w.pid).collect();
            self.sweep = Sweep::begin(&self.config, "traffic_manager", &ours, None);
        }
        self.sweep.take_if(|s| now >= s.deadline() && s.step(now));
    }

    pub(super) fn finished(&mut self) -> Option<Exit> {
        let Phase::Stopping { because, server, to_sweep } = &mut self.phase else { return None };
        let stuck = server.as_ref().is_some_and(|(_, l)| l.rung() == Rung::Stuck);
        let gone = self.ward.is_none() && !self.manager.state().is_alive() && server.is_none();
        let gone = gone && to_sweep.is_empty() && self.sweep.is_none();
        if !gone && !stuck {
            return None;
        }
        // a keeper ends when nobody can ask it any more, and systemd, which has duplicates, could
        let mut names: Vec<&str> = self.store.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        // but a listener is for the next cop, if systemd is about to start one (restart): nobody is refused in between. At a
        // stop systemd itself lets it go
        names.retain(|name| !suite::is_listener(name));
        names.iter().for_each(|name| self.upstream.forget_fds(name));
        if self.upstream.has_later() {
            self.upstream.barrier(Duration::from_millis(500));
        }
        self.store.clear();
        self.record.flush();
        if !supervisor::reaper::reap_all(Duration::from_millis(500)) {
            // a foreign server whose manager had to be killed; or what such a server has left
            let told = supervisor::reaper::end_children(Duration::from_secs(1));
            log::warn!("event=left-behind processes={told}: ended by cop, since nobody else was left to");
        }
        if self.lock.is_in_place() {
            self.runtime.clean();
        }
        let fatal = because.take();
        log::info!("event=stopped");
        if let (Some(tell), Some(f)) = (self.on_start.take(), &fatal) {
            tell(Err(f));
        }
        match fatal {
            Some(f) => Some(f.exit),
            None if stuck => Some(Exit::Os),
            None => Some(Exit::Done),
        }
    }
}

/// As the manager's own for its server, but cop never gives up on it.
pub(super) fn manager_limits(config: &Config) -> policy::child::Limits {
    policy::child::Limits {
        start_grace: config.cop.start_grace,
        stop: config.manager_rungs(),
        respawn: policy::backoff::Limits { give_up_after: 0, ..config.manager.respawn.limits() },
    }
}
