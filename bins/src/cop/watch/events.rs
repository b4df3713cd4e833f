//! What happened: signals, notify datagrams, exits.

use super::*;
use crate::config::accepted;

impl Cop {
    pub(super) fn on_signals(&mut self, now: Time) {
        for signal in self.signals.pending() {
            match signal {
                signals::SIGCHLD => {}
                signals::SIGHUP => {
                    crate::logging::reopen();
                    log::info!("event=reload");
                    if let Some(w) = &self.ward {
                        let _ = w.signal(signals::SIGHUP);
                    }
                }
                signals::SIGUSR1 | signals::SIGUSR2 => self.dump(),
                _ => {
                    log::info!("event=stop signal={signal}");
                    self.begin_stop(None, now);
                }
            }
        }
        // the manager and whoever became our child because its parent died
        self.on_manager_exit(now);
        let ward = self.ward.as_ref().map(|w| w.pid);
        for pid in supervisor::reaper::reap_strangers(|p| Some(p) == ward) {
            log::debug!("event=reaped pid={pid}");
        }
        self.record.step();
    }

    pub(super) fn on_stdin(&mut self, now: Time) {
        let mut buf = [0u8; 64];
        if let Ok(0) | Err(_) = std::io::Read::read(&mut std::io::stdin(), &mut buf) {
            self.watch_stdin = false;
            log::info!("event=stop: standard input ended");
            self.begin_stop(None, now);
        }
    }

    pub(super) fn on_notify(&mut self, now: Time) {
        // bounded: a sender that never stops gets its next turn after everybody else
        for _ in 0..64 {
            match self.notify.recv() {
                Ok(Some(d)) => self.heard(d, now),
                Ok(None) => return,
                Err(e) => return log::warn!("event=notify-failed: {e}"),
            }
        }
    }

    pub(super) fn heard(&mut self, d: Datagram, now: Time) {
        if self.ward.as_ref().is_none_or(|w| w.pid != d.pid) {
            return log::warn!("event=notify-stranger pid={} uid={}: dropped", d.pid, d.uid);
        }
        let name = d.message.fd_name().map(str::to_owned);
        let mut fds = d.fds;
        for field in d.message.fields {
            match field {
                Field::Ready => self.manager_ready(now),
                Field::Status(s) => self.said.status = s,
                Field::Exit(n) => {
                    self.said.exit = Some(n);
                    self.gave_up_at_start(now);
                }
                Field::Server(pid) => self.server_is(pid, now),
                Field::ExtendTimeout(more) => self.feed(Event::Extend(self.manager.generation(), more), now),
                Field::FdStore if name.as_deref() == Some(accepted::NAME) => {
                    self.take_config(std::mem::take(&mut fds))
                }
                Field::FdStore => self.keep(name.as_deref().unwrap_or("unknown"), std::mem::take(&mut fds)),
                Field::FdStoreRemove => self.forget(name.as_deref().unwrap_or("unknown")),
                _ => {}
            }
        }
    }

    /// A suite whose server gives up before it ever served doesn't start.
    fn gave_up_at_start(&mut self, now: Time) {
        let gave_up = self.said.exit == Some(i32::from(Exit::GaveUp.code()));
        if let (Phase::Starting { .. }, false, true) = (&self.phase, self.found_running, gave_up) {
            let why = format!("traffic_manager: {}", self.said.or("gave up on the server"));
            self.begin_stop(Some(Fatal::new(Exit::GaveUp, why)), now);
        }
    }

    pub(super) fn keep(&mut self, name: &str, fds: Vec<std::os::fd::OwnedFd>) {
        match self.store.add(name, fds) {
            Ok(()) => log::debug!("event=fdstore name={name} total={}", self.store.len()),
            // systemd, too, has to hand on what it keeps
            Err(e) => return log::error!("event=fdstore-failed name={name}: {e}"),
        }
        for (_, fd) in self.store.iter().filter(|(n, _)| n == name) {
            self.upstream.store_fds(name, &[fd.as_fd()]);
        }
    }

    /// What nobody needs any more is forgotten by systemd too: a keeper lives as long as somebody can ask it.
    pub(super) fn forget(&mut self, name: &str) {
        self.store.remove(name);
        self.upstream.forget_fds(name);
    }

    pub(super) fn manager_ready(&mut self, now: Time) {
        self.feed(Event::Ready(self.manager.generation()), now);
        self.manager_beat.start(now);
        self.maybe_serving();
    }

    /// The manager says which server it holds: a pid, 0 for none wanted, less for none at the moment.
    pub(super) fn server_is(&mut self, pid: i32, now: Time) {
        self.check.another_server();
        self.server_wanted = pid != 0;
        self.paused = pid == crate::suite::PAUSED;
        self.server_beat.stop();
        self.server = None;
        if pid <= 0 {
            return self.maybe_serving();
        }
        if ![0, pid].contains(&std::mem::replace(&mut self.last_server, pid)) {
            self.record.server_restarted();
        }
        if !self.config.server.is_ours() {
            // one that isn't ours holds no lock and answers no heartbeat: it is the manager's to watch
            return self.maybe_serving();
        }
        match Ward::of_lock(&self.runtime.lock("server"), 0) {
            Ok(Some(w)) if w.pid == pid => {
                self.server = Some(w);
                self.server_beat.start(now);
            }
            Ok(_) => log::info!("event=server-unconfirmed pid={pid}: its lock doesn't show it"),
            Err(e) => log::warn!("event=server-unconfirmed pid={pid}: {e}"),
        }
        self.maybe_serving();
    }

    pub(super) fn on_server_exit(&mut self) {
        if self.server.as_ref().is_some_and(Ward::has_ended) {
            self.server = None;
            self.server_beat.stop();
        }
    }

    pub(super) fn on_manager_exit(&mut self, now: Time) {
        if !self.ward.as_ref().is_some_and(Ward::has_ended) {
            return;
        }
        // what it said last is in the socket already, whatever woke us first
        self.on_notify(now);
        let Some(w) = self.ward.take() else { return };
        let status = w.reap();
        self.manager_beat.stop();
        let how = status.as_ref().map_or("ended (not our child)".to_owned(), ToString::to_string);
        let level = if self.is_stopping() { log::Level::Info } else { log::Level::Warn };
        log::log!(level, "event=exit of=manager pid={}: {how}", w.pid);
        if !self.is_stopping() {
            self.record.manager_ended(&how);
        }
        // one that was asked to end has ended as it should, and is followed by another
        let code = status.and_then(|s| s.code()).filter(|code| *code != 0).or(self.said.exit);
        if let (Phase::Starting { .. }, Some(code), false) = (&self.phase, code, self.found_running) {
            let exit = Exit::of_code(code).filter(|e| *e != Exit::Done);
            let why = format!("traffic_manager: {}", self.said.or(&how));
            self.begin_stop(Some(Fatal::new(exit.unwrap_or(Exit::Failure), why)), now);
        }
        self.said = Said::default();
        self.feed(Event::Exited(w.generation, code.is_some_and(Exit::is_permanent)), now);
    }
}
