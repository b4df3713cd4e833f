//! Crash loops, and servers that aren't ours: how they are braked, when no more is tried, and who is told.

mod common;

use common::*;
use std::time::Duration;

const SOON: &str = "[manager.respawn]\ninitial = \"10ms\"\nmax = \"50ms\"\njitter = 0.0\ngive_up_after = 3\n";

fn foreign(command: &str, more: &str) -> String {
    format!("[server]\nlisten = [\"127.0.0.1:0\"]\ndrain_timeout = \"1s\"\ncommand = {command}\n{more}")
}

#[test]
fn a_server_that_never_serves_is_given_up_at_the_start_with_its_reason() {
    let s = Suite::new("");
    s.write_config(&foreign("[\"sh\", \"-c\", \"exit 3\"]", SOON));
    let text = expect_code(&s.run(COP, &["start"]), 69);
    assert!(text.contains("gave up on the server after") && text.contains("exit"), "{text}");
    s.assert_clean();
}

#[test]
fn after_giving_up_clients_are_told_a_command_is_run_and_a_restart_serves_again() {
    let told = tempfile::NamedTempFile::new().unwrap();
    let hook = format!(
        "on_give_up = [\"sh\", \"-c\", \"echo $TRAFFIC_EVENT $TRAFFIC_CRASHES $(cat /proc/self/oom_score_adj) $TRAFFIC_LAST_EXIT > {}.new; mv {0}.new {0}\"]\n",
        told.path().display()
    );
    let admin = "[manager]\nadmin = \"127.0.0.1:0\"\n";
    let mut s = Suite::serving(&format!("standby = false\n{admin}{SOON}{hook}"));
    let mark = s.mark();
    while s.log.try_wait(mark, &["event=gave-up"], Duration::ZERO).is_none() {
        let before = s.mark();
        let dead = s.kill("server", SIGKILL);
        s.wait(before, &["event=exit of=server", &format!("pid={dead}:")]);
        // either the next one serves, or there is none
        s.wait(before, &["event=state of=server", "to="]);
        let next = s.log.try_wait(before, &["event=state of=server", "to=ready"], Duration::from_millis(800));
        if next.is_none() {
            s.wait(before, &["event=gave-up"]);
        }
    }
    s.wait(mark, &["event=hook-ended"]);
    let words = std::fs::read_to_string(told.path()).unwrap();
    assert!(words.starts_with("gave-up 4 ") && words.contains("SIGKILL"), "{words}");
    // without the privilege it stays what it is
    let ours = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let spared = words.split(' ').nth(2).unwrap();
    assert!(["0", ours.trim()].contains(&spared), "{words}");
    let answer = s.get("/");
    assert_eq!(answer.code, 503, "{}", answer.head);
    let text = expect_code(&s.run(COP, &["status"]), 4);
    assert!(text.contains("gave-up"), "{text}");
    expect_code(&s.run(MANAGER, &["restart"]), 0);
    assert_eq!(s.get("/").code, 200);
    s.stop();
}

/// A suite whose server isn't ours: it is ours by its program, but has another suite's runtime directory.
fn with_foreign(more: &str) -> Suite {
    let mut s = Suite::new("");
    let other = s.path("other");
    let command = format!(
        "[{SERVER:?}, \"run\", \"--runtime-dir\", {other:?}, \"--set\", \"suite.allow_root=true\", \"--set\", \"server.listen=[\\\"127.0.0.1:0\\\"]\"]"
    );
    s.write_config(&foreign(&command, more));
    s.start();
    s
}

fn pid(line: String) -> i32 {
    line.split("pid=").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_server_that_is_not_ours_goes_on_when_its_supervisors_die() {
    let mut s = with_foreign("");
    let server = pid(s.wait(0, &["event=spawn of=server"]));
    let addr = s.addr();
    let serves = |s: &Suite| {
        assert_eq!((s.get("/").code, s.addr()), (200, addr), "{}", s.log.text());
        let text = expect_code(&s.run(COP, &["status"]), 0);
        let row = text.lines().find(|l| l.starts_with("server ")).unwrap();
        assert_eq!(row.split_whitespace().nth(1), Some(server.to_string().as_str()), "{text}");
    };
    serves(&s);
    // it can't be told to accept nothing
    let said = expect_code(&s.run(MANAGER, &["pause"]), 1);
    assert!(said.contains("isn't ours"), "{said}");
    serves(&s);
    let kill_manager = |s: &Suite| {
        let mark = s.mark();
        s.kill("manager", SIGKILL);
        assert_eq!(pid(s.wait(mark, &["event=adopt of=server"])), server);
        s.until("cop knows it", || s.run(COP, &["status"]).status.code() == Some(0));
    };
    kill_manager(&s);
    serves(&s);
    s.kill("cop", SIGKILL);
    s.start();
    serves(&s);
    kill_manager(&s);
    // nobody has kept its listeners: they are taken from it
    s.kill("cop", SIGKILL);
    s.kill("manager", SIGKILL);
    let mark = s.mark();
    s.start();
    assert_eq!(pid(s.wait(mark, &["event=adopt of=server"])), server);
    serves(&s);
    // what dies is replaced, and not by what it has left behind
    let mark = s.mark();
    supervisor::pidfd::PidFd::open(server).unwrap().signal(SIGKILL).unwrap();
    let next = pid(s.wait(mark, &["event=spawn of=server"]));
    s.wait(mark, &["event=state of=server", "to=ready"]);
    assert_eq!((s.get("/").code, s.addr()), (200, addr));
    // a stop finds it, also when its manager is gone
    s.kill("cop", SIGKILL);
    s.kill("manager", SIGKILL);
    s.start();
    s.stop();
    let left = supervisor::pidfd::PidFd::open(next).is_ok_and(|p| p.is_alive());
    assert!(!left, "it is left behind: {}", s.log.text());
}

#[test]
fn a_server_that_is_not_ours_has_to_feed_its_watchdog() {
    let mut s = with_foreign("watchdog = \"1s\"\n[cop]\ninterval = \"60s\"\ntimeout = \"60s\"\n");
    let mark = s.mark();
    let server = pid(s.wait(0, &["event=spawn of=server"]));
    // it is fed for several times its limit
    assert_eq!(s.log.try_wait(mark, &["event=hang"], Duration::from_secs(3)), None, "{}", s.log.text());
    supervisor::pidfd::PidFd::open(server).unwrap().signal(SIGSTOP).unwrap();
    s.wait(mark, &["event=hang of=server", "WATCHDOG=1"]);
    let next = pid(s.wait(mark, &["event=spawn of=server"]));
    assert_ne!(next, server);
    s.wait(mark, &["event=state of=server", "to=ready"]);
    s.stop();
}
