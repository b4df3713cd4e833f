//! Plain requests for what isn't kept, passed on without hyper.
//!
//! ```text
//!   plain, past the cache              whole, with a length, small
//!   --------------------> sent, read --------------------------------> answered
//!                            |  anything else, or not in time
//!                            v
//!                  hyper: gets the client's request as it was read, and the origin's connection with what came on it
//! ```
//!
//! So nothing has to be known here but the usual case, and no request is sent twice because its answer was unusual. Which
//! origins give unusual answers is remembered by `Bent`, as theirs would cost more this way.

pub mod heads;

use self::heads::{Back, Come, Passing, Whole};
use crate::account::Account;
use crate::continuity::journal::Answer;
use crate::fast::{self, Sending, Step};
use crate::origins::InFlight;
use crate::pool;
use crate::proxy::Proxy;
use crate::route::{OriginConfig, RouteConfig, Target};
use crate::rt::Io;
use crate::serve::Limits;
use crate::stats::Outcome;
use bytes::Bytes;
use engine::net::Stream;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

/// What takes longer is waited for by hyper, which looks after the client meanwhile.
const SOON: Duration = Duration::from_millis(500);

/// How much of an origin's answers is unusual.
#[derive(Debug, Default)]
pub(crate) struct Bent(AtomicU32);

impl Bent {
    /// What an unusual answer adds; a usual one takes 1.
    const ODD: u32 = 4;
    /// From here on requests aren't passed on directly.
    const TOO_MUCH: u32 = 8;

    /// An answer was a usual one, or not.
    pub fn note(&self, usual: bool) {
        let n = self.0.load(Ordering::Relaxed);
        let new = if usual { n.saturating_sub(1) } else { (n + Bent::ODD).min(2 * Bent::TOO_MUCH) };
        // the usual case writes nothing to a shared line
        if new != n {
            self.0.store(new, Ordering::Relaxed);
        }
    }

    /// Most are usual.
    pub fn is_little(&self) -> bool {
        self.0.load(Ordering::Relaxed) < Bent::TOO_MUCH
    }
}

/// A request that was sent without hyper, and whose answer hyper is to read.
#[derive(Debug)]
pub struct Sent {
    /// Which of the route's origins has it.
    pub origin: usize,
    /// The connection it was sent on.
    pub stream: Stream,
    /// What has come on it.
    pub read: Bytes,
    /// Counts as in progress.
    pub busy: InFlight,
    /// When it was sent, or a little before.
    pub at: Instant,
    /// The connection had been idle: the origin may have closed it just then.
    pub reused: bool,
}

/// A plain request to be passed on.
pub struct Errand {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) route: usize,
    /// Which of the route's origins gets it.
    pub(crate) origin: usize,
    pub(crate) busy: InFlight,
    /// It passes a cache, which has noted that it can't keep the answer.
    pub(crate) passing: Option<Passing>,
    pub(crate) begun: Instant,
    pub(crate) account: Option<Box<Account>>,
}

/// An answer, ready to be sent.
struct Ready {
    whole: Whole,
    /// What the client gets: the head, and a small body with it.
    head: Vec<u8>,
    /// Bytes of the head alone.
    head_len: usize,
    /// A body that isn't with the head.
    body: Bytes,
}

impl Ready {
    /// Of what is in `buffer`, which is empty then.
    fn new(whole: Whole, mut head: Vec<u8>, buffer: &mut Vec<u8>) -> Ready {
        let (head_len, range) = (head.len(), whole.head..whole.head + whole.body);
        let body = match whole.body <= fast::TOGETHER {
            true => {
                head.extend_from_slice(&buffer[range]);
                Bytes::new()
            }
            false => Bytes::from(std::mem::take(buffer)).slice(range),
        };
        Ready { whole, head, head_len, body }
    }
}

