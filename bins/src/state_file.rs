//! Small JSON files of the state directory: read with a bound, set aside when they can't be read, replaced as a whole.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

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

/// Writes it beside and renames it: whoever reads finds one or the other, whole. It isn't synced: what a power failure
/// costs is less than what a slow disk would.
///
/// # Errors
/// What the system says; nothing is left beside it.
pub fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let beside = path.with_extension("json.new");
    let text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    let mut file = File::create(&beside)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written
}
