//! The schedule thread: work at intervals and at times of day (log flush, log rotation at midnight, a status file).
//!
//! FastDFS has the same: entries with a base time and an interval, on a thread of their own, so that they may block.
//! Here each entry also says how it fared. An interval is counted by the monotonic clock. A time of day is waited for
//! with a timerfd on the wall clock that is told when somebody sets the clock, so nothing polls, and neither a new time
//! nor a suspend is missed.

use crate::io::Async;
use crate::reactor::Interest;
use crate::{EventHandle, Handle, Target, time};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// When an entry runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// At the end of every interval; one that was missed is skipped.
    Every(Duration),
    /// At a time of day and every interval from there on; a day is begun anew at the base.
    Daily {
        /// Time since midnight, UTC; who wants local time adds the offset, which changes with the seasons.
        base: Duration,
        /// A day at most. A day: once a day.
        every: Duration,
    },
}

const DAY: Duration = Duration::from_secs(86_400);

impl Times {
    /// The next time after `now` (since the epoch) of a daily entry; pure.
    fn next_daily(base: Duration, every: Duration, now: Duration) -> Duration {
        let every = every.clamp(Duration::from_secs(1), DAY);
        let base = Duration::from_secs(base.as_secs() % DAY.as_secs());
        let now_s = now.as_secs();
        // The last base not after now.
        let day = DAY.as_secs();
        let mut from = now_s / day * day + base.as_secs();
        if from > now_s {
            match from.checked_sub(day) {
                Some(yesterday) => from = yesterday,
                None => return Duration::from_secs(from),
            }
        }
        let next = from + ((now_s - from) / every.as_secs() + 1) * every.as_secs();
        Duration::from_secs(next.min(from + day))
    }
}

/// How an entry has fared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryStatus {
    /// Its name.
    pub name: String,
    /// When it runs.
    pub times: Times,
    /// Runs that have ended, failed ones included.
    pub runs: u64,
    /// Runs that failed or panicked.
    pub failures: u64,
    /// What the last failure said.
    pub last_error: Option<String>,
    /// When the last run began.
    pub last_run: Option<SystemTime>,
    /// How long it took.
    pub last_duration: Duration,
    /// When the next one is due, if the clock is not set before.
    pub next_run: SystemTime,
}

type Job = Box<dyn FnMut() -> Result<(), String> + Send>;

/// The entries of a program. Cheap to clone.
#[derive(Clone)]
pub struct Schedule {
    handle: Handle,
    target: Target,
    entries: Arc<Mutex<Vec<EntryStatus>>>,
}

impl Schedule {
    /// Runs its entries on `target`: best a group of its own with one thread, since jobs may block.
    pub fn new(handle: &Handle, target: impl Into<Target>) -> Self {
        let target = match target.into() {
            Target::Group(group) => Target::Thread(handle.threads(group)[0]),
            thread => thread,
        };
        Schedule { handle: handle.clone(), target, entries: Arc::default() }
    }

    /// Adds an entry; cancelling the handle ends it. It never keeps an engine from shutting down.
    pub fn add<F>(&self, name: impl Into<String>, times: Times, job: F) -> EventHandle
    where
        F: FnMut() -> Result<(), String> + Send + 'static,
    {
        let status = EntryStatus {
            name: name.into(),
            times,
            runs: 0,
            failures: 0,
            last_error: None,
            last_run: None,
            last_duration: Duration::ZERO,
            next_run: SystemTime::now(),
        };
        let mut entries = self.entries.lock().expect("never poisoned");
        let index = entries.len();
        entries.push(status);
        drop(entries);
        let entry = Entry { entries: self.entries.clone(), index, job: Box::new(job) };
        self.handle.spawn_on(self.target, move || entry.run(times))
    }

    /// All entries, in the order in which they were added.
    pub fn status(&self) -> Vec<EntryStatus> {
        self.entries.lock().expect("never poisoned").clone()
    }
}

struct Entry {
    entries: Arc<Mutex<Vec<EntryStatus>>>,
    index: usize,
    job: Job,
}

