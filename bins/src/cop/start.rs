//! `traffic_cop start`: everything that can be refused is refused before the fork, and the rest is reported back.

use super::watch::Cop;
use super::watch::files::lost_cop;
use crate::cli::Common;
use crate::config::{Accepted, Config, Loaded};
use crate::exit::Exit;
use crate::logging::rotate::Rotation;
use crate::logging::{self, Fatal};
use crate::privileges;
use crate::suite::Runtime;
use anyhow::Context;
use lockfile::{Got, Lockfile};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use supervisor::daemonize::{Side, daemonize, redirect_std};
use supervisor::fd_store::FdStore;
use supervisor::pidfd::PidFd;
use supervisor::signals::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, Signals};
use supervisor::{listen_fds, reaper};

const NAME: &str = "traffic_cop";
/// How long one that was just killed may take to end.
const DYING: Duration = Duration::from_millis(100);
/// Fds kept for the manager at most.
pub(super) const STORE_MAX: usize = 8192;

/// Starts the suite; in the foreground it returns when the suite has ended.
///
/// # Errors
/// Why it doesn't serve: the configuration, a directory, the lock, or what the manager said.
pub fn run(common: &Common, foreground: bool) -> anyhow::Result<Exit> {
    let inherited = listen_fds::take().map_err(|e| Fatal::new(Exit::Usage, e.to_string()))?;
    // the daemon's directory is /: what was given relative to ours is made absolute now
    let common = common.absolute().context("reading the current directory")?;
    let accepted = Accepted::find(&inherited);
    let loaded = common.load_accepted(accepted.as_ref())?;
    let config = &loaded.config;
    let runtime = Runtime::new(&config.suite.runtime_dir);
    // before anything is made: what it lacks it makes itself
    if let Some(pid) = lost_cop(&runtime) {
        let why = format!(
            "already running: pid {pid}, whose lock file was removed; it makes another one in a moment"
        );
        return Err(Fatal::new(Exit::LockHeld, why).into());
    }
    let who = match privileges::server(config) {
        // he was known when the suite was started; one that runs is watched in any case
        Err(e) if runs(&runtime) => {
            eprintln!("traffic_cop: {e}");
            None
        }
        who => who?,
    };
    privileges::prepare_for(config, who.as_ref())?;
    if let Some(pid) = running(&runtime)? {
        return Err(held(&runtime, pid).into());
    }
    let mut store = FdStore::new(STORE_MAX);
    if foreground {
        // first of all, so that no signal is lost
        let signals = catch()?;
        logging::init(NAME, &config.suite);
        store.adopt(inherited)?;
        return watch(loaded, common, signals, store, Box::new(|_| {}));
    }
    let log = open_log(config)?;
    let rotation = Rotation::new(&config.suite, who);
    if log.1.metadata().is_ok_and(|m| m.is_file()) {
        rotation.share().with_context(|| format!("sharing {}", log.0.display()))?;
    }
    let keep: Vec<_> = inherited.iter().map(|i| i.fd.as_fd()).chain([log.1.as_fd()]).collect();
    let side = daemonize(0o027, &keep).context("detaching")?;
    let reporter = match side {
        Side::Parent(report) => return told(report.wait(), &log.0),
        Side::Daemon(reporter) => reporter,
    };
    // nothing but the reporter can tell anybody anything from here on
    let signals = catch()?;
    redirect_std(None, Some(&log.1), Some(&log.1))?;
    if log.1.metadata().is_ok_and(|m| m.is_file()) {
        logging::rotate_by(rotation);
    }
    drop(log);
    logging::init(NAME, &config.suite);
    store.adopt(inherited)?;
    // whoever comes first uses it: the loop, or an error before there is a loop
    let reporter = Rc::new(Cell::new(Some(reporter)));
    let for_start = reporter.clone();
    let on_start: super::watch::OnStart = Box::new(move |r| {
        if let Some(reporter) = for_start.take() {
            match r {
                Ok(()) => reporter.report(0, ""),
                Err(f) => reporter.report(f.exit.code(), &f.text),
            }
        }
    });
    let result = watch(loaded, common, signals, store, on_start);
    if let (Some(reporter), Err(e)) = (reporter.take(), &result) {
        reporter.report(logging::exit_of(e).code(), &format!("{e:#}"));
    }
    result
}

fn watch(
    loaded: Loaded,
    common: Common,
    signals: Signals,
    store: FdStore,
    on_start: super::watch::OnStart,
) -> anyhow::Result<Exit> {
    let config = &loaded.config;
    let runtime = Runtime::new(&config.suite.runtime_dir);
    let mut lock = Lockfile::new(runtime.lock("cop"));
    if let Got::Held(h) = lock.get()? {
        return Err(held(&runtime, h.pid).into());
    }
    reaper::become_subreaper()?;
    privileges::survive(config.cop.oom_score_adj);
    log::info!("event=start version={} runtime_dir={}", env!("CARGO_PKG_VERSION"), runtime.dir().display());
    // what couldn't be served is said by the one who is told: in the foreground that's our own stderr
    let failure = Rc::new(RefCell::new(None));
    let keep = failure.clone();
    let cop = Cop::new(
        loaded,
        common,
        signals,
        store,
        lock,
        Box::new(move |r| {
            *keep.borrow_mut() = r.err().map(|f| Fatal::new(f.exit, f.text.clone()));
            on_start(r);
        }),
    )?;
    let exit = cop.run();
    match failure.take() {
        Some(f) => Err(f.into()),
        None => Ok(exit),
    }
}

/// Is there a manager of ours?
fn runs(runtime: &Runtime) -> bool {
    let holder = Lockfile::holder(runtime.lock("manager")).ok().flatten();
    let owner = holder.and_then(|h| std::fs::metadata(format!("/proc/{}", h.pid)).ok()).map(|m| m.uid());
    owner == Some(rustix::process::geteuid().as_raw())
}

fn catch() -> std::io::Result<Signals> {
    Signals::catch(&[SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD])
}

/// The cop that runs. One that was killed a moment ago has its lock until the kernel has ended it: that is waited for.
fn running(runtime: &Runtime) -> Result<Option<i32>, lockfile::Error> {
    let holder = || Ok(Lockfile::holder(runtime.lock("cop"))?.map(|h| h.pid));
    let Some(pid) = holder()? else { return Ok(None) };
    match PidFd::open(pid).and_then(|p| p.poll_exit(DYING)) {
        Ok(None) => Ok(Some(pid)),
        _ => holder(),
    }
}

fn held(runtime: &Runtime, pid: i32) -> Fatal {
    let lock = runtime.lock("cop");
    Fatal::new(Exit::LockHeld, format!("already running: {} is held by pid {pid}", lock.display()))
}

/// The daemon's log, opened while errors can still be shown.
fn open_log(config: &Config) -> anyhow::Result<(PathBuf, File)> {
    let path = config.suite.log_path();
    let file = logging::sink::open(&path, true);
    let file = file.with_context(|| format!("opening the log {}", path.display()))?;
    Ok((path, file))
}

/// The parent's end: what the daemon reported.
fn told(report: Option<(u8, String)>, log: &std::path::Path) -> anyhow::Result<Exit> {
    match report {
        Some((0, _)) => Ok(Exit::Done),
        Some((code, text)) => {
            let exit = Exit::of_code(code.into()).unwrap_or(Exit::Failure);
            Err(Fatal::new(exit, text).into())
        }
        None => {
            let why = format!(
                "the daemon ended before it could say how the start went; its log is {}",
                log.display()
            );
            Err(Fatal::new(Exit::Bug, why).into())
        }
    }
}
