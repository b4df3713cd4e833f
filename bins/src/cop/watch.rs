//! Cop's loop: one poll set, deadlines, and the decisions of `policy`.
//!
//! ```text
//!   Starting --manager ready and the server answers through its port--> Running --SIGTERM--> Stopping --all gone--> end
//!      |  manager ends with an exit code, or start_grace is over             ^ |
//!      +--> Stopping (the reason is kept and reported)                       +-+ check every interval, deaths by pidfd
//! ```
//!
//! Nothing here blocks: an alarm clock (SIGALRM, its default action ends the process) runs from each wake-up to the next
//! poll, so a cop that hangs ends itself, and systemd or the operator starts another, which adopts everything.

use super::beats::{self, Beat, Proof};
use crate::cli::Common;
use crate::config::{Config, OnManagerDeath};
use crate::exit::Exit;
use crate::logging::Fatal;
use crate::suite::{self, Runtime};
use crate::ward::Ward;
use policy::Time;
use policy::check::{Check, Lock, Observation, Pulse, Verdict};
use policy::child::{Action, Child, Event, State};
use policy::ladder::{Ladder, Rung, Rungs};
use rustix::event::{PollFd, PollFlags, poll};
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;
use supervisor::clock;
use supervisor::fd_store::FdStore;
use supervisor::notify::{Datagram, Field, Notifier, NotifySocket};
use supervisor::probe::{Probe, Target};
use supervisor::signals::{self, Signals};
use supervisor::spawn::{Spec, spawn};

/// A cop that hasn't reached its next poll after this long has hung, and ends.
const ALARM_SECONDS: u32 = 60;

/// Who is told how the start went.
pub type OnStart = Box<dyn FnOnce(Result<(), &Fatal>)>;

enum Phase {
    Starting { until: Time },
    Running,
    Stopping { because: Option<Fatal>, server: Option<(Ward, Ladder)> },
}

/// The watcher.
pub struct Cop {
    config: Config,
    common: Common,
    runtime: Runtime,
    token: String,
    signals: Signals,
    notify: NotifySocket,
    upstream: Notifier,
    watchdog: Option<(Duration, Time)>,
    store: FdStore,
    manager: Child,
    ward: Option<Ward>,
    server: Option<Ward>,
    server_wanted: bool,
    manager_beat: Beat,
    server_beat: Beat,
    check: Check,
    next_check: Time,
    said: Said,
    phase: Phase,
    on_start: Option<OnStart>,
    watch_stdin: bool,
}

/// What the manager said last, for the report of a start that failed.
#[derive(Default)]
struct Said {
    status: String,
    exit: Option<i32>,
}

/// What woke the loop.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    Notify,
    Manager,
    Server,
    StoppingServer,
    ManagerBeat,
    ServerBeat,
    Stdin,
}

impl Cop {
    /// A watcher that holds `cop.lock` already (its caller sees to that).
    ///
    /// # Errors
    /// The notify socket or the token can't be made.
    pub fn new(
        config: Config,
        common: Common,
        signals: Signals,
        store: FdStore,
        on_start: OnStart,
    ) -> anyhow::Result<Cop> {
        let runtime = Runtime::new(&config.suite.runtime_dir);
        let now = clock::now();
        let c = &config.cop;
        let limits =
            policy::heartbeat::Limits { interval: c.interval, timeout: c.timeout, failures: c.failures };
        Ok(Cop {
            token: runtime.token()?,
            notify: NotifySocket::bind(&runtime.notify("cop"))?,
            upstream: Notifier::from_env()?,
            watchdog: watchdog(now),
            store,
            manager: Child::new(manager_limits(&config)),
            ward: None,
            server: None,
            server_wanted: true,
            manager_beat: Beat::new("manager", limits),
            server_beat: Beat::new("server", limits),
            check: Check::default(),
            next_check: now + c.interval,
            said: Said::default(),
            phase: Phase::Starting { until: now + c.start_grace },
            on_start: Some(on_start),
            watch_stdin: std::env::var_os(suite::STOP_ON_EOF).is_some(),
            config,
            common,
            runtime,
            signals,
        })
    }

    /// Watches until the suite is stopped.
    pub fn run(mut self) -> Exit {
        let now = clock::now();
        self.feed(Event::WantUp, now);
        loop {
            nix::unistd::alarm::set(ALARM_SECONDS);
            let now = clock::now();
            self.timers(now);
            if let Some(exit) = self.finished() {
                nix::unistd::alarm::cancel();
                return exit;
            }
            for source in self.wait(now) {
                self.wake(source, clock::now());
            }
        }
    }

