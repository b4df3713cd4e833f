//! `jobs.json` in the state directory: what operators have switched off, and how far schedules are dealt with, from one
//! manager to the next. Nothing depends on it but that: whatever is wrong with the file is a warning.

use super::Job;
use crate::manager::keep::Keep;
use crate::state_file;
use policy::schedule::Wall;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A larger file isn't ours.
const MOST: u64 = 1 << 20;

/// What is in the file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Remembered {
    /// Jobs that aren't to be started.
    pub(super) disabled: BTreeSet<String>,
    /// Jobs with a schedule.
    pub(super) runs: BTreeMap<String, Run>,
}

/// The runs of one job. Times are seconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Run {
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
    path: PathBuf,
    pub(super) is: Remembered,
    saved: Remembered,
    failed: bool,
}

impl Memory {
    /// Of that state directory.
    pub(super) fn open(state_dir: &Path) -> Memory {
        let path = state_dir.join("jobs.json");
        let is: Remembered = state_file::open(&path, MOST);
        Memory { path, saved: is.clone(), is, failed: false }
    }

    /// Writes it down if something has changed.
    ///
    /// # Errors
    /// What the system says; it is in the log too, the first time.
    pub(super) fn save(&mut self) -> std::io::Result<()> {
        if self.is == self.saved {
            return Ok(());
        }
        let result = state_file::write(&self.path, &self.is);
        match &result {
            Ok(()) => self.saved = self.is.clone(),
            Err(e) if !self.failed => log::warn!("event=state-failed path={}: {e}", self.path.display()),
            Err(_) => {}
        }
        self.failed = result.is_err();
        result
    }
}

impl Keep {
    /// Writes down that a job is disabled, or isn't any more.
    ///
    /// # Errors
    /// What the system says; it is as it was then.
    pub(super) fn remember_disabled(&self, job: &Job, disabled: bool) -> std::io::Result<()> {
        let memory = &mut self.jobs.borrow_mut().memory;
        let before = memory.is.disabled.clone();
        match disabled {
            true => memory.is.disabled.insert(job.name.clone()),
            false => memory.is.disabled.remove(&job.name),
        };
        memory.save().inspect_err(|_| memory.is.disabled = before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_manager_reads_what_this_one_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let mut m = Memory::open(dir.path());
        m.save().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing to say, nothing written");
        m.is.disabled.insert("mail".into());
        m.is.runs
            .insert("backup".into(), Run { dealt: 7, result: Some("exit code 0".into()), ..Run::default() });
        m.save().unwrap();
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
        assert!(m.save().is_err());
        std::fs::create_dir(dir.path().join("gone")).unwrap();
        m.save().unwrap();
        assert_eq!(Memory::open(&dir.path().join("gone")).is, m.is);
    }
}
