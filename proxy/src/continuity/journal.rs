//! The writer of one connection's record.
//!
//! | when | what is stored |
//! |---|---|
//! | before a read while nothing is kept | an empty buffer |
//! | after a read | the number of bytes in the buffer |
//! | a request's head is parsed | in progress, and whether it is safe to repeat |
//! | before its first byte goes to an origin | forwarded |
//! | before the first byte of the answer | responding: where the answer begins in the stream, and its lengths |
//! | after its last byte | idle, at the next request |

use super::buffers::Buffers;
use super::heads::{chunked_request_len, head_len, is_last, with_line};
use super::marks::{Closed, ForwardMark};
use super::resume::{Rest, Resume, What};
use super::table::{
    BUFFER_DATA, CLOSING, FORWARDED, Head, IDLE, IN_PROGRESS, LAST, OVERFLOW, PASSED_ON, READING, RESPONDING,
    SAFE, Table, UNTRACKED,
};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::task::{Poll, Waker};

/// An answer that is about to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Bytes of the body on the wire; `None` if not known.
    pub body_len: Option<u64>,
    /// By which the same body is known; 0 for none.
    pub validator: u64,
}

/// The journal of one connection. All methods are for its own thread.
#[derive(Debug)]
pub struct Journal {
    table: Arc<Table>,
    buffers: Arc<Buffers>,
    fd: RawFd,
    buffer: Cell<Option<usize>>,
    /// Bytes in the buffer, and where the current request begins among them.
    kept: Cell<usize>,
    start: Cell<usize>,
    /// Bytes read from and written to the socket in all.
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
    stage: Cell<u64>,
    attempts: Cell<u64>,
    overflow: Cell<bool>,
    /// Of the current request in the buffer, `None` if not known.
    request_len: Cell<Option<u64>>,
    /// Absolute position of the current request in the stream.
    request_at: Cell<u64>,
    answer: Cell<Option<Answer>>,
    answer_end: Cell<Option<u64>>,
    body_ended: Cell<bool>,
    /// The kernel doesn't count what is read.
    uncounted: Cell<bool>,
    /// While it is untracked: where the next request begins in the stream, if that is known.
    found_at: Cell<Option<u64>>,
    /// The answer that is made again is the rest of this one.
    rest: RefCell<Option<Box<Rest>>>,
    /// Who waits for the end of an answer.
    waiting: RefCell<Option<Waker>>,
}

/// What a write turns out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// To be written.
    All,
    /// The beginning of an answer whose first `swallow` bytes the client has already.
    Without {
        /// Bytes to leave out, from the first byte of this write on.
        swallow: u64,
    },
    /// Another answer than the one that was begun: the connection can't go on.
    Different,
}

impl Journal {
    /// For a connection with this fd, of which so much was read and written before.
    pub fn new(
        table: &Arc<Table>,
        buffers: &Arc<Buffers>,
        fd: RawFd,
        bytes_in: u64,
        bytes_out: u64,
    ) -> Journal {
        let j = Journal::made(table, buffers, fd, bytes_in, bytes_out);
        j.publish(0);
        j
    }

    /// One of which nothing is in the table yet.
    fn made(table: &Arc<Table>, buffers: &Arc<Buffers>, fd: RawFd, bytes_in: u64, bytes_out: u64) -> Journal {
        Journal {
            table: table.clone(),
            buffers: buffers.clone(),
            fd,
            buffer: Cell::new(None),
            kept: Cell::new(0),
            start: Cell::new(0),
            bytes_in: Cell::new(bytes_in),
            bytes_out: Cell::new(bytes_out),
            stage: Cell::new(IDLE),
            attempts: Cell::new(0),
            overflow: Cell::new(false),
            request_len: Cell::new(None),
            request_at: Cell::new(bytes_in),
            answer: Cell::new(None),
            answer_end: Cell::new(None),
            body_ended: Cell::new(false),
            uncounted: Cell::new(false),
            found_at: Cell::new(None),
            rest: RefCell::default(),
            waiting: RefCell::new(None),
        }
    }

    /// To be dropped when the socket has been closed.
    pub(crate) fn closed(&self) -> Closed {
        Closed::new(self.table.clone(), self.fd)
    }

