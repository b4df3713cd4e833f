//! The mapping: the only unsafe code of the table.

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64};

/// A shared mapping of a whole file, for the life of the value.
#[derive(Debug)]
pub struct Map {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is only reached through atomics (`words`, `bytes`), whichever thread or process does it.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// Maps the first `len` bytes of a file that is at least that long and sealed against shrinking.
    ///
    /// # Errors
    /// mmap(2) refuses.
    pub fn new(fd: impl AsFd, len: usize) -> io::Result<Map> {
        // SAFETY: a fresh mapping at an address the kernel chooses overlaps nothing of ours.
        let start = unsafe {
            mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, 0)
        }?;
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap gave no address"))?;
        Ok(Map { start, len })
    }

    /// `n` words from `offset` (a multiple of 8) on; `None` if they aren't all inside.
    pub fn words(&self, offset: usize, n: usize) -> Option<&[AtomicU64]> {
        if !offset.is_multiple_of(8) || offset.checked_add(n.checked_mul(8)?)? > self.len {
            return None;
        }
        // SAFETY: in bounds and aligned (mmap's start is a page's), mapped as long as `self` lives, and AtomicU64 allows
        // others to change it at any time.
        Some(unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(offset).cast::<AtomicU64>(), n) })
    }

    /// `n` bytes from `offset` on; `None` if they aren't all inside.
    pub fn bytes(&self, offset: usize, n: usize) -> Option<&[AtomicU8]> {
        if offset.checked_add(n)? > self.len {
            return None;
        }
        // SAFETY: as in `words`; bytes need no alignment.
        Some(unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(offset).cast::<AtomicU8>(), n) })
    }

    /// Bytes to be filled by a system call; none if they aren't all inside.
    ///
    /// # Safety
    /// The caller owns the buffer they belong to: nobody else in this process reads or writes it meanwhile.
    #[allow(clippy::mut_from_ref, reason = "shared memory, handed out by buffer; see Safety")]
    pub unsafe fn room(&self, offset: usize, n: usize) -> &mut [MaybeUninit<u8>] {
        if offset.checked_add(n).is_none_or(|end| end > self.len) {
            return &mut [];
        }
        // SAFETY: in bounds, mapped as long as `self` lives, any byte is a valid MaybeUninit, and exclusive by contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(offset).cast(), n) }
    }

    /// Bytes of a buffer; none if they aren't all inside.
    ///
    /// # Safety
    /// The caller owns the buffer they belong to: nobody writes to it while the slice lives.
    pub unsafe fn slice(&self, offset: usize, n: usize) -> &[u8] {
        if offset.checked_add(n).is_none_or(|end| end > self.len) {
            return &[];
        }
        // SAFETY: in bounds, mapped as long as `self` lives, always initialised, and unchanged by contract.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(offset), n) }
    }

    /// Copies bytes in; what doesn't fit inside is left out. Nobody else writes to these bytes: each buffer has one owner.
    pub fn put(&self, offset: usize, from: &[u8]) {
        let Some(to) = self.bytes(offset, from.len()) else { return };
        // SAFETY: `to` is as long as `from`, they don't overlap (`from` is ordinary memory), and the buffer's owner is
        // the only one who writes to or reads from these bytes while this process lives.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr().cast_mut().cast(), from.len()) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no borrow of it outlives `self`.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}
