//! Files that jobs write to through us: rotated by size, and never waited for.
//!
//! A full disk, a directory that is gone, a FIFO that nobody reads: the lines are dropped and counted, the number is said in
//! our log when that begins and, with what was lost, when lines get through again. A file that was renamed is left for the
//! one that has its name then, within a second.
//!
//! A job that is another user may have put anything where its file is to be, or do so while we look: what can be changed by that
//! user is opened, and renamed, with that user's rights ([`supervisor::as_user`]).

use super::Job;
use crate::config;
use crate::logging::{rotate, sink};
use crate::manager::keep::Keep;
use crate::privileges;
use policy::Time;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use supervisor::as_user::{AsUser, may_change};
use supervisor::clock;
use supervisor::privileges::Credentials;

/// How often a file's name is looked at, and a file that can't be opened is tried again.
const LOOK: Duration = Duration::from_secs(1);

/// All files that jobs write to through us, by name: several workers, and several jobs, may share one.
pub(super) type Files = HashMap<PathBuf, OutFile>;

/// One of them.
#[derive(Default)]
pub(super) struct OutFile {
    open: Option<File>,
    inode: u64,
    size: u64,
    looked: Option<Time>,
    /// Lines that couldn't be written since the last one that could.
    dropped: u64,
    /// The last line went out in part.
    torn: bool,
}

/// What is to be said of a write.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    /// Lines are lost from here on, for this reason.
    Begins(String),
    /// So many lines were lost.
    Ended(u64),
}

/// Asked when a file is to be opened: who the job is, if that is somebody else.
type Whose<'a> = &'a dyn Fn() -> io::Result<Option<Credentials>>;

/// Opens a file of a job's output to append to it.
///
/// # Errors
/// What the system says; there is something that could lead the output elsewhere.
pub(super) fn open(path: &Path, c: &config::Job) -> io::Result<File> {
    open_for(path, &|| whose(c))
}

/// Who a job is, if that is somebody else.
fn whose(c: &config::Job) -> io::Result<Option<Credentials>> {
    Ok(privileges::job(c).map_err(io::Error::other)?.filter(|who| !who.is_me()))
}

fn open_for(path: &Path, whose: Whose<'_>) -> io::Result<File> {
    let Some(who) = whose()? else { return sink::open(path, true) };
    with_rights(path, &who, |ours| if ours { open_own(path) } else { sink::open(path, true) })
}

/// Does something to a name as who may do it: the job's user where that user can change what the name stands for, else us
/// (`true`).
fn with_rights<T>(path: &Path, who: &Credentials, work: impl FnOnce(bool) -> io::Result<T>) -> io::Result<T> {
    if !may_change(path, who)? {
        return work(true);
    }
    let named = |e: io::Error| io::Error::new(e.kind(), format!("as user {}: {e}", who.user));
    let _as = AsUser::enter(who).map_err(named)?;
    work(false).map_err(named)
}

/// Opens a file where only we can put one. What the user may have put there when the place was theirs leads nowhere: no link, no
/// second name of something else, no device but those that read and write bytes.
fn open_own(path: &Path) -> io::Result<File> {
    let wrong = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    // /dev/stdout is a link of the system's
    let of_system = path.starts_with("/dev") || path.starts_with("/proc");
    let flags = if of_system { 0 } else { nix::libc::O_NOFOLLOW };
    let file = match sink::open_with(path, true, flags) {
        Err(e) if e.raw_os_error() == Some(nix::libc::ELOOP) => return wrong("it is a link"),
        other => other?,
    };
    let meta = file.metadata()?;
    let kind = meta.file_type();
    match kind.is_file() {
        true if meta.nlink() > 1 => wrong("it has a second name (a hard link)"),
        false if !kind.is_fifo() && !kind.is_char_device() => wrong("it is no file"),
        _ => Ok(file),
    }
}

impl OutFile {
    fn write(&mut self, path: &Path, bytes: &[u8], now: Time, whose: Whose<'_>) -> Said {
        let result = self.reopen(path, now, whose).and_then(|()| self.put(bytes));
        let lines = bytes.iter().filter(|b| **b == b'\n').count().max(1) as u64;
        match result {
            Ok(()) => match std::mem::take(&mut self.dropped) {
                0 => Said::Nothing,
                lost => Said::Ended(lost),
            },
            Err(e) => {
                let before = self.dropped;
                self.dropped += lines;
                if before == 0 { Said::Begins(e.to_string()) } else { Said::Nothing }
            }
        }
    }

