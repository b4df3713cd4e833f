//! Replacing a server that serves: the next one is there before the old one lets go, and takes its connections over.
//!
//! ```text
//!   asked -- a standby with the configuration of now is ready --> RETIRE to the old --> it has let go of lock and
//!   listeners --> the standby is promoted, and is the heir: connections come to it as each is between two requests
//! ```
//!
//! A next one that doesn't become ready changes nothing: the old one serves on. A SIGTERM from elsewhere enters at "it has
//! let go". An old one that doesn't let go in time is killed, and the next server takes over as after any death.

use super::keep::Keep;
use crate::orders::{Order, channel_name, inbound_name};
use crate::ward::Ward;
use policy::child::{Event, State};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use supervisor::fd_pass;
use supervisor::notify::Notifier;

/// How long a server may take to let go of its lock.
const LET_GO: Duration = Duration::from_secs(3);

/// How long what a retired server has sent is kept for a next server, if the one that is should die.
const INBOUND: Duration = Duration::from_secs(5);

/// How far a replacement is.
#[derive(Debug, Default)]
pub enum Replace {
    /// None is under way.
    #[default]
    No,
    /// A standby is awaited.
    Awaiting,
    /// The old server was told; the next one gets this to receive from.
    Told(OwnedFd),
}

impl Replace {
    /// The server to be replaced has died before it let go. Whoever waits for its replacement looks again when the server's state
    /// changes, which it does now. Had it been told to?
    pub(super) fn old_is_dead(&mut self) -> bool {
        let was_told = matches!(self, Replace::Told(_));
        if was_told {
            *self = Replace::No;
        }
        was_told
    }
}

impl Keep {
    /// Replaces the server. Whoever asked waits with [`Keep::wait_ready`].
    pub fn restart(self: &Rc<Self>) {
        let ours = self.config.borrow().server.is_ours();
        if !ours || !self.is_ready() {
            return self.feed(Event::Restart);
        }
        if matches!(*self.replace.borrow(), Replace::Told(_)) {
            // it goes, with what it passes on; who follows it is started with the configuration of then
            return log::info!("event=replace of=server: it has been told already");
        }
        log::info!("event=replace of=server");
        *self.replace_failed.borrow_mut() = None;
        *self.replace.borrow_mut() = Replace::Awaiting;
        self.feed_standby(Event::WantUp);
        self.standby_is_ready();
    }

    /// A standby has become ready, or may be.
    pub(super) fn standby_is_ready(self: &Rc<Self>) {
        let awaited = matches!(*self.replace.borrow(), Replace::Awaiting);
        if !awaited || !self.has_standby() {
            return;
        }
        let told = fd_pass::pair().and_then(|(to, from)| {
            let server = self.server.borrow();
            match &server.channel {
                Some(channel) => Order::Retire.send(channel, &[to.as_fd()])?,
                // adopted without a way to speak to it
                None => server.ward.as_ref().map_or(Ok(()), |w| w.signal(nix::libc::SIGTERM))?,
            }
            Ok(from)
        });
        match told {
            Ok(from) => {
                // we may be killed before anybody has read what it passes on
                if let Some(pid) = self.server_pid() {
                    self.upstream.store_fds_first(&inbound_name(pid), &[from.as_fd()]);
                }
                *self.replace.borrow_mut() = Replace::Told(from);
            }
            Err(e) => return self.replace_fails(format!("the server can't be told: {e}")),
        }
        let (keep, pid) = (self.clone(), self.server_pid());
        drop(engine::spawn(async move {
            engine::time::sleep(LET_GO).await;
            if matches!(*keep.replace.borrow(), Replace::Told(_)) && keep.server_pid() == pid {
                log::warn!("event=retire-failed pid={pid:?}: it hasn't let go after {LET_GO:?}");
                if let Some(w) = &keep.server.borrow().ward {
                    let _ = w.signal(nix::libc::SIGKILL);
                }
            }
        }));
    }

