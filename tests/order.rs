//! Jobs that come after each other: their order holds at a start, at a reload and at a stop, whoever asks. And what a reload leaves
//! half-way.

mod common;

use common::jobs::*;
use common::origin::Origin;
use common::*;
use std::path::Path;

/// Ready when that file is there.
fn db(ready: &Path, more: &str) -> String {
    format!(
        "[[job]]\nname = \"db\"\nready = [\"test\", \"-e\", {ready:?}]\ncommand = [\"sleep\", \"1000\"]\n{more}"
    )
}

fn web(more: &str) -> String {
    format!("[[job]]\nname = \"web\"\nafter = [\"db\"]\nstart_grace = \"1s\"\n{READY}{more}")
}

/// Where that line is in the log.
#[track_caller]
fn at(s: &Suite, mark: usize, needles: &[&str]) -> usize {
    let line = s.wait(mark, needles);
    let text = s.log.text();
    mark + text.lines().skip(mark).position(|l| l == line).unwrap()
}

#[test]
fn neither_a_reload_nor_an_operator_starts_a_job_before_those_that_it_is_after() {
    let mut s = Suite::new("");
    let ready = s.path("ready");
    config(&s, &[db(&ready, ""), web("")].concat());
    s.start();
    s.wait(0, &["event=starting of=job job=db"]);
    config(&s, &[db(&ready, ""), web("env = [\"A=1\"]\n")].concat());
    told(&s, &["reload"]);
    // each is answered when the start grace is over
    std::thread::scope(|scope| {
        let asked = ["start", "restart"].map(|verb| scope.spawn(|| s.run(MANAGER, &[verb, "web"])));
        for o in asked.map(|a| a.join().unwrap()) {
            let said = expect_code(&o, 1);
            assert!(said.contains("web isn't ready: it waits for db"), "{said}");
        }
    });
    assert_eq!(job(&s, "web")["state"], "waiting");
    std::fs::write(&ready, "").unwrap();
    s.wait(0, &["event=ready of=job job=web"]);
    assert_eq!(s.log.text().matches("event=starting of=job job=web").count(), 1, "{}", s.log.text());
    // once it runs, its own death is answered at once, whatever db does
    std::fs::remove_file(&ready).unwrap();
    let mark = s.mark();
    for name in ["db", "web"] {
        supervisor::pidfd::PidFd::open(pid(&s, name)).unwrap().signal(SIGKILL).unwrap();
    }
    s.wait(mark, &["event=ready of=job job=web"]);
    assert_eq!(workers(&s, "db")[0]["state"], "starting");
    s.stop();
}

#[test]
fn jobs_that_are_changed_together_are_restarted_one_after_the_other() {
    let mut s = Suite::new("");
    let ready = s.path("ready");
    std::fs::write(&ready, "").unwrap();
    let with = "restart_with = [\"db\"]\n";
    config(&s, &[web(with), db(&ready, "")].concat());
    s.start();
    told(&s, &["wait-ready", "web"]);
    std::fs::remove_file(&ready).unwrap();
    let mark = s.mark();
    let changed = "env = [\"A=1\"]\n";
    config(&s, &[web(&format!("{with}{changed}")), db(&ready, changed)].concat());
    told(&s, &["reload"]);
    s.wait(mark, &["event=restart-waits of=job job=web for db"]);
    s.wait(mark, &["event=starting of=job job=db"]);
    assert_eq!(job(&s, "web")["state"], "ready");
    std::fs::write(&ready, "").unwrap();
    let web_is_ready = at(&s, mark, &["event=ready of=job job=web"]);
    assert!(at(&s, mark, &["event=ready of=job job=db"]) < at(&s, mark, &["event=stopping of=job job=web"]));
    // once: it goes with db, too
    told(&s, &["restart", "db"]);
    let mark = web_is_ready + 1;
    s.wait(mark, &["event=ready of=job job=web"]);
    let text = s.log.text();
    let restarts = text.lines().skip(mark).filter(|l| l.contains("event=stopping of=job job=web")).count();
    assert_eq!(restarts, 1, "{text}");
    s.stop();
}

