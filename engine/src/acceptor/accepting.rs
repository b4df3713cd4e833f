//! The accept loops: one for each listener on each thread that accepts.

use super::{Accepted, AtLimit, BATCH, ConnGuard, ConnPlacement, Control, FD_PAUSE, Lane, SAYS_FULL};
use crate::net::{Listener, Peer};
use crate::{Handle, Local, time};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};
use std::time::Duration;

/// The listeners as one accept loop has them, and what it needs to know.
pub(super) struct ListenerSet {
    /// Each with a descriptor to give up in need.
    pub(super) fds: Vec<(OwnedFd, File)>,
    pub(super) exclusive: bool,
    pub(super) lanes: Vec<Arc<Lane>>,
    pub(super) all_lanes: Vec<Arc<Lane>>,
    pub(super) control: Arc<Control>,
    pub(super) placement: ConnPlacement,
    pub(super) at_limit: AtLimit,
    pub(super) requests_per_event: u32,
}

/// The end of a loop is told to the connection queues, however it comes about.
struct LoopEnds(Arc<Control>, Vec<Arc<Lane>>);

impl Drop for LoopEnds {
    fn drop(&mut self) {
        self.0.loops.fetch_sub(1, Ordering::AcqRel);
        self.1.iter().for_each(|lane| lane.wake());
    }
}

impl ListenerSet {
    pub(super) fn on_own_thread(self, n: usize, engine: Handle) -> io::Result<std::thread::JoinHandle<()>> {
        let (started, outcome) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name(format!("accept-{n}")).spawn(move || {
            let _kept = engine.begin_thread("accept");
            match Local::new() {
                Ok(local) => {
                    let _ = started.send(Ok(()));
                    local.run(self.run());
                }
                Err(e) => drop(started.send(Err(e))),
            }
        })?;
        outcome.recv().unwrap_or_else(|_| Err(io::Error::other("an accept thread died at its start")))?;
        Ok(thread)
    }

    /// Accepts from all listeners until stopped.
    pub(super) async fn run(mut self) {
        let ends = LoopEnds(self.control.clone(), self.all_lanes.clone());
        let mut listeners = Vec::new();
        for (fd, spare) in std::mem::take(&mut self.fds) {
            match if self.exclusive { Listener::exclusive(fd) } else { Listener::from_fd(fd) } {
                Ok(listener) => listeners.push((listener, spare)),
                Err(e) => log::error!("event=listener_lost error=\"{e}\""),
            }
        }
        let set = std::rc::Rc::new(self);
        let loops: Vec<_> = listeners
            .into_iter()
            .enumerate()
            .map(|(index, (listener, spare))| {
                let set = set.clone();
                crate::spawn(Accepting { set, listener, index, turn: index, spare: Some(spare) }.run())
            })
            .collect();
        for one in loops {
            let _ = one.await;
        }
        drop(ends);
    }
}

/// One listener's loop.
struct Accepting {
    set: std::rc::Rc<ListenerSet>,
    listener: Listener,
    index: usize,
    turn: usize,
    /// Given up for a moment to answer a client when there is no other descriptor.
    spare: Option<File>,
}

enum Step {
    Stopped,
    Held,
    Accepted(OwnedFd, Peer),
    Failed(io::Error),
}

impl Accepting {
    async fn run(mut self) {
        // The loop's waker stays the same for its whole life.
        let waker = std::future::poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        self.set.control.wakers.lock().expect("never poisoned").push(waker);
        let refuse = matches!(self.set.at_limit, AtLimit::Refuse(_));
        let mut in_a_row = 0;
        loop {
            if self.set.control.is_held() || (!refuse && self.set.control.is_full()) {
                if !self.pause(None).await {
                    return;
                }
                continue;
            }
            match self.step().await {
                Step::Stopped => return,
                Step::Held => continue,
                Step::Accepted(fd, peer) => {
                    self.set.control.accepted.fetch_add(1, Ordering::Relaxed);
                    let mut admitted = self.set.control.admit();
                    // Another loop took the last place meanwhile: this one stays in hand until there is another.
                    while !admitted && !refuse {
                        if !self.pause(None).await {
                            return;
                        }
                        admitted = self.set.control.admit();
                    }
                    if !admitted {
                        self.refuse(fd, peer);
                    } else if !self.place(fd, peer).await {
                        return;
                    }
                }
                Step::Failed(e) if is_out_of_fds(&e) => {
                    self.set.control.out_of_fds.fetch_add(1, Ordering::Relaxed);
                    self.answer_with_spare(refuse);
                    if !self.pause(Some(FD_PAUSE)).await {
                        return;
                    }
                }
                Step::Failed(e) => {
                    self.set.control.errors.fetch_add(1, Ordering::Relaxed);
                    if !is_about_one_connection(&e) {
                        log::error!("event=accept_failed listener={} error=\"{e}\"", self.index);
                        if !self.pause(Some(FD_PAUSE)).await {
                            return;
                        }
                    }
                }
            }
            in_a_row += 1;
            if in_a_row == BATCH {
                in_a_row = 0;
                crate::yield_now().await;
            }
        }
    }

