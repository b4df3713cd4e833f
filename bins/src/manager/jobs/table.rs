//! The table of jobs: from the configuration, and from one configuration to the next.

use super::called::Call;
use super::copies::{self, Sockets};
use super::memory::Memory;
use super::output::Tail;
use super::roll::{Rolling, Which};
use super::stored::{Part, store_name};
use super::{Job, Left, limits, tree};
use crate::config::{self, Listen};
use crate::manager::keep::Keep;
use crate::manager::listeners::{self, Access, For};
use crate::manager::memo;
use crate::suite;
use policy::child::Event;
use policy::jobs::Order;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;
use std::time::Duration;
use supervisor::clock;
use supervisor::listen_fds::{Inherited, name_for};

const LISTEN: &str = "job-listen";

/// The name under which a job's socket is stored.
pub fn listen_name(job: &str, listen: &Listen) -> String {
    name_for(&format!("{LISTEN} {job} {listen}"))
}

fn is_of_job(name: &str) -> bool {
    name.starts_with(LISTEN)
}

/// The sockets of each job of a configuration: inherited ones where there are some, else new ones. Those of a job that is gone, or
/// has given up an address, are anybody's: it may have another name now.
///
/// # Errors
/// One can't be bound.
pub fn take_or_bind(jobs: &[config::Job], inherited: &mut Vec<Inherited>) -> anyhow::Result<Vec<Sockets>> {
    let names = |j: &config::Job| j.listen.iter().map(|l| listen_name(&j.name, l)).collect::<Vec<_>>();
    let claimed: HashSet<String> = jobs.iter().flat_map(names).collect();
    let is_free = |name: &str| {
        let is_given_up = is_of_job(name) && !copies::is_copy(name) && !claimed.contains(name);
        is_given_up || !suite::is_listener(name)
    };
    let bind = |j: &config::Job| {
        let whose = For::Job { several: j.reuseport, access: Access::of_job(j) };
        let name = |l: &Listen| listen_name(&j.name, l);
        let shared = listeners::take_or_bind_as(&j.listen, inherited, whose, name, is_free)?;
        let copies = copies::take(j, &shared, inherited);
        Ok(Sockets { shared, copies })
    };
    jobs.iter().map(bind).collect()
}

impl Keep {
    /// Makes the jobs of the configuration, adopts what an earlier manager has left of them, and starts the others.
    pub(in crate::manager) fn begin_jobs(self: &Rc<Self>, sockets: Vec<Sockets>) {
        let config = self.config.borrow().jobs.clone();
        {
            let mut jobs = self.jobs.borrow_mut();
            jobs.memory = Memory::open(&self.config.borrow().suite.state_dir);
            let list = config.into_iter().zip(sockets);
            jobs.list = Rc::new(list.map(|(c, sockets)| Rc::new(Job::new(c, sockets))).collect());
            jobs.order = order(&jobs.list);
        }
        let groups = tree::groups(&self.config.borrow().manager.cgroup);
        self.jobs.borrow_mut().groups = groups;
        let (last, memory) = self.memo.borrow_mut().take_jobs();
        if let Some(memory) = memory {
            // newer than the file, if the disk didn't answer
            let mut jobs = self.jobs.borrow_mut();
            jobs.memory.is = memory;
            jobs.memory.save();
        }
        self.recall_wishes(&last);
        self.apply_memory();
        self.store_jobs();
        self.adopt_jobs(&last);
        self.recall_workers(&last);
        for (name, was) in &last {
            self.job(name).into_iter().for_each(|job| self.roll_on(job, was.rolling));
        }
        self.memo.borrow_mut().begin();
        self.hear_unheard();
        if !self.jobs.borrow().list.is_empty() {
            self.end_unknown();
        }
        self.settle_jobs();
    }

    /// What operators have asked the last manager for.
    fn recall_wishes(&self, last: &BTreeMap<String, memo::Job>) {
        for job in self.jobs.borrow().list.iter() {
            let Some(was) = last.get(&job.name) else { continue };
            job.up.set(was.up);
            if was.awake {
                // its run may be between two tries
                job.call.set_awake(true);
            }
            job.ends.recall(was.ends);
            let c = job.config.borrow();
            if was.configured == c.workers && c.may_have(was.want).is_ok() {
                job.want.set(was.want);
            }
        }
    }

    /// What has become of their workers; those that live are adopted already.
    fn recall_workers(&self, last: &BTreeMap<String, memo::Job>) {
        for job in self.jobs.borrow().list.iter().filter(|j| !j.removed.get()) {
            let Some(was) = last.get(&job.name) else { continue };
            let marks = job.marks();
            let mut workers = job.workers.borrow_mut();
            for (index, w) in was.workers.range(..job.want.get()) {
                job.make_workers(&mut workers, index + 1);
                workers[*index].recall(job, marks, w);
            }
        }
    }

