//! What hangs instead of dying: each way in which the manager finds it, without cop's help.

mod common;

use common::*;
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use supervisor::pidfd::PidFd;

/// A cop that asks nothing during a test, and a manager that looks often.
const LEFT_ALONE: &str = "[cop]\ninterval = \"60s\"\ntimeout = \"60s\"\n\
    [manager]\ninterval = \"100ms\"\ntimeout = \"800ms\"\nstall = \"300ms\"\n";

#[test]
fn a_thread_that_has_stalled_is_seen_although_the_others_answer() {
    let mut s = Suite::serving(&LEFT_ALONE.replace("[cop]", "threads = 2\n[cop]"));
    let server = s.pid("server");
    let mark = s.mark();
    let busy = AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // one of these is on the thread that is caught: its request is answered by the next server
            while busy.load(Ordering::Relaxed) {
                assert_eq!(s.get("/").code, 200);
            }
        });
        let caught = catch_in_a_round(server);
        let line = s.log.try_wait(mark, &["event=hang of=server"], LONG);
        busy.store(false, Ordering::Relaxed);
        // the kernel tells nobody of the process's end before its tracer has seen that of the thread
        while !matches!(waitpid(caught, Some(WaitPidFlag::__WALL)), Err(_) | Ok(WaitStatus::Signaled(..))) {}
        let line = line.unwrap_or_else(|| panic!("nobody noticed:\n{}", s.log.text()));
        assert!(line.contains(&format!("pid={server}")) && line.contains("thread net-"), "{line}");
    });
    s.wait(mark, &["event=incident of=server", "noticed_by=\"thread net-"]);
    assert_ne!(s.pid("server"), server);
    let pictures: Vec<_> = std::fs::read_dir(s.path("state/snapshots")).unwrap().collect();
    let picture = std::fs::read_to_string(pictures[0].as_ref().unwrap().path()).unwrap();
    assert!(
        picture.contains("thread net-") && picture.contains(&format!("/proc/{server}/status")),
        "{picture}"
    );
    s.stop();
}

/// Stops one event thread of the process while it is in a round of its loop, and leaves it so.
fn catch_in_a_round(pid: i32) -> Pid {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let is_page = |p: &std::path::PathBuf| {
        std::fs::read_link(p).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:pulse"))
    };
    let page = fds.map(|f| f.unwrap().path()).find(is_page).expect("a pulse page");
    let page = std::fs::File::open(page).unwrap();
    let threads: Vec<(Pid, String)> = std::fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .map(|t| t.unwrap().path())
        .map(|t| {
            let name = std::fs::read_to_string(t.join("comm")).unwrap().trim().to_owned();
            (Pid::from_raw(t.file_name().unwrap().to_str().unwrap().parse().unwrap()), name)
        })
        .filter(|(_, name)| name.starts_with("net-"))
        .collect();
    assert_eq!(threads.len(), 2);
    for (tid, _) in &threads {
        ptrace::seize(*tid, ptrace::Options::empty()).unwrap();
    }
    let until = Instant::now() + LONG;
    loop {
        for (n, (tid, name)) in threads.iter().enumerate() {
            ptrace::interrupt(*tid).unwrap();
            let stopped = waitpid(*tid, Some(WaitPidFlag::__WALL)).unwrap();
            assert!(matches!(stopped, WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..)), "{stopped:?}");
            let readings = supervisor::pulse::read(&page).unwrap();
            let reading = readings.iter().find(|r| r.thread == *name).unwrap();
            if matches!(reading.doing, policy::pulse::Doing::Calling(_)) {
                for (other, _) in threads.iter().enumerate().filter(|(m, _)| *m != n).map(|(_, t)| t) {
                    ptrace::interrupt(*other).unwrap();
                    let _ = waitpid(*other, Some(WaitPidFlag::__WALL)).unwrap();
                    ptrace::detach(*other, None).unwrap();
                }
                return *tid;
            }
            match ptrace::cont(*tid, None) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(e) => panic!("{e}"),
            }
        }
        assert!(Instant::now() < until, "no thread was ever in a round");
    }
}

#[test]
fn a_stopped_server_is_replaced_though_no_cop_lives() {
    let mut s = Suite::serving(LEFT_ALONE);
    s.kill("cop", SIGKILL);
    let mark = s.mark();
    let stopped = s.kill("server", SIGSTOP);
    assert_eq!(s.get("/").code, 200);
    // by its pings, or by a thread that it was stopped in
    s.wait(mark, &["event=hang of=server"]);
    assert_ne!(s.pid("server"), stopped);
    s.start();
    s.stop();
}

