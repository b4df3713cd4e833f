//! Keeping a server on the listeners: the child machine of `policy`, with hands.
//!
//! Everything here is synchronous and short; the tasks of the manager call it when something happened. After each event
//! the one timer is set to the machine's next deadline.

use super::estate::Estates;
use super::incident::Incidents;
use super::jobs::Jobs;
use super::listeners::Listener;
use super::queue::Queue;
use super::replace::Replace;
use super::standby::Standby;
use super::watch::Watch;
use crate::cli::Common;
use crate::config::{Config, OnManagerDeath};
use crate::exit::Exit;
use crate::orders::{CHANNEL, Order, channel_name};
use crate::privileges;
use crate::server::legacy::Legacy;
use crate::suite::{self, Runtime};
use crate::sweep::Sweep;
use crate::ward::Ward;
use engine::io::Async;
use policy::Time;
use policy::child::{Action, Child, Event, Limits, State};
use policy::ladder::Rungs;
use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::future::poll_fn;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;
use supervisor::clock;
use supervisor::fd_pass;
use supervisor::notify::{Notifier, NotifySocket};
use supervisor::pidfd::PidFd;
use supervisor::signals::SIGHUP;
use supervisor::spawn::{SpawnError, Spec, spawn};

/// What an earlier manager left has this time, besides its drain time, to end.
const SWEEP_AFTER: Duration = Duration::from_secs(5);

/// The manager's state.
pub struct Keep {
    pub(super) config: RefCell<Config>,
    pub(super) common: Common,
    pub(super) runtime: Runtime,
    pub(super) listeners: RefCell<Vec<Listener>>,
    pub(super) upstream: Notifier,
    pub(super) notify: NotifySocket,
    pub(super) server: RefCell<Server>,
    /// Servers that have let go and finish what they have.
    pub(super) retiring: RefCell<Vec<Ward>>,
    /// From whom connections come, by the retiring server that passes them on.
    pub(super) inbound: RefCell<Vec<(i32, OwnedFd)>>,
    pub(super) replace: RefCell<Replace>,
    /// Why the last replacement came to nothing.
    pub(super) replace_failed: RefCell<Option<String>>,
    pub(super) legacy: RefCell<Option<Legacy>>,
    /// To servers that an earlier manager had started.
    pub(super) channels: RefCell<Vec<(i32, OwnedFd)>>,
    pub(super) incidents: RefCell<Incidents>,
    pub(super) queue: RefCell<Queue>,
    pub(super) standby: RefCell<Standby>,
    pub(super) watch: RefCell<Watch>,
    pub(super) jobs: RefCell<Jobs>,
    /// Commands that run for us and aren't servers.
    pub(super) hooks: RefCell<Vec<i32>>,
    pub(super) estates: RefCell<Estates>,
    pub(super) cop: RefCell<String>,
    pub(super) started: Time,
    pub(super) timer: Cell<Option<Time>>,
    end: RefCell<End>,
    pub(super) changes: RefCell<Vec<Waker>>,
}

/// The server that is, and what is remembered of those that were.
pub struct Server {
    pub(super) machine: Child,
    pub(super) ward: Option<Ward>,
    /// By which we speak to it; closed, it would end before it serves.
    pub(super) channel: Option<OwnedFd>,
    /// It has taken over what was left to it.
    pub(super) settled: bool,
    pub(super) adopted: bool,
    pub(super) since: Time,
    pub(super) ever_ready: bool,
    pub(super) said: String,
    pub(super) last_exit: Option<String>,
}

/// What a manager begins with.
pub struct Start {
    /// The configuration.
    pub config: Config,
    /// The options, to take it anew.
    pub common: Common,
    /// The files of the suite.
    pub runtime: Runtime,
    /// Bound.
    pub listeners: Vec<Listener>,
    /// What it will leave itself.
    pub legacy: Legacy,
    /// What dead servers and managers have left.
    pub estates: Estates,
    /// To servers that an earlier manager had started.
    pub channels: Vec<(i32, OwnedFd)>,
    /// Their pulse pages.
    pub pages: Vec<(i32, OwnedFd)>,
    /// Jobs that an earlier manager had.
    pub jobs: Jobs,
    /// To cop.
    pub upstream: Notifier,
    /// From servers.
    pub notify: NotifySocket,
}

