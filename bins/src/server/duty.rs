//! A server's life from ready to its end: signals, orders, and connections that others pass on.
//!
//! Its end is orderly in any case: nothing new is accepted, requests in progress are finished, and a connection between two
//! requests is passed on to the next server. If there is none yet, such connections are left open in the care of our
//! keeper: whether they are closed or go on is for the manager to know.

use super::legacy::Legacy;
use super::succession::{self, Handed};
use crate::exit::Exit;
use crate::orders::{Order, channel_name};
use crate::suite::pulse_name;
use engine::Engine;
use engine::acceptor::Acceptor;
use lockfile::Lockfile;
use policy::Time;
use proxy::Proxy;
use proxy::continuity::retire::{self, Retired};
use proxy::continuity::{Continuity, Resume};
use rustix::event::{PollFd, PollFlags, poll};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use supervisor::notify::Notifier;
use supervisor::signals::{SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, Signals};
use supervisor::{clock, fd_pass};

/// Descriptors that what others leave to a server that serves doesn't take.
const SPARE_FDS: usize = 8;
/// Until the full queue of the manager is tried again.
const SAY_REST: Duration = Duration::from_millis(5);

/// Everything that a serving server consists of.
pub struct Duty<'a> {
    pub(super) signals: Signals,
    pub(super) channel: Option<OwnedFd>,
    pub(super) handed: Handed,
    pub(super) acceptor: Acceptor,
    pub(super) engine: Engine,
    pub(super) proxy: Arc<Proxy>,
    pub(super) legacy: Option<(Arc<Continuity>, Legacy)>,
    pub(super) lock: Lockfile,
    /// Duplicates, for a manager that has lost them.
    pub(super) listeners: Vec<(String, OwnedFd)>,
    pub(super) notify: &'a Notifier,
    pub(super) drain: Duration,
    /// How often our supervisor wants to hear that we live, if it does, and when next.
    pub(super) watchdog: Option<(Duration, Time)>,
}

/// What ends the duty.
enum End {
    Signal,
    Retire(Option<OwnedFd>),
}

/// What reaches the one who passes connections on.
enum Passing {
    Connection(Box<Retired>),
    Heir(OwnedFd),
    NoMore,
}

