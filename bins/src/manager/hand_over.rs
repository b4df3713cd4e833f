//! Handing over who has waited to the server, in order, and no more than it has room for: its limit of open files may be low.
//!
//! ```text
//! manager -> server   QUEUED, QUEUED, ... and PROMOTE or GO-ON: a series, of which one is under way at a time
//! server -> manager   TAKEN=n             it has all up to the connection of that number
//! server -> manager   SHORT=1, TAKEN=n    and there was no room for the rest of the series
//! ```
//!
//! What has been handed over is kept in the queue until the server says that it has it. What it had no room for waits again, in its
//! old place, and is handed over again when somebody else may have gone: in short series, which grow as long as they are taken whole.

use super::keep::Keep;
use super::queue::SWEEP;
use crate::orders::Order;
use crate::server::succession::number;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use supervisor::clock;
use supervisor::notify::MAX_FDS;

/// Until a server that had room for some is tried again; one that had none is left alone for longer each time, up to [`SWEEP`].
const SOON: Duration = Duration::from_millis(20);

/// How much room the server had, as far as is known.
#[derive(Default)]
pub struct Room {
    /// No series is to be longer than this. `None`: it had room for everything.
    most: Option<usize>,
    /// How long the last one was.
    series: usize,
    /// The last pause.
    pause: Duration,
}

impl Keep {
    /// Hands over what waits, as a series that the next order ends: PROMOTE, to a server that is to serve from now on.
    pub(super) fn hand_over_first(&self, channel: &OwnedFd) {
        self.queue.borrow_mut().room = Room::default();
        self.hand_over(channel);
    }

    /// Hands over what waits to the server that serves, if the last series is done with.
    pub(super) fn hand_over_rest(self: &Rc<Self>) {
        let is_due = {
            let q = self.queue.borrow();
            !q.accepting && !q.is_paused() && !q.waiting.is_empty() && !q.is_handing_over()
        };
        let server = self.server.borrow();
        let Some(channel) = server.channel.as_ref().filter(|_| is_due && self.is_ready()) else { return };
        let is_sent = self.hand_over(channel);
        let _ = Order::GoOn.send(channel, &[]);
        if !is_sent {
            self.hand_over_after(SWEEP);
        }
    }

    /// False: not everything that there was room for could be sent.
    fn hand_over(&self, channel: &OwnedFd) -> bool {
        let mut q = self.queue.borrow_mut();
        let now = clock::now();
        let mut left = q.room.most.unwrap_or(usize::MAX).min(q.waiting.len());
        q.room.series = left;
        while left > 0 {
            let n = left.min(MAX_FDS);
            let batch: Vec<_> = q.waiting.drain(..n).collect();
            let fds: Vec<_> = batch.iter().map(|(fd, _)| fd.as_fd()).collect();
            if let Err(e) = Order::Queued.send(channel, &fds) {
                log::warn!("event=hand-over-failed: {e}");
                batch.into_iter().rev().for_each(|c| q.waiting.push_front(c));
                q.room.series -= left;
                return false;
            }
            let longest = batch.first().map_or(Duration::ZERO, |(_, since)| now.saturating_sub(*since));
            q.longest = q.longest.max(longest);
            q.wait_since_mark = q.wait_since_mark.max(longest);
            q.since_mark += batch.len() as u64;
            q.handed.extend(batch);
            left -= n;
        }
        true
    }

    fn hand_over_after(self: &Rc<Self>, pause: Duration) {
        let keep = self.clone();
        drop(engine::spawn(async move {
            engine::time::sleep(pause).await;
            keep.hand_over_rest();
        }));
    }

    /// The server has what it was handed, up to the connection of that number.
    pub(super) fn taken(&self, last: u64) {
        let mut q = self.queue.borrow_mut();
        let Some(at) = q.handed.iter().position(|(fd, _)| number(fd) == Some(last)) else { return };
        q.handed.drain(..=at);
        if q.handed.is_empty() {
            // as long as the longest message: there is room
            q.room.most = q.room.most.map(|most| most * 2).filter(|most| *most < MAX_FDS);
            q.room.pause = Duration::ZERO;
        }
    }

    /// The server, one of a version that doesn't say up to which, has what it was handed.
    pub(super) fn all_taken(&self) {
        self.queue.borrow_mut().handed.clear();
    }

    /// The server had no room for those of the series that it hasn't taken.
    pub(super) fn was_short(self: &Rc<Self>) {
        let pause = {
            let mut q = self.queue.borrow_mut();
            if q.handed.is_empty() {
                // they were another manager's
                return;
            }
            let taken = q.room.series.saturating_sub(q.handed.len());
            if q.room.most.replace(taken.max(1)).is_none() {
                let left = q.handed.len() + q.waiting.len();
                log::warn!(
                    "event=hand-over-short taken={taken} waiting={left}: they are handed over as there is room"
                );
            }
            q.room.pause = if taken > 0 { SOON } else { (q.room.pause * 2).clamp(SOON, SWEEP) };
            q.room.pause
        };
        self.hand_over_again();
        self.offer_rest();
        self.hand_over_after(pause);
    }

    /// The server has ended, or retires, or had no room, and hasn't taken them: they wait again, in their old places.
    pub(super) fn hand_over_again(self: &Rc<Self>) {
        {
            let mut q = self.queue.borrow_mut();
            if q.handed.is_empty() {
                return;
            }
            q.since_mark = q.since_mark.saturating_sub(q.handed.len() as u64);
            while let Some(c) = q.handed.pop_back() {
                q.waiting.push_front(c);
            }
        }
        self.begin_sweep();
    }

    /// A server serves: it gets who has waited, unless serving is paused.
    pub(super) fn serves_again(self: &Rc<Self>) {
        if !self.queue.borrow().is_paused() {
            self.end_queueing();
            self.hand_over_rest();
        }
    }
}
