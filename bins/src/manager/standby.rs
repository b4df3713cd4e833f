//! The standby: a server that has started and waits for the word. Taking over is then a message.
//!
//! It has a machine of its own, so that one that dies is replaced with the same back-off as a server. It is stale when the
//! configuration has changed: then it is replaced, and not used.

use super::keep::Keep;
use crate::orders::Order;
use crate::ward::Ward;
use engine::io::Async;
use policy::child::{Action, Child, Event, Limits, State};
use serde_json::{Value, json};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use supervisor::notify::{Field, Message};
use supervisor::{clock, identity};

/// From a server's readiness to the start of its standby.
const AFTER_READY: Duration = Duration::from_millis(20);

/// The standby that is, if one is.
pub struct Standby {
    pub(super) machine: Child,
    pub(super) ward: Option<Ward>,
    channel: Option<OwnedFd>,
    stale: bool,
    said: String,
    timer: Option<policy::Time>,
}

impl Standby {
    /// None yet.
    pub fn new(limits: Limits) -> Standby {
        Standby {
            machine: Child::new(limits),
            ward: None,
            channel: None,
            stale: false,
            said: String::new(),
            timer: None,
        }
    }

    /// For status; null if there is none.
    pub(super) fn status(&self) -> Value {
        self.ward.as_ref().map_or(Value::Null, |w| {
            json!({ "pid": w.pid, "state": self.machine.state().name(), "restarts": self.machine.restarts() })
        })
    }

    /// Gives it an order, if there is one that hears it.
    pub(super) fn order(&self, order: Order) {
        if let Some(channel) = &self.channel {
            let _ = order.send(channel, &[]);
        }
    }
}

impl Keep {
    /// One is wanted from now on, if it is to be at all.
    pub(super) fn want_standby(self: &Rc<Self>) {
        let config = self.config.borrow();
        let wanted = config.server.standby && config.server.is_ours();
        drop(config);
        if !wanted {
            return;
        }
        // those who have waited for the server are served first: a start takes the time of a processor
        let keep = self.clone();
        drop(engine::spawn(async move {
            engine::time::sleep(AFTER_READY).await;
            if !keep.is_stopping() && keep.is_ready() {
                keep.feed_standby(Event::WantUp);
            }
        }));
    }

    /// None is wanted any more.
    pub(super) fn end_standby(self: &Rc<Self>) {
        // it ends when its channel does
        self.standby.borrow_mut().channel = None;
        self.feed_standby(Event::WantDown);
    }

    /// The configuration has changed.
    pub(super) fn renew_standby(self: &Rc<Self>, limits: Limits) {
        {
            let mut s = self.standby.borrow_mut();
            s.machine.set_limits(limits);
            s.stale = true;
        }
        // one is needed for the replacement in any case
        self.feed_standby(Event::Restart);
    }

    /// Is there one that waits for the word, with the configuration of now?
    pub(super) fn has_standby(&self) -> bool {
        let s = self.standby.borrow();
        let ready = matches!(s.machine.state(), State::Ready { .. }) && !s.stale;
        ready && s.ward.as_ref().is_some_and(|w| !w.has_ended())
    }

    /// A standby that waits for the word, with its channel: from here on it is the server's.
    pub(super) fn take_standby(self: &Rc<Self>) -> Option<(Ward, OwnedFd)> {
        if !self.has_standby() {
            return None;
        }
        let mut s = self.standby.borrow_mut();
        let taken = (s.ward.take()?, s.channel.take()?);
        let limits = s.machine.limits();
        s.machine = Child::new(limits);
        s.timer = None;
        Some(taken)
    }

    /// What the standby says.
    pub(super) fn heard_standby(self: &Rc<Self>, message: &Message) {
        let generation = self.standby.borrow().machine.generation();
        if message.has(&Field::Standby) {
            self.feed_standby(Event::Ready(generation));
            log::info!(
                "event=standby-ready pid={}",
                self.standby.borrow().ward.as_ref().map_or(0, |w| w.pid)
            );
            self.standby_is_ready();
        }
        for field in &message.fields {
            if let Field::Status(text) = field {
                self.standby.borrow_mut().said.clone_from(text);
            }
        }
    }

    pub(super) fn feed_standby(self: &Rc<Self>, event: Event) {
        let (before, action, after) = {
            let mut s = self.standby.borrow_mut();
            let before = s.machine.state().name();
            let action = s.machine.handle(event, clock::now(), clock::jitter());
            (before, action, s.machine.state().name())
        };
        if before != after {
            log::debug!("event=state of=standby from={before} to={after}");
        }
        match action {
            Action::Nothing => {}
            Action::Spawn => self.launch_standby(),
            Action::Send(rung) => {
                let core = self.config.borrow().cop.core_signal;
                if let Some(w) = &self.standby.borrow().ward {
                    w.send(rung, core);
                }
            }
            Action::AnnounceGaveUp => log::error!("event=gave-up of=standby"),
        }
        self.arm_standby();
    }