#[derive(Default)]
struct End {
    exit: Option<Exit>,
    stopping: bool,
    failure: Option<anyhow::Error>,
    waker: Option<Waker>,
}

impl Keep {
    /// Nothing runs yet: see [`Keep::begin`].
    pub fn new(start: Start) -> Rc<Keep> {
        let Start {
            config,
            common,
            runtime,
            listeners,
            legacy,
            estates,
            channels,
            pages,
            jobs,
            upstream,
            notify,
        } = start;
        let now = clock::now();
        let server = Server {
            machine: Child::new(limits(&config)),
            ward: None,
            channel: None,
            settled: false,
            adopted: false,
            since: now,
            ever_ready: false,
            said: String::new(),
            last_exit: None,
        };
        let standby = Standby::new(limits(&config));
        Rc::new(Keep {
            watch: RefCell::new(Watch::new(&config, pages, now)),
            hooks: RefCell::default(),
            jobs: RefCell::new(jobs),
            standby: RefCell::new(standby),
            estates: RefCell::new(estates),
            legacy: RefCell::new(Some(legacy)),
            channels: RefCell::new(channels),
            incidents: RefCell::default(),
            queue: RefCell::default(),
            retiring: RefCell::default(),
            inbound: RefCell::default(),
            replace: RefCell::default(),
            replace_failed: RefCell::default(),
            config: RefCell::new(config),
            common,
            runtime,
            listeners: RefCell::new(listeners),
            upstream,
            notify,
            server: RefCell::new(server),
            cop: RefCell::default(),
            started: now,
            timer: Cell::new(None),
            end: RefCell::default(),
            changes: RefCell::default(),
        })
    }

    /// The files of this suite.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The server's pid, if one lives.
    pub fn server_pid(&self) -> Option<i32> {
        self.server.borrow().ward.as_ref().map(|w| w.pid)
    }

    /// Is nothing more tried?
    pub fn has_given_up(&self) -> bool {
        matches!(self.server.borrow().machine.state(), State::GaveUp)
    }

    /// Does a server serve?
    pub fn is_ready(&self) -> bool {
        matches!(self.server.borrow().machine.state(), State::Ready { .. })
    }

    /// Has cop keep duplicates of the listeners.
    pub fn store_fds(&self, cop: &Notifier) {
        for l in self.listeners.borrow().iter() {
            cop.store_fds(&l.fd_name(), &[l.fd.as_fd()]);
        }
        self.estates.borrow().store(cop);
        self.store_pages(cop);
        self.store_jobs(cop);
        if let Some(legacy) = &*self.legacy.borrow() {
            legacy.announce(cop);
        }
        let s = self.server.borrow();
        if let (Some(w), Some(channel)) = (&s.ward, &s.channel) {
            cop.store_fds(&channel_name(w.pid), &[channel.as_fd()]);
        }
    }

    /// Nothing of the queue is left behind: we end in order.
    pub fn end_legacy(&self) {
        self.legacy.take().into_iter().for_each(Legacy::end);
    }

    /// A heartbeat came from this cop. One that we haven't met has no duplicates of our fds yet; one that was stopped for a
    /// while may have missed some.
    pub fn met_cop(self: &Rc<Self>, who: &str) {
        let missed = self.upstream.take_missed();
        if missed || *self.cop.borrow() != who {
            log::info!("event=new-cop who={who:?} missed={missed}");
            who.clone_into(&mut self.cop.borrow_mut());
            self.store_fds(&self.upstream);
            let _ = self.upstream.send("READY=1");
            self.tell_server();
        }
        self.cop_asks();
    }

    /// Adopts the server that runs, or starts one.
    pub fn begin(self: &Rc<Self>) {
        drop(engine::spawn(self.clone().watch()));
        drop(engine::spawn(self.clone().sweep_servers()));
        self.adopt_retiring();
        self.feed(Event::WantUp);
        // what a cop has kept of servers that are no more
        for (pid, _) in self.channels.take() {
            self.upstream.forget_fds(&channel_name(pid));
        }
        self.forget_pages_but(&self.pids());
    }

