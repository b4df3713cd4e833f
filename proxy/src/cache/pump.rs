//! Reads an answer at its origin's pace for the store, while its client takes it at his own.
//!
//! As long as it is to be kept in memory, nothing holds the task back: what it may read is bounded by what an object may be. What
//! turns out to be too large goes to disk, if there is one. Once it is on its way there, or not to be kept, the task reads as much ahead as [`AHEAD`] and waits for the client. A client that goes away leaves the task
//! a limited time.

use super::fill::Copying;
use super::held::Share;
use super::spool::Spool;
use crate::body::{Body, BodyError};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

/// How long an answer is read on whose client has gone.
pub(super) const ALONE: Duration = Duration::from_secs(30);
/// Bytes that are read ahead of the client of an answer that isn't to be kept.
const AHEAD: usize = 128 << 10;

#[derive(Default)]
struct Queue {
    frames: VecDeque<Frame<Bytes>>,
    bytes: usize,
    /// Bytes that the client has taken out of here.
    taken: usize,
    /// The pieces of which a copy was made, while they are still here.
    held: Option<Share>,
    /// No frame will come.
    over: Option<Option<BodyError>>,
    /// The client has gone.
    alone_since: Option<Instant>,
    client: Option<Waker>,
    task: Option<Waker>,
}

/// The client's end.
pub(super) struct Pumped {
    queue: Rc<RefCell<Queue>>,
    /// Of what was announced, what hasn't been taken.
    left: Option<u64>,
}

/// Starts the task.
pub(super) fn start(body: Body, copying: Copying) -> Pumped {
    let queue = Rc::new(RefCell::new(Queue::default()));
    let left = body.size_hint().exact();
    drop(engine::spawn(run(body, copying, queue.clone())));
    Pumped { queue, left }
}

async fn run(mut body: Body, copying: Copying, queue: Rc<RefCell<Queue>>) {
    let before = copying.len();
    let mut kept = Kept::Memory(Box::new(copying));
    let end = loop {
        let frame = match next(&mut body, &queue, &mut kept).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(e))) => break Some(e),
            Ok(None) => {
                match kept {
                    Kept::Memory(copying) => {
                        let held = copying.held();
                        let whole = copying.finish();
                        let mut q = queue.borrow_mut();
                        if !replace(&mut q, &whole, before) {
                            q.held = Some(held);
                        }
                    }
                    Kept::Disk(spool) => drop(engine::spawn(spool.finish())),
                    Kept::Not => {}
                }
                break None;
            }
            // nobody wants it any more
            Err(()) => return,
        };
        if let Some(data) = frame.data_ref() {
            kept = kept.with(data, &queue);
        }
        push(&queue, frame);
    };
    let mut q = queue.borrow_mut();
    q.over = Some(end);
    let client = q.client.take();
    drop(q);
    client.into_iter().for_each(Waker::wake);
}

/// What becomes of an answer beside being sent.
enum Kept {
    Memory(Box<Copying>),
    Disk(Box<Spool>),
    Not,
}

impl Kept {
    /// With more of it.
    fn with(self, data: &Bytes, queue: &RefCell<Queue>) -> Kept {
        match self {
            Kept::Memory(mut copying) => match copying.take(data) {
                true => Kept::Memory(copying),
                false => {
                    // the client hasn't taken its share of what was read for the copy
                    queue.borrow_mut().held = Some(copying.held());
                    match copying.into_spool() {
                        Some(spool) => Kept::Disk(Box::new(spool)).with(data, queue),
                        None => Kept::Not,
                    }
                }
            },
            Kept::Disk(mut spool) => {
                spool.push(data.clone());
                Kept::Disk(spool)
            }
            Kept::Not => Kept::Not,
        }
    }
}

/// The next frame, when there is room for it; `Err` if there is no reason to go on.
async fn next(
    body: &mut Body,
    queue: &RefCell<Queue>,
    kept: &mut Kept,
) -> Result<Option<Result<Frame<Bytes>, BodyError>>, ()> {
    let mut limit = engine::time::sleep(ALONE);
    let mut draining = pin!(engine::draining());
    poll_fn(|cx| {
        if let Kept::Disk(spool) = kept
            && !ready!(spool.poll_room(cx))
        {
            *kept = Kept::Not;
        }
        let mut q = queue.borrow_mut();
        q.task = Some(cx.waker().clone());
        if let Some(since) = q.alone_since {
            if matches!(kept, Kept::Not) || draining.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(()));
            }
            if limit.deadline() != since + ALONE {
                limit.reset(since + ALONE);
            }
            if Pin::new(&mut limit).poll(cx).is_ready() {
                return Poll::Ready(Err(()));
            }
        } else if !matches!(kept, Kept::Memory(_)) && q.bytes >= AHEAD {
            return Poll::Pending;
        }
        drop(q);
        Pin::new(&mut *body).poll_frame(cx).map(Ok)
    })
    .await
}

fn push(queue: &RefCell<Queue>, frame: Frame<Bytes>) {
    let mut q = queue.borrow_mut();
    if q.alone_since.is_some() {
        return;
    }
    q.bytes += frame.data_ref().map_or(0, Bytes::len);
    q.frames.push_back(frame);
    let client = q.client.take();
    drop(q);
    client.into_iter().for_each(Waker::wake);
}

