//! How one server follows another: the word to serve, the keeper that outlives us, and what dead ones have left.

use super::duty::pong;
use crate::orders::{CHANNEL, Order};
use crate::suite::take_one;
use anyhow::Context;
use policy::handover::{Facts, Reason};
use proxy::continuity::{Continuity, Table, What};
use rustix::event::{PollFd, PollFlags, poll};
use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use supervisor::keeper;
use supervisor::listen_fds::Inherited;
use supervisor::notify::Notifier;
use supervisor::signals::{SIGINT, SIGQUIT, SIGTERM, Signals};
use supervisor::{fd_pass, fds, tcp};

/// How long a keeper may take for its next message.
const KEEPER_TIMEOUT: Duration = Duration::from_secs(5);

/// What a dead server has left: the way to its keeper, and its table.
pub struct Estate {
    keeper: OwnedFd,
    table: Arc<Table>,
}

/// Everything that a server begins with.
#[derive(Default)]
pub struct Start {
    /// What dead servers have left.
    pub estates: Vec<Estate>,
    /// Connections that the manager has accepted meanwhile, in their order.
    pub queued: Vec<OwnedFd>,
    /// Which these are.
    pub handed: Handed,
    /// Nothing is accepted before somebody says so.
    pub held: bool,
}

/// How far we have taken what the manager has handed over to us.
#[derive(Default)]
pub struct Handed {
    /// The last connection that we have taken, by its number; 0: none.
    last: u64,
    /// In this series, those with larger fd numbers are not taken.
    most: Option<usize>,
    /// There was no room for the rest of this series.
    is_short: bool,
}

impl Handed {
    /// Those of an order that there is room for. Half of what was free before the series is left: to origins, to what dead servers
    /// have left. After the first that isn't taken, none of the series is: the manager hears up to which, and has the others.
    pub fn take(&mut self, mut fds: Vec<OwnedFd>, is_cut: bool) -> Vec<OwnedFd> {
        // the kernel gives out the lowest free numbers: all below the first are in use
        let first = fds.first().map_or(0, |fd| fd.as_raw_fd() as usize);
        let most = *self.most.get_or_insert_with(|| first + fds::limit().saturating_sub(first) / 2);
        let room = fds.iter().take_while(|fd| !self.is_short && (fd.as_raw_fd() as usize) < most).count();
        self.is_short |= is_cut || room < fds.len();
        fds.truncate(room);
        self.last = fds.last().and_then(number).unwrap_or(self.last);
        fds
    }

    /// Says that everything is taken that was offered or handed over, up to that connection.
    pub fn settled(&self) -> String {
        format!("X_TRAFFIC_SETTLED=1\n{}", self.taken())
    }

    /// Says up to which connection.
    pub fn taken(&self) -> String {
        format!("X_TRAFFIC_TAKEN={}", self.last)
    }

    /// No more of the series come: says if there was no room for all.
    pub fn end_series(&mut self) -> Option<String> {
        self.most = None;
        std::mem::take(&mut self.is_short).then(|| format!("X_TRAFFIC_SHORT=1\n{}", self.taken()))
    }
}

/// The channel to our manager, taken out of what was inherited; `None`: nobody manages us.
pub fn channel(inherited: &mut Vec<Inherited>) -> Option<OwnedFd> {
    take_one(inherited, CHANNEL)
}

/// Estates from the fds of an order, two each.
pub fn estates(fds: Vec<OwnedFd>) -> Vec<Estate> {
    let mut fds = fds.into_iter();
    let pairs = std::iter::from_fn(|| Some((fds.next()?, fds.next()?)));
    let open = |(keeper, table)| match Table::open(table) {
        Ok(table) => Some(Estate { keeper, table: Arc::new(table) }),
        Err(e) => {
            log::warn!("event=take-over-failed: {e}");
            None
        }
    };
    let mut all: Vec<Estate> = pairs.filter_map(open).collect();
    // Of two that have the same connection the older one knows: the other died before it served what it had taken over. If there
    // is no room for all, a dead manager's, whose clients haven't been served yet, come last
    all.sort_by_key(|e| (e.table.is_of_a_queue(), e.table.began_at()));
    all
}

