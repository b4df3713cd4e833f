//! Who the server is, and what of the suite's files it may touch.
//!
//! Cop and the manager keep the privileges they were started with. The server gets `suite.user`'s, and of the runtime
//! directory just what it needs: to enter it, to write `server.lock`, to read the heartbeat's token, and to send to
//! `manager.notify`. All of these stay root's and are shared by group, so the server can neither remove nor replace any.

use crate::config::{AccessLog, Config, Job};
use crate::exit::Exit;
use crate::logging::Fatal;
use crate::names;
use crate::suite::Runtime;
use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use supervisor::dirs;
use supervisor::privileges::{self, Credentials, UserError};

const AS_ROOT: &str =
    "the server would run as root: name a user with suite.user, or set suite.allow_root = true";

/// Who the server is to become; `None`: who we are.
///
/// # Errors
/// There is no such user, only root could become it, or it would be root and nobody has allowed that.
pub fn server(config: &Config) -> Result<Option<Credentials>, Fatal> {
    let wrong = |why: String| Fatal::new(Exit::Config, why);
    let root = rustix::process::geteuid().is_root();
    let Some(user) = &config.suite.user else {
        return match root && !config.suite.allow_root {
            true => Err(wrong(AS_ROOT.into())),
            false => Ok(None),
        };
    };
    let who = named(config, user)?;
    match who.is_me() {
        _ if who.uid == 0 && !config.suite.allow_root => Err(wrong(AS_ROOT.into())),
        true if !root => Ok(None),
        false if !root => {
            Err(wrong(format!("suite.user = {user:?}: only root can run the server as another user")))
        }
        _ => Ok(Some(who)),
    }
}

fn named(config: &Config, user: &str) -> Result<Credentials, Fatal> {
    let who = names::user(user, config.suite.group.as_deref());
    who.map_err(|e| Fatal::new(Exit::Config, format!("suite.user: {e}")))
}

/// Who a job runs as; `None`: who we are.
///
/// # Errors
/// There is no such user or group.
pub fn job(job: &Job) -> Result<Option<Credentials>, UserError> {
    job.user.as_deref().map(|user| names::user(user, job.group.as_deref())).transpose()
}

/// Asks for the users of jobs now, and not when their processes have died. Who isn't found is said when he is needed.
pub fn look_up(jobs: &[Job]) {
    for j in jobs {
        let _ = job(j);
    }
}

/// The users and groups of the configuration that don't exist, one text each. Anybody may ask.
pub fn missing_names(config: &Config) -> Vec<String> {
    let suite = config.suite.user.as_deref().and_then(|user| named(config, user).err());
    let sockets = server_sockets_group(config).err();
    let of_job = |j: &Job| {
        let e = job(j).err()?;
        Some(format!("job {:?}: job.user: {e}", j.name))
    };
    let of_suite = suite.into_iter().chain(sockets).map(|e| e.text);
    of_suite.chain(config.jobs.iter().filter_map(of_job)).collect()
}

/// What a root who started a suite with this configuration would be told.
pub fn refused_to_root(config: &Config) -> Option<&'static str> {
    let as_root = config.suite.user.is_none() && !config.suite.allow_root;
    as_root.then_some(AS_ROOT)
}

/// The group of `server.unix_group`; `None`: nothing is said.
///
/// # Errors
/// There is no such group.
pub fn server_sockets_group(config: &Config) -> Result<Option<u32>, Fatal> {
    let Some(name) = &config.server.unix_group else { return Ok(None) };
    let none = || Fatal::new(Exit::Config, format!("server.unix_group: there is no group {name:?}"));
    names::group(name).ok_or_else(none).map(Some)
}

/// The server's own check, whoever started it.
///
/// # Errors
/// It is root and isn't allowed to be.
pub fn refuse_root(config: &Config) -> Result<(), Fatal> {
    match rustix::process::geteuid().is_root() && !config.suite.allow_root {
        true => Err(Fatal::new(Exit::Config, AS_ROOT)),
        false => Ok(()),
    }
}

/// Makes and checks the runtime, state and cache directories, and the files in them that the server shares with us.
/// Returns who the server is to become.
///
/// # Errors
/// See [`server`]; a directory that somebody else could have prepared, or that the server can't enter.
pub fn prepare(config: &Config) -> anyhow::Result<Option<Credentials>> {
    let who = server(config)?;
    prepare_for(config, who.as_ref())?;
    Ok(who)
}

/// The same for a server that is known, or about whom nothing is to be said.
///
/// # Errors
/// As [`prepare`], but for who he is.
pub fn prepare_for(config: &Config, who: Option<&Credentials>) -> anyhow::Result<()> {
    let runtime = Runtime::new(&config.suite.runtime_dir);
    dirs::ensure(runtime.dir())?;
    dirs::ensure(&config.suite.state_dir)?;
    let Some(who) = who else { return Ok(()) };
    for dir in [runtime.dir(), &config.suite.state_dir] {
        privileges::share_dir(dir, who).with_context(|| format!("sharing {}", dir.display()))?;
    }
    let lock = runtime.lock("server");
    // only made, never opened when it is there: a second fd of a lock file is dangerous to its holder
    match OpenOptions::new().write(true).create_new(true).mode(0o660).open(&lock) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(e).with_context(|| format!("making {}", lock.display()));
        }
        _ => {}
    }
    runtime.token().context("the heartbeat's token")?;
    for (file, mode) in [(lock, 0o660), (runtime.token_file(), 0o640)] {
        privileges::share_file(&file, who, mode).with_context(|| format!("sharing {}", file.display()))?;
    }
    if config.server.cache_disk > 0 {
        let dir = config.server.cache_dir(&config.suite);
        privileges::give_dir(&dir, who).with_context(|| format!("the cache in {}", dir.display()))?;
    }
    if config.server.access_log != AccessLog::Off {
        let log = config.server.access_log_path(&config.suite);
        privileges::give_file(&log, who).with_context(|| format!("the access log {}", log.display()))?;
    }
    Ok(())
}

/// Lets servers that are somebody else send to the manager.
///
/// # Errors
/// The system refuses.
pub fn share_notify(runtime: &Runtime, who: Option<&Credentials>) -> io::Result<()> {
    who.map_or(Ok(()), |who| privileges::share_file(&runtime.notify("manager"), who, 0o660))
}

/// Sets our own `oom_score_adj` as far as we may.
pub fn survive(oom_score_adj: i32) {
    if let Err(e) = privileges::set_oom_score_adj(oom_score_adj) {
        log::debug!("event=oom-score-unchanged wanted={oom_score_adj}: {e}");
    }
}

/// The limit of open files for a server: `wanted`, cut to what we may give; `None` leaves ours.
pub fn nofile(wanted: u64) -> Option<(u64, u64)> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    (wanted > 0).then(|| (wanted.min(hard), wanted.min(hard)))
}
