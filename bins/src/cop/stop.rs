//! `stop`, `restart`, `reload`: they return when it has happened, and say what really did.

use crate::cli::Common;
use crate::config::Config;
use crate::config::job::MARK;
use crate::exit::Exit;
use crate::logging::Fatal;
use crate::suite::Runtime;
use crate::sweep::Sweep;
use crate::ward::Ward;
use anyhow::Context;
use nix::libc::{SIGKILL, SIGTERM};
use policy::ladder::{Ladder, Rung, Rungs};
use rustix::event::{PollFd, PollFlags, poll};
use std::time::Duration;
use supervisor::{clock, tree};

/// How long processes of jobs may take to end that no configuration knows any more, or after SIGKILL.
const JOBS: Duration = Duration::from_secs(10);

/// Ends the suite and waits until all three are gone.
///
/// # Errors
/// Something of it can't be ended.
pub fn run(common: &Common) -> anyhow::Result<Exit> {
    let config = common.load_to_ask()?;
    super::status::may_look(&config)?;
    match stop(&config)? {
        0 => {
            eprintln!("traffic_cop: not running (runtime directory {})", config.suite.runtime_dir.display());
            Ok(Exit::NotRunning)
        }
        _ => Ok(Exit::Done),
    }
}

/// Ends cop (which ends the others in order), and then whatever is left. Returns how many processes there were.
fn stop(config: &Config) -> anyhow::Result<u32> {
    let runtime = Runtime::new(&config.suite.runtime_dir);
    // each is given the time to take down those below it
    let (server, manager) = (config.server_rungs(), config.manager_rungs());
    let cop = Rungs { polite: manager.whole() + Duration::from_secs(3), ..server };
    let mut ended = 0;
    for (program, rungs) in [("cop", cop), ("manager", manager), ("server", server)] {
        let ward = match program {
            "server" => Ward::of_server(config, &runtime, 0),
            _ => Ward::of_lock(&runtime.lock(program), 0),
        };
        if let Some(ward) = ward.unwrap_or(None) {
            end(program, &ward, rungs, config.cop.core_signal)?;
            ended += 1;
        }
    }
    ended += Sweep::all(config) + u32::from(end_jobs(config, &runtime));
    if ended > 0 {
        runtime.clean();
    }
    Ok(ended)
}

/// Ends processes of jobs that nobody answers for: cop and the manager were killed. Were there any?
fn end_jobs(config: &Config, runtime: &Runtime) -> bool {
    let find = || tree::marked_of(&MARK, runtime.dir()).unwrap_or_default();
    let jobs = find();
    if jobs.is_empty() {
        return false;
    }
    eprintln!("traffic_cop: processes of jobs were left behind: {} are ended", jobs.len());
    let patience = config.jobs.iter().map(|j| j.stop_timeout).max().unwrap_or(JOBS);
    for (signal, time) in [(SIGTERM, patience), (SIGKILL, JOBS)] {
        let (until, left) = (clock::now() + time, find());
        left.iter().for_each(|f| drop(f.pidfd.signal(signal)));
        for f in left {
            let _ = f.pidfd.poll_exit(until.saturating_sub(clock::now()));
        }
    }
    true
}

/// Walks one process down the ladder and waits for its end.
fn end(program: &str, ward: &Ward, rungs: Rungs, core_signal: Option<i32>) -> anyhow::Result<()> {
    let (mut ladder, first) = Ladder::begin(rungs, clock::now());
    ward.send(first, core_signal);
    while !ward.has_ended() {
        let Some(deadline) = ladder.deadline() else {
            let why = format!("traffic_{program} (pid {}) can't be ended: SIGKILL had no effect", ward.pid);
            return Err(Fatal::new(Exit::Os, why).into());
        };
        let left = deadline.saturating_sub(clock::now());
        let timeout = clock::timespec(left);
        let _ = poll(&mut [PollFd::new(ward, PollFlags::IN)], Some(&timeout));
        if let Some(rung) = ladder.tick(clock::now()).filter(|r| *r != Rung::Stuck) {
            eprintln!("traffic_cop: traffic_{program} (pid {}) doesn't end: {rung:?}", ward.pid);
            ward.send(rung, core_signal);
        }
    }
    Ok(())
}

/// Stops a running suite and starts it again with its own options; those given now come on top.
///
/// # Errors
/// As stop and start; it is somebody else's to start.
pub fn restart(common: &Common) -> anyhow::Result<Exit> {
    let common = with_running(common)?;
    // refuse before anything is stopped
    let config = common.load()?.config;
    if let Some(cop) = running_cop(&config).filter(|cop| super::upgrade::is_supervised(cop.pid)) {
        let why = format!(
            "traffic_cop (pid {}) was started by a service manager, which is to restart it (systemctl restart \
             traffic); traffic_manager restart replaces the server alone, and costs nothing",
            cop.pid
        );
        return Err(Fatal::new(Exit::Usage, why).into());
    }
    stop(&config)?;
    start_daemon(&common)
}

/// The options of the cop that runs, if one does, with those given now on top.
///
/// # Errors
/// The configuration is wrong.
pub fn with_running(common: &Common) -> anyhow::Result<Common> {
    let config = common.load()?.config;
    let running = running_cop(&config).and_then(|w| options_of(w.pid));
    Ok(running.map_or_else(|| common.clone(), |r| r.with(common)))
}

/// Starts the daemon by the program that is on disk, whose command line then tells its options to the next one who asks.
///
/// # Errors
/// It can't be run. What it says itself it says on our stderr, and its code is the result.
pub fn start_daemon(common: &Common) -> anyhow::Result<Exit> {
    let common = common.absolute()?;
    let program = crate::suite::sibling("traffic_cop")?;
    let mut start = std::process::Command::new(&program);
    let status = start.arg("start").args(common.to_args()).status();
    let status = status.with_context(|| format!("running {}", program.display()))?;
    Ok(status.code().and_then(Exit::of_code).unwrap_or(Exit::Failure))
}

fn running_cop(config: &Config) -> Option<Ward> {
    let runtime = Runtime::new(&config.suite.runtime_dir);
    Ward::of_lock(&runtime.lock("cop"), 0).unwrap_or(None)
}

/// The common options a running cop was started with.
fn options_of(pid: i32) -> Option<Common> {
    use clap::Parser;
    use std::os::unix::ffi::OsStringExt;
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    let args =
        line.split(|&b| b == 0).filter(|a| !a.is_empty()).map(|a| std::ffi::OsString::from_vec(a.to_vec()));
    match super::Cli::try_parse_from(args).ok()?.command {
        super::Command::Start { common, .. } | super::Command::Restart(common) => {
            Some(common.absolute_to(&cwd))
        }
        _ => None,
    }
}

/// Has the running manager take the configuration.
///
/// # Errors
/// The configuration is wrong (nothing is sent then), or nobody is there.
pub fn reload(common: &Common) -> anyhow::Result<Exit> {
    crate::commands::reload(common)
}
