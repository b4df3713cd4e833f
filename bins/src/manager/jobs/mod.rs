//! Jobs: other programs that the manager keeps running, with sockets that it holds for them.
//!
//! Each worker of a job is a child machine of `policy` with hands (`worker`); `policy::jobs` says which job may start or
//! stop. Whatever happens ends in `Keep::settle_jobs`, which compares what is wanted with what is.
//!
//! A manager that is killed leaves its jobs running: their pidfds, the pipes of their output and their sockets are kept by
//! cop, and the next manager adopts them, without a moment in which a recycled pid could be taken for one of them.
//!
//! Read in this order: this file, `worker` (a process's life), `start` (what it gets), `ready` (when it counts as ready), `alive` (does it still
//! work?), `probe` (what is asked then), `tree` (what it leaves behind), `output` and `file` (what it writes), `copies` (sockets for each worker), `kept` and `stored` (what cop has of it), `called` and
//! `calendar` (jobs that sleep), `metrics` (what is counted), `memory` (what the next manager is told), `table` (a reload), `roll` (a restart),
//! [`command`] (what may be asked).

mod alive;
mod calendar;
mod called;
pub mod command;
mod copies;
mod file;
mod kept;
mod memory;
mod metrics;
mod output;
mod probe;
mod ready;
mod roll;
mod start;
mod stored;
mod table;
mod tree;
mod worker;

use self::calendar::Alarm;
use self::called::Call;
use self::copies::Copies;
use self::memory::Memory;
pub(super) use self::memory::Remembered;
use self::roll::Rolling;
use super::keep::Keep;
use super::listeners::Listener;
use super::memo;
use crate::config;
use crate::suite::take_named;
use log::Level;
use policy::child::{Child, Event, Limits, State};
use policy::jobs::Order;
use policy::ladder::Rungs;
use proxy::cache::record::checksum;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use stored::Part;
use supervisor::clock;
use supervisor::listen_fds::Inherited;
use supervisor::notify::NotifySocket;
use supervisor::pidfd::PidFd;
use worker::Worker;

pub use copies::Sockets;
pub use table::{listen_name, take_or_bind};

/// The name under which cop keeps our notify socket.
const NOTIFY: &str = "notify";

/// Transitions that are remembered.
const EVENTS: usize = 1000;

/// Processes that are started in one turn.
const STARTS: usize = 4;

/// All jobs.
#[derive(Default)]
pub struct Jobs {
    /// Shared with who goes through it meanwhile.
    list: Rc<Vec<Rc<Job>>>,
    order: Rc<Order>,
    /// Each a line of JSON, with its number.
    events: VecDeque<(u64, String)>,
    next_event: u64,
    settling: bool,
    unsaid: kept::Unsaid,
    /// Somebody has become ready since the next manager was told.
    news: bool,
    census: tree::SharedCensus,
    /// Through which output is looked at.
    glass: Rc<RefCell<Option<output::Glass>>>,
    files: file::Files,
    /// Where control groups are made.
    groups: Option<supervisor::cgroup::Groups>,
    memory: Memory,
    alarm: Alarm,
    /// What an earlier manager had, until it is adopted.
    left: Vec<Left>,
    /// In which is what they said to earlier managers when these were dead.
    unheard: Vec<NotifySocket>,
}

/// A worker that an earlier manager had.
#[derive(Default)]
struct Left {
    job: String,
    index: usize,
    pid: i32,
    pidfd: Option<PidFd>,
    /// The pipes of its output, and the socket for pings.
    fds: Vec<OwnedFd>,
    /// The pipe of its standard error, if that goes elsewhere.
    errors: Option<OwnedFd>,
    /// The pipe by which it is to say that it is ready.
    readiness: Option<OwnedFd>,
}

/// One job.
pub(super) struct Job {
    name: String,
    config: RefCell<config::Job>,
    listeners: RefCell<Vec<Listener>>,
    copies: RefCell<Copies>,
    workers: RefCell<Vec<Rc<Worker>>>,
    /// Workers wished for.
    want: Cell<usize>,
    /// Wanted by its operator.
    up: Cell<bool>,
    /// It may be started.
    enabled: Cell<bool>,
    call: Call,
    /// Processes that ended of those that were wished for, and how many of them those that go with it have been told of.
    losses: Cell<u64>,
    losses_told: Cell<u64>,
    ends: metrics::Ends,
    rolling: Rolling,
    /// Not in the configuration any more.
    removed: Cell<bool>,
    /// Its last lines.
    tail: RefCell<output::Tail>,
}

