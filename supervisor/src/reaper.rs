//! Collecting children that nobody waits for: orphans that came to us because we are their subreaper.
//!
//! Known children are reaped by their pidfd, where their exit status is wanted; this takes the rest. SIGCHLD coalesces,
//! so it takes all there are.

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};

/// Makes this process the one that orphaned descendants are given to, instead of init.
///
/// # Errors
/// The kernel refuses (it doesn't, since 3.4).
pub fn become_subreaper() -> std::io::Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(Into::into)
}

/// Reaps every ended child that `is_known` doesn't claim, and returns their pids. Stops early at a known one that ended
/// meanwhile: whoever holds its pidfd will reap it and call again.
pub fn reap_strangers(is_known: impl Fn(i32) -> bool) -> Vec<i32> {
    let mut reaped = Vec::new();
    loop {
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let Some(pid) = waitid(Id::All, peek).ok().and_then(|s: WaitStatus| s.pid()) else { return reaped };
        if is_known(pid.as_raw()) {
            return reaped;
        }
        let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
        reaped.push(pid.as_raw());
    }
}
