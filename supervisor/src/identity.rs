//! Who a process is, what it is doing, and a picture of it for those who come later.
//!
//! A pid alone says nothing: numbers are given out again. Pid and start time together name a process for good (until the
//! machine boots).

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use procfs::ProcError;
use procfs::process::Process;

/// The mark that one process can be told by from any other, and what a person wants to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
    /// Its program; `None` if it has none (any more) or we may not see it.
    pub exe: Option<Executable>,
    /// Its name: at most 15 bytes, and the process may change it.
    pub comm: String,
}

/// A program on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    /// Its path, without the kernel's " (deleted)".
    pub path: PathBuf,
    /// Whether the kernel says that the path does not name it any more: it was replaced or removed while it ran.
    pub deleted: bool,
    /// Device and inode, if they can be seen.
    pub file: Option<(u64, u64)>,
}

/// What a process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessState {
    /// Running, or waiting for a processor.
    Running,
    /// Waiting for an event, and for signals.
    Sleeping,
    /// Waiting for the disk or the like, and deaf to signals ("D").
    Uninterruptible,
    /// Stopped by a signal.
    Stopped,
    /// Stopped by a debugger.
    Traced,
    /// Ended, and its parent has not asked how.
    Zombie,
    /// Anything else, as the letter of proc_pid_stat(5).
    Other(char),
}

/// The changing part of what /proc tells of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
    /// What it is doing.
    pub state: ProcessState,
    /// Its parent.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// The memory it occupies, in bytes.
    pub rss: u64,
    /// The processor time it has had, in clock ticks.
    pub cpu: u64,
}

/// How many of the ticks in [`Look::start_time`] a second has.
pub fn ticks_per_second() -> u64 {
    procfs::ticks_per_second().max(1)
}

/// What /proc tells of a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadLook {
    /// Its number.
    pub tid: i32,
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub state: ProcessState,
    /// The processor time it has had, in clock ticks.
    pub cpu: u64,
}

/// Looks at all threads of a process; none if there is no such process.
pub fn threads(pid: i32) -> Vec<ThreadLook> {
    let tasks = Process::new(pid).and_then(|p| p.tasks()).into_iter().flatten().flatten();
    let looks = tasks.filter_map(|t| {
        let stat = t.stat().ok()?;
        let state = ProcessState::from_letter(stat.state);
        Some(ThreadLook { tid: t.tid, name: stat.comm, state, cpu: stat.utime + stat.stime })
    });
    looks.collect()
}

/// Looks at a process.
///
/// # Errors
/// There is no such process, or no /proc.
pub fn look(pid: i32) -> io::Result<Look> {
    look_at(&Process::new(pid).map_err(os)?).map(|(look, _)| look)
}

pub(crate) fn look_at(process: &Process) -> io::Result<(Look, String)> {
    let stat = process.stat().map_err(os)?;
    let look = Look {
        start_time: stat.starttime,
        state: ProcessState::from_letter(stat.state),
        parent: stat.ppid,
        group: stat.pgrp,
        rss: stat.rss * procfs::page_size(),
        cpu: stat.utime + stat.stime,
    };
    Ok((look, stat.comm))
}

/// The reason as the operating system gives it.
pub(crate) fn os(e: ProcError) -> io::Error {
    match e {
        ProcError::PermissionDenied(_) => io::ErrorKind::PermissionDenied.into(),
        ProcError::NotFound(_) => io::ErrorKind::NotFound.into(),
        ProcError::Io(e, _) => e,
        other => io::Error::other(other),
    }
}

