//! Events and continuations: the unit of work of the engine.
//!
//! An event is a place on one thread, a time, and a continuation. Its life, in one atomic word:
//!
//! ```text
//!            begin                     end: Again, After, Wait
//! WAITING ----------> RUNNING ------------------------------> WAITING
//!    |                   | end: Done, panic
//!    | cancel            v
//!    +---------------> DONE            CANCELLED is a flag beside these, set once
//! ```
//!
//! Only the event's own thread moves it between the three states; anybody may set the flag. So a cancel has a definite
//! answer: who sets the flag while the event is WAITING has prevented its next call. The continuation itself is only
//! ever called and dropped by its thread (or by whoever drops the engine's last queue).

use crate::fenced::owned::Owned;
use crate::fenced::stack::Node;
use crate::shared::Shared;
use crate::sync::atomic::{AtomicU8, Ordering};
use crate::task::AnyTask;
use crate::thread::Core;
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

pub(crate) type EventNode = Arc<Node<Event>>;

/// What a continuation wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing: it is over, and is dropped.
    Done,
    /// Another call, after everything that is waiting now.
    Again,
    /// Another call after this time, or as soon as its waker is used.
    After(Duration),
    /// Another call at this time, or as soon as its waker is used.
    At(Instant),
    /// Another call when its waker is used ([`Context::waker`], [`Context::readable`], …), and for an event of
    /// [`schedule_every`](crate::Handle::schedule_every) when its next period begins.
    Wait,
}

/// A state machine that is moved one step by each call.
///
/// Closures `FnMut(&mut Context) -> Next` are continuations.
pub trait Continuation {
    /// Moves one step and says what is next. Must not block: everything else on the thread waits meanwhile.
    fn handle(&mut self, cx: &mut Context<'_>) -> Next;

    /// Whether the end of an engine waits for it, once it has been called and wants to be called again. A continuation
    /// that serves others as long as they live says no, and is cancelled when they have ended.
    fn holds_up_drain(&self) -> bool {
        true
    }

    /// Names the kind of continuation in logs and in the pulse page.
    fn name(&self) -> &'static str {
        std::any::type_name::<Self>()
    }
}

impl<F: FnMut(&mut Context<'_>) -> Next> Continuation for F {
    fn handle(&mut self, cx: &mut Context<'_>) -> Next {
        self(cx)
    }
}

/// Makes a continuation of a closure that is called once.
pub fn once(f: impl FnOnce() + Send + 'static) -> impl Continuation + Send + 'static {
    let mut f = Some(f);
    move |_: &mut Context<'_>| {
        if let Some(f) = f.take() {
            f();
        }
        Next::Done
    }
}

/// What a continuation can see of the thread it runs on.
pub struct Context<'a> {
    pub(crate) core: &'a Rc<Core>,
    pub(crate) node: &'a EventNode,
    pub(crate) late: u64,
}

impl Context<'_> {
    /// The time at which this round of the loop began.
    pub fn now(&self) -> Instant {
        self.core.now()
    }

    /// The engine this runs in.
    pub fn handle(&self) -> &crate::Handle {
        self.core.handle()
    }

    /// The thread this runs on.
    pub fn thread(&self) -> crate::ThreadId {
        self.core.shared.id
    }

    /// For a periodic event: how many whole periods have been missed since the last call.
    pub fn missed(&self) -> u64 {
        self.late
    }

    /// A waker that has this continuation called again; it may be used on any thread.
    pub fn waker(&self) -> std::task::Waker {
        self.node.value.home.get_or_init(|| self.core.shared.clone());
        std::task::Waker::from(self.node.clone())
    }

    /// Waits until `source` is readable; [`Next::Again`] if it is already.
    pub fn readable<T: std::os::fd::AsFd>(&self, source: &crate::io::Async<T>) -> Next {
        let waker = self.waker();
        match source.poll_read_ready(&mut std::task::Context::from_waker(&waker)) {
            std::task::Poll::Ready(_) => Next::Again,
            std::task::Poll::Pending => Next::Wait,
        }
    }

    /// Waits until `source` is writable; [`Next::Again`] if it is already.
    pub fn writable<T: std::os::fd::AsFd>(&self, source: &crate::io::Async<T>) -> Next {
        let waker = self.waker();
        match source.poll_write_ready(&mut std::task::Context::from_waker(&waker)) {
            std::task::Poll::Ready(_) => Next::Again,
            std::task::Poll::Pending => Next::Wait,
        }
    }
}

