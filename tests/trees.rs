//! What jobs leave behind: descendants that have left their process group and their parent are ended with their job, and
//! nobody else is.

mod common;

use common::jobs::*;
use common::*;
use std::path::PathBuf;
use std::process::{Child, Command};
use supervisor::pidfd::PidFd;

/// Starts a grandchild in a session of its own, whose parent ends; that one says its number, and that all is ready. On
/// SIGTERM it says so.
const DAEMON: &str = r#"ready = "fd"
command = ["sh", "-c", '''
(setsid sh -c 'trap "echo bye; exit 0" TERM; echo escaped $$; echo >&$NOTIFY_FD; while :; do sleep 0.05; done' &)
exec sleep 1000''']
"#;

/// The descendant of the worker that runs.
#[track_caller]
fn escaped(s: &Suite, mark: usize, job: &str) -> (i32, PidFd) {
    let line = s.wait(mark, &[&format!("job={job} "), ": escaped "]);
    let pid = line.rsplit(' ').next().unwrap().parse().unwrap();
    (pid, PidFd::open(pid).unwrap())
}

#[track_caller]
fn is_gone(what: &str, p: &PidFd, s: &Suite) {
    assert!(p.poll_exit(LONG).unwrap().is_some(), "{what} is still there:\n{}", s.log.text());
}

/// Somebody else's process with a mark that is nearly ours.
struct Stranger(Child);