    /// Servers of an earlier manager that hold no lock (a standby, one that finishes its last requests) end by themselves;
    /// one that hangs doesn't.
    async fn sweep_servers(self: Rc<Self>) {
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
    fn adopt(self: &Rc<Self>, ward: Ward) {
        log::info!("event=adopt of=server pid={}", ward.pid);
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
            let _ = Order::GoOn.send(channel, &[]);
            self.name_inbound(channel);
        }
        self.offer_rest();
        self.ask_who_it_is();
        self.want_standby();
    }

    /// What it told the last manager may have died with that one, or with the cop that was to keep it.
    fn ask_who_it_is(&self) {
        let s = self.server.borrow();
        let Some(ward) = &s.ward else { return };
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
        let _ = Order::GoOn.send(&channel, &[]);
        self.name_inbound(&channel);
        self.server.borrow_mut().channel = Some(channel);
        self.offer_rest();
    }

    /// Is there a cop that starts the next manager, and will that find the server?
    pub fn has_a_successor(&self) -> bool {
        let adopts = {
            let config = self.config.borrow();
            config.server.command.is_empty() && config.cop.on_manager_death == OnManagerDeath::Adopt
        };
        let cop = Ward::of_lock(&self.runtime.lock("cop"), 0).ok().flatten();
        adopts && !self.is_stopping() && self.upstream.is_connected() && cop.is_some_and(|c| !c.has_ended())
    }

    /// Ends the server in order, then the manager.
    pub fn stop(self: &Rc<Self>) {
        self.end.borrow_mut().stopping = true;
        self.end_standby();
        self.end_queue();
        let _ = self.upstream.send("STOPPING=1\nX_TRAFFIC_SERVER=0");
        self.feed(Event::WantDown);
        self.settle_jobs();
        self.maybe_end();
    }

    /// Resolves when the manager is to end.
    ///
    /// # Errors
    /// It ends because of this.
    pub async fn ended(&self) -> anyhow::Result<Exit> {
        poll_fn(|cx| {
            let mut end = self.end.borrow_mut();
            end.waker = Some(cx.waker().clone());
            match (end.failure.take(), end.exit) {
                (Some(e), _) => Poll::Ready(Err(e)),
                (None, Some(exit)) => Poll::Ready(Ok(exit)),
                (None, None) => Poll::Pending,
            }
        })
        .await
    }

    /// Whoever waits for a change looks again.
    pub(super) fn wake_changes(&self) {
        self.changes.borrow_mut().drain(..).for_each(Waker::wake);
    }

    pub(super) fn feed(self: &Rc<Self>, event: Event) {
        let now = clock::now();
        let (before, action, after) = {
            let mut s = self.server.borrow_mut();
            let before = s.machine.state().name();
            let action = s.machine.handle(event, now, clock::jitter());
            (before, action, s.machine.state().name())
        };
        if before != after {
            log::info!("event=state of=server from={before} to={after}");
            self.wake_changes();
        }
        match action {
            Action::Nothing => {}
            Action::Spawn => self.launch(),
            Action::Send(rung) => {
                if before == "ready" {
                    self.tell_server();
                }
                let core = self.config.borrow().cop.core_signal;
                if let Some(w) = &self.server.borrow().ward {
                    if before == "starting" && !self.is_stopping() {
                        w.picture(&self.config.borrow().suite, "it isn't ready after its start grace");
                    }
                    log::info!("event=signal of=server pid={} rung={rung:?}", w.pid);
                    w.send(rung, core);
                }
            }
            Action::AnnounceGaveUp => self.gave_up(),
        }
        self.arm();
    }

    /// One timer for the machine's deadline; a timer that was set for another one finds that out when it fires.
    fn arm(self: &Rc<Self>) {
        let deadline = self.server.borrow().machine.deadline();
        if deadline == self.timer.replace(deadline) {
            return;
        }
        let Some(at) = deadline else { return };
        let keep = self.clone();
        drop(engine::spawn(async move {
            engine::time::sleep(at.saturating_sub(clock::now())).await;
            if keep.timer.get() == Some(at) {
                keep.timer.set(None);
                keep.feed(Event::Tick);
            }
        }));
    }

