//! Groups of event threads, and the handle by which everything is scheduled on them.

use crate::blocking::Pool;
use crate::event::{Body, Context, Continuation, Event, EventHandle, EventNode, Later, Next};
use crate::pulse::Page;
use crate::shared::{DRAIN, Place, STOP, Shared};
use crate::stats::ThreadStats;
use crate::task::starter;
use crate::thread::{Core, try_with_core};
use std::future::Future;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Names a group of one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupId(u32);

/// Names a thread of one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ThreadId(u32);

impl ThreadId {
    pub(crate) const FIRST: ThreadId = ThreadId(0);

    /// Counts from 0 through all groups, in the order in which they were added.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where an event goes: to one thread, or to a group, which chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// Any thread of the group, by its [`Placement`].
    Group(GroupId),
    /// This thread.
    Thread(ThreadId),
}

impl From<GroupId> for Target {
    fn from(id: GroupId) -> Self {
        Target::Group(id)
    }
}

impl From<ThreadId> for Target {
    fn from(id: ThreadId) -> Self {
        Target::Thread(id)
    }
}

/// How a group chooses the thread of an event that is scheduled to the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placement {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The one with the fewest tasks and waiting events, as it last said.
    LeastLoaded,
}

/// How the threads of a group are made.
#[derive(Debug, Clone)]
pub struct GroupConfig {
    /// How many; at least one.
    pub threads: usize,
    /// CPUs to pin the threads to, one each and round again; empty: not pinned.
    pub cpus: Vec<usize>,
    /// Bytes of stack; None: the standard library's default.
    pub stack_size: Option<usize>,
    /// The most events that may wait for one thread through the bounded calls, and the most jobs that may wait in the
    /// group's queue of blocking work.
    pub max_queue: usize,
    /// Which thread gets what is scheduled to the group.
    pub placement: Placement,
}

impl Default for GroupConfig {
    fn default() -> Self {
        GroupConfig {
            threads: 1,
            cpus: Vec::new(),
            stack_size: None,
            max_queue: 1024,
            placement: Placement::RoundRobin,
        }
    }
}

struct Group {
    name: String,
    threads: std::ops::Range<usize>,
    placement: Placement,
    turn: AtomicUsize,
}

pub(crate) struct Inner {
    groups: Vec<Group>,
    threads: Vec<Arc<Shared>>,
    pub(crate) pool: Option<Arc<Pool>>,
    pub(crate) pulse: Option<Arc<Page>>,
    /// Called once when the engine shuts down, before anything drains.
    stop_hooks: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
}

/// The way into an engine's threads, from anywhere. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(crate) inner: Arc<Inner>,
}

impl Handle {
    /// The engine of the calling event thread.
    pub fn current() -> Option<Handle> {
        try_with_core(|core| core.handle().clone())
    }

    /// A handle on one thread that is called "local".
    pub(crate) fn single(shared: Arc<Shared>) -> Handle {
        let group = Group {
            name: "local".into(),
            threads: 0..1,
            placement: Placement::RoundRobin,
            turn: AtomicUsize::new(0),
        };
        let inner = Inner {
            groups: vec![group],
            threads: vec![shared],
            pool: None,
            pulse: None,
            stop_hooks: Mutex::default(),
        };
        Handle { inner: Arc::new(inner) }
    }

    /// The group of this name.
    pub fn group(&self, name: &str) -> Option<GroupId> {
        self.inner.groups.iter().position(|g| g.name == name).map(|n| GroupId(n as u32))
    }

    /// The threads of a group.
    pub fn threads(&self, group: GroupId) -> Vec<ThreadId> {
        self.inner.groups[group.0 as usize].threads.clone().map(|n| ThreadId(n as u32)).collect()
    }

    /// All threads' numbers, read without stopping them.
    pub fn stats(&self) -> Vec<ThreadStats> {
        self.inner.threads.iter().map(|t| t.stats.read(&t.name)).collect()
    }

    pub(crate) fn on_stop(&self, hook: Box<dyn FnOnce() + Send>) {
        self.inner.stop_hooks.lock().expect("never poisoned").push(hook);
    }

    pub(crate) fn shared(&self, target: Target) -> &Arc<Shared> {
        match target {
            Target::Thread(id) => &self.inner.threads[id.index()],
            Target::Group(id) => {
                let group = &self.inner.groups[id.0 as usize];
                let threads = &self.inner.threads[group.threads.clone()];
                match group.placement {
                    _ if threads.len() == 1 => &threads[0],
                    Placement::RoundRobin => {
                        &threads[group.turn.fetch_add(1, Ordering::Relaxed) % threads.len()]
                    }
                    Placement::LeastLoaded => threads
                        .iter()
                        .min_by_key(|t| t.stats.tasks.get() + t.stats.queue.get())
                        .expect("a group has threads"),
                }
            }
        }
    }