impl Stranger {
    fn new(dir: PathBuf, job: &str) -> Stranger {
        let mut c = Command::new("sleep");
        c.arg("1000").env("TRAFFIC_JOB_OF", dir).env("TRAFFIC_JOB", job).env("TRAFFIC_WORKER", "0");
        Stranger(c.spawn().unwrap())
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_a_killed_worker_leaves_is_ended_before_the_next_one_starts() {
    let mut s = Suite::serving(&format!("[[job]]\nname = \"fork\"\n{DAEMON}"));
    let stranger = Stranger::new(s.path("elsewhere"), "fork");
    told(&s, &["wait-ready", "fork"]);
    let mut mark = 0;
    for _ in 0..3 {
        let (pid, daemon) = escaped(&s, mark, "fork");
        assert!(daemon.is_alive());
        mark = s.mark();
        PidFd::open(common::jobs::pid(&s, "fork")).unwrap().signal(SIGKILL).unwrap();
        is_gone("the daemon", &daemon, &s);
        s.wait(mark, &["event=descendant of=job job=fork", &format!("of_pid={pid} kill=true")]);
        s.wait(mark, &["event=ready of=job job=fork"]);
        let text = s.log.text();
        let after = |what: &str| text.lines().skip(mark).position(|l| l.contains(what)).unwrap();
        assert!(after("event=descendant") < after("event=starting of=job"), "{text}");
    }
    // an ordinary stop is one for it too
    let (_, daemon) = escaped(&s, mark, "fork");
    mark = s.mark();
    assert!(told(&s, &["stop", "fork"]).contains("fork is stopped"));
    s.wait(mark, &["event=descendant of=job job=fork", "kill=false"]);
    s.wait(mark, &["job=fork", "bye"]);
    assert!(!daemon.is_alive());
    s.stop();
    assert!(PidFd::open(stranger.0.id() as i32).unwrap().is_alive());
}

#[test]
fn what_is_left_is_found_by_the_next_manager_too() {
    let mut s =
        Suite::serving(&format!("[[job]]\nname = \"fork\"\n{DAEMON}[[job]]\nname = \"other\"\n{DAEMON}"));
    told(&s, &["wait-ready", "fork"]);
    told(&s, &["wait-ready", "other"]);
    // the manager is killed, then the worker: its descendants are nobody's children that we know
    let (_, first) = escaped(&s, 0, "fork");
    let (_, other) = escaped(&s, 0, "other");
    let mark = s.mark();
    s.kill("manager", SIGKILL);
    s.wait(mark, &["event=adopted of=job job=fork"]);
    assert!(first.is_alive() && other.is_alive());
    PidFd::open(pid(&s, "fork")).unwrap().signal(SIGKILL).unwrap();
    is_gone("the daemon of an adopted worker", &first, &s);
    s.wait(mark, &["event=ready of=job job=fork"]);
    // both at once
    let (_, second) = escaped(&s, mark, "fork");
    let worker = PidFd::open(pid(&s, "fork")).unwrap();
    let mark = s.mark();
    let manager = PidFd::open(s.pid("manager")).unwrap();
    manager.signal(SIGKILL).unwrap();
    worker.signal(SIGKILL).unwrap();
    is_gone("the daemon of a worker that died with its manager", &second, &s);
    s.wait(mark, &["event=ready of=job job=fork"]);
    let (_, third) = escaped(&s, mark, "fork");
    assert!(other.is_alive(), "its worker lives");
    s.stop();
    assert!(!third.is_alive() && !other.is_alive());
}

/// A control group that the test may divide, if this machine has them.
struct Groups(PathBuf);

impl Groups {
    fn new() -> Option<Groups> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = mounts.lines().find(|l| l.contains(" - cgroup2 "))?;
        let mount = line.split(' ').nth(4)?;
        let dir = PathBuf::from(mount).join(format!("traffic-test-{}", std::process::id()));
        std::fs::create_dir(&dir).ok()?;
        Some(Groups(dir))
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn a_control_group_finds_those_that_have_dropped_every_mark() {
    let Some(groups) = Groups::new() else {
        return eprintln!("no control groups of version 2 that we may divide: nothing is tested");
    };
    let mut s = Suite::new("");
    // nothing of its environment is left
    let job = DAEMON.replace("setsid sh", "exec setsid env -i NOTIFY_FD=$NOTIFY_FD sh");
    s.write_config(&format!(
        "[manager]\ncgroup = {:?}\n[server]\nlisten = [\"127.0.0.1:0\"]\ndrain_timeout = \"3s\"\n[[job]]\nname = \
         \"fork\"\n{job}",
        groups.0
    ));
    s.start();
    told(&s, &["wait-ready", "fork"]);
    let (pid_of_it, daemon) = escaped(&s, 0, "fork");
    let group = std::fs::read_to_string(format!("/proc/{pid_of_it}/cgroup")).unwrap();
    assert!(group.contains("/job.fork/0"), "{group}");
    let mark = s.mark();
    PidFd::open(pid(&s, "fork")).unwrap().signal(SIGKILL).unwrap();
    is_gone("the daemon", &daemon, &s);
    s.wait(mark, &["event=ready of=job job=fork"]);
    // the next manager knows the group by its name
    let (_, daemon) = escaped(&s, mark, "fork");
    let mark = s.mark();
    s.kill("manager", SIGKILL);
    s.wait(mark, &["event=adopted of=job job=fork"]);
    PidFd::open(pid(&s, "fork")).unwrap().signal(SIGKILL).unwrap();
    is_gone("the daemon of an adopted worker", &daemon, &s);
    s.wait(mark, &["event=ready of=job job=fork"]);
    s.stop();
    assert!(!groups.0.join("job.fork").exists(), "no group is left");
}

/// Cop and the manager are killed: nobody is left who knows the jobs, but for their mark.
#[test]
fn a_stop_ends_jobs_whose_supervisors_were_killed() {
    for all in [false, true] {
        let mut s = Suite::new("");
        config(&s, &format!("[[job]]\nname = \"one\"\n{DAEMON}"));
        s.start();
        let (_, escaped) = escaped(&s, 0, "one");
        let worker = PidFd::open(pid(&s, "one")).unwrap();
        let stranger = Stranger::new(s.path("other"), "one");
        for who in ["cop", "manager", "server"].into_iter().filter(|who| all || *who != "server") {
            s.kill(who, SIGKILL);
        }
        let said = expect_code(&s.run(COP, &["stop"]), 0);
        assert!(said.contains("left behind"), "{said}");
        assert!(!worker.is_alive() && !escaped.is_alive());
        assert!(PidFd::open(stranger.0.id() as i32).unwrap().is_alive());
        expect_code(&s.run(COP, &["stop"]), 3);
    }
}

/// A directory that looks like a control group's, since limits are seldom to be had: our unit takes them away between two cops.
#[test]
fn limits_are_set_again_when_another_cop_is_there() {
    let mut s = Suite::new("");
    let base = s.path("cgroup");
    std::fs::create_dir_all(base.join("job.a/0")).unwrap();
    for (file, text) in [
        ("cgroup.procs", ""),
        ("cgroup.controllers", "cpu memory pids\n"),
        ("cgroup.subtree_control", ""),
        ("job.a/0/cgroup.procs", ""),
    ] {
        std::fs::write(base.join(file), text).unwrap();
    }
    s.write_config(&format!(
        "[manager]\ncgroup = {base:?}\n[server]\nlisten = [\"127.0.0.1:0\"]\ndrain_timeout = \"3s\"\n[[job]]\nname = \
         \"a\"\npids_max = 7\n{READY}"
    ));
    s.start();
    told(&s, &["wait-ready", "a"]);
    let limit = || std::fs::read_to_string(base.join("job.a/pids.max")).unwrap_or_default();
    let switch = || std::fs::read_to_string(base.join("cgroup.subtree_control")).unwrap();
    assert_eq!((limit(), switch()), ("7".into(), "+pids".into()));
    let before = pid(&s, "a");
    s.kill("cop", SIGKILL);
    std::fs::write(base.join("cgroup.subtree_control"), "").unwrap();
    std::fs::remove_file(base.join("job.a/pids.max")).unwrap();
    s.start();
    s.until("the limit is there again", || limit() == "7" && switch() == "+pids");
    assert_eq!(pid(&s, "a"), before);
    s.stop();
}
