//! The check of both programs: what is seen, and what follows from what `policy` says of it.

use super::*;
use policy::pulse::Stall;
use std::os::fd::OwnedFd;

impl Cop {
    /// Tells systemd again what it keeps for us, as much as its queue takes now.
    pub(super) fn say_rest(&mut self) {
        let Some(from) = self.unsaid.take() else { return };
        for (n, (name, fd)) in self.store.iter().enumerate().skip(from) {
            let full = |e: &std::io::Error| e.kind() == std::io::ErrorKind::WouldBlock;
            if self.upstream.try_store(name, &[fd.as_fd()]).is_err_and(|e| full(&e)) {
                self.unsaid = Some(n);
                return;
            }
        }
    }

    /// The check of both programs: look, let `policy` decide, act.
    pub(super) fn check(&mut self, now: Time) {
        if self.upstream.take_missed() {
            self.unsaid = Some(0);
        }
        let stall = self.stalled_thread(now);
        self.excuse_full_server(now);
        let observation = Observation {
            manager: lock_state(&self.runtime.lock("manager"), self.ward.as_ref()),
            manager_starting: !matches!(self.manager.state(), State::Ready { .. })
                && self.manager.generation() != self.adopted,
            manager_pulse: pulse(self.manager_beat.has_failed()),
            server_wanted: self.server_wanted && self.server.as_ref().is_some_and(|w| !w.has_ended()),
            server: lock_state(&self.runtime.lock("server"), self.server.as_ref()),
            server_pulse: pulse(self.server_beat.has_failed() || stall.is_some()),
        };
        let how = match self.config.cop.on_manager_death {
            OnManagerDeath::Adopt => policy::check::OnManagerDeath::Adopt,
            OnManagerDeath::Kill => policy::check::OnManagerDeath::Kill,
        };
        let verdict = self.check.programs(&observation, how);
        if verdict != Verdict::Nothing {
            log::warn!("event=verdict verdict={verdict:?} observed={observation:?}");
        }
        match verdict {
            Verdict::Nothing => {}
            // it lives and doesn't hold its lock: it is no manager any more
            Verdict::SpawnManager | Verdict::KillServerThenSpawnManager | Verdict::KillManager => {
                if let Some(w) = &self.ward {
                    w.picture(&self.config.suite, &format!("cop's verdict on the manager: {verdict:?}"));
                }
                self.manager_beat.stop();
                self.feed(Event::Unhealthy(self.manager.generation()), now);
            }
            Verdict::KillManagerGroup => {
                self.manager_beat.stop();
                if let Some(w) = &self.ward {
                    // children are made as leaders of their own groups; this reaches what the manager left in its own
                    let group = nix::unistd::Pid::from_raw(w.pid);
                    if nix::unistd::getpgid(Some(group)) == Ok(group) && !w.has_ended() {
                        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
                    }
                }
                self.feed(Event::Unhealthy(self.manager.generation()), now);
            }
            Verdict::KillManagerStrays => log::error!(
                "event=lock-held-by-dead path={} : some process shares the dead manager's fds",
                self.runtime.lock("manager").display()
            ),
            Verdict::KillServer => {
                let why = match (self.server_beat.take_failed(), stall) {
                    (_, Some(stall)) => Some(stall.to_string()),
                    (true, None) => Some("its heartbeat failed".to_owned()),
                    (false, None) => None,
                };
                if let (Some(w), Some(why)) = (&self.server, why) {
                    log::warn!("event=kill of=server pid={} : {why}", w.pid);
                    w.picture(&self.config.suite, &why);
                    let core = self.config.cop.core_signal.filter(|_| self.cored != w.pid);
                    w.send(if core.is_some() { Rung::Core } else { Rung::Kill }, core);
                    self.cored = w.pid;
                    self.server_beat.start(now);
                }
            }
        }
    }

    /// A server that has as many connections as it may, or no descriptors, leaves our heartbeats in the backlog with everybody
    /// else; its pulse page says so for as long as it lives.
    fn excuse_full_server(&mut self, now: Time) {
        let Some(pid) = self.server.as_ref().filter(|_| self.server_beat.has_failed()).map(|w| w.pid) else {
            return;
        };
        let is_full = pulse_page(&self.store, pid).is_some_and(|page| supervisor::pulse::is_full(page, now));
        if is_full && self.server_beat.excuse(now) {
            log::warn!(
                "event=server-full pid={pid}: it accepts nobody more for now, and answers no heartbeat"
            );
        }
    }

    /// The server's pulse page, which the manager watches as well, and sooner.
    fn stalled_thread(&mut self, now: Time) -> Option<Stall> {
        let pid = self.server.as_ref()?.pid;
        let (stall, interval) = (self.config.manager.stall, self.config.cop.interval);
        let (of, threads) = &mut self.threads;
        if std::mem::replace(of, pid) != pid {
            *threads = policy::pulse::Watch::new(stall + interval, interval);
        }
        let readings = supervisor::pulse::read(pulse_page(&self.store, pid)?).ok()?;
        threads.look(&readings, now, |tid| supervisor::pulse::processor(pid, tid))
    }
}

/// The page of that server, if it has been stored.
fn pulse_page(store: &FdStore, pid: i32) -> Option<&OwnedFd> {
    let name = suite::pulse_name(pid);
    store.iter().find(|(n, _)| *n == name).map(|(_, page)| page)
}

fn pulse(failed: bool) -> Pulse {
    if failed { Pulse::Failed } else { Pulse::Fine }
}

/// What a lock says, with the process we believe to hold it.
fn lock_state(path: &Path, ward: Option<&Ward>) -> Lock {
    match lockfile::Lockfile::holder(path) {
        Ok(None) => Lock::Free,
        Ok(Some(h)) => match ward {
            Some(w) if w.pid == h.pid => {
                if w.has_ended() {
                    Lock::HeldByDead
                } else {
                    Lock::Held
                }
            }
            _ => match supervisor::pidfd::PidFd::open(h.pid) {
                Ok(p) if p.is_alive() => Lock::Held,
                _ => Lock::HeldByDead,
            },
        },
        Err(e) => {
            log::warn!("event=lock-unknown path={}: {e}", path.display());
            Lock::Unknown
        }
    }
}
