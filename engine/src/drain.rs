//! The beginning of the end: waiting for the engine to shut down.

use crate::thread::try_with_core;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Has the engine begun to shut down? False outside of an event thread.
pub fn is_draining() -> bool {
    try_with_core(|core| core.draining()).unwrap_or(false)
}

/// Waits until the engine begins to shut down: the moment to finish what is in progress and take nothing new.
pub fn draining() -> Draining {
    Draining { registered: None }
}

/// See [`draining`]. It leaves nothing behind when it is dropped: connections come and go by the million while the engine
/// runs.
#[derive(Debug)]
pub struct Draining {
    /// Its place among those who wait, and the loop it belongs to.
    registered: Option<(usize, u64)>,
}

impl Future for Draining {
    type Output = ();

    /// # Panics
    /// Outside of an event thread.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        crate::thread::with_core(|core| {
            if core.draining() {
                return Poll::Ready(());
            }
            let old = match self.registered {
                Some((key, home)) if home == core.shared.serial => {
                    let mut wakers = core.drain_wakers.borrow_mut();
                    let waker = &mut wakers[key];
                    let other = !waker.will_wake(cx.waker());
                    other.then(|| std::mem::replace(waker, cx.waker().clone()))
                }
                _ => {
                    let key = core.drain_wakers.borrow_mut().insert(cx.waker().clone());
                    self.registered = Some((key, core.shared.serial));
                    None
                }
            };
            drop(old); // nothing is borrowed here: it may be the last of its task
            Poll::Pending
        })
    }
}

impl Drop for Draining {
    fn drop(&mut self) {
        let Some((key, home)) = self.registered else { return };
        let waker = try_with_core(|core| {
            let here = home == core.shared.serial;
            if here { core.drain_wakers.borrow_mut().try_remove(key) } else { None }
        });
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::task::{Wake, Waker};

    struct Nobody;
    impl Wake for Nobody {
        fn wake(self: Arc<Self>) {}
    }

    #[test]
    fn who_no_longer_waits_is_forgotten() {
        crate::block_on(async {
            let nobody = Arc::new(Nobody);
            let waker = Waker::from(nobody.clone());
            for _ in 0..3 {
                let mut waiting = draining();
                assert!(Pin::new(&mut waiting).poll(&mut Context::from_waker(&waker)).is_pending());
                assert!(Pin::new(&mut waiting).poll(&mut Context::from_waker(&waker)).is_pending());
                assert_eq!(Arc::strong_count(&nobody), 3);
            }
            assert_eq!(Arc::strong_count(&nobody), 2);
        });
    }
}
