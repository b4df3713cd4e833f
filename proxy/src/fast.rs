//! A connection between requests, and plain hits: what is answered before hyper sees a byte of it.
//!
//! ```text
//!             bytes come                 plain, kept, fresh
//!   waiting -------------> looked at ---------------------------> answered --> looked at, until there is no more
//!      ^                     |  anything else                                      |
//!      |                     v                                                     |
//!      `-- idle again -- hyper, which is given what was read                       |
//!      `---------------------------------------------------------------------------'
//! ```
//!
//! Nothing is decided here that hyper's way decides too: what is plain says [`crate::plain`], what may be used
//! `cache::policy`, what the head looks like has been taken from an answer that hyper gave ([`crate::cache::wire`]).
//! The journal is kept as for any request. A connection that waits here has no buffer and no state of hyper's.

use crate::account::Told;
use crate::continuity::journal::Answer;
use crate::continuity::retire::Retirement;
use crate::direct::Errand;
use crate::plain::{self, Plain};
use crate::rt::{Input, Io};
use crate::serve::{Limits, begun};
use bytes::{Buf, Bytes};
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

/// A body up to this size is written together with its head: to copy it costs less than a second piece.
pub(crate) const TOGETHER: usize = 2048;

/// A kept answer.
pub struct Hit {
    /// Shared with the store.
    pub body: Bytes,
    /// See [`Answer::validator`].
    pub validator: u64,
    /// Tells of it when it is out, if it is to be told of.
    pub told: Option<Box<Told>>,
}

/// What is done with a plain request.
pub enum Found {
    /// It is answered with this.
    Hit(Hit),
    /// It is passed on. In a place of its own: the future of every connection would else be larger.
    Errand(Box<Errand>),
    /// It is left to hyper.
    Nothing,
}

/// Who knows what to do with plain requests.
pub trait Hits {
    /// What is done with it. The head of the answer, or of the request that is passed on, is put into `head`, which is empty.
    fn find(&self, request: &Plain<'_>, head: &mut Vec<u8>) -> Found;
}

/// Nothing.
impl Hits for () {
    fn find(&self, _: &Plain<'_>, _: &mut Vec<u8>) -> Found {
        Found::Nothing
    }
}

/// How this part of a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// There is something to read that hyper has to see.
    Hyper,
    /// The connection ends.
    Close,
    /// It is between two requests, and to be passed on.
    Retire,
}

/// Waits for requests and answers the plain ones.
pub async fn serve(io: &Io, retirement: Option<&Retirement>, limits: &Limits, hits: &impl Hits) -> Next {
    let mut draining = pin!(engine::draining());
    let mut retired = pin!(begun(retirement));
    // set anew when it has fired, not with every request
    let mut idle = engine::time::sleep_until(engine::time::now() + limits.idle_timeout);
    loop {
        let since = engine::time::now();
        let woken = poll_fn(|cx| {
            if retired.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(Next::Retire));
            }
            if let Poll::Ready(input) = io.poll_input(cx) {
                return Poll::Ready(input.map_err(|_| Next::Close));
            }
            if draining.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(Next::Close));
            }
            while Pin::new(&mut idle).poll(cx).is_ready() {
                let end = since + limits.idle_timeout;
                if end <= engine::time::now() {
                    return Poll::Ready(Err(Next::Close));
                }
                idle.reset(end);
            }
            Poll::Pending
        });
        match woken.await {
            Ok(Input::Read) if limits.fast && !engine::is_draining() => {}
            Ok(Input::End) | Err(Next::Close) => return Next::Close,
            Err(Next::Retire) => return Next::Retire,
            Ok(_) | Err(Next::Hyper) => {
                io.leave_input();
                return Next::Hyper;
            }
        }
        match answer_all(io, limits, hits).await {
            Step::Done | Step::Next => {}
            Step::Hyper => {
                io.leave_input();
                return Next::Hyper;
            }
            Step::Close => return Next::Close,
        }
    }
}

/// How far it went.
pub(crate) enum Step {
    /// A request is answered; there may be more.
    Next,
    /// All that was read is answered.
    Done,
    /// The next request is for hyper.
    Hyper,
    /// That was the last one.
    Close,
}

/// What the next request comes to: its length, whether it is the last one, and the answer.
enum Look {
    Nothing,
    Other,
    Hit(usize, bool, Hit),
    Errand(usize, bool, Box<Errand>),
}

