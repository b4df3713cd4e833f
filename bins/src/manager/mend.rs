//! Unix sockets of the server whose files somebody has removed (a cleaner, an operator who tidies up): nobody can connect to
//! them any more, though they are listened on. They are made anew, and the server is replaced by one that has the new ones.

use super::keep::Keep;
use super::listeners::{self, Access};
use super::replace::Replace;
use crate::config::Listen;
use std::os::fd::AsFd;
use std::rc::Rc;

impl Keep {
    /// Looks for them, and does that. Costs a stat(2) for each.
    pub(super) fn mend_sockets(self: &Rc<Self>) {
        let is_busy = !matches!(*self.replace.borrow(), Replace::No) || self.undo.borrow().is_some();
        if is_busy || self.is_stopping() || !self.is_ready() || !self.config.borrow().server.is_ours() {
            return;
        }
        let is_gone = |l: &Listen| matches!(l, Listen::Unix(path) if !path.try_exists().unwrap_or(true));
        let gone: Vec<usize> = {
            let list = self.listeners.borrow();
            list.iter().enumerate().filter(|(_, l)| is_gone(&l.wanted)).map(|(n, _)| n).collect()
        };
        if gone.is_empty() {
            return self.socket_missing.set(false);
        }
        let made = gone.into_iter().filter(|n| self.mend_socket(*n)).count();
        if made > 0 {
            // the standby has the old ones, too
            self.renew_standby(super::launch::limits(&self.config.borrow()));
            self.restart();
        }
    }

    /// Makes the socket of that listener anew. False: it can't be had; that is said once.
    fn mend_socket(&self, n: usize) -> bool {
        let wanted = self.listeners.borrow()[n].wanted.clone();
        let bind = || {
            let access = Access::of_server(&self.config.borrow())?;
            listeners::take_or_bind(&[wanted], access, Vec::new())
        };
        match bind().map(|mut list| list.pop()) {
            Ok(Some(new)) => {
                log::warn!("event=socket-restored listen={}: it was removed while the suite runs", new.bound);
                self.upstream.forget_fds(&new.fd_name());
                self.upstream.store_fds(&new.fd_name(), &[new.fd.as_fd()]);
                self.listeners.borrow_mut()[n] = new;
                return true;
            }
            Ok(None) => {}
            Err(e) if !self.socket_missing.replace(true) => log::error!("event=socket-missing: {e:#}"),
            Err(_) => {}
        }
        false
    }
}
