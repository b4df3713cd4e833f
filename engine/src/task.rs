//! Futures as continuations: a task is an event whose body is a future that never leaves its thread.
//!
//! The future lives in the slab of its thread and its event is the waker: waking it queues the event, on its own
//! thread into the local queue, from another through the external one. Nothing about the future is shared.

use crate::event::{Body, Event, EventHandle, EventNode};
use crate::shared::Shared;
use crate::thread::{Core, with_core};
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

/// Why a task has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// It was aborted, or its thread ended.
    #[error("the task was cancelled")]
    Cancelled,
    /// It panicked; the message is in the log.
    #[error("the task panicked")]
    Panicked,
}

/// What the loop does with a task, whatever its future's type.
pub(crate) trait AnyTask {
    /// True: it is over.
    fn poll(&self) -> bool;
    /// Drops the future without a result.
    fn end(&self, why: JoinError);
    fn event(&self) -> &EventNode;
    fn name(&self) -> &'static str;
}

trait Join<T> {
    fn poll_result(&self, cx: &mut Context<'_>) -> Poll<Result<T, JoinError>>;
    fn handle(&self) -> EventHandle;
    fn is_over(&self) -> bool;
}

enum Outcome<T> {
    Running(Option<Waker>),
    Over(Result<T, JoinError>),
    Taken,
}

struct Task<F: Future> {
    future: RefCell<Option<Pin<Box<F>>>>,
    outcome: RefCell<Outcome<F::Output>>,
    event: EventNode,
    waker: Waker,
}

impl<F: Future> Task<F> {
    fn settle(&self, result: Result<F::Output, JoinError>) {
        // Dropped before anyone is told, outside of every borrow: its destructors may do anything.
        drop(self.future.take());
        let before = self.outcome.replace(Outcome::Over(result));
        match before {
            Outcome::Running(Some(waiter)) => waiter.wake(),
            Outcome::Running(None) => {}
            over => drop(self.outcome.replace(over)),
        }
    }
}

impl<F: Future> AnyTask for Task<F> {
    fn poll(&self) -> bool {
        let Some(mut future) = self.future.take() else { return true };
        match future.as_mut().poll(&mut Context::from_waker(&self.waker)) {
            Poll::Pending => {
                *self.future.borrow_mut() = Some(future);
                false
            }
            Poll::Ready(value) => {
                drop(future);
                self.settle(Ok(value));
                true
            }
        }
    }

    fn end(&self, why: JoinError) {
        self.settle(Err(why));
    }

    fn event(&self) -> &EventNode {
        &self.event
    }

    fn name(&self) -> &'static str {
        std::any::type_name::<F>()
    }
}

impl<F: Future> Join<F::Output> for Task<F> {
    fn poll_result(&self, cx: &mut Context<'_>) -> Poll<Result<F::Output, JoinError>> {
        let mut outcome = self.outcome.borrow_mut();
        match &mut *outcome {
            Outcome::Running(waiter) => {
                let old = waiter.replace(cx.waker().clone());
                drop(outcome);
                drop(old);
                Poll::Pending
            }
            Outcome::Over(_) => match std::mem::replace(&mut *outcome, Outcome::Taken) {
                Outcome::Over(result) => Poll::Ready(result),
                _ => unreachable!("just looked"),
            },
            Outcome::Taken => panic!("JoinHandle polled after it gave its result"),
        }
    }

    fn handle(&self) -> EventHandle {
        EventHandle { node: self.event.clone() }
    }

    fn is_over(&self) -> bool {
        !matches!(&*self.outcome.borrow(), Outcome::Running(_))
    }
}

/// Waits for a task on the same thread. Dropping it lets the task run on by itself.
pub struct JoinHandle<T> {
    task: Rc<dyn Join<T>>,
}

impl<T> JoinHandle<T> {
    /// Has the task dropped where it stands, in the next round of the loop. Nothing happens if it is over.
    pub fn abort(&self) {
        self.task.handle().cancel();
    }

    /// The task has ended.
    pub fn is_finished(&self) -> bool {
        self.task.is_over()
    }

    /// The event behind the task, by which other threads can cancel it.
    pub fn event(&self) -> EventHandle {
        self.task.handle()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.task.poll_result(cx)
    }
}

impl<T> std::fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinHandle").field("finished", &self.is_finished()).finish()
    }
}

/// Puts a future into the slab of `core`, as the body of `event`.
fn install<F: Future + 'static>(core: &Rc<Core>, event: &EventNode, future: F) -> Rc<Task<F>> {
    event.value.home.get_or_init(|| core.shared.clone());
    let task = Rc::new(Task {
        future: RefCell::new(Some(Box::pin(future))),
        outcome: RefCell::new(Outcome::Running(None)),
        event: event.clone(),
        waker: Waker::from(Arc::clone(event)),
    });
    let slot = core.tasks.borrow_mut().insert(task.clone());
    event.value.slot.store(slot as u64, Ordering::Relaxed);
    core.shared.stats.tasks.set(core.tasks.borrow().len() as u64);
    task
}

/// Starts a future on the current event thread. It need not be `Send`, and never leaves the thread.
///
/// # Panics
/// Outside of an event thread or [`block_on`](crate::block_on).
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    with_core(|core| {
        let event = Event::node(&core.shared, None, Body::Task);
        let task = install(core, &event, future);
        core.shared.send(event);
        JoinHandle { task }
    })
}

/// The event that makes a future on the thread it arrives at.
pub(crate) fn starter<M, F>(home: &Shared, make: M) -> EventNode
where
    M: FnOnce() -> F + Send + 'static,
    F: Future<Output = ()> + 'static,
{
    let start = move |core: &Rc<Core>, event: &EventNode| -> Rc<dyn AnyTask> { install(core, event, make()) };
    Event::node(home, None, Body::Start(Box::new(start)))
}

/// Gives way to everything that waits on this thread now; counted as a yield.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}
