//! Fork and exec, by list: nothing is inherited by accident.
//!
//! A child gets: every signal at its default and none blocked; the fds it is meant to have, as `LISTEN_FDS`, and no other;
//! its environment, directory, umask, limits and process group as asked. Between fork and exec only async-signal-safe
//! calls are made, on memory prepared before; a failure travels back as (stage, errno) through a close-on-exec pipe.

mod child;

use crate::listen_fds;
use crate::pidfd::PidFd;
use crate::privileges::Credentials;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// What to run and how.
#[derive(Debug)]
pub struct Spec<'a> {
    /// The executable; looked up in no PATH.
    pub program: PathBuf,
    /// argv, `argv[0]` included.
    pub argv: Vec<OsString>,
    /// The whole environment; `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES` are added here.
    pub env: Vec<(OsString, OsString)>,
    /// Fds to hand over, as 3, 4, …, each with its name.
    pub fds: Vec<(String, BorrowedFd<'a>)>,
    /// More fds, after those, without a name: who gets them is told their numbers otherwise.
    pub plain: Vec<BorrowedFd<'a>>,
    /// In the place of stdin, stdout, stderr; inherited where `None`.
    pub stdio: [Option<BorrowedFd<'a>>; 3],
    /// Working directory.
    pub cwd: Option<PathBuf>,
    /// File mode creation mask.
    pub umask: u32,
    /// Soft and hard limit of open files, if it is to be set.
    pub nofile: Option<(u64, u64)>,
    /// `oom_score_adj`, if it is to be set: lower is killed later.
    pub oom_score_adj: Option<i32>,
    /// nice(2) increments, -20 to 19; 0 changes nothing.
    pub nice: i32,
    /// The `cgroup.procs` of the control group that it is to be in.
    pub cgroup: Option<PathBuf>,
    /// Who it is to be; `None`: who we are. Nothing of our privileges is left to it then, and it can't get any.
    pub credentials: Option<Credentials>,
}

impl Spec<'_> {
    /// That program with those arguments and that environment: as who we are, with no descriptors but ours for stdin,
    /// stdout and stderr, and nothing of its files for others.
    pub fn new(program: PathBuf, argv: Vec<OsString>, env: Vec<(OsString, OsString)>) -> Self {
        Spec {
            program,
            argv,
            env,
            fds: Vec::new(),
            plain: Vec::new(),
            stdio: [None; 3],
            cwd: None,
            umask: 0o027,
            nofile: None,
            oom_score_adj: None,
            nice: 0,
            cgroup: None,
            credentials: None,
        }
    }
}

/// Where a spawn failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Before the fork: an argument with a NUL byte, no memory, no fds.
    Prepare = 0,
    /// fork(2): limits of processes or memory.
    Fork = 1,
    /// Signals and process group.
    Group = 2,
    /// Moving the fds into place.
    Fds = 3,
    /// chdir(2).
    Chdir = 4,
    /// setrlimit(2).
    Limits = 5,
    /// Becoming another user: we aren't root, or a sandbox refuses.
    Credentials = 7,
    /// execve(2): no such file, no permission, bad interpreter, argument list too long.
    Exec = 6,
    /// Entering its control group.
    Cgroup = 8,
}

impl Stage {
    fn from_u8(n: u8) -> Stage {
        use Stage::*;
        let all = [Prepare, Fork, Group, Fds, Chdir, Limits, Exec, Credentials, Cgroup];
        all.into_iter().find(|s| *s as u8 == n).unwrap_or(Prepare)
    }

    /// The word for messages.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Prepare => "prepare",
            Stage::Fork => "fork",
            Stage::Group => "process group",
            Stage::Fds => "hand over fds",
            Stage::Chdir => "change directory",
            Stage::Limits => "set limits",
            Stage::Credentials => "become another user",
            Stage::Exec => "exec",
            Stage::Cgroup => "enter control group",
        }
    }
}

/// A spawn that failed; no process is left of it.
#[derive(Debug, thiserror::Error)]
#[error("{program}: {}: {why}", what(stage, cwd.as_deref()))]
pub struct SpawnError {
    /// What was to be run.
    pub program: PathBuf,
    /// At which step.
    pub stage: Stage,
    /// Where it was to work, if that was said.
    pub cwd: Option<PathBuf>,
    /// The errno; part of the text, so no source of its own.
    pub why: io::Error,
}

fn what(stage: &Stage, cwd: Option<&Path>) -> String {
    match (stage, cwd) {
        (Stage::Chdir, Some(dir)) => format!("{} to {}", stage.name(), dir.display()),
        _ => stage.name().to_owned(),
    }
}

