//! A server's death: noticed, answered by the next one, and the process seen off.
//!
//! It is noticed twice. The keeper says it as soon as the server's threads are dead: that is enough for the next one to begin.
//! The pidfd says it when the kernel has also freed the server's memory, which for a large cache takes its time; where there
//! is no keeper, that is the first we hear. Whichever comes first is acted on, and the process is reaped after the second. Of a
//! server that hasn't taken over yet only the second counts.

use super::keep::Keep;
use crate::exit::Exit;
use crate::orders::channel_name;
use crate::ward::Ward;
use engine::io::Async;
use log::Level;
use policy::child::Event;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use supervisor::clock;
use supervisor::keeper;
use supervisor::pidfd::ExitStatus;

/// How long the kernel may take to clear a dead server away before that is said, and not waited for any more.
const SEEN_OFF: Duration = Duration::from_secs(5);

/// A server whose threads are dead, and of which the kernel still clears something away.
pub(super) struct Dying {
    pub(super) ward: Ward,
    was_retiring: bool,
    /// How it has ended is known, and was said. It isn't at once if we may not look at it, nor if it has ended with code 0.
    is_told: bool,
}

impl Keep {
    /// Waits for the end of a server process.
    pub(super) fn watch_end(self: &Rc<Self>, ward: &Ward) {
        let (keep, generation) = (self.clone(), ward.generation);
        match ward.as_fd().try_clone_to_owned().and_then(Async::new) {
            Ok(end) => drop(engine::spawn(async move {
                let _ = end.readable().await;
                keep.process_ended(generation);
            })),
            Err(e) => self.fail(anyhow::Error::from(e).context("watching the server")),
        }
        self.watch_keeper(ward.pid, generation);
    }

    /// Waits for the word of that server's keeper, if we have the way to it.
    pub(super) fn watch_keeper(self: &Rc<Self>, server: i32, generation: u64) {
        let Some(way) = self.estates.borrow_mut().way_to_watch(server) else { return };
        let keep = self.clone();
        match way.and_then(Async::new) {
            Ok(way) => drop(engine::spawn(async move {
                if is_dead(&way).await {
                    keep.keeper_says_dead(generation);
                }
            })),
            // the pidfd will do
            Err(e) => log::warn!("event=watch-failed of=keeper server={server}: {e}"),
        }
    }

    fn keeper_says_dead(self: &Rc<Self>, generation: u64) {
        // what it said last is in the socket already; that it has taken over may be among it
        self.listen();
        let unsettled = {
            let s = self.server.borrow();
            !s.settled && s.ward.as_ref().is_some_and(|w| w.generation == generation)
        };
        // it has nothing yet that waits for another one, and its exit code may be why none is to be started
        if !unsettled {
            self.died(generation, "keeper");
        }
    }

    /// All threads of this server are dead, and what it said last was heard. `noticed_by`: for the record.
    fn died(self: &Rc<Self>, generation: u64, noticed_by: &str) {
        let retired = take(&mut self.retiring.borrow_mut(), |w| w.generation == generation);
        let was_retiring = retired.is_some();
        let current = || self.server.borrow_mut().ward.take_if(|w| w.generation == generation);
        // the second of the two notices finds nobody
        let Some(ward) = retired.or_else(current) else { return };
        let pid = ward.pid;
        let status = ward.reap().or_else(|| ExitStatus::of_dying(pid));
        self.see_off(Dying { ward, was_retiring, is_told: status.is_some() });
        match status {
            Some(status) => self.say_exit(was_retiring, pid, &status.to_string()),
            None => log::info!("event=dead pid={pid}: how isn't known before the kernel has cleared it away"),
        }
        match was_retiring {
            true => self.retired_died(pid),
            false => self.server_died(pid, generation, status, noticed_by),
        }
        if self.is_stopping() {
            // their turn may have come
            self.settle_jobs();
        }
    }

