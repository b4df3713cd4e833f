//! Rotation of the daemon's log, by cop: by size and at a time of day. The others follow the name (see [`super::sink`]).

use super::sink;
use crate::config::Suite;
use rustix::fs::fstat;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use supervisor::privileges::{self, Credentials};

const DAY: u64 = 86_400;
/// After a failure: it would only fail again.
const AGAIN: Duration = Duration::from_secs(60);

/// When to rotate, and what to keep.
#[derive(Debug)]
pub struct Rotation {
    path: PathBuf,
    max_size: u64,
    /// Seconds after midnight, UTC.
    at: Option<u64>,
    keep_days: u64,
    keep_files: usize,
    /// Whose group may write to it too.
    share: Option<Credentials>,
    due: SystemTime,
    not_before: SystemTime,
}

impl Rotation {
    /// As the configuration has it.
    pub fn new(suite: &Suite, share: Option<Credentials>) -> Rotation {
        let now = SystemTime::now();
        Rotation {
            path: suite.log_path(),
            max_size: suite.log_max_size,
            at: suite.log_rotate_at,
            keep_days: suite.log_keep_days,
            keep_files: suite.log_keep_files,
            share,
            due: next(suite.log_rotate_at, now),
            not_before: UNIX_EPOCH,
        }
    }

    /// Gives the log the rights that the server needs.
    ///
    /// # Errors
    /// What the system says.
    pub fn share(&self) -> io::Result<()> {
        self.share.as_ref().map_or(Ok(()), |who| privileges::share_file(&self.path, who, 0o660))
    }

