//! What systemd does for cop, as far as a drill needs it: it keeps cop's fds (`FDSTORE=1`), hears its watchdog, and starts
//! the next cop, with the fds, when one has ended or hangs.

use crate::exit::Exit;
use crate::suite::{STOP_ON_EOF, child_env};
use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use supervisor::fd_store::FdStore;
use supervisor::notify::{Field, NotifySocket};
use supervisor::pidfd::{ExitStatus, PidFd};
use supervisor::spawn::{Spec, spawn};

/// Fds that are kept at most, as `FileDescriptorStoreMax=` of our unit.
const STORE_MAX: usize = 8192;

/// Keeps a cop running.
#[derive(Debug)]
pub struct Init {
    program: PathBuf,
    config: PathBuf,
    log: File,
    watchdog: Option<Duration>,
    socket: Arc<NotifySocket>,
    heard: Arc<Mutex<Heard>>,
    /// Closed, it ends the thread that hears.
    end: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    cop: Option<Cop>,
    starts: u64,
}

/// What cop has said.
#[derive(Debug)]
struct Heard {
    store: FdStore,
    alive: Instant,
}

#[derive(Debug)]
struct Cop {
    pid: i32,
    process: PidFd,
    /// Closed, it has cop stop the suite; that happens too when this process ends, however that ends.
    stdin: Option<OwnedFd>,
}

impl Init {
    /// For a suite with its notify socket in `dir` and its `config`. Nothing is started yet. `log` takes what the programs
    /// write; a cop that is silent for `watchdog` is killed by [`Init::tend`].
    ///
    /// # Errors
    /// A socket, a pipe or a thread can't be made.
    pub fn new(
        program: &Path,
        dir: &Path,
        config: &Path,
        log: File,
        watchdog: Option<Duration>,
    ) -> io::Result<Init> {
        let socket = Arc::new(NotifySocket::bind(&dir.join("init.notify"))?);
        let heard = Heard { store: FdStore::new(STORE_MAX), alive: Instant::now() };
        let heard = Arc::new(Mutex::new(heard));
        let (until, end) = pipe_with(PipeFlags::CLOEXEC)?;
        let (from, to) = (socket.clone(), heard.clone());
        let thread = std::thread::Builder::new().name("init".into()).spawn(move || {
            loop {
                let mut fds = [PollFd::new(&*from, PollFlags::IN), PollFd::new(&until, PollFlags::IN)];
                let _ = poll(&mut fds, None);
                if !fds[1].revents().is_empty() {
                    return;
                }
                hear(&from, &mut lock(&to));
            }
        })?;
        Ok(Init {
            program: program.to_owned(),
            config: config.to_owned(),
            log,
            watchdog,
            socket,
            heard,
            end: Some(end),
            thread: Some(thread),
            cop: None,
            starts: 0,
        })
    }

    /// Starts cop, or the next one after it has ended.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut heard = lock(&self.heard);
        // what the last one said in its last moment
        hear(&self.socket, &mut heard);
        heard.alive = Instant::now();
        let mut env = child_env(&[("NOTIFY_SOCKET", self.socket.path().into()), (STOP_ON_EOF, "1".into())]);
        env.retain(|(k, _)| k == STOP_ON_EOF || !k.to_string_lossy().starts_with("TRAFFIC_"));
        if let Some(patience) = self.watchdog {
            env.push(("WATCHDOG_USEC".into(), patience.as_micros().to_string().into()));
        }
        let argv = ["traffic_cop", "start", "--foreground", "--config"].map(OsString::from);
        let spawned = spawn(&Spec {
            fds: heard.store.iter().map(|(name, fd)| (name.clone(), fd.as_fd())).collect(),
            stdio: [Some(theirs.as_fd()), Some(self.log.as_fd()), Some(self.log.as_fd())],
            cwd: Some("/".into()),
            ..Spec::new(
                self.program.clone(),
                argv.into_iter().chain([self.config.clone().into()]).collect(),
                env,
            )
        })
        .context("starting traffic_cop")?;
        self.starts += 1;
        self.cop = Some(Cop { pid: spawned.pid, process: spawned.pidfd, stdin: Some(ours) });
        Ok(())
    }

    /// The cop that was started last.
    pub fn cop(&self) -> Option<(i32, &PidFd)> {
        self.cop.as_ref().map(|c| (c.pid, &c.process))
    }

    /// How often one was started.
    pub fn starts(&self) -> u64 {
        self.starts
    }

    /// The names of the fds that are kept.
    pub fn stored(&self) -> Vec<String> {
        lock(&self.heard).store.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Waits `at_most` for cop's end, then sees to it: one that has ended is followed by the next (true), one that hangs is
    /// killed first.
    ///
    /// # Errors
    /// The next one can't be started, or would end as the last one did.
    pub fn tend(&mut self, at_most: Duration) -> anyhow::Result<bool> {
        let Some(cop) = &self.cop else { return Ok(false) };
        if cop.process.poll_exit(at_most)?.is_none() {
            let silent = lock(&self.heard).alive.elapsed();
            if self.watchdog.is_none_or(|patience| silent < patience) {
                return Ok(false);
            }
            cop.process.signal(nix::libc::SIGKILL)?;
            cop.process.poll_exit(Duration::from_secs(5))?;
        }
        if let Some(status) = cop.process.wait()?.filter(|s| s.code().is_some_and(Exit::is_permanent)) {
            anyhow::bail!("traffic_cop ended with {status}, as the next one would: see its log");
        }
        self.start()?;
        Ok(true)
    }

    /// Has cop stop the suite, and waits for its end. `None`: it hasn't ended in time.
    ///
    /// # Errors
    /// It can't be waited for.
    pub fn stop(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let Some(cop) = &mut self.cop else { return Ok(None) };
        cop.stdin = None;
        // a cop that is stopped itself can't act on it
        let _ = cop.process.signal(nix::libc::SIGCONT);
        match cop.process.poll_exit(limit)? {
            Some(()) => cop.process.wait(),
            None => Ok(None),
        }
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        if let Some(cop) = &self.cop {
            let _ = cop.process.signal(nix::libc::SIGKILL);
            let _ = cop.process.poll_exit(Duration::from_secs(5));
            let _ = cop.process.wait();
        }
        self.end = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Takes what is in the socket. The directory is private: whoever can write to it is of the suite.
fn hear(socket: &NotifySocket, heard: &mut Heard) {
    while let Ok(Some(d)) = socket.recv() {
        let name = d.message.fd_name().map(str::to_owned);
        heard.alive = Instant::now();
        if let (true, Some(name)) = (d.message.has(&Field::FdStore), &name) {
            // a full store is what the next cop would notice; the count is in the drill's figures
            let _ = heard.store.add(name, d.fds);
        } else if let (true, Some(name)) = (d.message.has(&Field::FdStoreRemove), &name) {
            heard.store.remove(name);
        }
    }
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}
