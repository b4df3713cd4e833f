//! Connections from listening sockets to the event threads that serve them.
//!
//! An accept thread does nothing but accept4(2) and choose a thread; the connection goes there through that thread's
//! bounded connection queue (memcached's `conn_queue`, FastDFS's pipe to its work threads), and is served there until
//! its end. One wake-up is owed per batch, not per connection: the queue's owner is a continuation that is woken, and
//! wake-ups coalesce.
//!
//! What makes it stop for a while, and what makes it go on:
//!
//! | reason | until |
//! |---|---|
//! | `max_connections` reached, [`AtLimit::Pause`] | a [`ConnGuard`] is dropped |
//! | all connection queues full | one of them has been emptied |
//! | `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM` | a guard is dropped, or [`FD_PAUSE`] has passed |

mod accepting;
mod ports;

use self::accepting::{ListenerSet, spare};
pub use self::ports::{Bound, write_port_file};
use crate::event::{Context, Continuation, Next};
use crate::net::{Peer, Stream};
use crate::pulse::Page;
use crate::{GroupId, Handle, ThreadId};
use rustix::net::sockopt;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Waker;
use std::time::Duration;

/// The longest pause after the process or the system ran out of descriptors.
pub const FD_PAUSE: Duration = Duration::from_millis(100);
/// How often it is noted in the pulse page, while there is no room, that there is none.
const SAYS_FULL: Duration = Duration::from_millis(250);
/// Connections taken from one listener before the next one gets its turn.
const BATCH: u32 = 64;

/// Which thread serves a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConnPlacement {
    /// One after the other (memcached).
    #[default]
    RoundRobin,
    /// The descriptor's number modulo the number of threads (FastDFS).
    FdModulo,
    /// The one that serves the fewest.
    LeastConnections,
}

/// Answers a connection that is not going to be served: write something short, or nothing, and drop it. It runs on
/// the accept thread and must not block; the socket is non-blocking.
pub type RefuseHook = Arc<dyn Fn(OwnedFd, Peer) + Send + Sync>;

/// What happens to connections beyond `max_connections`.
#[derive(Clone, Default)]
pub enum AtLimit {
    /// They wait in the kernel's backlog.
    #[default]
    Pause,
    /// They are accepted and given to the hook at once. The same hook answers, through a spare descriptor, those that
    /// come while the process is out of descriptors.
    Refuse(RefuseHook),
}

/// How connections are accepted.
pub struct AcceptorConfig {
    /// Listening sockets: TCP of either family or Unix, bound and listening. They become non-blocking.
    pub listeners: Vec<OwnedFd>,
    /// Threads that only accept. 0: the event threads accept for themselves, and `placement` is the kernel's choice.
    pub accept_threads: usize,
    /// Which thread serves a connection.
    pub placement: ConnPlacement,
    /// Nothing is accepted before [`Acceptor::go_on`].
    pub held: bool,
    /// The most connections at a time.
    pub max_connections: usize,
    /// What happens beyond that.
    pub at_limit: AtLimit,
    /// The most connections that may wait for one thread to take them over.
    pub max_queue: usize,
    /// How often a connection may read, and how often write, in one call of its task before it has to give way, so that one
    /// client that always has another request ready starves nobody; see [`Stream::limit`].
    pub requests_per_event: u32,
    /// Nagle's algorithm is off for all connections (TCP): they have it from their listener.
    pub nodelay: bool,
}

impl Default for AcceptorConfig {
    fn default() -> Self {
        AcceptorConfig {
            listeners: Vec::new(),
            accept_threads: 1,
            placement: ConnPlacement::RoundRobin,
            held: false,
            max_connections: usize::MAX,
            at_limit: AtLimit::Pause,
            max_queue: 1024,
            requests_per_event: 20,
            nodelay: false,
        }
    }
}