    // ---- waiting ----

    fn wait(&mut self, now: Time) -> Vec<Source> {
        let deadline = self.deadline();
        let left = deadline.map(|d| d.saturating_sub(now));
        let mut sources = Vec::with_capacity(8);
        let mut fds = Vec::with_capacity(8);
        let mut add = |source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        add(Source::Signals, self.signals.as_fd(), PollFlags::IN);
        add(Source::Notify, self.notify.as_fd(), PollFlags::IN);
        if let Some(w) = &self.ward {
            add(Source::Manager, w.as_fd(), PollFlags::IN);
        }
        if let Some(w) = &self.server {
            add(Source::Server, w.as_fd(), PollFlags::IN);
        }
        if let Phase::Stopping { server: Some((w, _)), .. } = &self.phase {
            add(Source::StoppingServer, w.as_fd(), PollFlags::IN);
        }
        if let Some((fd, flags)) = self.manager_beat.poll_fd() {
            add(Source::ManagerBeat, fd, flags);
        }
        if let Some((fd, flags)) = self.server_beat.poll_fd() {
            add(Source::ServerBeat, fd, flags);
        }
        let stdin = std::io::stdin();
        if self.watch_stdin {
            add(Source::Stdin, stdin.as_fd(), PollFlags::IN);
        }
        let timeout = left.map(|d| rustix::event::Timespec {
            tv_sec: d.as_secs() as i64,
            tv_nsec: i64::from(d.subsec_nanos()),
        });
        nix::unistd::alarm::cancel();
        let polled = poll(&mut fds, timeout.as_ref());
        nix::unistd::alarm::set(ALARM_SECONDS);
        if let Err(e) = polled
            && e != rustix::io::Errno::INTR
        {
            log::error!("event=poll-failed: {e}");
        }
        let ready: Vec<bool> = fds.iter().map(|f| !f.revents().is_empty()).collect();
        sources.into_iter().zip(ready).filter_map(|(s, r)| r.then_some(s)).collect()
    }

    fn deadline(&self) -> Option<Time> {
        let phase = match &self.phase {
            Phase::Starting { until } => Some(*until),
            Phase::Running => None,
            Phase::Stopping { server, .. } => server.as_ref().and_then(|(_, l)| l.deadline()),
        };
        let all = [
            phase,
            (!self.is_stopping()).then_some(self.next_check),
            self.manager.deadline(),
            self.manager_beat.deadline(),
            self.server_beat.deadline(),
            self.watchdog.map(|(_, next)| next),
        ];
        all.into_iter().flatten().min()
    }

    fn wake(&mut self, source: Source, now: Time) {
        match source {
            Source::Signals => self.on_signals(now),
            Source::Notify => self.on_notify(now),
            Source::Manager => self.on_manager_exit(now),
            Source::Server => self.on_server_exit(),
            Source::StoppingServer => self.step_stop(now),
            Source::ManagerBeat => self.manager_beat.ready(now, |a, _| match a.code {
                200 => Proof::Alive,
                code => Proof::Silent(format!("it answered {code}")),
            }),
            Source::ServerBeat => {
                let pid = self.server.as_ref().map_or(0, |w| w.pid);
                self.server_beat.ready(now, |a, nonce| beats::judge_server(a, nonce, pid));
                self.maybe_serving();
            }
            Source::Stdin => self.on_stdin(now),
        }
    }

    // ---- time ----

    fn timers(&mut self, now: Time) {
        if self.manager.deadline().is_some_and(|d| now >= d) {
            self.feed(Event::Tick, now);
        }
        let (path, manager_pid) = (self.runtime.control(), std::process::id());
        self.manager_beat.tick(now, |_| {
            // the manager stores its fds anew when it sees another cop
            Probe::start(&Target::Unix(path), "/heartbeat", &[format!("traffic-cop: {manager_pid}")])
        });
        let (runtime, token) = (&self.runtime, &self.token);
        self.server_beat.tick(now, |nonce| match runtime.targets().first() {
            Some(target) => beats::fetch_server(target, token, nonce),
            None => Err(std::io::Error::other("the manager hasn't said where the server listens")),
        });
        if self.manager_beat.has_failed() || self.server_beat.has_failed() {
            self.next_check = now;
        }
        if now >= self.next_check && !self.is_stopping() {
            self.next_check = now + self.config.cop.interval;
            self.check(now);
        }
        if let Some((every, next)) = &mut self.watchdog
            && now >= *next
        {
            *next = now + *every;
            let _ = self.upstream.send("WATCHDOG=1");
        }
        match &mut self.phase {
            Phase::Starting { until } if now >= *until => {
                let grace = humantime::format_duration(self.config.cop.start_grace);
                let why = format!("not serving after {grace}: {}", self.said.or("the manager said nothing"));
                self.begin_stop(Some(Fatal::new(Exit::Failure, why)), now);
            }
            Phase::Stopping { .. } => self.step_stop(now),
            _ => {}
        }
    }

