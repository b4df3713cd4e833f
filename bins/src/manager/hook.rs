//! The command of `manager.respawn.on_give_up`: it is told what happened in its environment, and ends within a minute.

use super::keep::Keep;
use crate::suite;
use engine::io::Async;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;
use supervisor::spawn::{Spec, spawn};

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
        let spec = Spec::new(
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
        let spawned = match spawn(&spec) {
            Ok(spawned) => spawned,
            Err(e) => return log::error!("event=hook-failed of=on_give_up: {e}"),
        };
        log::info!("event=hook of=on_give_up pid={}", spawned.pid);
        self.hooks.borrow_mut().push(spawned.pid);
        let keep = self.clone();
        drop(engine::spawn(async move {
            if let Ok(end) = spawned.pidfd.as_fd().try_clone_to_owned().and_then(Async::new)
                && engine::time::timeout(LIMIT, end.readable()).await.is_err()
            {
                log::warn!("event=hook-killed pid={}: it hasn't ended after {LIMIT:?}", spawned.pid);
                let _ = spawned.pidfd.signal(nix::libc::SIGKILL);
                let _ = end.readable().await;
            }
            keep.hooks.borrow_mut().retain(|pid| *pid != spawned.pid);
            match spawned.pidfd.wait().ok().flatten() {
                Some(status) if status.code() == Some(0) => {
                    log::info!("event=hook-ended pid={}", spawned.pid)
                }
                Some(status) => log::warn!("event=hook-failed pid={}: {status}", spawned.pid),
                None => log::info!("event=hook-ended pid={}", spawned.pid),
            }
        }));
    }
}
