//! What tests of jobs ask.

use super::{MANAGER, Suite, expect_code};

/// Writes its readiness to the descriptor that it is told, and lives.
pub const READY: &str =
    "ready = \"fd\"\ncommand = [\"sh\", \"-c\", \"echo up $$; echo >&$NOTIFY_FD; exec sleep 1000\"]\n";

pub fn jobs(s: &Suite) -> Vec<serde_json::Value> {
    let text = expect_code(&s.run(MANAGER, &["status"]), 0);
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    all["jobs"].as_array().unwrap().clone()
}

#[track_caller]
pub fn job(s: &Suite, name: &str) -> serde_json::Value {
    let all = jobs(s);
    all.iter().find(|j| j["name"] == name).unwrap_or_else(|| panic!("no job {name}: {all:?}")).clone()
}

#[track_caller]
pub fn workers(s: &Suite, name: &str) -> Vec<serde_json::Value> {
    job(s, name)["workers"].as_array().unwrap().clone()
}

#[track_caller]
pub fn pid(s: &Suite, name: &str) -> i32 {
    workers(s, name)[0]["pid"].as_i64().unwrap_or_else(|| panic!("{name} has no process")) as i32
}

#[track_caller]
pub fn told(s: &Suite, args: &[&str]) -> String {
    expect_code(&s.run(MANAGER, args), 0)
}

pub fn config(s: &Suite, jobs: &str) {
    s.write_config(&format!("[server]\nlisten = [\"127.0.0.1:0\"]\ndrain_timeout = \"3s\"\n{jobs}"));
}

/// Waits until cop keeps what the next manager needs.
#[track_caller]
pub fn until_kept(s: &Suite) {
    let until = std::time::Instant::now() + super::LONG;
    loop {
        let all: serde_json::Value =
            serde_json::from_str(&expect_code(&s.run(MANAGER, &["status"]), 0)).unwrap();
        if all["manager"]["kept"] == true {
            return;
        }
        assert!(std::time::Instant::now() < until, "cop doesn't listen: {all}");
    }
}
