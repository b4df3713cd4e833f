//! How one server follows another: the word to serve, the keeper that outlives us, and what dead ones have left.

use crate::suite::{CONTROL, PROMOTE, estate_name};
use anyhow::Context;
use policy::handover::{Facts, Reason};
use proxy::continuity::{Continuity, Size, Table, What};
use rustix::event::{PollFd, PollFlags, poll};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;
use supervisor::keeper::{self, Keeper, Shared};
use supervisor::listen_fds::Inherited;
use supervisor::notify::Notifier;
use supervisor::signals::{SIGINT, SIGQUIT, SIGTERM, Signals};
use supervisor::{fd_pass, tcp};

/// How long a keeper may take for its next message.
const KEEPER_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections with a larger fd number aren't noted.
const MAX_SLOTS: u64 = 1 << 18;
/// Requests in progress whose bytes are kept; 16 KiB of address space each, memory only where used.
const MAX_BUFFERS: usize = 16 << 10;

/// What our manager says to us.
pub enum Word {
    /// Serve, and take over what these have left.
    Serve(Vec<Estate>),
    /// End: it said so, or it is gone.
    End,
}

/// What a dead server has left: the way to its keeper, and its table.
pub struct Estate {
    keeper: OwnedFd,
    table: OwnedFd,
}

/// The channel to our manager, taken out of what was inherited; `None`: nobody manages us.
pub fn channel(inherited: &mut Vec<Inherited>) -> Option<OwnedFd> {
    let at = inherited.iter().position(|i| i.name == CONTROL)?;
    Some(inherited.swap_remove(at).fd)
}

/// Waits for the word.
///
/// # Errors
/// The channel fails, or says what we don't know.
pub fn wait(channel: &OwnedFd, signals: &mut Signals) -> anyhow::Result<Word> {
    loop {
        let mut fds = [PollFd::new(channel, PollFlags::IN), PollFd::new(&*signals, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.context("waiting for the manager's word")?,
        };
        let spoke = !fds[0].revents().is_empty();
        if signals.pending().iter().any(|s| [SIGTERM, SIGINT, SIGQUIT].contains(s)) {
            return Ok(Word::End);
        }
        if !spoke {
            continue;
        }
        let Some((message, fds)) = fd_pass::recv(channel)? else { return Ok(Word::End) };
        anyhow::ensure!(message == PROMOTE && fds.len() % 2 == 0, "the manager said what isn't known");
        let mut fds = fds.into_iter();
        let pairs = std::iter::from_fn(|| Some(Estate { keeper: fds.next()?, table: fds.next()? }));
        return Ok(Word::Serve(pairs.collect()));
    }
}

/// Our own table with its keeper. The keeper is missing where the kernel or a sandbox refuses it: then a kill costs the
/// connections, and nothing else.
pub struct Legacy {
    /// The table, and what was taken over.
    pub continuity: Arc<Continuity>,
    keeper: Option<Keeper>,
    /// The end by which the keeper is asked, until it is given away.
    theirs: Option<OwnedFd>,
}

struct InTable(Arc<Table>);

impl Shared for InTable {
    fn lock_fd(&self) -> Option<RawFd> {
        self.0.lock_fd()
    }

    fn is_handed_over(&self) -> bool {
        self.0.is_handed_over()
    }
}

impl Legacy {
    /// Makes both; to be called with one thread. `listeners`: whose connections are kept.
    ///
    /// # Errors
    /// No memory for the table.
    pub fn new(listeners: &[impl AsFd]) -> io::Result<Legacy> {
        use nix::sys::resource::{Resource, getrlimit};
        let fds = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft.min(MAX_SLOTS)) as usize;
        let size = Size { slots: fds, buffers: fds.min(MAX_BUFFERS) };
        let continuity = Arc::new(Continuity::new(size)?);
        let list: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
        let made = fd_pass::pair().and_then(|(ours, theirs)| {
            let shared = InTable(continuity.table().clone());
            Ok((keeper::make(ours, &list, &shared)?, theirs))
        });
        let (keeper, theirs) = match made {
            Ok((keeper, theirs)) => (Some(keeper), Some(theirs)),
            Err(e) => {
                log::warn!("event=continuity-off: no keeper: {e}; a kill will cost the open connections");
                (None, None)
            }
        };
        Ok(Legacy { continuity, keeper, theirs })
    }

    /// Gives the manager the way to the keeper, and the table; after that, a kill costs nothing.
    pub fn announce(&mut self, lock: Option<RawFd>, notify: &Notifier) {
        let (Some(keeper), Some(theirs)) = (&self.keeper, self.theirs.take()) else { return };
        let table = self.continuity.table();
        if let Some(lock) = lock {
            table.set_lock_fd(lock);
        }
        let name = estate_name(std::process::id() as i32, keeper.pid());
        let told = notify.send_fds(&format!("FDSTORE=1\nFDNAME={name}"), &[theirs.as_fd(), table.as_fd()]);
        // the keeper shares our fds: as long as this end is open here, it would never see that nobody can ask it
        drop(theirs);
        match told {
            Ok(()) => table.set_handed_over(),
            Err(e) => log::warn!("event=continuity-off: the manager can't be told: {e}"),
        }
    }

    /// Nothing is left behind: we end in order.
    pub fn end(self) {
        if let Some(keeper) = self.keeper {
            keeper.end();
        }
    }
}