    /// The process is reaped when it has ended. One that the kernel can't end (a disk doesn't answer) is for the reaper of
    /// orphans, and keeps nobody from ending.
    fn see_off(self: &Rc<Self>, dying: Dying) {
        let (keep, pid, generation) = (self.clone(), dying.ward.pid, dying.ward.generation);
        self.dying.borrow_mut().push(dying);
        drop(engine::spawn(async move {
            engine::time::sleep(SEEN_OFF).await;
            if take(&mut keep.dying.borrow_mut(), |d| d.ward.generation == generation).is_some() {
                log::error!("event=stuck pid={pid}: its threads are dead, and it still exists");
                keep.maybe_end();
            }
        }));
    }

    /// Nothing is left of this server process but what its parent is told.
    fn process_ended(self: &Rc<Self>, generation: u64) {
        // what it said last is in the socket already
        self.listen();
        self.died(generation, "pidfd");
        let seen_off = take(&mut self.dying.borrow_mut(), |d| d.ward.generation == generation);
        if let Some(Dying { ward, was_retiring, is_told }) = seen_off {
            let how = said(ward.reap());
            if !is_told {
                self.say_exit(was_retiring, ward.pid, &how);
                self.learned(ward.pid, &how);
                if !was_retiring {
                    self.server.borrow_mut().last_exit = Some(how);
                }
            }
        }
        self.maybe_end();
    }

    /// The one line about the end of a server process.
    fn say_exit(&self, was_retiring: bool, pid: i32, how: &str) {
        let of = if was_retiring { "retiring" } else { "server" };
        let level = if was_retiring || self.is_stopping() { Level::Info } else { Level::Warn };
        log::log!(level, "event=exit of={of} pid={pid}: {how}");
    }

    fn server_died(self: &Rc<Self>, pid: i32, generation: u64, status: Option<ExitStatus>, noticed_by: &str) {
        // one that died before it had taken over had nothing of its own
        self.hand_over_again();
        self.upstream.forget_fds(&channel_name(pid));
        self.forget_page(pid);
        self.watch_gap();
        // the one that was to follow it follows now
        let was_told = self.replace.borrow_mut().old_is_dead();
        if was_told || self.inbound.borrow().iter().any(|(of, _)| *of == pid) {
            self.forget_inbound(pid);
        }
        self.reload_suffers(generation, &said(status));
        if !self.server.borrow().settled {
            self.estates.borrow_mut().unsettled(pid, &self.upstream);
        }
        let how = said(status);
        if self.server.borrow().machine.is_wanted() && !self.is_stopping() {
            self.incident(pid, &how, noticed_by);
        }
        let permanent = status.and_then(|s| s.code()).filter(|c| Exit::is_permanent(*c));
        let ever_ready = {
            let mut s = self.server.borrow_mut();
            s.last_exit = Some(how.clone());
            s.since = clock::now();
            s.ever_ready
        };
        if let (Some(code), false) = (permanent, ever_ready) {
            let said = self.server.borrow().said.clone();
            let exit = Exit::of_code(code).unwrap_or(Exit::Failure);
            let why = if said.is_empty() { how } else { said };
            return self.fail(crate::logging::Fatal::new(exit, format!("the server: {why}")).into());
        }
        self.feed(Event::Exited(generation, permanent.is_some()));
        self.tell_server();
    }
}

fn said(status: Option<ExitStatus>) -> String {
    status.map_or("ended; it isn't known how".to_owned(), |s| s.to_string())
}

fn take<T>(from: &mut Vec<T>, which: impl Fn(&T) -> bool) -> Option<T> {
    let at = from.iter().position(which)?;
    Some(from.swap_remove(at))
}

/// Resolves with true when the keeper says that its ward is dead; with false when it is gone, and will say nothing.
async fn is_dead(way: &Async<OwnedFd>) -> bool {
    while way.readable().await.is_ok() {
        // edge-triggered: noted as empty before it is looked at
        way.clear_read();
        match keeper::has_spoken(way.get_ref()) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            other => return other.unwrap_or(false),
        }
    }
    false
}
