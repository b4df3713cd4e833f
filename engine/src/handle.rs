//! The handle by which everything is scheduled on an engine's threads.

use crate::blocking::Pool;
use crate::event::{Body, Context, Continuation, Event, EventHandle, EventNode, Later, Next};
use crate::pulse::Page;
use crate::shared::{Place, Shared};
use crate::stats::ThreadStats;
use crate::task::starter;
use crate::thread::try_with_core;
use std::any::Any;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Names a group of one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupId(pub(crate) u32);

/// Names a thread of one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ThreadId(pub(crate) u32);

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
    /// The one with the fewest tasks and waiting events; those with equally few take turns. Costs every event from
    /// outside one more locked instruction.
    LeastLoaded,
}

pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) threads: std::ops::Range<usize>,
    pub(crate) placement: Placement,
    pub(crate) turn: AtomicUsize,
}

/// What each thread calls first, with the name of its group, and keeps the result of until its end.
pub(crate) type OnStart = Arc<dyn Fn(&str) -> Box<dyn Any> + Send + Sync>;

pub(crate) struct Inner {
    pub(crate) groups: Vec<Group>,
    pub(crate) threads: Vec<Arc<Shared>>,
    pub(crate) pool: Option<Arc<Pool>>,
    pub(crate) pulse: Option<Arc<Page>>,
    pub(crate) on_start: Option<OnStart>,
    /// Called once when the engine shuts down, before anything drains.
    pub(crate) stop_hooks: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
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
            on_start: None,
            stop_hooks: Mutex::default(),
        };
        Handle { inner: Arc::new(inner) }
    }

    /// To be called by each thread of this engine first; the result is to be dropped last.
    pub(crate) fn begin_thread(&self, group: &str) -> Option<Box<dyn Any>> {
        self.inner.on_start.as_ref().map(|f| f(group))
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
        self.inner
            .threads
            .iter()
            .map(|t| t.stats.read(&t.name, t.connections.load(Ordering::Relaxed)))
            .collect()
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
                if threads.len() == 1 {
                    return &threads[0];
                }
                let turn = group.turn.fetch_add(1, Ordering::Relaxed);
                let from_turn = (0..threads.len()).map(|n| &threads[turn.wrapping_add(n) % threads.len()]);
                match group.placement {
                    Placement::RoundRobin => from_turn.take(1).next(),
                    Placement::LeastLoaded => from_turn.min_by_key(|t| t.load()),
                }
                .expect("a group has threads")
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
