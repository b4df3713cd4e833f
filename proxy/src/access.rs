//! The access log: one line for each request, written by a thread of its own.
//!
//! Event threads put whole lines into one bounded buffer and never wait for the disk: a line that finds no room is dropped and
//! counted. The thread writes what is there about once a second, or sooner when much has come; it sleeps while nothing
//! comes. A file that was renamed or removed meanwhile (by logrotate, for instance) is opened anew before the next write.
//! Each write ends with a whole line and appends, so that two servers may share the file while one takes over from the other.
//! A line of which a full disk took only the beginning gets its end with the next write. A pipe that isn't read is waited for
//! no longer than a second, with all that is to be written then.

use crate::access_line::{self, Entry};
use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes that may wait to be written.
const BUFFER: usize = 4 << 20;
/// With so many waiting, they are written at once.
const MUCH: usize = 256 << 10;
/// The longest that a line waits; and that a pipe is waited for.
const LATEST: Duration = Duration::from_secs(1);

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// NCSA common log format.
    Common,
    /// The same with referrer and user agent.
    Combined,
    /// One JSON object a line.
    Json,
}

/// An access log as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessConfig {
    /// See there.
    pub format: Format,
    /// The file.
    pub path: PathBuf,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<u8>,
    end: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    dropped: AtomicU64,
    max: usize,
}

/// The log, shared by all threads.
#[derive(Debug)]
pub struct AccessLog {
    format: Format,
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("never poisoned")
    }
}

impl AccessLog {
    /// Starts its thread; the file is opened with the first line.
    ///
    /// # Errors
    /// There can be no more threads.
    pub fn start(config: AccessConfig) -> io::Result<AccessLog> {
        AccessLog::with_buffer(config, BUFFER)
    }

    fn with_buffer(config: AccessConfig, max: usize) -> io::Result<AccessLog> {
        let shared = Arc::new(Shared { max, ..Shared::default() });
        let (theirs, path) = (shared.clone(), config.path);
        let writer =
            std::thread::Builder::new().name("access-log".into()).spawn(move || write(&theirs, &path))?;
        Ok(AccessLog { format: config.format, shared, writer: Mutex::new(Some(writer)) })
    }

    /// Writes a line, some time.
    pub fn put(&self, entry: &Entry<'_>) {
        thread_local!(static LINE: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) });
        LINE.with_borrow_mut(|line| {
            line.clear();
            access_line::write(line, self.format, entry);
            self.line(line);
        });
    }

    fn line(&self, line: &[u8]) {
        let mut s = self.shared.lock();
        if s.lines.len() + line.len() > self.shared.max {
            drop(s);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let before = s.lines.len();
        s.lines.extend_from_slice(line);
        let wake = before == 0 || (before < MUCH && s.lines.len() >= MUCH);
        drop(s);
        if wake {
            self.shared.wake.notify_one();
        }
    }

    /// Lines that are lost: there was no room, or the file couldn't be written.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Writes what is left, and ends.
    pub fn close(&self) {
        self.shared.lock().end = true;
        self.shared.wake.notify_one();
        if let Some(writer) = self.writer.lock().expect("never poisoned").take() {
            let _ = writer.join();
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.close();
    }
}

/// The thread.
fn write(shared: &Shared, path: &Path) {
    let mut out = Output { path, file: None, rest: Vec::new(), dropped: &shared.dropped };
    let mut complained = false;
    let mut lines = Vec::new();
    loop {
        let end = next(shared, &mut lines);
        if !lines.is_empty() || (end && !out.rest.is_empty()) {
            match out.append(&lines) {
                Ok(()) => complained = false,
                Err(e) => {
                    if !std::mem::replace(&mut complained, true) {
                        log::error!("event=access-log-failed path={path:?}: {e}");
                    }
                }
            }
            lines.clear();
        }
        if end {
            out.forget_rest();
            return;
        }
    }
}

/// Waits for lines and for others to come along; true at the end.
fn next(shared: &Shared, lines: &mut Vec<u8>) -> bool {
    let mut s = shared.lock();
    while s.lines.is_empty() && !s.end {
        s = shared.wake.wait(s).expect("never poisoned");
    }
    let until = Instant::now() + LATEST;
    while s.lines.len() < MUCH && !s.end {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        s = shared.wake.wait_timeout(s, left).expect("never poisoned").0;
    }
    std::mem::swap(&mut s.lines, lines);
    s.end
}

/// The file, and what it still has to get.
struct Output<'a> {
    path: &'a Path,
    file: Option<File>,
    /// The end of a line whose beginning is in the file.
    rest: Vec<u8>,
    /// Lines that aren't in it as a whole.
    dropped: &'a AtomicU64,
}