    /// What is remembered of them, and what they plan.
    fn apply_memory(&self) {
        let list = self.jobs.borrow().list.clone();
        for job in list.iter().filter(|j| !j.removed.get()) {
            let disabled = self.jobs.borrow().memory.is.disabled.contains(&job.name);
            if job.enabled.replace(!disabled) && disabled {
                job.up.set(false);
            }
            self.plan(job);
        }
    }

    /// What an earlier manager has left: it is adopted, or ended if there is no place for it any more.
    fn adopt_jobs(self: &Rc<Self>, last: &BTreeMap<String, memo::Job>) {
        let left = std::mem::take(&mut self.jobs.borrow_mut().left);
        for l in left {
            let job = self.job(&l.job).unwrap_or_else(|| {
                // it is only here to be ended
                let gone = Job::new(
                    config::Job { name: l.job.clone(), ..config::Job::default() },
                    Sockets::default(),
                );
                gone.removed.set(true);
                let gone = Rc::new(gone);
                let mut jobs = self.jobs.borrow_mut();
                Rc::make_mut(&mut jobs.list).push(gone.clone());
                jobs.order = order(&jobs.list);
                gone
            });
            let worker = {
                let mut workers = job.workers.borrow_mut();
                let index = l.index.min(config::job::MAX_WORKERS as usize);
                job.make_workers(&mut workers, index + 1);
                workers[index].clone()
            };
            if worker.exists() {
                continue;
            }
            if l.pidfd.is_none() {
                // the last manager was killed before cop had heard all of it
                for part in [Part::Process, Part::Errors, Part::Readiness] {
                    self.upstream.forget_fds(&store_name(part, l.pid, l.index, &l.job));
                }
                continue;
            }
            // it is there already: the wish alone would start another
            job.call.set_awake(true);
            let starting = was_starting(last, &l, job.config.borrow().start_grace);
            self.adopt_worker(&job, &worker, l, starting);
            self.feed_job(&job, &worker, Event::WantUp);
        }
    }

    /// Another configuration: new jobs start, those that are gone stop, those that have changed restart one worker after
    /// the other, and the others don't notice.
    pub(in crate::manager) fn reload_jobs(self: &Rc<Self>, new: Vec<config::Job>, sockets: Vec<Sockets>) {
        let (mut to_roll, mut to_begin) = (Vec::new(), Vec::new());
        {
            let mut jobs = self.jobs.borrow_mut();
            let old = std::mem::take(&mut jobs.list);
            let old: Vec<_> = old.iter().cloned().collect();
            let mut list = Vec::new();
            for (c, sockets) in new.into_iter().zip(sockets) {
                let Some(job) = old.iter().find(|j| j.name == c.name) else {
                    list.push(Rc::new(Job::new(c, sockets)));
                    continue;
                };
                if job.removed.replace(false) {
                    job.up.set(c.autostart);
                }
                let before = job.config.replace(c);
                let c = job.config.borrow();
                if !job.call.is_awake() && !c.is_called() {
                    // what it was called for is done; it runs as any other now
                    to_begin.push(job.clone());
                }
                match (before.is_called(), c.is_called()) {
                    (_, false) => job.call.set_awake(true),
                    (false, true) => job.call.set_awake(!job.is_down()),
                    (true, true) => {}
                }
                job.call.look_away();
                if before.workers != c.workers || c.may_have(job.want.get()).is_err() {
                    job.want.set(c.workers);
                }
                if before.differs(&c) {
                    job.workers.borrow().iter().for_each(|w| w.set_outdated());
                    to_roll.push(job.clone());
                } else if job.workers.borrow().iter().any(|w| w.is_outdated()) {
                    // the restart of an earlier reload has come to nothing, or is under way still
                    to_roll.push(job.clone());
                }
                for gone in job.listeners.borrow().iter().filter(|l| !c.listen.contains(&l.wanted)) {
                    self.upstream.forget_fds(&gone.fd_name());
                }
                if !c.reuseport || before.listen != c.listen {
                    self.drop_copies(job, 0);
                }
                *job.listeners.borrow_mut() = sockets.shared;
                job.workers.borrow().iter().for_each(|w| w.set_limits(limits(&c)));
                list.push(job.clone());
            }
            let gone: Vec<_> = old.into_iter().filter(|o| !list.iter().any(|j| j.name == o.name)).collect();
            gone.iter().for_each(|j| j.removed.set(true));
            list.extend(gone);
            jobs.order = order(&list);
            jobs.list = Rc::new(list);
        }
        self.apply_memory();
        self.store_jobs();
        to_begin.into_iter().for_each(|job| self.begin_anew(&job));
        to_roll.into_iter().for_each(|job| self.roll(job, Which::Outdated));
        self.settle_jobs();
    }

