//! Where lines go: stderr, whatever that is, without ever waiting for it.
//!
//! A pipe that nobody reads, a full disk, a terminal that was stopped: the line is dropped and counted, and the number is said
//! with the next line that gets through. Where stderr is the daemon's log file, a file that was renamed is left for the
//! one that has its name now, within a second or at once after [`reopen`].

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::{Errno, IoSlice, ReadWriteFlags, pwritev2};
use rustix::net::{SendFlags, send};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often the log's name is looked at.
const LOOK: Duration = Duration::from_secs(1);

static REOPEN: AtomicBool = AtomicBool::new(false);

/// The log file may have been renamed: the next line looks.
pub fn reopen() {
    REOPEN.store(true, Ordering::Relaxed);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Socket,
    Other,
}

/// Takes lines, never blocks, never fails.
pub struct Sink {
    kind: Kind,
    /// The log file, if that is what stderr is, and which file it was.
    file: Option<(PathBuf, u64)>,
    /// Only cop makes a file that is missing: the others couldn't give it the right owner.
    creates: bool,
    looked: Instant,
    dropped: u64,
    /// The last line went out in part.
    torn: bool,
    say_dropped: Box<dyn Fn(u64) -> String + Send>,
}

impl Sink {
    /// `log` is where the daemon logs, which may or may not be what stderr is. `say_dropped` makes the line for a number
    /// of dropped ones.
    pub fn new(
        log: Option<&Path>,
        creates: bool,
        say_dropped: impl Fn(u64) -> String + Send + 'static,
    ) -> Sink {
        let stat = fstat(rustix::stdio::stderr());
        let kind = match stat.as_ref().map(|s| FileType::from_raw_mode(s.st_mode)) {
            Ok(FileType::RegularFile) => Kind::File,
            Ok(FileType::Socket) => Kind::Socket,
            _ => Kind::Other,
        };
        // by name: it may have been renamed since the one who started us has opened it
        let open = std::fs::read_link("/proc/self/fd/2").unwrap_or_default();
        let is_log = |log: &&Path| {
            let (log, open) = (log.as_os_str().as_encoded_bytes(), open.as_os_str().as_encoded_bytes());
            kind == Kind::File
                && open.starts_with(log)
                && [None, Some(&b'.'), Some(&b' ')].contains(&open.get(log.len()))
        };
        let inode = stat.map_or(0, |s| s.st_ino);
        let file = log.filter(is_log).map(|p| (p.to_owned(), inode));
        Sink {
            kind,
            file,
            creates,
            looked: Instant::now(),
            dropped: 0,
            torn: false,
            say_dropped: Box::new(say_dropped),
        }
    }

    /// Puts the file in its place that has the log's name now.
    fn follow(&mut self) {
        let forced = REOPEN.swap(false, Ordering::Relaxed);
        let Some((path, inode)) = &mut self.file else { return };
        if !forced && self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        if std::fs::metadata(&*path).is_ok_and(|m| m.ino() == *inode) {
            return;
        }
        if let Ok(file) = open(path, self.creates)
            && let Ok(meta) = file.metadata()
            && rustix::stdio::dup2_stderr(&file).is_ok()
        {
            let _ = rustix::stdio::dup2_stdout(&file);
            *inode = meta.ino();
        }
    }

    fn line(&mut self, line: &[u8]) {
        self.follow();
        if self.dropped > 0 {
            let start = if self.torn { "\n" } else { "" };
            let said = format!("{start}{}\n", (self.say_dropped)(self.dropped));
            match put(self.kind, said.as_bytes()) {
                Ok(n) if n == said.len() => (self.dropped, self.torn) = (0, false),
                Ok(n) => self.torn |= n > 0,
                Err(_) => {}
            }
        }
        match self.dropped == 0 {
            true => match put(self.kind, line) {
                Ok(n) if n == line.len() => {}
                Ok(n) => (self.dropped, self.torn) = (1, n > 0),
                Err(_) => self.dropped = 1,
            },
            false => self.dropped += 1,
        }
    }
}

impl Write for Sink {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.line(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens the log to append to it.
///
/// # Errors
/// What the system says; it isn't there, and is not to be made.
pub fn open(path: &Path, create: bool) -> io::Result<File> {
    open_with(path, create, 0)
}

/// The same with more flags of open(2).
///
/// # Errors
/// What the system says.
pub fn open_with(path: &Path, create: bool, flags: i32) -> io::Result<File> {
    // non-blocking: a FIFO without a reader is an error and not a wait
    let flags = flags | nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC;
    OpenOptions::new().append(true).create(create).mode(0o640).custom_flags(flags).open(path)
}

/// Writes what can be written at once.
fn put(kind: Kind, bytes: &[u8]) -> Result<usize, Errno> {
    let stderr = rustix::stdio::stderr();
    match kind {
        Kind::File => rustix::io::write(stderr, bytes),
        Kind::Socket => send(stderr, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
        // the file description is shared with others, so O_NONBLOCK is not ours to set
        Kind::Other => match pwritev2(stderr, &[IoSlice::new(bytes)], u64::MAX, ReadWriteFlags::NOWAIT) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::SPIPE) => {
                let mut fds = [PollFd::from_borrowed_fd(stderr, PollFlags::OUT)];
                let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
                match poll(&mut fds, Some(&at_once)) {
                    Ok(n) if n > 0 => rustix::io::write(stderr, bytes),
                    _ => Err(Errno::AGAIN),
                }
            }
            other => other,
        },
    }
}