impl Duty<'_> {
    /// Serves until the end.
    ///
    /// # Errors
    /// The lock can't be let go.
    pub fn run(mut self) -> anyhow::Result<Exit> {
        let mut sources = Vec::new();
        loop {
            let end = match self.wait(&mut sources) {
                None => continue,
                Some(end) => end,
            };
            let heir = match end {
                End::Signal => None,
                End::Retire(heir) => heir,
            };
            return self.end(heir);
        }
    }

    /// Waits for something to happen and deals with it.
    fn wait(&mut self, sources: &mut Vec<OwnedFd>) -> Option<End> {
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        fds.extend(sources.iter().map(|s| PollFd::new(s, PollFlags::IN)));
        fds.extend(self.channel.iter().map(|c| PollFd::new(c, PollFlags::IN)));
        let left = self.watchdog.map(|(_, next)| next.saturating_sub(clock::now()));
        // what the manager's queue had no room for
        let rest = (self.notify.say_later() > 0).then_some(SAY_REST);
        let left = [left, rest].into_iter().flatten().min().map(clock::timespec);
        match poll(&mut fds, left.as_ref()) {
            Err(rustix::io::Errno::INTR) => return None,
            Err(e) => {
                log::error!("event=poll-failed: {e}");
                return Some(End::Signal);
            }
            Ok(_) => {}
        }
        let ready: Vec<bool> = fds.iter().map(|f| !f.revents().is_empty()).collect();
        drop(fds);
        if let Some((every, next)) = &mut self.watchdog
            && clock::now() >= *next
        {
            *next = clock::now() + *every;
            let _ = self.notify.send("WATCHDOG=1");
        }
        let mut asked = false;
        for signal in self.signals.pending() {
            match signal {
                SIGTERM | SIGINT | SIGQUIT => {
                    log::info!("event=stop signal={signal}");
                    return Some(End::Signal);
                }
                SIGUSR1 | SIGUSR2 => log::info!("event=state acceptor={:?}", self.acceptor.stats()),
                // the manager reloads us by replacing us; this is its question who we are
                _ => asked = true,
            }
        }
        if asked {
            self.renew_channel();
            self.introduce();
            // what else is ready is looked at again: the channel is another one
            return None;
        }
        let heirs = sources.len();
        let mut n = 0;
        sources.retain(|source| {
            n += 1;
            !ready[n] || self.receive(source)
        });
        match ready.get(1 + heirs) {
            Some(true) => self.obey(sources),
            _ => None,
        }
    }

    /// A manager that has adopted us has no way to us: here is one.
    fn renew_channel(&mut self) {
        match fd_pass::pair() {
            Ok((theirs, ours)) => {
                let name = channel_name(std::process::id() as i32);
                self.notify.store_fds(&name, &[theirs.as_fd()]);
                self.channel = Some(ours);
            }
            Err(e) => log::warn!("event=introduce-failed: {e}"),
        }
    }

    /// A manager that has adopted us doesn't know all that we shall leave.
    fn introduce(&self) {
        let own = std::process::id() as i32;
        if let Some((_, legacy)) = &self.legacy {
            legacy.announce(self.notify);
        }
        self.notify.store_fds(&pulse_name(own), &[self.engine.pulse()]);
        for (name, fd) in &self.listeners {
            self.notify.store_fds(name, &[fd.as_fd()]);
        }
        // a manager's queue is shorter than some lists of addresses
        let _ = self.notify.barrier(super::ANNOUNCED);
    }

    /// One connection that another server passes on; false when there are no more.
    fn receive(&self, source: &OwnedFd) -> bool {
        let got = fd_pass::recv(source).and_then(|m| match m {
            Some((bytes, mut fds)) if fds.len() == 1 => Ok(Some((retire::message(&bytes)?, fds.remove(0)))),
            Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "not one fd")),
            None => Ok(None),
        });
        match got {
            Ok(Some((resume, fd))) => {
                self.adopt(fd, resume);
                true
            }
            Ok(None) => false,
            Err(e) => {
                log::warn!("event=pass-on-failed: {e}");
                false
            }
        }
    }

    fn adopt(&self, fd: OwnedFd, resume: Resume) {
        if let Some(continuity) = self.continuity() {
            continuity.resume(fd.as_raw_fd(), resume);
        }
        self.acceptor.adopt(fd);
    }

    fn continuity(&self) -> Option<&Continuity> {
        self.legacy.as_ref().map(|(c, _)| &**c)
    }

    fn obey(&mut self, sources: &mut Vec<OwnedFd>) -> Option<End> {
        let Some(channel) = &self.channel else { return None };
        let (order, mut fds, is_cut) = match Order::recv(channel) {
            Ok(Some(order)) => order,
            // the manager is dead; the next one finds us by our lock
            Ok(None) => {
                self.channel = None;
                return None;
            }
            Err(e) => {
                log::warn!("event=order-failed: {e}");
                return None;
            }
        };
        log::debug!("event=order order={order:?} fds={}", fds.len());
        match order {
            Order::Adopt => {
                if let Some(continuity) = self.continuity() {
                    // a manager that is dead may have offered them already; asked before new numbers are given out
                    let have = continuity.table().fds().filter_map(succession::number_of).collect();
                    let mut left = succession::collect(&succession::estates(fds), SPARE_FDS);
                    left.iter_mut().for_each(|l| l.forget(&have));
                    let taken = succession::take_over(left, continuity, self.notify);
                    taken.serve().into_iter().for_each(|fd| self.acceptor.adopt(fd));
                }
                self.notify.say_in_turn(&self.handed.settled());
            }
            Order::Queued => {
                let taken = self.handed.take(fds, is_cut);
                taken.into_iter().for_each(|fd| self.adopt(fd, Resume::default()));
                self.notify.say_in_turn(&self.handed.settled());
            }
            Order::Introduce => self.introduce(),
            Order::Hold => {
                self.acceptor.hold();
                self.notify.say("X_TRAFFIC_HELD=1");
            }
            Order::GoOn => {
                self.handed.end_series().into_iter().for_each(|short| self.notify.say_in_turn(&short));
                self.acceptor.go_on();
            }
            Order::Ping(n) => pong(self.notify, n),
            Order::Heir => sources.extend(fds.pop()),
            Order::Retire => return Some(End::Retire(fds.pop())),
            Order::Promote => log::warn!("event=order-ignored order={order:?}"),
        }
        None
    }

    /// The orderly end.
    fn end(mut self, heir: Option<OwnedFd>) -> anyhow::Result<Exit> {
        let Some((continuity, legacy)) = self.legacy.take() else {
            let _ = self.notify.send("STOPPING=1");
            self.acceptor.stop();
            let report = self.engine.shutdown(self.drain);
            self.proxy.close();
            log::info!("event=stopped drained={} cancelled={}", report.drained, report.cancelled);
            self.lock.close()?;
            return Ok(Exit::Done);
        };
        // first the lock and the listeners, so that the next one can serve while we finish
        self.acceptor.stop();
        self.lock.close()?;
        let (to, from) = mpsc::channel();
        if let Some(heir) = heir {
            let _ = to.send(Passing::Heir(heir));
        }
        self.notify.say(&format!("STOPPING=1\n{}\nX_TRAFFIC_RETIRING=1", self.handed.taken()));
        if let Some(channel) = self.channel.take() {
            // the heir may be named later; connections that are handed over now are the manager's still, which knows what we
            // have taken. This thread ends with the process
            let to = to.clone();
            std::thread::spawn(move || {
                while let Ok(Some((order, mut fds, _))) = Order::recv(&channel) {
                    if let (Order::Retire, Some(heir)) = (order, fds.pop()) {
                        let _ = to.send(Passing::Heir(heir));
                    }
                }
            });
        }
        let roll = legacy.roll();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let _signed = roll.and_then(super::legacy::sign);
            let _ = tell.send(pass_on(&from));
            // what ends its request now stays open until we are gone
            let _rest: Vec<Passing> = from.iter().collect();
        });
        let connections = to.clone();
        continuity
            .retirement()
            .begin(Box::new(move |r| drop(connections.send(Passing::Connection(Box::new(r))))));
        let drained = self.engine.drain(self.drain);
        let _ = to.send(Passing::NoMore);
        let (passed, parked) = told.recv().unwrap_or_default();
        log::info!("event=stopped drained={drained} passed_on={passed} left={}", parked.len());
        self.proxy.close();
        if drained && parked.is_empty() {
            self.engine.shutdown(Duration::ZERO);
            legacy.end();
        } else {
            continuity.table().ends_in_order();
            // our keeper has them; closed here they would be closed there, so they stay open until we are gone. What is in
            // progress is gone on with as after a death
            std::mem::forget((parked, to, legacy, self.engine));
        }
        Ok(Exit::Done)
    }
}

