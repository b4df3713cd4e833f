//! Cop's own files in the runtime directory. Somebody may remove them while the suite runs (a cleaner of `/tmp`, an operator
//! who tidies up): then nobody finds the suite any more, and a second one could be started beside it.

use super::*;
use crate::privileges;
use lockfile::Got;
use supervisor::dirs;

impl Cop {
    /// Makes those anew that are gone. Those of the manager and the server come with the next ones: the check finds that nobody
    /// can reach the manager that is there, and the next one has another server take over.
    pub(super) fn keep_files(&mut self, now: Time) {
        let there = |path: &Path| path.try_exists().unwrap_or(true);
        let notify = there(self.notify.path());
        if self.lock.is_in_place() && notify && self.has_token_file() {
            return;
        }
        let dir = self.runtime.dir().display().to_string();
        match self.make_files(notify) {
            Ok(()) => {
                self.is_lost = false;
                // for the manager, if it can be reached, it is another cop that has to be told everything
                self.since = now;
                log::warn!("event=files-restored dir={dir}: they were removed while the suite runs");
            }
            Err(e) => {
                if !std::mem::replace(&mut self.is_lost, true) {
                    log::error!("event=files-lost dir={dir}: {e:#}");
                }
            }
        }
    }

    /// Somebody may have made another one meanwhile.
    fn has_token_file(&self) -> bool {
        match std::fs::read_to_string(self.runtime.token_file()) {
            Ok(token) => token == self.token,
            Err(e) => e.kind() != std::io::ErrorKind::NotFound,
        }
    }

    fn make_files(&mut self, has_notify: bool) -> anyhow::Result<()> {
        dirs::ensure(self.runtime.dir())?;
        if !self.lock.is_in_place() {
            // what can't be emptied is gone anyway
            let _ = self.lock.close();
            if let Got::Held(h) = self.lock.get()? {
                anyhow::bail!("{} is held by pid {}", self.lock.path().display(), h.pid);
            }
        }
        if !self.has_token_file() {
            // the same one: the server that is there knows no other
            let _ = std::fs::remove_file(self.runtime.token_file());
            self.runtime.put_token(&self.token).context("the heartbeat's token")?;
        }
        privileges::prepare(&self.config)?;
        if !has_notify {
            let at = self.runtime.notify("cop");
            self.notify =
                NotifySocket::bind(&at).with_context(|| format!("cannot listen on {}", at.display()))?;
        }
        Ok(())
    }
}
