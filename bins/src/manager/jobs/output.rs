//! What a job writes: line by line to our log, with its name, and into a short memory for `tail`.

use super::Job;
use crate::manager::keep::Keep;
use engine::io::Async;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// A longer line is cut into several.
const LINE: usize = 4096;
/// Lines that are remembered.
const LINES: usize = 200;
/// After so many bytes others get their turn.
const TURN: usize = 64 << 10;

/// A job's last lines, numbered.
#[derive(Default)]
pub(super) struct Tail {
    lines: VecDeque<(u64, String)>,
    next: u64,
}

impl Tail {
    fn push(&mut self, line: String) {
        self.lines.push_back((self.next, line));
        self.next += 1;
        if self.lines.len() > LINES {
            self.lines.pop_front();
        }
    }

    /// The lines from that number on, and the number of the next.
    pub(super) fn from(&self, number: u64) -> (Vec<&str>, u64) {
        (self.lines.iter().filter(|(n, _)| *n >= number).map(|(_, l)| l.as_str()).collect(), self.next)
    }
}

/// Reads a pipe to its end.
pub(super) fn follow(keep: &Rc<Keep>, job: &Rc<Job>, pid: i32, pipe: OwnedFd) {
    let (keep, job) = (keep.clone(), job.clone());
    drop(engine::spawn(async move {
        let Ok(pipe) = Async::new(pipe) else { return };
        let (mut pending, mut turn) = (Vec::new(), 0);
        loop {
            let mut bytes = [0; 2048];
            let n = read(&pipe, &mut bytes).await.unwrap_or(0);
            if n == 0 {
                break;
            }
            pending.extend_from_slice(&bytes[..n]);
            for line in lines(&mut pending) {
                said(&keep, &job, pid, line);
            }
            turn += n;
            if turn >= TURN {
                turn = 0;
                engine::yield_now().await;
            }
        }
        if !pending.is_empty() {
            said(&keep, &job, pid, text(&pending));
        }
    }));
}

/// Reads what there is, as soon as there is something; 0 at the end.
pub(super) async fn read(fd: &Async<OwnedFd>, bytes: &mut [u8]) -> io::Result<usize> {
    use rustix::io::Errno;
    loop {
        fd.readable().await?;
        match rustix::io::read(fd.get_ref(), &mut *bytes) {
            Err(Errno::AGAIN) => fd.clear_read(),
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

fn said(keep: &Keep, job: &Job, pid: i32, line: String) {
    log::info!("job={} pid={pid}: {line}", job.name);
    job.tail.borrow_mut().push(line);
    keep.wake_changes();
}

/// Takes the whole lines out of what was read.
fn lines(pending: &mut Vec<u8>) -> Vec<String> {
    let mut all = Vec::new();
    let mut from = 0;
    loop {
        let rest = &pending[from..];
        match rest.iter().take(LINE).position(|b| *b == b'\n') {
            Some(at) => {
                all.push(text(&rest[..at]));
                from += at + 1;
            }
            None if rest.len() >= LINE => {
                all.push(text(&rest[..LINE]));
                from += LINE;
            }
            None => break,
        }
    }
    pending.drain(..from);
    all
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

    #[test]
    fn whole_lines_are_taken_and_long_ones_are_cut() {
        let mut pending = b"one\r\ntwo\n\xff\x1b[31mthree\nrest".to_vec();
        assert_eq!(lines(&mut pending), ["one", "two", "\u{fffd}\u{fffd}[31mthree"]);
        assert_eq!(pending, b"rest");
        pending.extend(std::iter::repeat_n(b'x', 2 * LINE));
        let cut = lines(&mut pending);
        assert_eq!(cut.iter().map(String::len).collect::<Vec<_>>(), [LINE, LINE]);
        assert_eq!(pending.len(), 4);
    }

    #[test]
    fn only_the_last_lines_are_remembered_and_each_has_its_number() {
        let mut t = Tail::default();
        (0..LINES + 3).for_each(|n| t.push(n.to_string()));
        let (all, next) = t.from(0);
        assert_eq!((all.len(), all[0], next), (LINES, "3", (LINES + 3) as u64));
        assert_eq!(t.from(next - 1).0, [(LINES + 2).to_string()]);
        assert!(t.from(next).0.is_empty());
    }
}
