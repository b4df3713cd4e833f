//! One process of a job: the child machine, with hands.

use super::start::{Pipe, outputs};
use super::stored::Part;
use super::{Job, Left, NOTIFY, alive, output, ready};
use crate::config::job::Ready;
use crate::manager::keep::Keep;
use crate::manager::memo;
use crate::ward::Ward;
use engine::io::Async;
use lockfile::{Signal, signal_group};
use policy::Time;
use policy::child::{Action, Child, Event, State};
use policy::ladder::Rung;
use policy::watchdog::Watchdog;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use supervisor::clock;
use supervisor::notify::{Field, Message};
use supervisor::spawn::SpawnError;

/// One worker, which may have a process.
pub struct Worker {
    pub(super) index: usize,
    machine: RefCell<Child>,
    ward: RefCell<Option<Ward>>,
    timer: Cell<Option<Time>>,
    since: Cell<Time>,
    adopted: Cell<bool>,
    said: RefCell<String>,
    last_exit: RefCell<Option<String>>,
    /// It has ended by itself and isn't started again; true: with success.
    finished: Cell<Option<bool>>,
    /// Its program can't be run: the next try is as good.
    can_not_start: Cell<bool>,
    /// Replacements in the time of earlier managers.
    restarts: Cell<u64>,
    /// An earlier manager gave it up.
    given_up: Cell<bool>,
    /// What its process runs, and by which configuration.
    marks: Cell<(u64, u64)>,
    /// A reload has changed what its process is to be.
    outdated: Cell<bool>,
    watchdog: RefCell<Option<Watchdog>>,
    /// Our end of the socket by which it is asked.
    pub(super) ping: RefCell<Option<OwnedFd>>,
    /// The generation that is asked whether it still works.
    pub(super) asked: Cell<u64>,
    /// The pipes of its output, which a cop is to keep too.
    pipes: RefCell<Vec<(Part, Rc<Async<OwnedFd>>)>>,
    /// The pipe by which it says that it is ready, until it has (`ready = "fd"`).
    pub(super) notify: RefCell<Option<Rc<Async<OwnedFd>>>>,
}

/// How a process has ended.
pub(super) struct End {
    generation: u64,
    success: bool,
}

impl Worker {
    pub(super) fn new(index: usize, machine: Child) -> Worker {
        Worker {
            index,
            machine: RefCell::new(machine),
            ward: RefCell::default(),
            timer: Cell::default(),
            since: Cell::new(clock::now()),
            adopted: Cell::default(),
            said: RefCell::default(),
            last_exit: RefCell::default(),
            finished: Cell::default(),
            can_not_start: Cell::default(),
            restarts: Cell::default(),
            given_up: Cell::default(),
            marks: Cell::default(),
            outdated: Cell::default(),
            watchdog: RefCell::default(),
            ping: RefCell::default(),
            asked: Cell::default(),
            pipes: RefCell::default(),
            notify: RefCell::default(),
        }
    }

    pub(super) fn pid(&self) -> Option<i32> {
        self.ward.borrow().as_ref().map(|w| w.pid)
    }

    /// Did an earlier manager start it?
    pub(super) fn is_adopted(&self) -> bool {
        self.adopted.get()
    }

