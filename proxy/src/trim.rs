//! Giving memory back: what served connections have used and parked ones don't need.
//!
//! glibc gives only the end of a heap back by itself; after many connections were busy at once, what they have freed lies
//! between what lives, and would stay ours for ever.

use std::sync::atomic::{AtomicUsize, Ordering};

/// So many connections have to be parked until it is worth the walk.
const WORTH: usize = 512;

static PARKED: AtomicUsize = AtomicUsize::new(0);

/// A connection was parked.
pub fn parked() {
    if PARKED.fetch_add(1, Ordering::Relaxed) + 1 >= WORTH {
        PARKED.store(0, Ordering::Relaxed);
        // takes milliseconds with a large heap: not on an event thread
        drop(engine::spawn(async {
            let _ = engine::blocking::run(give_back).await;
        }));
    }
}

#[cfg(target_env = "gnu")]
fn give_back() {
    // SAFETY: malloc_trim(3) takes the allocator's own locks, and may be called at any time from any thread.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn give_back() {}
