//! Work that may have to wait for a disk, in a process of its own: who supervises must not wait for one.
//!
//! Writing a few bytes takes as long as the file system likes: seconds, while it commits a journal to a device that is busy
//! or throttled, for ever while it is frozen or its network is gone. A thread for it wouldn't do: a process of which one
//! thread waits in the kernel can't be killed, and keeps its locks. This process holds nothing of its parent's but the three
//! standard streams, and is killed when its parent dies: what it hasn't begun by then the next one does.

use crate::pidfd::PidFd;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// What such a process is called (`comm`).
pub const NAME: &str = "traffic_aside";
const NAME_C: &std::ffi::CStr = c"traffic_aside";

/// What went wrong is said in so many bytes.
const MOST: u64 = 1024;

/// Work on its way.
#[derive(Debug)]
pub struct Aside(State);

#[derive(Debug)]
enum State {
    /// A process that says in the pipe what came of it. It is reaped with the strangers ([`crate::reaper`]).
    Away(PidFd, OwnedFd),
    Done(Option<io::Result<()>>),
}

impl Aside {
    /// Does `work` in a process of its own. In a process with several threads, which can't be doubled, and where there is no
    /// other process to be had, it is done here and now.
    ///
    /// A panic of `work` is a failure.
    pub fn run(work: impl FnOnce() -> io::Result<()>) -> Aside {
        let alone = std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1);
        let parent = nix::unistd::getpid();
        match alone.then(|| rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)) {
            Some(Ok((from, to))) => {
                // SAFETY: this process has one thread (counted above), so the child may go on as an ordinary process.
                match unsafe { nix::unistd::fork() } {
                    Ok(nix::unistd::ForkResult::Child) => child(parent, work, to),
                    Ok(nix::unistd::ForkResult::Parent { child }) => match PidFd::open(child.as_raw()) {
                        Ok(process) => Aside(State::Away(process, from)),
                        Err(e) => Aside(State::Done(Some(Err(e)))),
                    },
                    Err(_) => Aside(State::Done(Some(work()))),
                }
            }
            _ => Aside(State::Done(Some(work()))),
        }
    }

    /// What came of it; `None` while it is on its way, and after it has been said.
    pub fn result(&mut self) -> Option<io::Result<()>> {
        match &mut self.0 {
            State::Done(result) => result.take(),
            State::Away(process, _) if process.is_alive() => None,
            State::Away(_, from) => {
                let mut said = String::new();
                let read = File::from(from.try_clone().ok()?).take(MOST).read_to_string(&mut said);
                self.0 = State::Done(None);
                Some(match (read, &*said) {
                    (Ok(_), "ok") => Ok(()),
                    (Ok(_), "") => Err(io::Error::other("the process that did it died")),
                    (Ok(_), why) => Err(io::Error::other(why.to_owned())),
                    (Err(e), _) => Err(e),
                })
            }
        }
    }

    /// Is nothing on its way any more?
    pub fn is_over(&mut self) -> bool {
        let _ = self.result();
        matches!(self.0, State::Done(_))
    }

    /// Waits until it is over, at most so long.
    pub fn wait(&self, at_most: Duration) {
        if let State::Away(process, _) = &self.0 {
            let _ = process.poll_exit(at_most);
        }
    }
}

fn child(parent: nix::unistd::Pid, work: impl FnOnce() -> io::Result<()>, to: OwnedFd) -> ! {
    let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    let _ = nix::sys::prctl::set_name(NAME_C);
    if nix::unistd::getppid() != parent {
        // it died before it could be noticed
        // SAFETY: _exit runs nothing of the parent's.
        unsafe { nix::libc::_exit(0) }
    }
    // SAFETY: nothing of what is closed is used any more: there is no way back from here. What is at 3 then is this one's alone.
    let mut to = unsafe {
        let kept = nix::libc::dup2(to.as_raw_fd(), 3);
        nix::libc::syscall(nix::libc::SYS_close_range, 4_u32, u32::MAX, 0_u32);
        File::from_raw_fd(kept)
    };
    let said = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => "ok".to_owned(),
        Ok(Err(e)) => e.to_string(),
        Err(_) => "a panic".to_owned(),
    };
    let _ = to.write_all(said.as_bytes());
    // SAFETY: as above; nothing of the parent's is flushed or dropped.
    unsafe { nix::libc::_exit(0) }
}