impl Entry {
    async fn run(self, times: Times) {
        let mut entry = self;
        let name = entry.with_status(|status| status.name.clone());
        let result = {
            let forever = async {
                match times {
                    Times::Every(every) => entry.run_every(every).await,
                    Times::Daily { base, every } => entry.run_daily(base, every).await,
                }
            };
            until_draining(forever).await
        };
        if let Some(Err(e)) = result {
            log::error!("event=schedule_lost entry=\"{name}\" error=\"{e}\"");
        }
    }

    async fn run_every(&mut self, every: Duration) -> io::Result<()> {
        let every = every.max(Duration::from_millis(1));
        let mut due = Instant::now() + every;
        loop {
            let left = due.saturating_duration_since(Instant::now());
            self.with_status(|status| status.next_run = SystemTime::now() + left);
            time::sleep_until(due).await;
            self.once();
            let missed = due.elapsed().as_nanos() / every.as_nanos();
            due += every * u32::try_from(missed + 1).unwrap_or(u32::MAX);
        }
    }

    async fn run_daily(&mut self, base: Duration, every: Duration) -> io::Result<()> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = Async::new(timerfd_create(TimerfdClockId::Realtime, flags)?)?;
        loop {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let due = Times::next_daily(base, every, now);
            self.with_status(|status| status.next_run = UNIX_EPOCH + due);
            if wait_for_wall_clock(&timer, due).await? {
                self.once();
            }
        }
    }

    fn once(&mut self) {
        let (last_run, began) = (SystemTime::now(), Instant::now());
        let result = catch_unwind(AssertUnwindSafe(&mut self.job)).unwrap_or_else(|_| Err("panicked".into()));
        let last_duration = began.elapsed();
        self.with_status(|status| {
            status.runs += 1;
            status.last_run = Some(last_run);
            status.last_duration = last_duration;
            if let Err(e) = result {
                log::warn!("event=schedule_failed entry=\"{}\" error=\"{e}\"", status.name);
                status.failures += 1;
                status.last_error = Some(e);
            }
        });
    }

    fn with_status<R>(&self, f: impl FnOnce(&mut EntryStatus) -> R) -> R {
        f(&mut self.entries.lock().expect("never poisoned")[self.index])
    }
}

/// False: the clock was set meanwhile, and the time has to be worked out again.
async fn wait_for_wall_clock(timer: &Async<OwnedFd>, due: Duration) -> io::Result<bool> {
    let it_value = Timespec { tv_sec: due.as_secs() as i64, tv_nsec: 0 };
    let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    timerfd_settime(timer.get_ref(), flags, &Itimerspec { it_interval, it_value })?;
    let result = timer
        .io(Interest::Readable, |fd| {
            let mut expirations = [0; 8];
            Ok(rustix::io::read(fd, &mut expirations)?)
        })
        .await;
    match result {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::CANCELED.raw_os_error()) => Ok(false),
        Err(e) => Err(e),
    }
}

async fn until_draining<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    let mut draining = std::pin::pin!(crate::draining());
    std::future::poll_fn(|cx| {
        if draining.as_mut().poll(cx).is_ready() {
            return std::task::Poll::Ready(None);
        }
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn next(base: u64, every: u64, now: u64) -> u64 {
        Times::next_daily(Duration::from_secs(base), Duration::from_secs(every), Duration::from_secs(now))
            .as_secs()
    }

    #[test]
    fn a_daily_entry_comes_at_its_time_of_day() {
        let day = 86_400;
        let midnight = 20_000 * day;
        assert_eq!(next(0, day, midnight), midnight + day);
        assert_eq!(next(0, day, midnight - 1), midnight);
        assert_eq!(next(3600, day, midnight), midnight + 3600);
        assert_eq!(next(3600, day, midnight + 3600), midnight + day + 3600);
        assert_eq!(next(0, 600, midnight + 601), midnight + 1200);
    }

    #[test]
    fn an_interval_that_does_not_divide_the_day_begins_anew_at_the_base() {
        let day = 86_400;
        let midnight = 20_000 * day;
        assert_eq!(next(0, 50_000, midnight + 1), midnight + 50_000);
        assert_eq!(next(0, 50_000, midnight + 50_000), midnight + day);
    }

    #[test]
    fn a_clock_at_the_epoch_is_no_trouble() {
        assert_eq!(next(3600, 86_400, 0), 3600);
        assert_eq!(next(3600, 86_400, 3600), 3600 + 86_400);
    }
}
