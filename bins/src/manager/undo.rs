//! The way back from a reload: until a server with the new configuration serves, the last one is kept, and what nobody needs to
//! change before then (jobs, what cop keeps for the next manager) is left as it was.

use super::jobs;
use super::keep::Keep;
use super::launch::limits;
use super::listeners::{self, Listener};
use super::replace::Replace;
use crate::config::{self, Accepted, Config, accepted};
use std::os::fd::AsFd;
use std::rc::Rc;
use supervisor::notify::Notifier;

/// So many servers in a row that don't get ready are the configuration's fault; one may be somebody else's.
const DIED: u32 = 2;

/// The last configuration, and what the new one is to change when it has proved itself.
pub(super) struct Undo {
    config: Config,
    accepted: Accepted,
    listeners: Vec<Listener>,
    jobs: (Vec<config::Job>, Vec<jobs::Sockets>),
    /// The server that ran when it was reloaded.
    generation: u64,
    /// Servers that have died since, and never were ready.
    died: u32,
}

impl Keep {
    /// From here on the new configuration counts, for servers that are started; see [`Keep::settle_reload`].
    pub(super) fn begin_reload(
        self: &Rc<Self>,
        new: Config,
        accepted: Accepted,
        listeners: Vec<Listener>,
        sockets: Vec<jobs::Sockets>,
    ) {
        let jobs = (new.jobs.clone(), sockets);
        let generation = self.server.borrow().machine.generation();
        let serves = self.is_ready();
        let config = self.config.replace(new);
        let accepted = self.accepted.replace(accepted);
        let listeners = self.listeners.replace(listeners);
        let undo = match self.undo.take() {
            // nobody serves with what came in between
            Some(first) => {
                self.forget_listeners(&listeners, &first.listeners);
                Undo { jobs, generation, died: 0, ..first }
            }
            None => Undo { config, accepted, listeners, jobs, generation, died: 0 },
        };
        *self.undo.borrow_mut() = Some(undo);
        self.go_by_config();
        if !serves {
            // there is nothing to go back to
            self.end_reload();
        }
        self.store_fds(&self.upstream);
        self.restart();
    }

    /// A server has become ready: if it is one with the new configuration, that is what counts.
    pub(super) fn settle_reload(self: &Rc<Self>) {
        let generation = self.server.borrow().machine.generation();
        let has_proved_itself = self.undo.borrow().as_ref().is_some_and(|u| generation > u.generation);
        if has_proved_itself && matches!(*self.replace.borrow(), Replace::No) {
            self.end_reload();
            // all else was stored when it began
            self.store_config(&self.upstream);
        }
    }

    fn end_reload(self: &Rc<Self>) {
        let Some(undo) = self.undo.take() else { return };
        self.forget_listeners(&undo.listeners, &[]);
        let (jobs, sockets) = undo.jobs;
        self.reload_jobs(jobs, sockets);
        self.remember_soon();
    }

    /// A server of that generation has died, or couldn't be started, before it was ready.
    pub(super) fn reload_suffers(self: &Rc<Self>, generation: u64, how: &str) {
        let is_over = self.undo.borrow_mut().as_mut().is_some_and(|u| {
            u.died += u32::from(generation > u.generation);
            u.died >= DIED
        });
        if is_over {
            let why = format!("the next server doesn't get ready: {how}");
            *self.replace_failed.borrow_mut() = Some(format!("{why}; what was before the reload goes on"));
            self.undo_reload(&why);
            self.wake_changes();
        }
    }

    /// No server gets ready with the new configuration: everything is as it was before.
    pub(super) fn undo_reload(self: &Rc<Self>, why: &str) {
        let Some(undo) = self.undo.take() else { return };
        log::error!("event=reload-undone: {why}");
        if let Err(e) = listeners::publish(&undo.listeners, &self.runtime) {
            log::warn!("event=publish-failed: {e}");
        }
        let listeners = self.listeners.replace(undo.listeners);
        self.forget_listeners(&listeners, &[]);
        *self.config.borrow_mut() = undo.config;
        *self.accepted.borrow_mut() = undo.accepted;
        self.go_by_config();
        self.store_config(&self.upstream);
    }

    /// The server's machine, the watch and the standby are made for the configuration of now.
    fn go_by_config(self: &Rc<Self>) {
        let limits = limits(&self.config.borrow());
        self.server.borrow_mut().machine.set_limits(limits);
        self.renew_watch();
        self.renew_standby(limits);
    }

    /// Has cop forget those of `gone` that are neither among ours nor among `kept`.
    fn forget_listeners(&self, gone: &[Listener], kept: &[Listener]) {
        let ours = self.listeners.borrow();
        let is_gone = |l: &&Listener| !ours.iter().chain(kept).any(|k| k.fd_name() == l.fd_name());
        for l in gone.iter().filter(is_gone) {
            self.upstream.forget_fds(&l.fd_name());
        }
    }

    /// Has cop keep the configuration that is known to work, and addresses that a reload has removed as long as it may be undone.
    pub(super) fn store_config(&self, cop: &Notifier) {
        let undo = self.undo.borrow();
        let accepted = self.accepted.borrow();
        cop.store_fds(accepted::NAME, &[undo.as_ref().map_or(&*accepted, |u| &u.accepted).as_fd()]);
        for l in undo.iter().flat_map(|u| &u.listeners) {
            cop.store_fds(&l.fd_name(), &[l.fd.as_fd()]);
        }
    }
}
