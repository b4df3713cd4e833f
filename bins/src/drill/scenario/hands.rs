//! What can be done to processes and their disk, each with the way to put it right again. Whatever ends the drill, what it
//! did is undone: by [`Hands`] at its end, by the kernel if that is SIGKILL (but SIGSTOP, which somebody has to take back).

use anyhow::Context;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use policy::pulse::Doing;
use rustix::fs::{FallocateFlags, fallocate, fstatvfs};
use rustix::process::{Resource, Rlimit, prlimit};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use supervisor::identity;
use supervisor::pidfd::PidFd;

/// How long it may take to meet a thread at work.
const MEET: Duration = Duration::from_secs(10);
/// How often it is looked whether a thread that was caught is gone.
const LOOK: Duration = Duration::from_millis(10);

/// Something that was done.
#[derive(Debug)]
pub enum Done {
    /// These were stopped.
    Stopped(Vec<PidFd>),
    /// This file has taken the room; it has no name, and ends with us.
    Full(File),
    /// This process had this limit.
    Limited(PidFd, i32, Rlimit),
    /// This thread is held.
    Caught(Caught),
}

/// All that is to be undone.
#[derive(Debug, Default)]
pub struct Hands {
    done: Vec<(Option<Instant>, &'static str, Done)>,
}

impl Hands {
    /// To be undone after `lasts`, or at the end.
    pub fn keep(&mut self, verb: &'static str, done: Done, lasts: Option<Duration>) {
        self.done.push((lasts.map(|d| Instant::now() + d), verb, done));
    }

    /// Undoes what is due, and says what that was.
    pub fn undo_due(&mut self) -> Vec<&'static str> {
        let now = Instant::now();
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.done).into_iter().partition(|(at, ..)| at.is_some_and(|at| at <= now));
        self.done = later;
        due.into_iter().map(|(_, verb, done)| (verb, done.undo()).0).collect()
    }

    /// Undoes all of it.
    pub fn undo_all(&mut self) {
        self.done.drain(..).for_each(|(.., done)| done.undo());
    }
}

impl Drop for Hands {
    fn drop(&mut self) {
        self.undo_all();
    }
}

impl Done {
    fn undo(self) {
        match self {
            Done::Stopped(list) => list.iter().for_each(|p| {
                // one that was replaced meanwhile is gone
                let _ = p.signal(nix::libc::SIGCONT);
            }),
            Done::Limited(process, pid, was) if process.is_alive() => {
                let _ = limit(pid, was);
            }
            Done::Full(_) | Done::Limited(..) | Done::Caught(_) => {}
        }
    }
}

/// Takes the room of the file system that `dir` is in, but `leave` bytes.
///
/// # Errors
/// It has more than `at_most` bytes of room; it refuses.
pub fn fill_disk(dir: &Path, leave: u64, at_most: u64) -> anyhow::Result<Done> {
    let file = nameless(dir).with_context(|| format!("making a file in {}", dir.display()))?;
    let fs = fstatvfs(&file)?;
    let blocks = if rustix::process::geteuid().is_root() { fs.f_bfree } else { fs.f_bavail };
    let free = blocks * fs.f_frsize;
    anyhow::ensure!(
        free <= at_most,
        "the file system of {} has {free} bytes of room, more than at_most = {at_most}: that many are not taken. \
         Use a small one (--dir), or raise at_most",
        dir.display()
    );
    let (mut taken, mut part) = (0, free.saturating_sub(leave));
    let wanted = part;
    // what was free may be less by now, or not to be had in one piece
    while taken < wanted && part >= 1024 {
        match fallocate(&file, FallocateFlags::empty(), taken, part.min(wanted - taken)) {
            Ok(()) => taken += part.min(wanted - taken),
            Err(rustix::io::Errno::NOSPC) => part /= 2,
            Err(e) => return Err(e).context("taking the room"),
        }
    }
    Ok(Done::Full(file))
}

