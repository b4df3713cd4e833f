//! What the processes of a suite take: the check that nothing leaks.

use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// A whole suite: the three, a standby, and a keeper for each but cop.
pub const PROCESSES: usize = 7;

/// All processes of a suite together, at rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// How many there are, keepers included.
    pub processes: usize,
    /// Of them, threads.
    pub threads: usize,
    /// Open fds; those of a keeper are its ward's and aren't counted.
    pub fds: usize,
    /// Resident memory; keepers share almost all of theirs and aren't counted.
    pub rss_kib: u64,
    /// Fds that init keeps for cop.
    pub stored: usize,
}

impl Figures {
    /// Of the suite whose configuration lies in `dir`.
    pub fn of(dir: &Path, stored: usize) -> Figures {
        let mut all = Figures { stored, ..Figures::default() };
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        for pid in pids.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok()) {
            let read = |what: &str| fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap_or_default();
            let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
            let line = read("cmdline");
            // commands like `restart` are none of them
            let program = line.contains("\0run\0") || line.contains("\0start\0");
            if !program || !line.contains(&format!("{}/", dir.display())) {
                continue;
            }
            all.processes += 1;
            all.threads += count("task");
            if read("comm").trim_end() != "traffic_keeper" {
                all.fds += count("fd");
                let pages = read("statm").split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok());
                all.rss_kib += pages.unwrap_or(0) * rustix::param::page_size() as u64 / 1024;
            }
        }
        all
    }

    /// What has grown from the beginning to now by more than caches, pools and the like account for.
    pub fn leaks(&self, now: &Figures) -> Vec<String> {
        let mut found = Vec::new();
        let mut check = |what: &str, before: u64, after: u64, slack: u64| {
            if after > before + slack {
                found.push(format!("{what} grew from {before} to {after}"));
            }
        };
        check("processes", self.processes as u64, now.processes as u64, 0);
        check("threads", self.threads as u64, now.threads as u64, 8);
        check("fds", self.fds as u64, now.fds as u64, 32);
        check("fds kept by init", self.stored as u64, now.stored as u64, 8);
        // the cache holds what it may, and the connection table the pages that were touched
        check("resident KiB", self.rss_kib, now.rss_kib, self.rss_kib + (64 << 10));
        found
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "processes": self.processes,
            "threads": self.threads,
            "fds": self.fds,
            "rss_kib": self.rss_kib,
            "stored_fds": self.stored,
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        format!(
            "{} processes, {} threads, {} fds, {} KiB, {} fds kept by init",
            self.processes, self.threads, self.fds, self.rss_kib, self.stored
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_is_named_and_what_shrinks_is_fine() {
        let before = Figures { processes: 7, threads: 20, fds: 100, rss_kib: 30_000, stored: 8 };
        assert_eq!(before.leaks(&Figures::default()), [""; 0]);
        assert_eq!(before.leaks(&before), [""; 0]);
        let after = Figures { processes: 8, stored: 17, ..before };
        let found = before.leaks(&after);
        assert_eq!(found, ["processes grew from 7 to 8", "fds kept by init grew from 8 to 17"]);
        assert_eq!(before.leaks(&Figures { threads: 29, fds: 133, rss_kib: 200_000, ..before }).len(), 3);
    }
}
