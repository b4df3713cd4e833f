//! Keeping a server on the listeners: the manager's state, its begin and its end.
//!
//! Everything here is synchronous and short; the tasks of the manager call it when something happened.

use super::death::Dying;
use super::estate::Estates;
use super::incident::Incidents;
use super::jobs::Jobs;
use super::launch::limits;
use super::listeners::Listener;
use super::memo::Memo;
use super::queue::Queue;
use super::replace::Replace;
use super::standby::Standby;
use super::undo::Undo;
use super::watch::Watch;
use crate::cli::Common;
use crate::config::{Accepted, Config};
use crate::exit::Exit;
use crate::orders::channel_name;
use crate::server::legacy::Legacy;
use crate::server::origins;
use crate::suite::{self, Runtime};
use crate::ward::Ward;
use policy::Time;
use policy::child::{Child, Event, State};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;
use supervisor::clock;
use supervisor::notify::{Notifier, NotifySocket};

/// Between two attempts at cop's full queue; it grows up to [`SELDOM`].
pub(super) const OFTEN: Duration = Duration::from_millis(1);
pub(super) const SELDOM: Duration = Duration::from_millis(250);
/// How long a cop may take to hear of a configuration that was accepted.
const HEARD: Duration = Duration::from_secs(2);

/// The pause after one of that length, after which something could be said or nothing.
pub(super) fn until_next(pause: Duration, some: bool) -> Duration {
    if some { OFTEN } else { (pause * 2).min(SELDOM) }
}

/// The manager's state.
pub struct Keep {
    pub(super) config: RefCell<Config>,
    /// As it was accepted.
    pub(super) accepted: RefCell<Accepted>,
    /// What was before a reload that hasn't proved itself.
    pub(super) undo: RefCell<Option<Undo>>,
    /// Of which file.
    pub(super) file: Option<PathBuf>,
    /// The page on which servers write where origins are.
    pub(super) origins: Option<OwnedFd>,
    /// That of our begin.
    pub(super) first_config: Config,
    pub(super) common: Common,
    pub(super) runtime: Runtime,
    pub(super) listeners: RefCell<Vec<Listener>>,
    pub(super) upstream: Rc<Notifier>,
    pub(super) notify: NotifySocket,
    pub(super) server: RefCell<Server>,
    /// Servers that have let go and finish what they have.
    pub(super) retiring: RefCell<Vec<Ward>>,
    /// Servers that are dead and not reaped.
    pub(super) dying: RefCell<Vec<Dying>>,
    /// From whom connections come, by the retiring server that passes them on.
    pub(super) inbound: RefCell<Vec<(i32, OwnedFd)>>,
    pub(super) replace: RefCell<Replace>,
    /// Why the last replacement came to nothing.
    pub(super) replace_failed: RefCell<Option<String>>,
    pub(super) legacy: RefCell<Option<Legacy>>,
    /// To servers that an earlier manager had started.
    pub(super) channels: RefCell<Vec<(i32, OwnedFd)>>,
    pub(super) incidents: RefCell<Incidents>,
    pub(super) queue: RefCell<Queue>,
    pub(super) standby: RefCell<Standby>,
    pub(super) watch: RefCell<Watch>,
    pub(super) jobs: RefCell<Jobs>,
    pub(super) memo: RefCell<Memo>,
    /// Commands that run for us and aren't servers.
    pub(super) hooks: RefCell<Vec<i32>>,
    pub(super) estates: RefCell<Estates>,
    pub(super) cop: RefCell<String>,
    pub(super) started: Time,
    pub(super) timer: Cell<Option<Time>>,
    /// It was said that a Unix socket of the server's can't be made anew.
    pub(super) socket_missing: Cell<bool>,
    /// Somebody says to cop what it had no room for.
    speaking: Cell<bool>,
    /// Closed when cop has been told what a server leaves: until then it doesn't serve.
    pub(super) barriers: RefCell<Vec<OwnedFd>>,
    end: RefCell<End>,
    pub(super) changes: RefCell<Vec<Waker>>,
}

/// The server that is, and what is remembered of those that were.
pub struct Server {
    pub(super) machine: Child,
    pub(super) ward: Option<Ward>,
    /// By which we speak to it; closed, it would end before it serves.
    pub(super) channel: Option<OwnedFd>,
    /// It has taken over what was left to it.
    pub(super) settled: bool,
    pub(super) adopted: bool,
    pub(super) since: Time,
    pub(super) ever_ready: bool,
    pub(super) said: String,
    pub(super) last_exit: Option<String>,
}

