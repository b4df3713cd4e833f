//! The configuration that a suite has accepted: what runs goes on with it, whatever becomes of the file.

mod common;

use common::*;
use std::fs;

fn config(s: &Suite, says: &str, more: &str) {
    let route = format!("[[route]]\nrespond = 200\nrespond_body = \"{says}\"\n");
    s.write_config(&format!("[server]\nlisten = [\"127.0.0.1:0\"]\ndrain_timeout = \"3s\"\n{more}{route}"));
}

fn serving(says: &str) -> Suite {
    let mut s = Suite::new("");
    config(&s, says, "");
    s.start();
    s
}

fn says(s: &Suite) -> String {
    s.get("/").text()
}

/// Whoever can be started later is: the second server hasn't read the file before the first one died.
#[track_caller]
fn kill_and_ask(s: &Suite, want: &str) {
    for _ in 0..3 {
        s.kill("server", SIGKILL);
        assert_eq!(says(s), want, "{}", s.log.text());
    }
    let mark = s.mark();
    s.kill("manager", SIGKILL);
    s.wait(mark, &["traffic_manager", "event=adopt of=server"]);
    s.kill("server", SIGKILL);
    assert_eq!(says(s), want, "{}", s.log.text());
}

#[test]
fn a_file_that_is_wrong_or_gone_or_new_changes_nothing_before_a_reload() {
    let mut s = serving("one");
    assert_eq!(says(&s), "one");
    let file = s.path("traffic.toml");
    let right = fs::read_to_string(&file).unwrap();
    // half edited
    fs::write(&file, &right[..right.len() / 2]).unwrap();
    kill_and_ask(&s, "one");
    let said = expect_code(&s.run(MANAGER, &["reload"]), 78);
    assert!(said.contains("traffic.toml"), "{said}");
    assert_eq!(says(&s), "one");
    fs::remove_file(&file).unwrap();
    kill_and_ask(&s, "one");
    // right, and not taken yet: who looks is told
    config(&s, "two", "");
    kill_and_ask(&s, "one");
    let changed = "traffic.toml has changed since it was taken (traffic_manager reload takes it)";
    assert!(expect_code(&s.run(COP, &["status"]), 0).contains(changed));
    expect_code(&s.run(MANAGER, &["restart"]), 0);
    assert_eq!(says(&s), "one", "a restart is none of the configuration");
    expect_code(&s.run(MANAGER, &["reload"]), 0);
    assert_eq!(says(&s), "two");
    assert!(!expect_code(&s.run(COP, &["status"]), 0).contains(changed));
    fs::write(&file, "[server").unwrap();
    kill_and_ask(&s, "two");
    s.stop();
}

#[test]
fn cop_takes_its_part_of_a_reload() {
    let mut s = serving("one");
    let mark = s.mark();
    config(&s, "one", &TIGHT.replace("failures = 2", "failures = 4"));
    let said = expect_code(&s.run(MANAGER, &["reload"]), 0);
    assert!(!said.contains("needs a restart"), "{said}");
    s.wait(mark, &["traffic_cop", "event=config-taken"]);
    let mark = s.mark();
    s.kill("manager", SIGSTOP);
    s.wait(mark, &["traffic_cop", "event=heartbeat-failed of=manager misses=4"]);
    s.wait(mark, &["traffic_cop", "event=spawn of=manager"]);
    assert_eq!(says(&s), "one");
    s.stop();
}

#[test]
fn the_next_cop_has_it_too() {
    let mut s = serving("one");
    // it is not handed its fds: they come from the manager
    s.kill("cop", SIGKILL);
    config(&s, "two", "");
    let mark = s.mark();
    s.start();
    s.wait(mark, &["traffic_cop", "event=config-taken"]);
    fs::write(s.path("traffic.toml"), "[server").unwrap();
    kill_and_ask(&s, "one");
    s.stop();
}