    /// Rotates if it is time to.
    pub fn look(&mut self) {
        let now = SystemTime::now();
        let Ok(stat) = fstat(rustix::stdio::stderr()) else { return };
        // somebody else has renamed or removed it, and may want it back: the others follow the name, but don't make the file
        if fs::metadata(&self.path)
            .map_or_else(|e| e.kind() == io::ErrorKind::NotFound, |m| m.ino() != stat.st_ino)
            && now >= self.not_before
            && let Err(e) = self.open()
        {
            self.not_before = now + AGAIN;
            log::warn!("event=log-reopen-failed path={}: {e}", self.path.display());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let (full, due) = (self.max_size > 0 && size >= self.max_size, now >= self.due);
        let next = next(self.at, now);
        self.due = if due { next } else { self.due.min(next) };
        // the clock may have been set back
        self.not_before = self.not_before.min(now + AGAIN);
        if now < self.not_before || size == 0 || !(full || due) {
            return;
        }
        match self.rotate(now) {
            Ok(to) => log::info!("event=log-rotated to={:?} bytes={size}", to.display().to_string()),
            Err(e) => {
                self.not_before = now + AGAIN;
                log::warn!("event=log-rotation-failed path={}: {e}", self.path.display());
            }
        }
        for gone in expired(&self.path, self.keep_days, self.keep_files, now) {
            let _ = fs::remove_file(gone);
        }
    }

    fn rotate(&self, now: SystemTime) -> io::Result<PathBuf> {
        let to = rename_away(&self.path, now)?;
        self.open()?;
        Ok(to)
    }

    /// Has everybody write to the file that has the name now.
    fn open(&self) -> io::Result<()> {
        let file = sink::open(&self.path, true)?;
        self.share()?;
        rustix::stdio::dup2_stderr(&file)?;
        rustix::stdio::dup2_stdout(&file)?;
        sink::reopen();
        Ok(())
    }
}

/// Gives a log the name of now, and says which: nobody has its old name then.
///
/// # Errors
/// What the system says.
pub fn rename_away(path: &Path, now: SystemTime) -> io::Result<PathBuf> {
    let stamp = stamp(now);
    // after all others of this second: those before it may be gone already
    let last = rotated(path, now).pop();
    let of_now = last.as_ref().and_then(|p| p.to_str()?.rsplit_once(&stamp));
    let number = of_now.map_or(0, |(_, n)| n.trim_start_matches('-').parse::<u32>().unwrap_or(0) + 1);
    let to = match number {
        0 => with_suffix(path, &stamp),
        1..1000 => with_suffix(path, &format!("{stamp}-{number:03}")),
        _ => return Err(io::Error::other("a thousand rotations in one second")),
    };
    fs::rename(path, &to)?;
    Ok(to)
}

/// Old logs of that name that are too old (days; 0: none is) or too many.
pub fn expired(path: &Path, keep_days: u64, keep_files: usize, now: SystemTime) -> Vec<PathBuf> {
    let list = rotated(path, now);
    let too_many = list.len().saturating_sub(keep_files);
    let oldest = now - Duration::from_secs(keep_days * DAY);
    let too_old =
        |p: &PathBuf| keep_days > 0 && fs::metadata(p).and_then(|m| m.modified()).is_ok_and(|t| t < oldest);
    list.iter().enumerate().filter(|(n, p)| *n < too_many || too_old(p)).map(|(_, p)| p.clone()).collect()
}

/// As it is part of a name.
fn stamp(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string().replace(['-', ':'], "")
}

/// Old logs of that name, the oldest first.
fn rotated(path: &Path, now: SystemTime) -> Vec<PathBuf> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let prefix = with_suffix(path, "");
    let is_ours = |p: &PathBuf| {
        let stamp = p.to_str().zip(prefix.to_str()).and_then(|(p, prefix)| p.strip_prefix(prefix));
        stamp.is_some_and(|s| s.len() >= 16 && s.as_bytes()[8] == b'T' && s.as_bytes()[15] == b'Z')
    };
    let mut list: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).filter(is_ours).collect();
    // the names are in the order of time; those of a time to come are from before the clock was set back
    list.sort();
    let last = with_suffix(path, &format!("{}-999", stamp(now)));
    let to_come = list.partition_point(|p| *p <= last);
    list.rotate_left(to_come);
    list
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// The next time of day `at` (seconds after midnight, UTC) after `now`.
fn next(at: Option<u64>, now: SystemTime) -> SystemTime {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let never = u64::from(u32::MAX) * 10;
    let today = |at: u64| now / DAY * DAY + at;
    let secs = at.map_or(never, |at| if today(at) > now { today(at) } else { today(at) + DAY });
    UNIX_EPOCH + Duration::from_secs(secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_time_of_day() {
        let t = |s: u64| UNIX_EPOCH + Duration::from_secs(s);
        assert_eq!(next(Some(3600), t(10 * DAY)), t(10 * DAY + 3600));
        assert_eq!(next(Some(3600), t(10 * DAY + 3600)), t(11 * DAY + 3600));
        assert_eq!(next(Some(0), t(10 * DAY + 1)), t(11 * DAY));
        assert!(next(None, t(10 * DAY)) > t(36_500 * DAY));
    }

    #[test]
    fn old_logs_go_by_number_and_age_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("traffic.log");
        let stamps = ["20260101T000000Z", "20260102T000000Z", "20260103T000000Z", "20260103T000000Z-001"];
        for s in stamps {
            fs::write(with_suffix(&path, s), "x").unwrap();
        }
        for other in ["traffic.log", "traffic.log.gz", "traffic.log.20260101", "other.20260101T000000Z"] {
            fs::write(dir.path().join(other), "x").unwrap();
        }
        let now = SystemTime::now();
        assert_eq!(expired(&path, 0, 3, now), [with_suffix(&path, stamps[0])]);
        let set_back = humantime::parse_rfc3339("2026-01-02T12:00:00Z").unwrap();
        assert_eq!(expired(&path, 0, 3, set_back), [with_suffix(&path, stamps[2])], "the oldest by then");
        assert!(expired(&path, 2, 100, now).is_empty());
        assert_eq!(expired(&path, 2, 100, now + Duration::from_secs(3 * DAY)).len(), 4);
    }

    #[test]
    fn a_clock_that_was_set_back_overwrites_nothing_and_what_was_rotated_last_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("traffic.log");
        let now = humantime::parse_rfc3339("2026-01-02T12:00:00Z").unwrap();
        let mut made = Vec::new();
        for at in [now, now + Duration::from_secs(DAY), now] {
            fs::write(&path, made.len().to_string()).unwrap();
            made.push(rename_away(&path, at).unwrap());
        }
        let read: Vec<String> = made.iter().map(|p| fs::read_to_string(p).unwrap()).collect();
        assert_eq!(read, ["0", "1", "2"]);
        assert_eq!(expired(&path, 0, 1, now), [made[1].clone(), made[0].clone()]);
    }
}
