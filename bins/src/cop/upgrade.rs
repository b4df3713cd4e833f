//! `upgrade`: the running suite takes the programs that are on disk now, and clients notice nothing.
//!
//! Each program is replaced in the way that its death would be answered, since that costs nothing: cop first (systemd, or
//! whoever is above it, starts the next one, which adopts the rest), then the manager (cop starts the next one), then the
//! server by `reload`, which has the next one ready before the old one lets go.

use super::stop;
use crate::cli::Common;
use crate::commands;
use crate::config::Config;
use crate::control;
use crate::exit::Exit;
use crate::logging::Fatal;
use crate::suite::Runtime;
use crate::ward::Ward;
use nix::libc::SIGKILL;
use rustix::event::{PollFd, PollFlags, poll};
use std::time::{Duration, Instant};

/// Replaces all three.
///
/// # Errors
/// Which of them couldn't be replaced; the others go on.
pub fn run(common: &Common) -> anyhow::Result<Exit> {
    // as it was started; a configuration that is wrong now is found before anything is touched
    let common = &stop::with_running(common)?;
    let config = common.load()?.config;
    let runtime = Runtime::new(&config.suite.runtime_dir);
    let Some(cop) = held(&runtime, "cop")? else {
        eprintln!("traffic_cop: not running (runtime directory {})", runtime.dir().display());
        return Ok(Exit::NotRunning);
    };
    let supervised = is_supervised(cop.pid);
    replace(&runtime, "cop", &cop, &config, || match supervised {
        true => Ok(()),
        // nobody above it would start the next one
        false => match stop::start_daemon(common)? {
            Exit::Done => Ok(()),
            exit => Err(Fatal::new(exit, "the next traffic_cop didn't start").into()),
        },
    })?;
    if let Some(manager) = held(&runtime, "manager")? {
        replace(&runtime, "manager", &manager, &config, || Ok(()))?;
    }
    // the new programs, with the configuration as it is now
    commands::reload(common)
}

fn held(runtime: &Runtime, program: &str) -> anyhow::Result<Option<Ward>> {
    Ok(Ward::of_lock(&runtime.lock(program), 0)?)
}

/// Ends one, and waits for the next one to hold its lock and for the manager to say that a server is ready.
fn replace(
    runtime: &Runtime,
    program: &str,
    old: &Ward,
    config: &Config,
    next: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    old.signal(SIGKILL)?;
    let until = Instant::now() + config.cop.start_grace;
    let grace = config.cop.kill_timeout;
    let timeout = supervisor::clock::timespec(grace);
    let _ = poll(&mut [PollFd::new(old, PollFlags::IN)], Some(&timeout));
    next()?;
    loop {
        let there = matches!(held(runtime, program), Ok(Some(w)) if w.pid != old.pid);
        if there && serves(runtime, config) {
            return Ok(());
        }
        if Instant::now() >= until {
            let why = format!("traffic_{program} (pid {}) was ended and no other one came to serve", old.pid);
            return Err(Fatal::new(Exit::Failure, why).into());
        }
        // several processes have to agree; there is no one event for that
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn serves(runtime: &Runtime, config: &Config) -> bool {
    let Ok((200, body)) = control::request(&runtime.control(), "GET", "/status", config.cop.timeout) else {
        return false;
    };
    let status: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
    status["server"]["state"] == "ready" && status["manager"]["cop"].as_str().is_some_and(|c| !c.is_empty())
}

/// Is somebody above it who starts the next one? systemd, and whoever does as it does, gives it a notify socket.
pub fn is_supervised(pid: i32) -> bool {
    let env = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    env.split(|&b| b == 0).any(|v| v.starts_with(b"NOTIFY_SOCKET="))
}
