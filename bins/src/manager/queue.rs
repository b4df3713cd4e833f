//! The connection queue: while no server serves, the manager accepts, and hands over in the order of arrival.
//!
//! It is bounded by `manager.queue.max_connections` and by our limit of open files, of which it leaves some for everything
//! else; beyond that, and in the first moments of an outage, connections wait in the kernel's backlog. One that has waited for
//! `max_wait` is told 503 and when to come again. How they come to the server: [`super::hand_over`].

use super::hand_over::Room;
use super::keep::Keep;
use crate::orders::Order;
use engine::net::{Listener, Stream};
use policy::Time;
use proxy::rt::Io;
use proxy::serve;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;
use supervisor::{clock, fds, tcp};

/// A take-over is over before this: only what lasts longer is worth accepting for.
const GAP: Duration = Duration::from_millis(50);
/// How often waiting clients are looked at.
pub(super) const SWEEP: Duration = Duration::from_millis(500);
/// So many descriptors are left for commands, heartbeats, servers and what they leave; a quarter, if we may have few.
const RESERVE: usize = 64;

/// What a client is told that has waited too long.
const SORRY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Type: text/plain\r\n\
    Content-Length: 37\r\nConnection: close\r\n\r\n503: the service is being restarted.\n";

/// The queue.
#[derive(Default)]
pub struct Queue {
    pub(super) waiting: VecDeque<(OwnedFd, Time)>,
    /// Handed over; the server hasn't said yet that it has them.
    pub(super) handed: VecDeque<(OwnedFd, Time)>,
    pub(super) room: Room,
    pub(super) accepting: bool,
    /// Accept loops of an earlier time end when they see another number.
    epoch: u64,
    sweeping: bool,
    /// It was said that there is no room for more.
    is_full: bool,
    wakers: Vec<Waker>,
    paused: Option<Option<Duration>>,
    held: bool,
    total: u64,
    expired: u64,
    gone: u64,
    full: u64,
    pub(super) longest: Duration,
    pub(super) since_mark: u64,
    pub(super) wait_since_mark: Duration,
}

impl Queue {
    /// For status and metrics.
    pub fn status(&self, now: Time) -> Value {
        let oldest = self.waiting.front().map_or(Duration::ZERO, |(_, since)| now.saturating_sub(*since));
        json!({
            "depth": self.waiting.len(),
            "oldest_ms": oldest.as_millis() as u64,
            "longest_wait_ms": self.longest.as_millis() as u64,
            "total": self.total,
            "expired": self.expired,
            "gone": self.gone,
            "full": self.full,
            "paused": self.paused.is_some(),
        })
    }

    /// Has a server been handed something that it hasn't said to have?
    pub fn is_handing_over(&self) -> bool {
        !self.handed.is_empty()
    }

    /// What an incident wants to know: how many were handed over since the last time, and the longest wait among them.
    pub(super) fn take_marks(&mut self) -> (u64, Duration) {
        (std::mem::take(&mut self.since_mark), std::mem::take(&mut self.wait_since_mark))
    }

    /// As the last manager has left it.
    pub(super) fn begin_paused(&mut self, paused: Option<Option<Duration>>) {
        self.paused = paused;
    }

    /// Paused by command; for how long clients are to wait at most, if that was said.
    pub fn paused_for(&self) -> Option<Option<Duration>> {
        self.paused
    }

    /// Is serving paused by command?
    pub fn is_paused(&self) -> bool {
        self.paused.is_some()
    }
}

impl Keep {
    /// No server serves: if that lasts, the manager accepts.
    pub(super) fn watch_gap(self: &Rc<Self>) {
        let keep = self.clone();
        drop(engine::spawn(async move {
            engine::time::sleep(GAP).await;
            if !keep.is_ready() {
                keep.begin_queueing();
            }
        }));
    }

    /// Accepts for a server that is to come. One that isn't ours couldn't be given what was accepted.
    pub(super) fn begin_queueing(self: &Rc<Self>) {
        let foreign = !self.config.borrow().server.is_ours();
        if (foreign && !self.has_given_up()) || self.is_stopping() {
            return;
        }
        let epoch = {
            let mut q = self.queue.borrow_mut();
            if std::mem::replace(&mut q.accepting, true) {
                return;
            }
            q.epoch += 1;
            q.is_full = false;
            q.epoch
        };
        log::info!("event=queue-begin");
        for l in self.listeners.borrow().iter() {
            match l.fd.try_clone().and_then(Listener::from_fd) {
                Ok(listener) => drop(engine::spawn(accept(self.clone(), listener, epoch))),
                Err(e) => log::error!("event=queue-failed listen={}: {e}", l.bound),
            }
        }
        self.begin_sweep();
    }

    /// From now on, who waits is looked at.
    pub(super) fn begin_sweep(self: &Rc<Self>) {
        if !std::mem::replace(&mut self.queue.borrow_mut().sweeping, true) {
            drop(engine::spawn(sweep(self.clone())));
        }
    }

    /// Accepts no more; what waits stays.
    pub(super) fn end_queueing(&self) {
        let mut q = self.queue.borrow_mut();
        if std::mem::replace(&mut q.accepting, false) {
            log::info!("event=queue-end waiting={} total={}", q.waiting.len(), q.total);
        }
        q.epoch += 1;
        q.wakers.drain(..).for_each(Waker::wake);
    }

    /// Nobody comes any more: what waits is told so.
    pub(super) fn end_queue(&self) {
        self.end_queueing();
        let all: Vec<_> = self.queue.borrow_mut().waiting.drain(..).collect();
        all.into_iter().for_each(|(fd, _)| refuse(fd));
    }

