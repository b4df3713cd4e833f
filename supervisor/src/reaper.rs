//! Collecting children that nobody waits for: orphans that came to us because we are their subreaper.
//!
//! Known children are reaped by their pidfd, where their exit status is wanted; this takes the rest. SIGCHLD coalesces,
//! so it takes all there are.

use crate::pidfd::PidFd;
use nix::libc::{SIGKILL, SIGTERM};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use std::time::{Duration, Instant};

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

/// All children of this process, orphans that came to it included.
pub fn children() -> Vec<i32> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.map(|t| std::fs::read_to_string(t.path().join("children")).unwrap_or_default());
    lists.flat_map(|l| l.split_whitespace().filter_map(|p| p.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Ends all children: SIGTERM, and SIGKILL for those that are there after `polite`. Returns how many had to be told.
///
/// They are ours and not reaped yet, so their numbers can't have been recycled. Those that they leave come to us too. One that
/// the kernel can't end within a second (a disk doesn't answer) is left.
pub fn end_children(polite: Duration) -> usize {
    let (mut told, mut left, until) = (0, Vec::new(), Instant::now() + polite);
    // an orphan's orphans appear one generation a round
    for _ in 0..16 {
        let mut held = children();
        held.retain(|pid| !left.contains(pid));
        let held: Vec<_> = held.into_iter().filter_map(|pid| Some((pid, PidFd::open(pid).ok()?))).collect();
        if held.is_empty() {
            break;
        }
        for (_, p) in held.iter().filter(|(_, p)| p.is_alive()) {
            told += 1;
            let _ = p.signal(SIGTERM);
        }
        for (pid, p) in &held {
            let patience = until.saturating_duration_since(Instant::now());
            if !matches!(p.poll_exit(patience), Ok(Some(_))) {
                let _ = p.signal(SIGKILL);
                if !matches!(p.poll_exit(Duration::from_secs(1)), Ok(Some(_))) {
                    left.push(*pid);
                }
            }
        }
        reap_strangers(|_| false);
    }
    told
}

/// Reaps children as they end until there are none, for `limit` at most. True: none is left.
///
/// For the end of a subreaper, which orphans may still be about to end themselves.
pub fn reap_all(limit: Duration) -> bool {
    let until = Instant::now() + limit;
    loop {
        match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
            Err(nix::errno::Errno::ECHILD) => return true,
            Ok(s) if s.pid().is_some() => {}
            _ if Instant::now() >= until => return false,
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}