    pub(super) fn state(&self) -> State {
        self.machine.borrow().state().clone()
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.machine.borrow().state(), State::Ready { .. })
    }

    pub(super) fn is_at_rest(&self) -> bool {
        matches!(self.machine.borrow().state(), State::Down)
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.machine.borrow().is_wanted()
    }

    /// Is there a process?
    pub(super) fn exists(&self) -> bool {
        self.ward.borrow().is_some() || self.machine.borrow().state().is_alive()
    }

    /// Is no more tried?
    pub(super) fn has_given_up(&self) -> bool {
        matches!(self.machine.borrow().state(), State::GaveUp)
    }

    /// Is no more tried, other than after success?
    pub(super) fn is_over(&self) -> bool {
        self.has_given_up() || self.has_finished() == Some(false)
    }

    /// Could its program not be run, by what will not change by itself?
    pub(super) fn can_not_start(&self) -> bool {
        self.can_not_start.get()
    }

    /// What a cop is to keep of its process: false without one, or when `f` has said so of all parts. That with the process
    /// itself comes last: what a manager finds that is killed meanwhile is all or nothing.
    pub(super) fn with_fds(&self, mut f: impl FnMut(i32, Part, &[BorrowedFd<'_>]) -> bool) -> bool {
        let ward = self.ward.borrow();
        let Some(w) = &*ward else { return false };
        if let Some(notify) = &*self.notify.borrow()
            && f(w.pid, Part::Readiness, &[notify.get_ref().as_fd()])
        {
            return true;
        }
        let (pipes, ping) = (self.pipes.borrow(), self.ping.borrow());
        let of = |part| pipes.iter().filter(move |(p, _)| *p == part).map(|(_, pipe)| pipe.get_ref().as_fd());
        let errors: Vec<_> = of(Part::Errors).collect();
        if !errors.is_empty() && f(w.pid, Part::Errors, &errors) {
            return true;
        }
        let pipes = of(Part::Process);
        let fds: Vec<_> = [w.as_fd()].into_iter().chain(pipes).chain(ping.iter().map(AsFd::as_fd)).collect();
        f(w.pid, Part::Process, &fds)
    }

    /// What a cop has of it.
    pub(super) fn parts(&self) -> Vec<Part> {
        let readiness = self.notify.borrow().as_ref().map(|_| Part::Readiness);
        let pipes = self.pipes.borrow();
        let errors = pipes.iter().map(|(part, _)| *part).find(|part| *part == Part::Errors);
        [Part::Process].into_iter().chain(readiness).chain(errors).collect()
    }

    pub(super) fn has_finished(&self) -> Option<bool> {
        self.finished.get()
    }

    /// No more is tried, and that is the end of it.
    pub(super) fn fail(&self) {
        self.finished.set(Some(false));
    }

    /// How its last process ended.
    pub(super) fn last_exit(&self) -> String {
        self.last_exit.borrow().clone().unwrap_or_default()
    }

    /// Its process was started, or has ended, with another configuration than the job has now.
    pub(super) fn is_outdated(&self) -> bool {
        self.outdated.get()
    }

    /// The job has another configuration.
    pub(super) fn set_outdated(&self) {
        self.outdated.set(true);
    }

    /// It may run again.
    pub(super) fn forget_finish(&self) {
        self.finished.set(None);
        self.given_up.set(false);
        self.can_not_start.set(false);
    }

    pub(super) fn generation(&self) -> u64 {
        self.machine.borrow().generation()
    }

    pub(super) fn set_limits(&self, limits: policy::child::Limits) {
        self.machine.borrow_mut().set_limits(limits);
    }

    /// Sends a signal by number.
    ///
    /// # Errors
    /// There is no process, or we may not.
    pub(super) fn signal(&self, signal: i32) -> std::io::Result<()> {
        match &*self.ward.borrow() {
            Some(w) => w.signal(signal),
            None => Err(std::io::ErrorKind::NotFound.into()),
        }
    }

    /// Has nobody asked it to end?
    fn ends_by_itself(&self) -> bool {
        let m = self.machine.borrow();
        m.is_wanted() && !matches!(m.state(), State::Stopping { .. })
    }

    /// What the next manager is to know.
    pub(super) fn to_remember(&self) -> memo::Process {
        memo::Process {
            pid: self.pid(),
            since_ms: self.since.get().as_millis() as u64,
            restarts: self.restarts.get() + self.machine.borrow().restarts(),
            last_exit: self.last_exit.borrow().clone(),
            finished: self.finished.get(),
            gave_up: self.has_given_up() || self.given_up.get(),
            program: self.marks.get().0,
            config: self.marks.get().1,
            outdated: self.is_outdated(),
            starting: match self.machine.borrow().state() {
                State::Starting { since, until } => Some(memo::Starting::new(*since, *until)),
                _ => None,
            },
        }
    }

    /// What the last manager knew. Work that is done is done, if the job has the same to run and wouldn't run it again; what was
    /// given up is, if nothing at all has changed. Both by the job's `marks`.
    pub(super) fn recall(&self, job: &Job, marks: (u64, u64), was: &memo::Process) {
        self.restarts.set(was.restarts);
        self.last_exit.borrow_mut().clone_from(&was.last_exit);
        let (program, config) = marks;
        if self.exists() {
            if self.pid() == was.pid {
                self.since.set(self.since.get().min(was.since()));
                self.marks.set((was.program, was.config));
                self.outdated.set(was.outdated);
            }
            return;
        }
        let done = was.finished.filter(|ok| was.program == program && !job.config.borrow().goes_on(*ok));
        let gave_up = (was.gave_up && was.config == config).then_some(false);
        self.given_up.set(gave_up.is_some());
        if let Some(how) = done.or(gave_up) {
            self.finished.set(Some(how));
            self.since.set(self.since.get().min(was.since()));
            self.marks.set((was.program, was.config));
        }
    }

    fn state_name(&self) -> &'static str {
        match self.finished.get() {
            Some(true) => "finished",
            Some(false) => "failed",
            None => self.machine.borrow().state().name(),
        }
    }

    /// For people: how it is, and why as far as that is known.
    pub(super) fn in_words(&self) -> String {
        let said = self.said.borrow();
        let why = match self.pid() {
            Some(pid) if said.is_empty() => Some(format!("pid {pid}")),
            Some(pid) => Some(format!("pid {pid}, {said}")),
            None => self.last_exit.borrow().clone(),
        };
        let why = why.map_or(String::new(), |why| format!(" ({why})"));
        format!("worker {} is {}{why}", self.index, self.state_name())
    }

    pub(super) fn status(&self) -> Value {
        let m = self.machine.borrow();
        json!({
            "index": self.index,
            "pid": self.pid(),
            "state": self.state_name(),
            "since_s": clock::now().saturating_sub(self.since.get()).as_secs(),
            "restarts": self.restarts.get() + m.restarts(),
            "crashes_in_a_row": m.crashes(),
            "adopted": self.adopted.get(),
            "last_exit": *self.last_exit.borrow(),
            "status": *self.said.borrow(),
        })
    }
}