    /// Writes all of it, or as much as there is room for.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.open else { return Err(io::ErrorKind::NotFound.into()) };
        if self.torn {
            self.size += file.write(b"\n")? as u64;
            self.torn = false;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.size += n as u64;
                    rest = &rest[n..];
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.torn = rest.len() < bytes.len() && bytes[bytes.len() - rest.len() - 1] != b'\n';
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// Has the file open that has this name now.
    fn reopen(&mut self, path: &Path, now: Time, whose: Whose<'_>) -> io::Result<()> {
        if self.looked.is_some_and(|at| now < at + LOOK) {
            return Ok(());
        }
        self.looked = Some(now);
        if self.open.is_some() && std::fs::metadata(path).is_ok_and(|m| m.ino() == self.inode) {
            return Ok(());
        }
        self.open = None;
        let file = open_for(path, whose)?;
        let meta = file.metadata()?;
        (self.inode, self.size, self.torn) = (meta.ino(), meta.len(), false);
        self.open = Some(file);
        Ok(())
    }

    /// Rotates it if it is larger than that.
    fn rotate(
        &mut self,
        path: &Path,
        max: u64,
        keep: usize,
        whose: Whose<'_>,
    ) -> io::Result<Option<PathBuf>> {
        let is_file = self.open.as_ref().is_some_and(|f| f.metadata().is_ok_and(|m| m.is_file()));
        if self.size < max || !is_file {
            return Ok(None);
        }
        let rename = |_ours| {
            let now = SystemTime::now();
            let to = rotate::rename_away(path, now)?;
            for gone in rotate::expired(path, 0, keep, now) {
                let _ = std::fs::remove_file(gone);
            }
            Ok(to)
        };
        let to = match whose()? {
            Some(who) => with_rights(path, &who, rename)?,
            None => rename(true)?,
        };
        // the next line opens a new one
        (self.open, self.looked, self.size) = (None, None, 0);
        Ok(Some(to))
    }
}

impl Keep {
    /// Writes whole lines of a job to its file.
    pub(super) fn write_to(&self, job: &Job, path: &Path, bytes: &[u8]) {
        let (max, keep) = {
            let c = job.config.borrow();
            (c.output_max_size, c.output_keep)
        };
        let mut jobs = self.jobs.borrow_mut();
        if !jobs.files.contains_key(path) {
            jobs.files.insert(path.to_owned(), OutFile::default());
        }
        let Some(file) = jobs.files.get_mut(path) else { return };
        let shown = path.display();
        let whose = || whose(&job.config.borrow());
        match file.write(path, bytes, clock::now(), &whose) {
            Said::Nothing => {}
            Said::Begins(why) => {
                log::error!("event=output-dropped of=job job={} file={shown}: {why}", job.name);
            }
            Said::Ended(lost) => {
                log::warn!("event=output-resumed of=job job={} file={shown} lines_lost={lost}", job.name);
            }
        }
        match file.rotate(path, max, keep, &whose) {
            Ok(None) => {}
            Ok(Some(to)) => log::info!("event=output-rotated of=job job={} to={}", job.name, to.display()),
            Err(e) => {
                // it would only fail again: not before it has grown as much once more
                file.size = 0;
                log::warn!("event=output-rotation-failed of=job job={} file={shown}: {e}", job.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: fn() -> io::Result<Option<Credentials>> = || Ok(None);

    fn at(s: u64) -> Time {
        Duration::from_secs(s)
    }

    #[test]
    fn a_file_is_rotated_by_size_and_few_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let mut f = OutFile::default();
        for n in 0..10 {
            assert_eq!(f.write(&path, format!("line {n}\n").as_bytes(), at(n), &OURS), Said::Nothing);
            f.rotate(&path, 14, 2, &OURS).unwrap();
        }
        let mut names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        let text: Vec<_> = names.iter().map(|n| std::fs::read_to_string(n).unwrap()).collect();
        assert_eq!(text, ["line 6\nline 7\n", "line 8\nline 9\n"]);
    }

    #[test]
    fn what_can_not_be_written_is_counted_and_a_renamed_file_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("not yet/out");
        let mut f = OutFile::default();
        assert!(matches!(f.write(&path, b"a\nb\n", at(0), &OURS), Said::Begins(_)));
        assert_eq!(f.write(&path, b"c\n", at(0), &OURS), Said::Nothing);
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        assert_eq!(f.write(&path, b"d\n", at(2), &OURS), Said::Ended(3));
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        assert_eq!(f.write(&path, b"e\n", at(4), &OURS), Said::Nothing);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "e\n");
    }

    #[test]
    fn a_full_disk_and_a_fifo_without_a_reader_hold_nobody_up() {
        let mut f = OutFile::default();
        let said = f.write(Path::new("/dev/full"), b"a\n", at(0), &OURS);
        assert!(matches!(&said, Said::Begins(why) if why.contains("No space left")), "{said:?}");
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut f = OutFile::default();
        assert!(matches!(f.write(&fifo, b"a\n", at(0), &OURS), Said::Begins(_)));
        // and one that doesn't read
        let reader = rustix::fs::open(
            &fifo,
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK,
            rustix::fs::Mode::empty(),
        );
        assert_eq!(f.write(&fifo, b"a\n", at(2), &OURS), Said::Ended(1));
        let full =
            (0..100).map(|_| f.write(&fifo, &[b'x'; 4096], at(2), &OURS)).find(|s| *s != Said::Nothing);
        assert!(matches!(full, Some(Said::Begins(_))), "{full:?}");
        drop(reader);
    }
}