    fn launch_standby(self: &Rc<Self>) {
        match self.spawn_server() {
            Ok((pid, pidfd, channel)) => {
                let generation = self.standby.borrow().machine.generation() + 1;
                log::info!("event=spawn of=standby pid={pid}");
                let ward = Ward::new(pid, pidfd, generation);
                self.hold_standby(&ward);
                {
                    let mut s = self.standby.borrow_mut();
                    (s.ward, s.channel, s.stale) = (Some(ward), channel, false);
                }
                self.feed_standby(Event::Spawned);
            }
            Err(e) => {
                log::error!("event=spawn-failed of=standby: {e:#}");
                self.feed_standby(Event::SpawnFailed { permanent: true });
                self.replace_fails(format!("the next server can't be started: {e:#}"));
            }
        }
    }

    fn hold_standby(self: &Rc<Self>, ward: &Ward) {
        let (keep, pid) = (self.clone(), ward.pid);
        match ward.as_fd().try_clone_to_owned().and_then(Async::new) {
            Ok(end) => drop(engine::spawn(async move {
                let _ = end.readable().await;
                keep.standby_exited(pid);
            })),
            Err(e) => log::error!("event=watch-failed of=standby: {e}"),
        }
    }

    fn standby_exited(self: &Rc<Self>, pid: i32) {
        self.listen();
        let Some(ward) = self.standby.borrow_mut().ward.take_if(|w| w.pid == pid) else { return };
        let status = ward.reap();
        let how = status.map_or("gone".to_owned(), |s| s.to_string());
        log::info!("event=exit of=standby pid={pid}: {how}");
        let (said, stale) = {
            let mut s = self.standby.borrow_mut();
            s.channel = None;
            (std::mem::take(&mut s.said), s.stale)
        };
        if !stale && !self.is_stopping() {
            self.replace_fails(format!("the next server didn't get ready: {how} {said}"));
        }
        let permanent = status.and_then(|s| s.code()).is_some_and(crate::exit::Exit::is_permanent);
        self.feed_standby(Event::Exited(ward.generation, permanent));
        self.maybe_end();
    }

    /// As the server's timer: one for the machine's deadline.
    fn arm_standby(self: &Rc<Self>) {
        let mut s = self.standby.borrow_mut();
        let deadline = s.machine.deadline();
        if deadline == std::mem::replace(&mut s.timer, deadline) {
            return;
        }
        let Some(at) = deadline else { return };
        let keep = self.clone();
        drop(engine::spawn(async move {
            engine::time::sleep(at.saturating_sub(clock::now())).await;
            let due = keep.standby.borrow().timer == Some(at);
            if due {
                keep.standby.borrow_mut().timer = None;
                keep.feed_standby(Event::Tick);
            }
        }));
    }

    /// A standby has only to take over: one that doesn't within this, and has done nothing in that time, has hung, and nobody
    /// had a reason to ask it before. One that works, on a machine with too much to do, has the time of a start.
    pub(super) fn limit_promotion(self: &Rc<Self>, pid: i32) {
        let (limit, most) = {
            let c = self.config.borrow();
            (c.cop.timeout, c.cop.start_grace)
        };
        let worked = move || identity::look(pid).map_or(0, |l| l.cpu);
        let (keep, begun, mut before) = (self.clone(), clock::now(), worked());
        drop(engine::spawn(async move {
            loop {
                engine::time::sleep(limit).await;
                // that it is ready may lie in the socket: we may have been stopped ourselves
                keep.listen();
                if keep.server_pid() != Some(pid) || keep.is_ready() {
                    return;
                }
                let now = worked();
                if now > before && clock::now().saturating_sub(begun) < most {
                    before = now;
                    continue;
                }
                log::warn!("event=promotion-failed pid={pid}: not ready after {limit:?}");
                if let Some(w) = &keep.server.borrow().ward {
                    let _ = w.signal(nix::libc::SIGKILL);
                }
                return;
            }
        }));
    }

    /// Says the word: serve, and take over what the dead have left.
    pub(super) fn promote(&self, pid: i32, channel: &OwnedFd) {
        if self.queue.borrow().is_paused() {
            let _ = Order::Hold.send(channel, &[]);
        } else {
            self.end_queueing();
            self.hand_over_first(channel);
        }
        let (mut estates, paused) = (self.estates.borrow_mut(), self.queue.borrow().is_paused());
        if let Err(e) = Order::Promote.send(channel, &estates.offer(pid, &self.retiring_pids(), paused)) {
            // it is dying: its end is seen by its pidfd
            log::warn!("event=promote-failed pid={pid}: {e}");
        }
        self.name_inbound(pid, channel);
    }
}