impl Jobs {
    /// Takes out of what was inherited what belongs to jobs: their workers and what they said to `notify`, and nothing else (their
    /// sockets are taken by name when the table is made).
    pub fn take(inherited: &mut Vec<Inherited>, notify: &Path) -> Jobs {
        let unheard = take_named(inherited, |name| (name == NOTIFY).then_some(()));
        let unheard = unheard.into_iter().map(|((), fd)| NotifySocket::kept(fd, notify)).collect();
        let (ours, others): (Vec<_>, Vec<_>) =
            std::mem::take(inherited).into_iter().partition(|i| stored::parse_name(&i.name).is_some());
        *inherited = others;
        let mut left: Vec<Left> = Vec::new();
        for i in ours {
            let Some((part, pid, index, job)) = stored::parse_name(&i.name) else { continue };
            let at = left.iter().position(|l| l.pid == pid).unwrap_or(left.len());
            if at == left.len() {
                let job = job.to_owned();
                left.push(Left { job, index, pid, ..Left::default() });
            }
            match part {
                Part::Errors => left[at].errors = Some(i.fd),
                Part::Readiness => left[at].readiness = Some(i.fd),
                Part::Process if PidFd::is_one(&i.fd) => left[at].pidfd = Some(i.fd.into()),
                Part::Process => left[at].fds.push(i.fd),
            }
        }
        Jobs { left, unheard, ..Jobs::default() }
    }
}

impl Job {
    /// What it runs, and all that its processes depend on, as numbers.
    fn marks(&self) -> (u64, u64) {
        let c = self.config.borrow();
        let mark = |of: &dyn Debug| checksum(&[format!("{of:?}").as_bytes()]);
        (mark(&(&c.command, &c.cwd, &c.env, &c.user)), mark(&c.of_processes()))
    }

    /// Is every worker that is wished for ready? One that has done its work in order is; and a job that sleeps, unless its last
    /// run has failed: who comes to it is served.
    fn is_ready(&self) -> bool {
        let workers = self.workers.borrow();
        let want = self.want.get();
        let ready = |w: &Rc<Worker>| w.is_ready() || w.has_finished() == Some(true);
        let all = match self.call.is_awake() {
            true => workers.iter().filter(|w| w.index < want && ready(w)).count() == want,
            false => workers.iter().all(|w| w.has_finished() != Some(false)),
        };
        self.up.get() && want > 0 && all
    }

    /// For a job that is over: the failure of a worker, else how the last one ended.
    fn how_it_ended(&self) -> String {
        let workers = self.workers.borrow();
        let failed = workers.iter().find(|w| w.has_finished() != Some(true));
        failed.or(workers.last()).map_or_else(String::new, |w| w.last_exit())
    }

    fn is_down(&self) -> bool {
        self.workers.borrow().iter().all(|w| !w.exists())
    }

    /// Makes it so many, at the least.
    fn make_workers(&self, workers: &mut Vec<Rc<Worker>>, count: usize) {
        if workers.len() >= count {
            return;
        }
        let limits = limits(&self.config.borrow());
        let more = workers.len()..count;
        workers.extend(more.map(|index| Rc::new(Worker::new(index, Child::new(limits)))));
    }

    /// In a word.
    fn state(&self) -> &'static str {
        match self.is_down() {
            _ if self.is_ready() && self.call.is_awake() => "ready",
            false => "not ready",
            true if !self.enabled.get() => "disabled",
            true if self.up.get() && !self.call.is_awake() => "asleep",
            true => "down",
        }
    }

    fn status(&self) -> Value {
        let config = self.config.borrow();
        let workers: Vec<Value> = self.workers.borrow().iter().map(|w| w.status()).collect();
        json!({
            "name": self.name,
            "command": config.command,
            "state": self.state(),
            "up": self.up.get(),
            "enabled": self.enabled.get(),
            "asleep": !self.call.is_awake(),
            "want": self.want.get(),
            "ready": self.is_ready(),
            "listen": self.listeners.borrow().iter().map(|l| l.bound.clone()).collect::<Vec<_>>(),
            "workers": workers,
        })
    }
}

