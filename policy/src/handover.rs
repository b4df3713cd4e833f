//! What the next server does with a connection whose server was killed.
//!
//! The dead server has left a [`Record`] of the connection; the kernel knows how many bytes really came in and went out
//! ([`Facts`]). Where the two differ, a system call had happened and its record had not: the kernel is right.
//!
//! ```text
//!   Idle -- first byte of a request --> Idle with bytes -- head parsed --> InProgress -- forwarded to the origin --+
//!    ^                                                                        | answer begins                      |
//!    +------------------ answer complete -------------- Responding <---------+------------------------------------+
//! ```
//!
//! Invariants: a request that may have reached the origin and is not safe to repeat is never repeated; nothing is written
//! again that the kernel has already; a request that was in progress in [`MAX_ATTEMPTS`] crashes is not tried again.

/// A request that was in progress in this many crashes is suspected of causing them.
pub const MAX_ATTEMPTS: u8 = 2;

/// Where a connection stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Between requests; bytes of the next one may be kept already.
    Idle,
    /// A request was given to whoever answers it; nothing of the answer has been written.
    InProgress,
    /// The answer was about to be written, or is being written.
    Responding,
    /// Its server had lost the thread (see [`Reason::Untracked`]): it can't be gone on with.
    Untracked,
    /// Its server had given it to the next one in order.
    PassedOn,
}

/// What the dead server noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Where it stood.
    pub stage: Stage,
    /// The request is safe to repeat (GET, HEAD, OPTIONS).
    pub safe: bool,
    /// Bytes of the request may have reached the origin.
    pub forwarded: bool,
    /// Not all bytes of the request were kept.
    pub overflow: bool,
    /// It was in the midst of a read. Not noted where the kernel counts what was read.
    pub reading: bool,
    /// Crashes in which this request was in progress before.
    pub attempts: u8,
    /// The server ended in order, and left what it hadn't finished: that was no crash.
    pub in_order: bool,
    /// Bytes read from the socket in all, as far as recorded; `None` while no bytes are kept.
    pub bytes_in: Option<u64>,
    /// Bytes written before this answer.
    pub out_base: u64,
    /// Bytes of the answer's head.
    pub head_len: u32,
    /// Bytes of the answer's body; `None` if not known beforehand.
    pub body_len: Option<u64>,
    /// Whether the answer can be told to be the same when it is made again (a strong validator).
    pub has_validator: bool,
}

/// What the kernel says; `None` where it can't (Unix sockets).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Facts {
    /// Bytes that were read from the socket in all.
    pub bytes_in: Option<u64>,
    /// Bytes that were written to the socket in all, sent or not.
    pub bytes_out: Option<u64>,
    /// The connection has ended.
    pub closed: bool,
}

/// Why a connection can't go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Its client had gone.
    Closed,
    /// Part of an answer is out, and the rest can't be made again byte for byte.
    AnswerCut,
    /// The record and the kernel contradict each other.
    Contradiction,
    /// The dead server couldn't keep what would be needed: no buffer, or a request beyond its size.
    Untracked,
    /// It is somebody else's already: nothing at all is done to it.
    PassedOn,
}

/// What to do with the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Serve on: the kept bytes (if any) are the beginning of the next request. `unrecorded` more bytes lie behind them.
    GoOn {
        /// Bytes read into the buffer that the record doesn't know of yet.
        unrecorded: u64,
    },
    /// The answer is out: drop the request's bytes, then serve on.
    Answered {
        /// See above.
        unrecorded: u64,
    },
    /// Nothing of the answer is out, and it may be asked for again.
    Replay {
        /// See above.
        unrecorded: u64,
        /// Crashes in which it has now been in progress.
        attempts: u8,
    },
    /// Make the answer again, and leave out its first bytes: the head that was sent, and `body_sent` of its body.
    Continue {
        /// See above.
        unrecorded: u64,
        /// Crashes in which it has now been in progress.
        attempts: u8,
        /// Bytes of the body that are out.
        body_sent: u64,
    },
    /// Answer 502: it may have been done, and it is not known.
    BadGateway {
        /// It was in progress in too many crashes.
        suspect: bool,
    },
    /// Close.
    Close(Reason),
}

