//! What a job writes: line by line to our log with its name, or to a file of its own ([`super::file`]); and into a short
//! memory for `tail`.
//!
//! Bytes stay in the pipe, of which cop has a duplicate, until they have been written where they belong: they are looked at by
//! tee(2) first and taken out after. A manager that is killed in between costs a line that is there twice, and none that is
//! missing; an unfinished line waits in the pipe for its end, whoever is the manager then.

use super::Job;
use crate::config::job::Output;
use crate::logging::JOB;
use crate::manager::keep::Keep;
use engine::io::Async;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, tee};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// A longer line is cut into several.
const LINE: usize = 4096;
/// So much is looked at at once.
const LOOK: usize = 16 << 10;
/// Lines that are remembered, and bytes of them.
const LINES: usize = 200;
const BYTES: usize = 64 << 10;
/// After so many bytes others get their turn.
const TURN: usize = 64 << 10;

/// A job's last lines, numbered.
#[derive(Default)]
pub(super) struct Tail {
    lines: VecDeque<(u64, String)>,
    bytes: usize,
    next: u64,
}

impl Tail {
    fn push(&mut self, line: String) {
        self.bytes += line.len();
        self.lines.push_back((self.next, line));
        self.next += 1;
        while self.lines.len() > LINES || self.bytes > BYTES {
            self.bytes -= self.lines.pop_front().map_or(self.bytes, |(_, l)| l.len());
        }
    }

    /// The lines from that number on, and the number of the next.
    pub(super) fn from(&self, number: u64) -> (Vec<&str>, u64) {
        (self.lines.iter().filter(|(n, _)| *n >= number).map(|(_, l)| l.as_str()).collect(), self.next)
    }
}

/// One pipe for all looks: what is in it is always taken out at once.
pub(super) struct Glass {
    read: OwnedFd,
    write: OwnedFd,
    bytes: Vec<u8>,
}

impl Glass {
    fn new() -> io::Result<Glass> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Glass { read, write, bytes: vec![0; LOOK] })
    }

    /// The one that there is, or a new one.
    fn of(place: &mut Option<Glass>) -> io::Result<&mut Glass> {
        Ok(match place {
            Some(glass) => glass,
            none => none.insert(Glass::new()?),
        })
    }

    /// What is in a pipe, which stays there; nothing: its end. `AGAIN`: nothing yet.
    fn look(&mut self, pipe: &OwnedFd) -> Result<&[u8], Errno> {
        let n = loop {
            match tee(pipe, &self.write, LOOK, SpliceFlags::NONBLOCK) {
                Err(Errno::INTR) => {}
                other => break other?,
            }
        };
        let mut have = 0;
        while have < n {
            match rustix::io::read(&self.read, &mut self.bytes[have..n]) {
                Err(Errno::INTR) => {}
                other => have += other?,
            }
        }
        Ok(&self.bytes[..n])
    }
}

/// What has just been seen in a pipe that says one thing.
pub(super) enum Seen {
    Nothing,
    /// The newline that was waited for. It stays there, for the next manager.
    Newline,
    /// So many other bytes.
    Other(usize),
    End,
}

