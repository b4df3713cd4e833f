//! The roll: threads of a process that have signed it, for another process that is to know at once when all of them are dead.
//!
//! Linux says that a process has ended (SIGCHLD, its pidfd, the ends of its sockets) when it has freed the process's memory,
//! and that takes some 0.1 s for each GiB. What it does earlier, for each thread that dies and whatever of, is to let go of
//! its robust futexes (set_robust_list(2), and `robust-futexes` in the kernel's documentation): the word is marked as that of
//! a dead owner, and who waits on it is woken. By then the thread executes nothing any more, and is in no system call.
//!
//! So each thread whose hands must be still before somebody goes on in its place has a word in shared memory, which it
//! holds for as long as it lives.

use nix::libc::{SYS_get_robust_list, SYS_set_robust_list, c_long, syscall};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use rustix::thread::futex::{self, Flags, OWNER_DIED, Timespec, WAITERS};
use rustix::thread::gettid;
use std::cell::UnsafeCell;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

/// How many threads may sign. Each has 64 bytes of memory that is touched only if it does.
const THREADS: usize = 2047;
/// Nobody has signed there, or is just about to.
const NOBODY: u32 = 0;
/// The thread is no longer one of those who count. No thread has this number.
const LEFT: u32 = 0x3fff_ffff;
/// Should the kernel fail to mark a word (it reads the list in the dying process's memory), the wait ends this long after the
/// process at the latest.
const AT_THE_LATEST: Timespec = Timespec { tv_sec: 4, tv_nsec: 0 };

/// Who has signed. Shared with all processes that were forked since it was made; it is never unmapped.
///
/// The first cell's word counts who has signed, each of the others is one thread's.
#[derive(Debug, Clone, Copy)]
pub struct Roll(&'static [Cell]);

/// One thread's, with the list on which the kernel finds it. That too is in shared memory: private memory may be gone by then,
/// since the kernel takes it from a process that dies for want of memory before it looks at the lists.
#[derive(Debug)]
#[repr(C, align(64))]
struct Cell {
    word: AtomicU32,
    ring: UnsafeCell<Ring>,
}

// SAFETY: the ring is written by one thread, the one that has got the cell's number, and read by the kernel.
unsafe impl Sync for Cell {}

/// What became of those who have signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// All are dead, or have left before.
    Dead,
    /// It can't be told by the roll: nobody has signed, the first one has left, somebody was just signing, too many have,
    /// or the kernel doesn't let us wait.
    Unknown,
}

impl Roll {
    /// An empty one.
    ///
    /// # Errors
    /// mmap(2) refuses.
    pub fn new() -> io::Result<Roll> {
        let (bytes, prot) = ((1 + THREADS) * size_of::<Cell>(), ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a fresh mapping at an address the kernel chooses overlaps nothing of ours.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, prot, MapFlags::SHARED) }?;
        // SAFETY: aligned to a page, as long as said, never unmapped; all zeroes is a valid Cell.
        Ok(Roll(unsafe { std::slice::from_raw_parts(start.cast(), 1 + THREADS) }))
    }

    fn signed(&self) -> &AtomicU32 {
        &self.0[0].word
    }

    /// Has the calling thread sign. The first one to do so must be one that ends with the process, and not before.
    ///
    /// # Errors
    /// More than 2,047 have, or the kernel takes no list of robust futexes. Nobody can be told of this thread's death then, nor
    /// of the others'.
    pub fn sign(&self) -> io::Result<Signature> {
        let number = 1 + self.signed().fetch_add(1, Ordering::AcqRel) as usize;
        let Some(cell) = self.0.get(number) else {
            return Err(io::Error::other(format!("more than {THREADS} threads have signed")));
        };
        // the list first: a word that says that somebody lives, and is on nobody's list, would say so for ever
        let before = cell.put_on_list()?;
        cell.word.store(gettid().as_raw_nonzero().get() as u32 | WAITERS, Ordering::Release);
        Ok(Signature { cell, before })
    }

    /// Blocks until all who have signed are dead. To be called by one process at a time, which isn't theirs: the kernel wakes
    /// only one. `is_alive`: is their process known to the kernel as one that hasn't ended?
    pub fn wait(&self, is_alive: impl Fn() -> bool) -> Fate {
        let mut number = 1;
        // the first is there before there is anybody to wait; when it is dead, the others are, or are about to be
        while number == 1 || number <= self.signed().load(Ordering::Acquire) as usize {
            let Some(Cell { word, .. }) = self.0.get(number) else { return Fate::Unknown };
            match word.load(Ordering::Acquire) {
                NOBODY => return Fate::Unknown,
                LEFT if number == 1 => return Fate::Unknown,
                LEFT => number += 1,
                dead if dead & OWNER_DIED != 0 => number += 1,
                lives => match futex::wait(word, Flags::empty(), lives, Some(&AT_THE_LATEST)) {
                    Err(Errno::TIMEDOUT) if !is_alive() => return Fate::Dead,
                    // woken, changed meanwhile, interrupted, or it was only time to ask: looked at again
                    Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => {}
                    // a sandbox
                    Err(_) => return Fate::Unknown,
                },
            }
        }
        Fate::Dead
    }
}

/// A thread's name on the roll. Dropped, by the same thread, it says that the thread's death is of no interest any more.
#[derive(Debug)]
pub struct Signature {
    cell: &'static Cell,
    /// The list that the thread had before: the C library's, for robust mutexes, which nobody here uses. A raw pointer, so a
    /// signature stays in its thread.
    before: *const Head,
}

impl Drop for Signature {
    fn drop(&mut self) {
        self.cell.word.store(LEFT, Ordering::Release);
        let _ = futex::wake(&self.cell.word, Flags::empty(), 1);
        // SAFETY: it is what the kernel has said, and a thread's own list lives as long as the thread, which is this one.
        unsafe { syscall(SYS_set_robust_list, self.before, size_of::<Head>()) };
    }
}

