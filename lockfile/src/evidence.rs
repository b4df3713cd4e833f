//! Does this process really have that file open?
//!
//! A POSIX lock lasts only while its descriptor table has the file open. So a process that F_GETLK names and that has not
//! is no holder: the lock is kept by a table that outlived the process that took it, and the number is a stranger's now.

use std::io;

use crate::registry::FileId;

/// What /proc tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// It has the file open.
    HasItOpen,
    /// It has not, or is gone.
    HasNot,
    /// We are not allowed to look (another user's process, or one that is not dumpable), or there is no /proc.
    CannotTell,
}

/// Looks through the descriptors of `pid`; no more than the process has.
pub(crate) fn look(pid: i32, file: FileId) -> Evidence {
    use std::os::unix::fs::MetadataExt;
    let entries = match std::fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound && std::path::Path::new("/proc/self/fd").exists() => {
            return Evidence::HasNot;
        }
        Err(_) => return Evidence::CannotTell,
    };
    let mut unreadable = false;
    for entry in entries {
        let Ok(entry) = entry else {
            unreadable = true;
            break;
        };
        // follows the link to the open file itself, whatever has become of its path
        match std::fs::metadata(entry.path()) {
            Ok(meta) if (meta.dev(), meta.ino()) == (file.dev, file.ino) => return Evidence::HasItOpen,
            Ok(_) => {}
            // closed meanwhile
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(_) => unreadable = true,
        }
    }
    if unreadable { Evidence::CannotTell } else { Evidence::HasNot }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn an_open_file_is_found_and_another_is_not() {
        let mine = tempfile::tempfile().unwrap();
        let meta = mine.metadata().unwrap();
        let me = std::process::id() as i32;
        let id = FileId { dev: meta.dev(), ino: meta.ino() };
        assert_eq!(look(me, id), Evidence::HasItOpen);
        assert_eq!(look(me, FileId { dev: id.dev, ino: u64::MAX }), Evidence::HasNot);
        assert_eq!(look(i32::MAX, id), Evidence::HasNot);
    }

    #[test]
    fn what_is_closed_while_it_looks_is_no_obstacle() {
        let done = std::sync::atomic::AtomicBool::new(false);
        let is_done = || done.load(std::sync::atomic::Ordering::Relaxed);
        std::thread::scope(|s| {
            s.spawn(|| {
                while !is_done() {
                    drop([(); 8].map(|()| std::fs::File::open("/dev/null").unwrap()));
                }
            });
            let me = std::process::id() as i32;
            let all = (0..500).all(|_| look(me, FileId { dev: 0, ino: u64::MAX }) == Evidence::HasNot);
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(all);
        });
    }
}
