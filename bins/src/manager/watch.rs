//! Watching the server from here, in two ways that need no client's port: its event threads through the pulse page, and
//! its main thread by a ping over the channel.
//!
//! While a cop asks for heartbeats, it also watches the server (through a real port), and each of its questions is our
//! occasion to look at the page; nothing else wakes us. When no cop has asked for two intervals, the pings begin: a
//! server that hangs is then replaced all the same. A standby is pinged in any case, now and then.

use super::keep::Keep;
use crate::config::Config;
use crate::orders::Order;
use crate::suite::pulse_name;
use engine::time::sleep;
use policy::Time;
use policy::child::{Event, State};
use policy::heartbeat::{Action, Heartbeat, Limits};
use policy::watchdog::Watchdog;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use supervisor::{clock, pulse};

/// A standby is asked so many times less often than a server.
const RARELY: u32 = 10;

/// What is watched.
pub struct Watch {
    /// Pulse pages by server.
    pages: Vec<(i32, OwnedFd)>,
    threads: policy::pulse::Watch,
    /// Whose threads those are.
    of: i32,
    looked: Time,
    cop_asked: Time,
    /// When the server has answered cop.
    answered_cop: Option<Time>,
    server: Ping,
    standby: Ping,
    /// That of a server which isn't ours.
    watchdog: Option<Watchdog>,
}

/// A heartbeat over a channel.
struct Ping {
    machine: Heartbeat,
    /// Whom it asks; 0 for nobody.
    pid: i32,
    /// The last question.
    sent: u64,
}

impl Ping {
    /// Asks that process from here on, nobody if it is 0.
    fn of(&mut self, pid: i32, now: Time) {
        if pid == std::mem::replace(&mut self.pid, pid) {
            return;
        }
        match pid {
            0 => self.machine.stop(),
            _ => self.machine.start(now),
        }
    }

    fn tick(&mut self, now: Time) -> Action {
        let action = self.machine.tick(now);
        if let Action::Probe(generation) = action {
            self.sent = generation;
        }
        action
    }
}

impl Watch {
    /// Nobody yet. `pages`: what an earlier manager was given.
    pub fn new(config: &Config, pages: Vec<(i32, OwnedFd)>, now: Time) -> Watch {
        let m = &config.manager;
        let limits = Limits { interval: m.interval, timeout: m.timeout, failures: m.failures };
        let rarely = Limits { interval: m.interval * RARELY, ..limits };
        Watch {
            pages,
            threads: policy::pulse::Watch::new(m.stall, m.interval),
            of: 0,
            looked: now,
            cop_asked: now,
            answered_cop: None,
            server: Ping { machine: Heartbeat::new(limits), pid: 0, sent: 0 },
            standby: Ping { machine: Heartbeat::new(rarely), pid: 0, sent: 0 },
            watchdog: None,
        }
    }
}

impl Keep {
    /// The watch, for as long as we live.
    pub(super) async fn watch(self: Rc<Self>) {
        loop {
            let now = clock::now();
            let next = self.watch_deadline(now);
            sleep(next.saturating_sub(now).max(Duration::from_millis(1))).await;
            self.watch_tick();
        }
    }

    /// Other numbers: the count begins anew.
    pub(super) fn renew_watch(&self) {
        let pages = std::mem::take(&mut self.watch.borrow_mut().pages);
        let cop_asked = self.watch.borrow().cop_asked;
        let watchdog = self.watch.borrow_mut().watchdog.take();
        let new = Watch { cop_asked, watchdog, ..Watch::new(&self.config.borrow(), pages, clock::now()) };
        *self.watch.borrow_mut() = new;
    }

    /// A server has given us its pulse page; cop gets it too.
    pub(super) fn add_page(&self, server: i32, page: OwnedFd) {
        self.upstream.store_fds(&pulse_name(server), &[page.as_fd()]);
        let mut w = self.watch.borrow_mut();
        w.pages.retain(|(pid, _)| *pid != server);
        w.pages.push((server, page));
    }

    /// Does that server live, though it accepts nobody more for now?
    pub(super) fn says_it_is_full(&self, server: i32) -> bool {
        let pages = &self.watch.borrow().pages;
        pages.iter().any(|(pid, page)| *pid == server && supervisor::pulse::is_full(page, clock::now()))
    }

