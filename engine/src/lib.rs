//! The threaded event engine: event threads in groups, events and continuations, timers, sockets, an acceptor.
//!
//! It is the part of the suite that Traffic Server's event system, memcached's network model and FastDFS's work threads
//! describe most closely. A thread owns everything it works with; what comes from elsewhere comes as an event
//! through one queue. A future is a continuation, so ordinary `async` code runs on it, `!Send` and without locks.
//!
//! What it must not know: HTTP or any other protocol, processes and signals, configuration files.
//!
//! Read in this order:
//!
//! | module | what |
//! |---|---|
//! | `fenced::stack` | the queue by which other threads reach a thread, and how it is woken |
//! | [`wheel`] | timers; pure |
//! | `event` | events, continuations, cancelling |
//! | `shared`, `thread` | a thread from outside, and its loop |
//! | `task`, `reactor` | futures as continuations; epoll |
//! | `handle`, `engine`, `local` | scheduling; groups of threads; a loop on the calling thread |
//! | [`time`], [`io`], [`net`] | what a future can wait for |
//! | [`acceptor`], [`blocking`], [`schedule`] | connections from listeners to threads; work that blocks; work at set times |
//! | [`stats`], [`pulse`] | numbers; what each thread is doing, for another process |
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod acceptor;
pub mod blocking;
mod drain;
mod engine;
mod event;
#[allow(unsafe_code)]
mod fenced;
mod handle;
pub mod io;
mod local;
pub mod net;
pub mod pulse;
mod reactor;
pub mod schedule;
mod shared;
pub mod stats;
mod sync;
mod task;
mod thread;
pub mod time;
pub mod wheel;

pub use drain::{Draining, draining, is_draining};
pub use engine::{Builder, Engine, GroupConfig, ShutdownReport};
pub use event::{Context, Continuation, EventHandle, Next, once};
pub use handle::{GroupId, Handle, Placement, QueueFull, Target, ThreadId};
pub use local::{Local, block_on};
pub use reactor::Interest;
pub use task::{JoinError, JoinHandle, spawn, yield_now};
