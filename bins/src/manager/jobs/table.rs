//! The table of jobs: from the configuration, and from one configuration to the next.

use super::output::Tail;
use super::{Job, limits};
use crate::config::{self, Listen};
use crate::manager::keep::Keep;
use crate::manager::listeners::{self, Listener};
use policy::child::Event;
use policy::jobs::Order;
use std::cell::{Cell, RefCell};
use std::os::fd::AsFd;
use std::rc::Rc;
use supervisor::listen_fds::{Inherited, name_for};
use supervisor::notify::Notifier;

/// The name under which a job's socket is stored.
pub fn listen_name(job: &str, listen: &Listen) -> String {
    name_for(&format!("job-listen {job} {listen}"))
}

/// The sockets of all jobs of a configuration: inherited ones where there are some, else new ones.
///
/// # Errors
/// One can't be bound.
pub fn take_or_bind(
    jobs: &[config::Job],
    inherited: &mut Vec<Inherited>,
) -> anyhow::Result<Vec<(String, Vec<Listener>)>> {
    let bind = |j: &config::Job| {
        let list = listeners::take_or_bind_as(&j.listen, inherited, |l| listen_name(&j.name, l))?;
        Ok((j.name.clone(), list))
    };
    jobs.iter().map(bind).collect()
}

impl Keep {
    /// Makes the jobs of the configuration, adopts what an earlier manager has left of them, and starts the others.
    pub(in crate::manager) fn begin_jobs(self: &Rc<Self>, sockets: Vec<(String, Vec<Listener>)>) {
        let config = self.config.borrow().jobs.clone();
        let mut sockets = sockets.into_iter();
        {
            let mut jobs = self.jobs.borrow_mut();
            jobs.order = order(&config);
            jobs.list = config
                .into_iter()
                .map(|c| Rc::new(Job::new(c, sockets.next().map(|(_, list)| list).unwrap_or_default())))
                .collect();
        }
        self.store_jobs(&self.upstream);
        self.adopt_jobs();
        self.settle_jobs();
    }

    /// What an earlier manager has left: it is adopted, or ended if there is no place for it any more.
    fn adopt_jobs(self: &Rc<Self>) {
        let left = std::mem::take(&mut self.jobs.borrow_mut().left);
        for l in left {
            let job = self.job(&l.job).unwrap_or_else(|| {
                // it is only here to be ended
                let gone =
                    Job::new(config::Job { name: l.job.clone(), ..config::Job::default() }, Vec::new());
                gone.removed.set(true);
                let gone = Rc::new(gone);
                let mut jobs = self.jobs.borrow_mut();
                jobs.order.push();
                jobs.list.push(gone.clone());
                gone
            });
            let worker = {
                let mut workers = job.workers.borrow_mut();
                while workers.len() <= l.index.min(config::job::MAX_WORKERS as usize) {
                    let index = workers.len();
                    workers.push(Rc::new(super::Worker::new(index, policy::child::Child::new(job.limits()))));
                }
                workers[l.index.min(config::job::MAX_WORKERS as usize)].clone()
            };
            if worker.exists() {
                continue;
            }
            // it is there already: the wish alone would start another
            self.adopt_worker(&job, &worker, l.pid, l.fds);
            self.feed_job(&job, &worker, Event::WantUp);
        }
    }

    /// Has a cop keep the sockets and processes of jobs.
    pub(in crate::manager) fn store_jobs(&self, cop: &Notifier) {
        for job in &self.jobs.borrow().list {
            for l in job.listeners.borrow().iter() {
                cop.store_fds(&l.fd_name(), &[l.fd.as_fd()]);
            }
            job.workers.borrow().iter().for_each(|w| w.store(&job.name, cop));
        }
    }

