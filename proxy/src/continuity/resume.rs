//! From a dead server's record to what the next one does.

use super::heads::{chunked_request_len, head_len};
use super::table::{Found, Table};
use policy::handover::{self, Facts, Reason, Verdict};
use std::os::fd::RawFd;

/// A connection that goes on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resume {
    /// Bytes that were read and not answered.
    pub bytes: Vec<u8>,
    /// Bytes read from the socket in all.
    pub bytes_in: u64,
    /// Bytes written to it in all.
    pub bytes_out: u64,
    /// How it goes on.
    pub what: What,
}

/// How a connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum What {
    /// As if nothing had happened.
    #[default]
    GoOn,
    /// The first request is carried out (again).
    Replay {
        /// Crashes it was in progress in.
        attempts: u8,
    },
    /// The first request is carried out again, and of its answer only the rest is written.
    Continue {
        /// Crashes it was in progress in.
        attempts: u8,
        /// What is out already.
        rest: Rest,
    },
    /// 502, and the end.
    BadGateway {
        /// It was in progress in too many crashes.
        suspect: bool,
    },
}

/// An answer of which part is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rest {
    /// Where it began in the stream.
    pub out_base: u64,
    /// Bytes of its head, all out.
    pub head_len: u32,
    /// Bytes of its body that are out.
    pub body_sent: u64,
    /// Bytes of its body.
    pub body_len: u64,
    /// By which it is known to be the same.
    pub validator: u64,
}

impl Resume {
    /// What is out of the answer, if it was begun.
    pub fn rest(&self) -> Option<Rest> {
        match self.what {
            What::Continue { rest, .. } => Some(rest),
            _ => None,
        }
    }

    /// The head of the request in question, for the log of a suspect: at most 1 KiB, printable.
    pub fn head(&self) -> String {
        let end = head_len(&self.bytes).unwrap_or(self.bytes.len()).min(1024);
        String::from_utf8_lossy(&self.bytes[..end]).trim_end().escape_debug().to_string()
    }
}

/// What is to be done with the connection that had the number `fd` in the dead server; `None`: that one knew of none, so
/// it is a new one.
///
/// # Errors
/// It can't go on.
pub fn resume(table: &Table, fd: RawFd, kernel: &Facts) -> Option<Result<Resume, Reason>> {
    let found = match table.read(fd)? {
        Ok(found) => found,
        Err(why) => {
            log::warn!("event=record-impossible fd={fd}: {why}");
            return Some(Err(Reason::Contradiction));
        }
    };
    Some(act(table, &found, kernel))
}

fn act(table: &Table, found: &Found, kernel: &Facts) -> Result<Resume, Reason> {
    let contradiction = |_| Reason::Contradiction;
    let r = &found.record;
    let make = |unrecorded: u64, what: What| {
        let bytes = table.bytes(found, unrecorded).map_err(contradiction)?;
        let noted = r.bytes_in.map(|n| n + unrecorded);
        Ok(Resume {
            bytes,
            bytes_in: noted.or(kernel.bytes_in).unwrap_or(0),
            bytes_out: kernel.bytes_out.unwrap_or(0),
            what,
        })
    };
    match handover::decide(r, kernel) {
        Verdict::GoOn { unrecorded } => make(unrecorded, What::GoOn),
        Verdict::Replay { unrecorded, attempts } => make(unrecorded, What::Replay { attempts }),
        Verdict::BadGateway { suspect } => make(0, What::BadGateway { suspect }),
        // what comes behind a request that was the last one is none
        Verdict::Answered { .. } if found.last => Err(Reason::Closed),
        Verdict::Answered { unrecorded } => {
            let mut resume = make(unrecorded, What::GoOn)?;
            let length = match found.request_len {
                0 => chunked_request_len(&resume.bytes).ok_or(Reason::Untracked)?,
                n => n,
            };
            if length > resume.bytes.len() {
                return Err(Reason::Contradiction);
            }
            resume.bytes.drain(..length);
            Ok(resume)
        }
        Verdict::Continue { unrecorded, attempts, body_sent } => {
            let rest = Rest {
                out_base: r.out_base,
                head_len: r.head_len,
                body_sent,
                body_len: r.body_len.ok_or(Reason::Contradiction)?,
                validator: found.validator,
            };
            make(unrecorded, What::Continue { attempts, rest })
        }
        Verdict::Close(reason) => Err(reason),
    }
}
