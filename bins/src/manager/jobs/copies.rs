//! `reuseport`: each worker but the first has sockets of its own on the job's addresses, and the kernel shares connections
//! between them. They are bound when a worker is first started, and held as the others are: over its death, and the manager's.
//!
//! A worker that isn't wished for any more loses them at once, so that nobody comes to where nobody accepts.

use super::{Job, Worker};
use crate::config;
use crate::config::job::MAX_WORKERS;
use crate::manager::keep::Keep;
use crate::manager::listeners::Listener;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use supervisor::listen_fds::{Inherited, name_for};

/// Sockets by the worker whose they are.
pub(super) type Copies = BTreeMap<usize, Vec<Listener>>;

/// The sockets of a job: those of its first worker, or of all; and those of the others.
#[derive(Default)]
pub struct Sockets {
    pub(super) shared: Vec<Listener>,
    pub(super) copies: Copies,
}

fn name(of: &Listener, worker: usize) -> String {
    name_for(&format!("{} #{worker}", of.fd_name()))
}

/// Is that the name of a copy?
pub(super) fn is_copy(name: &str) -> bool {
    let number = name.rsplit_once('#').map(|(_, number)| number);
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// The worker whose a copy of that one is, by its name.
fn worker_of(copy: &str, shared: &Listener) -> Option<usize> {
    let number = copy.strip_prefix(&*name_for(&format!("{} #", shared.fd_name())))?;
    number.parse().ok().filter(|n| (1..MAX_WORKERS as usize).contains(n))
}

/// The copies that an earlier manager had of these: also those of workers beyond the job's number, for which an operator may have
/// asked. They are let go when that is known not to be so.
pub(super) fn take(job: &config::Job, shared: &[Listener], inherited: &mut Vec<Inherited>) -> Copies {
    let mut copies = Copies::new();
    let Some(first) = shared.first().filter(|_| job.reuseport) else { return copies };
    let workers: BTreeSet<usize> = inherited.iter().filter_map(|i| worker_of(&i.name, first)).collect();
    for worker in workers {
        let mut take = |l: &Listener| {
            let name = name(l, worker);
            let at = inherited.iter().position(|i| i.name == name)?;
            let fd = inherited.swap_remove(at).fd;
            Some(Listener::kept(l, name, fd))
        };
        // all or none: a part of them would be handed over as the wrong ones
        let list: Option<Vec<Listener>> = shared.iter().map(&mut take).collect();
        if let Some(list) = list {
            copies.insert(worker, list);
        }
    }
    copies
}

impl Sockets {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Listener> {
        self.shared.iter().chain(self.copies.values().flatten())
    }
}

impl Keep {
    /// Has the sockets of a worker that is to be started bound.
    pub(super) fn bind_copies(self: &Rc<Self>, job: &Rc<Job>, w: &Worker) {
        let wanted = w.index > 0 && w.index < job.want.get() && job.config.borrow().reuseport;
        if !wanted || job.copies.borrow().contains_key(&w.index) {
            return;
        }
        let bind = |l: &Listener| l.another(name(l, w.index));
        let list: std::io::Result<Vec<Listener>> = job.listeners.borrow().iter().map(bind).collect();
        match list {
            Ok(list) => {
                job.copies.borrow_mut().insert(w.index, list);
                self.keep_sockets(job);
            }
            // it was there before the job asked for several: until the suite is restarted all share it
            Err(e) => log::warn!("event=reuseport-failed of=job job={} worker={}: {e}", job.name, w.index),
        }
    }

    /// Takes away the sockets of workers that aren't wished for any more.
    pub(super) fn drop_copies(&self, job: &Job, from: usize) {
        for list in job.copies.borrow_mut().split_off(&from).into_values() {
            list.iter().for_each(|l| self.upstream.forget_fds(&l.fd_name()));
        }
    }
}