    fn send(&self, home: &Shared, node: EventNode) -> EventHandle {
        let handle = EventHandle { node: node.clone() };
        if !home.send(node) {
            handle.node.value.state.finish(); // the engine is gone
        }
        handle
    }

    fn schedule<C>(&self, target: Target, later: Option<Box<Later>>, continuation: C) -> EventHandle
    where
        C: Continuation + Send + 'static,
    {
        let home = self.shared(target);
        self.send(home, Event::node(home, later, Body::Continuation(Box::new(continuation))))
    }

    /// Has a continuation called as soon as its thread comes to it, after what is waiting there already.
    pub fn schedule_imm<C>(&self, target: impl Into<Target>, continuation: C) -> EventHandle
    where
        C: Continuation + Send + 'static,
    {
        self.schedule(target.into(), None, continuation)
    }

    /// As [`Handle::schedule_imm`], for what an outsider can cause: at most `max_queue` of these wait for a thread.
    ///
    /// # Errors
    /// [`QueueFull`] when that many wait.
    pub fn try_schedule_imm<C>(
        &self,
        target: impl Into<Target>,
        continuation: C,
    ) -> Result<EventHandle, QueueFull>
    where
        C: Continuation + Send + 'static,
    {
        let shared = self.shared(target.into());
        let place = shared.reserve().ok_or(QueueFull)?;
        let bounded = Bounded { place: Some(place), continuation };
        Ok(self.send(shared, Event::node(shared, None, Body::Continuation(Box::new(bounded)))))
    }

    /// Has a continuation called at a time, or in the millisecond after it.
    pub fn schedule_at<C>(&self, target: impl Into<Target>, at: Instant, continuation: C) -> EventHandle
    where
        C: Continuation + Send + 'static,
    {
        self.schedule(target.into(), Later::new(at, None), continuation)
    }

    /// Has a continuation called after a time.
    pub fn schedule_in<C>(&self, target: impl Into<Target>, after: Duration, continuation: C) -> EventHandle
    where
        C: Continuation + Send + 'static,
    {
        self.schedule(target.into(), Later::new(Instant::now() + after, None), continuation)
    }

    /// Has a continuation called at the end of every period, until it says [`Next::Done`] or is
    /// cancelled. Periods that could not be kept are skipped, and counted in [`Context::missed`].
    pub fn schedule_every<C>(
        &self,
        target: impl Into<Target>,
        period: Duration,
        continuation: C,
    ) -> EventHandle
    where
        C: Continuation + Send + 'static,
    {
        let period = period.max(Duration::from_millis(1));
        self.schedule(target.into(), Later::new(Instant::now() + period, Some(period)), continuation)
    }

    /// Makes a future on the target's thread and runs it there; the future need not be `Send`. Cancelling the handle
    /// drops the future.
    pub fn spawn_on<M, F>(&self, target: impl Into<Target>, make: M) -> EventHandle
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = ()> + 'static,
    {
        let home = self.shared(target.into());
        self.send(home, starter(home, make))
    }
}

/// The thread's queue holds as many bounded events as its group allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the event queue of the thread is full")]
pub struct QueueFull;

/// Gives its place in the queue back at its first call, or when it is dropped without one.
struct Bounded<C> {
    place: Option<Place>,
    continuation: C,
}

impl<C: Continuation> Continuation for Bounded<C> {
    fn handle(&mut self, cx: &mut Context<'_>) -> Next {
        self.place = None;
        self.continuation.handle(cx)
    }

    fn name(&self) -> &'static str {
        self.continuation.name()
    }
}

/// Collects the groups of an engine to be.
#[derive(Default)]
pub struct Builder {
    groups: Vec<(String, GroupConfig)>,
    abort_on_panic: bool,
}

impl Builder {
    /// Adds a group. The one called `task` also does [blocking work](crate::blocking).
    pub fn group(mut self, name: impl Into<String>, config: GroupConfig) -> Self {
        self.groups.push((name.into(), config));
        self
    }

    /// Whether a panic in a continuation ends the process instead of the continuation. Default: false.
    pub fn abort_on_panic(mut self, abort: bool) -> Self {
        self.abort_on_panic = abort;
        self
    }

