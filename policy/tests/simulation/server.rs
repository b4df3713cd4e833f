//! A server as `bins/src/server/mod.rs`: it starts, waits for the word, takes the lock, serves, drains.

use crate::setup::{Flaw, LOCK_PATIENCE, MS};
use crate::world::{Message, Of, SERVER_LOCK, Uid, World};
use policy::Time;
use std::time::Duration;

/// What becomes of it by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Good,
    /// It ends with this code before it is ready.
    Exits(i32),
    HangsAtStart,
    /// It crashes so long after it was ready.
    Crashes(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Boot { until: Time },
    Standby,
    Locking { until: Time },
    Serving { crash: Option<Time> },
    Draining { until: Time },
}

pub struct Server {
    pub fate: Fate,
    pub at: At,
    boot: Duration,
}

impl Server {
    pub fn new(fate: Fate, boot: Duration) -> Server {
        Server { fate, boot, at: At::Boot { until: Time::ZERO } }
    }

    pub fn accepts(&self) -> bool {
        matches!(self.at, At::Serving { .. })
    }

    pub fn run(&mut self, w: &mut World, me: Uid) {
        loop {
            match self.at {
                At::Boot { until } if until.is_zero() => self.at = At::Boot { until: w.now + self.boot },
                At::Boot { until } if w.now < until => return w.wake_at(me, until),
                At::Boot { .. } => {
                    match self.fate {
                        Fate::Exits(code) => return self.fails(w, me, code),
                        Fate::HangsAtStart => return w.hang(me),
                        _ => {}
                    }
                    w.notify(me, w.manager, Message::Standby);
                    self.at = At::Standby;
                }
                At::Standby => match w.procs[me].inbox.pop_front().map(|(_, m)| m) {
                    _ if w.procs[me].term => return w.exit(me, 0),
                    Some(Message::Promote) => {
                        self.at = At::Locking { until: w.now + LOCK_PATIENCE.min(w.setup.grace) }
                    }
                    Some(Message::ChannelClosed) => return w.exit(me, 0),
                    Some(_) => {}
                    None => return,
                },
                At::Locking { until } => {
                    let early = w.setup.has(Flaw::AcceptBeforeLock);
                    if !w.take(me, SERVER_LOCK) && !early {
                        match w.now >= until {
                            true => return self.fails(w, me, 75),
                            false => return w.wake_at(me, until),
                        }
                    }
                    let crash = match self.fate {
                        Fate::Crashes(after) => Some(w.now + after),
                        _ => None,
                    };
                    self.at = At::Serving { crash };
                    w.note("serves", w.procs[me].pid, 0);
                    w.notify(me, w.manager, Message::Ready);
                }
                At::Serving { crash } => {
                    if crash.is_some_and(|t| w.now >= t) {
                        return w.exit(me, 70);
                    }
                    if w.procs[me].term {
                        let drain = w.rng.span(MS(1), w.setup.drain.max(MS(2)));
                        self.at = At::Draining { until: w.now + drain };
                        continue;
                    }
                    w.procs[me].inbox.clear();
                    while let Some((cop, fetch)) = w.backlog.pop_front() {
                        w.answer(me, cop, Of::Server, fetch);
                    }
                    return crash.into_iter().for_each(|t| w.wake_at(me, t));
                }
                At::Draining { until } if w.now < until => return w.wake_at(me, until),
                At::Draining { .. } => return w.exit(me, 0),
            }
        }
    }

    fn fails(&self, w: &mut World, me: Uid, code: i32) {
        w.notify(me, w.manager, Message::Exit(code));
        w.exit(me, code);
    }
}
