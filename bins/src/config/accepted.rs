//! The configuration file as the suite has accepted it: at its start, or by a reload.
//!
//! Whoever is started later (a server, the next manager, the next cop) goes on with that, and not with what the file says by
//! then: it may be half edited, wrong, or gone, and a death is no moment to find that out. The text is in memory that nobody can
//! change any more; cop keeps it and hands it on.

use super::load::MAX_FILE;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use supervisor::listen_fds::Inherited;

/// The name under which it is handed on.
pub const NAME: &str = "config";

/// Those under which it is kept, in turn: the next one is there before the last one is forgotten.
const KEPT: [&str; 2] = ["config-0", "config-1"];

/// Is it the name of one?
pub fn is_one(name: &str) -> bool {
    name == NAME || KEPT.contains(&name)
}

/// The name for the next one to be kept, and that of the last one.
pub fn next_name<'a>(kept: impl Iterator<Item = &'a str>) -> (&'static str, &'static str) {
    let [first, second] = KEPT;
    match kept.into_iter().any(|name| name == first) {
        true => (second, first),
        false => (first, second),
    }
}

const SEALS: SealFlags =
    SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// That text.
#[derive(Debug)]
pub struct Accepted(File);

impl Accepted {
    /// Of that text.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn of(text: &str) -> io::Result<Accepted> {
        let mut file = File::from(memfd_create(NAME, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        file.write_all(text.as_bytes())?;
        // servers have it too, and what they could write root would read
        fcntl_add_seals(&file, SEALS)?;
        Ok(Accepted(file))
    }

    /// One that was handed over; `None`: it could still be changed, and isn't one of ours.
    pub fn from_fd(fd: OwnedFd) -> Option<Accepted> {
        let is_ours = fcntl_get_seals(&fd).is_ok_and(|seals| seals.contains(SEALS));
        is_ours.then(|| Accepted(fd.into()))
    }

    /// Takes it out of what was inherited, if it is there.
    pub fn take(inherited: &mut Vec<Inherited>) -> Option<Accepted> {
        let fds = crate::suite::take_named(inherited, |name| is_one(name).then_some(()));
        Accepted::newest(fds.into_iter().map(|((), fd)| fd))
    }

    /// The same, and leaves it where it is.
    pub fn find(inherited: &[Inherited]) -> Option<Accepted> {
        let named = inherited.iter().filter(|i| is_one(&i.name));
        Accepted::newest(named.filter_map(|i| i.fd.try_clone().ok()))
    }

    /// Whoever keeps them may have missed that one was to be forgotten.
    fn newest(fds: impl Iterator<Item = OwnedFd>) -> Option<Accepted> {
        fds.filter_map(Accepted::from_fd).max_by_key(|a| a.0.metadata().and_then(|m| m.modified()).ok())
    }

    /// The text.
    ///
    /// # Errors
    /// It can't be read, is longer than a file may be, or is none.
    pub fn text(&self) -> io::Result<String> {
        let length = self.0.metadata()?.len();
        if length > MAX_FILE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too long"));
        }
        let mut bytes = vec![0; length as usize];
        self.0.read_exact_at(&mut bytes, 0)?;
        String::from_utf8(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }
}

impl AsFd for Accepted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Accepted> for OwnedFd {
    fn from(accepted: Accepted) -> OwnedFd {
        accepted.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_accepted_is_handed_on_and_nobody_changes_it() {
        let first = Accepted::of("[server]\n").unwrap();
        let handed = || Inherited { name: NAME.into(), fd: first.as_fd().try_clone_to_owned().unwrap() };
        let other = || Inherited { name: "other".into(), fd: handed().fd };
        let mut inherited = vec![other(), handed()];
        let next = Accepted::take(&mut inherited).unwrap();
        assert_eq!((next.text().unwrap().as_str(), inherited.len()), ("[server]\n", 1));
        assert!(Accepted::take(&mut inherited).is_none());
        // of several it is the newest, whatever their order
        let second = Accepted::of("# two\n").unwrap();
        second
            .0
            .set_modified(first.0.metadata().unwrap().modified().unwrap() + std::time::Duration::from_secs(1))
            .unwrap();
        let newer = || Inherited { name: NAME.into(), fd: second.as_fd().try_clone_to_owned().unwrap() };
        for mut both in [vec![handed(), newer()], vec![newer(), handed()]] {
            assert_eq!(Accepted::find(&both).unwrap().text().unwrap(), "# two\n");
            assert_eq!(Accepted::take(&mut both).unwrap().text().unwrap(), "# two\n");
            assert!(both.is_empty());
        }
        let file = File::from(next.as_fd().try_clone_to_owned().unwrap());
        assert!(file.write_all_at(b"x", 0).is_err() && file.set_len(0).is_err() && file.set_len(99).is_err());
        assert_eq!(next.text().unwrap(), "[server]\n");
        // what could be changed isn't believed
        let open = memfd_create(NAME, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(Accepted::take(&mut vec![Inherited { name: NAME.into(), fd: open }]).is_none());
        let file = File::open("/dev/null").unwrap().into();
        assert!(Accepted::take(&mut vec![Inherited { name: NAME.into(), fd: file }]).is_none());
        assert_eq!(Accepted::of("").unwrap().text().unwrap(), "");
        assert_eq!(next_name(["listen"].into_iter()), ("config-0", "config-1"));
        assert_eq!(next_name(["config-0"].into_iter()), ("config-1", "config-0"));
        assert!(["config", "config-0", "config-1"].into_iter().all(is_one) && !is_one("config-2"));
    }
}
