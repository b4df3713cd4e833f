//! Lock files: who runs, told by the kernel; the pid in the file is for people.
//!
//! A [`Lockfile`] is a classic POSIX write lock (`F_SETLK`) on a whole file whose contents are the
//! holder's pid and a newline. It is free again the moment its holder is gone, however that came about, so no file has
//! ever to be cleaned up by hand. Who holds it is asked of the kernel (`F_GETLK`), which never takes it: a probe
//! cannot make a starting process believe that another one is running.
//!
//! This crate knows nothing about what is locked, and nothing of the supervision around it.
//!
//! # What POSIX locks do that surprises
//!
//! * They vanish when their holder closes **any** descriptor of the file. So the crate keeps a register of the lock files
//!   this process has open, and refuses to open one a second time ([`Error::OpenHere`], [`Error::HeldHere`]). Code that
//!   opens the file with `std::fs` instead gets no such help.
//! * They belong to the descriptor *table*, not to the process. They do not go over a `fork`: take the lock after the last
//!   one. And with a table shared by `clone(CLONE_FILES)` they outlive the process that took them: the kernel goes on
//!   showing a pid that is dead, and which may by now be somebody else's. [`Holder::process`] says the first, and
//!   [`Lockfile::kill`] refuses to signal in the second case.
//! * The pid the kernel shows is 0 where it has no number in our pid namespace, and negative for locks of other kinds.
//!
//! Read in this order: `lock` (take and leave), `holder` (what a probe says), `kill` (end the holder), `file` and
//! `registry` (how a file is opened without dropping its lock).

mod error;
mod evidence;
mod file;
mod holder;
mod kill;
mod lock;
mod registry;
mod sys;

pub use error::Error;
pub use holder::{Holder, Process, State, Text};
pub use kill::Killed;
pub use lock::{Got, Lockfile};
pub use nix::sys::signal::Signal;
pub use sys::signal_group;