/// A new connection, on the thread that serves it.
#[derive(Debug)]
pub struct Accepted {
    /// The connected socket, non-blocking and close-on-exec.
    pub fd: OwnedFd,
    /// Index of the listener it came through.
    pub listener: usize,
    /// Who connected.
    pub peer: Peer,
    /// Counts the connection as long as it lives.
    pub guard: ConnGuard,
    /// For a protocol that answers several requests in one write: after this many, call
    /// [`yield_now`](crate::yield_now). The rest is done by [`Accepted::into_stream`].
    pub requests_per_event: u32,
}

impl Accepted {
    /// Registers the socket with the current thread, limited to `requests_per_event`; keep the guard as long as the stream.
    ///
    /// # Errors
    /// If it cannot be registered.
    pub fn into_stream(self) -> io::Result<(Stream, ConnGuard)> {
        let mut stream = Stream::ready(self.fd, self.peer)?;
        stream.limit(Some(self.requests_per_event));
        Ok((stream, self.guard))
    }
}

/// One live connection. Dropping it makes room for another.
#[derive(Debug)]
pub struct ConnGuard {
    control: Arc<Control>,
    lane: Arc<Lane>,
}

impl ConnGuard {
    fn new(control: &Arc<Control>, lane: &Arc<Lane>) -> Self {
        lane.live.fetch_add(1, Ordering::Relaxed);
        ConnGuard { control: control.clone(), lane: lane.clone() }
    }
}

impl Drop for ConnGuard {
    fn drop(&mut self) {
        self.lane.live.fetch_sub(1, Ordering::Relaxed);
        self.control.live.fetch_sub(1, Ordering::SeqCst);
        self.control.room();
    }
}

/// Numbers of an acceptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AcceptorStats {
    /// Connections that live.
    pub live: usize,
    /// Connections accepted since the start, refused ones included.
    pub accepted: u64,
    /// Connections given to the refuse hook.
    pub refused: u64,
    /// Times accepting paused because of a limit.
    pub pauses: u64,
    /// Times there was no descriptor for a connection.
    pub out_of_fds: u64,
    /// Other errors of accept(2), each about one connection.
    pub errors: u64,
}

/// What accept loops, connection guards and the owner share.
#[derive(Default)]
struct Control {
    stopped: AtomicBool,
    loops: AtomicUsize,
    /// Connections, those that are in a queue included.
    live: AtomicUsize,
    max: usize,
    /// Some loop waits for room.
    paused: AtomicBool,
    /// Nothing is accepted for now, whatever room there is.
    held: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
    pulse: Option<Arc<Page>>,
    accepted: AtomicU64,
    refused: AtomicU64,
    pauses: AtomicU64,
    out_of_fds: AtomicU64,
    errors: AtomicU64,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("live", &self.live).finish_non_exhaustive()
    }
}

impl Control {
    /// Takes a place for a connection, if there is one.
    fn admit(&self) -> bool {
        let admit = |live| (live < self.max).then_some(live + 1);
        self.live.fetch_update(Ordering::SeqCst, Ordering::SeqCst, admit).is_ok()
    }

    fn is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }

    fn is_full(&self) -> bool {
        self.is_held() || self.live.load(Ordering::SeqCst) >= self.max
    }

    /// Who asks through the port gets no answer: the pulse page says why.
    fn says_full(&self) {
        if let Some(page) = &self.pulse {
            page.says_full();
        }
    }

    /// There may be room now.
    fn room(&self) {
        if self.paused.load(Ordering::SeqCst) && self.paused.swap(false, Ordering::SeqCst) {
            self.kick();
        }
    }

    fn kick(&self) {
        for waker in self.wakers.lock().expect("never poisoned").iter() {
            waker.wake_by_ref();
        }
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.kick();
    }
}

/// The connection queue of one event thread.
#[derive(Debug)]
struct Lane {
    thread: ThreadId,
    queue: Mutex<VecDeque<Accepted>>,
    max_queue: usize,
    /// The thread's own count, so that it is right with several acceptors too.
    live: Arc<AtomicUsize>,
    /// Wakes the continuation that empties the queue.
    waker: OnceLock<Waker>,
}