    /// One that goes on from a dead server's.
    pub fn resumed(table: &Arc<Table>, buffers: &Arc<Buffers>, fd: RawFd, r: &Resume) -> Journal {
        let before = r.bytes_in.saturating_sub(r.bytes.len() as u64);
        // said at once, when all of it is known
        let j = Journal::made(table, buffers, fd, before, r.bytes_out);
        match r.what {
            What::GoOn => {}
            What::Replay { attempts } => j.attempts.set(u64::from(attempts)),
            What::Continue { attempts, rest } => {
                j.attempts.set(u64::from(attempts));
                j.rest.replace(Some(Box::new(rest)));
            }
            What::BadGateway { .. } => j.lose(),
        }
        if !r.bytes.is_empty() && j.stage.get() != UNTRACKED {
            let Some(b) = (r.bytes.len() <= BUFFER_DATA).then(|| j.buffers.take()).flatten() else {
                j.lose();
                return j;
            };
            j.prepare(b, before, &r.bytes);
        }
        j.bytes_in.set(r.bytes_in);
        j.request_at.set(before);
        // a half-written answer stays one in the record until it is whole
        if let Some(rest) = r.rest() {
            j.note_answer(rest.out_base, rest.head_len, Some(rest.body_len), rest.validator, 0);
            j.store(RESPONDING, SAFE);
        } else {
            j.publish(0);
        }
        j
    }

    fn note_answer(&self, base: u64, head_len: u32, body_len: Option<u64>, validator: u64, request_len: u64) {
        let Some(slot) = self.table.slot(self.fd) else { return };
        slot[1].store(base, Relaxed);
        slot[2]
            .store(u64::from(head_len) << 32 | u64::from(u32::try_from(request_len).unwrap_or(0)), Relaxed);
        slot[3].store(body_len.unwrap_or(u64::MAX), Relaxed);
        slot[4].store(validator, Relaxed);
    }

    fn store(&self, stage: u64, flags: u64) {
        if self.stage.replace(stage) == RESPONDING && stage != RESPONDING {
            self.waiting.borrow_mut().take().into_iter().for_each(Waker::wake);
        }
        let head =
            Head { stage, attempts: self.attempts.get(), buffer: self.buffer.get(), start: self.start.get() };
        if let Some(slot) = self.table.slot(self.fd) {
            slot[0].store(head.pack(flags), Release);
        }
    }

    fn publish(&self, flags: u64) {
        self.store(self.stage.get(), flags);
    }

    fn flags(&self) -> u64 {
        self.table.slot(self.fd).map_or(0, |s| s[0].load(Relaxed)) & (SAFE | FORWARDED | OVERFLOW | LAST)
    }

    /// Before a read: room in the buffer, 0 if what is read now can't be kept.
    fn begin_read(&self) -> usize {
        if self.stage.get() == UNTRACKED {
            return 0;
        }
        if let Some(b) = self.buffer.get() {
            if self.kept.get() < BUFFER_DATA {
                return BUFFER_DATA - self.kept.get();
            }
            if self.start.get() > 0 && self.move_on(b) {
                return BUFFER_DATA - self.kept.get();
            }
            return 0;
        }
        let Some(b) = self.buffers.take() else { return 0 };
        self.prepare(b, self.bytes_in.get(), &[]);
        self.publish(self.flags());
        BUFFER_DATA
    }

    /// Fills a fresh buffer and makes it the current one (the caller publishes).
    fn prepare(&self, buffer: usize, before: u64, bytes: &[u8]) {
        self.table.put(buffer, 0, bytes);
        if let Some(w) = self.table.buffer_words(buffer) {
            w[0].store(before, Relaxed);
            w[1].store(bytes.len() as u64, Release);
        }
        self.buffer.set(Some(buffer));
        self.kept.set(bytes.len());
        self.start.set(0);
    }

    /// Moves what isn't answered to the beginning of another buffer.
    fn move_on(&self, old: usize) -> bool {
        let Some(new) = self.buffers.take() else { return false };
        let used = self.kept.get();
        let rest = self.table.own(old, self.start.get(), used);
        self.prepare(new, self.bytes_in.get() - rest.len() as u64, rest);
        self.publish(self.flags());
        self.buffers.give_back(&self.table, old, used);
        true
    }

