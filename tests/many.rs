//! Many jobs under one manager: they start soon, survive it, cost nothing while they do nothing, and a neighbour that crashes
//! in a loop disturbs none of them. `benches/jobs/run scale` measures the same with a thousand.

mod common;

use common::jobs::*;
use common::*;
use std::collections::HashSet;
use supervisor::pidfd::PidFd;

const JOBS: usize = 150;

fn many(more: &str) -> String {
    let job = |n| {
        format!("[[job]]\nname = \"sleep-{n}\"\nready = \"running 0s\"\ncommand = [\"sleep\", \"1000\"]\n")
    };
    (0..JOBS).map(job).collect::<String>() + more
}

/// The processes of all `sleep` jobs that are ready.
fn sleepers(s: &Suite) -> Vec<i64> {
    let ready = |w: &serde_json::Value| (w["state"] == "ready").then(|| w["pid"].as_i64().unwrap());
    let of = |j: &serde_json::Value| -> Vec<i64> {
        j["workers"].as_array().unwrap().iter().filter_map(ready).collect()
    };
    jobs(s).iter().filter(|j| j["name"].as_str().unwrap().starts_with("sleep-")).flat_map(of).collect()
}

/// Waits until the last of them is ready.
fn all_ready(s: &Suite) -> Vec<i64> {
    (0..JOBS).for_each(|n| drop(s.wait(0, &["event=ready of=job", &format!("job=sleep-{n} ")])));
    let pids = sleepers(s);
    assert_eq!(pids.iter().collect::<HashSet<_>>().len(), JOBS);
    pids
}

#[test]
fn many_jobs_survive_their_manager_again_and_again() {
    let mut s = Suite::new(&many(""));
    s.env.push(("TRAFFIC_SUITE_LOG".into(), "info,traffic::manager::jobs::kept=debug".into()));
    s.start();
    let before = all_ready(&s);
    for _ in 0..2 {
        let mark = s.mark();
        s.kill("manager", SIGKILL);
        (0..JOBS).for_each(|n| drop(s.wait(mark, &["event=adopted of=job", &format!("job=sleep-{n} ")])));
        // whatever cop couldn't take at once it has got by now
        s.wait(mark, &["event=kept of=job"]);
        assert_eq!(sleepers(&s), before);
    }
    assert!(!s.log.text().contains("fdstore-failed"), "{}", s.log.text());
    let some = PidFd::open(before[JOBS / 2] as i32).unwrap();
    s.stop();
    assert!(!some.is_alive());
}

#[test]
fn a_crash_loop_disturbs_nobody() {
    let crash = "[[job]]\nname = \"loop\"\nrespawn_max = \"1ms\"\nworkers = 3\ncommand = [\"false\"]\n";
    let mut s = Suite::serving(&many(crash));
    let before = all_ready(&s);
    let mark = s.mark();
    // it goes on while we ask
    for _ in 0..20 {
        assert_eq!(s.get("/").code, 200);
        told(&s, &["wait-ready", "sleep-7"]);
    }
    s.wait(mark, &["event=exit of=job job=loop worker=2"]);
    let restarts = workers(&s, "loop").iter().map(|w| w["restarts"].as_u64().unwrap()).min().unwrap();
    assert!(restarts > 20, "{restarts}: it has crashed all the time");
    assert_eq!(sleepers(&s), before);
    s.stop();
}
