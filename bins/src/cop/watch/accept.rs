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
        if self.store.iter().any(|(name, _)| name == accepted::NAME) {
            return;
        }
        match Accepted::of(&self.text) {
            Ok(text) => self.keep(accepted::NAME, vec![text.into()]),
            Err(e) => log::warn!("event=config-not-kept: {e}"),
        }
    }

    /// The manager has accepted a configuration. False: it isn't to be kept, or is kept already.
    pub(super) fn take_config(&mut self, fds: &[OwnedFd]) -> bool {
        let accepted = fds.last().and_then(|fd| Accepted::from_fd(fd.try_clone().ok()?).ok());
        let Some(text) = accepted.and_then(|a| a.text().ok()) else {
            log::warn!("event=config-not-kept: it can't be read");
            return false;
        };
        let is_kept = self.store.iter().any(|(name, _)| name == accepted::NAME);
        if text == self.text && is_kept {
            return false;
        }
        self.forget(accepted::NAME);
        if text != self.text {
            self.go_by(text);
        }
        true
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
