//! Ending real processes that do not want to, and leaving others alone.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lockfile::Signal;
use nix::libc;
use nix::sys::signal::{SigHandler, signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use supervisor::clock;
use supervisor::identity::{Identity, ProcessState, deaf_thread, process_state};
use supervisor::pidfd::PidFd;
use supervisor::safe_kill::{Killer, Next, Outcome, Plan, Report, Scope, Target, safe_kill};
use supervisor::snapshot::Snapshots;

/// Long enough for a loaded machine; no test that passes waits for it.
const ENOUGH: Duration = Duration::from_secs(30);

/// A shell script in a process group of its own that has said "ready". It ends with its standard input, or when dropped.
struct Script(Child);

impl Script {
    fn start(script: &str) -> Script {
        let mut command = Command::new("sh");
        command.args(["-c", script]).process_group(0);
        Script::ready(command)
    }

    fn ready(mut command: Command) -> Script {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.as_mut().unwrap());
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            assert_ne!(out.read_line(&mut line).unwrap(), 0, "it ended");
        }
        Script(child)
    }

    /// Obeys every signal.
    fn tame() -> Script {
        Script::start("echo ready; exec cat")
    }

    /// Ignores the polite ones.
    fn stubborn() -> Script {
        Script::start("trap '' TERM USR1; echo ready; exec cat")
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    fn target(&self) -> Target {
        Target::of_pid(self.pid()).unwrap()
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn us() -> i32 {
    std::process::id() as i32
}

fn only(report: &Report) -> &Outcome {
    assert_eq!(report.outcomes.len(), 1, "{report}");
    &report.outcomes[0].1
}

fn ends(fd: impl AsFd) {
    let limit = Timespec { tv_sec: ENOUGH.as_secs() as i64, tv_nsec: 0 };
    assert!(poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap() > 0);
}

#[test]
fn a_child_that_nobody_reaps_is_a_zombie_and_no_endless_loop() {
    let child = Script::tame();
    let report = safe_kill(vec![child.target()], Plan::kill(ENOUGH));
    assert_eq!(only(&report), &Outcome::Zombie { after: Some(Signal::SIGKILL), parent: us() });
    assert!(report.all_gone());
    assert_eq!(process_state(child.pid()), Some(ProcessState::Zombie));
    assert!(Target::of_pid(child.pid()).is_err(), "there is nothing left to be held");
}

#[test]
fn reaped_in_between_is_gone() {
    let mut child = Script::tame();
    let mut killer = Killer::new(vec![child.target()], Plan::kill(ENOUGH), clock::now());
    let Next::Wait { fds, .. } = killer.step(clock::now()) else { panic!("it cannot have been seen yet") };
    assert_eq!(fds.len(), 1);
    ends(fds[0]);
    child.0.wait().unwrap();
    let Next::Done(report) = killer.step(clock::now()) else { panic!("it is gone") };
    assert_eq!(only(&report), &Outcome::Gone { after: Some(Signal::SIGKILL) });
}

#[test]
fn a_stopped_process_takes_the_core_signal() {
    let child = Script::tame();
    child.target().pidfd.signal(libc::SIGSTOP).unwrap();
    let plan = Plan { core_signal: Some(Signal::SIGUSR1), core_time: ENOUGH, ..Plan::kill(ENOUGH) };
    let report = safe_kill(vec![child.target()], plan);
    assert!(matches!(only(&report), Outcome::Zombie { after: Some(Signal::SIGUSR1), .. }), "{report}");
}

#[test]
fn who_ignores_the_core_signal_is_killed_at_its_time() {
    let child = Script::stubborn();
    let plan = Plan { core_signal: Some(Signal::SIGTERM), core_time: ENOUGH / 2, ..Plan::kill(ENOUGH) };
    // on an invented clock, so nobody has to wait
    let start = Duration::from_secs(1000);
    let mut killer = Killer::new(vec![child.target()], plan, start);
    for _ in 0..3 {
        let Next::Wait { until, .. } = killer.step(start) else { panic!("it ignores that") };
        assert_eq!(until, start + ENOUGH / 2);
    }
    let Next::Wait { until, fds } = killer.step(start + ENOUGH / 2) else { panic!("just killed") };
    assert_eq!(until, start + ENOUGH);
    ends(fds[0]);
    let Next::Done(report) = killer.step(start + ENOUGH / 2) else { panic!("it is gone") };
    assert!(matches!(only(&report), Outcome::Zombie { after: Some(Signal::SIGKILL), .. }));
    assert!(matches!(killer.step(start), Next::Done(again) if again == report), "over is over");
}

#[test]
fn the_bound_holds_for_who_withstands_all() {
    let mut child = Script::stubborn();
    let plan = Plan { kill_signal: Signal::SIGTERM, ..Plan::kill(Duration::from_millis(50)) };
    let start = Instant::now();
    let report = safe_kill(vec![child.target()], plan);
    assert!(start.elapsed() >= Duration::from_millis(50));
    assert!(matches!(only(&report), Outcome::StillThere { .. }), "{report}");
    assert!(!report.all_gone() && child.lives());
}

#[test]
fn uninterruptible_sleep_is_called_by_its_name() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "peer", "--nocapture", "--test-threads=1"]).env("SAFE_KILL_TEST_PEER", "1");
    let mut child = Script::ready(command);
    // there is no event for a process that falls asleep
    let start = Instant::now();
    while deaf_thread(child.pid()).is_none() {
        assert!(start.elapsed() < ENOUGH);
        std::thread::yield_now();
    }
    let plan = Plan { kill_signal: Signal::SIGTERM, ..Plan::kill(Duration::from_millis(20)) };
    let report = safe_kill(vec![child.target()], plan);
    let Outcome::Uninterruptible { wchan } = only(&report) else { panic!("{report}") };
    assert!(!wchan.contains('\n') && child.lives());
    // this particular sleep, unlike the disk's, yields to SIGKILL
    assert!(safe_kill(vec![child.target()], Plan::kill(ENOUGH)).all_gone());
}