    /// A server is gone.
    pub(super) fn forget_page(&self, server: i32) {
        self.upstream.forget_fds(&pulse_name(server));
        self.watch.borrow_mut().pages.retain(|(pid, _)| *pid != server);
    }

    /// Only these servers are left of those that an earlier manager had.
    pub(super) fn forget_pages_but(&self, servers: &[i32]) {
        let pages = std::mem::take(&mut self.watch.borrow_mut().pages);
        let (keep, others): (Vec<_>, Vec<_>) = pages.into_iter().partition(|(pid, _)| servers.contains(pid));
        others.iter().for_each(|(pid, _)| self.upstream.forget_fds(&pulse_name(*pid)));
        self.watch.borrow_mut().pages = keep;
    }

    /// Has a new cop keep the pages.
    pub(super) fn store_pages(&self, cop: &supervisor::notify::Notifier) {
        for (pid, page) in &self.watch.borrow().pages {
            cop.store_fds(&pulse_name(*pid), &[page.as_fd()]);
        }
    }

    /// A cop has asked for our heartbeat: it watches the server too.
    pub(super) fn cop_asks(self: &Rc<Self>) {
        self.watch.borrow_mut().cop_asked = clock::now();
        self.look_at_threads();
    }

    /// The server has answered cop so long ago.
    pub(super) fn server_answered(&self, ago: Duration) {
        self.watch.borrow_mut().answered_cop = clock::now().checked_sub(ago);
    }

    /// When the server has answered anybody last, for status.
    pub(super) fn last_answered(&self) -> Option<Time> {
        let w = self.watch.borrow();
        w.answered_cop.max(w.server.machine.last_good()).filter(|at| *at >= self.server.borrow().since)
    }

    /// Cop's last question, for status.
    pub(super) fn last_asked(&self) -> Option<Time> {
        let asked = self.watch.borrow().cop_asked;
        (asked > self.started).then_some(asked)
    }

    /// The answer to a ping.
    pub(super) fn pong(self: &Rc<Self>, pid: i32, n: i32) {
        let mut w = self.watch.borrow_mut();
        let w = &mut *w;
        for ping in [&mut w.server, &mut w.standby] {
            if ping.pid == pid && i64::from(number(ping.sent)) == i64::from(n) {
                // a good answer is never a verdict
                let _ = ping.machine.answered(ping.sent, true, clock::now());
            }
        }
    }

    fn watch_deadline(&self, now: Time) -> Time {
        let interval = self.config.borrow().manager.interval;
        let w = self.watch.borrow();
        let next = match self.is_alone(now) {
            true => w.looked + interval,
            false => w.cop_asked + 2 * interval,
        };
        let pings = [&w.server, &w.standby].map(|p| p.machine.deadline());
        pings.into_iter().flatten().fold(next, Time::min)
    }

    /// No cop has asked for two intervals.
    fn is_alone(&self, now: Time) -> bool {
        now.saturating_sub(self.watch.borrow().cop_asked) >= 2 * self.config.borrow().manager.interval
    }

    fn watch_tick(self: &Rc<Self>) {
        // an answer may lie in the socket
        self.listen();
        let now = clock::now();
        let alone = self.is_alone(now);
        if alone {
            // else with each heartbeat of cop's
            self.mend_sockets();
            self.look_at_threads();
        }
        let server = {
            let s = self.server.borrow();
            let ready = matches!(s.machine.state(), State::Ready { .. }) && s.channel.is_some();
            s.ward.as_ref().filter(|_| ready && alone).map_or(0, |w| w.pid)
        };
        let standby = {
            let s = self.standby.borrow();
            let ready = matches!(s.machine.state(), State::Ready { .. });
            s.ward.as_ref().filter(|_| ready).map_or(0, |w| w.pid)
        };
        let (of_server, of_standby) = {
            let mut w = self.watch.borrow_mut();
            w.server.of(server, now);
            w.standby.of(standby, now);
            (w.server.tick(now), w.standby.tick(now))
        };
        if let Action::Probe(generation) = of_server
            && let Some(channel) = &self.server.borrow().channel
        {
            // a full channel is an answer that doesn't come
            let _ = Order::Ping(number(generation)).send(channel, &[]);
        }
        if let Action::Probe(generation) = of_standby {
            self.standby.borrow().order(Order::Ping(number(generation)));
        }
        if let Action::Verdict { misses } = of_server {
            self.server_hangs(&format!("it didn't answer {misses} pings in a row"));
        }
        if let Action::Verdict { misses } = of_standby {
            let generation = self.standby.borrow().machine.generation();
            self.picture(standby, "standby", &format!("it didn't answer {misses} pings in a row"));
            self.feed_standby(Event::Unhealthy(generation));
        }
    }

