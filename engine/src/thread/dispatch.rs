//! What becomes of an event on its thread: into the wheel, called, put off, ended.

use super::{Core, Timer};
use crate::event::{Body, Context, Event, EventNode, Later, NO_SLOT, Next, Start};
use crate::fenced::stack::{Batch, Node};
use crate::task::{AnyTask, JoinError};
use crate::wheel::TimerKey;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

impl Core {
    /// An event comes out of a queue: it is called, or put into the wheel if it is for later.
    pub(super) fn arrive(self: &Rc<Self>, node: EventNode) {
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
    pub(super) fn dispatch(self: &Rc<Self>, node: EventNode) {
        let event = &node.value;
        if !event.state.begin() {
            return self.discard(&node);
        }
        let calling = self.calling(&node);
        let called = event.body.with(|body| match body {
            Body::Continuation(continuation) => {
                self.disarm(event);
                let late = self.missed(event);
                self.calls(continuation.name());
                let mut cx = Context { core: self, node: &node, late };
                let result = catch_unwind(AssertUnwindSafe(|| continuation.handle(&mut cx)));
                let next = result.unwrap_or_else(|panic| {
                    self.panicked(continuation.name(), &*panic);
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
        drop(calling);
        match called {
            Called::Next(next, holds) => self.continue_with(&node, next, holds),
            Called::Start(start) => match catch_unwind(AssertUnwindSafe(|| start(self, &node))) {
                Ok(task) => self.poll_task(&node, &task),
                Err(panic) => {
                    self.panicked("spawn_on", &*panic);
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
        let calling = self.calling(node);
        let polled = catch_unwind(AssertUnwindSafe(|| task.poll()));
        drop(calling);
        let over = polled.unwrap_or_else(|panic| {
            self.panicked(task.name(), &*panic);
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
                && let Err(panic) = catch_unwind(AssertUnwindSafe(|| task.end(JoinError::Cancelled)))
            {
                self.panicked(task.name(), &*panic);
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
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(body))) {
            self.panicked("a continuation's drop", &*panic);
        }
    }

    /// Counts and reports a panic that was caught, and ends the process if that is what the engine was built for.
    pub(crate) fn panicked(&self, who: &str, panic: &(dyn Any + Send)) {
        self.shared.stats.panics.add(1);
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("");
        log::error!("event=panic thread={} continuation=\"{who}\" message={said:?}", self.shared.name);
        if self.abort_on_panic {
            std::process::abort();
        }
    }

    /// Ends whatever is left, while the thread still is an event thread.
    pub(super) fn cancel_all(&self) {
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