/// A second process: its test thread sleeps uninterruptibly for as long as a child of vfork(2) has not gone on.
#[test]
fn peer() {
    if std::env::var_os("SAFE_KILL_TEST_PEER").is_none() {
        return;
    }
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe { signal(Signal::SIGTERM, SigHandler::SigIgn) }.unwrap();
    println!("ready");
    std::io::stdout().flush().unwrap();
    // SAFETY: clone(2) with CLONE_VFORK and without CLONE_VM or a stack is a fork that suspends the caller. The child makes
    // system calls only, on memory of its own, and never returns.
    unsafe {
        if libc::syscall(libc::SYS_clone, libc::CLONE_VFORK | libc::SIGCHLD, 0, 0, 0, 0) == 0 {
            let mut byte = 0u8;
            libc::read(0, (&raw mut byte).cast(), 1);
            libc::_exit(0);
        }
    }
}

#[test]
fn a_recycled_pid_is_left_alone() {
    let mut child = Script::tame();
    let now = Identity::of(child.pid()).unwrap();
    let before = Identity { start_time: now.start_time - 1, ..now };
    assert!(Target::of(before.clone()).unwrap().is_none());
    // even with a pidfd that was taken too late
    let wrong = Target::held(before, PidFd::open(child.pid()).unwrap());
    let report = safe_kill(vec![wrong], Plan { core_signal: Some(Signal::SIGUSR1), ..Plan::kill(ENOUGH) });
    assert_eq!(only(&report), &Outcome::NotTheSame);
    assert!(child.lives());
}

#[test]
fn neither_we_nor_our_group_are_ended() {
    let report = safe_kill(vec![Target::of_pid(us()).unwrap()], Plan::kill(ENOUGH));
    assert!(matches!(only(&report), Outcome::Refused(_)));
    let mut command = Command::new("sh");
    command.args(["-c", "echo ready; exec cat"]);
    let mut ours = Script::ready(command);
    let report = safe_kill(vec![ours.target()], Plan { scope: Scope::Group, ..Plan::kill(ENOUGH) });
    assert!(matches!(only(&report), Outcome::Refused(why) if why.contains("our own")), "{report}");
    assert!(ours.lives());
}

#[test]
fn a_group_goes_as_a_whole_and_only_by_its_leader() {
    // the leader obeys, its child does not
    let mut script = Script::start("exec 3<&0; (trap '' TERM; echo ready; exec cat) <&3 & exec cat");
    let member = {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", script.pid())).unwrap();
        Target::of_pid(children.trim().parse().unwrap()).unwrap()
    };
    let single = Target::of_pid(member.identity.pid).unwrap();
    let report = safe_kill(vec![single], Plan { scope: Scope::Group, ..Plan::kill(ENOUGH) });
    assert!(matches!(only(&report), Outcome::Refused(why) if why.contains("lead")), "{report}");
    assert!(script.lives());

    let plan = Plan {
        core_signal: Some(Signal::SIGTERM),
        core_time: Duration::from_millis(20),
        scope: Scope::Group,
        ..Plan::kill(ENOUGH)
    };
    let report = safe_kill(vec![script.target()], plan);
    assert_eq!(report.outcomes.len(), 2, "{report}");
    assert!(report.all_gone(), "{report}");
    assert!(!member.pidfd.is_alive());
}

#[test]
fn a_picture_is_kept_before_the_first_signal() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots { dir: dir.path().join("cores"), keep: 2 };
    let (a, b, c) = (Script::tame(), Script::tame(), Script::tame());
    let targets = vec![a.target(), b.target(), c.target()];
    let report = safe_kill(targets, Plan { snapshots: Some(snapshots.clone()), ..Plan::kill(ENOUGH) });
    assert!(report.all_gone(), "{report}");
    let files: Vec<_> = fs::read_dir(&snapshots.dir).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files.len(), 2);
    let mut text = String::new();
    fs::File::open(&files[0]).unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("State:") && !text.contains("State:\tZ"), "it was alive then: {text}");

    // what cannot be kept hinders nothing
    let nowhere = Snapshots { dir: "/dev/null/cores".into(), keep: 2 };
    let d = Script::tame();
    let report = safe_kill(vec![d.target()], Plan { snapshots: Some(nowhere), ..Plan::kill(ENOUGH) });
    assert!(report.all_gone(), "{report}");
}