impl Output<'_> {
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let opened = self.open();
        let rest = std::mem::take(&mut self.rest);
        let all = if rest.is_empty() { Cow::Borrowed(lines) } else { Cow::Owned([&rest, lines].concat()) };
        let (written, end) = match opened {
            Ok(file) => {
                let done = put(&file, &all);
                self.file = Some(file);
                done
            }
            Err(e) => (0, Err(e)),
        };
        if end.is_err() {
            let is_amid = if written > 0 { all[written - 1] != b'\n' } else { !rest.is_empty() };
            let left = &all[written..];
            let line_end = left.iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
            let (rest, lost) = left.split_at(if is_amid { line_end } else { 0 });
            self.rest = rest.to_owned();
            self.lose(lost);
        }
        end
    }

    fn lose(&self, lines: &[u8]) {
        let lost = lines.iter().filter(|b| **b == b'\n').count() as u64;
        self.dropped.fetch_add(lost, Ordering::Relaxed);
    }

    /// Its line stays cut.
    fn forget_rest(&mut self) {
        let rest = std::mem::take(&mut self.rest);
        self.lose(&rest);
    }

    /// The file that is there now.
    fn open(&mut self) -> io::Result<File> {
        let is_there = |f: &File| {
            let (open, there) = (f.metadata()?, std::fs::metadata(self.path)?);
            io::Result::Ok((open.dev(), open.ino()) == (there.dev(), there.ino()))
        };
        if let Some(file) = self.file.take().filter(|f| is_there(f).unwrap_or(false)) {
            return Ok(file);
        }
        // of a line that has one, the beginning is in another file
        self.forget_rest();
        // a pipe without a reader is an error, and not one to wait for
        let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(self.path)
    }
}

/// Writes as much as it can, and says how much that is.
fn put(mut file: &File, bytes: &[u8]) -> (usize, io::Result<()>) {
    let until = Instant::now() + LATEST;
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(n) => written += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && has_room(file, until) => {}
            Err(e) => return (written, Err(e)),
        }
    }
    (written, Ok(()))
}

/// Waits until a pipe takes something again; false if it is too late.
fn has_room(file: &File, until: Instant) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let left = until.saturating_duration_since(Instant::now());
    let wait = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
    let mut fds = [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::OUT)];
    match poll(&mut fds, Some(&wait)) {
        Ok(ready) => ready > 0,
        Err(e) => e == rustix::io::Errno::INTR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path) -> AccessConfig {
        AccessConfig { format: Format::Common, path: dir.join("access.log") }
    }

    fn until(mut so: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !so() {
            assert!(Instant::now() < end);
            std::thread::yield_now();
        }
    }

    #[test]
    fn lines_arrive_whole_and_a_renamed_file_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let log = AccessLog::start(config(dir.path())).unwrap();
        let (path, old) = (dir.path().join("access.log"), dir.path().join("old"));
        let text = |p: &Path| std::fs::read_to_string(p).unwrap_or_default();
        log.line(b"one\n");
        until(|| text(&path) == "one\n");
        std::fs::rename(&path, &old).unwrap();
        log.line(b"two\n");
        until(|| text(&path) == "two\n");
        log.line(b"three\n");
        log.close();
        assert_eq!((text(&path).as_str(), text(&old).as_str()), ("two\nthree\n", "one\n"));
        assert_eq!(log.dropped(), 0);
    }

    #[test]
    fn what_finds_no_room_or_no_file_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let log = AccessLog::with_buffer(config(dir.path()), 10).unwrap();
        log.line(b"eight by\n");
        log.line(b"one too many\n");
        log.close();
        assert_eq!(log.dropped(), 1);
        let log = AccessLog::start(config(&dir.path().join("not there"))).unwrap();
        log.line(b"a\nb\n");
        log.close();
        assert_eq!(log.dropped(), 2);
    }

    #[test]
    fn a_line_that_was_cut_gets_its_end_and_a_pipe_is_not_waited_for() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        use std::io::Read;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let dropped = AtomicU64::new(0);
        let mut out = Output { path: &path, file: None, rest: Vec::new(), dropped: &dropped };
        assert!(out.append(b"for nobody\n").is_err());
        let mut options = OpenOptions::new();
        let mut reader =
            options.read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32).open(&path);
        let reader = reader.as_mut().unwrap();
        let long = vec![b'x'; 100_000];
        // the second line finds room for its beginning alone
        let lines = [b"one\n", &long[..], b"\nthree\n"].concat();
        assert!(out.append(&lines).is_err());
        let mut got = Vec::new();
        let mut read = |got: &mut Vec<u8>| drop(reader.read_to_end(got));
        read(&mut got);
        assert!(got.starts_with(b"one\nx") && got.len() < long.len(), "{}", got.len());
        while out.append(b"").is_err() {
            read(&mut got);
        }
        assert!(out.append(b"four\n").is_ok());
        read(&mut got);
        assert_eq!(got, [b"one\n", &long[..], b"\nfour\n"].concat());
        assert!(out.rest.is_empty());
        assert_eq!(dropped.load(Ordering::Relaxed), 2, "what was for nobody, and the third");
    }
}
