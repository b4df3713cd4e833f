//! The loop of an event thread, and everything only that thread may touch.
//!
//! One round:
//!
//! 1. timers that are due, before all else;
//! 2. the events that stood in the local queue when the round began;
//! 3. what has come through the external queue, at most [`ROUND`] of it before timers and epoll get their turn;
//! 4. epoll: without waiting if there is more to do, else until the next timer or wake-up.

mod dispatch;

use crate::Handle;
use crate::event::{Event, EventNode, NO_SLOT};
use crate::fenced::stack::{Batch, Node};
use crate::pulse::Pulse;
use crate::reactor::Sources;
use crate::shared::{DRAIN, STOP, Shared};
use crate::task::AnyTask;
use crate::wheel::Wheel;
use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollTimeout};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::{Duration, Instant};

/// The most external events in one round, and about the most events between two looks at epoll: what bounds how long a
/// flood of them can keep timers and sockets waiting.
const ROUND: usize = 256;
/// The most epoll events taken at once.
const EPOLL_EVENTS: usize = 256;

thread_local! {
    static CORE: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

/// What a timer does when it is due.
pub(crate) enum Timer {
    Event(EventNode),
    Wake(Waker),
}

pub(crate) struct Core {
    pub(crate) shared: Arc<Shared>,
    handle: Handle,
    pulse: Option<Pulse>,
    abort_on_panic: bool,
    origin: Instant,
    now: Cell<Instant>,
    local: RefCell<VecDeque<EventNode>>,
    /// Woken or due because of a timer: these go first.
    due: RefCell<VecDeque<EventNode>>,
    firing: Cell<bool>,
    arrived: RefCell<Batch<Event>>,
    pub(crate) wheel: RefCell<Wheel<Timer>>,
    pub(crate) sources: RefCell<Sources>,
    pub(crate) tasks: RefCell<Slab<Rc<dyn AnyTask>>>,
    epoll_events: RefCell<Vec<EpollEvent>>,
    /// Events since epoll was last asked.
    unpolled: Cell<usize>,
    root_woken: Cell<bool>,
    /// What is being called, for comparison only, and how many calls there have been.
    current: Cell<*const Node<Event>>,
    calls: Cell<u64>,
    draining: Cell<bool>,
    drained: Cell<bool>,
    /// Continuations that have been called and will be called again, periodic ones excepted.
    going: Cell<usize>,
    /// Who waits for the drain to begin; see [`crate::draining`].
    pub(crate) drain_wakers: RefCell<Slab<Waker>>,
}

/// Runs `f` with the current thread's core.
pub(crate) fn with_core<R>(f: impl FnOnce(&Rc<Core>) -> R) -> R {
    try_with_core(f).expect("this needs an event thread: a group of an Engine, a Local, or block_on")
}

pub(crate) fn try_with_core<R>(f: impl FnOnce(&Rc<Core>) -> R) -> Option<R> {
    // Not try_borrow: the cell is written only while a loop is entered or left.
    CORE.try_with(|core| core.borrow().as_ref().map(f)).ok().flatten()
}

/// Queues a claimed event that lives on the thread that is calling. One that wakes itself during its call has more to do
/// and gives way.
pub(crate) fn wake_local(node: EventNode) {
    let _ = try_with_core(|core| {
        if core.current.get() == Arc::as_ptr(&node) {
            core.shared.stats.yields.add(1);
        }
    });
    push_local(node);
}

/// Queues a claimed event on the thread that is calling. False: its loop is over.
pub(crate) fn push_local(node: EventNode) -> bool {
    let core = CORE.try_with(|core| core.borrow().clone()).ok().flatten();
    let Some(core) = core else {
        node.release();
        return false;
    };
    let queue = if core.firing.get() { &core.due } else { &core.local };
    queue.borrow_mut().push_back(node);
    true
}

/// The core is current as long as this lives; then everything it holds is dropped, on its own thread.
pub(crate) struct Entered(Rc<Core>);

impl std::ops::Deref for Entered {
    type Target = Rc<Core>;
    fn deref(&self) -> &Rc<Core> {
        &self.0
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.cancel_all();
        Shared::leave();
        CORE.with(|core| core.borrow_mut().take());
    }
}

/// A call is in progress.
pub(crate) struct Calling<'a>(&'a Core);

