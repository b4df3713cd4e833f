//! Jobs: other programs under the manager, by their order, their sockets, their deaths, and the manager's.

mod common;

use common::jobs::*;
use common::*;
use std::net::SocketAddr;
use std::time::Duration;
use supervisor::pidfd::PidFd;

#[test]
fn jobs_start_when_those_before_them_are_ready_and_stop_before_them() {
    let chain = format!(
        "[[job]]\nname = \"web\"\nafter = [\"queue\"]\n{READY}[[job]]\nname = \"db\"\n{READY}\
         [[job]]\nname = \"queue\"\nafter = [\"db\"]\n{READY}"
    );
    let mut s = Suite::serving(&chain);
    assert!(told(&s, &["wait-ready", "web"]).contains("web is ready"));
    let lines: Vec<serde_json::Value> =
        told(&s, &["events"]).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let at = |job: &str, event: &str| {
        let found = lines.iter().position(|l| l["job"] == job && l["event"] == event);
        found.unwrap_or_else(|| panic!("no {event} of {job} in {lines:?}"))
    };
    assert!(at("db", "ready") < at("queue", "starting") && at("queue", "ready") < at("web", "starting"));
    assert!(told(&s, &["tail", "db"]).contains(&format!("up {}", pid(&s, "db"))));
    let list = told(&s, &["list"]);
    let columns = list.lines().find(|l| l.starts_with("web.0 ")).map(|l| l.split_whitespace().count());
    assert!(columns == Some(6) && list.contains("ready"), "{list}");
    let processes = ["web", "queue", "db"].map(|j| PidFd::open(pid(&s, j)).unwrap());
    let mark = s.mark();
    s.stop();
    let ends: Vec<usize> = ["web", "queue", "db"]
        .map(|j| {
            let line = s.wait(mark, &["event=exit of=job", &format!("job={j} ")]);
            s.log.text().lines().position(|l| l == line).unwrap()
        })
        .into();
    assert!(ends.is_sorted(), "{ends:?}");
    assert!(processes.iter().all(|p| !p.is_alive()));
}

#[test]
fn a_killed_worker_is_replaced_at_once_and_one_that_is_done_is_not() {
    let mut s = Suite::serving(&format!(
        "[[job]]\nname = \"long\"\nworkers = 2\n{READY}\
         [[job]]\nname = \"once\"\nrestart = \"on-failure\"\ncommand = [\"sh\", \"-c\", \"echo done; exit 0\"]\n\
         [[job]]\nname = \"after\"\nafter = [\"once\"]\n{READY}\
         [[job]]\nname = \"loop\"\ngive_up_after = 2\ncommand = [\"false\"]\n\
         [[job]]\nname = \"missing\"\ncommand = [\"no-such-program-anywhere\"]\n\
         [[job]]\nname = \"never\"\nafter = [\"missing\"]\nstart_grace = \"1s\"\n{READY}"
    ));
    told(&s, &["wait-ready", "long"]);
    // one that can't be run at all: who starts it is told so, and not after its start grace; who only waits for it waits
    let begun = std::time::Instant::now();
    let said = expect_code(&s.run(MANAGER, &["start", "missing"]), 1);
    assert!(
        said.contains("missing isn't ready: worker 0 is backoff (") && said.contains("No such file"),
        "{said}"
    );
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let list = told(&s, &["list"]);
    assert!(
        list.lines()
            .any(|l| l.starts_with("never.0") && l.contains("waiting") && l.ends_with("waits for missing")),
        "{list}"
    );
    assert_eq!(
        (&job(&s, "never")["state"], &job(&s, "never")["waits_for"][0]),
        (&"waiting".into(), &"missing".into())
    );
    let said = expect_code(&s.run(MANAGER, &["wait-ready", "never"]), 1);
    assert!(said.contains("never isn't ready: it waits for missing"), "{said}");
    // it came after one that has done its work
    told(&s, &["wait-ready", "after"]);
    let once = &workers(&s, "once")[0];
    assert_eq!((&once["state"], &once["restarts"]), (&"finished".into(), &0.into()), "{once}");
    let before: Vec<_> = workers(&s, "long").iter().map(|w| w["pid"].as_i64().unwrap()).collect();
    let mark = s.mark();
    PidFd::open(before[1] as i32).unwrap().signal(SIGKILL).unwrap();
    s.wait(mark, &["event=ready of=job job=long worker=1"]);
    let after: Vec<_> = workers(&s, "long").iter().map(|w| w["pid"].as_i64().unwrap()).collect();
    assert_eq!(before[0], after[0]);
    assert_ne!(before[1], after[1]);
    // a loop is given up where that was asked for, and disturbs nobody
    s.wait(0, &["event=gave-up of=job job=loop"]);
    s.wait(0, &["event=spawn-failed of=job job=missing", "exec: No such file"]);
    let o = s.run(MANAGER, &["wait-ready", "loop"]);
    assert!(expect_code(&o, 1).contains("gave-up"));
    assert_eq!(s.get("/").code, 200);
    s.stop();
}

