//! Small JSON files of the state directory: read with a bound, set aside when they can't be read, replaced as a whole.

use serde::Serialize;
use serde::de::DeserializeOwned;
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

/// A file that is written by who must not wait for a disk: what is written is the newest, one after the other.
#[derive(Debug, Default)]
pub struct Saver {
    path: PathBuf,
    /// The event that says in the log that it couldn't be written; once, until it can.
    failure: &'static str,
    failed: bool,
    away: Option<Aside>,
    next: Option<String>,
}

impl Saver {
    /// Of that file.
    pub fn new(path: PathBuf, failure: &'static str) -> Saver {
        Saver { path, failure, failed: false, away: None, next: None }
    }

    /// Has it written soon. What is on its way is finished first, what waits is forgotten.
    pub fn save(&mut self, value: &impl Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.next = Some(text),
            Err(e) => log::warn!("event={} path={}: {e}", self.failure, self.path.display()),
        }
        self.step();
    }

    /// Goes on with it; to be called when a child has ended. What has come of the last one, if it is over.
    pub fn step(&mut self) -> Option<io::Result<()>> {
        let result = self.away.as_mut().and_then(Aside::result);
        if let Some(result) = &result {
            self.away = None;
            if let Err(e) = result
                && !self.failed
            {
                log::warn!("event={} path={}: {e}", self.failure, self.path.display());
            }
            self.failed = result.is_err();
        }
        if self.away.is_none()
            && let Some(text) = self.next.take()
        {
            let path = &self.path;
            let mut away = Aside::run(|| write(path, text.as_bytes()));
            // mostly it is done at once, and then it should be: who is killed in a moment has written it
            if let Some(result) = away.wait(SOON) {
                away = Aside::over(result);
            }
            self.away = Some(away);
            return self.step().or(result);
        }
        result
    }

    /// Is nothing on its way?
    pub fn is_idle(&self) -> bool {
        self.away.is_none()
    }

    /// Was the last thing that is known a failure?
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Waits until everything is written, at most so long.
    pub fn flush(&mut self, at_most: Duration) {
        let until = clock::now() + at_most;
        while let Some(away) = &mut self.away {
            let left = until.saturating_sub(clock::now());
            if left.is_zero() {
                return log::warn!(
                    "event={} path={}: the disk doesn't answer",
                    self.failure,
                    self.path.display()
                );
            }
            if let Some(result) = away.wait(left) {
                *away = Aside::over(result);
            }
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
