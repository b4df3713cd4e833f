//! How long clients wait for the disk.

use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::sync::atomic::{AtomicU8, AtomicUsize};
use std::time::Duration;

/// A client doesn't wait longer for the disk than this: the origin has it too.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// Knows whether something is overdue.
#[derive(Debug, Default)]
pub(super) struct Patience(Arc<AtomicUsize>);

/// Why somebody doesn't know what has come of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Impatient {
    /// It isn't done yet, and goes on by itself.
    Late,
    /// It isn't done at all.
    Refused,
}

const UNDER_WAY: u8 = 0;
const LATE: u8 = 1;
const DONE: u8 = 2;

/// Says that a job is done, also if it panics or is never begun.
struct Job {
    state: Arc<AtomicU8>,
    overdue: Arc<AtomicUsize>,
}

impl Drop for Job {
    fn drop(&mut self) {
        if self.state.swap(DONE, AcqRel) == LATE {
            self.overdue.fetch_sub(1, AcqRel);
        }
    }
}

impl Patience {
    /// Somebody has waited for too long, and what he waited for is still under way: another one needn't begin.
    pub fn is_at_an_end(&self) -> bool {
        self.0.load(Acquire) > 0
    }

    /// Has something done that blocks, and waits for it as long as a client may have to.
    ///
    /// # Errors
    /// It isn't done yet, or can't be.
    pub async fn wait<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Impatient> {
        let state = Arc::new(AtomicU8::new(UNDER_WAY));
        let job = Job { state: state.clone(), overdue: self.0.clone() };
        let work = engine::blocking::run(move || {
            let _job = job;
            f()
        });
        match engine::time::timeout(PATIENCE, work).await {
            Ok(done) => done.map_err(|_| Impatient::Refused),
            Err(_) => {
                // counted first: who is done in between takes it back
                self.0.fetch_add(1, AcqRel);
                if state.swap(LATE, AcqRel) == DONE {
                    self.0.fetch_sub(1, AcqRel);
                }
                Err(Impatient::Late)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn what_is_overdue_is_known_until_it_is_done() {
        let engine = engine::Engine::builder()
            .group("net", engine::GroupConfig::default())
            .group("task", engine::GroupConfig::default())
            .start()
            .unwrap();
        let patience = Arc::new(Patience::default());
        let ((go, gate), (say, said)) = (channel::<()>(), channel());
        let shared = patience.clone();
        let handle = engine.handle();
        let net = handle.group("net").unwrap();
        drop(handle.spawn_on(net, move || async move {
            assert_eq!(shared.wait(|| 1).await, Ok(1));
            assert!(!shared.is_at_an_end());
            let late = shared.wait(move || gate.recv()).await;
            say.send((late, shared.is_at_an_end())).unwrap();
        }));
        assert_eq!(said.recv().unwrap(), (Err(Impatient::Late), true));
        drop(go);
        while patience.is_at_an_end() {
            std::thread::yield_now();
        }
    }
}
