//! Connections to origins, kept per event thread: no locks, and the newest one is used first (it is the least likely to
//! have been closed by the origin meanwhile).

use crate::body::Body;
use crate::cache::fill;
use crate::interim::Interim;
use crate::origins::InFlight;
use crate::resolve;
use crate::route::OriginConfig;
use crate::rt::Io;
use engine::net::Stream;
use hyper::client::conn::http1::{self, SendRequest};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

/// Reads or writes in one call of the task that does them.
const AT_ONCE: u32 = 20;

/// Idle connections kept for one origin by one thread.
const MAX_IDLE: usize = 128;
/// Idle connections kept for the forward proxy by one thread.
const MAX_OUTWARD: usize = 512;
/// An idle connection older than this isn't used again: origins close theirs after 5 s (Apache, Node) to 75 s (nginx),
/// and a request on one that is just being closed has to be sent twice.
const MAX_IDLE_TIME: Duration = Duration::from_secs(4);
/// Those that are too old are closed together, and not more often than this.
const SWEEP: Duration = Duration::from_secs(1);

/// How long the connection of an answer that has ended may have to become free.
const MAX_BUSY: Duration = Duration::from_millis(20);

/// Whom a connection leads to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum To {
    /// The origin with this number.
    Origin(usize),
    /// A host of the forward proxy's clients, with its port if it named one; in lower case.
    Host(Rc<str>),
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

#[derive(Default)]
struct Pool {
    idle: HashMap<To, Vec<(Instant, SendRequest<Body>)>>,
    /// Without hyper: see [`crate::direct`].
    bare: HashMap<usize, Vec<(Instant, Stream)>>,
    watches_drain: bool,
    sweeps: bool,
    /// Idle ones of the forward proxy's.
    outward: usize,
}

/// A connection in use; see [`Lease::give_back`].
#[derive(Debug)]
pub struct Lease {
    /// None: nobody else uses it.
    to: Option<To>,
    sender: Option<SendRequest<Body>>,
    /// Counts the request as in progress.
    pub busy: Option<InFlight>,
    /// Says whether the request's body was wanted.
    pub interim: Option<Interim>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        // a body that still waits keeps the connection
        if let Some(i) = &self.interim {
            i.refuse();
        }
    }
}

impl Lease {
    /// The connection, to send on.
    pub fn sender(&mut self) -> &mut SendRequest<Body> {
        self.sender.as_mut().expect("only give_back takes it")
    }

    /// One that only its request uses.
    pub fn once(sender: SendRequest<Body>) -> Lease {
        Lease { to: None, sender: Some(sender), busy: None, interim: None }
    }

    /// What goes over it is for its client alone.
    pub fn set_once(&mut self) {
        self.to = None;
    }

    /// Its answer has been read to the end: another request may use it.
    pub fn give_back(mut self) {
        let Some(to) = self.to.take() else { return };
        if self.interim.as_ref().is_some_and(|i| !i.is_wanted()) || engine::is_draining() {
            return;
        }
        let Some(sender) = self.sender.take().filter(|s| !s.is_closed()) else { return };
        let outward = matches!(to, To::Host(_));
        POOL.with_borrow_mut(|p| {
            if outward && p.outward >= MAX_OUTWARD {
                return;
            }
            let idle = p.idle.entry(to).or_default();
            if idle.len() < MAX_IDLE {
                idle.push((engine::time::now(), sender));
                p.outward += usize::from(outward);
            }
        });
        sweep();
    }
}

/// An idle connection, if there is one that is still good.
pub async fn reuse(to: &To) -> Option<Lease> {
    loop {
        let newest = POOL.with_borrow_mut(|p| {
            let newest = p.idle.get_mut(to)?.pop();
            p.outward -= usize::from(newest.is_some() && matches!(to, To::Host(_)));
            newest
        });
        let Some((since, mut sender)) = newest else { break };
        // those below are older still: they are swept
        if is_old(since) {
            break;
        }
        // an origin may have answered without having read all of a body
        if sender.is_closed() {
            continue;
        }
        if matches!(engine::time::timeout(MAX_BUSY, sender.ready()).await, Ok(Ok(()))) {
            return Some(Lease { to: Some(to.clone()), sender: Some(sender), busy: None, interim: None });
        }
    }
    match to {
        To::Origin(id) => adopt(to.clone(), Io::new(reuse_bare(*id)?)).await.ok(),
        To::Host(_) => None,
    }
}

fn is_old(since: Instant) -> bool {
    engine::time::now().saturating_duration_since(since) >= MAX_IDLE_TIME
}

/// An idle connection to the origin number `id` on which nobody reads, if there is one that is still good.
pub(crate) fn reuse_bare(id: usize) -> Option<Stream> {
    loop {
        let (since, stream) = POOL.with_borrow_mut(|p| p.bare.get_mut(&id)?.pop())?;
        if is_old(since) {
            return None;
        }
        // something came, and be it its end
        if stream.poll_read_ready(&mut Context::from_waker(Waker::noop())).is_pending() {
            return Some(stream);
        }
    }
}

/// The answer on it has been read to the end: another request may use it.
pub(crate) fn give_back_bare(id: usize, stream: Stream) {
    if engine::is_draining() {
        return;
    }
    POOL.with_borrow_mut(|p| {
        let idle = p.bare.entry(id).or_default();
        if idle.len() < MAX_IDLE {
            idle.push((engine::time::now(), stream));
        }
    });
    watch_drain();
    sweep();
}