#[test]
fn sockets_are_held_over_the_death_of_a_worker() {
    let mut s = Suite::new("");
    let other = s.path("other");
    config(
        &s,
        &format!(
            "[[job]]\nname = \"web\"\nlisten = [\"127.0.0.1:0\"]\nready = \"notify\"\n\
             command = [{SERVER:?}, \"run\", \"--runtime-dir\", {other:?}, \"--set\", \"suite.allow_root=true\", \
             \"--set\", \"server.listen=[\\\"127.0.0.1:0\\\"]\"]\n"
        ),
    );
    s.start();
    told(&s, &["wait-ready", "web"]);
    let job = jobs(&s).remove(0);
    let addr: SocketAddr = job["listen"][0].as_str().unwrap().parse().unwrap();
    // it binds what it is configured to; what it inherits is what the manager holds
    for _ in 0..5 {
        let mark = s.mark();
        PidFd::open(pid(&s, "web")).unwrap().signal(SIGKILL).unwrap();
        // nobody is refused: it waits until somebody accepts
        std::net::TcpStream::connect_timeout(&addr, Duration::from_secs(5)).unwrap();
        s.wait(mark, &["event=ready of=job job=web"]);
    }
    s.stop();
}

#[test]
fn a_killed_manager_leaves_its_jobs_running_and_the_next_one_has_them_again() {
    let mut s = Suite::serving(
        "[[job]]\nname = \"chat\"\nready = \"fd\"\nlisten = [\"127.0.0.1:0\"]\n\
         command = [\"sh\", \"-c\", \"echo >&$NOTIFY_FD; trap 'echo heard' USR1; while :; do sleep 0.05; done\"]\n",
    );
    told(&s, &["wait-ready", "chat"]);
    let (before, listen) = (pid(&s, "chat"), jobs(&s)[0]["listen"].clone());
    for _ in 0..3 {
        let mark = s.mark();
        until_kept(&s);
        s.kill("manager", SIGKILL);
        s.wait(mark, &["event=adopted of=job job=chat", &format!("pid={before}")]);
        assert_eq!((pid(&s, "chat"), &jobs(&s)[0]["listen"]), (before, &listen));
        // what it writes is read by the new one
        assert!(told(&s, &["signal", "chat", "usr1"]).contains("1 workers"));
        s.wait(mark, &["job=chat", "heard"]);
    }
    // and its death is seen, and answered
    let mark = s.mark();
    PidFd::open(before).unwrap().signal(SIGKILL).unwrap();
    s.wait(mark, &["event=ready of=job job=chat"]);
    let next = PidFd::open(pid(&s, "chat")).unwrap();
    s.stop();
    assert!(!next.is_alive());
}

