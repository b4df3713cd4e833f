//! An event loop on the calling thread: no thread is started, nothing is left behind.
//!
//! This is for programs that must stay single-threaded (because they fork), and for tests. Everything that works on an
//! event thread works here: spawning, timers, sockets, continuations through [`Local::handle`].

use crate::shared::Shared;
use crate::thread::{Core, Entered};
use crate::{Handle, Target, ThreadId};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// A loop that runs on the thread which made it, whenever [`Local::run`] is called.
///
/// Tasks that were spawned stay in it between two runs, and are dropped with it.
pub struct Local {
    core: Entered,
    // Neither Send nor Sync, by the Rc in `core`.
}

impl Local {
    /// Makes the calling thread an event thread, until this is dropped.
    ///
    /// # Errors
    /// If the system gives no epoll or eventfd.
    ///
    /// # Panics
    /// If the thread is an event thread already.
    pub fn new() -> io::Result<Self> {
        let shared = Shared::new(ThreadId::FIRST, "local-0".into(), usize::MAX, false)?;
        let handle = Handle::single(shared.clone());
        Ok(Local { core: Core::enter(shared, handle, false) })
    }

    /// The way into this loop, from this thread and others. It has one group, `local`, of one thread.
    pub fn handle(&self) -> Handle {
        self.core.handle().clone()
    }

    /// Where to schedule what shall run here.
    pub fn target(&self) -> Target {
        Target::Thread(ThreadId::FIRST)
    }

    /// Runs the loop until `future` is ready. A panic in `future` itself goes to the caller.
    pub fn run<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let root = self.core.root();
        let waker = Waker::from(Arc::clone(&root));
        let mut cx = Context::from_waker(&waker);
        loop {
            let polled = {
                let _calling = self.core.calling(&root);
                future.as_mut().poll(&mut cx)
            };
            if let Poll::Ready(value) = polled {
                return value;
            }
            while !self.core.take_root_woken() {
                self.core.round(true);
            }
        }
    }
}

/// Runs a future on an event loop of its own, on the calling thread.
///
/// # Panics
/// If the thread is an event thread already, or the system gives no epoll; see [`Local::new`] for an error instead.
pub fn block_on<F: Future>(future: F) -> F::Output {
    Local::new().expect("an epoll and an eventfd").run(future)
}
