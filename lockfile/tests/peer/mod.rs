//! A second process for the tests: this test binary once more, running the test `peer` only, which obeys commands on its
//! standard input. It ends with that, so it dies with the test.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio, exit};
use std::time::Duration;

use lockfile::{Got, Lockfile, Signal};
use nix::libc;
use nix::sys::signal::{SigHandler, kill, signal};
use nix::unistd::{Gid, Pid, Uid, getuid, setgid, setuid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const ROLE: &str = "LOCKFILE_TEST_PEER";
const MARK: &str = "peer: ";

/// The second process, seen from the test.
pub struct Peer {
    pub child: Child,
    pub stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

/// In which process group a peer is put.
#[allow(dead_code)]
pub enum Group {
    Ours,
    Own,
    Of(i32),
}

impl Peer {
    pub fn start(group: Group) -> Peer {
        Peer::run(Command::new(std::env::current_exe().unwrap()), group)
    }

    /// Root, but not allowed to look into other users' processes.
    #[allow(dead_code)]
    pub fn without_ptrace() -> Peer {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-sys_ptrace"]).arg(std::env::current_exe().unwrap());
        Peer::run(command, Group::Own)
    }

    fn run(mut command: Command, group: Group) -> Peer {
        command.args(["--exact", "peer", "--nocapture", "--test-threads=1"]).env(ROLE, "1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        match group {
            Group::Ours => {}
            Group::Own => drop(command.process_group(0)),
            Group::Of(pgid) => drop(command.process_group(pgid)),
        }
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut peer = Peer { child, stdin, stdout };
        assert_eq!(peer.answer(), "ready");
        peer
    }

    /// A peer in a group of its own that has the lock.
    pub fn holding(path: &Path) -> Peer {
        let mut peer = Peer::start(Group::Own);
        assert_eq!(peer.ask("get", path), "acquired");
        peer
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn send(&mut self, command: &str) {
        self.stdin.as_mut().unwrap().write_all(format!("{command}\n").as_bytes()).unwrap();
    }

    pub fn ask(&mut self, command: &str, path: &Path) -> String {
        self.send(&format!("{command} {}", path.display()));
        self.answer()
    }

    pub fn answer(&mut self) -> String {
        loop {
            let line = self.line();
            if let Some((_, answer)) = line.split_once(MARK) {
                return answer.to_owned();
            }
        }
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "the peer is gone");
        line.trim_end().to_owned()
    }

    pub fn signal(&self, s: Signal) {
        kill(Pid::from_raw(self.pid()), s).unwrap();
    }

    /// Waits for the end of its output: it and all that share its descriptors are gone.
    #[allow(dead_code)]
    pub fn drained(&mut self) {
        let mut line = String::new();
        while self.stdout.read_line(&mut line).unwrap() > 0 {}
    }

    /// Waits until it has ended, and leaves it a zombie.
    #[allow(dead_code)]
    pub fn wait_unreaped(&self) {
        assert!(ends(&pidfd(self.pid()), Duration::from_secs(30)));
    }

    /// SIGKILL, and reaped; its standard input stays open.
    pub fn die(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A pidfd, to wait for the end of a process that is not our child.
pub fn pidfd(pid: i32) -> OwnedFd {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap()
}

/// Whether the process ends within `limit`.
pub fn ends(pidfd: &OwnedFd, limit: Duration) -> bool {
    let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: 0 };
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&limit)).unwrap() > 0
}

/// The body of the second process. Returns at once in the first.
pub fn serve() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    say("ready");
    let mut locks = Vec::new();
    let mut members = Vec::new();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (command, path) = line.split_once(' ').unwrap_or((&line, ""));
        match command {
            "get" => {
                let mut lock = Lockfile::new(path);
                match lock.get() {
                    Ok(Got::Acquired) => {
                        locks.push(lock);
                        say("acquired");
                    }
                    Ok(Got::Held(holder)) => say(&format!("held {}", holder.pid)),
                    Err(e) => say(&chain(&e)),
                }
            }
            "close" => {
                locks.clear();
                say("closed");
            }
            "held-by-child" => {
                let held = |lock: &Lockfile| lock.is_held();
                assert!(locks.iter().all(held));
                say(if in_child(|| locks.iter().any(held)) { "yes" } else { "no" });
            }
            // what the crate cannot prevent
            "open-and-close-by-hand" => {
                drop(std::fs::File::open(path).unwrap());
                say("done");
            }
            "holder" => say(&outcome(Lockfile::holder(path))),
            "open-again" => say(&outcome(Lockfile::new(path).open())),
            "kill" => {
                say(&outcome(Lockfile::new(path).kill(Signal::SIGKILL, None, Duration::from_secs(10))));
            }
            "ignore-term" => {
                // SAFETY: SIG_IGN runs no code of ours.
                unsafe { signal(Signal::SIGTERM, SigHandler::SigIgn) }.unwrap();
                say("ignored");
            }
            // the kernel ends a stopped process only by signals that it need not handle
            "handle-term" => {
                // SAFETY: the handler makes one system call, which is safe in handlers.
                unsafe { signal(Signal::SIGTERM, SigHandler::Handler(end)) }.unwrap();
                say("handles");
            }
            "become-nobody" => {
                if getuid().is_root() {
                    setgid(Gid::from_raw(65534)).unwrap();
                    setuid(Uid::from_raw(65534)).unwrap();
                }
                say("nobody");
            }
            // of our process group, withstands SIGUSR1, ends with our standard input, which we must not read again
            "member" => {
                let mut command = Command::new("sh");
                command.args(["-c", "trap '' USR1; echo ready; exec cat"]);
                let mut member = command.stdout(Stdio::piped()).spawn().unwrap();
                let mut ready = String::new();
                BufReader::new(member.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
                say(&format!("{}", member.id()));
                members.push(member);
            }
            "keeper" => {
                keeper();
                say("kept");
            }
            // from now on this pid is a program that knows nothing of locks. It waits for what the keeper waits for
            "keeper-and-exec" => {
                keeper();
                let script = format!("echo '{MARK}another program'; exec cat");
                panic!("{}", Command::new("sh").args(["-c", &script]).exec());
            }
            other => panic!("no such command: {other}"),
        }
    }
    exit(0);
}