/// Takes that many bytes out of a pipe that has them.
pub(super) fn take(pipe: &OwnedFd, mut count: usize) -> Result<(), Errno> {
    let mut scratch = [0; 4096];
    while count > 0 {
        let part = count.min(scratch.len());
        match rustix::io::read(pipe, &mut scratch[..part]) {
            Ok(0) => return Ok(()),
            Ok(n) => count -= n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Is there nobody any more who could write?
fn is_closed(pipe: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pipe, PollFlags::empty())];
    poll(&mut fds, Some(&supervisor::clock::timespec(std::time::Duration::ZERO))).is_ok_and(|n| n > 0)
}

/// Follows a pipe to its end.
pub(super) fn follow(keep: &Rc<Keep>, job: &Rc<Job>, pid: i32, pipe: Rc<Async<OwnedFd>>, to: Output) {
    let (keep, job) = (keep.clone(), job.clone());
    drop(engine::spawn(async move {
        while pipe.readable().await.is_ok() {
            // edge-triggered: noted as empty before it is emptied
            pipe.clear_read();
            let mut turn = 0;
            loop {
                match keep.pass_on(&job, pid, pipe.get_ref(), &to) {
                    Ok(Some(0)) => return,
                    Ok(Some(n)) => turn += n,
                    Ok(None) => break,
                    Err(e) => return log::error!("event=output-failed of=job job={}: {e}", job.name),
                }
                if turn >= TURN {
                    turn = 0;
                    engine::yield_now().await;
                }
            }
        }
    }));
}

impl Keep {
    /// Looks for a newline, and takes out nothing.
    pub(super) fn look_for_newline(&self, pipe: &OwnedFd) -> io::Result<Seen> {
        let glass = self.jobs.borrow().glass.clone();
        let mut glass = glass.borrow_mut();
        let bytes = match Glass::of(&mut glass)?.look(pipe) {
            Err(Errno::AGAIN) => return Ok(Seen::Nothing),
            other => other?,
        };
        Ok(match bytes.len() {
            0 => Seen::End,
            _ if bytes.contains(&b'\n') => Seen::Newline,
            n => Seen::Other(n),
        })
    }

    /// Passes whole lines on: how many bytes these were, 0 at the end, `None` when there are none yet.
    fn pass_on(&self, job: &Job, pid: i32, pipe: &OwnedFd, to: &Output) -> io::Result<Option<usize>> {
        let glass = self.jobs.borrow().glass.clone();
        let mut glass = glass.borrow_mut();
        let bytes = match Glass::of(&mut glass)?.look(pipe) {
            Err(Errno::AGAIN) => return Ok(None),
            other => other?,
        };
        if bytes.is_empty() {
            return Ok(Some(0));
        }
        let (mut lines, mut whole) = lines(bytes);
        if whole == 0 {
            if !is_closed(pipe) {
                return Ok(None);
            }
            // the last line has no end
            (lines, whole) = (vec![text(bytes)], bytes.len());
        }
        match to {
            Output::File(path) => self.write_to(job, path, &bytes[..whole]),
            _ => lines.iter().for_each(|line| log::info!(target: JOB, "job={} pid={pid}: {line}", job.name)),
        }
        {
            let mut tail = job.tail.borrow_mut();
            lines.into_iter().for_each(|line| tail.push(line));
        }
        take(pipe, whole)?;
        self.wake_changes();
        Ok(Some(whole))
    }
}

/// The whole lines in what was read, and how many bytes they are.
fn lines(bytes: &[u8]) -> (Vec<String>, usize) {
    let mut all = Vec::new();
    let mut from = 0;
    loop {
        let rest = &bytes[from..];
        match rest.iter().take(LINE).position(|b| *b == b'\n') {
            Some(at) => {
                all.push(text(&rest[..at]));
                from += at + 1;
            }
            None if rest.len() >= LINE => {
                all.push(text(&rest[..LINE]));
                from += LINE;
            }
            None => return (all, from),
        }
    }
}

/// As text, without what a terminal or a log would take for something else.
fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim_end_matches('\r')
        .chars()
        .map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn whole_lines_are_taken_and_long_ones_are_cut() {
        let mut bytes = b"one\r\ntwo\n\xff\x1b[31mthree\nrest".to_vec();
        let (all, whole) = lines(&bytes);
        assert_eq!(all, ["one", "two", "\u{fffd}\u{fffd}[31mthree"]);
        assert_eq!(&bytes[whole..], b"rest");
        bytes.extend(std::iter::repeat_n(b'x', 2 * LINE));
        let (cut, whole) = lines(&bytes[whole..]);
        assert_eq!(cut.iter().map(String::len).collect::<Vec<_>>(), [LINE, LINE]);
        assert_eq!(whole, 2 * LINE);
    }

    proptest! {
        /// Whatever a job writes, and however it comes: the same lines, each of which is one.
        #[test]
        fn lines_are_the_same_however_they_come(
            parts in prop::collection::vec((any::<u8>(), 0..LINE * 3 / 2, prop::bool::ANY), 0..6),
            cuts in prop::collection::vec(0..LINE * 3, 0..6),
        ) {
            let part = |(byte, n, ends): &(u8, usize, bool)| {
                let mut part = vec![*byte; *n];
                part.extend(ends.then_some(b'\n'));
                part
            };
            let bytes: Vec<u8> = parts.iter().flat_map(part).collect();
            let (all, whole) = lines(&bytes);
            prop_assert!(bytes.len() - whole < LINE && !bytes[whole..].contains(&b'\n'));
            prop_assert!(all.iter().all(|line| !line.contains(|c: char| c.is_control() && c != '\t')));
            let (mut pieces, mut done, mut there) = (Vec::new(), 0, 0);
            for cut in cuts.into_iter().chain([bytes.len()]) {
                there = bytes.len().min(there + cut);
                let (more, taken) = lines(&bytes[done..there]);
                pieces.extend(more);
                done += taken;
            }
            prop_assert_eq!((pieces, done), (all, whole));
        }
    }

    #[test]
    fn only_the_last_lines_are_remembered_and_each_has_its_number() {
        let mut t = Tail::default();
        (0..LINES + 3).for_each(|n| t.push(n.to_string()));
        let (all, next) = t.from(0);
        assert_eq!((all.len(), all[0], next), (LINES, "3", (LINES + 3) as u64));
        assert_eq!(t.from(next - 1).0, [(LINES + 2).to_string()]);
        assert!(t.from(next).0.is_empty());
        // long ones are fewer
        (0..100).for_each(|_| t.push("x".repeat(LINE)));
        assert_eq!(t.from(0).0.len(), BYTES / LINE);
    }

    #[test]
    fn what_is_looked_at_stays_until_it_is_taken() {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let mut glass = Glass::new().unwrap();
        assert_eq!(glass.look(&read), Err(Errno::AGAIN));
        rustix::io::write(&write, b"first\nsec").unwrap();
        for _ in 0..2 {
            assert_eq!(glass.look(&read), Ok(&b"first\nsec"[..]));
        }
        take(&read, 6).unwrap();
        rustix::io::write(&write, b"ond").unwrap();
        assert_eq!(glass.look(&read), Ok(&b"second"[..]));
        assert!(!is_closed(&read));
        drop(write);
        assert!(is_closed(&read));
        assert_eq!(glass.look(&read), Ok(&b"second"[..]));
        take(&read, 6).unwrap();
        assert_eq!(glass.look(&read), Ok(&b""[..]));
    }
}