/// Answers a ping.
pub(super) fn pong(notify: &Notifier, n: u32) {
    let _ = notify.send(&format!("X_TRAFFIC_PONG={n}"));
}

/// Sends connections to the heir. Returns how many, and those for whom there was none.
fn pass_on(from: &mpsc::Receiver<Passing>) -> (usize, Vec<Retired>) {
    let (mut heir, mut parked, mut passed) = (None, Vec::new(), 0);
    for message in from {
        match message {
            Passing::Connection(r) => parked.push(*r),
            Passing::Heir(fd) => heir = Some(fd),
            Passing::NoMore => break,
        }
        let Some(to) = &heir else { continue };
        while let Some(r) = parked.pop() {
            let message = r.to_message();
            // until it is sent it is ours: were we killed while the heir doesn't listen, nobody would have it
            let sent = loop {
                r.pass_on();
                match fd_pass::try_send(to, &message, &[r.fd().as_fd()]) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => r.take_back(),
                    other => break other,
                }
                let _ = poll(&mut [PollFd::new(to, PollFlags::OUT)], None);
            };
            match sent {
                Ok(()) => passed += 1,
                Err(e) => {
                    log::warn!("event=pass-on-failed: {e}");
                    r.take_back();
                    parked.push(r);
                    heir = None;
                    break;
                }
            }
        }
    }
    (passed, parked)
}
