//! `status.json` in the state directory: what is remembered from one cop to the next, and from one start of the suite to
//! the next. It is for people and their scripts; nothing that is decided depends on it, so whatever is wrong with the
//! file is a warning.

use crate::config::Suite;
use crate::state_file::{self, Saver};
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime};
use supervisor::clock::wall_seconds as now;

/// A larger file isn't ours.
const MAX: u64 = 64 << 10;

/// What is in the file. Times are seconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Starts of the suite; a cop that takes over a running one is none.
    pub starts: u64,
    /// When that was last.
    pub last_start: Option<u64>,
    /// When it was stopped last.
    pub last_stop: Option<u64>,
    /// Why.
    pub last_stop_reason: Option<String>,
    /// It was started, and not stopped in order since.
    pub running: bool,
    /// Cops that took a running suite over.
    pub cop: Life,
    /// The manager.
    pub manager: Life,
    /// The server, as far as cop saw it; replacements in order count too.
    pub server: Life,
}

/// One program's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Life {
    /// Times it was replaced.
    pub restarts: u64,
    /// When that was last.
    pub last_restart: Option<u64>,
    /// Between the last two of them, in seconds.
    pub restart_interval: Option<u64>,
    /// How it ended last, or why it was ended.
    pub last_exit: Option<String>,
}

impl Life {
    fn restarted(&mut self, now: u64) {
        self.restarts += 1;
        self.restart_interval = self.last_restart.map(|last| now.saturating_sub(last));
        self.last_restart = Some(now);
    }
}

/// The file, and what is in it.
#[derive(Debug)]
pub struct Record {
    file: Saver,
    /// What it says.
    pub status: Status,
}

impl Record {
    /// Of this suite. What can't be read is set aside as `status.json.corrupt`.
    pub fn open(suite: &Suite) -> Record {
        let path = suite.state_dir.join("status.json");
        let status = state_file::open(&path, MAX);
        Record { file: Saver::new(path, "status-failed", &status), status }
    }

    /// As it is, for who only looks.
    pub fn peek(suite: &Suite) -> Status {
        state_file::read(&suite.state_dir.join("status.json"), MAX).unwrap_or_default()
    }

    /// The suite is started.
    pub fn start(&mut self) {
        if self.status.running {
            log::warn!(
                "event=last-run-cut: it began at {} and wasn't stopped in order",
                rfc3339(self.status.last_start)
            );
        }
        self.status.starts += 1;
        self.status.last_start = Some(now());
        self.status.running = true;
        self.save();
    }

    /// A suite was found that runs.
    pub fn take_over(&mut self) {
        self.status.cop.restarted(now());
        self.status.running = true;
        self.save();
    }

    /// The suite has been stopped.
    pub fn stop(&mut self, reason: &str) {
        self.status.last_stop = Some(now());
        self.status.last_stop_reason = Some(reason.to_owned());
        self.status.running = false;
        self.save();
    }

    /// The manager ended, or had to be ended.
    pub fn manager_ended(&mut self, how: &str) {
        self.status.manager.last_exit = Some(how.to_owned());
        self.save();
    }

    /// It has another manager.
    pub fn manager_restarted(&mut self) {
        self.status.manager.restarted(now());
        self.save();
    }

    /// It has another server.
    pub fn server_restarted(&mut self) {
        self.status.server.restarted(now());
        self.save();
    }

    fn save(&mut self) {
        self.file.save(&self.status);
    }

    /// Goes on with what couldn't be written at once; to be called when a child has ended.
    pub fn step(&mut self) {
        self.file.step();
    }

    /// Waits until it is written: for the end, and not for long.
    pub fn flush(&mut self) {
        self.file.flush();
    }
}

/// For people.
pub fn rfc3339(at: Option<u64>) -> String {
    let at = at.and_then(|s| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(s)));
    at.map_or("an unknown time".into(), |t| humantime::format_rfc3339_seconds(t).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite(dir: &std::path::Path) -> Suite {
        Suite { state_dir: dir.to_owned(), ..Suite::default() }
    }

    #[test]
    fn what_one_writes_the_next_one_reads() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Record::open(&suite(dir.path()));
        first.start();
        first.manager_ended("killed by SIGKILL");
        first.manager_restarted();
        first.manager_restarted();
        let mut next = Record::open(&suite(dir.path()));
        assert_eq!(next.status, first.status);
        assert_eq!((next.status.manager.restarts, next.status.running), (2, true));
        assert!(next.status.manager.restart_interval.is_some_and(|s| s < 5));
        next.take_over();
        next.stop("SIGTERM");
        let last = Record::peek(&suite(dir.path()));
        assert_eq!((last.starts, last.cop.restarts, last.running), (1, 1, false));
        assert_eq!(last.last_stop_reason.as_deref(), Some("SIGTERM"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn what_can_not_be_read_is_set_aside() {
        for bad in [&b"{\"starts\": 1"[..], b"", b"\xff\xfe", b"[]", &[b' '; 70_000]] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("status.json"), bad).unwrap();
            let mut r = Record::open(&suite(dir.path()));
            assert_eq!(r.status, Status::default());
            r.start();
            assert_eq!(Record::peek(&suite(dir.path())).starts, 1);
            assert_eq!(std::fs::read(dir.path().join("status.json.corrupt")).unwrap(), bad);
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_no_reason_to_stop() {
        let dir = tempfile::tempdir().unwrap();
        let mut r = Record::open(&suite(&dir.path().join("gone")));
        r.start();
        assert_eq!(r.status.starts, 1);
    }

    #[test]
    fn what_is_missing_or_new_in_the_file_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("status.json"), r#"{"starts": 7, "moons": 2}"#).unwrap();
        assert_eq!(Record::open(&suite(dir.path())).status.starts, 7);
    }
}