/// What a dead server has left, in our hands.
pub struct Left {
    table: Table,
    connections: Vec<(RawFd, OwnedFd)>,
}

/// Gets the fds from the keepers. A keeper that answers has closed the dead server's lock.
pub fn collect(estates: Vec<Estate>) -> Vec<Left> {
    let mut all = Vec::new();
    for (n, estate) in estates.into_iter().enumerate() {
        let ask = || -> anyhow::Result<Left> {
            let table = Table::open(estate.table)?;
            fd_pass::set_timeout(&estate.keeper, KEEPER_TIMEOUT)?;
            let nonce = u64::from(std::process::id()) << 32 | n as u64;
            let connections = keeper::take(&estate.keeper, nonce).context("asking the keeper")?;
            Ok(Left { table, connections })
        };
        match ask() {
            Ok(left) => all.push(left),
            Err(e) => log::warn!("event=take-over-failed: {e:#}"),
        }
    }
    all
}

/// Decides about every connection. What is returned is to be served; its records are in our table already, so if we die
/// from here on, nothing is lost.
pub fn take_over(left: Vec<Left>, ours: &Continuity) -> Vec<OwnedFd> {
    let begun = std::time::Instant::now();
    let (mut all, mut counts) = (Vec::new(), Counts::default());
    let dead = left.len();
    for Left { table, connections } in left {
        for (old, fd) in connections {
            match decide(&table, old, &fd, ours) {
                Ok(what) => {
                    counts.add(what);
                    all.push(fd);
                }
                Err(why) => {
                    counts.add(why);
                    // the keeper has it open still: the client is told now
                    let _ = rustix::net::shutdown(&fd, rustix::net::Shutdown::Both);
                }
            }
        }
    }
    if dead > 0 {
        log::info!("event=took-over connections={} {} in={:?}", all.len(), counts.text(), begun.elapsed());
    }
    all
}

/// How a connection goes on, or why it doesn't.
fn decide(table: &Table, old: RawFd, fd: &OwnedFd, ours: &Continuity) -> Result<&'static str, &'static str> {
    let kernel = match tcp::facts(fd) {
        Ok(Some(f)) => {
            Facts { bytes_in: Some(f.bytes_read), bytes_out: Some(f.bytes_written), closed: !f.alive }
        }
        Ok(None) => Facts::default(),
        Err(_) => return Err("unknown_to_kernel"),
    };
    match ours.inherit(table, old, fd.as_raw_fd(), &kernel) {
        None if kernel.closed => Err("closed"),
        None => Ok("new"),
        Some(Ok(What::GoOn)) => Ok("resumed"),
        Some(Ok(What::Replay { .. })) => Ok("replayed"),
        Some(Ok(What::Continue { .. })) => Ok("continued"),
        Some(Ok(What::BadGateway { suspect: true })) => Ok("suspect"),
        Some(Ok(What::BadGateway { suspect: false })) => Ok("bad_gateway"),
        Some(Err(Reason::Closed)) => Err("closed"),
        Some(Err(Reason::AnswerCut)) => Err("answer_cut"),
        Some(Err(Reason::Contradiction)) => Err("contradiction"),
        Some(Err(Reason::Untracked)) => Err("untracked"),
    }
}

/// What became of the connections.
#[derive(Default)]
struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    fn add(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    fn text(&self) -> String {
        self.0.iter().map(|(k, n)| format!("{k}={n}")).collect::<Vec<_>>().join(" ")
    }
}
