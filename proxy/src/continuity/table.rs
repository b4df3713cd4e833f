//! The connection table: a sealed memfd with a record for each fd number, and buffers for the bytes of requests.
//!
//! ```text
//! header (64 bytes)   magic, slots, buffers, fd of the server's lock, 1 when it has ended in order, the server that serves what
//!                     this one has left, when it began to serve (nanoseconds of the monotonic clock)
//! slots  (64 bytes each, one a cache line, by fd number)
//!   word 0   stage 4 | flags 5 | attempts 3 | buffer + 1 (20) | start of the request in the buffer 32
//!   word 1   bytes written before this answer
//!   word 2   bytes of the answer's head 32 | bytes of the request 32
//!   word 3   bytes of the answer's body, all ones if unknown
//!   word 4   validator of the answer, 0 if it can't be told to be the same when it is made again
//! buffers (16 KiB each)
//!   word 0   bytes that had been read from the socket before the first one here
//!   word 1   bytes here
//! ```
//!
//! Word 0 is what makes a change: everything it refers to is in place before it is stored. A reader believes nothing: what is
//! impossible ([`Table::read`]) is an error of that one connection.

use super::heads::is_http_10;
use super::map::Map;
use policy::handover::{Record, Stage};
use rustix::fs::{MemfdFlags, SealFlags};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

const MAGIC: u64 = 0x7472_6166_7461_0002;
const HEADER: usize = 64;
const SLOT: usize = 64;
/// Size of a buffer with its two words.
const BUFFER: usize = 16 << 10;
/// Bytes of requests that a buffer keeps.
pub const BUFFER_DATA: usize = BUFFER - 16;

/// Stages as stored.
pub(super) const FREE: u64 = 0;
pub(super) const IDLE: u64 = 1;
pub(super) const IN_PROGRESS: u64 = 2;
pub(super) const RESPONDING: u64 = 3;
pub(super) const UNTRACKED: u64 = 4;
pub(super) const CLOSING: u64 = 5;
pub(super) const PASSED_ON: u64 = 6;

/// Flags as stored, in place.
pub(super) const SAFE: u64 = 1 << 56;
pub(super) const FORWARDED: u64 = 1 << 57;
pub(super) const OVERFLOW: u64 = 1 << 58;
/// In the midst of a read, where the kernel doesn't count what was read.
pub(super) const READING: u64 = 1 << 55;
/// The connection ends with this answer.
pub(super) const LAST: u64 = 1 << 59;

/// How many of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Fd numbers.
    pub slots: usize,
    /// Requests in progress at a time whose bytes are kept.
    pub buffers: usize,
}

/// The table.
#[derive(Debug)]
pub struct Table {
    fd: OwnedFd,
    map: Map,
    size: Size,
}

/// A record as found, with the bytes that were kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// For `policy::handover`.
    pub record: Record,
    /// Bytes read before the first kept one.
    pub before: u64,
    /// The kept bytes of the current request, and room for those the record doesn't know of.
    pub start: usize,
    /// Bytes in the buffer.
    pub kept: usize,
    /// Bytes of the current request in the buffer; 0 if not known.
    pub request_len: usize,
    /// Validator of the answer.
    pub validator: u64,
    /// The connection ends with the answer.
    pub last: bool,
    buffer: Option<usize>,
}

/// Word 0, taken apart.
pub(super) struct Head {
    pub stage: u64,
    pub attempts: u64,
    pub buffer: Option<usize>,
    pub start: usize,
}

impl Head {
    pub(super) fn pack(&self, flags: u64) -> u64 {
        let buffer = self.buffer.map_or(0, |b| b as u64 + 1);
        self.stage << 60 | flags | (self.attempts & 7) << 52 | (buffer & 0xf_ffff) << 32 | self.start as u64
    }