#[test]
fn at_a_stop_jobs_go_on_until_the_server_has_finished_what_it_may_ask_them_for() {
    let origin = std::sync::Arc::new(Origin::start());
    let mut s = Suite::serving(&format!("{}[[job]]\nname = \"backend\"\n{READY}", origin.route()));
    told(&s, &["wait-ready", "backend"]);
    let mut client = s.client();
    client.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    origin.wait_seen("GET /held", 1);
    let mark = s.mark();
    let (log, last) = (s.log.clone(), origin.clone());
    let release = std::thread::spawn(move || {
        assert!(log.try_wait(mark, &["event=signal of=server", "rung=Polite"], LONG).is_some());
        last.release();
    });
    s.stop();
    release.join().unwrap();
    assert_eq!(client.read().unwrap().code, 200);
    let [server, job] =
        [&["event=state of=server from=stopping to=down"][..], &["event=stopping of=job job=backend"]]
            .map(|l| at(&s, mark, l));
    assert!(server < job, "{}", s.log.text());
}

#[test]
fn jobs_that_a_reload_removes_stop_before_those_that_they_are_after() {
    let mut s = Suite::new("");
    let go = s.path("go");
    // they end when they may; so it would be seen if the other one were told, too
    let slow = format!(
        "[[job]]\nname = \"web\"\nafter = [\"db\"]\nready = \"fd\"\nstop_timeout = \"30s\"\ncommand = [\"sh\", \"-c\", \"trap 'while ! test -e \
         {}; do sleep 0.02; done; exit' TERM; echo >&$NOTIFY_FD; while :; do sleep 0.05; done\"]\n",
        go.display()
    );
    let other = format!("[[job]]\nname = \"other\"\n{READY}");
    config(&s, &[slow, format!("[[job]]\nname = \"db\"\n{READY}"), other.clone()].concat());
    s.start();
    told(&s, &["wait-ready", "web"]);
    let mark = s.mark();
    config(&s, "");
    told(&s, &["reload"]);
    s.wait(mark, &["event=stopping of=job job=web"]);
    // it waits for nobody
    s.wait(mark, &["event=down of=job job=other"]);
    assert_eq!(workers(&s, "db")[0]["state"], "ready");
    // nor is that changed by another reload
    config(&s, &other);
    told(&s, &["reload"]);
    assert_eq!(workers(&s, "db")[0]["state"], "ready");
    std::fs::write(&go, "").unwrap();
    assert!(at(&s, mark, &["event=down of=job job=web"]) < at(&s, mark, &["event=stopping of=job job=db"]));
    s.wait(mark, &["event=down of=job job=db"]);
    s.stop();
}

#[test]
fn a_restart_that_stopped_half_way_is_gone_on_with_by_the_next_reload() {
    let mut s = Suite::new("");
    let good = s.path("good");
    let crew = |script: &str| {
        format!(
            "[[job]]\nname = \"crew\"\nworkers = 2\nready = \"fd\"\nstop_timeout = \"0s\"\nrespawn_max = \"100ms\"\n\
             give_up_after = 2\ncommand = [\"sh\", \"-c\", \"{script}echo >&$NOTIFY_FD; exec sleep 1000\"]\n"
        )
    };
    config(&s, &crew(""));
    s.start();
    told(&s, &["wait-ready", "crew"]);
    let pids = |s: &Suite| -> Vec<_> { workers(s, "crew").iter().map(|w| w["pid"].as_i64()).collect() };
    let first = pids(&s);
    let mark = s.mark();
    config(&s, &crew(&format!("test -e {} || exit 3; ", good.display())));
    told(&s, &["reload"]);
    s.wait(mark, &["event=restart-failed of=job job=crew"]);
    assert_eq!(pids(&s)[1], first[1]);
    // that one is of the last configuration is known to the next manager
    let mark = s.mark();
    until_kept(&s);
    s.kill("manager", SIGKILL);
    s.wait(mark, &["event=adopted of=job job=crew worker=1"]);
    std::fs::write(&good, "").unwrap();
    told(&s, &["start", "crew"]);
    let second = pids(&s);
    assert_eq!(second[1], first[1]);
    told(&s, &["reload"]);
    s.wait(mark, &["event=exit of=job job=crew worker=1"]);
    s.wait(mark, &["event=ready of=job job=crew worker=1"]);
    told(&s, &["wait-ready", "crew"]);
    let third = pids(&s);
    assert!(third[0] == second[0] && third[1] != first[1], "{first:?} {second:?} {third:?}");
    s.stop();
}