#[test]
fn a_job_that_came_with_a_reload_has_its_time_to_stop() {
    let mut s = Suite::new("");
    // cop, which reads its file when it starts, would give the manager 3.5 s
    let quick = "[cop]\nkill_timeout = \"500ms\"\ncore_signal = \"none\"\n[server]\nlisten = [\"127.0.0.1:0\"]\ndrain_timeout = \"0s\"\n";
    s.write_config(quick);
    s.start();
    let slow = "[[job]]\nname = \"slow\"\nready = \"fd\"\nstop_timeout = \"20s\"\n\
                command = [\"sh\", \"-c\", \"trap 'sleep 5; echo finished; exit' TERM; echo >&$NOTIFY_FD; while :; do sleep 0.1; done\"]\n";
    s.write_config(&format!("{quick}{slow}"));
    told(&s, &["reload"]);
    told(&s, &["wait-ready", "slow"]);
    let mark = s.mark();
    s.stop();
    s.wait(mark, &["job=slow", "finished"]);
}

#[test]
fn a_reload_touches_only_what_has_changed() {
    let job = |name: &str, more: &str| format!("[[job]]\nname = \"{name}\"\n{READY}{more}");
    let mut s = Suite::serving(&[job("same", ""), job("changed", ""), job("gone", "")].concat());
    for j in ["same", "changed", "gone"] {
        told(&s, &["wait-ready", j]);
    }
    let (same, changed) = (pid(&s, "same"), pid(&s, "changed"));
    let gone = PidFd::open(pid(&s, "gone")).unwrap();
    config(&s, &[job("new", ""), job("same", "workers = 2\n"), job("changed", "env = [\"A=1\"]\n")].concat());
    let mark = s.mark();
    told(&s, &["reload"]);
    assert!(gone.poll_exit(LONG).unwrap().is_some());
    s.wait(mark, &["event=ready of=job job=changed"]);
    for j in ["new", "same", "changed"] {
        told(&s, &["wait-ready", j]);
    }
    assert_eq!(workers(&s, "same").len(), 2);
    assert_eq!(pid(&s, "same"), same);
    assert_ne!(pid(&s, "changed"), changed);
    assert!(jobs(&s).iter().all(|j| j["name"] != "gone"));
    // a table that can't be is refused as a whole
    config(&s, &job("a", "after = [\"b\"]\n"));
    let said = expect_code(&s.run(MANAGER, &["reload"]), 78);
    assert!(
        said.contains("a comes after \"b\", which is no job") && said.contains("traffic.toml:"),
        "{said}"
    );
    let same = PidFd::open(same).unwrap();
    assert!(same.is_alive() && s.get("/").code == 200);
    s.stop();
}

#[test]
fn jobs_do_what_they_are_told() {
    let mut s = Suite::serving(&format!("[[job]]\nname = \"crew\"\nautostart = false\nworkers = 1\n{READY}"));
    assert!(workers(&s, "crew").is_empty());
    assert!(told(&s, &["start", "crew"]).contains("crew is ready"));
    told(&s, &["want", "crew", "3"]);
    told(&s, &["wait-ready", "crew"]);
    let pids =
        |s: &Suite| -> Vec<i64> { workers(s, "crew").iter().map(|w| w["pid"].as_i64().unwrap()).collect() };
    let before = pids(&s);
    assert_eq!(before.len(), 3);
    assert!(told(&s, &["restart", "crew"]).contains("crew is ready"));
    let after = pids(&s);
    assert!(after.len() == 3 && after.iter().all(|p| !before.contains(p)), "{before:?} {after:?}");
    assert!(told(&s, &["stop", "crew"]).contains("crew is stopped"));
    assert!(workers(&s, "crew").is_empty());
    for (args, code, what) in [
        (&["start", "nobody"][..], 1, "there is no job \"nobody\"; there are: crew"),
        (&["start", "../x"], 64, "no name of a job"),
        (&["list", "--set", "suite.log"], 64, "expected KEY=VALUE"),
        (&["signal", "crew", "hello"], 1, "no signal"),
        (&["want", "crew", "100000"], 1, "0 to 1000"),
    ] {
        let said = expect_code(&s.run(MANAGER, args), code);
        assert!(said.contains(what), "{args:?}: {said}");
    }
    s.stop();
}

