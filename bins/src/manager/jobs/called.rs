//! Jobs that run only when something calls them: a connection to one of their sockets, or the clock (`calendar`).
//!
//! ```text
//!            a connection, the clock, `start`
//!   asleep ------------------------------------> awake: its workers run as those of any job
//!     ^                                            |
//!     +--- idle for long, all have ended, `stop` --+
//! ```
//!
//! While it sleeps the manager watches its sockets and accepts nothing: who comes waits in the backlog. While it is awake
//! nobody but its workers looks at them, except to see whether it is idle: a few times in `idle_stop` it is asked whether a
//! connection is open, and one look is taken at whether a new one comes.

use super::Job;
use crate::config::Listen;
use crate::manager::keep::Keep;
use engine::JoinHandle;
use engine::io::Async;
use engine::time::{sleep, timeout};
use policy::Time;
use policy::schedule::Plan;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use supervisor::{clock, connections};

/// A job that ends without having taken what called it is called again no sooner than this.
const PAUSE: Duration = Duration::from_secs(1);
/// Looks in the time after which it is idle.
const LOOKS: u32 = 4;
/// Between two of them, at least and at most.
const OFTEN: Duration = Duration::from_millis(50);
const SELDOM: Duration = Duration::from_secs(10);

/// What is known of a job's being called; one that isn't called is always awake.
pub(super) struct Call {
    awake: Cell<bool>,
    /// Since when.
    since: Cell<Time>,
    /// Watches its sockets while it sleeps.
    watch: RefCell<Option<JoinHandle<()>>>,
    /// Looks whether it is idle while it is awake.
    idle: RefCell<Option<JoinHandle<()>>>,
    /// Why that couldn't be told: each reason is said once.
    said: RefCell<BTreeSet<String>>,
    pub(super) plan: RefCell<Option<Plan>>,
}

impl Call {
    pub(super) fn new(awake: bool) -> Call {
        Call {
            awake: Cell::new(awake),
            since: Cell::new(Time::ZERO),
            watch: RefCell::default(),
            idle: RefCell::default(),
            said: RefCell::default(),
            plan: RefCell::default(),
        }
    }

    pub(super) fn is_awake(&self) -> bool {
        self.awake.get()
    }

    /// Its processes were found, or it isn't called any more.
    pub(super) fn set_awake(&self, awake: bool) {
        self.awake.set(awake);
    }

    /// Its sockets have changed: what watches them begins anew.
    pub(super) fn look_away(&self) {
        for task in [self.watch.take(), self.idle.take()].into_iter().flatten() {
            task.abort();
        }
    }
}

impl Keep {
    /// Something calls a job.
    pub(super) fn wake_job(self: &Rc<Self>, job: &Rc<Job>, why: &str) {
        job.call.awake.set(true);
        job.call.since.set(clock::now());
        self.begin_anew(job);
        self.job_note(job, "called", why);
        self.run_begins(job);
        self.settle_jobs();
    }

    /// It has nothing to do any more.
    pub(super) fn sleep_job(self: &Rc<Self>, job: &Rc<Job>, why: &str) {
        if job.config.borrow().is_called() && job.call.awake.replace(false) {
            self.job_note(job, "asleep", why);
            self.run_ends(job, why);
            self.settle_jobs();
        }
    }

    /// Puts a job to sleep whose workers have all done what they were called for.
    pub(super) fn sleep_when_done(self: &Rc<Self>, job: &Rc<Job>) {
        let scheduled = job.config.borrow().schedule.is_some();
        let done = {
            let (workers, want) = (job.workers.borrow(), job.want.get());
            if scheduled {
                workers.iter().filter(|w| w.has_given_up()).for_each(|w| w.fail());
            }
            let wanted = || workers.iter().filter(|w| w.index < want);
            let all = wanted().all(|w| w.has_finished().is_some() && !w.exists());
            all && (scheduled || wanted().count() > 0)
        };
        if done && job.call.is_awake() {
            let how = job.how_it_ended();
            self.sleep_job(job, &how);
        }
    }

    /// Has somebody watch what is to be watched, and nothing else.
    pub(super) fn mind_calls(self: &Rc<Self>, job: &Rc<Job>) {
        let (on_demand, idle_stop) = {
            let c = job.config.borrow();
            (c.on_demand, c.idle_stop)
        };
        let counts = on_demand && job.up.get() && !job.removed.get() && !self.is_stopping();
        let (watch, idle) = match job.call.is_awake() {
            true => (false, counts && !idle_stop.is_zero()),
            false => (counts && job.is_down(), false),
        };
        mind(&job.call.watch, watch, || self.clone().watch_for_call(job.clone()));
        mind(&job.call.idle, idle, || self.clone().watch_for_rest(job.clone()));
    }

    async fn watch_for_call(self: Rc<Self>, job: Rc<Job>) {
        let earliest = job.call.since.get() + PAUSE;
        if job.call.since.get() > Time::ZERO {
            sleep(earliest.saturating_sub(clock::now())).await;
        }
        while let Err(e) = connection(&job).await {
            log::error!("event=watch-failed of=job job={}: {e}", job.name);
            sleep(PAUSE).await;
        }
        drop(job.call.watch.take());
        self.wake_job(&job, "connection");
    }

    async fn watch_for_rest(self: Rc<Self>, job: Rc<Job>) {
        let mut last = clock::now();
        loop {
            let limit = job.config.borrow().idle_stop;
            let begun = clock::now();
            let period = (limit / LOOKS).clamp(OFTEN, SELDOM);
            if timeout(period, connection(&job)).await.is_ok() {
                last = clock::now();
                sleep((begun + period).saturating_sub(last)).await;
            } else if !job.is_ready() || is_in_use(&job) {
                last = clock::now();
            } else if clock::now().saturating_sub(last) >= limit {
                break;
            }
        }
        drop(job.call.idle.take());
        self.sleep_job(&job, "idle");
    }
}

fn mind<F: Future<Output = ()> + 'static>(
    slot: &RefCell<Option<JoinHandle<()>>>,
    wanted: bool,
    task: impl FnOnce() -> F,
) {
    let is = slot.borrow().is_some();
    if wanted && !is {
        *slot.borrow_mut() = Some(engine::spawn(task()));
    } else if !wanted && let Some(task) = slot.take() {
        task.abort();
    }
}

/// Waits until a connection waits on one of its sockets.
async fn connection(job: &Job) -> io::Result<()> {
    let sockets = {
        let (list, copies) = (job.listeners.borrow(), job.copies.borrow());
        let copy = |l: &super::Listener| Async::new(l.fd.try_clone()?);
        list.iter().chain(copies.values().flatten()).map(copy).collect::<io::Result<Vec<_>>>()?
    };
    poll_fn(|cx| {
        let ready = sockets.iter().find_map(|s| match s.poll_read_ready(cx) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        });
        ready.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// Is a connection to one of its sockets open? One that can't be asked about is taken for open.
fn is_in_use(job: &Job) -> bool {
    let open = |l: &super::Listener| match &l.wanted {
        Listen::Tcp(_) => {
            let bound: SocketAddr = l.bound.parse().map_err(io::Error::other)?;
            connections::tcp(bound)
        }
        Listen::Unix(path) => connections::unix(path),
    };
    job.listeners.borrow().iter().any(|l| {
        open(l).unwrap_or_else(|e| {
            let why = format!("listen={}: {e}", l.bound);
            if job.call.said.borrow_mut().insert(why.clone()) {
                log::warn!("event=not-asked of=job job={} {why}; it counts as in use", job.name);
            }
            true
        })
    })
}