/// Sees to it that connections that have been idle for long are closed, until there are none.
fn sweep() {
    if POOL.with_borrow_mut(|p| std::mem::replace(&mut p.sweeps, true)) {
        return;
    }
    let work = async {
        let mut wait = MAX_IDLE_TIME;
        loop {
            engine::time::sleep(wait).await;
            let (old, next) = POOL.with_borrow_mut(Pool::swept);
            drop(old);
            let Some(next) = next else { break };
            wait = next;
        }
    };
    drop(engine::spawn(async {
        fill::unless_draining(work).await;
    }));
}

/// How long it is until the oldest one is too old.
fn next_sweep(oldest: Instant, now: Instant) -> Duration {
    MAX_IDLE_TIME.saturating_sub(now.saturating_duration_since(oldest)).max(SWEEP)
}

/// To be dropped where nothing is borrowed.
type Old = (Vec<(Instant, SendRequest<Body>)>, Vec<(Instant, Stream)>);

impl Pool {
    /// Takes out what has been idle for long; and how long it is until the next is. `None`: nothing is left.
    fn swept(&mut self) -> (Old, Option<Duration>) {
        let mut old = Old::default();
        for (to, idle) in &mut self.idle {
            let fresh = idle.partition_point(|(since, _)| is_old(*since));
            old.0.extend(idle.drain(..fresh));
            self.outward -= if matches!(to, To::Host(_)) { fresh } else { 0 };
        }
        for idle in self.bare.values_mut() {
            let fresh = idle.partition_point(|(since, _)| is_old(*since));
            old.1.extend(idle.drain(..fresh));
        }
        self.idle.retain(|_, idle| !idle.is_empty());
        self.bare.retain(|_, idle| !idle.is_empty());
        let oldest = self.idle.values().filter_map(|idle| Some(idle.first()?.0));
        let oldest = oldest.chain(self.bare.values().filter_map(|idle| Some(idle.first()?.0))).min();
        self.sweeps = oldest.is_some();
        (old, oldest.map(|since| next_sweep(since, engine::time::now())))
    }
}

/// A new connection to the origin number `id`.
///
/// # Errors
/// See [`stream`].
pub async fn connect(id: usize, origin: &OriginConfig, limit: Duration) -> io::Result<Lease> {
    adopt(To::Origin(id), Io::new(stream(origin, limit).await?)).await
}

/// Has hyper speak with somebody on this connection, which others may use when it is idle.
///
/// # Errors
/// None is known.
pub async fn adopt(to: To, io: Io) -> io::Result<Lease> {
    let (sender, conn) = http1::handshake(io).await.map_err(io::Error::other)?;
    watch_drain();
    drop(engine::spawn(async move {
        if let Err(e) = conn.await {
            log::debug!("origin connection: {e}");
        }
    }));
    Ok(Lease { to: Some(to), sender: Some(sender), busy: None, interim: None })
}

/// Makes a connection one for HTTP.
///
/// # Errors
/// None is known.
pub async fn handshake(stream: Stream) -> io::Result<(SendRequest<Body>, http1::Connection<Io, Body>)> {
    http1::handshake(Io::new(stream)).await.map_err(io::Error::other)
}

/// A TCP connection to an origin: its addresses are tried one after another.
///
/// # Errors
/// The last address's error; `TimedOut` if `limit` is over.
pub async fn stream(origin: &OriginConfig, limit: Duration) -> io::Result<Stream> {
    let attempt = async {
        let list = resolve::addresses_of_origin(&origin.host, origin.port, limit).await?;
        any_of(&list, limit).await
    };
    engine::time::timeout(limit, attempt).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// A TCP connection to the first of the addresses that takes it.
///
/// # Errors
/// The last address's error.
pub async fn any_of(list: &[SocketAddr], limit: Duration) -> io::Result<Stream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for (i, &addr) in list.iter().enumerate() {
        // one that swallows packets must leave time for those after it
        let share = limit / (list.len() - i).min(3) as u32;
        match engine::time::timeout(share, Stream::connect_tcp(addr)).await {
            Ok(Ok(mut stream)) => {
                let _ = stream.set_nodelay(true);
                // one that sends without end has its turn as everybody else on this thread
                stream.limit(Some(AT_ONCE));
                return Ok(stream);
            }
            Ok(Err(e)) => last = e,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// When the engine drains, idle connections are closed: they would keep it from ending.
fn watch_drain() {
    let watched = POOL.with_borrow_mut(|p| std::mem::replace(&mut p.watches_drain, true));
    if !watched {
        drop(engine::spawn(async {
            engine::draining().await;
            let all = POOL.with_borrow_mut(|p| {
                p.outward = 0;
                (std::mem::take(&mut p.idle), std::mem::take(&mut p.bare))
            });
            drop(all);
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_idle_is_closed_within_a_sweep_of_its_time() {
        let (start, mut now) = (Instant::now(), Instant::now());
        while now - start < MAX_IDLE_TIME {
            now += next_sweep(start, now);
        }
        assert!(now - start < MAX_IDLE_TIME + SWEEP);
        assert_eq!(next_sweep(start, start), MAX_IDLE_TIME);
        assert_eq!(next_sweep(start, now), SWEEP, "and it isn't a busy loop");
    }
}
