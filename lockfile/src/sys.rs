//! pidfds: the few calls needed here, and the one that has no safe wrapper yet.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::libc;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// `PIDFD_SIGNAL_PROCESS_GROUP` of linux/pidfd.h, since Linux 6.9.
const SIGNAL_PROCESS_GROUP: libc::c_uint = 1 << 2;

/// A descriptor of the process that has this number now.
pub(crate) fn pidfd(pid: Pid) -> Result<OwnedFd, Errno> {
    pidfd_open(pid, PidfdFlags::empty())
}

/// Whether the process has ended, reaped or not.
pub(crate) fn exited(pidfd: &OwnedFd) -> bool {
    exits_before(pidfd, Instant::now())
}

/// Waits until the process has ended, at most until `deadline`; says whether it has.
pub(crate) fn exits_before(pidfd: &OwnedFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&left)) {
            Ok(n) => return n > 0,
            Err(Errno::INTR) => {}
            // cannot be for a valid descriptor; "not known to have ended" is the careful answer
            Err(_) => return false,
        }
    }
}

/// Sends a signal to the process of `pidfd`.
pub(crate) fn signal(pidfd: BorrowedFd<'_>, signal: Signal) -> Result<(), Errno> {
    send(pidfd, signal as i32, 0)
}

/// Sends a signal to the process group led by the process of `leader`, whose number is or was `pid`. The leader may have
/// ended: its pidfd goes on naming the group, and never another one.
///
/// This is here because [`Lockfile::kill_group`](crate::Lockfile::kill_group) needs it, and there is no safe wrapper
/// for it elsewhere.
///
/// # Errors
/// `ESRCH` if there is no such group (any more), `EPERM` if none of its members may be signalled.
pub fn signal_group(leader: BorrowedFd<'_>, pid: i32, signal: Signal) -> std::io::Result<()> {
    let Some(number) = Pid::from_raw(pid.max(0)) else { return Err(Errno::INVAL.into()) };
    match send(leader, signal as i32, SIGNAL_PROCESS_GROUP) {
        // a kernel before 6.9
        Err(Errno::INVAL) => signal_group_by_number(leader, number, signal),
        other => Ok(other?),
    }
}

/// The same where a pidfd names no group. A number is not given out again while it names a group with a member, so it is
/// still our group's if the leader is unreaped, or if no process has that number.
fn signal_group_by_number(leader: BorrowedFd<'_>, number: Pid, signal: Signal) -> std::io::Result<()> {
    let ours = send(leader, 0, 0).is_ok() || rustix::process::test_kill_process(number).is_err();
    if !ours {
        return Err(Errno::SRCH.into());
    }
    Ok(nix::sys::signal::killpg(nix::unistd::Pid::from_raw(number.as_raw_nonzero().get()), signal)?)
}

/// pidfd_send_signal(2) with flags, which rustix does not offer.
fn send(pidfd: BorrowedFd<'_>, signal: i32, flags: libc::c_uint) -> Result<(), Errno> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is borrowed, so open during the call; a null siginfo is allowed and makes the kernel fill it
    // in as for kill(2); no memory of ours is read or written.
    let r = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_fd().as_raw_fd(), signal, no_info, flags)
    };
    if r == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Child, Command, Stdio};

    /// The leader of a group of its own, which lives until it is told to end.
    fn leader(script: &str) -> (Child, OwnedFd) {
        let mut command = Command::new("sh");
        let child = command.args(["-c", script]).stdin(Stdio::piped()).process_group(0).spawn().unwrap();
        let pidfd = pidfd(Pid::from_child(&child)).unwrap();
        (child, pidfd)
    }

    #[test]
    fn a_group_is_found_by_its_number_only_as_long_as_that_is_its_own() {
        let signal = |fd: &OwnedFd, of: &Child, signal| {
            signal_group_by_number(fd.as_fd(), Pid::from_child(of), signal)
        };
        let (mut living, living_fd) = leader("exec cat");
        // it has left a member, and nobody has its number any more
        let (mut gone, gone_fd) = leader("exec 3<&0; cat <&3 & exit");
        let input = gone.stdin.take();
        gone.wait().unwrap();
        signal(&gone_fd, &gone, Signal::SIGKILL).unwrap();
        drop(input);
        // a number that is somebody else's by now
        let stranger = signal(&gone_fd, &living, Signal::SIGKILL).unwrap_err();
        assert_eq!(stranger.raw_os_error(), Some(Errno::SRCH.raw_os_error()));
        assert!(living.try_wait().unwrap().is_none());
        signal(&living_fd, &living, Signal::SIGTERM).unwrap();
        assert_eq!(living.wait().unwrap().signal(), Some(Signal::SIGTERM as i32));
    }
}
