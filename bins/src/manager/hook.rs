//! Short commands that the manager runs to their end: that of `manager.respawn.on_give_up`, which is told what happened in
//! its environment, and the questions of jobs.

use super::keep::Keep;
use crate::suite;
use engine::io::Async;
use lockfile::{Signal, signal_group};
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;
use supervisor::pidfd::ExitStatus;
use supervisor::spawn::{Spawned, Spec, spawn};

/// Longer than this it may not run.
const LIMIT: Duration = Duration::from_secs(60);

impl Keep {
    /// No more is tried: that is said to whoever is to be told.
    pub(super) fn gave_up(self: &Rc<Self>) {
        let (last_exit, crashes) = {
            let s = self.server.borrow();
            (s.last_exit.clone().unwrap_or_default(), s.machine.crashes())
        };
        log::error!(
            "event=gave-up of=server crashes={crashes} last_exit={last_exit:?}: no more is tried until somebody asks \
             for it (traffic_manager restart)"
        );
        let _ = self.upstream.send(&format!(
            "STATUS=gave up on the server after {crashes} crashes; the last: {last_exit}\nX_TRAFFIC_EXIT={}",
            crate::exit::Exit::GaveUp.code()
        ));
        // whoever comes is told, and whoever waits
        self.begin_queueing();
        let command = self.config.borrow().manager.respawn.on_give_up.clone();
        let Some(name) = command.first() else { return };
        let mut spec = Spec::new(
            suite::find_program(name),
            command.iter().map(OsString::from).collect(),
            suite::child_env(&[
                ("TRAFFIC_EVENT", "gave-up".into()),
                ("TRAFFIC_PROGRAM", "server".into()),
                ("TRAFFIC_CRASHES", crashes.to_string().into()),
                ("TRAFFIC_LAST_EXIT", last_exit.into()),
                ("TRAFFIC_RUNTIME_DIR", self.runtime.dir().into()),
            ]),
        );
        // we are to be spared when memory is out; a command isn't
        spec.oom_score_adj = Some(0);
        let spawned = match spawn(&spec) {
            Ok(spawned) => spawned,
            Err(e) => return log::error!("event=hook-failed of=on_give_up: {e}"),
        };
        log::info!("event=hook of=on_give_up pid={}", spawned.pid);
        let (keep, pid) = (self.clone(), spawned.pid);
        drop(engine::spawn(async move {
            match keep.finish(spawned, LIMIT, Rest::Stays).await {
                Ended::Itself(Some(status)) if status.code() != Some(0) => {
                    log::warn!("event=hook-failed pid={pid}: {status}");
                }
                Ended::Itself(_) => log::info!("event=hook-ended pid={pid}"),
                Ended::Killed => log::warn!("event=hook-killed pid={pid}: it hasn't ended after {LIMIT:?}"),
            }
        }));
    }

    /// Waits for the end of a command that was just started. After `limit` it is killed, with its process group.
    pub(super) async fn finish(&self, spawned: Spawned, limit: Duration, rest: Rest) -> Ended {
        let Spawned { pid, pidfd } = spawned;
        self.hooks.borrow_mut().push(pid);
        let mut killed = false;
        if let Ok(end) = pidfd.as_fd().try_clone_to_owned().and_then(Async::new) {
            killed = engine::time::timeout(limit, end.readable()).await.is_err();
            if killed || rest == Rest::Goes {
                // before it is reaped its number is nobody else's
                let _ = signal_group(pidfd.as_fd(), pid, Signal::SIGKILL);
            }
            let _ = end.readable().await;
        }
        self.hooks.borrow_mut().retain(|p| *p != pid);
        let status = pidfd.wait().ok().flatten();
        if killed { Ended::Killed } else { Ended::Itself(status) }
    }
}

/// What becomes of those that a command has left in its process group when it ends by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// They go on.
    Stays,
    /// They are killed.
    Goes,
}

/// How a short command ended.
pub(super) enum Ended {
    /// By itself.
    Itself(Option<ExitStatus>),
    /// It took too long.
    Killed,
}