/// Decides.
pub fn decide(r: &Record, kernel: &Facts) -> Verdict {
    if r.stage == Stage::PassedOn {
        return Verdict::Close(Reason::PassedOn);
    }
    if kernel.closed {
        return Verdict::Close(Reason::Closed);
    }
    if r.stage == Stage::Untracked {
        return Verdict::Close(Reason::Untracked);
    }
    if r.reading && kernel.bytes_in.is_none() {
        // nobody knows whether anything was read
        return Verdict::Close(Reason::Untracked);
    }
    let unrecorded = match (r.bytes_in, kernel.bytes_in) {
        (Some(noted), Some(real)) => match real.checked_sub(noted) {
            Some(n) => n,
            None => return Verdict::Close(Reason::Contradiction),
        },
        _ => 0,
    };
    match r.stage {
        Stage::Untracked => Verdict::Close(Reason::Untracked),
        Stage::PassedOn => Verdict::Close(Reason::PassedOn),
        // the beginning of this request is gone, and nobody has seen it yet
        Stage::Idle if r.overflow => Verdict::Close(Reason::Untracked),
        Stage::Idle => Verdict::GoOn { unrecorded },
        Stage::InProgress => again(r, unrecorded),
        Stage::Responding => {
            // without the kernel's word it isn't known whether anything went out
            let Some(out) = kernel.bytes_out else { return Verdict::Close(Reason::AnswerCut) };
            let Some(sent) = out.checked_sub(r.out_base) else {
                return Verdict::Close(Reason::Contradiction);
            };
            responding(r, sent, unrecorded)
        }
    }
}

fn responding(r: &Record, sent: u64, unrecorded: u64) -> Verdict {
    let head = u64::from(r.head_len);
    match r.body_len {
        _ if sent == 0 => again(r, unrecorded),
        Some(body) if head.checked_add(body).is_none_or(|whole| sent > whole) => {
            Verdict::Close(Reason::Contradiction)
        }
        Some(body) if sent == head + body && !r.overflow => Verdict::Answered { unrecorded },
        Some(_) if sent >= head && r.safe && r.has_validator && !r.overflow => {
            match again(r, unrecorded) {
                Verdict::Replay { unrecorded, attempts } => {
                    Verdict::Continue { unrecorded, attempts, body_sent: sent - head }
                }
                // half an answer is out: no 502 can be said any more
                _ => Verdict::Close(Reason::AnswerCut),
            }
        }
        _ => Verdict::Close(Reason::AnswerCut),
    }
}