/// What a manager begins with.
pub struct Start {
    /// The configuration.
    pub config: Config,
    /// Its text.
    pub accepted: Accepted,
    /// Its file.
    pub file: Option<PathBuf>,
    /// Where origins are.
    pub origins: Option<OwnedFd>,
    /// The options, to take it anew.
    pub common: Common,
    /// The files of the suite.
    pub runtime: Runtime,
    /// Bound.
    pub listeners: Vec<Listener>,
    /// What it will leave itself.
    pub legacy: Legacy,
    /// What dead servers and managers have left.
    pub estates: Estates,
    /// To servers that an earlier manager had started.
    pub channels: Vec<(i32, OwnedFd)>,
    /// From whom connections come.
    pub inbound: Vec<(i32, OwnedFd)>,
    /// Their pulse pages.
    pub pages: Vec<(i32, OwnedFd)>,
    /// Jobs that an earlier manager had.
    pub jobs: Jobs,
    /// What the last manager has left to be remembered.
    pub memo: Memo,
    /// To cop.
    pub upstream: Rc<Notifier>,
    /// From servers.
    pub notify: NotifySocket,
}

#[derive(Default)]
struct End {
    exit: Option<Exit>,
    stopping: bool,
    /// The servers have had the time to end.
    is_late: bool,
    failure: Option<anyhow::Error>,
    waker: Option<Waker>,
}

impl Keep {
    /// Nothing runs yet: see [`Keep::begin`].
    pub fn new(start: Start) -> Rc<Keep> {
        let Start {
            config,
            accepted,
            file,
            origins,
            common,
            runtime,
            listeners,
            legacy,
            estates,
            channels,
            inbound,
            pages,
            jobs,
            memo,
            upstream,
            notify,
        } = start;
        let now = clock::now();
        let server = Server {
            machine: Child::new(limits(&config)),
            ward: None,
            channel: None,
            settled: false,
            adopted: false,
            since: now,
            ever_ready: false,
            said: String::new(),
            last_exit: None,
        };
        let standby = Standby::new(limits(&config));
        Rc::new(Keep {
            watch: RefCell::new(Watch::new(&config, pages, now)),
            hooks: RefCell::default(),
            jobs: RefCell::new(jobs),
            memo: RefCell::new(memo),
            standby: RefCell::new(standby),
            estates: RefCell::new(estates),
            legacy: RefCell::new(Some(legacy)),
            channels: RefCell::new(channels),
            incidents: RefCell::default(),
            queue: RefCell::default(),
            retiring: RefCell::default(),
            dying: RefCell::default(),
            inbound: RefCell::new(inbound),
            replace: RefCell::default(),
            replace_failed: RefCell::default(),
            first_config: config.clone(),
            config: RefCell::new(config),
            accepted: RefCell::new(accepted),
            undo: RefCell::default(),
            file,
            origins,
            common,
            runtime,
            listeners: RefCell::new(listeners),
            upstream,
            notify,
            server: RefCell::new(server),
            cop: RefCell::default(),
            started: now,
            timer: Cell::new(None),
            socket_missing: Cell::new(false),
            speaking: Cell::new(false),
            barriers: RefCell::default(),
            end: RefCell::default(),
            changes: RefCell::default(),
        })
    }

    /// The files of this suite.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The server's pid, if one lives.
    pub fn server_pid(&self) -> Option<i32> {
        self.server.borrow().ward.as_ref().map(|w| w.pid)
    }

    /// Is nothing more tried?
    pub fn has_given_up(&self) -> bool {
        matches!(self.server.borrow().machine.state(), State::GaveUp)
    }

    /// Does a server serve?
    pub fn is_ready(&self) -> bool {
        matches!(self.server.borrow().machine.state(), State::Ready { .. })
    }

    /// Has cop keep duplicates of the listeners.
    pub fn store_fds(self: &Rc<Self>, cop: &Notifier) {
        // its queue is short, and we may be killed before it has read it: first what clients would be lost with
        for l in self.listeners.borrow().iter() {
            cop.store_fds(&l.fd_name(), &[l.fd.as_fd()]);
        }
        self.estates.borrow().store(cop);
        if let Some(legacy) = &*self.legacy.borrow() {
            legacy.announce(cop);
        }
        {
            let s = self.server.borrow();
            if let (Some(w), Some(channel)) = (&s.ward, &s.channel) {
                cop.store_fds(&channel_name(w.pid), &[channel.as_fd()]);
            }
        }
        self.store_inbound(cop);
        self.store_config(cop);
        self.memo.borrow().store(cop);
        self.store_pages(cop);
        if let Some(origins) = &self.origins {
            cop.store_fds(origins::NAME, &[origins.as_fd()]);
        }
        self.store_jobs();
    }

    /// Nothing of the queue is left behind: we end in order.
    pub fn end_legacy(&self) {
        self.legacy.take().into_iter().for_each(Legacy::end);
    }

    /// A heartbeat came from this cop. One that we haven't met has no duplicates of our fds yet; one that was stopped for a
    /// while may have missed some.
    pub fn met_cop(self: &Rc<Self>, who: &str) {
        let missed = self.upstream.take_missed();
        if missed || *self.cop.borrow() != who {
            log::info!("event=new-cop who={who:?} missed={missed}");
            who.clone_into(&mut self.cop.borrow_mut());
            // it starts to ask us when it hears that, and its queue is short
            self.announce_ready();
            self.store_fds(&self.upstream);
            self.limit_again();
        }
        self.speak();
        self.mend_sockets();
        self.cop_asks();
    }