    /// Another configuration: new jobs start, those that are gone stop, those that have changed restart one worker after
    /// the other, and the others don't notice.
    pub(in crate::manager) fn reload_jobs(
        self: &Rc<Self>,
        new: Vec<config::Job>,
        sockets: Vec<(String, Vec<Listener>)>,
    ) {
        let mut changed = Vec::new();
        {
            let mut jobs = self.jobs.borrow_mut();
            let old = std::mem::take(&mut jobs.list);
            let mut list = Vec::new();
            for (c, (_, sockets)) in new.into_iter().zip(sockets) {
                let Some(job) = old.iter().find(|j| j.name == c.name) else {
                    list.push(Rc::new(Job::new(c, sockets)));
                    continue;
                };
                if job.removed.replace(false) {
                    job.up.set(c.autostart);
                }
                let before = job.config.replace(c);
                let c = job.config.borrow();
                if before.workers != c.workers {
                    job.want.set(c.workers);
                }
                if before.differs(&c) {
                    changed.push(job.clone());
                }
                for gone in job.listeners.borrow().iter().filter(|l| !c.listen.contains(&l.wanted)) {
                    self.upstream.forget_fds(&gone.fd_name());
                }
                *job.listeners.borrow_mut() = sockets;
                job.workers.borrow().iter().for_each(|w| w.set_limits(limits(&c)));
                list.push(job.clone());
            }
            jobs.order = order(&list.iter().map(|j| j.config.borrow().clone()).collect::<Vec<_>>());
            let gone = old.into_iter().filter(|o| !list.iter().any(|j| j.name == o.name));
            for gone in gone.collect::<Vec<_>>() {
                gone.removed.set(true);
                jobs.order.push();
                list.push(gone);
            }
            jobs.list = list;
        }
        self.store_jobs(&self.upstream);
        changed.into_iter().for_each(|job| self.roll(job));
        self.settle_jobs();
    }

    /// Those that are gone from the configuration, and are down.
    pub(super) fn drop_removed_jobs(&self) {
        let mut jobs = self.jobs.borrow_mut();
        if !jobs.list.iter().any(|j| j.removed.get() && j.is_down()) {
            return;
        }
        for gone in jobs.list.iter().filter(|j| j.removed.get() && j.is_down()) {
            gone.listeners.borrow().iter().for_each(|l| self.upstream.forget_fds(&l.fd_name()));
        }
        jobs.list.retain(|j| !j.removed.get() || !j.is_down());
        let (kept, removed): (Vec<_>, Vec<_>) = jobs.list.drain(..).partition(|j| !j.removed.get());
        jobs.order = order(&kept.iter().map(|j| j.config.borrow().clone()).collect::<Vec<_>>());
        removed.iter().for_each(|_| jobs.order.push());
        jobs.list = kept.into_iter().chain(removed).collect();
    }

    /// Sockets for another configuration: those that stay are handed over.
    ///
    /// # Errors
    /// One can't be bound; nothing has changed then.
    pub(in crate::manager) fn job_sockets(
        &self,
        new: &[config::Job],
    ) -> anyhow::Result<Vec<(String, Vec<Listener>)>> {
        let mut duplicates = Vec::new();
        for job in &self.jobs.borrow().list {
            for l in job.listeners.borrow().iter() {
                duplicates.push(Inherited { name: l.fd_name(), fd: l.fd.try_clone()? });
            }
        }
        take_or_bind(new, &mut duplicates)
    }
}

impl Job {
    fn new(config: config::Job, listeners: Vec<Listener>) -> Job {
        Job {
            name: config.name.clone(),
            want: Cell::new(config.workers),
            up: Cell::new(config.autostart),
            removed: Cell::new(false),
            listeners: RefCell::new(listeners),
            workers: RefCell::default(),
            tail: RefCell::new(Tail::default()),
            config: RefCell::new(config),
        }
    }
}

/// The configuration was checked when it was loaded: a mistake can't be here, and would only mean that nobody waits.
fn order(jobs: &[config::Job]) -> Order {
    let table: Vec<_> = jobs.iter().map(|j| (j.name.clone(), j.after.clone())).collect();
    Order::new(&table).unwrap_or_else(|_| {
        let mut order = Order::default();
        jobs.iter().for_each(|_| order.push());
        order
    })
}