/// The kernel's `struct robust_list`: a link in a ring.
#[derive(Debug)]
#[repr(C)]
struct Link {
    next: *const Link,
}

/// The kernel's `struct robust_list_head`.
#[derive(Debug)]
#[repr(C)]
struct Head {
    first: Link,
    /// From a link to its futex word, in bytes.
    offset: c_long,
    pending: *const Link,
}

/// A ring of one.
#[derive(Debug)]
#[repr(C)]
struct Ring {
    head: Head,
    only: Link,
}

impl Cell {
    /// Makes the ring of this cell the calling thread's list. Returns the list that it had before.
    fn put_on_list(&'static self) -> io::Result<*const Head> {
        let (mut before, mut len) = (std::ptr::null::<Head>(), 0_usize);
        // SAFETY: 0 is the calling thread; both results are written into variables of the types that the kernel writes.
        if unsafe { syscall(SYS_get_robust_list, 0, &raw mut before, &raw mut len) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let ring = self.ring.get();
        // SAFETY: the cell is this thread's alone since it got its number, and the kernel doesn't know it yet.
        unsafe {
            let only = &raw const (*ring).only;
            (*ring).head.first.next = only;
            (*ring).head.pending = std::ptr::null();
            (*ring).head.offset = (self.word.as_ptr() as isize).wrapping_sub(only as isize) as c_long;
            (*ring).only.next = &raw const (*ring).head.first;
        }
        // SAFETY: the ring is never unmapped, and nobody writes to it any more.
        match unsafe { syscall(SYS_set_robust_list, ring, size_of::<Head>()) } {
            0 => Ok(before),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    /// What the roll says, once it says it.
    fn told(roll: Roll) -> std::sync::mpsc::Receiver<Fate> {
        let (to, from) = channel();
        std::thread::spawn(move || to.send(roll.wait(|| true)));
        from
    }

    /// Has a thread sign, do what it is told, and end: with its signature given back, or not.
    fn thread(roll: Roll, leaves: bool) -> (std::sync::mpsc::Sender<()>, std::thread::JoinHandle<()>) {
        let (go, end) = channel::<()>();
        let (to, signed) = channel();
        let join = std::thread::spawn(move || {
            let signature = roll.sign().unwrap();
            to.send(()).unwrap();
            let _ = end.recv();
            match leaves {
                true => drop(signature),
                false => std::mem::forget(signature),
            }
        });
        signed.recv().unwrap();
        (go, join)
    }

    #[test]
    fn the_last_of_all_deaths_is_told() {
        let roll = Roll::new().unwrap();
        let threads: Vec<_> = (0..3).map(|_| thread(roll, false)).collect();
        let fate = told(roll);
        let mut threads = threads.into_iter();
        for (go, join) in threads.by_ref().take(2) {
            drop(go);
            join.join().unwrap();
            assert!(fate.try_recv().is_err(), "one of them lives");
        }
        let (go, join) = threads.next().unwrap();
        drop(go);
        assert_eq!(fate.recv().unwrap(), Fate::Dead);
        join.join().unwrap();
    }

    #[test]
    fn who_has_left_is_not_waited_for() {
        let roll = Roll::new().unwrap();
        let first = thread(roll, false);
        let second = thread(roll, true);
        let third = thread(roll, false);
        let fate = told(roll);
        for (go, join) in [third, second, first] {
            assert!(fate.try_recv().is_err());
            drop(go);
            join.join().unwrap();
        }
        assert_eq!(fate.recv().unwrap(), Fate::Dead);
    }

    #[test]
    fn what_can_not_be_known_is_not_said() {
        let roll = Roll::new().unwrap();
        assert_eq!(roll.wait(|| true), Fate::Unknown, "nobody has signed");
        // the first has left: what becomes of the process is not known
        let (go, join) = thread(roll, true);
        let fate = told(roll);
        drop(go);
        join.join().unwrap();
        assert_eq!(fate.recv().unwrap(), Fate::Unknown);
        // one was about to sign
        let roll = Roll::new().unwrap();
        let (go, join) = thread(roll, false);
        roll.signed().fetch_add(1, Ordering::AcqRel);
        drop(go);
        join.join().unwrap();
        assert_eq!(roll.wait(|| true), Fate::Unknown);
        // more than there is room for
        let roll = Roll::new().unwrap();
        let (go, join) = thread(roll, false);
        roll.signed().store(THREADS as u32, Ordering::Release);
        assert!(roll.sign().is_err());
        roll.0.iter().skip(2).for_each(|c| c.word.store(LEFT, Ordering::Release));
        drop(go);
        join.join().unwrap();
        assert_eq!(roll.wait(|| true), Fate::Unknown);
    }

    #[test]
    fn a_word_that_was_never_marked_holds_up_nobody_for_good() {
        let roll = Roll::new().unwrap();
        let (go, join) = thread(roll, false);
        roll.0[1].word.store(WAITERS | 1, Ordering::Release);
        drop(go);
        join.join().unwrap();
        assert_eq!(roll.wait(|| false), Fate::Dead);
    }

    #[test]
    fn a_thread_has_its_own_list_again_when_it_has_left() {
        let list = || {
            let (mut head, mut len) = (std::ptr::null::<Head>(), 0_usize);
            // SAFETY: as in `put_on_list`.
            unsafe { syscall(SYS_get_robust_list, 0, &raw mut head, &raw mut len) };
            head as usize
        };
        let roll = Roll::new().unwrap();
        let before = list();
        let signature = roll.sign().unwrap();
        assert_ne!(list(), before);
        drop(signature);
        assert_eq!(list(), before);
    }
}