    /// The next connection.
    async fn step(&self) -> Step {
        std::future::poll_fn(|cx| {
            if self.set.control.is_stopped() {
                return Poll::Ready(Step::Stopped);
            }
            if self.set.control.is_held() {
                return Poll::Ready(Step::Held);
            }
            self.listener.poll_accept_fd(cx).map(|result| match result {
                Ok((fd, peer)) => Step::Accepted(fd, peer),
                Err(e) => Step::Failed(e),
            })
        })
        .await
    }

    /// Waits for room, at most for `limit`. False: stopped.
    async fn pause(&self, limit: Option<Duration>) -> bool {
        let control = &self.set.control;
        control.pauses.fetch_add(1, Ordering::Relaxed);
        control.paused.store(true, Ordering::SeqCst);
        if let Some(limit) = limit {
            control.says_full();
            let mut waited = false;
            let kicked = std::future::poll_fn(|_| {
                let over = waited || control.is_stopped();
                waited = true;
                if over { Poll::Ready(()) } else { Poll::Pending }
            });
            let _ = time::timeout(limit, kicked).await;
            return !control.is_stopped();
        }
        // A place may have become free before the flag was up; then nobody kicks.
        let is_over = || !control.is_full() || control.is_stopped();
        while !is_over() {
            if !control.is_held() {
                control.says_full();
            }
            let room = std::future::poll_fn(|_| if is_over() { Poll::Ready(()) } else { Poll::Pending });
            let _ = time::timeout(SAYS_FULL, room).await;
        }
        !control.is_stopped()
    }

    /// Hands a connection to a thread; waits while all queues are full. False: stopped, and the connection is dropped
    /// because nobody would take it.
    async fn place(&mut self, fd: OwnedFd, peer: Peer) -> bool {
        let set = self.set.clone();
        let lanes = &set.lanes;
        let first = match set.placement {
            ConnPlacement::RoundRobin => self.turn,
            ConnPlacement::FdModulo => fd.as_raw_fd() as usize,
            ConnPlacement::LeastConnections => {
                let live = |n: &usize| lanes[*n].live.load(Ordering::Relaxed);
                (0..lanes.len()).min_by_key(live).unwrap_or(0)
            }
        } % lanes.len();
        self.turn = (self.turn + 1) % lanes.len();
        let guard = ConnGuard::new(&set.control, &lanes[first]);
        let mut conn =
            Accepted { fd, listener: self.index, peer, guard, requests_per_event: set.requests_per_event };
        loop {
            for n in 0..lanes.len() {
                let lane = &lanes[(first + n) % lanes.len()];
                if n > 0 {
                    // `live` of the control stays as it is: only the thread changes.
                    lane.live.fetch_add(1, Ordering::Relaxed);
                    conn.guard.lane.live.fetch_sub(1, Ordering::Relaxed);
                    conn.guard.lane = lane.clone();
                }
                match lane.push(conn) {
                    Ok(()) => return true,
                    Err(back) => conn = back,
                }
            }
            if !self.pause(Some(FD_PAUSE)).await {
                return false;
            }
        }
    }

    fn refuse(&self, fd: OwnedFd, peer: Peer) {
        self.set.control.refused.fetch_add(1, Ordering::Relaxed);
        if let AtLimit::Refuse(hook) = &self.set.at_limit {
            hook(fd, peer);
        }
    }

    /// Out of descriptors: with a refuse hook, one client is told so by means of the spare descriptor.
    fn answer_with_spare(&mut self, refuse: bool) {
        if refuse && self.spare.take().is_some() {
            let mut cx = std::task::Context::from_waker(Waker::noop());
            if let Poll::Ready(Ok((fd, peer))) = self.listener.poll_accept_fd(&mut cx) {
                self.set.control.accepted.fetch_add(1, Ordering::Relaxed);
                self.refuse(fd, peer);
            }
        }
        if self.spare.is_none() {
            self.spare = spare().ok();
        }
    }
}

pub(super) fn spare() -> io::Result<File> {
    File::open("/dev/null")
}

fn is_out_of_fds(e: &io::Error) -> bool {
    let errnos = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    errnos.iter().any(|errno| e.raw_os_error() == Some(errno.raw_os_error()))
}

/// Errors that accept(2) passes on from the connection, after which the next one is to be taken.
fn is_about_one_connection(e: &io::Error) -> bool {
    let errnos = [
        Errno::CONNABORTED,
        Errno::PERM,
        Errno::PROTO,
        Errno::NETDOWN,
        Errno::NOPROTOOPT,
        Errno::HOSTDOWN,
        Errno::NONET,
        Errno::HOSTUNREACH,
        Errno::OPNOTSUPP,
        Errno::NETUNREACH,
    ];
    errnos.iter().any(|errno| e.raw_os_error() == Some(errno.raw_os_error()))
}
