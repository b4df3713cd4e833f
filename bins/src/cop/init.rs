//! What systemd is to cop, where there is no systemd: the first process of a container.
//!
//! It starts cop and starts it again when it is killed or hangs, keeps the fds that cop stores (so the listening sockets
//! survive the death of all three), passes signals on, and reaps whatever orphans come to it. It knows nothing of the
//! suite, and there is nobody who could replace it: the kernel kills a container whose first process dies.
//!
//! ```text
//!   cop ends by itself -> so do we, with its code;   cop is killed -> the next one, at once, braked when it doesn't last
//! ```

use crate::cli::Common;
use crate::exit::Exit;
use crate::logging;
use crate::suite;
use crate::ward::Ward;
use nix::libc::SIGKILL;
use rustix::event::{PollFd, PollFlags, poll};
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use supervisor::fd_store::FdStore;
use supervisor::listen_fds;
use supervisor::notify::{Datagram, Field, Notifier, NotifySocket};
use supervisor::signals::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, Signals};
use supervisor::spawn::{Spec, spawn};
use supervisor::{dirs, reaper};

const NAME: &str = "traffic_init";
/// A cop that hasn't said for so long that it lives is killed.
const WATCHDOG: Duration = Duration::from_secs(10);
/// One that lived for so long is replaced at once.
const LASTED: Duration = Duration::from_secs(1);
/// The longest wait before the next one.
const BRAKE: Duration = Duration::from_secs(5);

/// Are we the first process?
pub fn is_first() -> bool {
    std::process::id() == 1
}

struct Init {
    signals: Signals,
    notify: NotifySocket,
    upstream: Notifier,
    store: FdStore,
    common: Common,
}

/// Runs cop until it ends by itself; its exit code is ours.
///
/// # Errors
/// The configuration or the runtime directory is wrong, or cop can't be started.
pub fn run(common: &Common) -> anyhow::Result<Exit> {
    // first of all, so that no signal is lost; init has no default actions
    let signals = Signals::catch(&[SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD])?;
    let inherited = listen_fds::take()?;
    let common = common.absolute()?;
    let config = common.load()?.config;
    logging::init(NAME, &config.suite);
    dirs::ensure(&config.suite.runtime_dir)?;
    reaper::become_subreaper()?;
    let mut store = FdStore::new(super::start::STORE_MAX);
    store.adopt(inherited)?;
    let path = config.suite.runtime_dir.join("init.notify");
    let notify = NotifySocket::bind(&path)?;
    let mut init = Init { signals, notify, upstream: Notifier::from_env()?, store, common };
    let exit = init.live();
    // nobody is left whom they could harm, and the last one to leave the runtime directory is us
    reaper::end_children(Duration::from_secs(1));
    let _ = std::fs::remove_file(path);
    exit
}

impl Init {
    fn live(&mut self) -> anyhow::Result<Exit> {
        let (mut brake, mut stopping) = (Duration::ZERO, false);
        loop {
            let begun = Instant::now();
            let cop = self.start_cop()?;
            self.watch(&cop, &mut stopping);
            let status = cop.reap();
            if let Some(code) = status.and_then(|s| s.code()) {
                return Ok(Exit::of_code(code).unwrap_or(Exit::Failure));
            }
            let how = status.map_or("gone".to_owned(), |s| s.to_string());
            log::warn!("event=exit of=cop pid={}: {how}", cop.pid);
            brake = match begun.elapsed() >= LASTED {
                true => Duration::ZERO,
                false => (brake * 2).clamp(Duration::from_millis(50), BRAKE),
            };
            self.pause(brake, &mut stopping);
            if stopping {
                // it was to end, and was killed on the way: the rest of the suite is ended by whoever comes next
                log::warn!("event=stop: cop was killed while it stopped the suite");
                return Ok(Exit::Failure);
            }
        }
    }

    fn start_cop(&self) -> anyhow::Result<Ward> {
        let mut argv =
            vec![OsString::from("traffic_cop"), "start".into(), "--foreground".into(), "--no-init".into()];
        argv.extend(self.common.to_args());
        let spawned = spawn(&Spec {
            fds: self.store.iter().map(|(n, f)| (n.clone(), f.as_fd())).collect(),
            ..Spec::new(
                suite::sibling("traffic_cop")?,
                argv,
                suite::child_env(&[
                    ("NOTIFY_SOCKET", self.notify.path().into()),
                    ("WATCHDOG_USEC", WATCHDOG.as_micros().to_string().into()),
                ]),
            )
        })?;
        log::info!("event=spawn of=cop pid={} fds={}", spawned.pid, self.store.len());
        Ok(Ward::new(spawned.pid, spawned.pidfd, 0))
    }

    /// Until cop has ended.
    fn watch(&mut self, cop: &Ward, stopping: &mut bool) {
        let mut alive_until = Instant::now() + WATCHDOG;
        while !cop.has_ended() {
            let left = alive_until.saturating_duration_since(Instant::now());
            wait(
                &mut [
                    PollFd::new(&self.signals, PollFlags::IN),
                    PollFd::new(&self.notify, PollFlags::IN),
                    PollFd::new(cop, PollFlags::IN),
                ],
                left,
            );
            self.pass_on(Some(cop), stopping);
            // what it said before it died counts
            while let Ok(Some(said)) = self.notify.recv() {
                if said.pid == cop.pid && self.hear(said) {
                    alive_until = Instant::now() + WATCHDOG;
                }
            }
            if Instant::now() >= alive_until {
                log::error!(
                    "event=hang of=cop pid={}: it hasn't said for {WATCHDOG:?} that it lives",
                    cop.pid
                );
                let _ = cop.signal(SIGKILL);
                alive_until += WATCHDOG;
            }
        }
        while let Ok(Some(said)) = self.notify.recv() {
            if said.pid == cop.pid {
                self.hear(said);
            }
        }
    }

    /// Before the next cop: signals are heard, orphans reaped.
    fn pause(&mut self, time: Duration, stopping: &mut bool) {
        let until = Instant::now() + time;
        while !*stopping {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            wait(&mut [PollFd::new(&self.signals, PollFlags::IN)], left);
            self.pass_on(None, stopping);
        }
    }

    fn pass_on(&mut self, cop: Option<&Ward>, stopping: &mut bool) {
        for signal in self.signals.pending().into_iter().filter(|s| *s != SIGCHLD) {
            *stopping |= [SIGTERM, SIGINT, SIGQUIT].contains(&signal);
            if let Some(cop) = cop {
                let _ = cop.signal(signal);
            }
        }
        let known = cop.map(|c| c.pid);
        reaper::reap_strangers(|p| Some(p) == known);
    }

    /// True: it lives.
    fn hear(&mut self, said: Datagram) -> bool {
        let name = said.message.fd_name().map(str::to_owned);
        let name = name.as_deref().unwrap_or("unknown");
        let (mut fds, mut alive) = (said.fds, false);
        for field in said.message.fields {
            match field {
                Field::Watchdog => alive = true,
                Field::Ready => drop(self.upstream.send("READY=1")),
                Field::Stopping => drop(self.upstream.send("STOPPING=1")),
                Field::FdStore => {
                    if let Err(e) = self.store.add(name, std::mem::take(&mut fds)) {
                        log::error!("event=fdstore-failed name={name}: {e}");
                    }
                }
                Field::FdStoreRemove => self.store.remove(name),
                _ => {}
            }
        }
        alive
    }
}

fn wait(fds: &mut [PollFd<'_>], at_most: Duration) {
    let timeout = supervisor::clock::timespec(at_most);
    let _ = poll(fds, Some(&timeout));
}