/// Cop's queue holds ten datagrams.
#[test]
fn a_reload_that_is_answered_is_kept_however_much_there_is_to_keep() {
    let mut s = Suite::new("");
    let write = |s: &Suite, says: usize| {
        let paths = (0..30 + says).map(|n| format!("\"unix:{}\"", s.path(&n.to_string()).display()));
        let listen = paths.collect::<Vec<_>>().join(", ");
        let route = format!("[[route]]\nrespond = 200\nrespond_body = \"{says}\"\n");
        s.write_config(&format!(
            "[server]\nlisten = [\"127.0.0.1:0\", {listen}]\ndrain_timeout = \"3s\"\n{route}"
        ));
    };
    write(&s, 0);
    s.start();
    for n in 1..6 {
        write(&s, n);
        expect_code(&s.run(MANAGER, &["reload"]), 0);
        let mark = s.mark();
        s.kill("manager", SIGKILL);
        s.wait(mark, &["traffic_manager", "event=adopt of=server"]);
        s.kill("server", SIGKILL);
        assert_eq!(says(&s), n.to_string(), "{}", s.log.text());
        // the newest address is nobody else's either: it was never closed
        let last = s.path(&(29 + n).to_string());
        std::os::unix::net::UnixStream::connect(last).unwrap();
    }
    s.stop();
}

#[test]
fn a_reload_leaves_the_suite_where_it_is() {
    let mut s = serving("one");
    let file = s.path("traffic.toml");
    let right = fs::read_to_string(&file).unwrap();
    fs::write(&file, right.replace("/run\"", "/elsewhere\"").replace("\"one\"", "\"two\"")).unwrap();
    let run = s.run_dir().display().to_string();
    let said = expect_code(&s.run(MANAGER, &["reload", "--runtime-dir", &run]), 1);
    assert!(said.contains("suite.runtime_dir: can't be changed by a reload"), "{said}");
    kill_and_ask(&s, "one");
    fs::write(&file, right).unwrap();
    s.stop();
}

/// The configuration is right, and no server can be had with it.
#[test]
fn a_reload_with_which_no_server_gets_ready_is_undone() {
    let mut s = Suite::new("");
    let job = |name: &str| format!("[[job]]\nname = {name:?}\ncommand = [\"sleep\", \"1000\"]\n");
    let write = |s: &Suite, says: &str, sockets: &[&str], nofile: u32, jobs: &str| {
        let paths = sockets.iter().map(|n| format!(", \"unix:{}\"", s.path(n).display())).collect::<String>();
        s.write_config(&format!(
            "[server]\nlisten = [\"127.0.0.1:0\"{paths}]\nnofile = {nofile}\n\
             [[route]]\nrespond = 200\nrespond_body = {says:?}\n{jobs}"
        ));
    };
    write(&s, "one", &["a"], 0, &job("first"));
    s.start();
    s.wait(0, &["event=standby-ready"]);
    let addr = s.addr();
    let connects = |name: &str| std::os::unix::net::UnixStream::connect(s.path(name)).is_ok();
    let names = |s: &Suite| common::jobs::jobs(s).iter().map(|j| j["name"].to_string()).collect::<Vec<_>>();
    let ports = std::fs::read_to_string(s.run_dir().join("ports")).unwrap();
    for who in ["server", "manager", "server"] {
        // too few descriptors for a server
        write(&s, "two", &["b"], 12, &job("second"));
        let said = expect_code(&s.run(MANAGER, &["reload"]), 1);
        assert!(said.contains("the next server"), "{said}");
        assert_eq!((says(&s).as_str(), s.addr(), connects("a")), ("one", addr, true));
        assert_eq!(std::fs::read_to_string(s.run_dir().join("ports")).unwrap(), ports);
        assert_eq!(names(&s), ["\"first\""]);
        let mark = s.mark();
        s.kill(who, SIGKILL);
        if who == "manager" {
            s.wait(mark, &["traffic_manager", "event=adopt of=server"]);
        }
        assert_eq!((says(&s).as_str(), connects("a")), ("one", true), "{}", s.log.text());
    }
    // one that is right is taken whole
    write(&s, "three", &["b"], 0, &job("second"));
    expect_code(&s.run(MANAGER, &["reload"]), 0);
    assert_eq!((says(&s).as_str(), s.addr(), connects("b")), ("three", addr, true));
    s.until("the jobs are the new ones", || names(&s) == ["\"second\""]);
    for _ in 0..2 {
        let mark = s.mark();
        s.kill("manager", SIGKILL);
        s.wait(mark, &["traffic_manager", "event=adopt of=server"]);
        s.kill("server", SIGKILL);
        assert_eq!((says(&s).as_str(), connects("b")), ("three", true), "{}", s.log.text());
    }
    s.stop();
}
