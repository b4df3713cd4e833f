//! What operators have asked a manager for, and what has become of jobs, is known to the next one, however the last one ended;
//! and to nobody after the suite's end.

mod common;

use common::jobs::{self, READY, job, told, until_kept, workers};
use common::*;
use serde_json::Value;

fn manager(s: &Suite) -> Value {
    serde_json::from_str(&told(s, &["status"])).unwrap()
}

fn suite() -> Suite {
    let s = Suite::new("");
    let run = format!("echo run >>{}; exit 0", s.path("ran").display());
    jobs::config(
        &s,
        &format!(
            "[[job]]\nname = \"once\"\nrestart = \"never\"\ncommand = [\"sh\", \"-c\", {run:?}]\n\
             [[job]]\nname = \"loop\"\ngive_up_after = 1\ncommand = [\"false\"]\n\
             [[job]]\nname = \"stopped\"\n{READY}\
             [[job]]\nname = \"more\"\n{READY}\
             [[job]]\nname = \"started\"\nautostart = false\n{READY}"
        ),
    );
    s
}

fn runs(s: &Suite) -> usize {
    std::fs::read_to_string(s.path("ran")).unwrap_or_default().lines().count()
}

/// Name, state, workers wished for, states of the workers and how their last processes ended.
fn picture(s: &Suite) -> Vec<String> {
    let word = |v: &Value| v.as_str().unwrap_or("-").to_owned();
    let line = |j: &Value| {
        let workers: Vec<_> = j["workers"].as_array().unwrap().iter().collect();
        let states: Vec<_> = workers.iter().map(|w| word(&w["state"]).replace("gave-up", "failed")).collect();
        format!("{} {} {} {states:?}", word(&j["name"]), word(&j["state"]), j["want"])
    };
    jobs::jobs(s).iter().map(line).collect()
}

#[test]
fn a_number_of_workers_that_was_agreed_to_is_kept() {
    let mut s = suite();
    s.start();
    told(&s, &["wait-ready", "more"]);
    for n in ["4", "2", "5"] {
        let mark = s.mark();
        told(&s, &["want", "more", n]);
        s.kill("manager", SIGKILL);
        s.wait(mark, &["traffic_manager", "event=adopt of=server"]);
        s.until("the next one answers", || s.run(MANAGER, &["status"]).status.success());
        assert_eq!(job(&s, "more")["want"].to_string(), n, "{}", s.log.text());
    }
    s.stop();
}

#[test]
fn the_next_manager_knows_what_the_last_one_was_asked_for() {
    let mut s = suite();
    s.start();
    for ask in [&["stop", "stopped"][..], &["start", "started"], &["want", "more", "3"]] {
        told(&s, ask);
    }
    told(&s, &["wait-ready", "more"]);
    told(&s, &["wait-ready", "once"]);
    s.wait(0, &["event=gave-up of=job", "job=loop "]);
    let before = picture(&s);
    assert_eq!(
        before,
        [
            "once ready 1 [\"finished\"]",
            "loop down 1 [\"failed\"]",
            "stopped down 1 []",
            "more ready 3 [\"ready\", \"ready\", \"ready\"]",
            "started ready 1 [\"ready\"]",
        ]
    );
    let of_loop = |s: &Suite| {
        let w = &workers(s, "loop")[0];
        (w["restarts"].as_u64(), w["last_exit"].as_str().unwrap_or("").to_owned())
    };
    let crashes = of_loop(&s);
    assert_eq!(crashes, (Some(1), "exit code 1".to_owned()));
    for way in ["killed", "killed with cop", "asked to end", "upgraded"] {
        until_kept(&s);
        let (mark, last) = (s.mark(), s.pid("manager"));
        match way {
            "killed" => drop(s.kill("manager", SIGKILL)),
            "killed with cop" => {
                s.kill("cop", SIGKILL);
                s.spawn_cop();
                s.wait(mark, &["event=new-cop"]);
                until_kept(&s);
                s.kill("manager", SIGKILL);
            }
            "asked to end" => drop(s.kill("manager", SIGTERM)),
            _ => drop(expect_code(&s.run(COP, &["upgrade"]), 0)),
        }
        s.until("there's another manager", || s.try_pid("manager").is_some_and(|pid| pid != last));
        s.until("it answers", || s.run(MANAGER, &["status"]).status.success());
        told(&s, &["wait-ready", "more"]);
        // that takes longer than to start what is to be started
        told(&s, &["restart", "started"]);
        assert_eq!(picture(&s), before, "{way}:\n{}", s.log.text());
        assert_eq!((runs(&s), of_loop(&s)), (1, crashes.clone()), "{way}:\n{}", s.log.text());
    }
    // an end of the suite is one; since the upgrade cop is nobody's child
    expect_code(&s.run(COP, &["stop"]), 0);
    s.assert_clean();
    s.start();
    told(&s, &["wait-ready", "once"]);
    told(&s, &["wait-ready", "stopped"]);
    assert_eq!(runs(&s), 2);
    assert_eq!((&job(&s, "more")["want"], &job(&s, "started")["up"]), (&1.into(), &false.into()));
    s.stop();
}

