//! What cop keeps of jobs for the next manager: their sockets, and of each worker its pidfd and our ends of its pipes.
//!
//! Cop's queue holds few datagrams, and a thousand jobs have more to say at once: what doesn't go out now is said in turn, a
//! little later, in order.

use super::stored::{Part, store_name};
use super::worker::Worker;
use super::{Job, NOTIFY};
use crate::manager::keep::{Keep, OFTEN, SELDOM, until_next};
use policy::Time;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;
use supervisor::clock;

/// Words at once, and only while half the queue is free: there is room left for what is said of servers.
const BURST: usize = 4;

/// A process that is started alone is said at once, also into the queue's last place.
const ALONE: Duration = Duration::from_millis(5);

/// More words than these hold up the start of more processes.
const MANY: usize = 8;

/// What is to be said.
pub(super) enum Word {
    /// Keep this job's sockets.
    Sockets(Rc<Job>),
    /// Keep this worker's process.
    Process(Rc<Job>, Rc<Worker>),
    /// Forget what has that name.
    Forget(String),
}

impl Word {
    /// Does cop not have it yet?
    fn is_new(&self) -> bool {
        matches!(self, Word::Process(_, w) if !w.is_adopted())
    }
}

/// What couldn't be said yet.
#[derive(Default)]
pub(super) struct Unsaid {
    words: VecDeque<Word>,
    speaking: bool,
    /// When something was said at once.
    alone: Time,
    /// Nobody has listened for a while.
    deaf: bool,
    /// Names to be forgotten after the next manager has been told something.
    when_told: Vec<String>,
}

impl Unsaid {
    /// Is so much unsaid that no more processes should be started? A manager that is killed now would lose them. Who doesn't
    /// listen at all is not waited for.
    pub(super) fn is_too_much(&self) -> bool {
        self.words.len() > MANY && !self.deaf
    }
}

impl Keep {
    /// Has cop keep a worker that has a process.
    pub(super) fn keep_worker(self: &Rc<Self>, job: &Rc<Job>, w: &Rc<Worker>) {
        self.say(Word::Process(job.clone(), w.clone()));
    }

    /// Has cop forget a worker whose process has ended.
    pub(super) fn forget_worker(self: &Rc<Self>, job: &Job, w: &Worker, pid: i32) {
        for part in w.parts() {
            self.say(Word::Forget(store_name(part, pid, w.index, &job.name)));
        }
    }

    /// Has cop forget how a worker was to say that it is ready, when the next manager knows that it is.
    pub(super) fn forget_readiness(&self, job: &Job, w: &Worker) {
        if let (Some(pid), Some(_)) = (w.pid(), w.notify.take()) {
            let name = store_name(Part::Readiness, pid, w.index, &job.name);
            self.jobs.borrow_mut().unsaid.when_told.push(name);
        }
    }

    /// The next manager knows what there is to know.
    pub(super) fn forget_told(self: &Rc<Self>) {
        let names = std::mem::take(&mut self.jobs.borrow_mut().unsaid.when_told);
        names.into_iter().for_each(|name| self.say(Word::Forget(name)));
    }

    /// Has cop keep the sockets that a job has now.
    pub(super) fn keep_sockets(self: &Rc<Self>, job: &Rc<Job>) {
        self.say(Word::Sockets(job.clone()));
    }

    /// Has a cop keep the sockets and processes of all jobs.
    pub(in crate::manager) fn store_jobs(self: &Rc<Self>) {
        let list = self.jobs.borrow().list.clone();
        if !list.is_empty() {
            self.upstream.store_fds(NOTIFY, &[self.notify.as_fd()]);
        }
        for job in list.iter() {
            if !job.listeners.borrow().is_empty() {
                self.keep_sockets(job);
            }
            let workers = job.workers.borrow().clone();
            workers.iter().filter(|w| w.pid().is_some()).for_each(|w| self.keep_worker(job, w));
        }
    }

    /// Has cop heard of everything that it is to keep?
    pub(in crate::manager) fn is_all_kept(&self) -> bool {
        self.jobs.borrow().unsaid.words.is_empty() && !self.upstream.has_later() && self.upstream.is_heard()
    }

    fn say(self: &Rc<Self>, word: Word) {
        let mut jobs = self.jobs.borrow_mut();
        let unsaid = &mut jobs.unsaid;
        let now = clock::now();
        // what is new to cop comes first: what it has had from us, or from the last manager, it still has
        let in_turn = match word.is_new() {
            true => unsaid.words.front().is_none_or(|w| !w.is_new()),
            false => unsaid.words.is_empty(),
        };
        let room = self.upstream.has_room() || (word.is_new() && now >= unsaid.alone + ALONE);
        if in_turn && room && self.try_say(&word) {
            unsaid.alone = now;
            return;
        }
        match word.is_new() {
            true => unsaid.words.push_front(word),
            false => unsaid.words.push_back(word),
        }
        if !std::mem::replace(&mut unsaid.speaking, true) {
            drop(jobs);
            drop(engine::spawn(self.clone().say_rest()));
        }
    }

    async fn say_rest(self: Rc<Self>) {
        let mut pause = OFTEN;
        loop {
            {
                let mut jobs = self.jobs.borrow_mut();
                let words = &mut jobs.unsaid.words;
                let before = words.len();
                while before - words.len() < BURST
                    && self.upstream.has_room()
                    && words.front().is_some_and(|word| self.try_say(word))
                {
                    words.pop_front();
                }
                let some = words.len() < before;
                pause = until_next(pause, some);
                let done = words.is_empty();
                jobs.unsaid.deaf = pause == SELDOM;
                if done {
                    log::debug!("event=kept of=job");
                    (jobs.unsaid.words, jobs.unsaid.speaking) = (VecDeque::new(), false);
                }
                drop(jobs);
                self.settle_jobs();
                if done {
                    return;
                }
            }
            engine::time::sleep(pause).await;
        }
    }

    /// False: the queue is full. Whatever else is wrong would be wrong again.
    fn try_say(&self, word: &Word) -> bool {
        let full = |result: io::Result<()>| match result {
            Ok(()) => false,
            Err(e) if e.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => true,
            Err(e) => {
                log::warn!("event=fdstore-failed of=job: {e}");
                false
            }
        };
        let busy = match word {
            Word::Sockets(job) => {
                let (sockets, copies) = (job.listeners.borrow(), job.copies.borrow());
                let mut all = sockets.iter().chain(copies.values().flatten());
                all.any(|l| full(self.upstream.try_store(&l.fd_name(), &[l.fd.as_fd()])))
            }
            Word::Process(job, w) => w.with_fds(|pid, part, fds| {
                full(self.upstream.try_store(&store_name(part, pid, w.index, &job.name), fds))
            }),
            Word::Forget(name) => full(self.upstream.try_forget(name)),
        };
        !busy
    }
}