/// Nothing of the answer is out: may the request be carried out again?
fn again(r: &Record, unrecorded: u64) -> Verdict {
    let attempts = r.attempts.saturating_add(u8::from(!r.in_order));
    if attempts >= MAX_ATTEMPTS {
        return Verdict::BadGateway { suspect: true };
    }
    if r.overflow || (r.forwarded && !r.safe) {
        return Verdict::BadGateway { suspect: false };
    }
    Verdict::Replay { unrecorded, attempts }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(stage: Stage) -> Record {
        Record {
            stage,
            safe: true,
            forwarded: false,
            overflow: false,
            reading: false,
            attempts: 0,
            in_order: false,
            bytes_in: Some(100),
            out_base: 1000,
            head_len: 50,
            body_len: Some(500),
            has_validator: true,
        }
    }

    fn kernel(bytes_in: u64, bytes_out: u64) -> Facts {
        Facts { bytes_in: Some(bytes_in), bytes_out: Some(bytes_out), closed: false }
    }

    #[test]
    fn idle_goes_on_with_what_the_kernel_saw_more() {
        let r = record(Stage::Idle);
        assert_eq!(decide(&r, &kernel(100, 1000)), Verdict::GoOn { unrecorded: 0 });
        assert_eq!(decide(&r, &kernel(117, 1000)), Verdict::GoOn { unrecorded: 17 });
        assert_eq!(decide(&r, &kernel(99, 1000)), Verdict::Close(Reason::Contradiction));
        // no bytes are kept: whatever was read belonged to requests that are over
        let r = Record { bytes_in: None, ..r };
        assert_eq!(decide(&r, &kernel(117, 1000)), Verdict::GoOn { unrecorded: 0 });
    }

    #[test]
    fn what_was_read_last_is_the_kernels_to_say() {
        let r = Record { reading: true, ..record(Stage::Idle) };
        assert_eq!(decide(&r, &kernel(117, 1000)), Verdict::GoOn { unrecorded: 17 });
        assert_eq!(decide(&r, &Facts::default()), Verdict::Close(Reason::Untracked));
        assert_eq!(
            decide(&Record { reading: false, ..r }, &Facts::default()),
            Verdict::GoOn { unrecorded: 0 }
        );
    }

    #[test]
    fn what_may_have_been_done_is_not_done_again() {
        for stage in [Stage::InProgress, Stage::Responding] {
            for (safe, forwarded) in [(true, true), (true, false), (false, false), (false, true)] {
                let r = Record { safe, forwarded, ..record(stage) };
                let want = match (safe, forwarded) {
                    (false, true) => Verdict::BadGateway { suspect: false },
                    _ => Verdict::Replay { unrecorded: 0, attempts: 1 },
                };
                assert_eq!(decide(&r, &kernel(100, 1000)), want, "{stage:?} {safe} {forwarded}");
                // and never a second time after two crashes
                let r = Record { attempts: 1, ..r };
                assert_eq!(decide(&r, &kernel(100, 1000)), Verdict::BadGateway { suspect: true });
                // an end in order says nothing against it
                let r = Record { in_order: true, ..r };
                let again = decide(&r, &kernel(100, 1000));
                assert!(matches!(
                    again,
                    Verdict::Replay { attempts: 1, .. } | Verdict::BadGateway { suspect: false }
                ));
            }
        }
        let cut = Record { overflow: true, ..record(Stage::InProgress) };
        assert_eq!(decide(&cut, &kernel(100, 1000)), Verdict::BadGateway { suspect: false });
    }

    #[test]
    fn a_begun_answer_goes_on_at_the_byte_or_is_cut() {
        let r = record(Stage::Responding);
        assert_eq!(
            decide(&r, &kernel(100, 1050)),
            Verdict::Continue { unrecorded: 0, attempts: 1, body_sent: 0 }
        );
        assert_eq!(
            decide(&r, &kernel(100, 1549)),
            Verdict::Continue { unrecorded: 0, attempts: 1, body_sent: 499 }
        );
        assert_eq!(decide(&r, &kernel(105, 1550)), Verdict::Answered { unrecorded: 5 });
        assert_eq!(decide(&r, &kernel(100, 1551)), Verdict::Close(Reason::Contradiction));
        assert_eq!(decide(&r, &kernel(100, 999)), Verdict::Close(Reason::Contradiction));
        let cut = Verdict::Close(Reason::AnswerCut);
        // half a head; no validator; unknown length; not safe; a suspect; a Unix socket
        assert_eq!(decide(&r, &kernel(100, 1049)), cut);
        assert_eq!(decide(&Record { has_validator: false, ..r }, &kernel(100, 1060)), cut);
        assert_eq!(decide(&Record { body_len: None, ..r }, &kernel(100, 1060)), cut);
        assert_eq!(decide(&Record { safe: false, ..r }, &kernel(100, 1060)), cut);
        assert_eq!(decide(&Record { attempts: 1, ..r }, &kernel(100, 1060)), cut);
        assert_eq!(decide(&r, &Facts::default()), cut);
        // an answered one that wasn't safe is answered all the same
        assert_eq!(
            decide(&Record { safe: false, forwarded: true, ..r }, &kernel(100, 1550)),
            Verdict::Answered { unrecorded: 0 }
        );
    }

    #[test]
    fn a_gone_client_and_a_lost_thread_are_closed() {
        for stage in [Stage::Idle, Stage::InProgress, Stage::Responding, Stage::Untracked] {
            let gone = Facts { closed: true, ..kernel(100, 1000) };
            assert_eq!(decide(&record(stage), &gone), Verdict::Close(Reason::Closed));
        }
        let passed = record(Stage::PassedOn);
        assert_eq!(decide(&passed, &kernel(100, 1000)), Verdict::Close(Reason::PassedOn));
        let want = Verdict::Close(Reason::Untracked);
        assert_eq!(decide(&record(Stage::Untracked), &kernel(100, 1000)), want);
        assert_eq!(decide(&Record { overflow: true, ..record(Stage::Idle) }, &kernel(100, 1000)), want);
    }
}