    /// The next one can't be had: the old one serves on.
    pub(super) fn replace_fails(self: &Rc<Self>, why: String) {
        if matches!(*self.replace.borrow(), Replace::No) {
            return;
        }
        log::error!("event=replace-failed: {why}; the server that is serves on");
        *self.replace.borrow_mut() = Replace::No;
        self.undo_reload(&why);
        *self.replace_failed.borrow_mut() = Some(why);
        self.wake_changes();
    }

    /// The server has let go of its lock and its listeners.
    pub(super) fn server_retires(self: &Rc<Self>) {
        if self.is_stopping() || !matches!(self.server.borrow().machine.state(), State::Ready { .. }) {
            return;
        }
        let heir = match std::mem::take(&mut *self.replace.borrow_mut()) {
            Replace::Told(from) => Some(from),
            // somebody else has asked it to end
            Replace::No | Replace::Awaiting => fd_pass::pair().ok().and_then(|(to, from)| {
                let server = self.server.borrow();
                Order::Retire.send(server.channel.as_ref()?, &[to.as_fd()]).ok().map(|()| from)
            }),
        };
        let old = {
            let mut s = self.server.borrow_mut();
            s.channel = None;
            s.ward.take()
        };
        let Some(old) = old else { return };
        log::info!("event=retire of=server pid={}", old.pid);
        let pid = old.pid;
        self.retiring.borrow_mut().push(old);
        if let Some(from) = heir {
            self.comes_from(pid, from);
        }
        self.feed(Event::Displaced);
        self.limit_retirement();
    }

    /// Servers that had let go when the last manager died, and still have something to finish, are ours to see to the end.
    pub(super) fn adopt_retiring(self: &Rc<Self>) {
        let serving = Ward::of_lock(&self.runtime.lock("server"), 0).ok().flatten().map(|w| w.pid);
        let found = self.estates.borrow().living();
        for (n, (pid, process)) in found.into_iter().filter(|(pid, _)| Some(*pid) != serving).enumerate() {
            log::info!("event=adopt of=retiring pid={pid}");
            // generations of servers count from 1
            let ward = Ward::new(pid, process, u64::MAX - n as u64);
            self.watch_end(&ward);
            self.retiring.borrow_mut().push(ward);
            // the one that its connections were to go to may have died with the manager
            let channel = {
                let mut channels = self.channels.borrow_mut();
                channels.iter().position(|(of, _)| *of == pid).map(|at| channels.swap_remove(at).1)
            };
            let heir = channel.and_then(|channel| {
                let (to, from) = fd_pass::pair().ok()?;
                Order::Retire.send(&channel, &[to.as_fd()]).ok().map(|()| from)
            });
            if let Some(from) = heir {
                self.comes_from(pid, from);
            }
        }
        if !self.retiring.borrow().is_empty() {
            self.limit_retirement();
        }
        let retiring = self.retiring_pids();
        let gone: Vec<i32> = self.inbound.borrow().iter().map(|(pid, _)| *pid).collect();
        for pid in gone.into_iter().filter(|pid| !retiring.contains(pid) && Some(*pid) != serving) {
            self.forget_inbound_later(pid);
        }
    }

    /// Connections of that retiring server come from there. Cop keeps it too: killed together with the server that reads, we
    /// would leave them to nobody.
    fn comes_from(&self, pid: i32, from: OwnedFd) {
        self.upstream.store_fds_first(&inbound_name(pid), &[from.as_fd()]);
        self.inbound.borrow_mut().push((pid, from));
    }

    /// Has a cop keep all of them.
    pub(super) fn store_inbound(&self, cop: &Notifier) {
        for (pid, from) in self.inbound.borrow().iter() {
            cop.store_fds(&inbound_name(*pid), &[from.as_fd()]);
        }
        if let (Replace::Told(from), Some(pid)) = (&*self.replace.borrow(), self.server_pid()) {
            cop.store_fds(&inbound_name(pid), &[from.as_fd()]);
        }
    }