    /// The check of both programs: look, let `policy` decide, act.
    fn check(&mut self, now: Time) {
        let observation = Observation {
            manager: lock_state(&self.runtime.lock("manager"), self.ward.as_ref()),
            manager_starting: !matches!(self.manager.state(), State::Ready { .. }),
            manager_pulse: pulse(self.manager_beat.has_failed()),
            server_wanted: self.server_wanted && self.server.is_some(),
            server: lock_state(&self.runtime.lock("server"), self.server.as_ref()),
            server_pulse: pulse(self.server_beat.has_failed()),
        };
        let how = match self.config.cop.on_manager_death {
            OnManagerDeath::Adopt => policy::check::OnManagerDeath::Adopt,
            OnManagerDeath::Kill => policy::check::OnManagerDeath::Kill,
        };
        let verdict = self.check.programs(&observation, how);
        if verdict != Verdict::Nothing {
            log::warn!("event=verdict verdict={verdict:?} observed={observation:?}");
        }
        match verdict {
            Verdict::Nothing => {}
            // it lives and doesn't hold its lock: it is no manager any more
            Verdict::SpawnManager | Verdict::KillServerThenSpawnManager | Verdict::KillManager => {
                self.manager_beat.stop();
                self.feed(Event::Unhealthy(self.manager.generation()), now);
            }
            Verdict::KillManagerGroup => {
                self.manager_beat.stop();
                if let Some(w) = &self.ward {
                    // children are made as leaders of their own groups; this reaches what the manager left in its own
                    let group = nix::unistd::Pid::from_raw(w.pid);
                    if nix::unistd::getpgid(Some(group)) == Ok(group) && !w.has_ended() {
                        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
                    }
                }
                self.feed(Event::Unhealthy(self.manager.generation()), now);
            }
            Verdict::KillManagerStrays => log::error!(
                "event=lock-held-by-dead path={} : some process shares the dead manager's fds",
                self.runtime.lock("manager").display()
            ),
            Verdict::KillServer => {
                let failed = self.server_beat.take_failed();
                if let Some(w) = self.server.as_ref().filter(|_| failed) {
                    log::warn!("event=kill of=server pid={} : its heartbeat failed", w.pid);
                    w.send(
                        if self.config.cop.core_signal.is_some() { Rung::Core } else { Rung::Kill },
                        self.config.cop.core_signal,
                    );
                    self.server_beat.start(now);
                }
            }
        }
    }

    // ---- events ----

    fn on_signals(&mut self, now: Time) {
        for signal in self.signals.pending() {
            match signal {
                signals::SIGCHLD => {}
                signals::SIGHUP => {
                    log::info!("event=reload");
                    if let Some(w) = &self.ward {
                        let _ = w.signal(signals::SIGHUP);
                    }
                }
                signals::SIGUSR1 | signals::SIGUSR2 => self.dump(),
                _ => {
                    log::info!("event=stop signal={signal}");
                    self.begin_stop(None, now);
                }
            }
        }
        // the manager and whoever became our child because its parent died
        self.on_manager_exit(now);
        let ward = self.ward.as_ref().map(|w| w.pid);
        for pid in supervisor::reaper::reap_strangers(|p| Some(p) == ward) {
            log::debug!("event=reaped pid={pid}");
        }
    }

    fn on_stdin(&mut self, now: Time) {
        let mut buf = [0u8; 64];
        if let Ok(0) | Err(_) = std::io::Read::read(&mut std::io::stdin(), &mut buf) {
            self.watch_stdin = false;
            log::info!("event=stop: standard input ended");
            self.begin_stop(None, now);
        }
    }

