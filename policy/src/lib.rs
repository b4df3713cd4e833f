//! What the suite decides, apart from how it acts.
//!
//! Every machine here gets an event and the time, and gives back what its caller now owes: plain data. Nothing in this
//! crate does I/O, reads a clock, draws a random number or starts a thread; the time is a [`Time`], chance is an argument
//! in `0.0..1.0`. So every decision can be tested by script and by simulation, millions of steps a second.
//!
//! Read in this order:
//!
//! 1. [`backoff`]: how long to wait before the next start, and when to give up;
//! 2. [`ladder`]: which signal comes next while something is being stopped;
//! 3. [`heartbeat`]: when silence becomes a verdict;
//! 4. [`child`]: one supervised process, from "wanted" to "gave up";
//! 5. [`check`]: cop's `check_programs`, in the order of Traffic Server's `traffic_cop`;
//! 6. [`pulse`]: what a server's threads are doing, and when one has stalled;
//! 7. [`watchdog`]: a process that has to say that it lives;
//! 8. [`jobs`]: which of several jobs may start or stop;
//! 9. [`schedule`]: when a job that runs now and then is due;
//! 10. [`handover`]: what the next server does with a connection of a killed one.

pub mod backoff;
pub mod check;
pub mod child;
pub mod handover;
pub mod heartbeat;
pub mod jobs;
pub mod ladder;
pub mod pulse;
pub mod schedule;
pub mod watchdog;

/// A point of monotonic time: the duration since any fixed origin (of `CLOCK_MONOTONIC` in the programs).
pub type Time = std::time::Duration;
