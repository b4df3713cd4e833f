//! What one manager remembers for the next while the suite runs: what operators have asked for (a pause, jobs that were
//! stopped, started or given another number of workers) and what has become of processes that are no more (work that is done,
//! crash loops that were given up, the last exit).
//!
//! It is a page of memory that cop keeps, and ends with the suite: what is to outlast that is in `jobs.json`
//! (`jobs::memory`). A manager may be killed at any time, also while it writes: see [`Page`].

use super::jobs;
use super::keep::Keep;
use super::page::Page;
use crate::names;
use crate::suite::take_one;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;
use supervisor::listen_fds::Inherited;
use supervisor::notify::Notifier;

/// The name under which cop keeps it.
const NAME: &str = "memo";
/// Room for one place in bytes, its head included: a thousand jobs with a thousand workers together are some 200 KiB.
const PLACE: u64 = 8 << 20;

/// What is remembered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Remembered {
    /// Serving is paused.
    pub(super) paused: Option<Pause>,
    pub(super) server: Process,
    pub(super) jobs: BTreeMap<String, Job>,
    /// Who the users and groups of the configuration are.
    pub(super) names: names::Known,
    /// What is in `jobs.json`, or will be when the disk answers.
    pub(super) memory: Option<jobs::Remembered>,
}

/// A pause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Pause {
    /// For how long clients are to wait at most, if that was said.
    pub(super) max_wait_ms: Option<u64>,
}

impl Pause {
    fn max_wait(self) -> Option<Duration> {
        self.max_wait_ms.map(Duration::from_millis)
    }
}

/// A job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Job {
    /// Workers by its configuration; another number there means more than what was asked for before.
    pub(super) configured: usize,
    pub(super) want: usize,
    pub(super) up: bool,
    /// It doesn't sleep.
    pub(super) awake: bool,
    /// Managers that have begun its restart, which isn't over; 0: none is under way.
    pub(super) rolling: u32,
    /// Success, failure, hang.
    pub(super) ends: [u64; 3],
    pub(super) workers: BTreeMap<usize, Process>,
}

/// A process, or what has become of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Process {
    pub(super) pid: Option<i32>,
    /// What it is now it is since then, on the clock that counts from the boot on.
    pub(super) since_ms: u64,
    pub(super) restarts: u64,
    pub(super) last_exit: Option<String>,
    /// It has ended and isn't started again; true: with success.
    pub(super) finished: Option<bool>,
    /// A crash loop has used it up.
    pub(super) gave_up: bool,
    /// What it ran or runs: what another program has done isn't done.
    pub(super) program: u64,
    /// The whole of its configuration: another one may do better than what was given up.
    pub(super) config: u64,
    /// It lives, and its job has another configuration by now.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) outdated: bool,
    /// It lives and isn't ready; without that one that lives is, as in what managers of earlier versions have left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) starting: Option<Starting>,
}

/// A start under way, on the clock that counts from the boot on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Starting {
    since_ms: u64,
    /// When it is taken for hung.
    until_ms: u64,
}

impl Starting {
    pub(super) fn new(since: Duration, until: Duration) -> Starting {
        Starting { since_ms: since.as_millis() as u64, until_ms: until.as_millis() as u64 }
    }

    /// Since when.
    pub(super) fn since(self) -> Duration {
        Duration::from_millis(self.since_ms)
    }

    /// Until when.
    pub(super) fn until(self) -> Duration {
        Duration::from_millis(self.until_ms)
    }
}

impl Process {
    /// Since when.
    pub(super) fn since(&self) -> Duration {
        Duration::from_millis(self.since_ms)
    }
}

/// The page, and what it says.
pub struct Memo {
    page: Option<Page>,
    number: u64,
    said: Vec<u8>,
    /// What the last manager has said, until it is made true.
    last: Remembered,
    /// It has been: from here on what is said is ours.
    begun: bool,
    /// There is something that it is to say soon.
    is_due: bool,
    failed: bool,
}

impl Memo {
    /// Takes the last manager's page out of what was inherited, or makes one.
    pub fn take(inherited: &mut Vec<Inherited>) -> Memo {
        let kept = take_one(inherited, NAME);
        Memo::on(kept.map_or_else(|| Page::create(NAME, PLACE), |fd| Ok(Page::open(NAME, PLACE, fd))))
    }

    /// Has there been a manager before this one, since the suite was started?
    pub fn is_in(inherited: &[Inherited]) -> bool {
        inherited.iter().any(|i| i.name == NAME)
    }

    /// Users and groups are who the last manager has found them to be.
    pub fn recall_names(inherited: &[Inherited]) {
        let page = inherited.iter().rfind(|i| i.name == NAME).and_then(|i| i.fd.try_clone().ok());
        if let Some(page) = page {
            names::recall(Memo::on(Ok(Page::open(NAME, PLACE, page))).last.names);
        }
    }

    fn on(page: io::Result<Page>) -> Memo {
        let page = page.inspect_err(|e| log::warn!("event=memo-failed: {e}")).ok();
        let (number, said) = page.as_ref().and_then(Page::newest).unwrap_or_default();
        let last = match said.is_empty() {
            true => Remembered::default(),
            false => serde_json::from_slice(&said).unwrap_or_else(|e| {
                log::warn!("event=memo-unreadable: {e}");
                Remembered::default()
            }),
        };
        Memo { page, number, said, last, begun: false, is_due: false, failed: false }
    }

