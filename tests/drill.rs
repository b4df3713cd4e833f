//! The drill as its user runs it, short: what it must count, and that it leaves nothing.

mod common;

use common::*;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use supervisor::pidfd::PidFd;

/// One load at a time: they measure what clients notice, not what two loads do to each other.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn drill(args: &[&str]) -> (tempfile::TempDir, Command) {
    let dir = tempfile::tempdir().unwrap();
    let mut c = clean(COP);
    c.arg("drill").args(args).env("TMPDIR", dir.path());
    (dir, c)
}

#[test]
fn under_load_no_kill_costs_a_request_or_a_connection() {
    let _alone = alone();
    let (dir, c) =
        drill(&["--mix", "--seconds", "5", "--every", "500ms", "--kill", "server,manager,cop", "--json"]);
    let o = output(c);
    let all = String::from_utf8_lossy(&o.stdout);
    let v: serde_json::Value = serde_json::from_str(all.lines().last().unwrap()).unwrap();
    for target in ["server", "manager", "cop"] {
        assert!(v["kills"][target].as_u64().unwrap() >= 2, "{v}");
    }
    assert_eq!(v["failed_by_kind"].get("refused").and_then(|n| n.as_u64()).unwrap_or(0), 0, "{v}");
    assert!(v["ok"].as_u64().unwrap() > 2000, "{v}");
    assert_eq!(v["complaints"].as_array().unwrap().len(), 0, "{v}");
    for nothing in ["failed", "connections_lost", "posts_twice"] {
        assert_eq!(v[nothing].as_u64(), Some(0), "{nothing}: {v}");
    }
    assert_eq!(o.status.code(), Some(0), "{v}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "its directory is gone");
}

#[test]
fn without_kills_nothing_fails() {
    let _alone = alone();
    let (_dir, c) = drill(&["--seconds", "2", "--kill", "none", "--json"]);
    let o = output(c);
    let said = expect_code(&o, 0);
    let v: serde_json::Value =
        serde_json::from_str(said.lines().rfind(|l| l.starts_with('{')).unwrap()).unwrap();
    assert_eq!((v["failed"].as_u64(), v["connections_lost"].as_u64()), (Some(0), Some(0)), "{v}");
}

#[test]
fn chaos_is_survived_and_leaks_nothing() {
    let _alone = alone();
    let args = ["--chaos", "--seed", "3", "--mix", "--seconds", "12", "--every", "1s", "--json"];
    let (dir, c) = drill(&args);
    let o = output(c);
    let all = String::from_utf8_lossy(&o.stdout);
    let said = String::from_utf8_lossy(&o.stderr);
    let v: serde_json::Value = serde_json::from_str(all.lines().last().unwrap()).unwrap();
    assert!(said.contains("--seed 3"), "{said}");
    assert_eq!(v["chaos"]["seed"], 3, "{v}");
    // from that seed: every kind of signal, and each program was hit
    for signal in ["SIGKILL", "SIGSTOP", "SIGSEGV", "SIGTERM"] {
        assert!(v["chaos"]["done"][signal].as_u64().unwrap_or(0) > 0, "{signal}: {v}");
    }
    for program in ["cop", "manager", "server"] {
        assert!(v["chaos"]["hit"][program].as_u64().unwrap_or(0) > 0, "{program}: {v}");
    }
    for kind in ["refused", "wrong_body", "not_http", "timeout"] {
        assert_eq!(v["failed_by_kind"].get(kind), None, "{v}\n{said}");
    }
    assert_eq!(
        (v["posts_twice"].as_u64(), &v["complaints"]),
        (Some(0), &serde_json::json!([])),
        "{v}\n{said}"
    );
    assert_eq!(v["chaos"]["after"]["processes"], 7, "{v}");
    assert!(v["ok"].as_u64().unwrap() > 2000, "{v}");
    assert_eq!(o.status.code(), Some(0), "{v}\n{said}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "its directory is gone");
}

#[test]
fn options_that_make_no_sense_together_are_refused() {
    for (args, why) in [
        (&["--seed", "1"][..], "--chaos"),
        (&["--chaos", "--kill", "server"], "--kill"),
        (&["--chaos", "--seed", "x"], "--seed"),
        (&["--chaos", "--every", "1ms"], "--every"),
        (&["--seconds", "0"], "--seconds"),
    ] {
        let (dir, c) = drill(args);
        let o = output(c);
        let said = String::from_utf8_lossy(&o.stderr);
        assert_eq!(o.status.code(), Some(64), "{args:?}: {said}");
        assert!(said.contains(why), "{args:?}: {said}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was begun");
    }
}

#[test]
fn an_interrupt_ends_it_and_leaves_no_process() {
    let _alone = alone();
    let (dir, mut c) = drill(&["--seconds", "60"]);
    let mut child = c.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // plain lines, as stdout is no terminal: the first one comes when the load runs
    lines.next().unwrap().unwrap();
    let runs = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path().join("run");
    let held = || {
        let holder = |p: &str| lockfile::Lockfile::holder(runs.join(format!("{p}.lock"))).ok().flatten();
        ["cop", "manager", "server"].iter().filter_map(|p| holder(p)).map(|h| h.pid).collect::<Vec<_>>()
    };
    // the next kill may be due already: then the server is gone, and the next one not there yet
    let until = Instant::now() + LONG;
    let wards = loop {
        let wards: Vec<_> = held().into_iter().filter_map(|p| PidFd::open(p).ok()).collect();
        if wards.len() == 3 {
            break wards;
        }
        assert!(Instant::now() < until, "only {} of three hold their locks", wards.len());
        std::thread::yield_now();
    };
    let drill = PidFd::open(child.id() as i32).unwrap();
    drill.signal(nix::libc::SIGINT).unwrap();
    assert!(drill.poll_exit(LONG).unwrap().is_some(), "it goes on");
    let status = child.wait().unwrap();
    assert!(status.code().is_some(), "{status:?}");
    for w in wards {
        assert!(!w.is_alive(), "a process was left behind");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "its directory is gone");
}
