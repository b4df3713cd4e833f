//! Memory shared with another process, as 64-bit words: one side writes, the others only read.

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

struct Mapping {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping is plain shared memory that stays where it is until `drop`, and is accessed atomically only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// The file must be sealed against shrinking, so that no access can fault later.
    fn new(fd: BorrowedFd<'_>, words: usize, prot: ProtFlags) -> io::Result<Self> {
        let bytes = words * size_of::<AtomicU64>();
        if !fcntl_get_seals(fd)?.contains(SealFlags::SHRINK) {
            return Err(io::Error::other("a shared page must be sealed against shrinking"));
        }
        if words == 0 || fstat(fd)?.st_size < bytes as i64 {
            return Err(io::Error::other("a shared page is smaller than it has to be"));
        }
        // SAFETY: a new mapping at an address of the kernel's choice, over no memory of ours; its length is not 0.
        let start = unsafe { mmap(std::ptr::null_mut(), bytes, prot, MapFlags::SHARED, fd, 0)? };
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(Mapping { start, words })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: `start` is page-aligned and maps `words` words, for as long as `self` lives; the file cannot shrink.
        // Whatever the bits are, they are valid for an AtomicU64.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped, and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.words * size_of::<AtomicU64>()) };
    }
}

/// The writer's view.
pub(crate) struct WritablePage(Mapping);

impl WritablePage {
    pub(crate) fn map(fd: BorrowedFd<'_>, words: usize) -> io::Result<Self> {
        Mapping::new(fd, words, ProtFlags::READ | ProtFlags::WRITE).map(WritablePage)
    }

    pub(crate) fn words(&self) -> &[AtomicU64] {
        self.0.words()
    }
}
