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
fn work_that_was_done_by_another_configuration_is_not_done() {
    let mut s = suite();
    s.start();
    told(&s, &["wait-ready", "once"]);
    s.wait(0, &["event=gave-up of=job", "job=loop "]);
    until_kept(&s);
    let config = std::fs::read_to_string(s.path("traffic.toml")).unwrap();
    let config = config.replace("restart = \"never\"", "restart = \"always\"");
    std::fs::write(s.path("traffic.toml"), config.replace("[\"false\"]", "[\"sleep\", \"1000\"]")).unwrap();
    s.kill("manager", SIGKILL);
    s.until("it runs again", || runs(&s) >= 2);
    told(&s, &["wait-ready", "loop"]);
    s.stop();
}