/// Where in the kernel the first thread of the process waits that is in uninterruptible sleep, if any is. One such thread
/// keeps a killed process from ending, whatever the others do.
pub fn deaf_thread(pid: i32) -> Option<String> {
    let threads = Process::new(pid).ok()?.tasks().ok()?.flatten();
    let mut deaf = threads.filter(|t| t.stat().is_ok_and(|s| s.state == 'D'));
    let tid = deaf.next()?.tid;
    Some(std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/wchan")).unwrap_or_default())
}

/// What a process is doing; `None` if there is none of this number.
pub fn process_state(pid: i32) -> Option<ProcessState> {
    look(pid).ok().map(|l| l.state)
}

impl ProcessState {
    fn from_letter(letter: char) -> ProcessState {
        match letter {
            'R' => ProcessState::Running,
            'S' | 'I' => ProcessState::Sleeping,
            'D' => ProcessState::Uninterruptible,
            'T' => ProcessState::Stopped,
            't' => ProcessState::Traced,
            'Z' => ProcessState::Zombie,
            other => ProcessState::Other(other),
        }
    }
}

impl Identity {
    /// Who has this number now.
    ///
    /// # Errors
    /// There is no such process, or no /proc.
    pub fn of(pid: i32) -> io::Result<Identity> {
        let process = Process::new(pid).map_err(os)?;
        let (look, comm) = look_at(&process)?;
        let exe = Executable::of(&process);
        Ok(Identity { pid, start_time: look.start_time, exe, comm })
    }

    /// Whether the process of this number is still this one. A zombie still is; what the process executes does not
    /// matter.
    pub fn still(&self) -> bool {
        self.look().is_some()
    }

    /// Looks at it, if the process of its number is still this one.
    pub fn look(&self) -> Option<Look> {
        look(self.pid).ok().filter(|look| look.start_time == self.start_time)
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pid {} ({})", self.pid, self.comm.escape_debug())
    }
}

impl Executable {
    /// The program at `path`, to compare with.
    pub fn at(path: &Path) -> Executable {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let file = std::fs::metadata(&path).ok().map(|m| (m.dev(), m.ino()));
        Executable { path, deleted: false, file }
    }

    fn of(process: &Process) -> Option<Executable> {
        let shown = process.exe().ok()?;
        // follows the link to the program itself, whatever has become of its path
        let file = std::fs::metadata(format!("/proc/{}/exe", process.pid())).ok().map(|m| (m.dev(), m.ino()));
        Some(Executable::parse(&shown, file))
    }

    fn parse(shown: &Path, file: Option<(u64, u64)>) -> Executable {
        match shown.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
            // a program may really be called that
            Some(_) if file.is_some() && Executable::at(shown).file == file => {
                Executable { path: shown.to_owned(), deleted: false, file }
            }
            Some(path) => Executable { path: OsStr::from_bytes(path).into(), deleted: true, file },
            None => Executable { path: shown.to_owned(), deleted: false, file },
        }
    }

    /// Whether they are the same file, or were installed at the same path, one after the other.
    pub fn same(&self, other: &Executable) -> bool {
        self.path == other.path || (self.file.is_some() && self.file == other.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_are_who_we_are_and_nobody_else() {
        let me = Identity::of(std::process::id() as i32).unwrap();
        assert!(me.still());
        assert!(me.look().unwrap().rss > 0);
        assert!(!Identity { start_time: me.start_time + 1, ..me.clone() }.still(), "a recycled pid");
        assert!(me.exe.unwrap().same(&Executable::at(&std::env::current_exe().unwrap())));
        assert!(Identity::of(i32::MAX).is_err() && Identity::of(0).is_err() && Identity::of(-1).is_err());
    }

    #[test]
    fn a_replaced_program_is_told_by_its_path() {
        let old = Executable::parse(Path::new("/opt/bin/traffic_server (deleted)"), Some((1, 2)));
        let new = Executable::parse(Path::new("/opt/bin/traffic_server"), Some((1, 3)));
        assert!(old.deleted && !new.deleted && old.same(&new));
        assert!(!new.same(&Executable::parse(Path::new("/usr/bin/traffic_server"), Some((1, 4)))));
        assert!(!Executable { file: None, ..old }.same(&Executable { file: None, path: "/x".into(), ..new }));
    }
}