impl Drop for Calling<'_> {
    fn drop(&mut self) {
        self.0.current.set(std::ptr::null());
    }
}

impl Core {
    /// Makes the calling thread an event thread.
    ///
    /// # Panics
    /// If it is one already.
    pub(crate) fn enter(shared: Arc<Shared>, handle: Handle, abort_on_panic: bool) -> Entered {
        let now = Instant::now();
        let page = handle.inner.pulse.clone();
        let pulse = page.map(|page| Pulse::new(page, shared.id.index(), &shared.name, now));
        let core = Rc::new(Core {
            shared,
            handle,
            pulse,
            abort_on_panic,
            origin: now,
            now: Cell::new(now),
            local: RefCell::default(),
            due: RefCell::default(),
            firing: Cell::new(false),
            arrived: RefCell::new(Batch::empty()),
            wheel: RefCell::default(),
            sources: RefCell::default(),
            tasks: RefCell::default(),
            epoll_events: RefCell::new(vec![EpollEvent::empty(); EPOLL_EVENTS]),
            unpolled: Cell::new(0),
            root_woken: Cell::new(false),
            current: Cell::new(std::ptr::null()),
            calls: Cell::new(0),
            draining: Cell::new(false),
            drained: Cell::new(false),
            going: Cell::new(0),
            drain_wakers: RefCell::default(),
        });
        CORE.with(|current| {
            let before = current.borrow_mut().replace(core.clone());
            assert!(before.is_none(), "an event loop already runs on this thread");
        });
        core.shared.enter();
        Entered(core)
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(crate) fn now(&self) -> Instant {
        self.now.get()
    }

    /// The first tick not before `at`.
    pub(crate) fn tick(&self, at: Instant) -> u64 {
        let nanos = at.saturating_duration_since(self.origin).as_nanos();
        u64::try_from(nanos.div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }

    pub(crate) fn draining(&self) -> bool {
        self.draining.get()
    }

    /// Notes what is being called, as long as the result lives.
    pub(crate) fn calling(&self, node: &EventNode) -> Calling<'_> {
        self.current.set(Arc::as_ptr(node));
        self.calls.set(self.calls.get() + 1);
        Calling(self)
    }

    /// The number of the call in progress, or of the last one.
    pub(crate) fn call(&self) -> u64 {
        self.calls.get()
    }

    pub(crate) fn take_root_woken(&self) -> bool {
        self.root_woken.take()
    }

    /// Runs until the engine says stop. A thread that has drained says so and goes on: others may still need it.
    pub(crate) fn run(self: &Rc<Self>) {
        loop {
            match self.shared.command.load(Ordering::Acquire) {
                STOP => return,
                DRAIN => self.drain(),
                _ => {}
            }
            self.round(true);
        }
    }

    fn drain(&self) {
        if !self.draining.replace(true) {
            let wakers: Vec<Waker> = self.drain_wakers.borrow().iter().map(|(_, w)| w.clone()).collect();
            wakers.into_iter().for_each(Waker::wake);
        }
        if self.owes_drained() && self.shared.queue.is_empty() {
            self.drained.set(true);
            self.shared.drained.set();
        }
    }

    /// Nothing is in progress any more, and that has not been said yet.
    fn owes_drained(&self) -> bool {
        self.draining.get()
            && !self.drained.get()
            && self.tasks.borrow().is_empty()
            && self.going.get() == 0
            && self.idle()
    }

    /// One round of the loop; sleeps at its end if there is nothing to do and `sleep` allows it.
    pub(crate) fn round(self: &Rc<Self>, sleep: bool) {
        let stats = &self.shared.stats;
        stats.rounds.add(1);
        if let Some(pulse) = &self.pulse {
            pulse.busy(self.now());
        }
        self.fire_timers();
        let mut done = self.run_due();
        let standing = self.local.borrow().len();
        if self.arrived.borrow().is_empty() {
            self.take_in();
        }
        let waiting = (standing + self.arrived.borrow().len()) as u64;
        stats.queue.set(waiting);
        stats.queue_high.raise(waiting);
        for _ in 0..standing {
            let Some(node) = self.local.borrow_mut().pop_front() else { break };
            node.release();
            self.arrive(node);
        }
        done += standing;
        done += self.call_arrived();
        stats.events.add(done as u64);

        // One look at the clock ends this round and begins the next.
        let now = Instant::now();
        stats.round((now - self.now.replace(now)).as_micros() as u64);
        let unpolled = self.unpolled.get() + done.max(ROUND / 16);
        let idle = self.idle() && !self.root_woken.get() && self.shared.queue.is_empty();
        if idle || unpolled >= ROUND {
            self.unpolled.set(0);
            self.poll(sleep && idle);
        } else {
            self.unpolled.set(unpolled);
        }
    }

    /// Takes in what other threads have sent.
    fn take_in(&self) {
        self.shared.took();
        *self.arrived.borrow_mut() = self.shared.queue.take();
    }

    fn call_arrived(self: &Rc<Self>) -> usize {
        let mut done = 0;
        while done < ROUND {
            let Some(node) = self.arrived.borrow_mut().next() else { break };
            self.arrive(node);
            done += 1;
        }
        done
    }

    fn fire_timers(&self) {
        let now = self.origin_ticks();
        if self.wheel.borrow().next().is_none_or(|next| next > now) {
            return;
        }
        self.firing.set(true);
        let mut fired = 0;
        loop {
            let timer = self.wheel.borrow_mut().pop(now);
            match timer {
                None => break,
                Some(Timer::Wake(waker)) => waker.wake(),
                Some(Timer::Event(node)) => {
                    node.value.slot.store(NO_SLOT, Ordering::Relaxed);
                    if node.claim() {
                        self.due.borrow_mut().push_back(node);
                    }
                }
            }
            fired += 1;
        }
        self.firing.set(false);
        self.shared.stats.timers_fired.add(fired);
        self.shared.stats.timers.set(self.wheel.borrow().len() as u64);
    }

    /// Whole ticks that have passed.
    fn origin_ticks(&self) -> u64 {
        self.now.get().duration_since(self.origin).as_millis() as u64
    }

    fn run_due(self: &Rc<Self>) -> usize {
        let mut done = 0;
        loop {
            let Some(node) = self.due.borrow_mut().pop_front() else { return done };
            node.release();
            self.dispatch(node);
            done += 1;
        }
    }

    fn idle(&self) -> bool {
        self.local.borrow().is_empty() && self.due.borrow().is_empty() && self.arrived.borrow().is_empty()
    }

    fn poll(&self, sleep: bool) {
        let stats = &self.shared.stats;
        let stop = self.shared.command.load(Ordering::Relaxed) == STOP;
        let sleep = sleep && !stop && !self.owes_drained() && self.shared.queue.try_sleep();
        if sleep {
            stats.queue.set(0);
            if let Some(pulse) = &self.pulse {
                pulse.idle(self.now());
            }
        }
        let timeout = if sleep { self.until_next_timer() } else { EpollTimeout::ZERO };
        let mut events = self.epoll_events.borrow_mut();
        stats.polls.add(1);
        let count = match self.shared.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(e) => panic!("epoll_wait: {e}"), // EBADF, EFAULT, EINVAL: the loop itself is broken
        };
        if sleep {
            stats.wakeups.add(1);
            self.now.set(Instant::now());
            // The queue may still say SLEEPING (a timer or a socket woke us): awake from here.
            if self.arrived.borrow().is_empty() {
                self.take_in();
            }
        }
        for event in &events[..count] {
            let woken = self.sources.borrow_mut().event(event);
            for waker in woken.into_iter().flatten() {
                waker.wake();
            }
        }
        if count > 0 || sleep {
            self.adopt_orphans();
        }
    }

    fn until_next_timer(&self) -> EpollTimeout {
        let Some(next) = self.wheel.borrow().next() else { return EpollTimeout::NONE };
        let at = self.origin + Duration::from_millis(next);
        let millis = at.saturating_duration_since(self.now()).as_nanos().div_ceil(1_000_000);
        EpollTimeout::try_from(millis.min(i32::MAX as u128) as i32).unwrap_or(EpollTimeout::ZERO)
    }

    fn adopt_orphans(&self) {
        let orphans = std::mem::take(&mut *self.shared.orphans.lock().expect("never poisoned"));
        for token in orphans {
            let removed = self.sources.borrow_mut().remove(&self.shared, token);
            drop(removed);
        }
    }
}
