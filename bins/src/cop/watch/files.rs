//! Cop's own files in the runtime directory. Somebody may remove them while the suite runs (a cleaner of `/tmp`, an operator
//! who tidies up): then nobody finds the suite any more, and a second one could be started beside it.

use super::*;
use crate::privileges;
use lockfile::Got;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use supervisor::dirs;

/// Looks in a row that miss a file of the manager's: one that ends in order removes its own.
const MISSED: u32 = 2;

impl Cop {
    /// Makes those anew that are gone. Those of the manager and the server come with the next ones: the check finds that nobody
    /// can reach the manager that is there, and the next one has another server take over. False: they can't be made anew, and
    /// what files say proves nothing.
    pub(super) fn keep_files(&mut self, now: Time) -> bool {
        let dir = self.runtime.dir().display().to_string();
        let is_whole = self.lock.is_in_place() && there(self.notify.path()) && self.has_token_file();
        if !is_whole {
            if let Err(e) = self.make_files() {
                if !std::mem::replace(&mut self.is_lost, true) {
                    log::error!("event=files-lost dir={dir}: {e:#}");
                }
                return false;
            }
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

    /// Makes what isn't there.
    fn make_files(&mut self) -> anyhow::Result<()> {
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
        if !there(self.notify.path()) {
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
    let is_cop = |proc: &PathBuf| {
        std::fs::read_to_string(proc.join("comm")).is_ok_and(|comm| comm.trim() == "traffic_cop")
    };
    // another user's, or one in another file system, is none of ours
    let place = |proc: &Path| {
        let owner = std::fs::metadata(proc).map(|m| m.uid()).ok();
        (owner, std::fs::read_link(proc.join("ns/mnt")).ok())
    };
    let ours = place(Path::new("/proc/self"));
    let has_it = |proc: &PathBuf| {
        let fds = std::fs::read_dir(proc.join("fd")).into_iter().flatten().flatten();
        fds.into_iter().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == *removed))
    };
    let processes = std::fs::read_dir("/proc").ok()?.flatten().map(|e| e.path());
    let pid = |proc: PathBuf| proc.file_name()?.to_str()?.parse().ok();
    processes.filter(is_cop).filter(|p| place(p) == ours).filter(has_it).find_map(pid)
}
