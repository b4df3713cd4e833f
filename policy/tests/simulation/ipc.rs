//! What processes share: the two locks, datagrams, heartbeats.

use crate::setup::Flaw;
use crate::world::{Ev, Message, Of, Pid, Uid, Ward, World};

impl World {
    // ---- locks ----

    /// `fcntl(F_SETLK)`.
    pub fn take(&mut self, me: Uid, lock: usize) -> bool {
        if self.alive(me) && self.locks[lock].is_none() {
            self.locks[lock] = Some((me, self.procs[me].pid));
        }
        self.locks[lock].is_some_and(|(holder, _)| holder == me)
    }

    pub fn free_lock(&mut self, lock: usize, uid: Uid) {
        if self.locks[lock].is_some_and(|(holder, _)| holder == uid) {
            self.locks[lock] = None;
            for waiting in self.living() {
                self.wake(waiting);
            }
        }
    }

    /// `fcntl(F_GETLK)`: a number, which may belong to somebody else by now.
    pub fn holder(&self, lock: usize) -> Option<Pid> {
        self.locks[lock].map(|(_, pid)| pid)
    }

    pub fn holds(&self, uid: Uid, lock: usize) -> bool {
        self.locks[lock].is_some_and(|(holder, _)| holder == uid)
    }

    /// `Ward::of_lock`. `Err`: its holder is gone.
    pub fn ward_of_lock(&mut self, me: Uid, lock: usize, generation: u64) -> Result<Option<Ward>, ()> {
        let Some(before) = self.holder(lock) else { return Ok(None) };
        self.gap(me);
        let uid = self.pidfd(before).ok_or(())?;
        self.gap(me);
        let same = self.holder(lock) == Some(before) || self.setup.has(Flaw::NoSecondLook);
        let sure = self.setup.has(Flaw::BelievePidOfDead)
            || self.setup.has(Flaw::NoSecondLook)
            || self.holds(uid, lock);
        Ok((same && sure).then_some(Ward { uid, pid: before, generation }))
    }

    // ---- sockets ----

    pub fn send(&mut self, from: Pid, to: Uid, message: Message) {
        if !self.has_ended(to) {
            self.procs[to].inbox.push_back((from, message));
            self.wake(to);
        }
    }

    /// A datagram to cop's or the manager's socket: lost if nobody has bound it.
    pub fn notify(&mut self, me: Uid, to: Option<Uid>, message: Message) {
        if let (true, Some(to)) = (self.alive(me), to) {
            if message == Message::Ready && self.procs[me].ready.is_none() {
                (self.procs[me].ready, self.procs[me].disturbed) = (Some(self.now), self.now);
            }
            self.send(self.procs[me].pid, to, message);
        } else if message == Message::Ready && self.alive(me) && self.procs[me].ready.is_none() {
            (self.procs[me].ready, self.procs[me].disturbed) = (Some(self.now), self.now);
        }
    }

    /// Answers a heartbeat, if the faults allow it.
    pub fn answer(&mut self, me: Uid, cop: Uid, of: Of, fetch: u64) {
        let latency = self.faults.latency(&mut self.rng, self.setup.beat.timeout);
        match latency {
            Some(wait) => {
                let by = Some(self.procs[me].pid);
                if wait > self.setup.beat.timeout / 4 {
                    self.procs[me].disturbed = self.now + wait;
                }
                self.at(self.now + wait, Ev::Reply { cop, of, fetch, by });
            }
            None => self.procs[me].disturbed = self.now + self.setup.beat.timeout,
        }
    }
}