    fn on_notify(&mut self, now: Time) {
        // bounded: a sender that never stops gets its next turn after everybody else
        for _ in 0..64 {
            match self.notify.recv() {
                Ok(Some(d)) => self.heard(d, now),
                Ok(None) => return,
                Err(e) => return log::warn!("event=notify-failed: {e}"),
            }
        }
    }

    fn heard(&mut self, d: Datagram, now: Time) {
        if self.ward.as_ref().is_none_or(|w| w.pid != d.pid) {
            return log::warn!("event=notify-stranger pid={} uid={}: dropped", d.pid, d.uid);
        }
        let name = d.message.fields.iter().find_map(|f| match f {
            Field::FdName(n) => Some(n.clone()),
            _ => None,
        });
        let mut fds = d.fds;
        for field in d.message.fields {
            match field {
                Field::Ready => self.manager_ready(now),
                Field::Status(s) => self.said.status = s,
                Field::Exit(n) => self.said.exit = Some(n),
                Field::Server(pid) => self.server_is(pid, now),
                Field::ExtendTimeout(more) => self.feed(Event::Extend(self.manager.generation(), more), now),
                Field::FdStore => self.keep(name.as_deref().unwrap_or("unknown"), std::mem::take(&mut fds)),
                Field::FdStoreRemove => self.store.remove(name.as_deref().unwrap_or("unknown")),
                _ => {}
            }
        }
    }

    fn keep(&mut self, name: &str, fds: Vec<std::os::fd::OwnedFd>) {
        if self.upstream.is_connected() {
            let borrowed: Vec<_> = fds.iter().map(|f| f.as_fd()).collect();
            if let Err(e) = self.upstream.send_fds(&format!("FDSTORE=1\nFDNAME={name}"), &borrowed) {
                log::warn!("event=fdstore-upstream-failed name={name}: {e}");
            }
        }
        match self.store.add(name, fds) {
            Ok(()) => log::debug!("event=fdstore name={name} total={}", self.store.len()),
            Err(e) => log::error!("event=fdstore-failed name={name}: {e}"),
        }
    }

    fn manager_ready(&mut self, now: Time) {
        self.feed(Event::Ready(self.manager.generation()), now);
        self.manager_beat.start(now);
        self.maybe_serving();
    }

    /// The manager says which server it holds: a pid, 0 for none wanted, less for none at the moment.
    fn server_is(&mut self, pid: i32, now: Time) {
        self.server_wanted = pid != 0;
        self.server_beat.stop();
        self.server = None;
        if pid <= 0 {
            return;
        }
        match Ward::of_lock(&self.runtime.lock("server"), 0) {
            Ok(Some(w)) if w.pid == pid => {
                self.server = Some(w);
                self.server_beat.start(now);
            }
            Ok(_) => log::info!("event=server-unconfirmed pid={pid}: its lock doesn't show it"),
            Err(e) => log::warn!("event=server-unconfirmed pid={pid}: {e}"),
        }
        self.maybe_serving();
    }

    fn on_server_exit(&mut self) {
        if self.server.as_ref().is_some_and(Ward::has_ended) {
            self.server = None;
            self.server_beat.stop();
        }
    }

    fn on_manager_exit(&mut self, now: Time) {
        let Some(w) = self.ward.take_if(|w| w.has_ended()) else { return };
        let status = w.reap();
        self.manager_beat.stop();
        let how = status.as_ref().map_or("ended (not our child)".to_owned(), ToString::to_string);
        log::warn!("event=exit of=manager pid={}: {how}", w.pid);
        let code = status.and_then(|s| s.code()).or(self.said.exit);
        if let (Phase::Starting { .. }, Some(code)) = (&self.phase, code) {
            let exit = Exit::ALL.into_iter().find(|e| i32::from(e.code()) == code && *e != Exit::Done);
            let why = format!("traffic_manager: {}", self.said.or(&how));
            self.begin_stop(Some(Fatal::new(exit.unwrap_or(Exit::Failure), why)), now);
        }
        self.said = Said::default();
        self.feed(Event::Exited(w.generation, code.is_some_and(Exit::is_permanent)), now);
    }

    // ---- acting ----

    fn feed(&mut self, event: Event, now: Time) {
        let before = self.manager.state().name();
        let action = self.manager.handle(event, now, clock::jitter());
        let after = self.manager.state().name();
        if before != after {
            log::info!("event=state of=manager from={before} to={after}");
        }
        match action {
            Action::Nothing => {}
            Action::Spawn => self.launch(now),
            Action::Send(rung) => {
                if let Some(w) = &self.ward {
                    log::info!("event=signal of=manager pid={} rung={rung:?}", w.pid);
                    w.send(rung, self.config.cop.core_signal);
                }
            }
            Action::AnnounceGaveUp => log::error!("event=gave-up of=manager"),
        }
    }