/// What waits for the client is a view into the kept object now, instead of pieces of its own. False if that can't be.
fn replace(q: &mut Queue, whole: &Bytes, before: usize) -> bool {
    let from = before + q.taken;
    let data_only = q.frames.iter().all(|f| f.data_ref().is_some());
    if q.frames.is_empty() {
        return true;
    }
    let fits = data_only && from <= whole.len() && whole.len() - from == q.bytes;
    if fits {
        q.frames.clear();
        q.frames.push_back(Frame::data(whole.slice(from..)));
    }
    fits
}

impl Pumped {
    /// The next frame.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut q = self.queue.borrow_mut();
        let Some(frame) = q.frames.pop_front() else {
            return match q.over.as_mut() {
                Some(end) => Poll::Ready(end.take().map(Err)),
                None => {
                    q.client = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        };
        let n = frame.data_ref().map_or(0, Bytes::len);
        q.bytes -= n;
        q.taken += n;
        if q.bytes <= AHEAD {
            q.held = None;
        }
        self.left = self.left.map(|l| l.saturating_sub(n as u64));
        let task = q.task.take();
        drop(q);
        task.into_iter().for_each(Waker::wake);
        Poll::Ready(Some(Ok(frame)))
    }

    /// Nothing will come any more.
    pub fn is_over(&self) -> bool {
        let q = self.queue.borrow();
        q.frames.is_empty() && matches!(q.over, Some(None))
    }

    /// What is left of the body.
    pub fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Pumped {
    fn drop(&mut self) {
        let mut q = self.queue.borrow_mut();
        q.alone_since = Some(engine::time::now());
        q.frames.clear();
        q.held = None;
        let task = q.task.take();
        drop(q);
        task.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::fill::{Keep, fill};
    use crate::cache::object::Head;
    use crate::cache::policy::Freshness;
    use crate::cache::{Cache, CacheConfig};
    use http::{HeaderMap, StatusCode};
    use std::cell::Cell;
    use std::time::SystemTime;

    const PIECE: usize = 64 << 10;

    /// An origin that sends as fast as it is read from.
    struct Fast {
        pieces: usize,
        read: Rc<Cell<usize>>,
    }

    impl HttpBody for Fast {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            if self.pieces == 0 {
                return Poll::Ready(None);
            }
            self.pieces -= 1;
            self.read.set(self.read.get() + PIECE);
            Poll::Ready(Some(Ok(Frame::data(vec![b'x'; PIECE].into()))))
        }
    }

    fn keep(cache: &std::sync::Arc<Cache>, key: String) -> Keep {
        let epoch = cache.epoch(&key);
        let freshness = Freshness::MINUTE;
        let now = (engine::time::now(), SystemTime::now());
        let head = Head::new(StatusCode::OK, &HeaderMap::new(), freshness, 0, now);
        Keep { cache: cache.clone(), key: key.into(), epoch, request: HeaderMap::new(), head, leader: None }
    }

    /// The rest of a body, and what is on its way to the client.
    type Client = (Body, Vec<Result<Frame<Bytes>, BodyError>>);

    /// Takes the beginning of a body, as much as makes a task read the rest; that has read all it will when this returns.
    async fn begin(
        cache: &std::sync::Arc<Cache>,
        key: String,
        pieces: usize,
        read: &Rc<Cell<usize>>,
    ) -> Client {
        let from = Body::Stream(Box::pin(Fast { pieces, read: read.clone() }));
        let (mut body, _) = fill(from, keep(cache, key));
        let mut has = Vec::new();
        for _ in 0..6 {
            has.extend(poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await);
        }
        let mut before = 0;
        while before != read.get() {
            before = read.get();
            engine::yield_now().await;
        }
        (body, has)
    }

    #[test]
    fn clients_who_read_nothing_hold_a_bounded_amount() {
        const MEMORY: usize = 16 << 20;
        // of as many bytes as may be kept, and of more, which nobody knows before
        for pieces in [30, 300] {
            engine::block_on(async move {
                let cache =
                    Cache::new(CacheConfig { memory: MEMORY as u64, ..CacheConfig::default() }).unwrap();
                let read: Rc<Cell<usize>> = Rc::default();
                let mut clients = Vec::new();
                for n in 0..60 {
                    clients.push(begin(&cache, format!("host/{pieces}/{n}"), pieces, &read).await);
                }
                // what is read at each client's pace, and ahead of it
                let each = 6 * PIECE + AHEAD + PIECE;
                let all = clients.len() * each + 2 * MEMORY + MEMORY / 4;
                assert!(read.get() <= all, "{} of {all} bytes, {pieces} pieces each", read.get());
                let is_kept = async || {
                    cache.store.remove("host/new");
                    let mut body = begin(&cache, "host/new".into(), 8, &Rc::default()).await.0;
                    while poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.is_some() {}
                    cache.store.get("host/new", |_| unreachable!("it doesn't vary")).is_some()
                };
                assert!(!is_kept().await, "there is no room for more");
                // and one of them alone is nobody's loss
                clients.truncate(1);
                assert!(is_kept().await, "one client who doesn't read costs the others their cache");
                clients.clear();
                let gone = async {
                    while !cache.held.has_room(MEMORY as u64) {
                        engine::yield_now().await;
                    }
                };
                engine::time::timeout(Duration::from_secs(20), gone)
                    .await
                    .expect("they hold nothing any more");
                assert!(is_kept().await, "they have gone");
            });
        }
    }
}