#[test]
fn a_pause_and_the_last_exit_of_the_server_outlive_the_manager() {
    let mut s = Suite::serving("");
    let mark = s.mark();
    s.kill("server", SIGKILL);
    s.wait(mark, &["event=incident of=server"]);
    told(&s, &["pause"]);
    let mut waits = Client::connect(s.addr()).unwrap();
    waits.send("GET /own HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mark = s.mark();
    s.kill("manager", SIGKILL);
    s.wait(mark, &["event=adopt of=server"]);
    s.until("it answers", || s.run(MANAGER, &["status"]).status.success());
    let status = manager(&s);
    assert_eq!(status["queue"]["paused"], true, "{status}");
    assert_eq!(status["server"]["last_exit"], "signal 9 (SIGKILL)", "{status}");
    // somebody who comes now waits, too
    let mut comes = Client::connect(s.addr()).unwrap();
    comes.send("GET /own HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    s.until("it waits in the queue", || manager(&s)["queue"]["depth"].as_u64() >= Some(1));
    told(&s, &["resume"]);
    for client in [&mut waits, &mut comes] {
        assert!(client.read().unwrap().code > 0);
    }
    s.stop();
}

#[test]
fn a_restart_that_is_under_way_is_gone_on_with() {
    let mut s = Suite::new("");
    let gate = s.path("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    jobs::config(&s, &format!("[[job]]\nname = \"many\"\nworkers = 3\n{READY}"));
    s.start();
    told(&s, &["wait-ready", "many"]);
    // the next ones are ready when somebody has opened the gate
    let script = format!(": <{}; echo >&$NOTIFY_FD; exec sleep 1000", gate.display());
    jobs::config(
        &s,
        &format!(
            "[[job]]\nname = \"many\"\nworkers = 3\nenv = [\"OF=new\"]\nready = \"fd\"\n\
             command = [\"sh\", \"-c\", {script:?}]\n"
        ),
    );
    expect_code(&s.run(MANAGER, &["reload"]), 0);
    let new = |s: &Suite| {
        let pids: Vec<i64> = workers(s, "many").iter().filter_map(|w| w["pid"].as_i64()).collect();
        let is_new = |pid: &i64| {
            let env = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            env.split(|b| *b == 0).any(|v| v == b"OF=new")
        };
        (pids.len() == 3).then(|| pids.iter().filter(|p| is_new(p)).count())
    };
    s.until("the first one is replaced", || new(&s) == Some(1));
    until_kept(&s);
    let mark = s.mark();
    s.kill("manager", SIGKILL);
    s.wait(mark, &["traffic_manager", "event=adopted of=job job=many worker=2"]);
    let _open = std::fs::OpenOptions::new().read(true).write(true).open(&gate).unwrap();
    s.until("all are replaced", || new(&s) == Some(3));
    told(&s, &["wait-ready", "many"]);
    s.until("it is over", || manager(&s)["manager"]["kept"] == true && job(&s, "many")["ready"] == true);
    s.stop();
}