impl Keep {
    pub(super) fn feed_job(self: &Rc<Self>, job: &Rc<Job>, w: &Rc<Worker>, event: Event) {
        let (before, action, after) = {
            let mut m = w.machine.borrow_mut();
            let before = m.state().name();
            let action = m.handle(event, clock::now(), clock::jitter());
            (before, action, m.state().name())
        };
        if before != after {
            w.since.set(clock::now());
            self.job_event(job, w, after, "");
            self.jobs.borrow_mut().news |= after == "ready";
        }
        match action {
            Action::Nothing => {}
            Action::Spawn => self.launch_job(job, w),
            Action::Send(rung) => send(job, w, rung),
            Action::AnnounceGaveUp => {
                let how = w.last_exit.borrow().clone().unwrap_or_default();
                log::error!("event=gave-up of=job job={} worker={}: the last exit: {how}", job.name, w.index);
            }
        }
        self.arm_job(job, w);
        self.settle_jobs();
    }

    fn arm_job(self: &Rc<Self>, job: &Rc<Job>, w: &Rc<Worker>) {
        let deadline = w.machine.borrow().deadline();
        if deadline == w.timer.replace(deadline) {
            return;
        }
        let Some(at) = deadline else { return };
        let (keep, job, w) = (self.clone(), job.clone(), w.clone());
        drop(engine::spawn(async move {
            engine::time::sleep(at.saturating_sub(clock::now())).await;
            if w.timer.get() == Some(at) {
                w.timer.set(None);
                keep.feed_job(&job, &w, Event::Tick);
            }
        }));
    }

    fn launch_job(self: &Rc<Self>, job: &Rc<Job>, w: &Rc<Worker>) {
        self.bind_copies(job, w);
        w.marks.set(job.marks());
        w.outdated.set(false);
        match self.spawn_worker(job, w) {
            Ok((pid, pidfd, pipes)) => {
                w.adopted.set(false);
                w.can_not_start.set(false);
                w.said.borrow_mut().clear();
                self.hold_job(job, w, Ward::new(pid, pidfd, w.generation() + 1));
                *w.ping.borrow_mut() = pipes.ping;
                *w.notify.borrow_mut() = pipes.notify.and_then(|fd| Some(Rc::new(Async::new(fd).ok()?)));
                self.read_job(job, w, pid, pipes.ours);
                self.feed_job(job, w, Event::Spawned);
                ready::watch(self, job, w, clock::now());
            }
            Err(e) => {
                log::error!("event=spawn-failed of=job job={} worker={}: {e:#}", job.name, w.index);
                *w.last_exit.borrow_mut() = Some(format!("{e:#}"));
                let permanent = e.downcast_ref::<SpawnError>().is_some_and(SpawnError::is_permanent);
                w.can_not_start.set(permanent);
                self.feed_job(job, w, Event::SpawnFailed { permanent });
            }
        }
    }

