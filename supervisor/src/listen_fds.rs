//! `LISTEN_FDS`, `LISTEN_FDNAMES`, `LISTEN_PID`: sockets inherited from whoever started us, as sd_listen_fds(3) has it.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// First inherited fd (`SD_LISTEN_FDS_START`).
pub const FIRST: RawFd = 3;
/// More than this many are refused.
pub const MAX: usize = 8192;

/// An inherited fd with the name it was given.
#[derive(Debug)]
pub struct Inherited {
    /// Its name in `LISTEN_FDNAMES`; "unknown" without one.
    pub name: String,
    /// The fd, close-on-exec from here on.
    pub fd: OwnedFd,
}

/// Why the environment can't be believed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ListenFdsError {
    /// A variable doesn't hold what it must.
    #[error("environment {variable}={value:?}: {why}")]
    Variable {
        /// Which one.
        variable: &'static str,
        /// What it says.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A promised fd isn't open.
    #[error("environment LISTEN_FDS promises fd {0}, which is not open")]
    NotOpen(RawFd),
}

/// Reads the variables, without touching fds: the names of fds 3, 4, … that are meant for process `me`.
///
/// # Errors
/// A variable is malformed. A foreign `LISTEN_PID` is no error: the fds are then not for us.
pub fn parse(
    pid: Option<&str>,
    fds: Option<&str>,
    names: Option<&str>,
    me: u32,
) -> Result<Vec<String>, ListenFdsError> {
    let bad =
        |variable, value: &str, why| ListenFdsError::Variable { variable, value: value.to_owned(), why };
    let (Some(pid), Some(fds)) = (pid, fds) else { return Ok(Vec::new()) };
    if pid.parse::<u32>().map_err(|_| bad("LISTEN_PID", pid, "not a process id"))? != me {
        return Ok(Vec::new());
    }
    let n: usize = fds.parse().map_err(|_| bad("LISTEN_FDS", fds, "not a number"))?;
    if n > MAX {
        return Err(bad("LISTEN_FDS", fds, "too many"));
    }
    let mut list = vec!["unknown".to_owned(); n];
    if let Some(names) = names {
        let given: Vec<&str> = names.split(':').collect();
        if given.len() != n && !(n == 0 && names.is_empty()) {
            return Err(bad("LISTEN_FDNAMES", names, "as many names as LISTEN_FDS says are needed"));
        }
        list = given.into_iter().take(n).map(str::to_owned).collect();
    }
    Ok(list)
}

/// Takes over the inherited fds. Call it once, first thing in `main`, before another thread or fd exists.
///
/// # Errors
/// The variables are malformed, or an fd they promise is not open.
pub fn take() -> Result<Vec<Inherited>, ListenFdsError> {
    let var = |k: &str| std::env::var(k).ok();
    let names = parse(
        var("LISTEN_PID").as_deref(),
        var("LISTEN_FDS").as_deref(),
        var("LISTEN_FDNAMES").as_deref(),
        std::process::id(),
    )?;
    let mut list = Vec::with_capacity(names.len());
    for (i, name) in names.into_iter().enumerate() {
        let raw = FIRST + i as RawFd;
        // SAFETY: fcntl on a number is harmless whatever it is; EBADF says that there's no such fd.
        if unsafe { nix::libc::fcntl(raw, nix::libc::F_SETFD, nix::libc::FD_CLOEXEC) } < 0 {
            return Err(ListenFdsError::NotOpen(raw));
        }
        // SAFETY: it is open (just asked), and by the protocol nobody but us owns fds 3.. of this process.
        list.push(Inherited { name, fd: unsafe { OwnedFd::from_raw_fd(raw) } });
    }
    Ok(list)
}

/// Makes a name fit for `LISTEN_FDNAMES` and `FDNAME=`: printable ASCII without `:`, at most 255 bytes.
pub fn name_for(text: &str) -> String {
    let ok = |c: char| if c.is_ascii_graphic() && c != ':' { c } else { '_' };
    text.chars().take(255).map(ok).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_meant_for_us() {
        assert_eq!(parse(Some("7"), Some("2"), Some("a:b"), 7).unwrap(), ["a", "b"]);
        assert_eq!(parse(Some("7"), Some("2"), None, 7).unwrap(), ["unknown", "unknown"]);
        assert_eq!(parse(Some("8"), Some("2"), None, 7).unwrap(), [""; 0]);
        assert_eq!(parse(None, Some("2"), None, 7).unwrap(), [""; 0]);
        assert_eq!(parse(Some("7"), Some("0"), Some(""), 7).unwrap(), [""; 0]);
    }

    #[test]
    fn names_the_culprit() {
        let e = |p, f, n| parse(Some(p), Some(f), n, 7).unwrap_err().to_string();
        assert!(e("x", "1", None).contains("LISTEN_PID=\"x\""));
        assert!(e("7", "-1", None).contains("LISTEN_FDS=\"-1\""));
        assert!(e("7", "99999", None).contains("too many"));
        assert!(e("7", "2", Some("one")).contains("LISTEN_FDNAMES"));
    }

    #[test]
    fn names_fit_the_protocol() {
        assert_eq!(name_for("listen [::1]:80"), "listen_[__1]_80");
        assert_eq!(name_for(&"x".repeat(400)).len(), 255);
    }
}
