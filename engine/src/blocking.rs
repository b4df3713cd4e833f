//! Work that blocks (disk, name resolution), on the threads of the group `task`.
//!
//! The queue is the group's, not a thread's, so that no job waits behind a slow one while another thread is free. It is
//! bounded, and what does not fit is refused by name. The result comes back as a wake-up of the asking task.

use crate::event::{Context, Continuation, Next};
use crate::{Handle, ThreadId};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

/// Why there is no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many jobs wait as the group's `max_queue` allows.
    #[error("the queue of blocking work is full")]
    Full,
    /// The engine has no group called `task` (a [`Local`](crate::Local) has none).
    #[error("this engine has no group for blocking work")]
    NoGroup,
    /// The job panicked; the message is in the log.
    #[error("the blocking job panicked")]
    Panicked,
    /// The engine ended before the job began.
    #[error("the engine has ended")]
    Ended,
}

type Job = Box<dyn FnOnce(&Context<'_>) + Send>;

struct State {
    jobs: VecDeque<Job>,
    /// Threads that will not look at the queue by themselves.
    idle: Vec<ThreadId>,
}

pub(crate) struct Pool {
    state: Mutex<State>,
    max_queue: usize,
}

impl Pool {
    pub(crate) fn new(threads: Vec<ThreadId>, max_queue: usize) -> Self {
        Pool { state: Mutex::new(State { jobs: VecDeque::new(), idle: threads }), max_queue }
    }

    fn submit(self: &Arc<Self>, handle: &Handle, job: Job) -> Result<(), Refused> {
        let mut state = self.state.lock().expect("never poisoned");
        if state.jobs.len() >= self.max_queue {
            return Err(Refused::Full);
        }
        state.jobs.push_back(job);
        let idle = state.idle.pop();
        drop(state);
        if let Some(thread) = idle {
            handle.schedule_imm(thread, Worker { pool: self.clone(), thread });
        }
        Ok(())
    }

    /// Jobs that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().expect("never poisoned").jobs.len()
    }
}

/// One job per call, so that the thread's other events get their turn in between.
struct Worker {
    pool: Arc<Pool>,
    thread: ThreadId,
}

impl Continuation for Worker {
    fn handle(&mut self, cx: &mut Context<'_>) -> Next {
        let mut state = self.pool.state.lock().expect("never poisoned");
        let Some(job) = state.jobs.pop_front() else {
            state.idle.push(self.thread);
            return Next::Done;
        };
        drop(state);
        job(cx);
        Next::Again
    }

    fn name(&self) -> &'static str {
        policy::pulse::BLOCKING
    }
}

struct Slot<T> {
    result: Option<Result<T, Refused>>,
    waker: Option<Waker>,
}

/// Settles the slot when it is dropped, whatever became of the job.
struct Settle<T>(Arc<Mutex<Slot<T>>>);

impl<T> Settle<T> {
    fn set(&self, result: Result<T, Refused>) {
        let mut slot = self.0.lock().expect("never poisoned");
        slot.result.get_or_insert(result);
        let waker = slot.waker.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Drop for Settle<T> {
    fn drop(&mut self) {
        self.set(Err(Refused::Ended));
    }
}

/// Runs `f` on a thread of the group `task` and returns what it returns. Dropping the future does not stop a job that
/// has begun.
///
/// # Errors
/// [`Refused`] says why there is no result.
pub async fn run<T, F>(f: F) -> Result<T, Refused>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let handle = Handle::current().ok_or(Refused::NoGroup)?;
    let pool = handle.inner.pool.clone().ok_or(Refused::NoGroup)?;
    let slot = Arc::new(Mutex::new(Slot { result: None, waker: None }));
    let settle = Settle(slot.clone());
    let job = move |cx: &Context<'_>| {
        let result = catch_unwind(AssertUnwindSafe(f));
        if let Err(panic) = &result {
            cx.core.panicked("blocking work", &**panic);
        }
        settle.set(result.map_err(|_| Refused::Panicked));
    };
    pool.submit(&handle, Box::new(job))?;
    std::future::poll_fn(move |cx| {
        let mut slot = slot.lock().expect("never poisoned");
        match slot.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                slot.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    })
    .await
}

/// Jobs that wait in the queue of `handle`'s engine.
pub fn waiting(handle: &Handle) -> usize {
    handle.inner.pool.as_ref().map_or(0, |pool| pool.waiting())
}