    fn launch(self: &Rc<Self>) {
        // the last manager's; or one that was promoted in its manager's last moment, and has taken the lock since
        let generation = self.server.borrow().machine.generation() + 1;
        match Ward::of_lock(&self.runtime.lock("server"), generation) {
            Ok(Some(ward)) => return self.adopt(ward),
            Ok(None) => {}
            // its holder ended in this very moment
            Err(e) => log::debug!("event=adopt-failed of=server: {e}"),
        }
        if let Some((ward, channel)) = self.take_standby() {
            let pid = ward.pid;
            self.promote(pid, &channel);
            log::info!("event=promote of=server pid={pid} generation={generation}");
            self.limit_promotion(pid);
            return self.launched(ward.promoted(generation), Some(channel));
        }
        match self.spawn_server() {
            Ok((pid, pidfd, channel)) => {
                if let Some(channel) = &channel {
                    self.promote(pid, channel);
                }
                log::info!("event=spawn of=server pid={pid} generation={generation}");
                self.launched(Ward::new(pid, pidfd, generation), channel);
            }
            Err(e) => {
                log::error!("event=spawn-failed of=server: {e:#}");
                let permanent = e.downcast_ref::<SpawnError>().is_some_and(SpawnError::is_permanent);
                self.server.borrow_mut().last_exit = Some(format!("{e:#}"));
                if permanent && !self.server.borrow().ever_ready {
                    return self.fail(e.context("the server can't be started"));
                }
                self.feed(Event::SpawnFailed { permanent });
            }
        }
    }

    fn launched(self: &Rc<Self>, ward: Ward, channel: Option<OwnedFd>) {
        {
            let mut s = self.server.borrow_mut();
            (s.adopted, s.since, s.channel, s.settled) = (false, clock::now(), channel, false);
            s.said.clear();
        }
        if let Some(channel) = &self.server.borrow().channel {
            self.upstream.store_fds(&channel_name(ward.pid), &[channel.as_fd()]);
        }
        self.hold(ward);
        self.feed(Event::Spawned);
        self.watch_gap();
    }

    /// Starts a server process, with the channel to it if it is our own program.
    pub(super) fn spawn_server(&self) -> anyhow::Result<(i32, PidFd, Option<OwnedFd>)> {
        let config = self.config.borrow();
        let (program, argv, channel) = match config.server.command.split_first() {
            Some((program, _)) => {
                let argv = config.server.command.iter().map(OsString::from).collect::<Vec<_>>();
                (suite::find_program(program), argv, None)
            }
            None => {
                let mut argv = vec![OsString::from("traffic_server"), "run".into()];
                argv.extend(self.common.to_args());
                (suite::sibling("traffic_server")?, argv, Some(fd_pass::pair()?))
            }
        };
        let credentials = privileges::server(&config)?;
        let list = self.listeners.borrow();
        let mut fds: Vec<_> = list.iter().map(|l| (l.fd_name(), l.fd.as_fd())).collect();
        if let Some((_, theirs)) = &channel {
            fds.push((CHANNEL.to_owned(), theirs.as_fd()));
        }
        let mut env = vec![
            ("NOTIFY_SOCKET", self.runtime.notify("manager").into()),
            ("TRAFFIC_RUNTIME_DIR", self.runtime.dir().into()),
            // the default depends on who asks, and the server may be somebody else
            ("TRAFFIC_STATE_DIR", config.suite.state_dir.clone().into()),
        ];
        if let Some(limit) = self.watchdog_limit(&config) {
            env.push(("WATCHDOG_USEC", limit.as_micros().to_string().into()));
        }
        let spawned = spawn(&Spec {
            fds,
            nofile: privileges::nofile(config.server.nofile),
            oom_score_adj: Some(config.server.oom_score_adj),
            nice: config.server.nice,
            credentials,
            ..Spec::new(program, argv, suite::child_env(&env))
        })?;
        Ok((spawned.pid, spawned.pidfd, channel.map(|(ours, _)| ours)))
    }

