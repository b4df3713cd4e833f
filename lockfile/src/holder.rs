//! What a probe tells about the holder of a lock.

use std::fmt;

use rustix::process::Pid;

use crate::sys;

/// Whether somebody else holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody else does.
    Free,
    /// This one does.
    Held(Holder),
}

/// Who holds a lock: the kernel's view, and what the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The pid as `F_GETLK` shows it. 0 means that it has no number in our pid namespace, a negative one that the lock
    /// is of another kind (an open-file-description lock, or one of another host): nothing that could be signalled.
    pub pid: i32,
    /// What has become of the process of that number.
    pub process: Process,
    /// What the file says, against the kernel's view.
    pub text: Text,
}

/// What has become of the process that took a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// A process of that number is running.
    Running,
    /// It has ended, reaped or not. The lock is kept by the descriptor table it shared with somebody.
    Dead,
    /// It cannot be seen from here: the pid is 0 or negative.
    Hidden,
}

/// What a lock file says about its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    /// The pid that the kernel shows too.
    Agrees,
    /// Another pid than the kernel shows.
    Stale(i32),
    /// Not a pid. At most the first 64 bytes, made printable.
    Garbage(String),
    /// Nothing, as between taking a lock and writing the pid.
    Empty,
}

/// No pid is longer; what is behind is not read.
pub(crate) const TEXT_LIMIT: usize = 64;

impl Holder {
    pub(crate) fn new(pid: i32, text: &[u8]) -> Holder {
        let process = match Pid::from_raw(pid.max(0)) {
            None => Process::Hidden,
            // a process that cannot be looked at for any other reason is there all the same
            Some(p) => match sys::pidfd(p) {
                Err(rustix::io::Errno::SRCH) => Process::Dead,
                Ok(fd) if sys::exited(&fd) => Process::Dead,
                _ => Process::Running,
            },
        };
        Holder { pid, process, text: Text::parse(text, pid) }
    }
}

impl Text {
    pub(crate) fn parse(bytes: &[u8], kernel: i32) -> Text {
        let bytes = &bytes[..bytes.len().min(TEXT_LIMIT)];
        let line = bytes.trim_ascii();
        if line.is_empty() {
            return Text::Empty;
        }
        // i32's own parser would take a sign
        let number =
            line.iter().all(u8::is_ascii_digit).then(|| std::str::from_utf8(line).ok()?.parse().ok());
        match number.flatten() {
            Some(0) | None => Text::Garbage(String::from_utf8_lossy(bytes).escape_debug().to_string()),
            Some(pid) if pid == kernel => Text::Agrees,
            Some(pid) => Text::Stale(pid),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.process {
            Process::Running => write!(f, "pid {}", self.pid)?,
            Process::Dead => {
                write!(f, "pid {} (dead; a process that shares its descriptors keeps the lock)", self.pid)?
            }
            Process::Hidden => write!(f, "a process outside our pid namespace (F_GETLK says {})", self.pid)?,
        }
        match &self.text {
            Text::Agrees => Ok(()),
            Text::Stale(pid) => write!(f, ", though the file says {pid}"),
            Text::Garbage(text) => write!(f, ", though the file says \"{text}\""),
            Text::Empty => write!(f, ", though the file is empty"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_a_pid_or_is_called_what_it_is() {
        assert_eq!(Text::parse(b"42\n", 42), Text::Agrees);
        assert_eq!(Text::parse(b"42", 42), Text::Agrees);
        assert_eq!(Text::parse(b"43\n", 42), Text::Stale(43));
        assert_eq!(Text::parse(b"", 42), Text::Empty);
        assert_eq!(Text::parse(b" \n", 42), Text::Empty);
        for bad in [&b"+42\n"[..], b"-1\n", b"0\n", b"42 43", b"4294967296", b"\xff\xfe", b"pid 42"] {
            assert!(matches!(Text::parse(bad, 42), Text::Garbage(_)), "{bad:?}");
        }
        let Text::Garbage(shown) = Text::parse(&[b'\n', b'x', 0x1b].repeat(100), 42) else { panic!() };
        assert!(shown.is_ascii() && shown.chars().all(|c| !c.is_control()));
    }

    #[test]
    fn a_holder_is_called_what_it_is() {
        let said = |pid, process, text| Holder { pid, process, text }.to_string();
        assert_eq!(said(7, Process::Running, Text::Agrees), "pid 7");
        assert_eq!(
            said(7, Process::Dead, Text::Stale(8)),
            "pid 7 (dead; a process that shares its descriptors keeps the lock), though the file says 8"
        );
        assert_eq!(
            said(0, Process::Hidden, Text::Garbage("x\\n".into())),
            "a process outside our pid namespace (F_GETLK says 0), though the file says \"x\\n\""
        );
        assert_eq!(said(7, Process::Running, Text::Empty), "pid 7, though the file is empty");
    }

    #[test]
    fn a_pid_that_is_no_pid_is_hidden() {
        assert_eq!(Holder::new(0, b"17\n").process, Process::Hidden);
        assert_eq!(Holder::new(-1, b"17\n").process, Process::Hidden);
        assert_eq!(Holder::new(std::process::id() as i32, b"").process, Process::Running);
    }
}