/// For an event that is not for now. Apart from the event, so that those which are stay small.
pub(crate) struct Later {
    /// When its first call is due.
    pub(crate) at: Instant,
    pub(crate) every: Option<Duration>,
    /// Which period the last call was in, or [`NO_SLOT`]. Its thread's alone.
    pub(crate) period: AtomicU64,
}

impl Later {
    pub(crate) fn new(at: Instant, every: Option<Duration>) -> Option<Box<Self>> {
        Some(Box::new(Later { at, every, period: AtomicU64::new(NO_SLOT) }))
    }
}

pub(crate) type Start = Box<dyn FnOnce(&Rc<Core>, &EventNode) -> Rc<dyn AnyTask> + Send>;

/// What an event calls.
pub(crate) enum Body {
    Continuation(Box<dyn Continuation + Send>),
    /// Makes a future on the thread it will live on.
    Start(Start),
    /// A future, in the slab of its thread at the event's slot.
    Task,
    /// The future of `block_on`, on its caller's stack.
    Root,
    Gone,
}

const WAITING: u8 = 0;
const RUNNING: u8 = 1;
const DONE: u8 = 2;
const CANCELLED: u8 = 4;

/// The state word alone, so that loom can try it out.
pub(crate) struct State(AtomicU8);

impl State {
    pub(crate) fn new() -> Self {
        State(AtomicU8::new(WAITING))
    }

