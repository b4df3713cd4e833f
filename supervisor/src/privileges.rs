//! Who a process is to be: users and groups by name, and what of the file system is shared with them.
//!
//! The one who gives its privileges up is the child of a spawn, between fork and exec (see [`crate::spawn`]); so the
//! program never runs with them.

use nix::unistd::{Gid, Group, Uid, User};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

/// A user with all of its groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Its name.
    pub user: String,
    /// Its number.
    pub uid: u32,
    /// The group it runs with.
    pub gid: u32,
    /// All its groups, `gid` among them.
    pub groups: Vec<u32>,
}

/// Why somebody can't be.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// No such user.
    #[error("there is no user {0:?}")]
    NoUser(String),
    /// No such group.
    #[error("there is no group {0:?}")]
    NoGroup(String),
    /// The system can't say.
    #[error("looking up {0:?}: {1}")]
    Os(String, #[source] io::Error),
}

impl Credentials {
    /// Of a user by name, with its own group or another one, and its supplementary groups.
    ///
    /// # Errors
    /// There is no such user or group, or the system's list can't be read.
    pub fn of(user: &str, group: Option<&str>) -> Result<Credentials, UserError> {
        let os = |name: &str| {
            let name = name.to_owned();
            move |e: nix::Error| UserError::Os(name, e.into())
        };
        let found = User::from_name(user).map_err(os(user))?;
        let found = found.ok_or_else(|| UserError::NoUser(user.to_owned()))?;
        let gid = match group {
            None => found.gid,
            Some(name) => {
                let g = Group::from_name(name).map_err(os(name))?;
                g.ok_or_else(|| UserError::NoGroup(name.to_owned()))?.gid
            }
        };
        let name = CString::new(user).map_err(|_| UserError::NoUser(user.to_owned()))?;
        let groups = nix::unistd::getgrouplist(&name, gid).map_err(os(user))?;
        Ok(Credentials {
            user: user.to_owned(),
            uid: found.uid.as_raw(),
            gid: gid.as_raw(),
            groups: groups.into_iter().map(Gid::as_raw).collect(),
        })
    }

    /// Are we that user already?
    pub fn is_me(&self) -> bool {
        Uid::effective().as_raw() == self.uid
    }
}

/// A directory that the other user can't enter.
#[derive(Debug, thiserror::Error)]
#[error("{path}: mode {mode:04o} and group {gid} keep user {user} out: chgrp or chmod it")]
pub struct Closed {
    /// Which.
    pub path: PathBuf,
    /// Its permission bits.
    pub mode: u32,
    /// Its group.
    pub gid: u32,
    /// Who is kept out.
    pub user: String,
}

/// Lets the group of `to` enter a directory of ours: one with the mode we make them with (0750) becomes that group's.
/// Any other is left as it is.
///
/// # Errors
/// [`Closed`] as an [`io::Error`] if it stays closed, or what the system says.
pub fn share_dir(path: &Path, to: &Credentials) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    let mode = meta.mode() & 0o7777;
    let enters = |gid| {
        (meta.uid() == to.uid && mode & 0o100 != 0)
            || (to.groups.contains(&gid) && mode & 0o010 != 0)
            || mode & 0o001 != 0
    };
    if enters(meta.gid()) {
        return Ok(());
    }
    if mode == 0o750 && meta.is_dir() && meta.uid() == Uid::effective().as_raw() {
        return lchown(path, None, Some(to.gid));
    }
    let closed = Closed { path: path.to_owned(), mode, gid: meta.gid(), user: to.user.clone() };
    Err(io::Error::new(io::ErrorKind::PermissionDenied, closed))
}

/// Gives a file of ours, in a directory that nobody else can write to, to the group of `to`, with this mode.
///
/// # Errors
/// What the system says.
pub fn share_file(path: &Path, to: &Credentials, mode: u32) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if meta.is_symlink() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a link, where a file of ours was"));
    }
    if meta.gid() != to.gid {
        lchown(path, None, Some(to.gid))?;
    }
    if meta.mode() & 0o7777 != mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Makes a directory that belongs to `to` (mode 0750), or hands over an empty or root-owned one that is there.
