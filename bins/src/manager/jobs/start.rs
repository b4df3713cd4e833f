//! A worker's start: what it gets, and what we keep of that.

use super::stored::Part;
use super::worker::Worker;
use super::{Job, alive, file, tree};
use crate::config;
use crate::config::job::{Alive, Output, Ready};
use crate::manager::keep::Keep;
use crate::privileges;
use crate::suite;
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use supervisor::pidfd::PidFd;
use supervisor::spawn::{Spec, spawn};

/// A pipe of a worker's output, under which name it is kept, and where what is in it goes.
pub(super) struct Pipe {
    pub(super) fd: OwnedFd,
    pub(super) part: Part,
    pub(super) to: Output,
}

/// What a new process has of pipes: our ends.
pub(super) struct Pipes {
    pub(super) ours: Vec<Pipe>,
    pub(super) notify: Option<OwnedFd>,
    pub(super) ping: Option<OwnedFd>,
}

impl Keep {
    /// Starts a worker's process: its pid, its pidfd, and what is ours of its pipes.
    ///
    /// # Errors
    /// It can't be started, or its output can't be opened.
    pub(super) fn spawn_worker(&self, job: &Job, w: &Worker) -> anyhow::Result<(i32, PidFd, Pipes)> {
        let c = job.config.borrow();
        let (shared, copies) = (job.listeners.borrow(), job.copies.borrow());
        let listeners = copies.get(&w.index).unwrap_or(&shared);
        let mut pipes = Pipes { ours: Vec::new(), notify: None, ping: None };
        let files = stdio(&c, &mut pipes)?;
        let (notify, ping) = ends(&c, &mut pipes)?;
        let notify_number = 3 + listeners.len();
        let ping_number = notify_number + usize::from(notify.is_some());
        let number = |text: &String| numbered(text, listeners.len(), notify_number, ping_number);
        let mut env = environment(&c, w.index);
        let mut put = |key: &str, value: OsString| {
            env.retain(|(k, _)| k != key);
            env.push((key.into(), value));
        };
        if c.ready == Ready::Notify || !c.watchdog.is_zero() {
            put("NOTIFY_SOCKET", self.runtime.notify("manager").into());
        }
        if !c.watchdog.is_zero() {
            put("WATCHDOG_USEC", c.watchdog.as_micros().to_string().into());
        }
        if notify.is_some() {
            put("NOTIFY_FD", notify_number.to_string().into());
        }
        if ping.is_some() {
            put("TRAFFIC_PING_FD", ping_number.to_string().into());
        }
        // what its operator says goes before all that
        c.env.iter().for_each(|(k, v)| put(k, v.into()));
        let (name, whose) = tree::mark(self);
        put(name, whose);
        let spawned = spawn(&Spec {
            program: suite::find_program(&c.command[0]),
            argv: c.command.iter().map(number).collect(),
            env,
            fds: listeners.iter().map(|l| (l.bound.clone(), l.fd.as_fd())).collect(),
            plain: notify.iter().chain(&ping).map(AsFd::as_fd).collect(),
            stdio: [0, 1, 2].map(|n: usize| files[n].as_ref().map(AsFd::as_fd)),
            cwd: Some(c.cwd.clone().unwrap_or_else(|| "/".into())),
            umask: c.umask,
            nofile: (c.nofile > 0).then_some((c.nofile, c.nofile)),
            oom_score_adj: Some(c.oom()),
            nice: c.nice,
            cgroup: self.make_group(job, w.index).map(|g| g.procs()),
            credentials: privileges::job(&c)?,
        })?;
        Ok((spawned.pid, spawned.pidfd, pipes))
    }
}

/// A pipe of which we read: ours doesn't block.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

/// Its standard input, output and error.
fn stdio(c: &config::Job, pipes: &mut Pipes) -> anyhow::Result<[Option<OwnedFd>; 3]> {
    let mut files: [Option<OwnedFd>; 3] = [Some(std::fs::File::open("/dev/null")?.into()), None, None];
    for (n, to) in [(1, &c.stdout), (2, &c.stderr)] {
        let before = files[1].as_ref().filter(|_| c.stdout == c.stderr);
        files[n] = Some(match (to, before) {
            // both into one: the order of their lines is kept
            (_, Some(same)) => same.try_clone()?,
            (Output::Null, _) => nowhere()?,
            (Output::File(path), _) if c.output_max_size == 0 => own_file(c, path)?,
            (Output::File(_) | Output::Log, _) => {
                let (fd, theirs) = pipe()?;
                let part = if n == 1 { Part::Process } else { Part::Errors };
                pipes.ours.push(Pipe { fd, part, to: to.clone() });
                theirs
            }
        });
    }
    Ok(files)
}

