//! A cell that only one event thread may open, checked at run time and without an atomic exchange.
//!
//! The value is put in by whoever makes the cell, travels with it through a queue, and from then on is its thread's.
//! A mutex would say the same and cost two locked instructions for each event.

use crate::shared::here;
use std::cell::{Cell, UnsafeCell};

pub(crate) struct Owned<T> {
    /// Serial number of the thread that may open it.
    owner: u64,
    value: UnsafeCell<T>,
    open: Cell<bool>,
}

// SAFETY: `value` and `open` are touched by `with` alone, and that only on the one thread whose serial number is
// `owner` (numbers are never used twice, see `shared::Serial`), or by `drop`, which has the cell to itself. So the
// value moves from the thread that made the cell to its owner and from there to the one that drops it: `T: Send`.
unsafe impl<T: Send> Sync for Owned<T> {}

impl<T> Owned<T> {
    pub(crate) fn new(owner: u64, value: T) -> Self {
        Owned { owner, value: UnsafeCell::new(value), open: Cell::new(false) }
    }

    /// Opens the cell for the time of a call. The call may do anything but open it again.
    ///
    /// # Panics
    /// On any other thread than the owner, or when the cell is open already.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        assert!(here() == self.owner, "an event was opened away from its thread");
        assert!(!self.open.replace(true), "an event was opened while it was open");
        let close = Close(&self.open);
        // SAFETY: this is the only thread that ever comes here, and `open` says that it has not come here before and
        // not left; so there is no other reference to the value.
        let result = f(unsafe { &mut *self.value.get() });
        drop(close);
        result
    }
}

/// Closes the cell, after a panic as well.
struct Close<'a>(&'a Cell<bool>);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "away from its thread")]
    fn no_other_thread_opens_it() {
        Owned::new(77, ()).with(|()| ());
    }
}