thread_local! {
    /// Where heads are made.
    static HEAD: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// An empty place for a head.
pub(crate) fn take_head() -> Vec<u8> {
    let mut head = HEAD.take();
    head.clear();
    head
}

/// It is used no longer.
pub(crate) fn give_back(head: Vec<u8>) {
    HEAD.set(head);
}

/// Answers what has been read, as long as it is plain.
async fn answer_all(io: &Io, limits: &Limits, hits: &impl Hits) -> Step {
    loop {
        let mut head = take_head();
        let look = io.with_input(|bytes| {
            let mut room = plain::room();
            match plain::parse(bytes, &mut room) {
                _ if bytes.is_empty() => Look::Nothing,
                Some(request) => match hits.find(&request, &mut head) {
                    Found::Hit(hit) => Look::Hit(request.len, request.close, hit),
                    Found::Errand(errand) => Look::Errand(request.len, request.close, errand),
                    Found::Nothing => Look::Other,
                },
                None => Look::Other,
            }
        });
        let (step, head) = match look {
            Look::Nothing => (Step::Done, head),
            Look::Other => (Step::Hyper, head),
            Look::Errand(len, last, errand) => {
                // as below
                (Box::pin(errand.run(io, limits, head, len, last)).await, take_head())
            }
            Look::Hit(len, last, hit) => {
                let body_len = hit.body.len() as u64;
                let answer = Answer { body_len: Some(body_len), validator: hit.validator };
                io.begin_answer(len, false, head.len(), answer, last);
                let mut sending =
                    Sending { io, head, sent: 0, body: hit.body, body_len, last, told: hit.told };
                if sending.body.len() <= TOGETHER {
                    sending.head.extend_from_slice(&std::mem::take(&mut sending.body));
                }
                // as `Sending::all` does, which would make the future of every connection larger
                let first = poll_fn(|cx| Poll::Ready(sending.some(cx))).await;
                let (done, head) = match first {
                    Poll::Ready(done) => (done, sending.into_head()),
                    Poll::Pending => (Box::pin(sending.rest(limits)).await, Vec::new()),
                };
                (io.answered(done, last), head)
            }
        };
        give_back(head);
        match step {
            Step::Next => {}
            end => return end,
        }
    }
}

/// An answer on its way out.
pub(crate) struct Sending<'a> {
    pub io: &'a Io,
    pub head: Vec<u8>,
    /// Bytes of the head that are out.
    pub sent: usize,
    /// What isn't out of the body.
    pub body: Bytes,
    /// Bytes of the body.
    pub body_len: u64,
    /// The connection ends after it.
    pub last: bool,
    pub told: Option<Box<Told>>,
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.tell();
    }
}

impl Sending<'_> {
    /// Bytes that aren't out.
    fn left(&self) -> usize {
        self.head.len() - self.sent + self.body.len()
    }

    /// It goes no further.
    fn tell(&mut self) {
        if let Some(mut told) = self.told.take() {
            let left = self.left() as u64;
            told.sent(self.body_len - left.min(self.body_len), left == 0);
        }
    }

    /// Gives back what the head was made in.
    fn into_head(mut self) -> Vec<u8> {
        self.tell();
        self.sent = 0;
        std::mem::take(&mut self.head)
    }

    /// Sends as much as the socket takes.
    fn some(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.head.len() || !self.body.is_empty() {
            let n = ready!(self.io.poll_send(cx, &self.head[self.sent..], &self.body, self.last))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_head = n.min(self.head.len() - self.sent);
            self.sent += of_head;
            self.body.advance(n - of_head);
        }
        Poll::Ready(Ok(()))
    }

    /// Sends all of it; with what the head was made in.
    pub async fn all(mut self, limits: &Limits) -> (io::Result<()>, Vec<u8>) {
        match poll_fn(|cx| Poll::Ready(self.some(cx))).await {
            Poll::Ready(done) => (done, self.into_head()),
            Poll::Pending => (self.rest(limits).await, Vec::new()),
        }
    }

    /// Sends what is left; the client has to take some of it every now and then.
    async fn rest(mut self, limits: &Limits) -> io::Result<()> {
        let mut stalled = engine::time::sleep(limits.send_timeout);
        let mut before = self.left();
        poll_fn(|cx| {
            if let Poll::Ready(done) = self.some(cx) {
                return Poll::Ready(done);
            }
            if self.left() < before {
                before = self.left();
                stalled.reset(engine::time::now() + limits.send_timeout);
            }
            ready!(Pin::new(&mut stalled).poll(cx));
            Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
        })
        .await
    }
}
