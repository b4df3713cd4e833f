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

mod accept;
mod end;
mod events;
pub mod files;
mod verdict;

use self::end::manager_limits;
use super::beats::{self, Beat, Proof};
use super::record::Record;
use crate::cli::Common;
use crate::config::{Config, Loaded, OnManagerDeath};
use crate::exit::Exit;
use crate::logging::Fatal;
use crate::suite::{self, Runtime};
use crate::sweep::Sweep;
use crate::ward::Ward;
use anyhow::Context;
use lockfile::Lockfile;
use policy::Time;
use policy::check::{Check, Lock, Observation, Pulse, Verdict};
use policy::child::{Action, Child, Event, State};
use policy::ladder::{Ladder, Rung};
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

/// Until systemd's queue is tried again.
const SAY_REST: Duration = Duration::from_millis(10);

/// A new manager, and one that is just ending, have taken and let go of their locks by then.
const SWEEP_AFTER: Duration = Duration::from_secs(1);

/// Who is told how the start went.
pub type OnStart = Box<dyn FnOnce(Result<(), &Fatal>)>;

enum Phase {
    Starting { until: Time },
    Running,
    Stopping { because: Option<Fatal>, server: Option<(Ward, Ladder)>, to_sweep: Vec<&'static str> },
}

/// The watcher.
pub struct Cop {
    config: Config,
    /// What was accepted of the file.
    text: String,
    common: Common,
    runtime: Runtime,
    lock: Lockfile,
    token: String,
    /// It is said that our files are gone and can't be made anew.
    is_lost: bool,
    /// Looks in a row at which a file of the manager's was gone.
    missed: u32,
    /// Where the server was last said to listen.
    targets: Vec<Target>,
    signals: Signals,
    notify: NotifySocket,
    upstream: Notifier,
    watchdog: Option<(Duration, Time)>,
    store: FdStore,
    /// What systemd keeps for us has to be said again, from that one on.
    unsaid: Option<usize>,
    manager: Child,
    ward: Option<Ward>,
    server: Option<Ward>,
    server_wanted: bool,
    /// Serving is paused: a server is there, and isn't to be asked through its port.
    paused: bool,
    manager_beat: Beat,
    server_beat: Beat,
    check: Check,
    /// The server's event threads, and whose they are.
    threads: (i32, policy::pulse::Watch),
    next_check: Time,
    said: Said,
    phase: Phase,
    on_start: Option<OnStart>,
    watch_stdin: bool,
    /// When this cop began, or had to make its files anew: with its pid, that is who it is.
    since: Time,
    /// A suite ran before this cop did: nothing that goes wrong at its start is a reason to stop it.
    found_running: bool,
    /// The generation of the manager that was adopted last: it isn't starting, so it gets no grace.
    adopted: u64,
    /// The hung server that was given the core signal.
    cored: i32,
    record: Record,
    /// Managers that nobody answers for: when they are looked for, and those that were found.
    sweep_at: Option<Time>,
    sweep: Option<Sweep>,
    /// The last server that the manager named.
    last_server: i32,
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
    /// A watcher that holds that `cop.lock`.
    ///
    /// # Errors
    /// The notify socket or the token can't be made.
    pub fn new(
        Loaded { config, text, .. }: Loaded,
        common: Common,
        signals: Signals,
        store: FdStore,
        lock: Lockfile,
        on_start: OnStart,
    ) -> anyhow::Result<Cop> {
        let runtime = Runtime::new(&config.suite.runtime_dir);
        let at = runtime.notify("cop");
        let now = clock::now();
        let c = &config.cop;
        let limits = accept::heartbeat_limits(c);
        Ok(Cop {
            token: runtime.token().context("the heartbeat's token")?,
            notify: NotifySocket::bind(&at).with_context(|| format!("cannot listen on {}", at.display()))?,
            upstream: Notifier::from_env()?,
            watchdog: watchdog(now),
            store,
            unsaid: None,
            manager: Child::new(manager_limits(&config)),
            ward: None,
            server: None,
            server_wanted: true,
            paused: false,
            manager_beat: Beat::new("manager", limits),
            server_beat: Beat::new("server", limits),
            check: Check::default(),
            threads: (0, policy::pulse::Watch::new(Duration::ZERO, Duration::ZERO)),
            next_check: now + c.interval,
            said: Said::default(),
            phase: Phase::Starting { until: now + c.start_grace },
            on_start: Some(on_start),
            watch_stdin: std::env::var_os(suite::STOP_ON_EOF).is_some(),
            since: now,
            found_running: false,
            adopted: 0,
            cored: 0,
            record: Record::open(&config.suite),
            sweep_at: None,
            sweep: None,
            last_server: 0,
            config,
            text,
            common,
            runtime,
            lock,
            is_lost: false,
            missed: 0,
            targets: Vec::new(),
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
        let timeout = left.map(clock::timespec);
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
        let sweep = self.sweep.as_ref().map(Sweep::deadline);
        // what is due at nearly the same time is done in one wake-up
        let slack = self.config.cop.interval / 16;
        let all = [
            phase,
            sweep,
            self.sweep_at,
            (!self.is_stopping()).then_some(self.next_check + slack),
            self.manager.deadline(),
            self.manager_beat.deadline(slack),
            self.server_beat.deadline(slack),
            self.watchdog.map(|(_, next)| next),
            (self.unsaid.is_some() || self.upstream.has_later()).then(|| clock::now() + SAY_REST),
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
        let (path, own_pid) = (self.runtime.control(), std::process::id());
        let mut headers = vec![format!("traffic-cop: {own_pid} {}", self.since.as_nanos())];
        if let Some(silent) = self.server_beat.silent_for(now) {
            headers.push(format!("{}: {}", suite::SERVER_ANSWERED, silent.as_millis()));
        }
        self.manager_beat.tick(now, |_| {
            // the manager stores its fds anew when it sees another cop
            Probe::start(&Target::Unix(path), "/heartbeat", &headers)
        });
        let (runtime, token, targets) = (&self.runtime, &self.token, &mut self.targets);
        self.server_beat.tick(now, |nonce| match last_known(runtime, targets).first() {
            Some(target) => beats::fetch_server(target, token, nonce),
            None => Err(std::io::Error::other("the manager hasn't said where the server listens")),
        });
        if self.manager_beat.has_failed() || self.server_beat.has_failed() {
            self.next_check = now;
        }
        if now >= self.next_check && !self.is_stopping() {
            self.next_check = now + self.config.cop.interval;
            crate::logging::tick();
            if self.keep_files(now) {
                self.check(now);
            }
        }
        if let Some((every, next)) = &mut self.watchdog
            && now >= *next
        {
            *next = now + *every;
            let _ = self.upstream.send("WATCHDOG=1");
        }
        self.upstream.say_later();
        self.say_rest();
        self.sweep_managers(now);
        match &mut self.phase {
            // whatever is wrong with it, it ran before us and goes on being watched
            Phase::Starting { until } if self.found_running && now >= *until => {
                log::warn!("event=degraded: the suite that was found doesn't serve yet");
                self.phase = Phase::Running;
                if let Some(tell) = self.on_start.take() {
                    tell(Ok(()));
                }
            }
            Phase::Starting { until } if now >= *until => {
                let grace = humantime::format_duration(self.config.cop.start_grace);
                let why = format!("not serving after {grace}: {}", self.said.or("the manager said nothing"));
                self.begin_stop(Some(Fatal::new(Exit::Failure, why)), now);
            }
            Phase::Stopping { .. } => self.step_stop(now),
            _ => {}
        }
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
                    match rung {
                        // SIGTERM from anybody else is for the manager alone: it leaves its server to the next one
                        Rung::Polite => {
                            // one that is stopped can't act on it before it is woken
                            let _ = w.signal(signals::SIGINT).and_then(|()| w.signal(nix::libc::SIGCONT));
                        }
                        _ => w.send(rung, self.config.cop.core_signal),
                    }
                }
            }
            Action::AnnounceGaveUp => log::error!("event=gave-up of=manager"),
        }
    }