/// What a forked child finds.
fn in_child(look: impl Fn() -> bool) -> bool {
    // SAFETY: the child allocates nothing, looks at its own memory and its pid, and never returns.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0);
        if pid == 0 {
            libc::_exit(i32::from(look()));
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
        libc::WEXITSTATUS(status) == 1
    }
}

/// A child that shares our descriptor table and waits for the end of our standard input, which we must not read again.
fn keeper() {
    // SAFETY: clone(2) without a stack and without CLONE_VM is a fork that shares the descriptor table. The child makes
    // system calls only, on memory of its own, and never returns.
    unsafe {
        let pid = libc::syscall(libc::SYS_clone, libc::CLONE_FILES | libc::SIGCHLD, 0, 0, 0, 0);
        assert!(pid >= 0);
        if pid == 0 {
            let mut byte = 0u8;
            while libc::read(0, (&raw mut byte).cast(), 1) > 0 {}
            libc::_exit(0);
        }
    }
}

extern "C" fn end(_: libc::c_int) {
    // SAFETY: _exit(2) only ends this process.
    unsafe { libc::_exit(0) }
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{MARK}{text}").unwrap();
    out.flush().unwrap();
}

fn outcome<T: std::fmt::Debug>(result: Result<T, lockfile::Error>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(e) => chain(&e),
    }
}

fn chain(e: &lockfile::Error) -> String {
    let source = std::error::Error::source(e).map(|s| format!(": {s}")).unwrap_or_default();
    format!("error: {e}{source}")
}
