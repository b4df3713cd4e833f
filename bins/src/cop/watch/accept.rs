//! The configuration that the suite has accepted: cop keeps it for whoever comes next, and takes its own part of it.

use super::*;
use crate::config::{self, Accepted, Suite, accepted};
use crate::privileges;
use policy::heartbeat;
use std::os::fd::OwnedFd;

pub(super) fn heartbeat_limits(c: &config::Cop) -> heartbeat::Limits {
    heartbeat::Limits { interval: c.interval, timeout: c.timeout, failures: c.failures }
}

impl Cop {
    /// The first manager gets what we have read; the next ones what was accepted last.
    pub(super) fn offer_config(&mut self) {
        if self.has_config() {
            return;
        }
        match Accepted::of(&self.text) {
            Ok(text) => self.keep_config(text.into()),
            Err(e) => log::warn!("event=config-not-kept: {e}"),
        }
    }

    fn has_config(&self) -> bool {
        self.store.iter().any(|(name, _)| accepted::is_one(name))
    }

    /// The next one is there before the last one goes.
    fn keep_config(&mut self, fd: OwnedFd) {
        let (name, last) = accepted::next_name(self.store.iter().map(|(name, _)| name.as_str()));
        self.keep(name, vec![fd]);
        self.forget(last);
    }

    /// The manager has accepted a configuration.
    pub(super) fn take_config(&mut self, mut fds: Vec<OwnedFd>) {
        let accepted = fds.pop().and_then(Accepted::from_fd);
        let Some((accepted, text)) = accepted.and_then(|a| a.text().ok().map(|text| (a, text))) else {
            return log::warn!("event=config-not-kept: it can't be read");
        };
        if text == self.text && self.has_config() {
            return;
        }
        self.keep_config(accepted.into());
        if text != self.text {
            self.go_by(text);
        }
    }

    /// Where everything is stays as it is.
    fn go_by(&mut self, text: String) {
        let new = match self.common.load_text(text) {
            Ok(new) => new,
            // a manager of another version
            Err(faults) => return log::warn!("event=config-refused: {faults}"),
        };
        let Suite { runtime_dir, state_dir, .. } = self.config.suite.clone();
        let suite = Suite { runtime_dir, state_dir, ..new.config.suite };
        (self.config, self.text) = (Config { suite, ..new.config }, new.text);
        self.manager.set_limits(manager_limits(&self.config));
        let limits = heartbeat_limits(&self.config.cop);
        self.manager_beat.set_limits(limits);
        self.server_beat.set_limits(limits);
        privileges::survive(self.config.cop.oom_score_adj);
        log::info!("event=config-taken");
    }
}
