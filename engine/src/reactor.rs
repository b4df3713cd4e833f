//! The file descriptors of one event thread: who waits for which, and what epoll last said.
//!
//! Every source is added to epoll once, edge-triggered, for both directions. From then on the kernel is not asked
//! again: an edge sets a bit here, and the user clears it when an operation says `WouldBlock`. A hang-up or error is
//! never cleared, so a short read may clear "readable" without losing the end of the stream that came with it.
//!
//! One that is taken for ready ([`Watch::Later`]) is added when somebody first has to wait for it: a connection that is
//! accepted, answered and closed in one go never is (HAProxy does the same). To add it reports what has come by then.

use crate::shared::{Shared, WAKE_TOKEN};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use slab::Slab;
use std::io;
use std::os::fd::BorrowedFd;
use std::task::{Context, Poll, Waker};

/// A direction of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Reading, accepting.
    Readable,
    /// Writing, connecting.
    Writable,
}

const READ: u8 = 1;
const WRITE: u8 = 2;
/// The peer will send no more, or an error is pending: reading never blocks again.
const READ_CLOSED: u8 = 4;
const WRITE_CLOSED: u8 = 8;

impl Interest {
    fn mask(self) -> u8 {
        match self {
            Interest::Readable => READ | READ_CLOSED,
            Interest::Writable => WRITE | WRITE_CLOSED,
        }
    }

    fn clearable(self) -> u8 {
        match self {
            Interest::Readable => READ,
            Interest::Writable => WRITE,
        }
    }
}

/// When a source is added to epoll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watch {
    /// At once.
    Now,
    /// At once, for reading only: of several threads that watch the same object one is woken.
    Exclusive,
    /// When somebody has to wait for it; until then it is taken for ready.
    Later,
}

impl Watch {
    fn flags(self) -> EpollFlags {
        match self {
            Watch::Exclusive => EpollFlags::EPOLLIN | EpollFlags::EPOLLET | EpollFlags::EPOLLEXCLUSIVE,
            Watch::Now | Watch::Later => {
                EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET
            }
        }
    }
}

struct Source {
    generation: u32,
    /// It is in epoll.
    watched: bool,
    ready: u8,
    waiting: [Option<Waker>; 2],
}

/// Key and generation of a source, which is also its epoll token.
pub(crate) type Token = u64;

#[derive(Default)]
pub(crate) struct Sources {
    slab: Slab<Source>,
    generation: u32,
}

fn index(token: Token) -> usize {
    (token & u64::from(u32::MAX)) as usize
}

impl Sources {
    pub(crate) fn add(&mut self, shared: &Shared, fd: BorrowedFd<'_>, watch: Watch) -> io::Result<Token> {
        self.generation = self.generation.wrapping_add(1) & 0x7fff_ffff;
        let entry = self.slab.vacant_entry();
        let token = u64::from(self.generation) << 32 | entry.key() as u64;
        let watched = watch != Watch::Later;
        if watched {
            shared.epoll.add(fd, EpollEvent::new(watch.flags(), token))?;
        }
        let ready = if watched { 0 } else { READ | WRITE };
        entry.insert(Source { generation: self.generation, watched, ready, waiting: [None, None] });
        shared.stats.sources.set(self.slab.len() as u64);
        Ok(token)
    }

    /// Forgets a source: was it in epoll, or may it have been? Its wakers are returned, to be dropped where nothing is borrowed.
    pub(crate) fn remove(&mut self, shared: &Shared, token: Token) -> (bool, [Option<Waker>; 2]) {
        if self.get(token).is_none() {
            return (true, [None, None]);
        }
        let source = self.slab.remove(index(token));
        shared.stats.sources.set(self.slab.len() as u64);
        (source.watched, source.waiting)
    }

    fn get(&mut self, token: Token) -> Option<&mut Source> {
        self.slab.get_mut(index(token)).filter(|s| u64::from(s.generation) == token >> 32)
    }

    /// Ready, or the waker is kept, and from now on epoll says when `fd` is. The second value is a replaced waker, to be
    /// dropped where nothing is borrowed.
    pub(crate) fn poll(
        &mut self,
        shared: &Shared,
        fd: BorrowedFd<'_>,
        (token, interest): (Token, Interest),
        cx: &Context<'_>,
    ) -> (Poll<io::Result<()>>, Option<Waker>) {
        let Some(source) = self.get(token) else { return (Poll::Ready(Ok(())), None) };
        if source.ready & interest.mask() != 0 {
            return (Poll::Ready(Ok(())), None);
        }
        if !source.watched {
            if let Err(e) = shared.epoll.add(fd, EpollEvent::new(Watch::Later.flags(), token)) {
                return (Poll::Ready(Err(e.into())), None);
            }
            source.watched = true;
        }
        let slot = &mut source.waiting[interest as usize];
        if slot.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            return (Poll::Pending, None);
        }
        (Poll::Pending, slot.replace(cx.waker().clone()))
    }

    pub(crate) fn clear(&mut self, token: Token, interest: Interest) {
        if let Some(source) = self.get(token) {
            source.ready &= !interest.clearable();
        }
    }

    pub(crate) fn assume_ready(&mut self, token: Token) {
        if let Some(source) = self.get(token) {
            source.ready |= READ | WRITE;
        }
    }

    /// Takes in one event of epoll and returns who waited for it.
    pub(crate) fn event(&mut self, event: &EpollEvent) -> [Option<Waker>; 2] {
        if event.data() == WAKE_TOKEN {
            return [None, None];
        }
        let Some(source) = self.get(event.data()) else { return [None, None] };
        let flags = event.events();
        let mut ready = 0;
        if flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLPRI) {
            ready |= READ;
        }
        if flags.contains(EpollFlags::EPOLLOUT) {
            ready |= WRITE;
        }
        if flags.contains(EpollFlags::EPOLLRDHUP) {
            ready |= READ | READ_CLOSED;
        }
        if flags.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            ready |= READ | READ_CLOSED | WRITE | WRITE_CLOSED;
        }
        source.ready |= ready;
        let [read, write] = &mut source.waiting;
        let take = |slot: &mut Option<Waker>, interest: Interest| {
            if ready & interest.mask() != 0 { slot.take() } else { None }
        };
        [take(read, Interest::Readable), take(write, Interest::Writable)]
    }
}
