//! Files in places that another user can change, opened with that user's rights: links that are planted there lead to nothing
//! that isn't the user's anyway.

use crate::privileges::Credentials;
use nix::unistd::{Gid, Uid, getegid, geteuid, getgroups, setfsgid, setfsuid};
use rustix::process::{DumpableBehavior, dumpable_behavior, set_dumpable_behavior};
use rustix::thread::set_thread_groups;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// As the kernel's own bound.
const MAX_LINKS: usize = 40;

/// While it exists, this thread has that user's rights to files, and none of its own.
#[derive(Debug)]
pub struct AsUser {
    groups: Vec<Gid>,
    dumpable: Option<DumpableBehavior>,
    /// It is this thread's.
    _here: PhantomData<*const ()>,
}

impl AsUser {
    /// From here on.
    ///
    /// # Errors
    /// Only root may become somebody else.
    pub fn enter(who: &Credentials) -> io::Result<AsUser> {
        let groups = getgroups()?;
        let (uid, gid) = (geteuid(), getegid());
        if setfsuid(uid) != uid || setfsgid(gid) != gid {
            // a sandbox refuses: there would be no way back either
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        // dropped at a failure: what was changed is changed back
        let guard = AsUser { groups, dumpable: dumpable_behavior().ok(), _here: PhantomData };
        set_groups(who.groups.iter().copied())?;
        let (uid, gid) = (Uid::from_raw(who.uid), Gid::from_raw(who.gid));
        setfsgid(gid);
        setfsuid(uid);
        // they don't say whether they could; the second one says what the first one has done
        match setfsgid(gid) == gid && setfsuid(uid) == uid {
            true => Ok(guard),
            false => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }
}

impl Drop for AsUser {
    fn drop(&mut self) {
        let (uid, gid) = (geteuid(), getegid());
        setfsuid(uid);
        setfsgid(gid);
        let same = getgroups().is_ok_and(|now| now == self.groups);
        let back = same || set_groups(self.groups.iter().map(|g| g.as_raw())).is_ok();
        if !back || setfsuid(uid) != uid || setfsgid(gid) != gid {
            // who goes on as somebody else does what nobody has foreseen
            std::process::abort();
        }
        // the kernel takes that away from who changes, and others of the suite couldn't look at us any more
        if let Some(before) = self.dumpable {
            let _ = set_dumpable_behavior(before);
        }
    }
}

/// Of this thread; the C library's own would change those of all.
fn set_groups(groups: impl Iterator<Item = u32>) -> io::Result<()> {
    let groups: Vec<_> = groups.map(rustix::process::Gid::from_raw).collect();
    Ok(set_thread_groups(&groups)?)
}

/// Could that user have another file come under this name: by a directory that is written to on the way there, or by a link
/// in one?
///
/// # Errors
/// A directory isn't there, or can't be looked at.
pub fn may_change(path: &Path, who: &Credentials) -> io::Result<bool> {
    let mut here = PathBuf::from("/");
    let mut rest: Vec<OsString> = parts(path);
    let mut links = 0;
    loop {
        let Some(name) = rest.pop() else { return Ok(false) };
        if name == ".." {
            here.pop();
            continue;
        }
        let next = here.join(&name);
        let found = fs::symlink_metadata(&next);
        let dir = fs::symlink_metadata(&here)?;
        // what is there already stays with its owner in a sticky directory, which may be the user's own
        let stays = dir.mode() & 0o1000 != 0
            && dir.uid() != who.uid
            && found.as_ref().is_ok_and(|next| next.uid() != who.uid);
        if !stays && may_write(&here, &dir, who) {
            return Ok(true);
        }
        let meta = match found {
            Err(e) if e.kind() == io::ErrorKind::NotFound && rest.is_empty() => return Ok(false),
            other => other?,
        };
        if meta.is_symlink() {
            links += 1;
            if links > MAX_LINKS {
                return Err(rustix::io::Errno::LOOP.into());
            }
            let target = fs::read_link(&next)?;
            if target.is_absolute() {
                here = "/".into();
            }
            rest.extend(parts(&target));
        } else if rest.is_empty() {
            return Ok(false);
        } else {
            here = next;
        }
    }
}

/// The last one first.
fn parts(path: &Path) -> Vec<OsString> {
    let part = |c: Component<'_>| match c {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().rev().filter_map(part).collect()
}

/// May that user change what is in the directory, at least what isn't there yet?
fn may_write(dir: &Path, meta: &Metadata, who: &Credentials) -> bool {
    let mode = meta.mode();
    let has_list = || rustix::fs::getxattr(dir, "system.posix_acl_access", &mut [0u8; 0][..]).is_ok();
    // the owner may give itself what it hasn't; the bits of the group are the bound of an access control list
    meta.uid() == who.uid
        || mode & 0o002 != 0
        || mode & 0o020 != 0 && (who.gid == meta.gid() || who.groups.contains(&meta.gid()) || has_list())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn nobody() -> Credentials {
        Credentials { user: "x".into(), uid: 54_321, gid: 54_321, groups: vec![54_321, 54_322] }
    }

    #[test]
    fn who_owns_or_writes_a_directory_on_the_way_may_change_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let set = |mode| fs::set_permissions(&inner, fs::Permissions::from_mode(mode)).unwrap();
        let may = |who: &Credentials| may_write(&inner, &fs::symlink_metadata(&inner).unwrap(), who);
        set(0o755);
        assert!(!may(&nobody()));
        let ours = fs::metadata(&inner).unwrap();
        let owner = Credentials { uid: ours.uid(), ..nobody() };
        let member = Credentials { groups: vec![ours.gid()], ..nobody() };
        assert!(may(&owner) && !may(&member));
        set(0o555);
        assert!(may(&owner), "its owner may change that");
        set(0o775);
        assert!(may(&member) && !may(&nobody()));
        set(0o1777);
        assert!(may(&nobody()));
        let file = inner.join("file");
        assert!(may_change(&file, &nobody()).unwrap(), "something else may be there by then");
        fs::write(&file, "").unwrap();
        assert!(!may_change(&file, &nobody()).unwrap() && may_change(&file, &owner).unwrap());
        set(0o777);
        assert!(may_change(&file, &nobody()).unwrap());
        assert!(may_change(&inner.join("../no such directory/../file"), &nobody()).is_err());
    }

    #[test]
    fn a_way_through_links_is_looked_at_where_it_leads() {
        let who = nobody();
        let null = may_change(Path::new("/dev/null"), &who).unwrap();
        assert!(!null && !may_change(Path::new("/etc/../etc/passwd"), &who).unwrap());
        assert!(may_change(Path::new("/no such directory/file"), &who).is_err());
        assert!(!may_change(Path::new("/no such file"), &who).unwrap());
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let (ours, loop_) = (dir.path().join("ours"), dir.path().join("loop"));
        fs::create_dir(&ours).unwrap();
        symlink("loop", &loop_).unwrap();
        // what comes first decides: it never gets as far as the loop
        assert!(may_change(&loop_.join("file"), &who).unwrap());
        // by a link from where nobody else can write, and back by one that leads out of it
        let via = Path::new("/proc/self/root").join(ours.strip_prefix("/").unwrap());
        assert!(may_change(&via.join("../ours/file"), &who).unwrap());
    }

    #[test]
    fn a_thread_is_somebody_else_for_a_while() {
        if !geteuid().is_root() {
            return eprintln!("needs root: not tried");
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, "x").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let before = (getgroups().unwrap(), dumpable_behavior().unwrap());
        {
            let _as = AsUser::enter(&nobody()).unwrap();
            assert_eq!(fs::read(&secret).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            fs::write(dir.path().join("theirs"), "").unwrap();
            assert_eq!(getgroups().unwrap().len(), 2);
        }
        let made = fs::metadata(dir.path().join("theirs")).unwrap();
        assert_eq!((made.uid(), made.gid()), (54_321, 54_321));
        assert_eq!(fs::read(&secret).unwrap(), b"x");
        assert_eq!((getgroups().unwrap(), dumpable_behavior().unwrap()), before);
    }
}
