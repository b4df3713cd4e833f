//! A server that is killed and that the kernel can't end yet: who goes on without waiting for it, and who mustn't.

mod common;

use common::*;
use nix::sys::ptrace;
use nix::unistd::Pid;
use std::path::Path;
use std::time::Duration;
use supervisor::identity;
use supervisor::pidfd::PidFd;

/// A process that can't end: one of its threads is held in the middle of its death, as by a disk that doesn't answer. One that
/// has many gigabytes to free is in the same state for a while.
struct Held {
    pid: i32,
    thread: Pid,
    process: PidFd,
}

impl Held {
    /// To be let go of by the same thread.
    fn server(s: &Suite, thread: &str) -> Held {
        let pid = s.pid("server");
        let threads = identity::threads(pid);
        let found = threads.iter().find(|t| t.name == thread);
        let thread = Pid::from_raw(found.unwrap_or_else(|| panic!("{threads:?}")).tid);
        ptrace::seize(thread, ptrace::Options::PTRACE_O_TRACEEXIT).unwrap();
        Held { pid, thread, process: PidFd::open(pid).unwrap() }
    }

    fn kill(&self) {
        self.process.signal(SIGKILL).unwrap();
    }

    /// How many descriptors it still has, but for the first three.
    fn open(&self) -> usize {
        let dir = std::fs::read_dir(format!("/proc/{}/task/{}/fd", self.pid, self.thread));
        dir.map_or(0, |d| d.count().saturating_sub(3))
    }

    fn let_go(self, s: &Suite) {
        assert!(self.process.is_alive(), "the kernel isn't done with it");
        ptrace::detach(self.thread, None).unwrap();
        s.until("it is reaped", || !Path::new(&format!("/proc/{}", self.pid)).exists());
    }
}

#[test]
fn what_the_kernel_has_to_clear_away_still_keeps_nobody_waiting() {
    let mut s = Suite::serving("");
    let mut kept = Client::connect(s.addr()).unwrap();
    for _ in 0..2 {
        assert_eq!(kept.get("/").unwrap().code, 200);
        let (held, mark) = (Held::server(&s, "task-0"), s.mark());
        held.kill();
        assert_eq!(kept.get("/").unwrap().code, 200, "on the connection it had");
        assert_eq!(s.get("/").code, 200, "on a new one");
        assert_ne!(s.pid("server"), held.pid);
        s.wait(mark, &["event=incident of=server", "SIGKILL", "noticed_by=\"keeper\""]);
        // or a connection that the next one closes would stay open in the dead one's name
        s.until("nothing is open in it", || held.open() == 0);
        held.let_go(&s);
    }
    s.stop();
}

#[test]
fn nor_does_it_when_the_manager_dies_too() {
    let mut s = Suite::serving("");
    let mut kept = Client::connect(s.addr()).unwrap();
    assert_eq!(kept.get("/").unwrap().code, 200);
    let held = Held::server(&s, "task-0");
    held.kill();
    s.kill("manager", SIGKILL);
    assert_eq!(kept.get("/").unwrap().code, 200, "on the connection it had");
    assert_eq!(s.get("/").code, 200, "on a new one");
    // the next manager but one hears of it too
    s.kill("manager", SIGKILL);
    s.kill("server", SIGKILL);
    assert_eq!(kept.get("/").unwrap().code, 200);
    held.let_go(&s);
    s.stop();
}

#[test]
fn nor_is_it_waited_for_at_the_end() {
    let mut s = Suite::serving("");
    let held = Held::server(&s, "task-0");
    held.kill();
    assert_eq!(s.get("/").code, 200);
    s.stop();
    assert!(held.process.is_alive());
    ptrace::detach(held.thread, None).unwrap();
}

#[test]
fn no_one_goes_on_while_a_thread_may_still_touch_connections() {
    for thread in ["traffic_server", "net-1", "accept-0"] {
        let mut s = Suite::serving("threads = 2\n");
        let (held, mark) = (Held::server(&s, thread), s.mark());
        held.kill();
        let early = s.log.try_wait(mark, &["event=exit of=server"], Duration::from_millis(200));
        assert_eq!(early, None, "{thread} isn't dead yet");
        held.let_go(&s);
        assert_eq!(s.get("/").code, 200);
        s.stop();
    }
}