impl SpawnError {
    /// True when the same command would fail again at once, so that a retry in a storm helps nobody.
    pub fn is_permanent(&self) -> bool {
        use nix::libc::{E2BIG, EACCES, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOEXEC, ENOTDIR, EPERM};
        let errno = self.why.raw_os_error();
        let lasting = [ENOENT, EACCES, ENOEXEC, E2BIG, ENOTDIR, ELOOP, ENAMETOOLONG, EPERM, EINVAL];
        matches!(self.stage, Stage::Exec | Stage::Chdir | Stage::Prepare | Stage::Credentials)
            && errno.is_none_or(|e| lasting.contains(&e))
    }
}

/// A process that was spawned: its number is for people, its pidfd for us.
#[derive(Debug)]
pub struct Spawned {
    /// The process id.
    pub pid: i32,
    /// Readable when it has ended.
    pub pidfd: PidFd,
}

/// Spawns.
///
/// # Errors
/// See [`SpawnError`]: the stage and the errno.
pub fn spawn(spec: &Spec<'_>) -> Result<Spawned, SpawnError> {
    let fail = |stage, why| SpawnError { program: spec.program.clone(), stage, cwd: spec.cwd.clone(), why };
    let prepared = Prepared::new(spec).map_err(|e| fail(Stage::Prepare, e))?;
    let (pid, outcome) = child::fork_exec(&prepared).map_err(|e| fail(Stage::Fork, e))?;
    if let Some((stage, errno)) = outcome {
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
        return Err(fail(Stage::from_u8(stage), io::Error::from_raw_os_error(errno)));
    }
    // our own child, not reaped yet: its number can't have been recycled
    let pidfd = PidFd::open(pid).map_err(|e| fail(Stage::Fork, e))?;
    Ok(Spawned { pid, pidfd })
}

/// All that the child needs, laid out before the fork.
struct Prepared {
    program: CString,
    argv: Vec<CString>,
    env: Vec<CString>,
    /// `LISTEN_PID=0000000000` with its NUL, whose digits the child fills in; empty when no fds are handed over.
    listen_pid: Vec<u8>,
    fds: Vec<RawFd>,
    stdio: [Option<RawFd>; 3],
    cwd: Option<CString>,
    umask: u32,
    nofile: Option<(u64, u64)>,
    oom_score_adj: Option<CString>,
    nice: i32,
    cgroup: Option<CString>,
    credentials: Option<(u32, u32, Vec<nix::libc::gid_t>)>,
}

/// Digits kept free for the pid; pid_max is at most 2^22.
const PID_DIGITS: usize = 10;
const LISTEN_PID: &str = "LISTEN_PID=";

impl Prepared {
    fn new(spec: &Spec<'_>) -> io::Result<Prepared> {
        let c = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::other);
        if spec.fds.len() + spec.plain.len() > listen_fds::MAX {
            return Err(io::Error::other("too many fds to hand over"));
        }
        let mut env = Vec::with_capacity(spec.env.len() + 3);
        for (k, v) in &spec.env {
            // ours to say
            if !["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"].iter().any(|ours| k == ours) {
                let mut kv = k.clone().into_vec();
                kv.push(b'=');
                kv.extend_from_slice(v.as_bytes());
                env.push(c(&kv)?);
            }
        }
        let mut listen_pid = Vec::new();
        if !spec.fds.is_empty() {
            let names: Vec<String> = spec.fds.iter().map(|(n, _)| listen_fds::name_for(n)).collect();
            env.push(c(format!("LISTEN_FDS={}", spec.fds.len()).as_bytes())?);
            env.push(c(format!("LISTEN_FDNAMES={}", names.join(":")).as_bytes())?);
            listen_pid = format!("{LISTEN_PID}{}\0", "0".repeat(PID_DIGITS)).into_bytes();
        }
        Ok(Prepared {
            program: c(spec.program.as_os_str().as_bytes())?,
            argv: spec.argv.iter().map(|a| c(a.as_bytes())).collect::<io::Result<_>>()?,
            env,
            listen_pid,
            fds: spec.fds.iter().map(|(_, f)| f).chain(&spec.plain).map(|f| f.as_raw_fd()).collect(),
            stdio: spec.stdio.map(|f| f.map(|f| f.as_raw_fd())),
            cwd: spec.cwd.as_ref().map(|p| c(p.as_os_str().as_bytes())).transpose()?,
            umask: spec.umask,
            nofile: spec.nofile,
            oom_score_adj: spec.oom_score_adj.map(|n| c(n.to_string().as_bytes())).transpose()?,
            nice: spec.nice,
            cgroup: spec.cgroup.as_ref().map(|p| c(p.as_os_str().as_bytes())).transpose()?,
            credentials: spec.credentials.as_ref().map(|c| (c.uid, c.gid, c.groups.clone())),
        })
    }
}