    /// A process that an earlier manager had started, and that is ready or still starting.
    pub(super) fn adopt_worker(
        self: &Rc<Self>,
        job: &Rc<Job>,
        w: &Rc<Worker>,
        left: Left,
        starting: Option<memo::Starting>,
    ) {
        let Left { pid, pidfd: Some(pidfd), fds, errors, readiness, .. } = left else { return };
        // whoever kept them need not have kept their order
        let (mut pings, pipes): (Vec<_>, Vec<_>) = fds.into_iter().partition(alive::is_socket);
        *w.ping.borrow_mut() = pings.pop();
        *w.notify.borrow_mut() = readiness.and_then(|fd| Some(Rc::new(Async::new(fd).ok()?)));
        w.adopted.set(true);
        self.hold_job(job, w, Ward::new(pid, pidfd, w.generation() + 1));
        let adopted = match starting {
            Some(s) => Event::AdoptedStarting { since: s.since(), until: s.until() },
            None => Event::Adopted { ready: true },
        };
        self.feed_job(job, w, adopted);
        self.job_event(job, w, "adopted", "");
        let pipes = outputs(job, pid, pipes, errors);
        self.read_job(job, w, pid, pipes);
        match starting {
            Some(s) => ready::watch(self, job, w, s.since()),
            None => self.job_works(job, w),
        }
    }

    /// Reads its output, and has cop keep it with its pidfd.
    fn read_job(self: &Rc<Self>, job: &Rc<Job>, w: &Rc<Worker>, pid: i32, pipes: Vec<Pipe>) {
        let watch = |p: Pipe| Some((p.part, Rc::new(Async::new(p.fd).ok()?), p.to));
        let watched: Vec<_> = pipes.into_iter().filter_map(watch).collect();
        *w.pipes.borrow_mut() = watched.iter().map(|(part, pipe, _)| (*part, pipe.clone())).collect();
        self.keep_worker(job, w);
        watched.into_iter().for_each(|(_, pipe, to)| output::follow(self, job, pid, pipe, to));
    }

    /// Waits for its end.
    fn hold_job(self: &Rc<Self>, job: &Rc<Job>, w: &Rc<Worker>, ward: Ward) {
        let generation = ward.generation;
        match Async::new(ward.pidfd()) {
            Ok(end) => {
                let (keep, job, w) = (self.clone(), job.clone(), w.clone());
                drop(engine::spawn(async move {
                    let _ = end.readable().await;
                    keep.job_exited(&job, &w, generation);
                }));
            }
            Err(e) => log::error!("event=watch-failed of=job job={}: {e}", job.name),
        }
        *w.ward.borrow_mut() = Some(ward);
    }

    fn job_exited(self: &Rc<Self>, job: &Rc<Job>, w: &Rc<Worker>, generation: u64) {
        // what it said last is in the socket already
        self.listen();
        let Some(ward) = w.ward.borrow_mut().take_if(|w| w.generation == generation) else { return };
        // those of its group that are left go with it; before it is reaped its number is nobody else's
        let _ = signal_group(ward.as_fd(), ward.pid, Signal::SIGKILL);
        let status = ward.reap();
        let how = status.map_or("ended (it was adopted: not our child)".to_owned(), |s| s.to_string());
        self.forget_worker(job, w, ward.pid);
        *w.notify.borrow_mut() = None;
        *w.watchdog.borrow_mut() = None;
        *w.ping.borrow_mut() = None;
        w.pipes.borrow_mut().clear();
        *w.last_exit.borrow_mut() = Some(how.clone());
        let success = status.and_then(|s| s.code()) == Some(0);
        let detail = format!("of_pid={} how={how:?}", ward.pid);
        match w.ends_by_itself() && !success {
            true => self.job_warning(job, w, "exit", &detail),
            false => self.job_event(job, w, "exit", &detail),
        }
        self.leave_nothing(job, w, End { generation, success });
    }

    /// Nothing is left of a process.
    pub(super) fn job_gone(self: &Rc<Self>, job: &Rc<Job>, w: &Rc<Worker>, end: End) {
        let End { generation, success } = end;
        let by_itself = w.ends_by_itself();
        let hung = matches!(w.machine.borrow().state(), State::Stopping { fault: true, .. });
        if w.index < job.want.get() {
            job.losses.set(job.losses.get() + 1);
        }
        job.ends.count(by_itself, success, hung);
        if by_itself && !job.config.borrow().goes_on(success) {
            w.finished.set(Some(success));
            self.feed_job(job, w, Event::WantDown);
        }
        self.feed_job(job, w, Event::Exited(generation, false));
        if !w.exists() && !w.is_wanted() {
            self.drop_group(&job.name, w.index);
        }
    }

