//! The loop of an event thread, and everything only that thread may touch.
//!
//! One round:
//!
//! 1. timers that are due, before all else;
//! 2. the events that stood in the local queue when the round began;
//! 3. what has come through the external queue, at most [`ROUND`] of it before timers and epoll get their turn;
//! 4. epoll: without waiting if there is more to do, else until the next timer or wake-up.

use crate::event::{Body, Context, EventNode, Later, NO_SLOT, Next, Start};
use crate::fenced::stack::{Batch, Node};
use crate::pulse::Pulse;
use crate::reactor::Sources;
use crate::shared::{DRAIN, STOP, Shared};
use crate::task::{AnyTask, JoinError};
use crate::wheel::{TimerKey, Wheel};
use crate::{Handle, event::Event};
use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollTimeout};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
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
    draining: Cell<bool>,
    drained: Cell<bool>,
    /// Continuations that have been called and will be called again, periodic ones excepted.
    going: Cell<usize>,
    drain_wakers: RefCell<Vec<Waker>>,
}

/// Runs `f` with the current thread's core.
pub(crate) fn with_core<R>(f: impl FnOnce(&Rc<Core>) -> R) -> R {
    try_with_core(f).expect("this needs an event thread: a group of an Engine, a Local, or block_on")
}

pub(crate) fn try_with_core<R>(f: impl FnOnce(&Rc<Core>) -> R) -> Option<R> {
    // Not try_borrow: the cell is written only while a loop is entered or left.
    CORE.try_with(|core| core.borrow().as_ref().map(f)).ok().flatten()
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

    pub(crate) fn on_drain(&self, waker: Waker) {
        self.drain_wakers.borrow_mut().push(waker);
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
            for waker in self.drain_wakers.take() {
                waker.wake();
            }
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
        if standing > 0 {
            stats.queue.set(standing as u64);
            stats.queue_high.raise(standing as u64);
        }
        for _ in 0..standing {
            let Some(node) = self.local.borrow_mut().pop_front() else { break };
            node.release();
            self.arrive(node);
        }
        done += standing;
        done += self.take_arrived();
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

    fn take_arrived(self: &Rc<Self>) -> usize {
        if self.arrived.borrow().is_empty() {
            *self.arrived.borrow_mut() = self.shared.queue.take();
        }
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
        if sleep && let Some(pulse) = &self.pulse {
            pulse.idle(self.now());
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
                *self.arrived.borrow_mut() = self.shared.queue.take();
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
            let wakers = self.sources.borrow_mut().remove(&self.shared, token);
            drop(wakers);
        }
    }

    /// An event comes out of a queue: it is called, or put into the wheel if it is for later.
    fn arrive(self: &Rc<Self>, node: EventNode) {
        let event = &node.value;
        // Without a home it has never been seen here: it goes into the wheel, unless it has been cancelled.
        if let Some(later) = &event.later
            && event.home.get().is_none()
            && !event.state.is_over()
        {
            event.home.get_or_init(|| self.shared.clone());
            self.arm(&node, later.at);
            if event.state.settle() {
                self.discard(&node); // cancelled before it had a home to be reported to
            }
            return;
        }
        self.dispatch(node);
    }

    pub(crate) fn add_timer(&self, at: Instant, timer: Timer) -> TimerKey {
        let mut wheel = self.wheel.borrow_mut();
        let key = wheel.insert(self.tick(at), timer);
        self.shared.stats.timers.set(wheel.len() as u64);
        key
    }

    /// What the timer held is returned, to be dropped where nothing is borrowed.
    pub(crate) fn cancel_timer(&self, key: TimerKey) -> Option<Timer> {
        let mut wheel = self.wheel.borrow_mut();
        let timer = wheel.cancel(key);
        self.shared.stats.timers.set(wheel.len() as u64);
        timer
    }

    fn arm(&self, node: &EventNode, at: Instant) {
        let key = self.add_timer(at, Timer::Event(node.clone()));
        node.value.slot.store(key.to_bits(), Ordering::Relaxed);
    }

    fn disarm(&self, event: &Event) {
        let slot = event.slot.load(Ordering::Relaxed);
        if slot != NO_SLOT {
            event.slot.store(NO_SLOT, Ordering::Relaxed);
            drop(self.cancel_timer(TimerKey::from_bits(slot)));
        }
    }

    /// Calls an event once and does what it wants next.
    fn dispatch(self: &Rc<Self>, node: EventNode) {
        let event = &node.value;
        if !event.state.begin() {
            return self.discard(&node);
        }
        let called = event.body.with(|body| match body {
            Body::Continuation(continuation) => {
                self.disarm(event);
                let late = self.missed(event);
                self.calls(continuation.name());
                let mut cx = Context { core: self, node: &node, late };
                let result = catch_unwind(AssertUnwindSafe(|| continuation.handle(&mut cx)));
                let next = result.unwrap_or_else(|_| {
                    self.panicked(continuation.name());
                    Next::Done
                });
                Called::Next(next, continuation.holds_up_drain())
            }
            Body::Start(_) => match std::mem::replace(body, Body::Task) {
                Body::Start(start) => Called::Start(start),
                _ => unreachable!("just looked"),
            },
            Body::Task => Called::Task,
            Body::Root => Called::Root,
            Body::Gone => Called::Nothing,
        });
        match called {
            Called::Next(next, holds) => self.continue_with(&node, next, holds),
            Called::Start(start) => match catch_unwind(AssertUnwindSafe(|| start(self, &node))) {
                Ok(task) => self.poll_task(&node, &task),
                Err(_) => {
                    self.panicked("spawn_on");
                    event.state.complete();
                }
            },
            Called::Task => {
                let slot = event.slot.load(Ordering::Relaxed) as usize;
                let task = self.tasks.borrow().get(slot).cloned();
                if let Some(task) = task {
                    self.poll_task(&node, &task);
                }
            }
            Called::Root => {
                self.root_woken.set(true);
                let _ = event.state.wait();
            }
            Called::Nothing => {}
        }
    }

    fn calls(&self, name: &'static str) {
        if let Some(pulse) = &self.pulse {
            pulse.calls(name);
        }
    }

    fn poll_task(&self, node: &EventNode, task: &Rc<dyn AnyTask>) {
        self.calls(task.name());
        let over = catch_unwind(AssertUnwindSafe(|| task.poll())).unwrap_or_else(|_| {
            self.panicked(task.name());
            task.end(JoinError::Panicked);
            true
        });
        if over {
            self.forget_task(node);
            node.value.state.complete();
        } else if !node.value.state.wait() {
            self.discard(node);
        }
    }

    fn forget_task(&self, node: &EventNode) -> Option<Rc<dyn AnyTask>> {
        let slot = node.value.slot.swap(NO_SLOT, Ordering::Relaxed);
        let task = self.tasks.borrow_mut().try_remove(slot as usize);
        self.shared.stats.tasks.set(self.tasks.borrow().len() as u64);
        task
    }

    /// Notes which period of a periodic event this is, and says how many have been skipped since the last.
    fn missed(&self, event: &Event) -> u64 {
        let Some((later, every)) = periodic(event) else { return 0 };
        let since = self.now().saturating_duration_since(later.at).as_nanos();
        let this = u64::try_from(since / every.as_nanos().max(1)).unwrap_or(u64::MAX);
        let last = later.period.swap(this, Ordering::Relaxed);
        if last == NO_SLOT { 0 } else { this.saturating_sub(last).saturating_sub(1) }
    }

    fn continue_with(self: &Rc<Self>, node: &EventNode, next: Next, holds: bool) {
        let event = &node.value;
        if next == Next::Done {
            self.gone(event);
            event.state.complete();
            return self.drop_body(event);
        }
        event.home.get_or_init(|| self.shared.clone());
        if holds && periodic(event).is_none() && !event.going.swap(true) {
            self.going.set(self.going.get() + 1);
        }
        match next {
            Next::Done => unreachable!("handled above"),
            Next::Again => {
                self.shared.stats.yields.add(1);
            }
            Next::After(d) => self.arm(node, Instant::now() + d),
            Next::At(at) => self.arm(node, at),
            Next::Wait => {
                if let Some((later, every)) = periodic(event) {
                    self.arm(node, next_period(later.at, every, self.now()));
                }
            }
        }
        if !event.state.wait() {
            self.discard(node);
        } else if next == Next::Again && node.claim() {
            self.local.borrow_mut().push_back(node.clone());
        }
    }

    /// Ends an event that was cancelled, or that is over and was woken once more.
    fn discard(&self, node: &EventNode) {
        let event = &node.value;
        if !event.state.finish() {
            return;
        }
        self.shared.stats.cancelled.add(1);
        if event.body.with(|body| matches!(body, Body::Task)) {
            if let Some(task) = self.forget_task(node)
                && catch_unwind(AssertUnwindSafe(|| task.end(JoinError::Cancelled))).is_err()
            {
                self.panicked(task.name());
            }
        } else {
            self.gone(event);
            self.disarm(event);
            self.drop_body(event);
        }
    }

    /// The event no longer holds up the draining of its thread.
    fn gone(&self, event: &Event) {
        if event.going.swap(false) {
            self.going.set(self.going.get() - 1);
        }
    }

    /// Drops what an event would have called, where nothing is locked or borrowed.
    fn drop_body(&self, event: &Event) {
        let body = event.body.with(|body| std::mem::replace(body, Body::Gone));
        if catch_unwind(AssertUnwindSafe(|| drop(body))).is_err() {
            self.panicked("a continuation's drop");
        }
    }

    fn panicked(&self, who: &str) {
        self.shared.stats.panics.add(1);
        log::error!("event=panic thread={} continuation={who}", self.shared.name);
        if self.abort_on_panic {
            std::process::abort();
        }
    }

    /// Ends whatever is left, while the thread still is an event thread.
    fn cancel_all(&self) {
        let close = |batch: Batch<Event>| batch.for_each(|node| self.cancel_one(&node));
        close(self.shared.queue.close());
        close(self.arrived.replace(Batch::empty()));
        // Again as long as what is dropped leaves something new behind.
        while self.cancel_round() {}
        self.adopt_orphans();
    }

    fn cancel_round(&self) -> bool {
        let mut some = false;
        loop {
            let task = self.tasks.borrow().iter().next().map(|(_, task)| task.event().clone());
            let Some(node) = task else { break };
            some = true;
            self.cancel_one(&node);
        }
        let mut wheel = self.wheel.take();
        while let Some(timer) = wheel.pop(u64::MAX) {
            some = true;
            if let Timer::Event(node) = timer {
                node.value.slot.store(NO_SLOT, Ordering::Relaxed);
                self.cancel_one(&node);
            }
        }
        for queue in [&self.local, &self.due] {
            while let Some(node) = { queue.borrow_mut().pop_front() } {
                some = true;
                node.release();
                self.cancel_one(&node);
            }
        }
        some
    }

    fn cancel_one(&self, node: &EventNode) {
        node.value.state.cancel();
        self.discard(node);
    }

    /// The node that stands for the future of `block_on`.
    pub(crate) fn root(&self) -> EventNode {
        let node: Arc<Node<Event>> = Event::node(&self.shared, None, Body::Root);
        node.release();
        node.value.home.get_or_init(|| self.shared.clone());
        node
    }
}

/// What came of opening an event's body.
enum Called {
    /// What it wants next, and whether draining waits for that.
    Next(Next, bool),
    Start(Start),
    Task,
    Root,
    Nothing,
}

fn periodic(event: &Event) -> Option<(&Later, Duration)> {
    event.later.as_deref().and_then(|later| later.every.map(|every| (later, every)))
}

/// The first `first + n * period` after `now`.
fn next_period(first: Instant, period: Duration, now: Instant) -> Instant {
    let since = now.saturating_duration_since(first).as_nanos();
    let period_ns = period.as_nanos().max(1);
    let periods = since / period_ns + 1;
    first + Duration::from_nanos(u64::try_from(periods * period_ns).unwrap_or(u64::MAX))
}

/// Has the engine begun to shut down? False outside of an event thread.
pub fn is_draining() -> bool {
    try_with_core(|core| core.draining()).unwrap_or(false)
}

/// Waits until the engine begins to shut down: the moment to finish what is in progress and take nothing new.
pub async fn draining() {
    let mut registered = false;
    std::future::poll_fn(|cx| {
        with_core(|core| {
            if core.draining() {
                return std::task::Poll::Ready(());
            }
            if !std::mem::replace(&mut registered, true) {
                core.on_drain(cx.waker().clone());
            }
            std::task::Poll::Pending
        })
    })
    .await
}