///
/// # Errors
/// Something else is there, it is somebody else's, or what the system says.
pub fn give_dir(path: &Path, to: &Credentials) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    match fs::DirBuilder::new().mode(0o750).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let meta = fs::symlink_metadata(path)?;
    match meta.uid() {
        _ if !meta.is_dir() => {
            Err(io::Error::new(io::ErrorKind::NotADirectory, "is not a directory (links are not followed)"))
        }
        owner if owner == to.uid => Ok(()),
        owner if owner == Uid::effective().as_raw() => lchown(path, Some(to.uid), Some(to.gid)),
        owner => {
            let why = format!("is owned by uid {owner}, neither by us nor by {}", to.user);
            Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
        }
    }
}

/// Makes a file that belongs to `to` (mode 0640), or hands over one of ours that is there.
///
/// # Errors
/// Something else is there, it is somebody else's, or what the system says.
pub fn give_file(path: &Path, to: &Credentials) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o640).open(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let meta = fs::symlink_metadata(path)?;
    match meta.uid() {
        owner if owner == to.uid => Ok(()),
        // a second name could be that of anything
        owner if meta.is_file() && meta.nlink() == 1 && owner == Uid::effective().as_raw() => {
            lchown(path, Some(to.uid), Some(to.gid))
        }
        owner => {
            let why = format!("is no file of ours that {} could be given (owner {owner})", to.user);
            Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
        }
    }
}

/// Sets our own `oom_score_adj` (-1000 to 1000; lower is killed later).
///
/// # Errors
/// Lowering it needs CAP_SYS_RESOURCE.
pub fn set_oom_score_adj(value: i32) -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_by_name() {
        let root = Credentials::of("root", None).unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        let nobody = Credentials::of("nobody", Some("daemon")).unwrap();
        assert!(nobody.uid != 0 && nobody.groups.contains(&nobody.gid));
        assert_eq!(
            Credentials::of("no-such-user", None).unwrap_err().to_string(),
            "there is no user \"no-such-user\""
        );
        assert!(matches!(Credentials::of("root", Some("no-such")), Err(UserError::NoGroup(_))));
    }

    #[test]
    fn only_directories_with_our_mode_change_hands() {
        let t = tempfile::tempdir().unwrap();
        let nobody = Credentials { user: "x".into(), uid: 54_321, gid: 54_321, groups: vec![54_321] };
        let closed = t.path().join("closed");
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        let e = share_dir(&closed, &nobody).unwrap_err().to_string();
        assert!(e.contains("keep user x out"), "{e}");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
        let before = fs::metadata(&closed).unwrap().gid();
        share_dir(&closed, &nobody).unwrap();
        assert_eq!(fs::metadata(&closed).unwrap().gid(), before);
        if Uid::effective().is_root() {
            fs::set_permissions(&closed, fs::Permissions::from_mode(0o750)).unwrap();
            share_dir(&closed, &nobody).unwrap();
            assert_eq!(fs::metadata(&closed).unwrap().gid(), 54_321);
            let given = t.path().join("given");
            give_dir(&given, &nobody).unwrap();
            give_dir(&given, &nobody).unwrap();
            assert_eq!(fs::metadata(&given).unwrap().uid(), 54_321);
            let file = t.path().join("file");
            give_file(&file, &nobody).unwrap();
            give_file(&file, &nobody).unwrap();
            let meta = fs::metadata(&file).unwrap();
            assert_eq!((meta.uid(), meta.mode() & 0o777), (54_321, 0o640));
            let two = t.path().join("two");
            fs::write(&two, "").unwrap();
            fs::hard_link(&two, t.path().join("names")).unwrap();
            assert!(give_file(&two, &nobody).is_err());
        }
        let link = t.path().join("link");
        std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
        assert!(share_file(&link, &nobody, 0o640).is_err());
        assert!(give_dir(&link, &nobody).is_err());
    }
}
