//! `jobs.json` in the state directory: what operators have switched off, and how far schedules are dealt with, from one
//! manager to the next. Nothing depends on it but that: whatever is wrong with the file is a warning.

use super::Job;
use crate::manager::keep::Keep;
use crate::state_file::{self, Saver};
use policy::schedule::Wall;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::path::Path;
use std::task::Poll;
use std::time::Duration;

/// A larger file isn't ours.
const MOST: u64 = 1 << 20;
/// Who asks for something that is to be written waits for so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is in the file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::manager) struct Remembered {
    /// Jobs that aren't to be started.
    pub(super) disabled: BTreeSet<String>,
    /// Jobs with a schedule.
    pub(super) runs: BTreeMap<String, Run>,
}

/// The runs of one job. Times are seconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::manager) struct Run {
    /// Up to when its schedule is dealt with.
    pub(super) dealt: Wall,
    /// When the last one began.
    pub(super) started: Option<Wall>,
    /// When it ended.
    pub(super) ended: Option<Wall>,
    /// How.
    pub(super) result: Option<String>,
}

/// The file, and what is in it.
#[derive(Debug, Default)]
pub(super) struct Memory {
    file: Saver,
    pub(super) is: Remembered,
}

impl Memory {
    /// Of that state directory.
    pub(super) fn open(state_dir: &Path) -> Memory {
        let path = state_dir.join("jobs.json");
        let is: Remembered = state_file::open(&path, MOST);
        Memory { file: Saver::new(path, "state-failed", &is), is }
    }

    /// Has it written down if something has changed.
    pub(super) fn save(&mut self) {
        self.file.save(&self.is);
    }

    /// Goes on with it; to be called when a child has ended.
    pub(super) fn step(&mut self) {
        self.file.step();
    }

    /// Waits for what is on its way: for the end, and not for long.
    pub(super) fn flush(&mut self) {
        self.file.flush();
    }
}

impl Keep {
    /// Writes down that a job is disabled, or isn't any more. The next manager knows it in any case; a start of the suite only if
    /// the disk has taken it. Returns what is to be said about that.
    ///
    /// # Errors
    /// It can't be written, and is as it was then.
    pub(super) async fn remember_disabled(
        &self,
        job: &Job,
        disabled: bool,
    ) -> Result<&'static str, &'static str> {
        let set = |disabled: bool| {
            let is = &mut self.jobs.borrow_mut().memory.is;
            match disabled {
                true => is.disabled.insert(job.name.clone()),
                false => is.disabled.remove(&job.name),
            }
        };
        let changed = set(disabled);
        self.jobs.borrow_mut().memory.save();
        let written = poll_fn(|cx| match self.jobs.borrow().memory.file.is_written() {
            Some(is) => Poll::Ready(is),
            None => {
                self.changes.borrow_mut().push(cx.waker().clone());
                Poll::Pending
            }
        });
        match engine::time::timeout(PATIENCE, written).await {
            Ok(true) => Ok(""),
            Ok(false) if changed => {
                set(!disabled);
                Err("it can't be written down: see the log")
            }
            Ok(false) => Ok("(it can't be written down now: see the log) "),
            Err(_) => Ok("(the disk doesn't answer: it isn't written down yet) "),
        }
    }

    /// A child has ended: perhaps the one that wrote.
    pub(in crate::manager) fn step_memory(&self) {
        self.jobs.borrow_mut().memory.step();
        self.wake_changes();
    }

    /// Nothing is left to be written.
    pub(in crate::manager) fn flush_memory(&self) {
        self.jobs.borrow_mut().memory.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_manager_reads_what_this_one_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let mut m = Memory::open(dir.path());
        m.save();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing to say, nothing written");
        m.is.disabled.insert("mail".into());
        m.is.runs
            .insert("backup".into(), Run { dealt: 7, result: Some("exit code 0".into()), ..Run::default() });
        m.save();
        assert_eq!(Memory::open(dir.path()).is, m.is);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn what_can_not_be_read_is_set_aside() {
        for bad in [&b"{\"disabled\": 1}"[..], b"", b"\xff", b"[]", b"{\"runs\": {\"a\": 3}}"] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("jobs.json"), bad).unwrap();
            assert_eq!(Memory::open(dir.path()).is, Remembered::default());
            assert_eq!(std::fs::read(dir.path().join("jobs.json.corrupt")).unwrap(), bad);
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_said_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let mut m = Memory::open(&dir.path().join("gone"));
        m.is.disabled.insert("mail".into());
        m.save();
        assert_eq!(m.file.is_written(), Some(false));
        std::fs::create_dir(dir.path().join("gone")).unwrap();
        m.save();
        assert_eq!(Memory::open(&dir.path().join("gone")).is, m.is);
    }
}