/// Waits until we are to serve; `None`: we are to end.
///
/// # Errors
/// The channel fails, or says what isn't for a standby.
pub fn wait(channel: &OwnedFd, signals: &mut Signals, notify: &Notifier) -> anyhow::Result<Option<Start>> {
    let mut start = Start::default();
    loop {
        let mut fds = [PollFd::new(channel, PollFlags::IN), PollFd::new(&*signals, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.context("waiting for the manager's word")?,
        };
        let spoke = !fds[0].revents().is_empty();
        if signals.pending().iter().any(|s| [SIGTERM, SIGINT, SIGQUIT].contains(s)) {
            return Ok(None);
        }
        if !spoke {
            continue;
        }
        let Some((order, fds, is_cut)) = Order::recv(channel)? else { return Ok(None) };
        match order {
            Order::Promote => {
                start.estates = estates(fds);
                return Ok(Some(start));
            }
            Order::Queued => start.queued.extend(start.handed.take(fds, is_cut)),
            Order::Hold => start.held = true,
            Order::GoOn => start.held = false,
            Order::Ping(n) => pong(notify, n),
            other => anyhow::bail!("{other:?} is no order for a standby"),
        }
    }
}

/// What a dead server has left, in our hands.
pub struct Left {
    table: Arc<Table>,
    connections: Vec<(RawFd, OwnedFd)>,
    /// There was no room for so many more.
    missed: usize,
}

impl Left {
    /// The numbers of those connections that the dead server has noted something of.
    fn noted(&self) -> impl Iterator<Item = u64> + '_ {
        let noted = self.connections.iter().filter(|(old, _)| self.table.has_noted(*old));
        noted.filter_map(|(_, fd)| number(fd))
    }

    /// Without the connections that are there already.
    pub fn forget(&mut self, have: &HashSet<u64>) {
        self.connections.retain(|(_, fd)| number(fd).is_none_or(|n| !have.contains(&n)));
    }
}

/// By which two fds are known to be the same socket.
pub fn number(fd: impl AsFd) -> Option<u64> {
    rustix::fs::fstat(fd).ok().map(|s| s.st_ino)
}

/// The same of an fd that another thread may close meanwhile. Dear: each leaves an entry in the kernel's directory cache, which
/// whoever reaps this process has to wait for.
pub fn number_of(fd: RawFd) -> Option<u64> {
    let path = format!("/proc/self/fd/{fd}");
    rustix::fs::stat(path).ok().map(|s| s.st_ino)
}

impl Start {
    /// What dead servers have left. Where there isn't room for all of it, who has only waited goes on waiting: the manager has
    /// them still.
    pub fn collect(&mut self, reserve: usize) -> Vec<Left> {
        let estates = std::mem::take(&mut self.estates);
        let left = collect(&estates, reserve);
        if self.queued.is_empty() || left.iter().all(|l| l.missed == 0) {
            return left;
        }
        self.queued.clear();
        self.handed = Handed { is_short: true, ..Handed::default() };
        drop(left);
        collect(&estates, reserve)
    }
}

/// Gets the fds from the keepers, and leaves `reserve` numbers free. A keeper that answers has closed the dead server's lock.
pub fn collect(estates: &[Estate], reserve: usize) -> Vec<Left> {
    let (mut all, most) = (Vec::new(), fds::limit().saturating_sub(reserve));
    for estate in estates {
        if estate.table.taken_by().is_some() {
            log::info!("event=taken-before: somebody has served what a dead server has left");
            continue;
        }
        let ask = || -> anyhow::Result<Left> {
            fd_pass::set_timeout(&estate.keeper, KEEPER_TIMEOUT)?;
            let given = keeper::take(&estate.keeper, nonce()).context("asking the keeper")?;
            let all = given.missed + given.connections.len();
            let mut connections = given.connections;
            connections.retain(|(_, fd)| (fd.as_raw_fd() as usize) < most);
            let missed = all - connections.len();
            Ok(Left { table: estate.table.clone(), connections, missed })
        };
        match ask() {
            Ok(left) => all.push(left),
            Err(e) => log::warn!("event=take-over-failed: {e:#}"),
        }
    }
    all
}

/// For each question another one.
fn nonce() -> u64 {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    u64::from(std::process::id()) << 32 | u64::from(ASKED.fetch_add(1, Ordering::Relaxed))
}

/// What we have taken over: it isn't served before it is [`Taken::serve`]d.
#[derive(Default)]
pub struct Taken {
    connections: Vec<OwnedFd>,
    tables: Vec<Arc<Table>>,
}