    pub(super) fn unpack(word: u64) -> Head {
        Head {
            stage: word >> 60,
            attempts: word >> 52 & 7,
            buffer: (word >> 32 & 0xf_ffff).checked_sub(1).map(|b| b as usize),
            start: (word & 0xffff_ffff) as usize,
        }
    }
}

impl Table {
    /// A new, empty table.
    ///
    /// # Errors
    /// memfd_create(2), ftruncate(2), the seals or mmap(2) fail; the size is beyond what a record can name.
    pub fn create(size: Size) -> io::Result<Table> {
        if size.buffers >= 0xf_ffff || size.slots > 1 << 24 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too large a connection table"));
        }
        let fd =
            rustix::fs::memfd_create("traffic-connections", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let len = length(size);
        rustix::fs::ftruncate(&fd, len as u64)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let table = Table { map: Map::new(&fd, len)?, fd, size };
        let header = table.header();
        header[1].store(size.slots as u64, Ordering::Relaxed);
        header[2].store(size.buffers as u64, Ordering::Relaxed);
        header[3].store(u64::MAX, Ordering::Relaxed);
        header[0].store(MAGIC, Ordering::Release);
        Ok(table)
    }

    /// One that somebody else made. Nothing in it is believed but its length.
    ///
    /// # Errors
    /// It isn't a table: no memfd with our seals, a wrong header, or a wrong length.
    pub fn open(fd: OwnedFd) -> io::Result<Table> {
        let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("connection table: {why}"));
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(|_| bad("no memfd"))?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(bad("not sealed"));
        }
        let len = rustix::fs::fstat(&fd)?.st_size as usize;
        if len < HEADER {
            return Err(bad("too short"));
        }
        let map = Map::new(&fd, len)?;
        let header = map.words(0, 8).ok_or_else(|| bad("too short"))?;
        let word = |n: usize| header[n].load(Ordering::Acquire);
        let (slots, buffers) = (word(1), word(2));
        if word(0) != MAGIC || slots > 1 << 24 || buffers >= 0xf_ffff {
            return Err(bad("wrong header"));
        }
        let size = Size { slots: slots as usize, buffers: buffers as usize };
        if length(size) != len {
            return Err(bad("wrong length"));
        }
        Ok(Table { fd, map, size })
    }

    /// Its size.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Is it a manager's, which serves nobody: what that has are connections that wait?
    pub fn is_of_a_queue(&self) -> bool {
        self.size.slots == 0
    }

    /// Notes the fd of the server's lock: whoever keeps the fds of a dead server closes that one first.
    pub fn set_lock_fd(&self, fd: RawFd) {
        self.header()[3].store(fd as u64, Ordering::Release);
    }

    /// Notes that the server ends in order now, and leaves what it hasn't finished.
    pub fn ends_in_order(&self) {
        self.header()[4].store(1, Ordering::Release);
    }

    /// Notes that this server serves what the one of this table has left: what is noted here isn't true any more.
    pub fn set_taken_by(&self, server: i32) {
        self.header()[5].store(u64::from(server.unsigned_abs()), Ordering::Release);
    }

    /// The server that serves what the one of this table has left.
    pub fn taken_by(&self) -> Option<i32> {
        i32::try_from(self.header()[5].load(Ordering::Acquire)).ok().filter(|pid| *pid != 0)
    }

    /// Notes that its server begins to serve now.
    pub fn begin(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now = now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs();
        self.header()[6].store(now, Ordering::Release);
    }

    /// When its server began to serve: one began before the one that came after it. 0 if that was never noted.
    pub fn began_at(&self) -> u64 {
        self.header()[6].load(Ordering::Acquire)
    }

    /// Is anything noted of this fd?
    pub fn has_noted(&self, fd: RawFd) -> bool {
        self.stage(fd) != FREE
    }

    /// Does nothing but the end of the connection say where the answer in progress ends? To HTTP/1.0 there are no chunks.
    pub fn is_ended_by_its_end(&self, fd: RawFd) -> bool {
        let Some(Ok(found)) = self.read(fd) else { return false };
        found.record.body_len.is_none() && is_http_10(&self.bytes(&found, 0).unwrap_or_default())
    }

    /// The fd of the server's lock.
    pub fn lock_fd(&self) -> Option<RawFd> {
        RawFd::try_from(self.header()[3].load(Ordering::Acquire)).ok()
    }

    /// What is noted of a fd: `None` if there is no connection.
    ///
    /// # Errors
    /// The record is impossible.
    pub fn read(&self, fd: RawFd) -> Option<Result<Found, &'static str>> {
        let words = self.slot(fd)?;
        let word = words[0].load(Ordering::Acquire);
        let head = Head::unpack(word);
        let stage = match head.stage {
            // see `Table::is_closing`
            FREE | CLOSING => return None,
            IDLE => Stage::Idle,
            IN_PROGRESS => Stage::InProgress,
            RESPONDING => Stage::Responding,
            UNTRACKED => Stage::Untracked,
            PASSED_ON => Stage::PassedOn,
            _ => return Some(Err("an unknown stage")),
        };
        let (mut before, mut kept) = (0, 0);
        if let Some(b) = head.buffer {
            let Some(w) = self.buffer_words(b) else { return Some(Err("a buffer that doesn't exist")) };
            (before, kept) = (w[0].load(Ordering::Acquire), w[1].load(Ordering::Acquire));
            if kept > BUFFER_DATA as u64 {
                return Some(Err("more bytes than a buffer holds"));
            }
        }
        let kept = kept as usize;
        if head.start > kept {
            return Some(Err("a request that begins behind its bytes"));
        }
        if head.buffer.is_none() && matches!(stage, Stage::InProgress) && word & OVERFLOW == 0 {
            return Some(Err("a request without bytes"));
        }
        let (lens, body) = (words[2].load(Ordering::Acquire), words[3].load(Ordering::Acquire));
        let request_len = (lens & 0xffff_ffff) as usize;
        let validator = words[4].load(Ordering::Acquire);
        Some(Ok(Found {
            record: Record {
                stage,
                safe: word & SAFE != 0,
                forwarded: word & FORWARDED != 0,
                overflow: word & OVERFLOW != 0,
                reading: word & READING != 0,
                attempts: head.attempts as u8,
                in_order: self.header()[4].load(Ordering::Acquire) == 1,
                bytes_in: head.buffer.and_then(|_| before.checked_add(kept as u64)),
                out_base: words[1].load(Ordering::Acquire),
                head_len: (lens >> 32) as u32,
                body_len: (body != u64::MAX).then_some(body),
                has_validator: validator != 0,
            },
            before,
            start: head.start,
            kept,
            request_len,
            validator,
            last: word & LAST != 0,
            buffer: head.buffer,
        }))
    }

    /// The bytes of a found connection from its current request on, with those the record didn't know of.
    ///
    /// # Errors
    /// There can't be that many.
    pub fn bytes(&self, found: &Found, unrecorded: u64) -> Result<Vec<u8>, &'static str> {
        let end = found.kept as u64 + unrecorded;
        let Some(b) = found.buffer else { return Ok(Vec::new()) };
        if end > BUFFER_DATA as u64 {
            return Err("more bytes than a buffer holds");
        }
        let offset = self.data_offset(b) + found.start;
        let bytes =
            self.map.bytes(offset, end as usize - found.start).ok_or("a buffer that doesn't exist")?;
        Ok(bytes.iter().map(|b| b.load(Ordering::Relaxed)).collect())
    }

    /// Fd numbers with a record.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> + '_ {
        (0..self.size.slots as RawFd).filter(|fd| self.stage(*fd) != FREE)
    }

    /// Is this fd a connection that is served? One that was about to be closed, or is another server's, isn't: its number may be
    /// anything's by now.
    pub fn serves(&self, fd: RawFd) -> bool {
        ![FREE, CLOSING, PASSED_ON].contains(&self.stage(fd))
    }

    /// Was its server about to close it? What came in between, or still will, is nobody's request.
    pub fn is_closing(&self, fd: RawFd) -> bool {
        self.stage(fd) == CLOSING
    }

    /// The socket has been closed; unless another one has its number already.
    pub(super) fn free(&self, fd: RawFd) {
        let Some(slot) = self.slot(fd) else { return };
        let is_over = |word| [CLOSING, PASSED_ON].contains(&Head::unpack(word).stage);
        let _ =
            slot[0].fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| is_over(word).then_some(FREE));
    }

    fn stage(&self, fd: RawFd) -> u64 {
        self.slot(fd).map_or(FREE, |w| Head::unpack(w[0].load(Ordering::Acquire)).stage)
    }

    fn header(&self) -> &[AtomicU64] {
        self.map.words(0, 8).expect("checked when mapped")
    }

    pub(super) fn slot(&self, fd: RawFd) -> Option<&[AtomicU64]> {
        let fd = usize::try_from(fd).ok().filter(|fd| *fd < self.size.slots)?;
        self.map.words(HEADER + fd * SLOT, SLOT / 8)
    }

    fn buffer_offset(&self, n: usize) -> usize {
        buffers_at(self.size.slots) + n * BUFFER
    }

    fn data_offset(&self, n: usize) -> usize {
        self.buffer_offset(n) + 16
    }

    pub(super) fn buffer_words(&self, n: usize) -> Option<&[AtomicU64]> {
        if n >= self.size.buffers {
            return None;
        }
        self.map.words(self.buffer_offset(n), 2)
    }

    /// Puts bytes into a buffer of the caller's, at `at`.
    pub(super) fn put(&self, buffer: usize, at: usize, bytes: &[u8]) {
        debug_assert!(at + bytes.len() <= BUFFER_DATA);
        self.map.put(self.data_offset(buffer) + at, bytes);
    }

    /// Wipes the first bytes of a buffer of the caller's.
    pub(super) fn wipe(&self, buffer: usize, used: usize) {
        self.fill(buffer, 0, used, |room| room.fill(MaybeUninit::new(0)));
    }

    /// Hands the free end of a buffer of the caller's to `read`, which puts bytes there; what it returns
    /// is returned.
    #[allow(unsafe_code)]
    pub(super) fn fill<R>(
        &self,
        buffer: usize,
        at: usize,
        limit: usize,
        read: impl FnOnce(&mut [MaybeUninit<u8>]) -> R,
    ) -> R {
        let room = BUFFER_DATA.saturating_sub(at).min(limit);
        // SAFETY: a buffer has one owner, the journal it was taken by, and that one calls this on its own thread.
        read(unsafe { self.map.room(self.data_offset(buffer) + at, room) })
    }

    /// Copies kept bytes of a buffer of the caller's to the beginning of `to`, and says how many.
    pub(super) fn copy(&self, buffer: usize, from: usize, to: &mut [MaybeUninit<u8>]) -> usize {
        let bytes = self.own(buffer, from, from + to.len());
        for (to, byte) in to.iter_mut().zip(bytes) {
            to.write(*byte);
        }
        bytes.len()
    }

    /// Kept bytes of a buffer of the caller's.
    #[allow(unsafe_code)]
    pub(super) fn own(&self, buffer: usize, from: usize, to: usize) -> &[u8] {
        // SAFETY: a buffer has one owner, the journal it was taken by, which is not written to while it is borrowed here.
        unsafe { self.map.slice(self.data_offset(buffer) + from, to - from) }
    }
}

impl AsFd for Table {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn buffers_at(slots: usize) -> usize {
    // on a page's edge, so that an unused buffer costs nothing
    (HEADER + slots * SLOT).next_multiple_of(4096)
}

fn length(size: Size) -> usize {
    buffers_at(size.slots) + size.buffers * BUFFER
}