    /// A server that begins is told from whom connections come. We keep our copy: if this one ends before it has read
    /// them all, the next one goes on reading.
    pub(super) fn name_inbound(&self, to: i32, channel: &OwnedFd) {
        for (pid, from) in self.inbound.borrow().iter().filter(|(pid, _)| *pid != to) {
            if let Err(e) = Order::Heir.send(channel, &[from.as_fd()]) {
                log::warn!("event=heir-failed retiring={pid}: {e}");
            }
        }
    }

    fn limit_retirement(self: &Rc<Self>) {
        let (keep, drain) = (self.clone(), self.config.borrow().server.drain_timeout);
        let pids: Vec<i32> = self.retiring.borrow().iter().map(|w| w.pid).collect();
        drop(engine::spawn(async move {
            engine::time::sleep(drain + Duration::from_secs(1)).await;
            for w in keep.retiring.borrow().iter().filter(|w| pids.contains(&w.pid)) {
                log::warn!("event=kill of=retiring pid={}: it hasn't ended after {drain:?}", w.pid);
                let _ = w.signal(nix::libc::SIGKILL);
            }
        }));
    }

    /// A retiring server is gone. What it couldn't pass on goes to the one that serves.
    pub(super) fn retired_died(self: &Rc<Self>, pid: i32) {
        self.upstream.forget_fds(&channel_name(pid));
        self.forget_page(pid);
        self.estates.borrow_mut().ended(pid, &self.upstream);
        self.offer_rest();
        self.forget_inbound_later(pid);
    }

    /// That retiring server is gone. What it has passed on may lie there still.
    fn forget_inbound_later(self: &Rc<Self>, pid: i32) {
        let keep = self.clone();
        drop(engine::spawn(async move {
            engine::time::sleep(INBOUND).await;
            // a server that hangs reads nothing, and the one after it has to find it
            while keep.inbound.borrow().iter().any(|(of, from)| *of == pid && fd_pass::is_unread(from)) {
                engine::time::sleep(INBOUND).await;
            }
            keep.forget_inbound(pid);
        }));
    }

    pub(super) fn forget_inbound(&self, pid: i32) {
        self.inbound.borrow_mut().retain(|(of, _)| *of != pid);
        self.upstream.forget_fds(&inbound_name(pid));
    }

    /// What has become an inheritance since the server was promoted goes to it now.
    pub(super) fn offer_rest(&self) {
        let server = self.server.borrow();
        let (Some(channel), Some(heir), true) = (&server.channel, &server.ward, server.settled) else {
            return;
        };
        let mut estates = self.estates.borrow_mut();
        // that it has settled doesn't say what: one thing after the other
        if estates.is_offered(heir.pid) || self.queue.borrow().is_handing_over() {
            return;
        }
        let paused = self.queue.borrow().is_paused();
        let fds = estates.offer(heir.pid, &self.retiring_pids(), paused);
        if !fds.is_empty()
            && let Err(e) = Order::Adopt.send(channel, &fds)
        {
            log::warn!("event=adopt-failed: {e}");
        }
    }

    /// All processes in our care.
    pub fn pids(&self) -> Vec<i32> {
        let standby = self.standby.borrow().ward.as_ref().map(|w| w.pid);
        let hooks = self.hooks.borrow().clone();
        self.retiring_pids()
            .into_iter()
            .chain(self.server_pid())
            .chain(self.dying.borrow().iter().map(|d| d.ward.pid).collect::<Vec<_>>())
            .chain(standby)
            .chain(hooks)
            .chain(self.job_pids())
            .collect()
    }

    /// Servers that still live and have let go.
    pub(super) fn retiring_pids(&self) -> Vec<i32> {
        self.retiring.borrow().iter().map(|w| w.pid).collect()
    }
}
