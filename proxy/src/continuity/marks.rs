//! What others than its journal note of a connection.

use super::table::{FORWARDED, Head, IN_PROGRESS, Table};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};

/// Says that a request is about to leave for an origin. Travels in the request's extensions; may be used from any thread.
#[derive(Debug, Clone)]
pub struct ForwardMark {
    table: Arc<Table>,
    fd: RawFd,
}

impl ForwardMark {
    pub(super) fn new(table: Arc<Table>, fd: RawFd) -> ForwardMark {
        ForwardMark { table, fd }
    }

    /// To be called before the first byte goes: doubt must fall on the side of not repeating.
    pub fn set(&self) {
        if let Some(slot) = self.table.slot(self.fd) {
            // the connection may be over, and its number another's
            let is_ours = |word| Head::unpack(word).stage == IN_PROGRESS;
            let _ = slot[0].fetch_update(Release, Relaxed, |word| is_ours(word).then_some(word | FORWARDED));
        }
    }
}

/// The end of a connection, after that of its journal: what the number is from here on is not noted.
#[derive(Debug)]
pub(crate) struct Closed {
    table: Arc<Table>,
    fd: RawFd,
}

impl Closed {
    pub(super) fn new(table: Arc<Table>, fd: RawFd) -> Closed {
        Closed { table, fd }
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.table.free(self.fd);
    }
}
