//! Groups of event threads: how they begin and how they end.

use crate::blocking::Pool;
use crate::handle::{Group, Handle, Inner, OnStart, Placement, ThreadId};
use crate::pulse::Page;
use crate::shared::{DRAIN, STOP, Shared};
use crate::thread::Core;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

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

/// How one thread is made.
struct Plan {
    /// Index of its group.
    group: usize,
    cpu: Option<usize>,
    stack_size: Option<usize>,
}

/// Collects the groups of an engine to be.
#[derive(Default)]
pub struct Builder {
    groups: Vec<(String, GroupConfig)>,
    abort_on_panic: bool,
    on_start: Option<OnStart>,
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

    /// Has each thread call `f` with the name of its group before it does anything else, and keep what that returns until it has
    /// done everything else. The threads that an [`Acceptor`](crate::acceptor::Acceptor) has for itself are those of `accept`.
    pub fn on_thread_start<T: 'static>(mut self, f: impl Fn(&str) -> T + Send + Sync + 'static) -> Self {
        self.on_start = Some(Arc::new(move |group| Box::new(f(group))));
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
            let weighed = config.placement == Placement::LeastLoaded;
            for n in 0..config.threads.max(1) {
                let id = ThreadId(threads.len() as u32);
                threads.push(Shared::new(id, format!("{name}-{n}"), config.max_queue, weighed)?);
                let cpu = config.cpus.get(n % config.cpus.len().max(1)).copied();
                plans.push(Plan { group: groups.len(), cpu, stack_size: config.stack_size });
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
        let on_start = self.on_start;
        let inner = Arc::new(Inner { groups, threads, pool, pulse, on_start, stop_hooks: Mutex::default() });
        let mut engine = Engine { handle: Handle { inner }, joins: Vec::new() };
        for (n, plan) in plans.into_iter().enumerate() {
            engine.start_thread(n, plan, self.abort_on_panic)?;
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

    fn start_thread(&mut self, n: usize, plan: Plan, abort_on_panic: bool) -> io::Result<()> {
        let shared = self.handle.inner.threads[n].clone();
        let mut builder = thread::Builder::new().name(shared.name.clone());
        if let Some(size) = plan.stack_size {
            builder = builder.stack_size(size);
        }
        let (started, outcome) = std::sync::mpsc::sync_channel(1);
        let handle = self.handle.clone();
        let join = builder.spawn(move || {
            let _kept = handle.begin_thread(&handle.inner.groups[plan.group].name);
            let pinned = plan.cpu.map_or(Ok(()), pin);
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
        let cancelled_before = self.cancelled();
        let drained = self.drain(deadline);
        self.stop();
        ShutdownReport { drained, cancelled: self.cancelled() - cancelled_before }
    }

    /// The first half of [`Engine::shutdown`]: has everything ended by the `deadline`? What hasn't goes on.
    pub fn drain(&self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        self.stop_accepting();
        for thread in &self.handle.inner.threads {
            thread.order(DRAIN);
        }
        self.wait_until_ended(until)
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
