//! Acting on what `policy` decides: processes, locks, sockets handed over, heartbeats.
//!
//! This crate knows processes and file descriptors of Linux. It must not know HTTP servers, the engine, the configuration
//! or which program it is part of. Everything in it works in a process with one thread, since it forks; only [`roll`] is for
//! those with several.
//!
//! Read in this order:
//!
//! 1. [`clock`]: the monotonic time that `policy` is told;
//! 2. [`dirs`]: the runtime directory and its checks;
//! 3. [`pidfd`]: a process, held so that its number can't be recycled under us;
//! 4. [`spawn`]: fork and exec by list, as who [`privileges`] says; [`as_user`]: files opened as another one; [`daemonize`]: the
//!    double fork;
//! 5. [`listen_fds`], [`notify`], [`fd_store`]: sockets that outlive their process, as systemd hands them over;
//! 6. [`fd_pass`], [`keeper`], [`roll`], [`tcp`]: connections that outlive it too; [`connections`]: whether there are any; [`fds`]: for
//!    how many there is room;
//! 7. [`probe`]: the heartbeat's fetch, in one poll set with everything else; [`port`]: which one it goes to; [`pulse`]: what a
//!    server's threads do;
//! 8. [`signals`], [`reaper`]: what wakes a supervisor;
//! 9. [`identity`]: who a process is; [`strays`], [`safe_kill`], [`snapshot`]: ending the right one, within a bound;
//! 10. [`tree`], [`cgroup`]: what a process leaves behind; [`aside`]: what nobody is to wait for.

pub mod as_user;
pub mod aside;
pub mod cgroup;
pub mod clock;
pub mod connections;
pub mod daemonize;
pub mod dirs;
pub mod fd_pass;
pub mod fd_store;
pub mod fds;
pub mod identity;
pub mod keeper;
pub mod listen_fds;
pub mod notify;
pub mod pidfd;
pub mod port;
pub mod privileges;
pub mod probe;
pub mod pulse;
pub mod reaper;
pub mod roll;
pub mod safe_kill;
pub mod signals;
pub mod snapshot;
pub mod spawn;
pub mod strays;
pub mod tcp;
pub mod tree;