    /// What they have said while no manager lived is heard now; the sockets that it was in aren't needed any more.
    pub(super) fn hear_unheard(self: &Rc<Self>) {
        let unheard = std::mem::take(&mut self.jobs.borrow_mut().unheard);
        for socket in &unheard {
            while let Ok(Some(d)) = socket.recv() {
                self.heard_job(d.pid, &d.message);
            }
        }
        self.remember_news();
        if !unheard.is_empty() {
            // also ours, under the same name
            self.upstream.forget_fds(NOTIFY);
            self.upstream.store_fds(NOTIFY, &[self.notify.as_fd()]);
        }
    }

    /// A datagram of a worker. False: that pid is none of theirs.
    pub(in crate::manager) fn heard_job(self: &Rc<Self>, pid: i32, message: &Message) -> bool {
        let list = self.jobs.borrow().list.clone();
        let found = list.iter().find_map(|j| {
            let workers = j.workers.borrow();
            workers.iter().find(|w| w.pid() == Some(pid)).map(|w| (j.clone(), w.clone()))
        });
        let Some((job, w)) = found else { return false };
        let generation = w.generation();
        let by_notify = job.config.borrow().ready == Ready::Notify;
        for field in &message.fields {
            match field {
                Field::Ready if by_notify => self.job_ready(&job, &w, generation),
                Field::Status(text) => w.said.borrow_mut().clone_from(text),
                Field::Watchdog => {
                    if let Some(dog) = &mut *w.watchdog.borrow_mut() {
                        dog.feed(clock::now());
                    }
                }
                Field::WatchdogTrigger => self.feed_job(&job, &w, Event::Unhealthy(generation)),
                Field::ExtendTimeout(more) => self.feed_job(&job, &w, Event::Extend(generation, *more)),
                _ => {}
            }
        }
        true
    }

    /// It is ready.
    pub(super) fn job_ready(self: &Rc<Self>, job: &Rc<Job>, w: &Rc<Worker>, generation: u64) {
        if w.generation() != generation || w.pid().is_none() {
            return;
        }
        self.feed_job(job, w, Event::Ready(generation));
        self.job_works(job, w);
    }

    /// From here on it has to feed its watchdog, and is asked; how it said that it is ready isn't needed any more.
    fn job_works(self: &Rc<Self>, job: &Rc<Job>, w: &Rc<Worker>) {
        self.forget_readiness(job, w);
        self.begin_job_watchdog(job, w);
        alive::begin(self, job, w);
    }

    /// It hangs: it is ended, and replaced.
    pub(super) fn job_hangs(self: &Rc<Self>, job: &Rc<Job>, w: &Rc<Worker>, how: &str) {
        self.job_warning(job, w, "hang", how);
        crate::ward::picture(&self.config.borrow().suite, w.pid().unwrap_or(0), how);
        self.feed_job(job, w, Event::Unhealthy(w.generation()));
    }

    fn begin_job_watchdog(self: &Rc<Self>, job: &Rc<Job>, w: &Rc<Worker>) {
        let limit = job.config.borrow().watchdog;
        if limit.is_zero() || w.watchdog.borrow().is_some() {
            return;
        }
        *w.watchdog.borrow_mut() = Some(Watchdog::new(limit, clock::now()));
        let (keep, job, w, generation) = (self.clone(), job.clone(), w.clone(), w.generation());
        drop(engine::spawn(async move {
            loop {
                let Some(next) = w.watchdog.borrow().as_ref().map(Watchdog::deadline) else { return };
                engine::time::sleep(next.saturating_sub(clock::now())).await;
                keep.listen();
                if w.generation() != generation {
                    return;
                }
                let starved =
                    w.watchdog.borrow_mut().as_mut().is_some_and(|dog| dog.is_starved(clock::now()));
                if starved {
                    *w.watchdog.borrow_mut() = None;
                    return keep.job_hangs(&job, &w, &format!("no WATCHDOG=1 for {limit:?}"));
                }
            }
        }));
    }
}

/// Sends a rung: the last ones reach the whole process group.
fn send(job: &Job, w: &Worker, rung: Rung) {
    let ward = w.ward.borrow();
    let Some(ward) = &*ward else { return };
    let result = match rung {
        Rung::Polite => {
            let sent = ward.signal(job.config.borrow().stop_signal);
            let _ = ward.signal(nix::libc::SIGCONT);
            sent
        }
        Rung::Core | Rung::Kill => signal_group(ward.as_fd(), ward.pid, Signal::SIGKILL),
        Rung::Stuck => {
            log::error!(
                "event=stuck of=job job={} pid={}: SIGKILL was sent and it still exists",
                job.name,
                ward.pid
            );
            Ok(())
        }
    };
    if let Err(e) = result {
        log::warn!("event=signal-failed of=job job={} pid={}: {e}", job.name, ward.pid);
    }
}
