//! Cop's own files in the runtime directory. Somebody may remove them while the suite runs (a cleaner of `/tmp`, an operator
//! who tidies up): then nobody finds the suite any more, and a second one could be started beside it.

use super::*;
use crate::privileges;
use lockfile::Got;
use std::os::unix::fs::MetadataExt;
use supervisor::dirs;

/// Looks in a row that miss a file of the manager's: one that ends in order removes its own.
const MISSED: u32 = 2;

impl Cop {
    /// Makes those anew that are gone. Those of the manager and the server come with the next ones: the check finds that nobody
    /// can reach the manager that is there, and the next one has another server take over. False: they can't be made anew, and
    /// what files say proves nothing.
    pub(super) fn keep_files(&mut self, now: Time) -> bool {
        let notify = there(self.notify.path());
        let dir = self.runtime.dir().display().to_string();
        let is_whole = self.lock.is_in_place() && notify && self.has_token_file();
        match if is_whole { Ok(()) } else { self.make_files(notify) } {
            Ok(()) => {
                if !is_whole {
                    log::warn!("event=files-restored dir={dir}: they were removed while the suite runs");
                    // for the manager, if it can be reached, it is another cop that has to be told everything
                    self.since = now;
                }
                if std::mem::take(&mut self.is_lost) {
                    log::info!("event=files-found dir={dir}");
                    // nobody could be asked
                    for beat in [&mut self.manager_beat, &mut self.server_beat] {
                        if beat.is_on() {
                            beat.start(now);
                        }
                    }
                }
                self.look_for_managers_files(now);
                true
            }
            Err(e) => {
                if !std::mem::replace(&mut self.is_lost, true) {
                    log::error!("event=files-lost dir={dir}: {e:#}");
                }
                false
            }
        }
    }

    /// A manager whose files are gone can't be reached by servers or by us.
    fn look_for_managers_files(&mut self, now: Time) {
        let runtime = &self.runtime;
        let files = [runtime.control(), runtime.notify("manager"), runtime.ports()];
        let is_ready = matches!(self.manager.state(), State::Ready { .. });
        let Some(gone) = files.iter().find(|path| is_ready && !there(path)) else {
            self.missed = 0;
            return;
        };
        self.missed += 1;
        if self.missed >= MISSED {
            self.missed = 0;
            log::warn!(
                "event=files-missed of=manager file={}: another manager makes it anew",
                gone.display()
            );
            self.manager_beat.stop();
            self.feed(Event::Unhealthy(self.manager.generation()), now);
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

fn there(path: &Path) -> bool {
    path.try_exists().unwrap_or(true)
}

/// A cop that runs, and whose lock file somebody has removed: nobody finds it by its lock before it has made another one.
pub fn lost_cop(runtime: &Runtime) -> Option<i32> {
    let lock = runtime.lock("cop");
    // the directory itself may be gone
    let (dir, above) = (runtime.dir().file_name()?, runtime.dir().parent()?.canonicalize().ok()?);
    let mut removed = above.join(dir).join(lock.file_name()?).into_os_string();
    removed.push(" (deleted)");
    let pids =
        std::fs::read_dir("/proc").ok()?.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    // another user's, or one in another file system, is none of ours
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let is_ours = |pid: &i32| {
        let owner = std::fs::metadata(format!("/proc/{pid}")).map(|m| m.uid()).ok();
        owner == Some(rustix::process::geteuid().as_raw()) && namespace(&pid.to_string()) == namespace("self")
    };
    let has_it = |pid: &i32| {
        let is_cop =
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "traffic_cop");
        let fds = is_cop.then(|| std::fs::read_dir(format!("/proc/{pid}/fd")).ok()).flatten();
        fds.into_iter()
            .flatten()
            .flatten()
            .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == *removed))
    };
    pids.into_iter().filter(is_ours).find(has_it)
}