    /// Reads through the buffer: what a read has taken from the socket is in shared memory before anything is known of it;
    /// then it is copied to `to`. What can't be kept is read into `to` at once.
    pub fn read(
        &self,
        to: &mut [MaybeUninit<u8>],
        mut read: impl FnMut(&mut [MaybeUninit<u8>]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Some(polled) = self.read_kept(to.len(), &mut read) {
            let end = self.kept.get();
            return polled.map_ok(|n| match self.buffer.get() {
                Some(b) if n > 0 => self.table.copy(b, end - n, &mut to[..n]),
                _ => n,
            });
        }
        self.overflow();
        // up to where the next request begins, if that is known
        let left = self.found_at.get().map_or(0, |at| at.saturating_sub(self.bytes_in.get()));
        let left = usize::try_from(left).unwrap_or(0);
        let room = if left > 0 { left.min(to.len()) } else { to.len() };
        let polled = read(&mut to[..room]);
        match polled {
            Poll::Ready(Ok(n)) => self.bytes_in.set(self.bytes_in.get() + n as u64),
            _ => self.nothing_read(),
        }
        self.find();
        polled
    }

    /// Is this where the next request begins? Then it is tracked again.
    fn find(&self) {
        if self.found_at.get() == Some(self.bytes_in.get()) && self.stage.get() == UNTRACKED {
            self.found_at.set(None);
            self.overflow.set(false);
            self.request_at.set(self.bytes_in.get());
            self.drop_buffer();
        }
    }

    /// Has `read` put at most `limit` bytes behind those of [`Journal::input`]; None if they couldn't be kept.
    pub fn read_kept(
        &self,
        limit: usize,
        read: impl FnOnce(&mut [MaybeUninit<u8>]) -> Poll<io::Result<usize>>,
    ) -> Option<Poll<io::Result<usize>>> {
        let room = self.begin_read();
        let b = self.buffer.get().filter(|_| room > 0)?;
        let at = self.kept.get();
        self.note_reading(true);
        let polled = self.table.fill(b, at, limit, read);
        Some(match polled {
            Poll::Ready(Ok(n)) if n > 0 => {
                self.kept.set(at + n);
                self.bytes_in.set(self.bytes_in.get() + n as u64);
                if let Some(w) = self.table.buffer_words(b) {
                    w[1].store(self.kept.get() as u64, Release);
                }
                self.note_reading(false);
                Poll::Ready(Ok(n))
            }
            other => {
                self.note_reading(false);
                self.nothing_read();
                other
            }
        })
    }

    /// The kernel doesn't count what is read from the socket (a Unix one): it is noted when something may have been.
    pub fn set_uncounted(&self) {
        self.uncounted.set(true);
    }

    fn note_reading(&self, is: bool) {
        if let (true, Some(slot)) = (self.uncounted.get(), self.table.slot(self.fd)) {
            match is {
                true => slot[0].fetch_or(READING, Release),
                false => slot[0].fetch_and(!READING, Release),
            };
        }
    }

    /// What has been read and kept, from the first request on that isn't answered.
    pub fn input(&self) -> &[u8] {
        let kept = self.buffer.get().map(|b| self.table.own(b, self.start.get(), self.kept.get()));
        kept.unwrap_or_default()
    }

    /// A read found nothing: an empty buffer isn't held while waiting.
    fn nothing_read(&self) {
        if self.stage.get() == IDLE && self.kept.get() == 0 {
            let bytes_in = self.bytes_in.get();
            if self.buffer.get().is_some() || (self.overflow.get() && self.request_at.get() == bytes_in) {
                self.overflow.set(false);
                self.drop_buffer();
            }
        }
    }

    /// Resolves when no answer is being written: the next request's record would hide the rest of it.
    pub async fn answered(&self) {
        poll_fn(|cx| match self.stage.get() {
            RESPONDING if !self.goes_on() => {
                self.waiting.replace(Some(cx.waker().clone()));
                Poll::Pending
            }
            _ => Poll::Ready(()),
        })
        .await
    }

    /// Before a read that can't be kept.
    fn overflow(&self) {
        if self.stage.get() != UNTRACKED && !self.overflow.replace(true) {
            self.publish(self.flags() | OVERFLOW);
        }
    }

    /// The head of a request was parsed. `body`: its length, `None` for chunked.
    pub fn request(&self, safe: bool, body: Option<u64>) -> ForwardMark {
        let head = head_len(self.input()).map(|n| n as u64);
        self.begin_request(safe, head.and_then(|h| Some(h + body?)));
        ForwardMark::new(self.table.clone(), self.fd)
    }

    /// The first `len` bytes of [`Journal::input`] are a request that is safe to repeat.
    pub fn plain_request(&self, len: usize) {
        self.begin_request(true, Some(len as u64));
    }

    /// Before the first byte of the request in progress goes to an origin; see [`ForwardMark`].
    pub fn forwarded(&self) {
        self.publish(self.flags() | FORWARDED);
    }

    fn begin_request(&self, safe: bool, len: Option<u64>) {
        self.request_len.set(len);
        self.request_at.set(self.bytes_in.get() - (self.kept.get() - self.start.get()) as u64);
        self.body_ended.set(false);
        self.answer_end.set(None);
        self.answer.set(None);
        if let Some(slot) = self.table.slot(self.fd) {
            let len = self.request_len.get().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
            let head = slot[2].load(Relaxed) & !0xffff_ffff;
            slot[2].store(head | u64::from(len), Relaxed);
        }
        if self.stage.get() != UNTRACKED && !self.goes_on() {
            let overflow = if self.overflow.get() { OVERFLOW } else { 0 };
            self.store(IN_PROGRESS, overflow | if safe { SAFE } else { 0 });
        }
    }

    /// The answer that comes is the rest of one that was begun.
    pub(crate) fn goes_on(&self) -> bool {
        self.rest.borrow().is_some()
    }

    /// A request is in progress, and nothing of its answer is out: an interim answer may go ahead of it.
    pub fn may_interject(&self) -> bool {
        self.stage.get() == IN_PROGRESS && !self.goes_on() && self.answer.get().is_none()
    }

    /// There is an answer: its head is written next.
    pub fn answer(&self, answer: Answer) {
        self.answer.set(Some(answer));
    }

    /// The body of the answer has given its last byte to hyper.
    pub fn body_ended(&self) {
        self.body_ended.set(true);
    }

    /// Before a write that begins with `first`.
    pub fn begin_write(&self, first: &[u8]) -> Write {
        let Some(answer) = self.answer.take() else {
            // in the middle of an answer there is room for its rest alone
            return if self.goes_on() { Write::Different } else { Write::All };
        };
        let answer = Answer { validator: with_line(first, answer.validator), ..answer };
        let head = head_len(first).and_then(|n| u32::try_from(n).ok());
        let last = head.is_some_and(|n| is_last(&first[..n as usize]));
        if let Some(rest) = self.rest.take() {
            let same = answer.body_len == Some(rest.body_len) && answer.validator == rest.validator;
            return match head.filter(|_| same) {
                Some(head) => {
                    let end = rest.out_base + u64::from(rest.head_len) + rest.body_len;
                    self.answer_end.set(Some(end));
                    if last {
                        self.publish(self.flags() | LAST);
                    }
                    Write::Without { swallow: u64::from(head) + rest.body_sent }
                }
                None => Write::Different,
            };
        }
        if self.stage.get() == UNTRACKED {
            return Write::All;
        }
        let Some(head) = head else {
            self.lose();
            return Write::All;
        };
        self.begin_answer(head, answer, last);
        Write::All
    }

    /// Before the first byte of an answer with a head of so many bytes to a [`Journal::plain_request`]. `last`: the connection ends
    /// with it.
    pub fn begin_answer(&self, head: u32, answer: Answer, last: bool) {
        let base = self.bytes_out.get();
        self.answer_end.set(answer.body_len.map(|b| base + u64::from(head) + b));
        let request = self.request_len.get().unwrap_or(0);
        self.note_answer(base, head, answer.body_len, answer.validator, request);
        self.store(RESPONDING, self.flags() | if last { LAST } else { 0 });
    }

    /// So many bytes were taken by the socket.
    pub fn wrote(&self, n: usize) {
        self.bytes_out.set(self.bytes_out.get() + n as u64);
        if n > 0 {
            self.gets_on();
        }
        if self.answer_end.get() == Some(self.bytes_out.get()) {
            self.complete();
        }
    }

    /// The socket takes nothing now: what is to be written waits for the client.
    pub fn stuck(&self) {
        if self.rest.borrow().is_none() {
            self.gets_on();
        }
    }

    /// The answer got further than in the crash it went through: it is not what crashes servers.
    fn gets_on(&self) {
        if self.attempts.get() > 0 && self.stage.get() == RESPONDING {
            self.attempts.set(0);
            self.publish(self.flags());
        }
    }

    /// All that hyper had to write is written.
    pub fn flushed(&self) {
        if self.stage.get() == RESPONDING && self.answer_end.get().is_none() && self.body_ended.get() {
            self.complete();
        }
    }

    /// The answer is out.
    fn complete(&self) {
        self.answer_end.set(None);
        if self.stage.get() != RESPONDING {
            return;
        }
        if self.goes_on() {
            return self.lose();
        }
        self.attempts.set(0);
        if self.flags() & LAST != 0 {
            // what comes behind the last request is none
            return self.store(CLOSING, 0);
        }
        let end = match self.request_len.get() {
            Some(n) => Some(n),
            // chunked: it ends where its last chunk does, if all of it is here
            None => self.buffer.get().and_then(|b| {
                chunked_request_len(self.table.own(b, self.start.get(), self.kept.get())).map(|n| n as u64)
            }),
        };
        let end = end.map(|n| self.request_at.get() + n);
        if end == Some(self.bytes_in.get()) {
            self.overflow.set(false);
            self.request_at.set(self.bytes_in.get());
            return self.drop_buffer();
        }
        match end {
            // the next one has begun, and all of it is kept
            Some(end) if !self.overflow.get() && end < self.bytes_in.get() => {
                self.start.set(self.start.get() + (end - self.request_at.get()) as usize);
                self.store(IDLE, 0);
            }
            // the rest of a body that nobody wanted is still to come
            Some(end) if end > self.bytes_in.get() => {
                self.lose();
                self.found_at.set(Some(end));
            }
            // it isn't known
            _ => self.lose(),
        }
    }

    /// From here on only the client can tell where a request begins.
    pub fn lose(&self) {
        self.store(UNTRACKED, self.flags());
    }

    /// What follows is nobody's request: nothing of it is kept, and nobody can go on with it.
    pub fn detach(&self) {
        self.answer.set(None);
        self.answer_end.set(None);
        self.let_go(UNTRACKED);
    }

    fn drop_buffer(&self) {
        self.let_go(IDLE);
    }

    /// Keeps nothing any more. First the record says so: what it names is nobody else's.
    fn let_go(&self, stage: u64) {
        let (old, used) = (self.buffer.take(), self.kept.take());
        self.start.set(0);
        self.store(stage, 0);
        if let Some(b) = old {
            self.buffers.give_back(&self.table, b, used);
        }
    }

    /// True between requests; bytes of the next one may have been read.
    pub fn is_between(&self) -> bool {
        self.stage.get() == IDLE
    }

    /// How another server goes on with it, while it is between requests.
    pub fn resume(&self) -> Resume {
        Resume {
            bytes: self.input().to_vec(),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            what: What::GoOn,
        }
    }

    /// It is another server's from here on; or it is ours again.
    pub fn pass_on(&self, gone: bool) {
        self.store(if gone { PASSED_ON } else { IDLE }, 0);
    }

    /// True between requests, with nothing read of the next one.
    pub fn is_idle(&self) -> bool {
        self.stage.get() == IDLE && self.kept.get() == 0
    }
}

impl Drop for Journal {
    /// Before the socket is closed: the number may be another connection's at once.
    fn drop(&mut self) {
        self.attempts.set(0);
        // what another server has isn't closed
        self.let_go(if self.stage.get() == PASSED_ON { PASSED_ON } else { CLOSING });
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
