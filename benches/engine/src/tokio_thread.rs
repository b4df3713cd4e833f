//! A current_thread runtime of tokio's on a thread of its own, pinned to CPU 0 like the engine's.

use crate::pin;
use std::sync::mpsc;
use std::task::{Poll, Waker};

pub struct TokioThread {
    pub handle: tokio::runtime::Handle,
    /// Wakes what the thread blocks on, which then ends.
    end: Waker,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl TokioThread {
    pub fn start() -> Self {
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            pin(0);
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let mut polled = false;
            runtime.block_on(std::future::poll_fn(|cx| {
                if std::mem::replace(&mut polled, true) {
                    return Poll::Ready(());
                }
                let handle = tokio::runtime::Handle::current();
                tell.send((handle, cx.waker().clone())).expect("the starter waits");
                Poll::Pending
            }));
        });
        let (handle, end) = told.recv().expect("a runtime");
        TokioThread { handle, end, thread: Some(thread) }
    }
}

impl Drop for TokioThread {
    fn drop(&mut self) {
        self.end.wake_by_ref();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the runtime's thread");
        }
    }
}