fn nowhere() -> io::Result<OwnedFd> {
    Ok(OpenOptions::new().write(true).open("/dev/null")?.into())
}

/// A file that it writes to itself; nowhere, if that can't be opened.
fn own_file(c: &config::Job, path: &Path) -> io::Result<OwnedFd> {
    match file::open(path, c) {
        Ok(file) => {
            // opened so that a FIFO without a reader is an error; the job may wait
            rustix::io::ioctl_fionbio(&file, false)?;
            Ok(file.into())
        }
        Err(e) => {
            log::error!("event=output-dropped of=job job={} file={}: {e}", c.name, path.display());
            nowhere()
        }
    }
}

/// Its ends of what it says its readiness by, and of what it is asked by.
fn ends(c: &config::Job, pipes: &mut Pipes) -> io::Result<(Option<OwnedFd>, Option<OwnedFd>)> {
    let (mut notify, mut ping) = (None, None);
    if c.ready == Ready::Fd {
        let (ours, theirs) = pipe()?;
        (pipes.notify, notify) = (Some(ours), Some(theirs));
    }
    if c.alive == Alive::Ping {
        let (ours, theirs) = alive::pair()?;
        (pipes.ping, ping) = (Some(ours), Some(theirs));
    }
    Ok((notify, ping))
}

/// A word of its command, with the numbers of descriptors in it.
fn numbered(text: &str, listeners: usize, notify: usize, ping: usize) -> OsString {
    let mut text = text.replace("{fd}", "3").replace("{notify_fd}", &notify.to_string());
    text = text.replace("{ping_fd}", &ping.to_string());
    for n in 0..listeners {
        text = text.replace(&format!("{{fd{n}}}"), &(3 + n).to_string());
    }
    text.into()
}

/// What a worker has in its environment, but for what its descriptors are told by.
pub(super) fn environment(c: &config::Job, worker: usize) -> Vec<(OsString, OsString)> {
    let mut env: Vec<(OsString, OsString)> = match c.inherit_env {
        true => suite::child_env(&[]),
        false => vec![("PATH".into(), suite::PATH.into()), ("LANG".into(), "C.UTF-8".into())],
    };
    let own = [("TRAFFIC_JOB", c.name.clone()), ("TRAFFIC_WORKER", worker.to_string())];
    let own = own.into_iter().map(|(k, v)| (k.to_owned(), v)).chain(c.env.iter().cloned());
    for (k, v) in own {
        env.retain(|(key, _)| *key != *k);
        env.push((k.into(), v.into()));
    }
    env
}

/// Where the pipes of a worker that was adopted lead: those of its output, and that of its standard error, if it goes elsewhere. A
/// manager of an earlier version kept both among the former: which is which can be asked of the process, if it may be looked at.
pub(super) fn outputs(job: &Job, pid: i32, mut pipes: Vec<OwnedFd>, errors: Option<OwnedFd>) -> Vec<Pipe> {
    let c = job.config.borrow();
    let number = |p: &OwnedFd| rustix::fs::fstat(p).ok().map(|s| s.st_ino);
    if let Some(errors) = &errors {
        pipes.retain(|p| number(p) != number(errors));
    }
    let theirs = |n: u8| std::fs::metadata(format!("/proc/{pid}/fd/{n}")).map(|m| m.ino()).ok();
    let (out, err) = if pipes.len() > 1 { (theirs(1), theirs(2)) } else { (None, None) };
    let is_err = |p: &OwnedFd| err.is_some() && number(p) == err && number(p) != out;
    let only_err = errors.is_none() && !matches!((&c.stdout, &c.stderr), (Output::Log | Output::File(_), _));
    let of_output = pipes.into_iter().map(|fd| match only_err || is_err(&fd) {
        true => Pipe { fd, part: Part::Errors, to: c.stderr.clone() },
        false => Pipe { fd, part: Part::Process, to: c.stdout.clone() },
    });
    let of_errors = errors.map(|fd| Pipe { fd, part: Part::Errors, to: c.stderr.clone() });
    of_output.chain(of_errors).collect()
}