    /// How often a server that isn't ours has to say that it lives, if it has to.
    pub(super) fn watchdog_limit(&self, config: &Config) -> Option<Duration> {
        Some(config.server.watchdog).filter(|limit| !limit.is_zero() && !config.server.is_ours())
    }

    /// A server that isn't ours serves: from here on it has to say that it lives.
    pub(super) fn begin_watchdog(self: &Rc<Self>) {
        let limit = self.watchdog_limit(&self.config.borrow());
        let generation = self.server.borrow().machine.generation();
        self.watch.borrow_mut().watchdog = limit.map(|limit| Watchdog::new(limit, clock::now()));
        let (Some(limit), keep) = (limit, self.clone()) else { return };
        drop(engine::spawn(async move {
            loop {
                let next = match &keep.watch.borrow().watchdog {
                    Some(w) => w.deadline(),
                    None => return,
                };
                sleep(next.saturating_sub(clock::now())).await;
                // what it said may lie in the socket
                keep.listen();
                if keep.server.borrow().machine.generation() != generation || !keep.is_ready() {
                    return;
                }
                let starved = {
                    let mut w = keep.watch.borrow_mut();
                    w.watchdog.as_mut().is_some_and(|w| w.is_starved(clock::now()))
                };
                if starved {
                    return keep.server_hangs(&format!("it hasn't said WATCHDOG=1 for {limit:?}"));
                }
            }
        }));
    }

    /// The server has said that it lives.
    pub(super) fn fed(&self) {
        if let Some(w) = &mut self.watch.borrow_mut().watchdog {
            w.feed(clock::now());
        }
    }

    /// Looks at the server's pulse page.
    fn look_at_threads(self: &Rc<Self>) {
        let now = clock::now();
        self.watch.borrow_mut().looked = now;
        let Some(server) = self.server_pid().filter(|_| self.is_ready()) else { return };
        let stall = {
            let mut w = self.watch.borrow_mut();
            let w = &mut *w;
            if server != std::mem::replace(&mut w.of, server) {
                let m = &self.config.borrow().manager;
                w.threads = policy::pulse::Watch::new(m.stall, m.interval);
            }
            let Some((_, page)) = w.pages.iter().find(|(pid, _)| *pid == server) else { return };
            match pulse::read(page) {
                Ok(readings) => w.threads.look(&readings, now, |tid| pulse::processor(server, tid)),
                Err(e) => {
                    log::warn!("event=pulse-failed pid={server}: {e}");
                    w.pages.retain(|(pid, _)| *pid != server);
                    None
                }
            }
        };
        if let Some(stall) = stall {
            self.server_hangs(&stall.to_string());
        }
    }

    /// The verdict: a picture for those who ask why, and the ladder.
    fn server_hangs(self: &Rc<Self>, why: &str) {
        let (pid, generation) = (self.server_pid().unwrap_or(0), self.server.borrow().machine.generation());
        self.picture(pid, "server", why);
        self.incidents.borrow_mut().noticed_by(why);
        self.watch.borrow_mut().server.of(0, clock::now());
        self.feed(Event::Unhealthy(generation));
    }

    fn picture(&self, pid: i32, of: &str, why: &str) {
        log::warn!("event=hang of={of} pid={pid}: {why}");
        crate::ward::picture(&self.config.borrow().suite, pid, why);
    }
}

/// The number that a ping carries.
fn number(generation: u64) -> u32 {
    (generation & 0x7fff_ffff) as u32
}
