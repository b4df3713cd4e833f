//! The child machine of `policy`, with hands: a server is started and told to end; see `death` for what follows.
//!
//! After each event the one timer is set to the machine's next deadline.

use super::keep::Keep;
use crate::config::{Config, accepted};
use crate::orders::{CHANNEL, channel_name};
use crate::privileges;
use crate::server::origins;
use crate::suite;
use crate::ward::Ward;
use policy::child::{Action, Event, Limits};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use supervisor::clock;
use supervisor::fd_pass;
use supervisor::pidfd::PidFd;
use supervisor::spawn::{SpawnError, Spec, spawn};

impl Keep {
    pub(super) fn feed(self: &Rc<Self>, event: Event) {
        let now = clock::now();
        let (before, action, after) = {
            let mut s = self.server.borrow_mut();
            let before = s.machine.state().name();
            let action = s.machine.handle(event, now, clock::jitter());
            (before, action, s.machine.state().name())
        };
        if before != after {
            log::info!("event=state of=server from={before} to={after}");
            self.wake_changes();
        }
        match action {
            Action::Nothing => {}
            Action::Spawn => self.launch(),
            Action::Send(rung) => {
                if before == "ready" {
                    self.tell_server();
                }
                let core = self.config.borrow().cop.core_signal;
                if let Some(w) = &self.server.borrow().ward {
                    if before == "starting" && !self.is_stopping() {
                        w.picture(&self.config.borrow().suite, "it isn't ready after its start grace");
                    }
                    log::info!("event=signal of=server pid={} rung={rung:?}", w.pid);
                    w.send(rung, core);
                }
            }
            Action::AnnounceGaveUp => self.gave_up(),
        }
        self.arm();
        self.remember_soon();
        self.speak();
    }

    /// One timer for the machine's deadline; a timer that was set for another one finds that out when it fires.
    fn arm(self: &Rc<Self>) {
        let deadline = self.server.borrow().machine.deadline();
        if deadline == self.timer.replace(deadline) {
            return;
        }
        let Some(at) = deadline else { return };
        let keep = self.clone();
        drop(engine::spawn(async move {
            engine::time::sleep(at.saturating_sub(clock::now())).await;
            if keep.timer.get() == Some(at) {
                keep.timer.set(None);
                keep.feed(Event::Tick);
            }
        }));
    }

    fn launch(self: &Rc<Self>) {
        // the last manager's; or one that was promoted in its manager's last moment, and has taken the lock since
        let generation = self.server.borrow().machine.generation() + 1;
        match self.running(generation) {
            Ok(Some(ward)) => return self.adopt(ward),
            Ok(None) => {}
            // its holder ended in this very moment
            Err(e) => log::debug!("event=adopt-failed of=server: {e}"),
        }
        if let Some((ward, channel)) = self.take_standby() {
            let pid = ward.pid;
            self.promote(pid, &channel);
            log::info!("event=promote of=server pid={pid} generation={generation}");
            self.limit_promotion(pid);
            return self.launched(ward.promoted(generation), Some(channel));
        }
        match self.spawn_server() {
            Ok((pid, pidfd, channel)) => {
                if let Some(channel) = &channel {
                    self.promote(pid, channel);
                }
                log::info!("event=spawn of=server pid={pid} generation={generation}");
                self.launched(Ward::new(pid, pidfd, generation), channel);
            }
            Err(e) => {
                log::error!("event=spawn-failed of=server: {e:#}");
                let permanent = e.downcast_ref::<SpawnError>().is_some_and(SpawnError::is_permanent);
                self.server.borrow_mut().last_exit = Some(format!("{e:#}"));
                self.reload_suffers(generation, &format!("{e:#}"));
                if permanent && !self.server.borrow().ever_ready {
                    return self.fail(e.context("the server can't be started"));
                }
                self.feed(Event::SpawnFailed { permanent });
            }
        }
    }

    /// A server that runs already. What one that isn't ours has left behind when it died is no server.
    fn running(&self, generation: u64) -> io::Result<Option<Ward>> {
        let config = self.config.borrow();
        match config.server.is_ours() || generation == 1 {
            true => Ward::of_server(&config, &self.runtime, generation),
            false => Ok(None),
        }
    }

    fn launched(self: &Rc<Self>, ward: Ward, channel: Option<OwnedFd>) {
        {
            let mut s = self.server.borrow_mut();
            (s.adopted, s.since, s.channel, s.settled) = (false, clock::now(), channel, false);
            s.said.clear();
        }
        if let Some(channel) = &self.server.borrow().channel {
            self.upstream.store_fds(&channel_name(ward.pid), &[channel.as_fd()]);
        }
        self.hold(ward);
        self.feed(Event::Spawned);
        self.watch_gap();
    }

    /// Starts a server process, with the channel to it if it is our own program.
    pub(super) fn spawn_server(&self) -> anyhow::Result<(i32, PidFd, Option<OwnedFd>)> {
        let config = self.config.borrow();
        let (program, argv, channel) = match config.server.command.split_first() {
            Some((program, _)) => {
                let argv = config.server.command.iter().map(OsString::from).collect::<Vec<_>>();
                (suite::find_program(program), argv, None)
            }
            None => {
                let mut argv = vec![OsString::from("traffic_server"), "run".into()];
                argv.extend(self.common.to_args());
                (suite::sibling("traffic_server")?, argv, Some(fd_pass::pair()?))
            }
        };
        let credentials = privileges::server(&config)?;
        let list = self.listeners.borrow();
        let mut fds: Vec<_> = list.iter().map(|l| (l.fd_name(), l.fd.as_fd())).collect();
        let accepted = self.accepted.borrow();
        if let Some((_, theirs)) = &channel {
            fds.push((CHANNEL.to_owned(), theirs.as_fd()));
            fds.push((accepted::NAME.to_owned(), accepted.as_fd()));
            fds.extend(self.origins.as_ref().map(|page| (origins::NAME.to_owned(), page.as_fd())));
        }
        let mut env = vec![
            ("NOTIFY_SOCKET", self.runtime.notify("manager").into()),
            ("TRAFFIC_RUNTIME_DIR", self.runtime.dir().into()),
            // the default depends on who asks, and the server may be somebody else
            ("TRAFFIC_STATE_DIR", config.suite.state_dir.clone().into()),
        ];
        match channel {
            Some(_) => env.push((suite::TOKEN, self.runtime.token()?.into())),
            None => env.push((suite::SERVER_OF, self.runtime.dir().into())),
        }
        if let Some(limit) = self.watchdog_limit(&config) {
            env.push(("WATCHDOG_USEC", limit.as_micros().to_string().into()));
        }
        let spawned = spawn(&Spec {
            fds,
            nofile: privileges::nofile(config.server.nofile),
            oom_score_adj: Some(config.server.oom_score_adj),
            nice: config.server.nice,
            credentials,
            ..Spec::new(program, argv, suite::child_env(&env))
        })?;
        Ok((spawned.pid, spawned.pidfd, channel.map(|(ours, _)| ours)))
    }

    /// Takes hold of a server process and waits for its end.
    pub(super) fn hold(self: &Rc<Self>, ward: Ward) {
        self.watch_end(&ward);
        self.server.borrow_mut().ward = Some(ward);
    }
}

pub(super) fn limits(config: &Config) -> Limits {
    Limits {
        start_grace: config.cop.start_grace,
        stop: config.server_rungs(),
        respawn: config.manager.respawn.limits(),
    }
}