fn limits(config: &config::Job) -> Limits {
    Limits {
        start_grace: config.start_grace,
        stop: Rungs { polite: config.stop_timeout, core: None, kill: std::time::Duration::from_secs(10) },
        respawn: policy::backoff::Limits {
            max: config.respawn_max,
            stable_after: config.stable_after,
            give_up_after: config.give_up_after,
            ..policy::backoff::Limits::default()
        },
    }
}

impl Keep {
    /// The state of all jobs.
    pub(super) fn jobs_status(&self) -> Vec<Value> {
        let list = self.jobs.borrow().list.clone();
        let with_schedule = |j: &Rc<Job>| {
            let mut status = j.status();
            status["schedule"] = self.schedule_status(j);
            let others = self.waits_for(j);
            if !others.is_empty() {
                status["state"] = "waiting".into();
                let at_rest = |w: &&mut Value| w["state"] == State::Down.name();
                let workers = status["workers"].as_array_mut().into_iter().flatten();
                workers.filter(at_rest).for_each(|w| w["state"] = "waiting".into());
            }
            status["waits_for"] = others.into();
            status
        };
        list.iter().map(with_schedule).collect()
    }

    /// The jobs without which this one isn't started, though it is to be.
    fn waits_for(&self, job: &Job) -> Vec<String> {
        if self.is_stopping() || !job.up.get() || !job.call.is_awake() || !job.is_down() {
            return Vec::new();
        }
        self.lacks(job)
    }

    /// Those in its `after` that aren't ready.
    fn lacks(&self, job: &Job) -> Vec<String> {
        let after = job.config.borrow().after.clone();
        after.into_iter().filter(|name| self.job(name).is_some_and(|other| !other.is_ready())).collect()
    }

    /// What is in `jobs.json`, or is to be.
    pub(super) fn memory_of_jobs(&self) -> Remembered {
        self.jobs.borrow().memory.is.clone()
    }

    /// What the next manager is to know of jobs.
    pub(super) fn jobs_to_remember(&self) -> BTreeMap<String, memo::Job> {
        let list = self.jobs.borrow().list.clone();
        let of = |j: &Rc<Job>| {
            let workers = j.workers.borrow().iter().map(|w| (w.index, w.to_remember())).collect();
            let configured = j.config.borrow().workers;
            let (want, up) = (j.want.get(), j.up.get());
            let awake = j.call.is_awake();
            let rolling = j.rolling.to_remember();
            let job = memo::Job { configured, want, up, awake, rolling, ends: j.ends.all(), workers };
            (j.name.clone(), job)
        };
        list.iter().filter(|j| !j.removed.get()).map(of).collect()
    }

    /// Who has become ready is remembered before anybody acts on it.
    pub(super) fn remember_news(&self) {
        if std::mem::take(&mut self.jobs.borrow_mut().news) {
            self.remember();
        }
    }

    /// All processes of jobs.
    pub(super) fn job_pids(&self) -> Vec<i32> {
        let jobs = self.jobs.borrow();
        jobs.list
            .iter()
            .flat_map(|j| j.workers.borrow().iter().filter_map(|w| w.pid()).collect::<Vec<_>>())
            .collect()
    }

    /// Are all jobs down?
    pub(super) fn jobs_are_down(&self) -> bool {
        self.jobs.borrow().list.iter().all(|j| j.is_down())
    }

    /// What is, is made what is wanted: soon, and once for all that happens until then.
    pub(super) fn settle_jobs(self: &Rc<Self>) {
        if std::mem::replace(&mut self.jobs.borrow_mut().settling, true) {
            return;
        }
        let keep = self.clone();
        drop(engine::spawn(async move {
            keep.jobs.borrow_mut().settling = false;
            if !keep.settle_now() && !keep.jobs.borrow().unsaid.is_too_much() {
                // a start takes about a millisecond: whoever else waits comes first
                keep.settle_jobs();
            }
            keep.remember();
            keep.forget_told();
            keep.wake_changes();
            keep.maybe_end();
        }));
    }