thread_local! {
    /// Where answers are read into.
    static READ: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl Errand {
    fn config(&self) -> (&RouteConfig, &OriginConfig) {
        let config = &self.proxy.config.routes[self.route];
        let Target::Origins { list, .. } = &config.target else {
            unreachable!("only such routes have errands")
        };
        (config, &list[self.origin])
    }

    /// Sends `head` to the origin, and the answer to the client, whose request are the first `len` bytes of its input.
    pub(crate) async fn run(self, io: &Io, limits: &Limits, head: Vec<u8>, len: usize, close: bool) -> Step {
        let proxy = self.proxy.clone();
        let upstream = &proxy.upstreams[self.route];
        let id = upstream.first_id + self.origin;
        let Some((mut stream, reused)) = self.connection(id).await else { return Step::Hyper };
        io.begin_request(len);
        // in one piece, or something is the matter
        let written = poll_fn(|cx| Poll::Ready(stream.poll_write(cx, &head))).await;
        let all = matches!(written, Poll::Ready(Ok(n)) if n == head.len());
        fast::give_back(head);
        if !all {
            return Step::Hyper;
        }
        let edits = &proxy.config.routes[self.route].response_headers;
        let back = Back { name: &proxy.config.name, edits, passing: self.passing.as_ref(), close };
        let mut read = Vec::new();
        match self.answer(&mut stream, &mut read, &back).await {
            Some(ready) => {
                upstream.origins.good(self.origin);
                if ready.whole.goes_on {
                    pool::give_back_bare(id, stream);
                }
                self.send(io, limits, ready, len, close).await
            }
            None => {
                let (origin, busy, at) = (self.origin, self.busy, self.begun);
                io.hand_over(Sent { origin, stream, read: read.into(), busy, at, reused });
                Step::Hyper
            }
        }
    }

    /// How long this way takes at the most.
    fn soon(&self) -> Duration {
        let timeouts = self.config().0.timeouts;
        let least = timeouts.total.map_or(timeouts.first_byte, |t| t.min(timeouts.first_byte));
        (least / 2).min(SOON)
    }

    /// To the origin number `id` of all, and whether it was used before. If there can't be one soon, hyper's way finds out
    /// why.
    async fn connection(&self, id: usize) -> Option<(Stream, bool)> {
        if let Some(stream) = pool::reuse_bare(id) {
            return Some((stream, true));
        }
        let (config, origin) = self.config();
        let stream = pool::stream(origin, config.timeouts.connect.min(self.soon())).await.ok()?;
        Some((stream, false))
    }

    /// Waits for an answer; `None`: it isn't one for this way, and what has come of it is in `read`.
    async fn answer(&self, stream: &mut Stream, read: &mut Vec<u8>, back: &Back<'_>) -> Option<Ready> {
        let bent = &self.proxy.upstreams[self.route].bent;
        let mut late = engine::time::sleep_until(self.begun + self.soon());
        poll_fn(|cx| {
            let mut buffer = if read.is_empty() { READ.take() } else { std::mem::take(read) };
            let polled = loop {
                buffer.reserve(heads::MOST / 4);
                match stream.poll_read(cx, buffer.spare_capacity_mut()) {
                    Poll::Pending if Pin::new(&mut late).poll(cx).is_ready() => break Poll::Ready(None),
                    Poll::Pending => break Poll::Pending,
                    // what is cut short is hyper's to judge
                    Poll::Ready(Ok(0) | Err(_)) => break Poll::Ready(None),
                    // SAFETY: poll_read has initialised the first `n` bytes of the room it was given.
                    Poll::Ready(Ok(n)) => unsafe { buffer.set_len(buffer.len() + n) },
                }
                let mut head = fast::take_head();
                match heads::answer(&buffer, &mut head, back) {
                    Come::Whole(whole) => {
                        bent.note(true);
                        break Poll::Ready(Some(Ready::new(whole, head, &mut buffer)));
                    }
                    Come::Part => fast::give_back(head),
                    Come::Odd => {
                        bent.note(false);
                        fast::give_back(head);
                        break Poll::Ready(None);
                    }
                }
            };
            match &polled {
                Poll::Pending | Poll::Ready(None) if !buffer.is_empty() => *read = buffer,
                _ => {
                    buffer.clear();
                    READ.set(buffer);
                }
            }
            polled
        })
        .await
    }

    /// Answers the client.
    async fn send(self, io: &Io, limits: &Limits, ready: Ready, len: usize, close: bool) -> Step {
        let outcome = if self.passing.is_some() { Outcome::Miss } else { Outcome::Bypass };
        let took = self.begun.elapsed();
        self.proxy.counters.count_fast(self.route, outcome, took);
        let Whole { status, body, validator, noted, .. } = ready.whole;
        if let (Some(Passing { key: Some(key), .. }), true, Some(cache)) =
            (&self.passing, noted, &self.proxy.cache)
        {
            cache.store.uncacheable(key, engine::time::now());
        }
        let told = self.account.map(|a| Box::new(a.plainly(status, Some(self.route), outcome, took)));
        drop(self.busy);
        let body_len = body as u64;
        let answer = Answer { body_len: Some(body_len), validator };
        io.begin_answer(len, true, ready.head_len, answer, close);
        let sending =
            Sending { io, head: ready.head, sent: 0, body: ready.body, body_len, last: close, told };
        let (done, head) = sending.all(limits).await;
        fast::give_back(head);
        io.answered(done, close)
    }
}
