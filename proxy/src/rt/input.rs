//! What is read from a connection before hyper sees it, and answers beside hyper's; see [`crate::fast`].

use super::Io;
use crate::continuity::journal::Answer;
use crate::direct::Sent;
use crate::fast::Step;
use bytes::{Buf, Bytes};
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

/// What [`Io::poll_input`] comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// There are bytes to look at.
    Read,
    /// The client sends no more.
    End,
    /// There is something to read, for hyper alone.
    Other,
}

impl Io {
    /// Reads for a [`crate::fast`] look at it, where [`Io::with_input`] finds it; [`Input::Other`] if it has to be read in
    /// another way.
    pub fn poll_input(&self, cx: &mut Context<'_>) -> Poll<io::Result<Input>> {
        if !self.0.again.borrow().is_empty() {
            return Poll::Ready(Ok(Input::Other));
        }
        let mut stream = self.0.stream.borrow_mut();
        ready!(stream.poll_read_ready(cx))?;
        let n = match &self.0.journal {
            Some(j) => match j.read_kept(usize::MAX, |room| stream.poll_read(cx, room)) {
                Some(polled) => ready!(polled)?,
                None => return Poll::Ready(Ok(Input::Other)),
            },
            None => {
                let mut room = Vec::with_capacity(4096);
                let n = ready!(stream.poll_read(cx, room.spare_capacity_mut()))?;
                // SAFETY: poll_read has initialised the first `n` bytes of the room it was given.
                unsafe { room.set_len(n) };
                *self.0.again.borrow_mut() = room.into();
                n
            }
        };
        Poll::Ready(Ok(if n == 0 { Input::End } else { Input::Read }))
    }

    /// What [`Io::poll_input`] has read and nobody has answered.
    pub fn with_input<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        match &self.0.journal {
            Some(j) => f(j.input()),
            None => f(&self.0.again.borrow()),
        }
    }

    /// Notes whether the last request would have been answered without hyper now.
    pub fn set_plain(&self, plain: bool) {
        self.0.plain.set(plain);
    }

    /// See [`Io::set_plain`].
    pub fn is_plain(&self) -> bool {
        self.0.plain.get()
    }

    /// Leaves what [`Io::poll_input`] has read to hyper.
    pub fn leave_input(&self) {
        self.set_plain(false);
        let mut again = self.0.again.borrow_mut();
        // what a dead server had read is there already
        if let (Some(j), true) = (&self.0.journal, again.is_empty()) {
            *again = Bytes::copy_from_slice(j.input());
        }
    }

    /// The first `len` bytes of the input are a request, which is passed on next.
    pub fn begin_request(&self, len: usize) {
        if let Some(j) = &self.0.journal {
            j.plain_request(len);
            j.forwarded();
        }
    }

    /// The first `len` bytes of the input are a request, which is answered next: with a head of `head` bytes, and a body.
    /// `begun`: it was passed on. `last`: the connection ends with it.
    pub fn begin_answer(&self, len: usize, begun: bool, head: usize, answer: Answer, last: bool) {
        match &self.0.journal {
            Some(j) => {
                if !begun {
                    j.plain_request(len);
                }
                j.begin_answer(u32::try_from(head).unwrap_or(u32::MAX), answer, last);
            }
            None => self.0.again.borrow_mut().advance(len),
        }
    }

    /// Leaves to hyper what has come of an answer.
    pub(crate) fn hand_over(&self, sent: Sent) {
        self.extra(|e| e.sent = Some(Box::new(sent)));
    }

    /// What [`Io::hand_over`] has left.
    pub(crate) fn take_sent(&self) -> Option<Box<Sent>> {
        self.0.extra.borrow_mut().as_mut()?.sent.take()
    }

    /// Writes some of an answer that was begun. `last`: it goes out with the end of the connection (`Io::answered`), which
    /// must follow when all is written.
    pub fn poll_send(
        &self,
        cx: &mut Context<'_>,
        head: &[u8],
        body: &[u8],
        last: bool,
    ) -> Poll<io::Result<usize>> {
        let mut stream = self.0.stream.borrow_mut();
        let both = [IoSlice::new(head), IoSlice::new(body)];
        let pieces = match (head.is_empty(), body.is_empty()) {
            (_, true) => &both[..1],
            (true, _) => &both[1..],
            _ => &both[..],
        };
        let polled = match last {
            true => stream.poll_write_last(cx, pieces),
            false => stream.poll_write_vectored(cx, pieces),
        };
        self.wrote(polled)
    }

    /// After the last piece of an answer: ends the connection, if it is the `last` one.
    pub(crate) fn answered(&self, done: io::Result<()>, last: bool) -> Step {
        if done.is_err() {
            return Step::Close;
        }
        if last {
            // a peer that is gone needn't be told
            let _ = self.0.stream.borrow().shutdown_write();
            return Step::Close;
        }
        Step::Next
    }
}
