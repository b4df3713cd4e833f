//! A picture of a stuck process, for those who ask later why it was: what /proc tells of it and its threads, in a file.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::aside::Aside;
use crate::identity::Identity;

/// Where pictures are kept, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshots {
    /// The directory; made (0700) if it is not there.
    pub dir: PathBuf,
    /// How many files may stay. The oldest go first.
    pub keep: usize,
}

/// Bounds of one picture: threads, and bytes of each file.
const THREADS: usize = 64;
const BYTES: u64 = 16 * 1024;

const SUFFIX: &str = "snapshot";

/// Pictures on their way to the disk, and how many there may be.
static AWAY: Mutex<Vec<Aside>> = Mutex::new(Vec::new());
const MOST_AWAY: usize = 4;

fn failed(who: &Identity, e: &io::Error) {
    log::warn!("event=snapshot-failed pid={}: {e}", who.pid);
}

/// The picture of a process and its first threads: status, and where in the kernel each is. What may not be read says
/// why. Nothing here waits for the process (so its memory, hence command line and environment, is not read).
pub fn picture(pid: i32) -> String {
    let mut text = String::new();
    let of = |text: &mut String, dir: &str, names: &[&str]| {
        for name in names {
            let path = format!("{dir}/{name}");
            let _ = match read(&path) {
                Ok(content) => writeln!(text, "== {path}\n{}", content.trim_end()),
                Err(e) => writeln!(text, "== {path}: {e}"),
            };
        }
    };
    of(&mut text, &format!("/proc/{pid}"), &["status", "stack", "wchan", "syscall"]);
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for thread in threads.filter(|t| t.file_name() != pid.to_string().as_str()).take(THREADS) {
        of(&mut text, &thread.path().to_string_lossy(), &["comm", "stack", "wchan", "syscall"]);
    }
    text
}

fn read(path: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Snapshots {
    /// Takes a picture of the process, now, and keeps it with the reason, soon: nobody's end waits for a disk. The log says
    /// what came of it.
    pub fn take(&self, who: &Identity, why: &str) {
        let picture = picture(who.pid);
        let mut away = AWAY.lock().unwrap_or_else(PoisonError::into_inner);
        away.retain_mut(|a| !a.is_over());
        let store = || {
            if away.len() >= MOST_AWAY {
                return Err(io::Error::other("the disk hasn't taken those before it"));
            }
            Ok(Aside::run(|| {
                let path = self.store(who, why, &picture).inspect_err(|e| failed(who, e))?;
                log::warn!("event=snapshot pid={} file={}", who.pid, path.display());
                Ok(())
            }))
        };
        match store() {
            Ok(aside) => away.push(aside),
            Err(e) => failed(who, &e),
        }
    }

    /// Keeps a picture that was taken, with the reason, and removes the oldest ones beyond the limit. This may wait for the disk.
    ///
    /// # Errors
    /// The directory or file could not be written.
    pub fn store(&self, who: &Identity, why: &str, picture: &str) -> io::Result<PathBuf> {
        use std::os::unix::fs::DirBuilderExt;
        if self.keep == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no snapshot may be kept"));
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        self.rotate(self.keep - 1)?;
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let comm: String =
            who.comm.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let name = format!("{comm}.{}.{}.{:09}.{SUFFIX}", who.pid, now.as_secs(), now.subsec_nanos());
        let path = self.dir.join(name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let exe = who.exe.as_ref().map_or_else(|| "unknown".into(), |e| e.path.to_string_lossy());
        write!(file, "{who}, program {exe}: {why}\n{picture}")?;
        Ok(path)
    }

    fn rotate(&self, keep: usize) -> io::Result<()> {
        let mut all: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.dir)?.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|e| e == SUFFIX) {
                let age = entry.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                all.push((age, path));
            }
        }
        all.sort();
        let too_many = all.len().saturating_sub(keep);
        all[..too_many].iter().try_for_each(|(_, path)| remove(path))
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stay_and_strangers_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let place = Snapshots { dir: dir.path().join("snapshots"), keep: 3 };
        let me = Identity::of(std::process::id() as i32).unwrap();
        place.store(&me, "test 0", "").unwrap();
        fs::write(place.dir.join("notes.txt"), "").unwrap();
        let paths: Vec<PathBuf> =
            (1..6).map(|n| place.store(&me, &format!("test {n}"), &picture(me.pid)).unwrap()).collect();
        let mut left: Vec<_> = fs::read_dir(&place.dir).unwrap().map(|e| e.unwrap().path()).collect();
        left.retain(|p| p.extension().unwrap() == SUFFIX);
        assert_eq!(left.len(), 3);
        let newest = fs::read_to_string(paths.last().unwrap()).unwrap();
        assert!(newest.contains("test 5") && newest.contains("State:"), "{newest}");
        assert!(place.dir.join("notes.txt").exists());
    }

    #[test]
    fn a_picture_of_nobody_says_so() {
        assert!(picture(i32::MAX).contains("status: No such file"));
    }
}