    /// A manager is wanted: one that runs already is adopted, else one is spawned with the stored fds.
    fn launch(&mut self, now: Time) {
        let generation = self.manager.generation() + 1;
        match Ward::of_lock(&self.runtime.lock("manager"), generation) {
            Ok(Some(w)) => {
                log::info!("event=adopt of=manager pid={}", w.pid);
                self.ward = Some(w);
                self.feed(Event::Adopted { ready: true }, now);
                return self.manager_beat.start(now);
            }
            Ok(None) => {}
            // its holder ended in this very moment: the new manager waits for the lock
            Err(e) => log::info!("event=adopt-failed of=manager: {e}"),
        }
        if self.config.cop.on_manager_death == OnManagerDeath::Kill {
            self.kill_orphaned_server();
        }
        match self.spawn_manager() {
            Ok((pid, pidfd)) => {
                log::info!("event=spawn of=manager pid={pid} fds={}", self.store.len());
                self.ward = Some(Ward::new(pid, pidfd, generation));
                self.feed(Event::Spawned, now);
            }
            Err(e) => {
                log::error!("event=spawn-failed of=manager: {e:#}");
                let permanent =
                    e.downcast_ref::<supervisor::spawn::SpawnError>().is_some_and(|e| e.is_permanent());
                if let Phase::Starting { .. } = self.phase {
                    self.begin_stop(Some(Fatal::new(Exit::Os, format!("{e:#}"))), now);
                }
                self.feed(Event::SpawnFailed { permanent }, now);
            }
        }
    }

    fn spawn_manager(&self) -> anyhow::Result<(i32, supervisor::pidfd::PidFd)> {
        let program = suite::sibling("traffic_manager")?;
        let mut argv = vec![OsString::from("traffic_manager"), "run".into()];
        argv.extend(self.common.to_args());
        let spawned = spawn(&Spec {
            program,
            argv,
            env: suite::child_env(&[
                ("NOTIFY_SOCKET", self.notify.path().into()),
                ("TRAFFIC_RUNTIME_DIR", self.runtime.dir().into()),
            ]),
            fds: self.store.iter().map(|(n, f)| (n.clone(), f.as_fd())).collect(),
            stdio: [None; 3],
            cwd: None,
            umask: 0o027,
            nofile: None,
            oom_score_adj: None,
        })?;
        Ok((spawned.pid, spawned.pidfd))
    }

    /// `on_manager_death = "kill"`: the server goes with its manager.
    fn kill_orphaned_server(&self) {
        if let Ok(Some(w)) = Ward::of_lock(&self.runtime.lock("server"), 0) {
            log::warn!("event=kill of=server pid={} : its manager is gone", w.pid);
            w.send(Rung::Kill, None);
        }
    }

    /// Is everything there that a client needs?
    fn maybe_serving(&mut self) {
        let Phase::Starting { .. } = self.phase else { return };
        let foreign = !self.config.server.command.is_empty();
        let ready = matches!(self.manager.state(), State::Ready { .. });
        if !ready || !(foreign || self.server_beat.has_answered()) {
            return;
        }
        self.phase = Phase::Running;
        let ports = std::fs::read_to_string(self.runtime.ports()).unwrap_or_default();
        let ports = ports.split_whitespace().collect::<Vec<_>>().join(" ");
        log::info!("event=serving listen={ports:?}");
        let _ = self.upstream.send(&format!("READY=1\nSTATUS=serving on {ports}"));
        if let Some(tell) = self.on_start.take() {
            tell(Ok(()));
        }
    }

    fn is_stopping(&self) -> bool {
        matches!(self.phase, Phase::Stopping { .. })
    }

    fn begin_stop(&mut self, because: Option<Fatal>, now: Time) {
        if self.is_stopping() {
            return;
        }
        if let Some(f) = &because {
            log::error!("event=start-failed exit={}: {f}", f.exit.code());
        }
        let _ = self.upstream.send("STOPPING=1");
        self.phase = Phase::Stopping { because, server: None };
        self.manager_beat.stop();
        self.server_beat.stop();
        self.feed(Event::WantDown, now);
        self.step_stop(now);
    }