/// A file without a name.
fn nameless(dir: &Path) -> std::io::Result<File> {
    let tmpfile = OpenOptions::new().write(true).mode(0o600).custom_flags(nix::libc::O_TMPFILE).open(dir);
    tmpfile.or_else(|_| {
        let path = dir.join(format!(".drill-{}", std::process::id()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    })
}

/// Gives a process no more than `to` open files.
///
/// # Errors
/// We may not.
pub fn limit_fds(process: PidFd, pid: i32, to: u64) -> anyhow::Result<Done> {
    let raw = rustix::process::Pid::from_raw(pid).context("a pid")?;
    // asked first, so that the higher limit stays as it is
    let now = highest_limit(raw)?;
    let was = limit(pid, Rlimit { current: Some(to), maximum: now })
        .with_context(|| format!("limiting the open files of pid {pid}"))?;
    Ok(Done::Limited(process, pid, was))
}

/// The higher limit of a process.
fn highest_limit(pid: rustix::process::Pid) -> anyhow::Result<Option<u64>> {
    let path = format!("/proc/{}/limits", pid.as_raw_nonzero());
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = text.lines().find(|l| l.starts_with("Max open files")).context("no line on open files")?;
    Ok(line.split_whitespace().nth(4).and_then(|n| n.parse().ok()))
}

fn limit(pid: i32, to: Rlimit) -> rustix::io::Result<Rlimit> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH)?;
    prlimit(Some(pid), Resource::Nofile, to)
}

/// A thread that is held in the middle of its work. Whoever holds one is its tracer, and must take note of its end: else
/// its process could be killed, but not be seen to end. So a thread of ours does nothing else.
#[derive(Debug)]
pub struct Caught {
    release: Option<Sender<()>>,
    tracer: Option<JoinHandle<()>>,
}

impl Drop for Caught {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(tracer) = self.tracer.take() {
            let _ = tracer.join();
        }
    }
}

/// Stops an event thread of the server `pid` while it is in a round of its loop.
///
/// # Errors
/// We may not trace it, or none of its threads is ever at work.
pub fn hang(pid: i32) -> anyhow::Result<Done> {
    let (told, hear) = channel();
    let (release, released) = channel();
    let tracer = std::thread::Builder::new().name("tracer".into()).spawn(move || match meet(pid) {
        Ok(tid) => {
            let _ = told.send(Ok(()));
            hold(tid, &released);
        }
        Err(e) => drop(told.send(Err(e))),
    })?;
    let caught = Caught { release: Some(release), tracer: Some(tracer) };
    hear.recv().context("the tracer died")??;
    Ok(Done::Caught(caught))
}

/// Until the thread is gone, or is to go on.
fn hold(tid: Pid, released: &Receiver<()>) {
    while released.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        match waitpid(tid, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_) => return,
            Ok(_) => {}
        }
    }
    let _ = ptrace::detach(tid, None);
}

fn meet(pid: i32) -> anyhow::Result<Pid> {
    let page = pulse_page(pid)?;
    let until = Instant::now() + MEET;
    while Instant::now() < until {
        for t in identity::threads(pid).into_iter().filter(|t| t.name.starts_with("net-")) {
            let tid = Pid::from_raw(t.tid);
            ptrace::seize(tid, ptrace::Options::empty())
                .with_context(|| format!("tracing thread {tid} of pid {pid} (root may)"))?;
            ptrace::interrupt(tid)?;
            waitpid(tid, Some(WaitPidFlag::__WALL))?;
            let readings = supervisor::pulse::read(&page)?;
            let at_work = |r: &policy::pulse::Reading| matches!(r.doing, Doing::Calling(_));
            if readings.iter().any(|r| r.thread == t.name && at_work(r)) {
                return Ok(tid);
            }
            ptrace::detach(tid, None)?;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    anyhow::bail!("no event thread of pid {pid} was at work in {MEET:?}: is there any load?")
}

/// Where the server's threads note what they do.
fn pulse_page(pid: i32) -> anyhow::Result<File> {
    let dir = format!("/proc/{pid}/fd");
    let fds = std::fs::read_dir(&dir).with_context(|| format!("reading {dir}"))?;
    let is_page = |p: &std::path::PathBuf| {
        std::fs::read_link(p).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:pulse"))
    };
    let page = fds.flatten().map(|f| f.path()).find(is_page).context("it isn't our server: no pulse page")?;
    Ok(File::open(page)?)
}