    /// Holds new connections here, whatever the server could do; `max_wait` for as long as it is paused.
    pub fn pause(self: &Rc<Self>, max_wait: Option<Duration>) {
        log::info!("event=pause");
        {
            let mut q = self.queue.borrow_mut();
            (q.paused, q.held) = (Some(max_wait), false);
        }
        if let Some(channel) = &self.server.borrow().channel {
            let _ = Order::Hold.send(channel, &[]);
        }
        // the heartbeat goes through the port, and would wait with everybody else
        self.tell_server();
        self.begin_queueing();
        self.remember();
    }

    /// The server has confirmed that it accepts nothing.
    pub(super) fn held(&self) {
        self.queue.borrow_mut().held = true;
        self.wake_changes();
    }

    /// Waits for that.
    ///
    /// # Errors
    /// It doesn't say so in time.
    pub async fn wait_held(&self) -> Result<(), String> {
        let held = poll_fn(|cx| match self.queue.borrow().held {
            true => Poll::Ready(()),
            false => {
                self.changes.borrow_mut().push(cx.waker().clone());
                Poll::Pending
            }
        });
        let waited = engine::time::timeout(Duration::from_secs(2), held).await;
        waited.map_err(|_| "the server hasn't confirmed that it accepts nothing".to_owned())
    }

    /// Ends [`Keep::pause`]. Returns how many connections had waited.
    pub fn go_on(self: &Rc<Self>) -> usize {
        let waited = {
            let mut q = self.queue.borrow_mut();
            q.paused = None;
            q.waiting.len()
        };
        log::info!("event=resume waiting={waited}");
        self.remember();
        if self.is_ready() {
            self.end_queueing();
            // who has waited since before a manager died comes first
            self.offer_rest();
            self.queue.borrow_mut().room = Room::default();
            self.hand_over_rest();
            if let Some(channel) = &self.server.borrow().channel {
                let _ = Order::GoOn.send(channel, &[]);
            }
            self.tell_server();
        }
        waited
    }

    fn max_wait(&self) -> Duration {
        if self.has_given_up() {
            return Duration::ZERO;
        }
        let configured = self.config.borrow().manager.queue.max_wait;
        self.queue.borrow().paused.flatten().unwrap_or(configured)
    }
}

/// Accepts from one listener until the queueing ends.
async fn accept(keep: Rc<Keep>, listener: Listener, epoch: u64) {
    let max = keep.config.borrow().manager.queue.max_connections;
    loop {
        let accepted = poll_fn(|cx| {
            let mut q = keep.queue.borrow_mut();
            if q.epoch != epoch {
                return Poll::Ready(None);
            }
            // woken by the end of the queueing, and by the sweep that makes room
            q.wakers.push(cx.waker().clone());
            if q.waiting.len() >= max || !has_room(keep.notify.as_fd()) {
                q.full += 1;
                if !std::mem::replace(&mut q.is_full, true) {
                    log::warn!(
                        "event=queue-full waiting={}: more wait in the kernel's backlog",
                        q.waiting.len()
                    );
                }
                return Poll::Pending;
            }
            listener.poll_accept_fd(cx).map(Some)
        });
        match accepted.await {
            None => return,
            Some(Ok((fd, _))) => {
                let mut q = keep.queue.borrow_mut();
                q.waiting.push_back((fd, clock::now()));
                q.total += 1;
            }
            Some(Err(e)) => {
                // out of fds: the kernel's backlog keeps who comes
                log::warn!("event=queue-accept-failed: {e}");
                engine::time::sleep(SWEEP).await;
            }
        }
    }
}

/// Is there a descriptor for one more, beside those that are left for everything else?
fn has_room(any: BorrowedFd<'_>) -> bool {
    let left = fds::left(any);
    left > RESERVE || left > fds::limit() / 4
}

/// Looks at those who wait: who has waited too long is told, who has gone is dropped.
async fn sweep(keep: Rc<Keep>) {
    loop {
        engine::time::sleep(SWEEP).await;
        let (now, max_wait) = (clock::now(), keep.max_wait());
        let mut expired = Vec::new();
        {
            let mut q = keep.queue.borrow_mut();
            while q.waiting.front().is_some_and(|(_, since)| now.saturating_sub(*since) >= max_wait) {
                expired.extend(q.waiting.pop_front());
                q.expired += 1;
            }
            let before = q.waiting.len();
            q.waiting.retain(|(fd, _)| !has_gone(fd));
            q.gone += (before - q.waiting.len()) as u64;
            q.wakers.drain(..).for_each(Waker::wake);
        }
        if !expired.is_empty() {
            log::warn!("event=queue-expired connections={} max_wait={max_wait:?}", expired.len());
        }
        expired.into_iter().for_each(|(fd, _)| refuse(fd));
        let mut q = keep.queue.borrow_mut();
        if q.waiting.is_empty() && !q.accepting {
            q.sweeping = false;
            return;
        }
    }
}

/// Has the client given up? One that has only said that it will say no more may still wait for its answer.
fn has_gone(fd: &OwnedFd) -> bool {
    match tcp::facts(fd) {
        Ok(Some(f)) => !f.alive || (f.half_closed && f.unread == 0),
        Ok(None) => false,
        Err(_) => true,
    }
}

/// Tells a client that nobody serves, and ends the connection without cutting the answer off.
fn refuse(fd: OwnedFd) {
    drop(engine::spawn(async move {
        if let Ok(stream) = Stream::from_fd(fd) {
            serve::last_words(Io::new(stream), SORRY).await;
        }
    }));
}
