//! Waiting for a time, on the wheel of the current thread. Ticks are milliseconds; nothing is early.

use crate::thread::{Timer, try_with_core, with_core};
use crate::wheel::TimerKey;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// The time at which the current round of this thread's loop began: no system call, good enough for deadlines.
/// Elsewhere it asks the clock.
pub fn now() -> Instant {
    try_with_core(|core| core.now()).unwrap_or_else(Instant::now)
}

/// Is ready `after` from the real now.
pub fn sleep(after: Duration) -> Sleep {
    sleep_until(Instant::now() + after)
}

/// Is ready at `deadline`, or in the millisecond after it.
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep { deadline, timer: None }
}

/// A timer that can be set again. It is plain data (`Send`, `Sync`, `Unpin`): the wheel it stands in is found through the
/// thread that polls it.
#[derive(Debug)]
pub struct Sleep {
    deadline: Instant,
    /// The key, and the loop whose wheel it belongs to.
    timer: Option<(TimerKey, u64)>,
}

impl Sleep {
    /// When it will be ready.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Sets it to another time, earlier or later: one relink in the wheel, nothing else is touched. Who polled it last is
    /// woken then. One that has been ready starts anew, and has to be polled again.
    pub fn reset(&mut self, deadline: Instant) {
        self.deadline = deadline;
        let Some((key, home)) = self.timer else { return };
        let moved = try_with_core(|core| {
            home == core.shared.serial && core.wheel.borrow_mut().reset(key, core.tick(deadline))
        });
        if moved != Some(true) {
            self.timer = None;
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        with_core(|core| {
            if self.deadline <= core.now() {
                self.forget();
                return Poll::Ready(());
            }
            if let Some((key, home)) = self.timer
                && home == core.shared.serial
            {
                let mut wheel = core.wheel.borrow_mut();
                if let Some(Timer::Wake(waker)) = wheel.get_mut(key) {
                    let other = !waker.will_wake(cx.waker());
                    let old = other.then(|| std::mem::replace(waker, cx.waker().clone()));
                    drop(wheel);
                    drop(old); // nothing is borrowed here: it may be the last of its task
                    return Poll::Pending;
                }
            }
            let key = core.add_timer(self.deadline, Timer::Wake(cx.waker().clone()));
            self.timer = Some((key, core.shared.serial));
            Poll::Pending
        })
    }
}

impl Sleep {
    fn forget(&mut self) {
        let Some((key, home)) = self.timer.take() else { return };
        // On another thread than its own it stays in that wheel and wakes somebody who no longer waits: harmless.
        let timer =
            try_with_core(|core| if home == core.shared.serial { core.cancel_timer(key) } else { None });
        drop(timer);
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.forget();
    }
}

/// The deadline came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the deadline has passed")]
pub struct Elapsed;

/// Runs a future for at most `limit`, then drops it.
///
/// # Errors
/// [`Elapsed`] if it was not ready by then.
pub async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    timeout_at(Instant::now() + limit, future).await
}

/// Runs a future until `deadline`, then drops it.
///
/// # Errors
/// [`Elapsed`] if it was not ready by then.
pub async fn timeout_at<F: Future>(deadline: Instant, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut sleep = sleep_until(deadline);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(value) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(value));
        }
        Pin::new(&mut sleep).poll(cx).map(|()| Err(Elapsed))
    })
    .await
}