impl Lane {
    fn push(&self, conn: Accepted) -> Result<(), Accepted> {
        let mut queue = self.queue.lock().expect("never poisoned");
        if queue.len() >= self.max_queue {
            return Err(conn);
        }
        queue.push_back(conn);
        drop(queue);
        self.wake();
        Ok(())
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }
}

/// Options of a listener, which its connections have from it, or of a connection. Who can't have one (a Unix socket) needs none, or is
/// only slower.
///
/// What a peer sends as urgent stays in its place in the stream: apart, the kernel counts a byte as read that nobody has read.
/// `nodelay`: Nagle's algorithm is switched off.
fn set_options(fd: &OwnedFd, nodelay: bool) {
    let _ = sockopt::set_socket_oobinline(fd, true);
    if nodelay {
        let _ = sockopt::set_tcp_nodelay(fd, true);
    }
}

/// Empties a connection queue, on the thread it belongs to.
struct TakeOver<S> {
    lane: Arc<Lane>,
    control: Arc<Control>,
    serve: Arc<S>,
}

impl<S, F> Continuation for TakeOver<S>
where
    S: Fn(Accepted) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + 'static,
{
    fn handle(&mut self, cx: &mut Context<'_>) -> Next {
        self.lane.waker.get_or_init(|| cx.waker());
        // Looked at before the queue: what the loops have queued before they ended is seen below.
        let last = self.control.loops.load(Ordering::Acquire) == 0 && self.control.is_stopped();
        let taken = std::mem::take(&mut *self.lane.queue.lock().expect("never poisoned"));
        for conn in taken {
            let serve = self.serve.clone();
            crate::spawn(async move { serve(conn).await });
        }
        self.control.room();
        if last { Next::Done } else { Next::Wait }
    }

    fn holds_up_drain(&self) -> bool {
        false
    }

    fn name(&self) -> &'static str {
        "take over connections"
    }
}

/// Accepting, until it is stopped or dropped.
pub struct Acceptor {
    control: Arc<Control>,
    bound: Vec<Bound>,
    lanes: Vec<Arc<Lane>>,
    threads: Vec<std::thread::JoinHandle<()>>,
    requests_per_event: u32,
    nodelay: bool,
}

impl Acceptor {
    /// Starts to accept. Each connection becomes a task on a thread of `group`, which runs what `serve` returns.
    ///
    /// # Errors
    /// If a thread, an epoll or a duplicate of a listener cannot be had.
    pub fn start<S, F>(
        handle: &Handle,
        group: GroupId,
        config: AcceptorConfig,
        serve: S,
    ) -> io::Result<Acceptor>
    where
        S: Fn(Accepted) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + 'static,
    {
        let serve = Arc::new(serve);
        let held = AtomicBool::new(config.held);
        let pulse = handle.inner.pulse.clone();
        let control = Arc::new(Control { max: config.max_connections, held, pulse, ..Control::default() });
        let lane = |thread: ThreadId| {
            Arc::new(Lane {
                thread,
                queue: Mutex::default(),
                max_queue: config.max_queue.max(1),
                live: handle.shared(thread.into()).connections.clone(),
                waker: OnceLock::new(),
            })
        };
        let lanes: Vec<_> = handle.threads(group).into_iter().map(lane).collect();
        let bound = config.listeners.iter().map(Bound::of).collect::<io::Result<_>>()?;
        config.listeners.iter().for_each(|l| set_options(l, config.nodelay));
        let (requests_per_event, nodelay) = (config.requests_per_event, config.nodelay);
        let threads = Vec::new();
        let mut acceptor =
            Acceptor { control: control.clone(), bound, lanes, threads, requests_per_event, nodelay };
        let own_threads = config.accept_threads > 0;
        let workers = if own_threads { config.accept_threads } else { acceptor.lanes.len() };
        // Counted before anything runs, so that nobody takes "not begun" for "over". An error below stops the rest.
        control.loops.store(workers, Ordering::Release);
        let mut started = 0;
        let result: io::Result<()> = (0..workers).try_for_each(|n| {
            let with_spare = |fd: &OwnedFd| Ok((fd.try_clone()?, spare()?));
            let fds = config.listeners.iter().map(with_spare).collect::<io::Result<Vec<_>>>()?;
            let set = ListenerSet {
                fds,
                exclusive: workers > 1,
                lanes: if own_threads { acceptor.lanes.clone() } else { vec![acceptor.lanes[n].clone()] },
                all_lanes: acceptor.lanes.clone(),
                control: control.clone(),
                placement: config.placement,
                at_limit: config.at_limit.clone(),
                requests_per_event: config.requests_per_event,
            };
            if own_threads {
                acceptor.threads.push(set.on_own_thread(n, handle.clone())?);
            } else {
                handle.spawn_on(acceptor.lanes[n].thread, move || set.run());
            }
            started += 1;
            Ok(())
        });
        control.loops.fetch_sub(workers - started, Ordering::AcqRel);
        result?; // dropping the acceptor stops what has begun
        for lane in &acceptor.lanes {
            let take_over = TakeOver { lane: lane.clone(), control: control.clone(), serve: serve.clone() };
            handle.schedule_imm(lane.thread, take_over);
        }
        let weak = Arc::downgrade(&control);
        handle.on_stop(Box::new(move || {
            if let Some(control) = weak.upgrade() {
                control.stop();
            }
        }));
        Ok(acceptor)
    }