    /// Takes hold of a server process and waits for its end.
    fn hold(self: &Rc<Self>, ward: Ward) {
        self.watch_end(&ward);
        self.server.borrow_mut().ward = Some(ward);
    }

    /// Waits for a server's end.
    pub(super) fn watch_end(self: &Rc<Self>, ward: &Ward) {
        let generation = ward.generation;
        match ward.as_fd().try_clone_to_owned().and_then(Async::new) {
            Ok(end) => {
                let keep = self.clone();
                drop(engine::spawn(async move {
                    let _ = end.readable().await;
                    keep.exited(generation);
                }));
            }
            Err(e) => self.fail(anyhow::Error::from(e).context("watching the server")),
        }
    }

    fn exited(self: &Rc<Self>, generation: u64) {
        // what it said last is in the socket already, whichever of the two woke us
        self.listen();
        let retired = {
            let mut retiring = self.retiring.borrow_mut();
            retiring.iter().position(|w| w.generation == generation).map(|at| retiring.swap_remove(at))
        };
        if let Some(ward) = retired {
            self.retired_exited(&ward);
            return self.maybe_end();
        }
        let (ward, ever_ready) = {
            let mut s = self.server.borrow_mut();
            match s.ward.take_if(|w| w.generation == generation) {
                Some(w) => (w, s.ever_ready),
                None => return,
            }
        };
        let status = ward.reap();
        // one that died before it had taken over had nothing of its own
        self.hand_over_again();
        self.upstream.forget_fds(&channel_name(ward.pid));
        self.forget_page(ward.pid);
        self.watch_gap();
        if !self.server.borrow().settled {
            self.estates.borrow_mut().drop_of(ward.pid, &self.upstream);
        }
        let how = status.map_or("ended (it was adopted: not our child)".to_owned(), |s| s.to_string());
        log::warn!("event=exit of=server pid={}: {how}", ward.pid);
        if self.server.borrow().machine.is_wanted() && !self.is_stopping() {
            self.incident(ward.pid, &how);
        }
        let permanent = status.and_then(|s| s.code()).filter(|c| Exit::is_permanent(*c));
        {
            let mut s = self.server.borrow_mut();
            s.last_exit = Some(how.clone());
            s.since = clock::now();
        }
        if let (Some(code), false) = (permanent, ever_ready) {
            let said = self.server.borrow().said.clone();
            let exit = Exit::of_code(code).unwrap_or(Exit::Failure);
            let why = if said.is_empty() { how } else { said };
            return self.fail(crate::logging::Fatal::new(exit, format!("the server: {why}")).into());
        }
        self.feed(Event::Exited(generation, permanent.is_some()));
        self.tell_server();
        self.maybe_end();
    }

    fn fail(&self, e: anyhow::Error) {
        let mut end = self.end.borrow_mut();
        end.failure.get_or_insert(e);
        end.waker.take().into_iter().for_each(Waker::wake);
    }

    /// Is everything to end?
    pub(super) fn is_stopping(&self) -> bool {
        self.end.borrow().stopping
    }

    /// Ends the manager when it is to end and nobody is left.
    pub(super) fn maybe_end(&self) {
        let mut end = self.end.borrow_mut();
        let down = !self.server.borrow().machine.state().is_alive();
        let alone = self.server.borrow().ward.is_none()
            && self.standby.borrow().ward.is_none()
            && self.retiring.borrow().is_empty();
        if end.stopping && down && alone && self.jobs_are_down() {
            self.estates.borrow_mut().end_all(&self.upstream);
            end.exit = Some(Exit::Done);
            end.waker.take().into_iter().for_each(Waker::wake);
        }
    }
}

pub(super) fn limits(config: &Config) -> Limits {
    let r = &config.manager.respawn;
    Limits {
        start_grace: config.cop.start_grace,
        stop: Rungs {
            polite: config.server.drain_timeout + Duration::from_secs(1),
            core: config.cop.core_signal.map(|_| Duration::from_secs(5)),
            kill: config.cop.kill_timeout,
        },
        respawn: policy::backoff::Limits {
            initial: r.initial,
            factor: r.factor,
            max: r.max,
            jitter: r.jitter,
            stable_after: r.stable_after,
            give_up_after: r.give_up_after,
        },
    }
}