impl Taken {
    /// The numbers of the connections.
    pub fn numbers(&self) -> HashSet<u64> {
        self.connections.iter().filter_map(number).collect()
    }

    /// To be called when what we leave is known: from here on nobody takes the connections from the dead servers again, who don't
    /// know what becomes of them here.
    pub fn serve(self) -> Vec<OwnedFd> {
        let us = std::process::id() as i32;
        self.tables.iter().for_each(|table| table.set_taken_by(us));
        self.connections
    }
}

/// Decides about every connection. Records of those that are to be served are in our table already, so if we die from here on,
/// nothing is lost.
pub fn take_over(left: Vec<Left>, ours: &Continuity, notify: &Notifier) -> Taken {
    let begun = std::time::Instant::now();
    let (mut all, mut counts) = (Vec::new(), Counts::default());
    let tables: Vec<Arc<Table>> = left.iter().map(|l| l.table.clone()).collect();
    // one that died before it served what it had taken over has the same connections as who it had them from
    let mut seen = HashSet::new();
    let noted: HashSet<u64> = match &left[..] {
        [] | [_] => HashSet::new(),
        _ => left.iter().flat_map(Left::noted).collect(),
    };
    for Left { table, connections, missed } in left {
        if missed > 0 {
            // their keeper closes them
            log::error!(
                "event=take-over-cut connections={missed}: the limit of open files is too low for them"
            );
            counts.add_many("no_room", missed as u64);
        }
        for (old, fd) in connections {
            let number = number(&fd);
            // who hasn't noted it knows nothing of it, if somebody else has
            let knows_nothing = |n| noted.contains(&n) && !table.has_noted(old);
            if number.is_some_and(|n| seen.contains(&n) || knows_nothing(n)) {
                continue;
            }
            let decided = decide(&table, old, &fd, ours);
            if decided != Err(PASSED_ON) {
                seen.extend(number);
            }
            match decided {
                Ok(what) => {
                    counts.add(what);
                    all.push(fd);
                }
                Err(why) => {
                    counts.add(why);
                    if why == PASSED_ON {
                        continue;
                    }
                    // the keeper has it open still: the client is told now. If nothing but its end says how long an answer is, the
                    // end must not look like one
                    let cut = why == ANSWER_CUT && table.is_ended_by_its_end(old);
                    if !cut || rustix::net::connect_unspec(&fd).is_err() {
                        let _ = rustix::net::shutdown(&fd, rustix::net::Shutdown::Both);
                    }
                }
            }
        }
    }
    if !tables.is_empty() {
        let _ = notify.send(&format!("X_TRAFFIC_TOOK={}", counts.text()));
        log::info!("event=took-over connections={} {} in={:?}", all.len(), counts.text(), begun.elapsed());
    }
    Taken { connections: all, tables }
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
        Some(Err(Reason::AnswerCut)) => Err(ANSWER_CUT),
        Some(Err(Reason::Contradiction)) => Err("contradiction"),
        Some(Err(Reason::Untracked)) => Err("untracked"),
        Some(Err(Reason::PassedOn)) => Err(PASSED_ON),
    }
}

/// Half an answer is out, and the rest isn't to be had.
const ANSWER_CUT: &str = "answer_cut";
/// Another server has it already.
const PASSED_ON: &str = "passed_on";