    /// Starts all threads.
    ///
    /// # Errors
    /// If the system gives no thread, epoll or eventfd, or a CPU to pin to does not exist.
    pub fn start(self) -> io::Result<Engine> {
        let mut groups = Vec::new();
        let mut threads = Vec::new();
        let mut plans = Vec::new();
        let mut pool = None;
        for (name, config) in self.groups {
            let first = threads.len();
            for n in 0..config.threads.max(1) {
                let id = ThreadId(threads.len() as u32);
                threads.push(Shared::new(id, format!("{name}-{n}"), config.max_queue)?);
                let cpu = config.cpus.get(n % config.cpus.len().max(1)).copied();
                plans.push((cpu, config.stack_size));
            }
            let range = first..threads.len();
            if name == "task" {
                let ids = range.clone().map(|n| ThreadId(n as u32)).collect();
                pool = Some(Arc::new(Pool::new(ids, config.max_queue)));
            }
            groups.push(Group {
                name,
                threads: range,
                placement: config.placement,
                turn: AtomicUsize::new(0),
            });
        }
        let pulse = Some(Page::new(threads.len())?);
        let inner = Arc::new(Inner { groups, threads, pool, pulse, stop_hooks: Mutex::default() });
        let mut engine = Engine { handle: Handle { inner }, joins: Vec::new() };
        for (n, (cpu, stack_size)) in plans.into_iter().enumerate() {
            engine.start_thread(n, cpu, stack_size, self.abort_on_panic)?;
        }
        Ok(engine)
    }
}

/// What a shutdown came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ShutdownReport {
    /// Everything ended by itself before the deadline.
    pub drained: bool,
    /// Tasks and continuations that were dropped unfinished, timers that had not come due included.
    pub cancelled: u64,
}

/// Running threads. Dropping it stops them without waiting for work in progress.
pub struct Engine {
    handle: Handle,
    joins: Vec<thread::JoinHandle<()>>,
}

impl Engine {
    /// An engine to be.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The way into the engine from elsewhere.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The page in which the threads say what they are doing, to be handed to another process; see
    /// [`pulse`](crate::pulse).
    pub fn pulse(&self) -> BorrowedFd<'_> {
        self.handle.inner.pulse.as_ref().expect("an engine that was built has one").fd()
    }

    fn start_thread(
        &mut self,
        n: usize,
        cpu: Option<usize>,
        stack_size: Option<usize>,
        abort_on_panic: bool,
    ) -> io::Result<()> {
        let shared = self.handle.inner.threads[n].clone();
        let mut builder = thread::Builder::new().name(shared.name.clone());
        if let Some(size) = stack_size {
            builder = builder.stack_size(size);
        }
        let (started, outcome) = std::sync::mpsc::sync_channel(1);
        let handle = self.handle.clone();
        let join = builder.spawn(move || {
            let pinned = cpu.map_or(Ok(()), pin);
            let go = pinned.is_ok();
            let _ = started.send(pinned);
            if go {
                Core::enter(shared, handle, abort_on_panic).run();
            }
        })?;
        self.joins.push(join);
        outcome.recv().unwrap_or_else(|_| Err(io::Error::other("an event thread died at its start")))
    }

    /// Ends the engine: listeners stop accepting, [`draining`](crate::draining) becomes true, what is in progress gets
    /// until `deadline` to end, the rest is cancelled (each on its own thread), and all threads are joined.
    pub fn shutdown(mut self, deadline: Duration) -> ShutdownReport {
        let until = Instant::now() + deadline;
        self.stop_accepting();
        let cancelled_before = self.cancelled();
        for thread in &self.handle.inner.threads {
            thread.order(DRAIN);
        }
        let drained = self.wait_until_ended(until);
        self.stop();
        ShutdownReport { drained, cancelled: self.cancelled() - cancelled_before }
    }

    fn cancelled(&self) -> u64 {
        self.handle.inner.threads.iter().map(|t| t.stats.cancelled.get()).sum()
    }

    fn stop_accepting(&self) {
        let hooks = std::mem::take(&mut *self.handle.inner.stop_hooks.lock().expect("never poisoned"));
        for hook in hooks {
            hook();
        }
    }

    /// Waits for all threads to say that they have drained.
    fn wait_until_ended(&self, until: Instant) -> bool {
        self.handle.inner.threads.iter().all(|thread| thread.drained.wait_until(until))
    }

    fn stop(&mut self) {
        for thread in &self.handle.inner.threads {
            thread.order(STOP);
        }
        for join in self.joins.drain(..) {
            let _ = join.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop_accepting();
        self.stop();
    }
}

fn pin(cpu: usize) -> io::Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
    Ok(())
}
