//! The double fork, as `start` needs it: the first process stays until the daemon has told it how the start went.
//!
//! fork, setsid, fork again (a session leader could get a terminal), chdir `/`, umask, standard fds. The pipe between the
//! two replaces the sleep-and-hope of the models: the parent ends with what the daemon reports, and if the daemon dies
//! before it reports, the pipe says that too.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Side {
    /// The one the operator started: wait for the report.
    Parent(Report),
    /// The daemon, detached.
    Daemon(Reporter),
}

/// The parent's end.
#[derive(Debug)]
pub struct Report(File);

/// The daemon's end.
#[derive(Debug)]
pub struct Reporter(File);

impl Report {
    /// Waits for the daemon's word: exit code and text. An end without a word is `None`.
    pub fn wait(mut self) -> Option<(u8, String)> {
        let mut text = String::new();
        self.0.read_to_string(&mut text).ok()?;
        let (code, text) = text.split_once('\n')?;
        Some((code.parse().ok()?, text.to_owned()))
    }
}

impl Reporter {
    /// Tells the parent how the start went. It may be gone: that is no error of ours.
    ///
    /// After a failure (`code` is not 0) the pipe stays open until this process ends: the parent returns when nothing of
    /// the daemon is left.
    pub fn report(mut self, code: u8, text: &str) {
        let _ = self.0.write_all(format!("{code}\n{text}").as_bytes());
        if code != 0 {
            let _ = self.0.into_raw_fd();
        }
    }
}

/// Detaches. To be called with one thread, before anything that must not be doubled (locks, sockets) exists.
///
/// The daemon keeps `keep` and closes every other fd above 2; its standard fds are `/dev/null` until
/// [`redirect_std`] gives it a log.
///
/// # Errors
/// What the system refused, in either process.
pub fn daemonize(umask: u32, keep: &[BorrowedFd<'_>]) -> io::Result<Side> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: this process has one thread (documented above), so the child may go on as an ordinary process.
    if let nix::unistd::ForkResult::Parent { child } = unsafe { nix::unistd::fork() }? {
        drop(write);
        let _ = nix::sys::wait::waitpid(child, None);
        return Ok(Side::Parent(Report(read.into())));
    }
    drop(read);
    nix::unistd::setsid()?;
    // SAFETY: as above; the middle process leaves by _exit, without running anything of its parent's.
    if let nix::unistd::ForkResult::Parent { .. } = unsafe { nix::unistd::fork() }? {
        // SAFETY: _exit runs no destructor and no handler.
        unsafe { nix::libc::_exit(0) }
    }
    nix::unistd::chdir("/")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
    close_others(&write, keep);
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    redirect_std(Some(&null), Some(&null), Some(&null))?;
    Ok(Side::Daemon(Reporter(write.into())))
}

/// Puts files in the place of stdin, stdout and stderr.
///
/// # Errors
/// dup2 fails.
pub fn redirect_std(stdin: Option<&File>, stdout: Option<&File>, stderr: Option<&File>) -> io::Result<()> {
    if let Some(f) = stdin {
        rustix::stdio::dup2_stdin(f)?;
    }
    if let Some(f) = stdout {
        rustix::stdio::dup2_stdout(f)?;
    }
    if let Some(f) = stderr {
        rustix::stdio::dup2_stderr(f)?;
    }
    Ok(())
}

/// Closes every fd above 2 but these: the caller's shell may have left some open.
fn close_others(pipe: &OwnedFd, keep: &[BorrowedFd<'_>]) {
    let mut kept: Vec<i32> = keep.iter().map(|f| f.as_raw_fd()).collect();
    kept.push(pipe.as_raw_fd());
    kept.sort_unstable();
    let mut from = 3;
    for fd in kept {
        close_range(from, fd - 1);
        from = fd + 1;
    }
    close_range(from, i32::MAX);
}

fn close_range(first: i32, last: i32) {
    if first <= last {
        // SAFETY: called right after the fork, when no owned fd but the kept ones is used again.
        unsafe { nix::libc::syscall(nix::libc::SYS_close_range, first, last, 0) };
    }
}
