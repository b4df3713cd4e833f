//! Signals as something to poll for: the handler only writes a byte into a pipe.

use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// The signals of a supervisor's life.
pub use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

/// Signals caught from its creation on. Make it first thing, so that none is lost.
pub struct Signals {
    inner: SignalDelivery<UnixStream, SignalOnly>,
}

impl Signals {
    /// Catches these signals, ignores SIGPIPE, and gives SIGSEGV and SIGBUS their default back: the Rust runtime's handler
    /// swallows one that is sent by kill(2), and a supervised process must die of it.
    ///
    /// # Errors
    /// The system refuses, or a signal can't be caught.
    pub fn catch(list: &[i32]) -> io::Result<Signals> {
        let (read, write) = UnixStream::pair()?;
        let inner = SignalDelivery::with_pipe(read, write, SignalOnly, list.iter().copied())?;
        use nix::sys::signal::{SIGBUS, SIGPIPE, SIGSEGV, SigHandler, signal};
        for (which, how) in
            [(SIGPIPE, SigHandler::SigIgn), (SIGSEGV, SigHandler::SigDfl), (SIGBUS, SigHandler::SigDfl)]
        {
            // SAFETY: neither SIG_IGN nor SIG_DFL installs code of ours.
            unsafe { signal(which, how) }?;
        }
        Ok(Signals { inner })
    }

    /// Those that came since the last call; each at most once. Call it when the fd is readable.
    pub fn pending(&mut self) -> Vec<i32> {
        self.inner.pending().collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let raw = self.inner.get_read().as_raw_fd();
        // SAFETY: the stream is owned by `self.inner`, which the returned borrow keeps alive.
        unsafe { BorrowedFd::borrow_raw(raw) }
    }
}

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signals")
    }
}
