//! What is told about the suite: by `status`, and in `status.json`, which outlives all of it.

mod common;

use common::*;

fn file(s: &Suite) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(s.path("state/status.json")).unwrap()).unwrap()
}

fn status(s: &Suite) -> serde_json::Value {
    serde_json::from_slice(&s.run(COP, &["status", "--json"]).stdout).unwrap()
}

fn row<'a>(v: &'a serde_json::Value, name: &str) -> &'a serde_json::Value {
    v["processes"].as_array().unwrap().iter().find(|p| p["name"] == name).unwrap()
}

#[test]
fn every_process_says_since_when_how_often_and_how_the_last_one_ended() {
    let mut s = Suite::serving(TIGHT);
    let mark = s.mark();
    s.kill("server", SIGKILL);
    assert_eq!(s.get("/").code, 200);
    s.wait(mark, &["event=incident of=server"]);
    s.kill("manager", SIGKILL);
    s.wait(mark, &["traffic_manager", "event=adopt of=server"]);
    s.kill("cop", SIGKILL);
    s.start();
    let told = status(&s);
    assert_eq!(told["suite"]["state"], "serving");
    assert_eq!(told["suite"]["starts"], 1);
    for (name, restarts) in [("cop", 1), ("manager", 1), ("server", 1)] {
        let p = row(&told, name);
        assert_eq!(p["restarts"], restarts, "{name}: {told:#}");
        assert!(p["since_s"].as_u64().is_some_and(|s| s < 120), "{name}: {told:#}");
        assert!(p["rss_kib"].as_u64().is_some_and(|k| k > 500), "{name}: {told:#}");
    }
    assert!(row(&told, "manager")["heartbeat_ms"].as_u64().is_some_and(|ms| ms < 60_000), "{told:#}");
    assert!(row(&told, "manager")["last_exit"].as_str().unwrap().contains("SIGKILL"), "{told:#}");
    let text = expect_code(&s.run(COP, &["status"]), 0);
    assert!(
        text.contains("serving, started ") && text.contains("heartbeat") && text.contains("s ago"),
        "{text}"
    );
    s.stop();
}

#[test]
fn what_was_is_remembered_over_starts_and_whatever_becomes_of_the_file() {
    let mut s = Suite::serving("");
    assert_eq!((&file(&s)["starts"], &file(&s)["running"]), (&1.into(), &true.into()));
    s.stop();
    let first = file(&s);
    assert_eq!((&first["running"], &first["last_stop_reason"]), (&false.into(), &"asked to".into()));
    let text = expect_code(&s.run(COP, &["status"]), 3);
    assert!(text.contains(&format!("down in {}, stopped 20", s.run_dir().display())), "{text}");
    // cut off: said at the next start
    s.start();
    for p in ["cop", "manager", "server"] {
        s.kill(p, SIGKILL);
    }
    let mark = s.mark();
    s.start();
    s.wait(mark, &["event=last-run-cut"]);
    assert_eq!(file(&s)["starts"], 3);
    s.stop();
    // damaged: set aside, and no reason not to serve
    std::fs::write(s.path("state/status.json"), "{\"starts\": 3, ").unwrap();
    let mark = s.mark();
    s.start();
    s.wait(mark, &["event=state-unreadable"]);
    assert_eq!(file(&s)["starts"], 1);
    assert!(s.path("state/status.json.corrupt").exists());
    s.stop();
}

#[test]
fn a_wrong_configuration_keeps_nobody_from_asking_or_stopping() {
    let s = Suite::serving("");
    let right = std::fs::read_to_string(s.path("traffic.toml")).unwrap();
    std::fs::write(s.path("traffic.toml"), format!("{right}nonsense = 1\n")).unwrap();
    for (program, args) in [
        (COP, &["status"][..]),
        (MANAGER, &["status"]),
        (MANAGER, &["list"]),
        (MANAGER, &["metrics"]),
        (MANAGER, &["events"]),
        (MANAGER, &["pause"]),
        (MANAGER, &["resume"]),
        (MANAGER, &["restart"]),
    ] {
        let said = expect_code(&s.run(program, args), 0);
        assert!(
            said.contains("warning:") && said.contains("unknown key server.nonsense"),
            "{args:?}: {said}"
        );
    }
    // what would take it is refused
    for (program, word) in [(COP, "reload"), (MANAGER, "reload"), (COP, "restart"), (COP, "upgrade")] {
        expect_code(&s.run(program, &[word]), 78);
    }
    let server = s.pid("server");
    expect_code(&s.run(COP, &["stop"]), 0);
    assert!(!std::path::Path::new(&format!("/proc/{server}")).exists());
    s.assert_clean();
}