#[test]
fn a_hung_standby_is_replaced_before_it_is_needed() {
    let mut s = Suite::serving(LEFT_ALONE);
    let line = s.wait(0, &["event=standby-ready"]);
    let standby: i32 = line.rsplit('=').next().unwrap().parse().unwrap();
    let mark = s.mark();
    let process = PidFd::open(standby).unwrap();
    process.signal(SIGSTOP).unwrap();
    s.wait(mark, &["event=hang of=standby", &format!("pid={standby}")]);
    assert!(process.poll_exit(LONG).unwrap().is_some());
    s.wait(mark, &["event=standby-ready"]);
    s.stop();
}

#[test]
fn a_manager_that_was_stopped_with_everybody_kills_nobody_when_it_wakes() {
    let mut s = Suite::serving(LEFT_ALONE);
    s.wait(0, &["event=standby-ready"]);
    s.kill("cop", SIGKILL);
    let before = s.pid("server");
    let mark = s.mark();
    s.kill("manager", SIGSTOP);
    s.kill("server", SIGSTOP);
    // many times its patience
    assert_eq!(s.log.try_wait(mark, &["event="], Duration::from_secs(3)), None);
    s.kill("server", SIGCONT);
    s.kill("manager", SIGCONT);
    assert_eq!(s.log.try_wait(mark, &["event=hang"], Duration::from_secs(2)), None, "{}", s.log.text());
    assert_eq!(s.pid("server"), before);
    assert_eq!(s.get("/").code, 200);
    s.start();
    s.stop();
}

#[test]
fn a_manager_that_hung_before_it_took_its_lock_is_found() {
    let mut s = Suite::new("");
    let lock = s.run_dir().join("manager.lock");
    supervisor::dirs::ensure(&s.run_dir()).unwrap();
    // it waits for the lock when it is stopped; nobody knows of it from then on
    let mut ours = lockfile::Lockfile::new(&lock);
    assert!(matches!(ours.get().unwrap(), lockfile::Got::Acquired));
    let mut stray = clean(MANAGER)
        .args(["run", "-c"])
        .arg(s.path("traffic.toml"))
        .arg("--runtime-dir")
        .arg(s.run_dir())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let process = PidFd::open(stray.id() as i32).unwrap();
    wait_until(|| {
        std::fs::read_link(format!("/proc/{}/exe", stray.id())).unwrap().ends_with("traffic_manager")
    });
    process.signal(SIGSTOP).unwrap();
    ours.close().unwrap();
    s.start();
    s.wait(0, &["event=swept of=traffic_manager", &format!("pid {}", stray.id())]);
    assert!(process.poll_exit(LONG).unwrap().is_some());
    stray.wait().unwrap();
    assert_eq!(s.get("/").code, 200);
    s.stop();
}

#[test]
fn a_stop_ends_also_what_a_dead_manager_has_left_hanging() {
    let mut s = Suite::serving("");
    let line = s.wait(0, &["event=standby-ready"]);
    let standby: i32 = line.rsplit('=').next().unwrap().parse().unwrap();
    let process = PidFd::open(standby).unwrap();
    process.signal(SIGSTOP).unwrap();
    let mark = s.mark();
    s.kill("manager", SIGKILL);
    s.wait(mark, &["traffic_manager", "event=adopt of=server"]);
    assert!(process.is_alive(), "nobody has told it yet");
    s.stop();
    assert!(process.poll_exit(LONG).unwrap().is_some());
}

fn wait_until(mut what: impl FnMut() -> bool) {
    let until = Instant::now() + LONG;
    while !what() {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
}

#[test]
fn a_stop_of_a_suite_that_is_stopped_altogether_is_an_ordinary_one() {
    let s = Suite::serving("");
    s.wait(0, &["event=standby-ready"]);
    for p in ["cop", "manager", "server"] {
        s.kill(p, SIGSTOP);
    }
    let mark = s.mark();
    expect_code(&s.run(COP, &["stop"]), 0);
    // nobody had to be killed
    assert_eq!(s.log.try_wait(mark, &["rung=Kill"], Duration::ZERO), None, "{}", s.log.text());
    s.assert_clean();
}

/// How often a process has gone to sleep.
fn sleeps(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn a_manager_without_cop_and_server_waits_without_looking_all_the_time() {
    let mut s = Suite::new(
        "standby = false\n[manager]\ninterval = \"200ms\"\n[manager.respawn]\ninitial = \"20s\"\n",
    );
    s.start();
    let manager = s.pid("manager");
    s.kill("cop", SIGKILL);
    let mark = s.mark();
    s.kill("server", SIGKILL);
    s.wait(mark, &["event=state of=server", "to=backoff"]);
    // two intervals, and it knows that it is alone
    let begun = sleeps(manager);
    assert_eq!(s.log.try_wait(mark, &["event=spawn of=server"], Duration::from_millis(1500)), None);
    let n = sleeps(manager) - begun;
    assert!(n < 60, "it has woken up {n} times");
    s.spawn_cop();
    s.until("there's a cop", || s.try_pid("cop").is_some());
    s.stop();
}
