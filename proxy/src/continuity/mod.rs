//! What a server leaves behind, so that the next one can go on with its connections when it is killed.
//!
//! Each connection has a record in a [`table::Table`] of shared memory, by fd number, and the bytes of its unanswered
//! requests in a buffer there. A connection's [`journal::Journal`] is the only writer of its record. Every change is made
//! whole by one store, so a kill between any two instructions leaves a record that is true; what a system call did just
//! before its record could say so, the kernel is asked for (`policy::handover`).
//!
//! Read in this order: [`table`] (the memory), [`journal`] (who writes), [`resume`] (who reads), [`retire`] (the orderly way).

mod buffers;
mod heads;
pub mod journal;
#[allow(unsafe_code)]
mod map;
mod marks;
pub mod resume;
pub mod retire;
pub mod table;

use self::buffers::Buffers;
use self::journal::Journal;
use policy::handover::{Facts, Reason};
use std::collections::HashMap;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

pub(crate) use marks::Closed;
pub use marks::ForwardMark;
pub use resume::{Resume, What};
use retire::Retirement;
pub use table::{Size, Table};

/// A server's own table, and the connections it has taken over and not begun to serve.
#[derive(Debug)]
pub struct Continuity {
    table: Arc<Table>,
    buffers: Arc<Buffers>,
    waiting: Mutex<HashMap<RawFd, (Journal, Resume)>>,
    left: AtomicUsize,
    retirement: Retirement,
}

impl Continuity {
    /// With a table of its own.
    ///
    /// # Errors
    /// See [`Table::create`].
    pub fn new(size: Size) -> io::Result<Continuity> {
        Ok(Continuity {
            table: Arc::new(Table::create(size)?),
            buffers: Arc::new(Buffers::new(size.buffers)),
            waiting: Mutex::default(),
            left: AtomicUsize::new(0),
            retirement: Retirement::default(),
        })
    }

    /// The table.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Takes over the connection that had the number `old` in the server that left `table`, and has `fd` here. From here
    /// on it is in our own table. `None`: that server hadn't noted it, so it is a new one.
    ///
    /// # Errors
    /// It can't go on.
    pub fn inherit(
        &self,
        table: &Table,
        old: RawFd,
        fd: RawFd,
        kernel: &Facts,
    ) -> Option<Result<What, Reason>> {
        let slots = table.size().slots;
        if !table.is_of_a_queue() && usize::try_from(old).is_ok_and(|old| old >= slots) {
            return Some(Err(Reason::Untracked));
        }
        let was_used = |n: Option<u64>| n != Some(0);
        if table.is_closing(old) && (was_used(kernel.bytes_in) || was_used(kernel.bytes_out)) {
            return Some(Err(Reason::Closed));
        }
        let resume = match resume::resume(table, old, kernel) {
            Some(Ok(resume)) => resume,
            Some(Err(reason)) => return Some(Err(reason)),
            None => {
                // it may have come from another server that had noted it: what the kernel has counted counts
                let (bytes_in, bytes_out) = (kernel.bytes_in.unwrap_or(0), kernel.bytes_out.unwrap_or(0));
                if !kernel.closed {
                    self.resume(fd, Resume { bytes_in, bytes_out, ..Resume::default() });
                }
                return None;
            }
        };
        let what = resume.what;
        if let What::BadGateway { suspect: true } = what {
            log::error!(
                "event=suspect request={:?} : it was in progress in {} crashes, and isn't tried again",
                resume.head(),
                policy::handover::MAX_ATTEMPTS
            );
        }
        self.resume(fd, resume);
        Some(Ok(what))
    }

    /// Has the connection `fd` go on like this when it is served. From here on it is in our table.
    pub fn resume(&self, fd: RawFd, resume: Resume) {
        let journal = Journal::resumed(&self.table, &self.buffers, fd, &resume);
        self.waiting.lock().expect("never poisoned").insert(fd, (journal, resume));
        self.left.fetch_add(1, Ordering::Release);
    }

    /// Whether and how this server gives its connections up.
    pub fn retirement(&self) -> &Retirement {
        &self.retirement
    }

    /// The journal for a connection that is about to be served, and how it goes on if it was taken over.
    pub fn begin(&self, fd: RawFd) -> (Journal, Option<Resume>) {
        if self.left.load(Ordering::Acquire) > 0
            && let Some((journal, resume)) = self.waiting.lock().expect("never poisoned").remove(&fd)
        {
            self.left.fetch_sub(1, Ordering::AcqRel);
            return (journal, Some(resume));
        }
        (Journal::new(&self.table, &self.buffers, fd, 0, 0), None)
    }
}
