//! When a job's worker counts as ready.

use super::output::{Seen, take};
use super::worker::Worker;
use super::{Job, probe};
use crate::config::job::Ready;
use crate::manager::keep::Keep;
use engine::io::Async;
use engine::net::Stream;
use engine::time::{sleep, timeout};
use policy::Time;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;
use supervisor::clock;

/// Between attempts to connect; it grows up to [`SELDOM`].
const OFTEN: Duration = Duration::from_millis(20);
const SELDOM: Duration = Duration::from_millis(500);

/// Waits for the readiness of a worker that was spawned then, by us or an earlier manager, in the way its job has it. The start
/// grace of its machine ends it if that never comes.
pub(super) fn watch(keep: &Rc<Keep>, job: &Rc<Job>, w: &Rc<Worker>, spawned: Time) {
    let (keep, job, w, generation) = (keep.clone(), job.clone(), w.clone(), w.generation());
    let (ready, limit) = {
        let c = job.config.borrow();
        (c.ready.clone(), c.probe_timeout)
    };
    if ready == Ready::Notify {
        return;
    }
    drop(engine::spawn(async move {
        let came = match ready {
            Ready::Running(time) => {
                sleep((spawned + time).saturating_sub(clock::now())).await;
                true
            }
            Ready::Fd => {
                let notify = w.notify.borrow().clone();
                match notify {
                    Some(pipe) => newline(&keep, &pipe).await.unwrap_or(false),
                    None => false,
                }
            }
            Ready::Tcp(addr) => {
                let connect = || timeout(limit, Stream::connect_tcp(addr));
                succeeds(&w, generation, async || matches!(connect().await, Ok(Ok(_)))).await
            }
            Ready::Unix(path) => {
                let connect = || timeout(limit, Stream::connect_unix(&path));
                succeeds(&w, generation, async || matches!(connect().await, Ok(Ok(_)))).await
            }
            Ready::Http(url) => match url.of(w.index) {
                Some(place) => {
                    let ask = || timeout(limit, probe::http(&place));
                    succeeds(&w, generation, async || ask().await == Ok(true)).await
                }
                None => false,
            },
            Ready::Exec(command) => {
                succeeds(&w, generation, || probe::exec(&keep, &job, w.index, &command)).await
            }
            Ready::Notify => false,
        };
        if came {
            keep.job_ready(&job, &w, generation);
        }
    }));
}

/// Tries until it succeeds, or the worker is another one.
async fn succeeds(w: &Worker, generation: u64, attempt: impl AsyncFn() -> bool) -> bool {
    let mut pause = OFTEN;
    while w.generation() == generation && w.exists() {
        if attempt().await {
            return true;
        }
        sleep(pause).await;
        pause = (pause * 2).min(SELDOM);
    }
    false
}

/// Waits until a newline comes (true), or the end. It isn't taken out: a manager that is killed before the next one can know of it
/// leaves it to that one.
async fn newline(keep: &Keep, pipe: &Async<OwnedFd>) -> io::Result<bool> {
    loop {
        pipe.readable().await?;
        // edge-triggered: noted as empty before it is looked at
        pipe.clear_read();
        loop {
            match keep.look_for_newline(pipe.get_ref())? {
                Seen::Nothing => break,
                Seen::Newline => return Ok(true),
                Seen::End => return Ok(false),
                Seen::Other(n) => take(pipe.get_ref(), n)?,
            }
        }
    }
}