    /// A manager is wanted: one that runs already is adopted, else one is spawned with the stored fds.
    fn launch(&mut self, now: Time) {
        if let (Phase::Starting { .. }, Ok(Some(w))) =
            (&self.phase, Ward::of_server(&self.config, &self.runtime, 0))
        {
            log::info!("event=found of=server pid={}", w.pid);
            self.found_running = true;
        }
        let generation = self.manager.generation() + 1;
        match Ward::of_lock(&self.runtime.lock("manager"), generation) {
            // what is there may be another suite's
            Ok(Some(_)) if !self.lock.is_in_place() => {}
            Ok(Some(w)) => {
                log::info!("event=adopt of=manager pid={}", w.pid);
                self.ward = Some(w);
                // it says READY to a cop it hasn't met; one that hangs doesn't, and its heartbeat tells
                self.feed(Event::Adopted { ready: false }, now);
                self.adopted = self.manager.generation();
                self.found_running = true;
                self.sweep_at = Some(now + SWEEP_AFTER);
                self.record.take_over();
                return self.manager_beat.start(now);
            }
            Ok(None) => {}
            // its holder ended in this very moment: the new manager waits for the lock
            Err(e) => log::info!("event=adopt-failed of=manager: {e}"),
        }
        if self.config.cop.on_manager_death == OnManagerDeath::Kill {
            self.kill_orphaned_server();
        }
        self.offer_config();
        match self.spawn_manager() {
            Ok((pid, pidfd)) => {
                log::info!("event=spawn of=manager pid={pid} fds={}", self.store.len());
                self.ward = Some(Ward::new(pid, pidfd, generation));
                self.sweep_at = Some(now + SWEEP_AFTER);
                match (generation, self.found_running) {
                    (1, false) => self.record.start(),
                    (1, true) => self.record.take_over(),
                    _ => self.record.manager_restarted(),
                }
                self.feed(Event::Spawned, now);
            }
            Err(e) => {
                log::error!("event=spawn-failed of=manager: {e:#}");
                let permanent =
                    e.downcast_ref::<supervisor::spawn::SpawnError>().is_some_and(|e| e.is_permanent());
                if let (Phase::Starting { .. }, false) = (&self.phase, self.found_running) {
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
            fds: self.store.iter().map(|(n, f)| (n.clone(), f.as_fd())).collect(),
            oom_score_adj: Some(self.config.manager.oom_score_adj),
            ..Spec::new(
                program,
                argv,
                suite::child_env(&[
                    ("NOTIFY_SOCKET", self.notify.path().into()),
                    ("TRAFFIC_RUNTIME_DIR", self.runtime.dir().into()),
                    (suite::TOKEN, self.token.clone().into()),
                ]),
            )
        })?;
        Ok((spawned.pid, spawned.pidfd))
    }

    /// `on_manager_death = "kill"`: the server goes with its manager.
    fn kill_orphaned_server(&self) {
        if let Ok(Some(w)) = Ward::of_server(&self.config, &self.runtime, 0) {
            log::warn!("event=kill of=server pid={} : its manager is gone", w.pid);
            w.send(Rung::Kill, None);
        }
    }

    /// Is everything there that a client needs?
    fn maybe_serving(&mut self) {
        let Phase::Starting { .. } = self.phase else { return };
        let foreign = !self.config.server.is_ours();
        let ready = matches!(self.manager.state(), State::Ready { .. });
        if !ready || !(foreign || self.paused || self.server_beat.has_answered()) {
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

/// The file may have been removed.
fn last_known<'a>(runtime: &Runtime, targets: &'a mut Vec<Target>) -> &'a [Target] {
    let now = runtime.targets();
    if !now.is_empty() {
        *targets = now;
    }
    targets
}

impl Said {
    fn or<'a>(&'a self, other: &'a str) -> &'a str {
        if self.status.is_empty() { other } else { &self.status }
    }
}

/// systemd's watchdog, if it has one for us: how often to answer, and when next.
fn watchdog(now: Time) -> Option<(Duration, Time)> {
    supervisor::notify::watchdog_interval().map(|every| (every, now))
}