    /// False: there is more to start.
    fn settle_now(self: &Rc<Self>) -> bool {
        let (mut starts, mut more) = (0, false);
        let (list, order) = {
            let jobs = self.jobs.borrow();
            (jobs.list.clone(), jobs.order.clone())
        };
        let stopping = self.is_stopping();
        let may_end = !stopping || self.jobs_may_end();
        let ready: Vec<bool> = list.iter().map(|j| j.is_ready()).collect();
        let down: Vec<bool> = list.iter().map(|j| j.is_down()).collect();
        for (n, job) in list.iter().enumerate() {
            let wanted = if stopping || job.removed.get() || !job.up.get() { 0 } else { job.want.get() };
            // one that is stopped by itself doesn't wait for those that come after it; those that a reload removes do
            let in_order = stopping || job.removed.get();
            let may_stop = !in_order || (may_end && order.may_stop(n, |j| down[j]));
            let may_start = order.may_start(n, |j| ready[j]);
            let awake = job.call.is_awake();
            if awake {
                job.make_workers(&mut job.workers.borrow_mut(), wanted);
            }
            let count = job.workers.borrow().len();
            for at in 0..count {
                let Some(w) = job.workers.borrow().get(at).cloned() else { break };
                match w.index < wanted && awake {
                    true if may_start && w.is_at_rest() && w.has_finished().is_none() => {
                        if starts == STARTS || self.jobs.borrow().unsaid.is_too_much() {
                            more = true;
                        } else {
                            starts += 1;
                            if !job.config.borrow().after.is_empty() {
                                self.remember_news();
                            }
                            self.feed_job(job, &w, Event::WantUp);
                        }
                    }
                    false if may_stop && w.is_wanted() => self.feed_job(job, &w, Event::WantDown),
                    _ => {}
                }
            }
            // what has finished is remembered while its job sleeps
            let stays = |w: &Worker| w.index < wanted && (awake || w.has_finished().is_some());
            job.workers.borrow_mut().retain(|w| stays(w) || w.exists() || w.is_wanted());
            self.drop_copies(job, job.want.get());
            self.sleep_when_done(job);
            self.mind_calls(job);
        }
        self.restart_with(&list, &ready);
        self.drop_removed_jobs();
        self.look_at_calendar();
        !more
    }

    /// What happens to a worker: one line for the log, and one for who follows the events.
    fn job_event(&self, job: &Job, worker: &Worker, event: &str, detail: &str) {
        self.say_of_job(Level::Info, job, Some(worker), event, detail);
    }

    /// The same, of what should not have happened.
    fn job_warning(&self, job: &Job, worker: &Worker, event: &str, detail: &str) {
        self.say_of_job(Level::Warn, job, Some(worker), event, detail);
    }

    /// The same, of a job as a whole.
    fn job_note(&self, job: &Job, event: &str, detail: &str) {
        self.say_of_job(Level::Info, job, None, event, detail);
    }

    fn say_of_job(&self, level: Level, job: &Job, worker: Option<&Worker>, event: &str, detail: &str) {
        let name = &job.name;
        let (index, pid) = worker.map_or((None, 0), |w| (Some(w.index), w.pid().unwrap_or(0)));
        match index {
            Some(index) => {
                log::log!(level, "event={event} of=job job={name} worker={index} pid={pid} {detail}")
            }
            None => log::log!(level, "event={event} of=job job={name} {detail}"),
        }
        let mut jobs = self.jobs.borrow_mut();
        let seq = jobs.next_event;
        jobs.next_event += 1;
        let uptime = clock::now().saturating_sub(self.started).as_millis() as u64;
        let value = json!({
            "seq": seq, "uptime_ms": uptime, "job": name, "worker": index, "pid": pid, "event": event,
            "detail": detail.trim_end(),
        });
        jobs.events.push_back((seq, value.to_string()));
        if jobs.events.len() > EVENTS {
            jobs.events.pop_front();
        }
        drop(jobs);
        self.wake_changes();
    }

    fn job(&self, name: &str) -> Option<Rc<Job>> {
        self.jobs.borrow().list.iter().find(|j| j.name == name).cloned()
    }
}
