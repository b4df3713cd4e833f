//! A server that runs already, of an earlier manager: it becomes ours, with what was kept of it; what hangs is swept away.

use super::keep::Keep;
use crate::config::OnManagerDeath;
use crate::orders::{Order, channel_name};
use crate::sweep::Sweep;
use crate::ward::Ward;
use policy::child::Event;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use supervisor::clock;
use supervisor::signals::SIGHUP;

/// What an earlier manager left has this time, besides its drain time, to end.
const SWEEP_AFTER: Duration = Duration::from_secs(5);

impl Keep {
    /// Servers of an earlier manager that hold no lock (a standby, one that finishes its last requests) end by themselves;
    /// one that hangs doesn't.
    pub(super) async fn sweep_servers(self: Rc<Self>) {
        let theirs = self.config.borrow().server.drain_timeout + SWEEP_AFTER;
        engine::time::sleep(theirs).await;
        if self.is_stopping() {
            return;
        }
        let found = Sweep::begin(&self.config.borrow(), "traffic_server", &self.pids(), None);
        let Some(mut sweep) = found else { return };
        while !sweep.step(clock::now()) {
            engine::time::sleep(sweep.deadline().saturating_sub(clock::now())).await;
        }
    }

    /// A server that serves already is ours from here on.
    pub(super) fn adopt(self: &Rc<Self>, ward: Ward) {
        log::info!("event=adopt of=server pid={}", ward.pid);
        let pid = ward.pid;
        {
            let mut s = self.server.borrow_mut();
            (s.adopted, s.ever_ready, s.settled, s.since) = (true, true, true, clock::now());
            // the last manager's way to it, if a cop has kept it; those to others lead nowhere
            s.channel = None;
            for (pid, channel) in self.channels.take() {
                match pid == ward.pid {
                    true => s.channel = Some(channel),
                    false => self.upstream.forget_fds(&channel_name(pid)),
                }
            }
        }
        self.hold(ward);
        self.feed(Event::Adopted { ready: true });
        self.begin_watchdog();
        self.announce_ready();
        // whatever the last manager had told it
        if let Some(channel) = &self.server.borrow().channel {
            let _ = self.whether_to_go_on().send(channel, &[]);
            self.name_inbound(pid, channel);
        }
        self.offer_rest();
        self.ask_who_it_is();
        self.want_standby();
    }

    fn whether_to_go_on(&self) -> Order {
        if self.queue.borrow().is_paused() { Order::Hold } else { Order::GoOn }
    }

    /// What it told the last manager may have died with that one, or with the cop that was to keep it.
    fn ask_who_it_is(&self) {
        let s = self.server.borrow();
        let Some(ward) = &s.ward else { return };
        if !self.config.borrow().server.is_ours() {
            // it knows no such question
            return;
        }
        let lacks_estate = self.config.borrow().server.continuity && !self.estates.borrow().has(ward.pid);
        let asked = match &s.channel {
            Some(_) if !lacks_estate => return,
            Some(channel) => Order::Introduce.send(channel, &[]),
            None => ward.signal(SIGHUP),
        };
        log::info!("event=ask of=server pid={}: not everything of it was kept; {asked:?}", ward.pid);
    }

    /// A server that was asked who it is has given us a new way to it.
    pub(super) fn has_channel(&self, pid: i32, channel: OwnedFd) {
        self.upstream.forget_fds(&channel_name(pid));
        self.upstream.store_fds(&channel_name(pid), &[channel.as_fd()]);
        let _ = self.whether_to_go_on().send(&channel, &[]);
        self.name_inbound(pid, &channel);
        self.server.borrow_mut().channel = Some(channel);
        self.offer_rest();
    }

    /// Is there a cop that starts the next manager, and will that find the server?
    pub fn has_a_successor(&self) -> bool {
        let adopts = self.config.borrow().cop.on_manager_death == OnManagerDeath::Adopt;
        let cop = Ward::of_lock(&self.runtime.lock("cop"), 0).ok().flatten();
        adopts && !self.is_stopping() && self.upstream.is_connected() && cop.is_some_and(|c| !c.has_ended())
    }

    /// Does that process hold cop's lock?
    pub(super) fn is_cop(&self, pid: i32) -> bool {
        Ward::of_lock(&self.runtime.lock("cop"), 0).ok().flatten().is_some_and(|cop| cop.pid == pid)
    }
}