#[test]
fn a_disabled_job_stays_down_until_it_is_enabled() {
    let mut s =
        Suite::serving(&format!("[[job]]\nname = \"mail\"\n{READY}[[job]]\nname = \"other\"\n{READY}"));
    told(&s, &["wait-ready", "mail"]);
    assert!(told(&s, &["disable", "mail"]).contains("mail is stopped"));
    let refused = |s: &Suite| {
        for verb in ["start", "restart", "wait-ready"] {
            let said = expect_code(&s.run(MANAGER, &[verb, "mail"]), 1);
            assert!(said.contains("mail is disabled: traffic_manager enable mail"), "{verb}: {said}");
        }
        told(s, &["wait-ready", "other"]);
        assert!(workers(s, "mail").is_empty());
        assert!(told(s, &["list"]).lines().any(|l| l.starts_with("mail ") && l.ends_with("disabled")));
    };
    refused(&s);
    let mark = s.mark();
    until_kept(&s);
    s.kill("manager", SIGKILL);
    s.wait(mark, &["event=adopted of=job job=other"]);
    refused(&s);
    told(&s, &["reload"]);
    refused(&s);
    s.stop();
    s.start();
    refused(&s);
    assert!(told(&s, &["enable", "mail"]).contains("mail is ready"));
    told(&s, &["disable", "mail"]);
    s.stop();
    // what can't be read is set aside, and said
    std::fs::write(s.path("state/jobs.json"), "{\"disabled\": [\"ma").unwrap();
    let mark = s.mark();
    s.start();
    s.wait(mark, &["event=state-unreadable", "jobs.json"]);
    told(&s, &["wait-ready", "mail"]);
    assert!(s.path("state/jobs.json.corrupt").exists());
    s.stop();
}

#[test]
fn a_restart_reaches_those_that_go_with_it_and_no_others() {
    let job = |name: &str, more: &str| format!("[[job]]\nname = \"{name}\"\n{READY}{more}");
    let mut s = Suite::serving(
        &[
            job("db", ""),
            job("web", "after = [\"db\"]\nrestart_with = [\"db\"]\nworkers = 2\n"),
            job("page", "after = [\"web\"]\nrestart_with = [\"web\"]\n"),
            job("apart", "after = [\"db\"]\n"),
        ]
        .concat(),
    );
    for j in ["page", "apart"] {
        told(&s, &["wait-ready", j]);
    }
    let all = |s: &Suite, name: &str| -> Vec<i64> {
        workers(s, name).iter().map(|w| w["pid"].as_i64().unwrap()).collect()
    };
    let apart = all(&s, "apart");
    for way in ["killed", "restarted"] {
        let before = [all(&s, "web"), all(&s, "page")].concat();
        let mark = s.mark();
        match way {
            "killed" => PidFd::open(pid(&s, "db")).unwrap().signal(SIGKILL).unwrap(),
            _ => drop(told(&s, &["restart", "db"])),
        }
        s.wait(mark, &["event=restart of=job job=web with db"]);
        s.wait(mark, &["event=ready of=job job=web worker=0"]);
        s.wait(mark, &["event=ready of=job job=web worker=1"]);
        s.wait(mark, &["event=restart of=job job=page with web"]);
        s.wait(mark, &["event=ready of=job job=page worker=0"]);
        told(&s, &["wait-ready", "page"]);
        let after = [all(&s, "web"), all(&s, "page")].concat();
        assert!(after.len() == 3 && after.iter().all(|p| !before.contains(p)), "{way}: {before:?} {after:?}");
        assert_eq!(all(&s, "apart"), apart, "{way}");
    }
    assert!(!s.log.text().contains("event=restart of=job job=apart"));
    s.stop();
}

/// The manager is spared by the kernel (or, here, isn't); that isn't inherited.
#[test]
fn when_memory_is_short_a_job_is_no_manager() {
    let job = |name: &str, more: &str| format!("[[job]]\nname = {name:?}\n{more}{READY}");
    let mut s = Suite::serving(
        &["[manager]\noom_score_adj = 300\n", &job("plain", ""), &job("first", "oom_score_adj = 400\n")]
            .concat(),
    );
    let oom =
        |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().to_owned();
    for name in ["plain", "first"] {
        told(&s, &["wait-ready", name]);
    }
    assert_eq!([oom(s.pid("manager")), oom(pid(&s, "plain")), oom(pid(&s, "first"))], ["300", "0", "400"]);
    s.stop();
}