    /// WAITING -> RUNNING. False: cancelled or over.
    #[must_use = "an event that did not begin must not be called"]
    pub(crate) fn begin(&self) -> bool {
        self.0.compare_exchange(WAITING, RUNNING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// RUNNING -> WAITING. False: it was cancelled during the call, and has to be finished.
    #[must_use = "an event that may not wait has to be finished"]
    pub(crate) fn wait(&self) -> bool {
        self.0.compare_exchange(RUNNING, WAITING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Says that the event can be found on its thread from now on. True: it has been cancelled already, by somebody who
    /// could not know. An exchange and not a load: whoever cancels later is then sure to see where it is.
    #[must_use = "a cancelled event has to be finished"]
    pub(crate) fn settle(&self) -> bool {
        self.0.fetch_or(WAITING, Ordering::AcqRel) & CANCELLED != 0
    }

    /// RUNNING -> DONE, at the end of a call. A cancel in the same moment comes too late or changes nothing.
    pub(crate) fn complete(&self) {
        self.0.store(DONE, Ordering::Release);
    }

    /// Any -> DONE. True for the first who says so.
    pub(crate) fn finish(&self) -> bool {
        self.0.swap(DONE, Ordering::AcqRel) & DONE == 0
    }

    /// Sets the flag. True: the event was waiting, and its next call has been prevented.
    pub(crate) fn cancel(&self) -> bool {
        let mut seen = self.0.load(Ordering::Acquire);
        loop {
            if seen & (DONE | CANCELLED) != 0 {
                return false;
            }
            match self.0.compare_exchange_weak(seen, seen | CANCELLED, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return seen == WAITING,
                Err(now) => seen = now,
            }
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.load(Ordering::Acquire) & (DONE | CANCELLED) != 0
    }
}

/// A flag that one thread alone uses, though others can see the event that it is in.
#[derive(Default)]
pub(crate) struct Flag(std::sync::atomic::AtomicBool);

impl Flag {
    pub(crate) fn swap(&self, to: bool) -> bool {
        let was = self.0.load(Ordering::Relaxed);
        if was != to {
            self.0.store(to, Ordering::Relaxed);
        }
        was
    }
}

pub(crate) const NO_SLOT: u64 = u64::MAX;

pub(crate) struct Event {
    pub(crate) state: State,
    pub(crate) later: Option<Box<Later>>,
    /// Where on its thread: key of its timer, or index of its task. Written by its thread only.
    pub(crate) slot: AtomicU64,
    /// It has been called and will be again, so that draining waits for it. Its thread's alone.
    pub(crate) going: Flag,
    /// Set by its thread before anybody could want to wake or reclaim it.
    pub(crate) home: OnceLock<Arc<Shared>>,
    pub(crate) body: Owned<Body>,
}

impl Event {
    /// An event for the thread `home`, claimed for its queue.
    pub(crate) fn node(home: &Shared, later: Option<Box<Later>>, body: Body) -> EventNode {
        Node::claimed(Event {
            state: State::new(),
            later,
            slot: AtomicU64::new(NO_SLOT),
            going: Flag::default(),
            home: OnceLock::new(),
            body: Owned::new(home.serial, body),
        })
    }
}

impl std::task::Wake for Node<Event> {
    fn wake(self: Arc<Self>) {
        Self::wake_by_ref(&self);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(home) = self.value.home.get() {
            home.wake(self);
        }
    }
}

/// Names a scheduled event, so that it can be cancelled. Dropping it changes nothing.
#[derive(Clone)]
pub struct EventHandle {
    pub(crate) node: EventNode,
}

impl EventHandle {
    /// Cancels the event, from any thread. After this returns no call of its continuation *begins*.
    ///
    /// True: a call that was to come has been prevented by this. False: there was nothing left to prevent: it is over, it
    /// was cancelled before, or its call is in progress (which then is its last).
    pub fn cancel(&self) -> bool {
        let prevented = self.node.value.state.cancel();
        if prevented && let Some(home) = self.node.value.home.get() {
            home.wake(&self.node); // what it holds on its thread is given back there
        }
        prevented
    }

    /// The event will not be called again.
    pub fn is_over(&self) -> bool {
        self.node.value.state.is_over()
    }
}

impl std::fmt::Debug for EventHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventHandle").field("over", &self.is_over()).finish()
    }
}

/// Every interleaving of a cancel with the event's own thread; `RUSTFLAGS="--cfg loom" cargo test -p engine --lib loom`.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::State;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicBool, Ordering};
    use loom::thread;

    #[test]
    fn loom_a_cancel_and_a_call_agree_on_who_came_first() {
        loom::model(|| {
            let state = Arc::new(State::new());
            let cancellers: Vec<_> = (0..2)
                .map(|_| {
                    let state = state.clone();
                    thread::spawn(move || state.cancel())
                })
                .collect();
            let called = state.begin();
            if called {
                state.complete();
            } else {
                assert!(state.finish());
            }
            let prevented =
                cancellers.into_iter().map(|t| t.join().unwrap()).filter(|prevented| *prevented).count();
            assert_eq!(prevented + usize::from(called), 1);
            assert!(state.is_over());
        });
    }

    #[test]
    fn loom_no_call_begins_after_a_cancel_has_returned() {
        loom::model(|| {
            let state = Arc::new(State::new());
            let returned = Arc::new(AtomicBool::new(false));
            let canceller = {
                let (state, returned) = (state.clone(), returned.clone());
                thread::spawn(move || {
                    state.cancel();
                    returned.store(true, Ordering::Release);
                })
            };
            for _ in 0..2 {
                let late = returned.load(Ordering::Acquire);
                if !state.begin() {
                    break;
                }
                assert!(!late, "a call began after the cancel had returned");
                if !state.wait() {
                    break;
                }
            }
            canceller.join().unwrap();
            assert!(!state.begin());
        });
    }

    /// What an event that goes into the wheel holds there is given back, by its thread or because the canceller tells it.
    #[test]
    fn loom_a_cancel_is_noticed_by_the_thread_or_told_to_it() {
        loom::model(|| {
            let state = Arc::new(State::new());
            let home = Arc::new(AtomicBool::new(false));
            let canceller = {
                let (state, home) = (state.clone(), home.clone());
                // Relaxed: what orders the two is the state word.
                thread::spawn(move || state.cancel() && home.load(Ordering::Relaxed))
            };
            home.store(true, Ordering::Relaxed);
            let noticed = state.settle();
            let told = canceller.join().unwrap();
            assert!(noticed || told);
        });
    }
}