    /// Gives a connection to be served that somebody else has accepted: it goes to the thread with the fewest, counts as
    /// any other, and isn't refused for a limit.
    pub fn adopt(&self, fd: OwnedFd) {
        let peer = Peer::from_any(rustix::net::getpeername(&fd).ok().flatten());
        // somebody else's listener may not have had it when it was accepted
        set_options(&fd, self.nodelay);
        self.control.live.fetch_add(1, Ordering::SeqCst);
        let fewest = self.lanes.iter().min_by_key(|l| l.live.load(Ordering::Relaxed));
        let lane = fewest.expect("a group has threads");
        let guard = ConnGuard::new(&self.control, lane);
        let conn = Accepted { fd, listener: 0, peer, guard, requests_per_event: self.requests_per_event };
        lane.queue.lock().expect("never poisoned").push_back(conn);
        lane.wake();
    }

    /// Accepts nothing until [`Acceptor::go_on`]: what comes waits in the kernel's backlog, or is somebody else's.
    pub fn hold(&self) {
        self.control.held.store(true, Ordering::SeqCst);
        self.control.kick();
    }

    /// Ends [`Acceptor::hold`].
    pub fn go_on(&self) {
        self.control.held.store(false, Ordering::SeqCst);
        self.control.paused.store(false, Ordering::SeqCst);
        self.control.kick();
    }

    /// Stops accepting and waits for the accept threads. Connections go on; those still in a queue are served.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.control.stop();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }

    /// What the listeners are bound to, in their order; [`write_port_file`] tells others.
    pub fn bound(&self) -> &[Bound] {
        &self.bound
    }

    /// Connections that live.
    pub fn connections(&self) -> usize {
        self.control.live.load(Ordering::Relaxed)
    }

    /// Connections that live, by thread of the group; of all acceptors, if there are several.
    pub fn connections_by_thread(&self) -> Vec<(ThreadId, usize)> {
        self.lanes.iter().map(|lane| (lane.thread, lane.live.load(Ordering::Relaxed))).collect()
    }

    /// All numbers.
    pub fn stats(&self) -> AcceptorStats {
        AcceptorStats {
            live: self.connections(),
            accepted: self.control.accepted.load(Ordering::Relaxed),
            refused: self.control.refused.load(Ordering::Relaxed),
            pauses: self.control.pauses.load(Ordering::Relaxed),
            out_of_fds: self.control.out_of_fds.load(Ordering::Relaxed),
            errors: self.control.errors.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.end();
    }
}