    /// When the manager is gone: see to a server that it left behind.
    fn step_stop(&mut self, now: Time) {
        let lock = self.runtime.lock("server");
        let manager_gone = self.ward.is_none() && !self.manager.state().is_alive();
        let rungs = stop_rungs(&self.config);
        let core = self.config.cop.core_signal;
        let Phase::Stopping { server, .. } = &mut self.phase else { return };
        if let Some((w, ladder)) = server {
            if w.has_ended() {
                w.reap();
                *server = None;
            } else if let Some(rung) = ladder.tick(now) {
                w.send(rung, core);
            }
        } else if manager_gone && let Ok(Some(w)) = Ward::of_lock(&lock, 0) {
            log::warn!("event=stop-orphan of=server pid={}", w.pid);
            let (ladder, first) = Ladder::begin(rungs, now);
            w.send(first, core);
            *server = Some((w, ladder));
        }
    }

    fn finished(&mut self) -> Option<Exit> {
        let Phase::Stopping { because, server } = &mut self.phase else { return None };
        let stuck = server.as_ref().is_some_and(|(_, l)| l.rung() == Rung::Stuck);
        let gone = self.ward.is_none() && !self.manager.state().is_alive() && server.is_none();
        if !gone && !stuck {
            return None;
        }
        self.runtime.clean();
        let fatal = because.take();
        log::info!("event=stopped");
        if let (Some(tell), Some(f)) = (self.on_start.take(), &fatal) {
            tell(Err(f));
        }
        match fatal {
            Some(f) => Some(f.exit),
            None if stuck => Some(Exit::Os),
            None => Some(Exit::Done),
        }
    }

    fn dump(&self) {
        log::info!(
            "event=state manager={} pid={:?} restarts={} crashes={} server_pid={:?} server_wanted={} stored_fds={}",
            self.manager.state().name(),
            self.ward.as_ref().map(|w| w.pid),
            self.manager.restarts(),
            self.manager.crashes(),
            self.server.as_ref().map(|w| w.pid),
            self.server_wanted,
            self.store.len(),
        );
    }
}

impl Said {
    fn or<'a>(&'a self, other: &'a str) -> &'a str {
        if self.status.is_empty() { other } else { &self.status }
    }
}

fn pulse(failed: bool) -> Pulse {
    if failed { Pulse::Failed } else { Pulse::Fine }
}

/// What a lock says, with the process we believe to hold it.
fn lock_state(path: &Path, ward: Option<&Ward>) -> Lock {
    match lockfile::Lockfile::holder(path) {
        Ok(None) => Lock::Free,
        Ok(Some(h)) => match ward {
            Some(w) if w.pid == h.pid => {
                if w.has_ended() {
                    Lock::HeldByDead
                } else {
                    Lock::Held
                }
            }
            _ => match supervisor::pidfd::PidFd::open(h.pid) {
                Ok(p) if p.is_alive() => Lock::Held,
                _ => Lock::HeldByDead,
            },
        },
        Err(e) => {
            log::warn!("event=lock-unknown path={}: {e}", path.display());
            Lock::Unknown
        }
    }
}

/// The ladder for a server: its drain time, then the hard rungs.
fn stop_rungs(config: &Config) -> Rungs {
    Rungs {
        polite: config.server.drain_timeout + Duration::from_secs(1),
        core: config.cop.core_signal.map(|_| Duration::from_secs(5)),
        kill: config.cop.kill_timeout,
    }
}

/// The manager must have the time to walk its server down the ladder before it is killed itself.
fn manager_limits(config: &Config) -> policy::child::Limits {
    let server = stop_rungs(config);
    let r = &config.manager.respawn;
    policy::child::Limits {
        start_grace: config.cop.start_grace,
        stop: Rungs {
            polite: server.polite + server.core.unwrap_or_default() + server.kill + Duration::from_secs(2),
            ..server
        },
        respawn: policy::backoff::Limits {
            initial: r.initial,
            factor: r.factor,
            max: r.max,
            jitter: r.jitter,
            stable_after: r.stable_after,
            // cop never gives up on the manager
            give_up_after: 0,
        },
    }
}

/// systemd's watchdog, if it has one for us: how often to answer, and when next.
fn watchdog(now: Time) -> Option<(Duration, Time)> {
    let usec: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    let for_us = std::env::var("WATCHDOG_PID").map_or(true, |p| p == std::process::id().to_string());
    (for_us && usec > 0).then(|| (Duration::from_micros(usec / 2), now))
}