    /// Has cop keep it.
    pub(super) fn store(&self, cop: &Notifier) {
        if let Some(page) = &self.page {
            cop.store_fds(NAME, &[page.as_fd()]);
        }
    }

    /// What the last manager has said of jobs, and what it had to write down.
    pub(super) fn take_jobs(&mut self) -> (BTreeMap<String, Job>, Option<jobs::Remembered>) {
        (std::mem::take(&mut self.last.jobs), self.last.memory.take())
    }

    /// Was serving paused by the last manager? For how long clients are to wait at most, if that was said.
    pub(super) fn paused(&self) -> Option<Option<Duration>> {
        self.last.paused.map(Pause::max_wait)
    }

    /// Everything is as the last manager has left it. One that is killed before must not have forgotten half of it.
    pub(super) fn begin(&mut self) {
        self.begun = true;
    }

    /// Writes down what is to be remembered, if it isn't there.
    fn write(&mut self, what: &Remembered) {
        let Some(page) = &self.page else { return };
        let Ok(text) = serde_json::to_vec(what) else { return };
        if text == self.said {
            return;
        }
        let number = self.number + 1;
        match page.write(number, &text) {
            Ok(()) => (self.number, self.said, self.failed) = (number, text, false),
            Err(e) => {
                if !std::mem::replace(&mut self.failed, true) {
                    log::warn!("event=memo-failed: {e}");
                }
            }
        }
    }
}

impl Keep {
    /// Has that written down, once for all that happens until then: nobody who waits for a server waits for it.
    pub(super) fn remember_soon(self: &Rc<Self>) {
        if std::mem::replace(&mut self.memo.borrow_mut().is_due, true) {
            return;
        }
        let keep = self.clone();
        drop(engine::spawn(async move { keep.remember() }));
    }

    /// Writes down what the next manager is to know.
    pub(super) fn remember(&self) {
        self.memo.borrow_mut().is_due = false;
        if self.is_stopping() || !self.memo.borrow().begun {
            return;
        }
        let server = {
            let s = self.server.borrow();
            Process {
                pid: s.ward.as_ref().map(|w| w.pid),
                since_ms: s.since.as_millis() as u64,
                last_exit: s.last_exit.clone(),
                ..Process::default()
            }
        };
        let paused = self.queue.borrow().paused_for();
        let paused = paused.map(|wait| Pause { max_wait_ms: wait.map(|d| d.as_millis() as u64) });
        let (jobs, memory) = (self.jobs_to_remember(), Some(self.memory_of_jobs()));
        let names = names::known();
        self.memo.borrow_mut().write(&Remembered { paused, server, jobs, names, memory });
    }

    /// The server and the pause are made what the last manager has left.
    pub(super) fn recall(self: &Rc<Self>) {
        let (server, paused) = {
            let memo = self.memo.borrow();
            (memo.last.server.clone(), memo.paused())
        };
        {
            let mut s = self.server.borrow_mut();
            s.last_exit = s.last_exit.take().or(server.last_exit.clone());
            if s.ward.as_ref().is_some_and(|w| Some(w.pid) == server.pid) {
                s.since = s.since.min(server.since());
            }
        }
        if let Some(wait) = paused {
            self.pause(wait);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(n: usize) -> Remembered {
        let job = Job { want: n, up: true, ..Job::default() };
        let paused = Some(Pause { max_wait_ms: n.is_multiple_of(2).then_some(5) });
        Remembered { jobs: [("a".to_owned(), job)].into(), paused, ..Remembered::default() }
    }

    fn again(m: &Memo) -> Memo {
        let page = m.page.as_ref().unwrap().as_fd().try_clone_to_owned().unwrap();
        Memo::on(Ok(Page::open(NAME, PLACE, page)))
    }

    #[test]
    fn the_next_manager_knows_what_this_one_wrote_last() {
        let mut m = Memo::take(&mut Vec::new());
        assert_eq!(m.last, Remembered::default());
        for n in 1..5 {
            m.write(&some(n));
            assert_eq!(again(&m).last, some(n));
            let number = again(&m).number;
            m.write(&some(n));
            assert_eq!(again(&m).number, number, "nothing new, nothing written");
        }
    }

    #[test]
    fn what_an_earlier_version_wrote_of_a_process_is_of_one_that_is_ready() {
        let was: Process = serde_json::from_str(r#"{"pid":7,"since_ms":5,"restarts":1}"#).unwrap();
        assert_eq!((was.pid, was.starting), (Some(7), None));
        let starting = Some(Starting::new(Duration::from_secs(1), Duration::from_secs(3)));
        let is = Process { starting, ..was };
        let again: Process = serde_json::from_str(&serde_json::to_string(&is).unwrap()).unwrap();
        assert_eq!(again, is);
    }

    #[test]
    fn too_much_is_not_remembered_and_costs_nothing() {
        let mut m = Memo::take(&mut Vec::new());
        m.write(&some(1));
        let name = "x".repeat(PLACE as usize);
        m.write(&Remembered { jobs: [(name, Job::default())].into(), ..Remembered::default() });
        assert!(m.failed);
        assert_eq!(again(&m).last, some(1));
    }
}
