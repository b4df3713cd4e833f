//! Small JSON files of the state directory: read with a bound, set aside when they can't be read, replaced as a whole.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use supervisor::aside::Aside;
use supervisor::clock;

/// What is in the file, or nothing if there is none. What can't be read, or is larger than `most` bytes, is set aside with
/// `.corrupt` after its name, and said in the log.
pub fn open<T: DeserializeOwned + Default>(path: &Path, most: u64) -> T {
    match read(path, most) {
        Ok(value) => value,
        Err(e) if e.kind() == io::ErrorKind::NotFound => T::default(),
        Err(e) => {
            let moved = std::fs::rename(path, path.with_extension("json.corrupt")).is_ok();
            log::warn!("event=state-unreadable path={} set_aside={moved}: {e}", path.display());
            T::default()
        }
    }
}

/// What is in the file.
///
/// # Errors
/// It isn't there, is larger than `most` bytes, or holds something else.
pub fn read<T: DeserializeOwned>(path: &Path, most: u64) -> io::Result<T> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is larger than any of ours"));
    }
    let invalid = |e| io::Error::new(io::ErrorKind::InvalidData, e);
    // serde would take a list for a record without names
    let fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&bytes).map_err(invalid)?;
    serde_json::from_value(fields.into()).map_err(invalid)
}

/// What a disk that does what it should takes at most.
const SOON: Duration = Duration::from_millis(20);

/// Holds others off the directory until it is dropped, or its process really gone.
fn turn(path: &Path) -> io::Result<File> {
    let dir = File::open(path.parent().unwrap_or(Path::new(".")))?;
    rustix::fs::flock(&dir, rustix::fs::FlockOperation::LockExclusive)?;
    Ok(dir)
}

/// How long a disk may take at the end.
const LAST: Duration = Duration::from_secs(1);

/// A file that is written by who must not wait for a disk: what is written is the newest, one after the other.
#[derive(Debug, Default)]
pub struct Saver {
    path: PathBuf,
    /// The event that says in the log that it couldn't be written; once, until it can.
    failure: &'static str,
    failed: bool,
    away: Option<Aside>,
    next: Option<String>,
    /// What was given last; `None`: it couldn't be written.
    given: Option<String>,
}

impl Saver {
    /// Of that file, in which that value is already.
    pub fn new(path: PathBuf, failure: &'static str, is: &impl Serialize) -> Saver {
        Saver { path, failure, given: serde_json::to_string_pretty(is).ok(), ..Saver::default() }
    }

    /// Has it written soon, if it is something else than the last time, or that failed. What is on its way is finished first,
    /// what waits is forgotten.
    pub fn save(&mut self, value: &impl Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) if self.given.as_ref() == Some(&text) => {}
            Ok(text) => {
                self.given = Some(text.clone());
                self.next = Some(text);
            }
            Err(e) => self.warn(e),
        }
        self.step();
    }

    /// Goes on with it; to be called when a child has ended.
    pub fn step(&mut self) {
        loop {
            if let Some(away) = &mut self.away {
                let Some(result) = away.result() else { return };
                self.away = None;
                self.is_over(result);
            }
            let Some(text) = self.next.take() else { return };
            let path = &self.path;
            let away = Aside::run(|| write(path, text.as_bytes()));
            // mostly it is done at once, and then it should be: who is killed in a moment has written it
            away.wait(SOON);
            self.away = Some(away);
        }
    }

    fn is_over(&mut self, result: io::Result<()>) {
        let failed = result.is_err();
        if let Err(e) = result
            && !self.failed
        {
            self.warn(e);
        }
        self.failed = failed;
        if failed && self.next.is_none() {
            // the next occasion is another one to write it
            self.given = None;
        }
    }

    /// Is everything written, as far as it could be? `None`: it is on its way.
    pub fn is_written(&self) -> Option<bool> {
        self.away.is_none().then_some(!self.failed)
    }

    fn warn(&self, why: impl Display) {
        log::warn!("event={} path={}: {why}", self.failure, self.path.display());
    }

    /// Waits until everything is written: for the end, and not for long.
    pub fn flush(&mut self) {
        let until = clock::now() + LAST;
        while let Some(away) = &self.away {
            let left = until.saturating_sub(clock::now());
            if left.is_zero() {
                return self.warn("the disk doesn't answer");
            }
            away.wait(left);
            self.step();
        }
    }
}

/// Writes it beside and renames it: whoever reads finds one or the other, whole. It isn't synced: what a power failure
/// costs is less than what a slow disk would.
///
/// # Errors
/// What the system says; nothing is left beside it.
fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("json.new");
    // one that was killed while it waited for the disk may go on with what it was at when the disk comes back: its lock is held
    // for as long as it can
    let _turn = turn(path)?;
    let mut file = File::create(&beside)?;
    let written = file.write_all(text).and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written
}