/// What became of the connections.
#[derive(Default)]
struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    fn add(&mut self, what: &'static str) {
        self.add_many(what, 1);
    }

    fn add_many(&mut self, what: &'static str, n: u64) {
        *self.0.entry(what).or_default() += n;
    }

    fn text(&self) -> String {
        self.0.iter().map(|(k, n)| format!("{k}={n}")).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_first_that_is_missing_none_of_a_series_is_taken() {
        let some = |n| -> Vec<OwnedFd> {
            let mut fds: Vec<OwnedFd> =
                (0..n).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect();
            fds.sort_by_key(|fd| fd.as_raw_fd());
            fds
        };
        let mut handed = Handed::default();
        assert_eq!((handed.taken(), handed.end_series()), ("X_TRAFFIC_TAKEN=0".to_owned(), None));
        assert_eq!(handed.take(some(3), false).len(), 3);
        let taken = handed.taken();
        assert_ne!(taken, "X_TRAFFIC_TAKEN=0");
        assert_eq!(handed.end_series(), None);
        // what comes after a gap is not taken, though there is room for it
        assert_eq!(handed.take(some(2), true).len(), 2);
        assert!(handed.take(Vec::new(), true).is_empty() && handed.take(some(1), false).is_empty());
        assert_eq!(handed.end_series(), Some(format!("X_TRAFFIC_SHORT=1\n{taken}")));
        assert_eq!(handed.take(some(1), false).len(), 1);
        assert_eq!(handed.end_series(), None);
    }

    fn table() -> Continuity {
        Continuity::new(proxy::continuity::Size { slots: 1024, buffers: 4 }).unwrap()
    }

    /// A connection of which three bytes were read, as the server that did that has noted it.
    fn connection(
        server: &Continuity,
    ) -> (std::net::TcpStream, OwnedFd, proxy::continuity::journal::Journal) {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        client.write_all(b"GET").unwrap();
        let mut got = [0; 3];
        stream.read_exact(&mut got).unwrap();
        let (journal, _) = server.begin(stream.as_raw_fd());
        let read = journal.read(&mut [std::mem::MaybeUninit::uninit(); 16], |room| {
            for (to, byte) in room.iter_mut().zip(got) {
                to.write(byte);
            }
            std::task::Poll::Ready(Ok(3))
        });
        assert!(matches!(read, std::task::Poll::Ready(Ok(3))));
        (client, stream.into(), journal)
    }

    #[test]
    fn a_connection_of_two_dead_servers_is_taken_over_once_as_the_first_has_left_it() {
        let (first, second, ours) = (table(), table(), table());
        let nobody = Notifier::from_env().unwrap();
        let left = |of: &Continuity, at: RawFd, fd: &OwnedFd| Left {
            table: of.table().clone(),
            connections: vec![(at, fd.try_clone().unwrap())],
            missed: 0,
        };
        // the second had taken it over and was killed before it noted that
        let (_client, fd, journal) = connection(&first);
        let taken =
            take_over(vec![left(&first, fd.as_raw_fd(), &fd), left(&second, 900, &fd)], &ours, &nobody);
        assert_eq!((taken.connections.len(), taken.numbers()), (1, [number(&fd).unwrap()].into()));
        let (_, resume) = ours.begin(taken.connections[0].as_raw_fd());
        assert_eq!(resume.unwrap().bytes, b"GET");
        // the first has passed it on: then it is as the second has left it
        journal.pass_on(true);
        let (noted, _) = second.begin(900);
        let taken =
            take_over(vec![left(&first, fd.as_raw_fd(), &fd), left(&second, 900, &fd)], &ours, &nobody);
        assert_eq!(taken.connections.len(), 1);
        drop(noted);
        // one that has noted nothing of it knows less than one that has
        let ours = table();
        let (_client, fd, _journal) = connection(&second);
        let taken =
            take_over(vec![left(&first, 800, &fd), left(&second, fd.as_raw_fd(), &fd)], &ours, &nobody);
        let (_, resume) = ours.begin(taken.connections[0].as_raw_fd());
        assert_eq!((taken.connections.len(), resume.unwrap().bytes), (1, b"GET".to_vec()));
        // nobody takes any of it again
        assert!(first.table().taken_by().is_none());
        taken.serve();
        assert!([&first, &second].iter().all(|of| of.table().taken_by().is_some()));
    }

    #[test]
    fn estates_come_by_age_and_those_that_are_served_already_not_at_all() {
        let tables = [table(), table(), table()];
        // not in the order in which they were made
        tables[1..].iter().chain(&tables[..1]).for_each(|t| t.table().begin());
        let (keeper, _) = fd_pass::pair().unwrap();
        let offered = [0, 2, 1].map(|n: usize| [keeper.as_fd(), tables[n].table().as_fd()]);
        let fds = offered.iter().flatten().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
        let estates = estates(fds);
        let ages: Vec<u64> = estates.iter().map(|e| e.table.began_at()).collect();
        assert_eq!(ages, [1, 2, 0].map(|n: usize| tables[n].table().began_at()));
        tables.iter().for_each(|t| t.table().set_taken_by(9));
        // nobody is at the other end of the way to a keeper, and isn't asked
        assert!(collect(&estates, 0).is_empty());
    }
}