    /// Says to cop what its queue hadn't room for. To be called when something may have been left.
    pub(super) fn speak(self: &Rc<Self>) {
        if !self.upstream.has_later() || self.speaking.replace(true) {
            return;
        }
        let keep = self.clone();
        drop(engine::spawn(async move {
            let (mut left, mut pause) = (usize::MAX, OFTEN);
            loop {
                let now = keep.upstream.say_later();
                if !keep.owes_estates() {
                    keep.barriers.borrow_mut().clear();
                }
                if now == 0 {
                    break;
                }
                pause = until_next(pause, now < left);
                left = now;
                engine::time::sleep(pause).await;
            }
            keep.speaking.set(false);
        }));
    }

    /// Has cop not been told yet of something that a server leaves?
    pub(super) fn owes_estates(&self) -> bool {
        self.upstream.has_later_of(|name| suite::estate_of(name).is_some())
    }

    /// Waits until cop has heard all that it is to keep; not for one that doesn't listen. Has it?
    pub(super) async fn cop_has_heard(&self) -> bool {
        let heard = async {
            while self.upstream.say_later() > 0 || !self.upstream.is_heard() {
                engine::time::sleep(OFTEN).await;
            }
        };
        engine::time::timeout(HEARD, heard).await.is_ok()
    }

    /// Adopts the server that runs, or starts one.
    pub fn begin(self: &Rc<Self>) {
        drop(engine::spawn(self.clone().watch()));
        drop(engine::spawn(self.clone().sweep_servers()));
        self.adopt_retiring();
        // one that is found is held, if serving is paused, and never told to go on
        let paused = self.memo.borrow().paused();
        self.queue.borrow_mut().begin_paused(paused);
        self.feed(Event::WantUp);
        self.recall();
        // what a cop has kept of servers that are no more
        for (pid, _) in self.channels.take() {
            self.upstream.forget_fds(&channel_name(pid));
        }
        self.forget_pages_but(&self.pids());
        self.speak();
    }

    /// Ends the server in order, then the manager.
    pub fn stop(self: &Rc<Self>) {
        self.end.borrow_mut().stopping = true;
        self.end_standby();
        self.end_queue();
        let _ = self.upstream.send("STOPPING=1\nX_TRAFFIC_SERVER=0");
        self.feed(Event::WantDown);
        let (keep, whole) = (self.clone(), self.config.borrow().server_rungs().whole());
        drop(engine::spawn(async move {
            engine::time::sleep(whole).await;
            keep.end.borrow_mut().is_late = true;
            keep.settle_jobs();
        }));
        self.settle_jobs();
        self.maybe_end();
    }

    /// Resolves when the manager is to end.
    ///
    /// # Errors
    /// It ends because of this.
    pub async fn ended(&self) -> anyhow::Result<Exit> {
        poll_fn(|cx| {
            let mut end = self.end.borrow_mut();
            end.waker = Some(cx.waker().clone());
            match (end.failure.take(), end.exit) {
                (Some(e), _) => Poll::Ready(Err(e)),
                (None, Some(exit)) => Poll::Ready(Ok(exit)),
                (None, None) => Poll::Pending,
            }
        })
        .await
    }

    /// Whoever waits for a change looks again.
    pub(super) fn wake_changes(&self) {
        self.changes.borrow_mut().drain(..).for_each(Waker::wake);
    }

    pub(super) fn fail(&self, e: anyhow::Error) {
        let mut end = self.end.borrow_mut();
        end.failure.get_or_insert(e);
        end.waker.take().into_iter().for_each(Waker::wake);
    }

    /// Is everything to end?
    pub(super) fn is_stopping(&self) -> bool {
        self.end.borrow().stopping
    }

    /// At a stop: may jobs be ended? Not before the servers are down, which may be asking them for the last answers.
    pub(super) fn jobs_may_end(&self) -> bool {
        let down = !self.server.borrow().machine.state().is_alive() && self.server.borrow().ward.is_none();
        (down && self.retiring.borrow().is_empty()) || self.end.borrow().is_late
    }

    /// Ends the manager when it is to end and nobody is left.
    pub(super) fn maybe_end(&self) {
        let mut end = self.end.borrow_mut();
        let down = !self.server.borrow().machine.state().is_alive();
        let alone = self.server.borrow().ward.is_none()
            && self.standby.borrow().ward.is_none()
            && self.retiring.borrow().is_empty()
            && self.dying.borrow().is_empty();
        if end.stopping && down && alone && self.jobs_are_down() {
            self.estates.borrow_mut().end_all(&self.upstream);
            end.exit = Some(Exit::Done);
            end.waker.take().into_iter().for_each(Waker::wake);
        }
    }
}
