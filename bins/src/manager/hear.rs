//! What servers say over the notify socket, and what cop is told.

use super::keep::Keep;
use crate::orders::channel_name;
use crate::suite;
use policy::child::{Event, State};
use std::os::fd::AsFd;
use std::rc::Rc;
use supervisor::clock;
use supervisor::notify::{Datagram, Field};

/// So many barriers wait for cop; a server has one or two.
const BARRIERS: usize = 16;

impl Keep {
    /// The fd to wait on for [`Keep::listen`].
    ///
    /// # Errors
    /// It can't be duplicated.
    pub fn notify_fd(&self) -> std::io::Result<std::os::fd::OwnedFd> {
        self.notify.as_fd().try_clone_to_owned()
    }

    /// Hears what is in the notify socket, a bounded number of datagrams. True: there may be more.
    pub fn listen(self: &Rc<Self>) -> bool {
        let more = self.hear_some();
        self.remember_news();
        self.speak();
        more
    }

    fn hear_some(self: &Rc<Self>) -> bool {
        for _ in 0..64 {
            match self.notify.recv() {
                Ok(Some(d)) => self.heard(d),
                Ok(None) => return false,
                Err(e) => {
                    log::warn!("event=notify-failed: {e}");
                    return false;
                }
            }
        }
        true
    }

    /// A datagram on the notify socket.
    pub(super) fn heard(self: &Rc<Self>, d: Datagram) {
        if let Some(Field::Pong(n)) = d.message.fields.iter().find(|f| matches!(f, Field::Pong(_))) {
            self.pong(d.pid, *n);
        }
        if self.standby.borrow().ward.as_ref().is_some_and(|w| w.pid == d.pid) {
            return self.heard_standby(&d.message);
        }
        let ours = self.server.borrow().ward.as_ref().is_some_and(|w| w.pid == d.pid);
        if !ours && self.heard_job(d.pid, &d.message) {
            return;
        }
        if !ours {
            return log::warn!("event=notify-stranger pid={} uid={}: dropped", d.pid, d.uid);
        }
        let generation = self.server.borrow().machine.generation();
        if d.message.has(&Field::Barrier) && self.owes_estates() {
            // we may be killed together with it, before cop knows what there is
            let mut barriers = self.barriers.borrow_mut();
            barriers.extend(d.fds);
            let too_many = barriers.len().saturating_sub(BARRIERS);
            return drop(barriers.drain(..too_many));
        }
        if let (true, Some(name)) = (d.message.has(&Field::FdStore), d.message.fd_name()) {
            if suite::estate_of(name).is_some_and(|(server, _)| server == d.pid) {
                let mut estates = self.estates.borrow_mut();
                estates.add(name, d.fds, &self.upstream);
                estates.store(&self.upstream);
                drop(estates);
                if let Some(w) = &self.server.borrow().ward {
                    self.watch_keeper(w.pid, w.generation);
                }
            } else if let Some(fd) = d.fds.into_iter().next() {
                match suite::pulse_of(name) {
                    Some(pid) if pid == d.pid => self.add_page(d.pid, fd),
                    _ if *name == channel_name(d.pid) => self.has_channel(d.pid, fd),
                    _ => {}
                }
            }
        }
        let says_what_it_took = d.message.fields.iter().any(|f| matches!(f, Field::Taken(_)));
        let was_short = d.message.has(&Field::Short);
        for field in d.message.fields {
            match field {
                Field::Taken(last) => self.taken(last),
                Field::Settled => {
                    self.server.borrow_mut().settled = true;
                    if !says_what_it_took {
                        self.all_taken();
                    }
                    self.estates.borrow_mut().settled(d.pid, &self.upstream);
                    self.offer_rest();
                }
                Field::Ready => {
                    {
                        let mut s = self.server.borrow_mut();
                        (s.ever_ready, s.since) = (true, clock::now());
                    }
                    self.settled_silently();
                    self.feed(Event::Ready(generation));
                    self.settle_reload();
                    self.begin_watchdog();
                    self.announce_ready();
                    self.serves_again();
                    self.incident_over();
                    self.want_standby();
                }
                Field::Took(text) => self.account(&text),
                Field::Held => self.held(),
                Field::Retiring => {
                    // it was told to end before it was handed those that it hasn't taken
                    if says_what_it_took {
                        self.hand_over_again();
                    }
                    self.server_retires();
                }
                Field::Status(text) => self.server.borrow_mut().said = text,
                Field::ExtendTimeout(more) => self.feed(Event::Extend(generation, more)),
                Field::Watchdog => self.fed(),
                Field::WatchdogTrigger => self.feed(Event::Unhealthy(generation)),
                _ => {}
            }
        }
        match was_short {
            true => self.was_short(),
            false if says_what_it_took => self.hand_over_rest(),
            false => {}
        }
    }

    /// Servers of earlier versions don't say that they have what they were handed, where they have nothing to take over.
    fn settled_silently(&self) {
        if !self.server.borrow().settled && !self.config.borrow().server.continuity {
            self.all_taken();
        }
    }

    pub(super) fn announce_ready(self: &Rc<Self>) {
        // cop asks for no heartbeat before that
        self.upstream.say("READY=1");
        self.tell_server();
        self.speak();
    }

    /// Tells cop which server there is.
    pub(super) fn tell_server(&self) {
        let s = self.server.borrow();
        let paused = self.queue.borrow().is_paused();
        let pid = match (s.machine.is_wanted(), s.machine.state(), &s.ward) {
            (true, State::Ready { .. }, Some(w)) if !paused => w.pid,
            (true, State::Ready { .. }, Some(_)) => suite::PAUSED,
            (true, ..) => -1,
            (false, ..) => 0,
        };
        self.upstream.say(&format!("X_TRAFFIC_SERVER={pid}"));
    }
}
