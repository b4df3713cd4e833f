//! The atomics of the queue and of an event's state: the standard ones, or loom's when the crate is built with
//! `--cfg loom` so that every interleaving can be tried.

#[cfg(loom)]
pub(crate) use loom::sync::atomic;
#[cfg(not(loom))]
pub(crate) use std::sync::atomic;