    /// Those that are gone from the configuration, and are down.
    pub(super) fn drop_removed_jobs(&self) {
        let mut jobs = self.jobs.borrow_mut();
        if !jobs.list.iter().any(|j| j.removed.get() && j.is_down()) {
            return;
        }
        let list = Rc::make_mut(&mut jobs.list);
        let gone: Vec<_> = list.extract_if(.., |j| j.removed.get() && j.is_down()).collect();
        for job in gone {
            job.call.look_away();
            job.listeners.borrow().iter().for_each(|l| self.upstream.forget_fds(&l.fd_name()));
            self.drop_copies(&job, 0);
        }
        jobs.order = order(&jobs.list);
    }

    /// Sockets for another configuration: those that stay are handed over.
    ///
    /// # Errors
    /// One can't be bound; nothing has changed then.
    pub(in crate::manager) fn job_sockets(&self, new: &[config::Job]) -> anyhow::Result<Vec<Sockets>> {
        let mut duplicates = Vec::new();
        for job in self.jobs.borrow().list.iter() {
            for l in job.listeners.borrow().iter() {
                duplicates.push(Inherited { name: l.fd_name(), fd: l.fd.try_clone()? });
            }
        }
        take_or_bind(new, &mut duplicates)
    }
}

impl Job {
    fn new(config: config::Job, sockets: Sockets) -> Job {
        Job {
            name: config.name.clone(),
            want: Cell::new(config.workers),
            up: Cell::new(config.autostart),
            enabled: Cell::new(true),
            call: Call::new(!config.is_called()),
            losses: Cell::default(),
            losses_told: Cell::default(),
            ends: Default::default(),
            rolling: Rolling::default(),
            removed: Cell::new(false),
            listeners: RefCell::new(sockets.shared),
            copies: RefCell::new(sockets.copies),
            workers: RefCell::default(),
            tail: RefCell::new(Tail::default()),
            config: RefCell::new(config),
        }
    }
}

/// Was it starting when the last manager died? One that this manager hadn't told of was just spawned.
fn was_starting(
    last: &BTreeMap<String, memo::Job>,
    left: &Left,
    start_grace: Duration,
) -> Option<memo::Starting> {
    let was = last.get(&left.job).and_then(|j| j.workers.get(&left.index));
    match was.filter(|w| w.pid == Some(left.pid)) {
        Some(was) => was.starting,
        // nothing is known of anybody
        None if last.is_empty() => None,
        None => Some(memo::Starting::new(clock::now(), clock::now() + start_grace)),
    }
}

/// Who waits for whom. A job that is gone from the configuration still ends before those that it was after, as far as they are there.
/// The configuration was checked when it was loaded: a mistake can't be here, and would only mean that nobody waits.
fn order(list: &[Rc<Job>]) -> Rc<Order> {
    let names: HashSet<&str> = list.iter().map(|j| &*j.name).collect();
    let after = |j: &Job| {
        let after = j.config.borrow().after.clone();
        after.into_iter().filter(|name| names.contains(&**name)).collect::<Vec<_>>()
    };
    let table: Vec<_> = list.iter().map(|j| (j.name.clone(), after(j))).collect();
    Rc::new(Order::new(&table).unwrap_or_else(|_| Order::of_strangers(list.len())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::jobs::Worker;
    use policy::child::Child;
    use policy::jobs::Restart;

    #[test]
    fn what_another_program_has_done_is_not_done_and_what_has_changed_is_tried_again() {
        let job = |command: &str, restart, grace| {
            let config = config::Job {
                name: "a".into(),
                command: vec![command.into()],
                restart,
                start_grace: std::time::Duration::from_secs(grace),
                ..config::Job::default()
            };
            Job::new(config, Sockets::default())
        };
        let was = |job: &Job, finished, gave_up| {
            let (program, config) = job.marks();
            memo::Process { program, config, finished, gave_up, restarts: 7, ..memo::Process::default() }
        };
        let recalled = |job: &Job, was: &memo::Process| {
            let w = Worker::new(0, Child::new(limits(&job.config.borrow())));
            w.recall(job, job.marks(), was);
            w.has_finished()
        };
        let old = job("x", Restart::Never, 1);
        let (done, given_up) = (was(&old, Some(true), false), was(&old, Some(false), true));
        assert_eq!((recalled(&old, &done), recalled(&old, &given_up)), (Some(true), Some(false)));
        // its work is done whatever else has changed; what was given up may do better
        let slower = job("x", Restart::Never, 2);
        assert_eq!((recalled(&slower, &done), recalled(&slower, &was(&old, None, true))), (Some(true), None));
        let (other, always) = (job("y", Restart::Never, 1), job("x", Restart::Always, 1));
        for job in [other, always] {
            assert_eq!((recalled(&job, &done), recalled(&job, &was(&old, None, true))), (None, None));
        }
    }
}
