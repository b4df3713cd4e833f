//! The runtime and state directories: made 0750, and refused when somebody else could have prepared them.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Longest path a Unix socket address can hold, in bytes (`sun_path` less its NUL).
pub const MAX_SOCKET_PATH: usize = 107;

/// Why a directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// The system refused.
    #[error("{path}: cannot {what}: {why}")]
    Os {
        /// Which directory.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        why: io::Error,
    },
    /// It's not a directory, or a link to one.
    #[error("{0}: is not a directory (links are not followed)")]
    NotADirectory(PathBuf),
    /// Its owner is neither this user nor root.
    #[error("{path}: is owned by uid {owner}, not by uid {me}")]
    Owner {
        /// Which directory.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who we are.
        me: u32,
    },
    /// Others may write to it.
    #[error("{path}: mode {mode:04o} lets others write to it")]
    Mode {
        /// Which directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// Creates `path` with its parents (mode 0750), or checks one that exists: a directory, no link, owned by us or by root,
/// not writable by the world.
///
/// # Errors
/// See [`DirError`]; each names the directory.
pub fn ensure(path: &Path) -> Result<(), DirError> {
    let os = |what| move |why| DirError::Os { path: path.to_owned(), what, why };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o750).create(path).map_err(os("create it"))?;
            // a strict umask would keep out the server, which is of our group or gets it
            fs::set_permissions(path, fs::Permissions::from_mode(0o750)).map_err(os("set its mode"))?;
        }
        Err(e) => return Err(os("look at it")(e)),
        Ok(_) => {}
    }
    // looked at after creation too: somebody may have been quicker
    let meta = fs::symlink_metadata(path).map_err(os("look at it"))?;
    if !meta.is_dir() {
        return Err(DirError::NotADirectory(path.to_owned()));
    }
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != me && meta.uid() != 0 {
        return Err(DirError::Owner { path: path.to_owned(), owner: meta.uid(), me });
    }
    if meta.mode() & 0o002 != 0 {
        return Err(DirError::Mode { path: path.to_owned(), mode: meta.mode() & 0o7777 });
    }
    Ok(())
}

/// Writes a file so that a reader sees the old or the new contents and nothing between, mode 0640 (or as given).
///
/// # Errors
/// What the system says; the temporary file is removed.
pub fn write_atomically(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let tmp = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut f = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&tmp)?;
        f.write_all(contents)?;
        fs::rename(&tmp, path)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&tmp);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn makes_what_is_missing_and_takes_what_is_right() {
        let t = tempfile::tempdir().unwrap();
        let d = t.path().join("a/b");
        ensure(&d).unwrap();
        ensure(&d).unwrap();
        assert_eq!(
            fs::metadata(&d).unwrap().mode() & 0o027,
            0o020 & 0o027 & fs::metadata(&d).unwrap().mode()
        );
    }

    #[test]
    fn refuses_links_files_and_open_doors() {
        let t = tempfile::tempdir().unwrap();
        let link = t.path().join("link");
        std::os::unix::fs::symlink(t.path(), &link).unwrap();
        assert!(matches!(ensure(&link), Err(DirError::NotADirectory(_))));
        let file = t.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(ensure(&file), Err(DirError::NotADirectory(_))));
        let open = t.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(ensure(&open), Err(DirError::Mode { .. })));
    }

    #[test]
    fn atomic_writes_leave_no_temporary_file() {
        let t = tempfile::tempdir().unwrap();
        let p = t.path().join("status.json");
        write_atomically(&p, b"one", 0o640).unwrap();
        write_atomically(&p, b"two", 0o640).unwrap();
        assert_eq!(fs::read(&p).unwrap(), b"two");
        assert!(write_atomically(&t.path().join("no/such/dir"), b"", 0o640).is_err());
        assert_eq!(fs::read_dir(t.path()).unwrap().count(), 1);
    }
}
