//! What we shall leave: a table of our connections, and a keeper that holds them open when we are killed.
//!
//! The manager has one too, for the connections in its queue.

use crate::suite::estate_name;
use proxy::continuity::{Size, Table};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use supervisor::fd_pass;
use supervisor::keeper::{self, Keeper, Shared};
use supervisor::notify::Notifier;
use supervisor::roll::{Roll, Signature};

/// Connections with a larger fd number aren't noted.
const MAX_SLOTS: u64 = 1 << 18;
/// Requests in progress whose bytes are kept; 16 KiB of address space each, memory only where used.
const MAX_BUFFERS: usize = 16 << 10;

/// How large a server's table is: as many connections as it may have fds.
pub fn table_size() -> Size {
    use nix::sys::resource::{Resource, getrlimit};
    let fds = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft.min(MAX_SLOTS)) as usize;
    Size { slots: fds, buffers: fds.min(MAX_BUFFERS) }
}

/// A table with its keeper. The keeper is missing where the kernel or a sandbox refuses it: then a kill costs the
/// connections, and nothing else.
pub struct Legacy {
    table: Arc<Table>,
    /// With the end by which it is asked. That stays open here, and the keeper closes it first thing.
    keeper: Option<(Keeper, OwnedFd)>,
    /// Whose deaths the keeper waits for.
    roll: Option<Roll>,
}

/// What the keeper sees of us.
struct InMemory {
    table: Arc<Table>,
    roll: Option<Roll>,
}

impl Shared for InMemory {
    fn lock_fd(&self) -> Option<RawFd> {
        self.table.lock_fd()
    }

    fn roll(&self) -> Option<Roll> {
        self.roll
    }

    fn has(&self, fd: RawFd) -> bool {
        self.table.serves(fd)
    }
}

impl Legacy {
    /// Makes the keeper; to be called with one thread. `listeners`: whose connections are kept; `first`: what else is closed
    /// first thing, see [`keeper::make`]; `roll`: whose deaths the keeper waits for, if not for the whole process.
    pub fn new(
        table: Arc<Table>,
        listeners: &[BorrowedFd<'_>],
        first: &[BorrowedFd<'_>],
        roll: Option<Roll>,
    ) -> Legacy {
        let made = fd_pass::pair().and_then(|(ours, theirs)| {
            let shared = InMemory { table: table.clone(), roll };
            let first: Vec<_> = first.iter().copied().chain([theirs.as_fd()]).collect();
            Ok((keeper::make(ours, listeners, &first, &shared)?, theirs))
        });
        let keeper: io::Result<_> = made;
        let keeper = keeper
            .inspect_err(|e| {
                log::warn!("event=continuity-off: no keeper: {e}; a kill will cost the open connections");
            })
            .ok();
        Legacy { table, keeper, roll }
    }

    /// To be signed by each thread that has to do with connections.
    pub fn roll(&self) -> Option<Roll> {
        self.roll
    }

    /// The keeper is to let go of this lock when we are dead.
    pub fn note_lock(&self, lock: RawFd) {
        self.table.set_lock_fd(lock);
    }

    /// Gives `above` the way to the keeper, and the table; after that, a kill costs nothing.
    pub fn announce(&self, above: &Notifier) {
        let Some((keeper, theirs)) = &self.keeper else { return };
        let name = estate_name(std::process::id() as i32, keeper.pid());
        above.store_fds(&name, &[theirs.as_fd(), self.table.as_fd()]);
    }

    /// Nothing is left behind: we end in order.
    pub fn end(self) {
        if let Some((keeper, _)) = self.keeper {
            keeper.end();
        }
    }
}

/// A roll that the main thread, which this is, has signed for as long as the process lives.
pub fn begin_roll() -> Option<Roll> {
    let roll = Roll::new().inspect_err(no_roll).ok()?;
    std::mem::forget(sign(roll)?);
    Some(roll)
}

/// Has the calling thread sign.
pub fn sign(roll: Roll) -> Option<Signature> {
    roll.sign().inspect_err(no_roll).ok()
}

fn no_roll(e: &io::Error) {
    log::warn!("event=roll-failed: {e}; a death is noticed when the memory has been freed");
}
