//! What the manager is asked by people and programs: its state, and to take another configuration.

use super::keep::Keep;
use super::listeners::{self, Listener};
use super::replace::Replace;
use crate::config::{Accepted, Config};
use crate::names;
use crate::privileges;
use anyhow::Context;
use policy::Time;
use policy::child::State;
use serde_json::{Value, json};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use supervisor::clock;

/// What has changed that this manager and cop go on with as it was.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let log = |c: &Config| {
        let s = c.suite.clone();
        (s.log, s.log_file, s.log_max_size, s.log_rotate_at, s.log_keep_days, s.log_keep_files)
    };
    let all = [
        ("suite.state_dir", old.suite.state_dir != new.suite.state_dir),
        ("suite.log*", log(old) != log(new)),
        ("manager.admin", old.manager.admin != new.manager.admin),
        ("manager.oom_score_adj", old.manager.oom_score_adj != new.manager.oom_score_adj),
        ("manager.cgroup", old.manager.cgroup != new.manager.cgroup),
    ];
    all.into_iter().filter_map(|(key, changed)| changed.then_some(key)).collect()
}

impl Keep {
    /// Takes the configuration anew; what it says is refused as a whole if anything in it is wrong.
    ///
    /// # Errors
    /// All faults of the configuration, or an address that can't be bound. Nothing has changed then.
    pub fn reload(self: &Rc<Self>) -> anyhow::Result<String> {
        names::anew(|| self.take_config())
    }

    fn take_config(self: &Rc<Self>) -> anyhow::Result<String> {
        anyhow::ensure!(!self.is_stopping(), "the suite is being stopped");
        let loaded = self.common.load()?;
        let old = self.accepted.borrow().text()?;
        anyhow::ensure!(
            self.common.runtime_dir_by(&old) == self.common.runtime_dir_by(&loaded.text),
            "suite.runtime_dir: can't be changed by a reload: nobody would find the suite that runs (stop and start it)"
        );
        let accepted = Accepted::of(&loaded.text).context("keeping the configuration")?;
        let new = loaded.config;
        let credentials = privileges::prepare(&new)?;
        privileges::look_up(&new.jobs);
        privileges::share_notify(&self.runtime, credentials.as_ref())?;
        let kept = needs_restart(&self.first_config, &new);
        // those that stay are handed over to the new list; only what is really new is bound
        let duplicates = {
            let list = self.listeners.borrow();
            let copy = |l: &Listener| {
                Ok(supervisor::listen_fds::Inherited { name: l.fd_name(), fd: l.fd.try_clone()? })
            };
            list.iter().map(copy).collect::<std::io::Result<Vec<_>>>()?
        };
        let sockets = self.job_sockets(&new.jobs)?;
        let listeners =
            listeners::take_or_bind(&new.server.listen, listeners::Access::of_server(&new)?, duplicates)?;
        listeners::publish(&listeners, &self.runtime)?;
        self.begin_reload(new, accepted, listeners, sockets);
        let note = match kept.as_slice() {
            [] => String::new(),
            keys => format!("; needs a restart of the suite: {}", keys.join(", ")),
        };
        Ok(format!("configuration taken, the server is being replaced{note}"))
    }

    /// Waits until the server is ready, or until it is clear that it won't be.
    ///
    /// # Errors
    /// It isn't ready after `patience`.
    pub async fn wait_ready(&self, patience: Duration) -> Result<(), String> {
        let ready = poll_fn(|cx| {
            if let Some(why) = self.replace_failed.borrow_mut().take() {
                return Poll::Ready(Err(why));
            }
            let settled = matches!(*self.replace.borrow(), Replace::No);
            match self.server.borrow().machine.state() {
                State::Ready { .. } if settled => Poll::Ready(Ok(())),
                _ => {
                    self.changes.borrow_mut().push(cx.waker().clone());
                    Poll::Pending
                }
            }
        });
        match engine::time::timeout(patience, ready).await {
            Ok(result) => result,
            Err(_) => {
                let s = self.server.borrow();
                let last = s.last_exit.as_deref().unwrap_or("none");
                Err(format!(
                    "the server is {} (last exit: {last}; it said: {:?})",
                    s.machine.state().name(),
                    s.said
                ))
            }
        }
    }

    /// The configuration that was accepted, with the file that it was read from.
    pub fn running_config(&self) -> Value {
        json!({ "file": self.file, "text": self.accepted.borrow().text().ok() })
    }

    /// How long a server may take to be replaced in order.
    pub fn patience(&self) -> Duration {
        let c = self.config.borrow();
        c.server.drain_timeout + c.cop.start_grace + c.cop.kill_timeout
    }

    /// The state as JSON.
    pub fn status(&self) -> Value {
        let now = clock::now();
        let s = self.server.borrow();
        let seconds = |t: Time| now.saturating_sub(t).as_secs();
        let ago = |t: Option<Time>| t.map(|t| now.saturating_sub(t).as_millis() as u64);
        json!({
            "manager": {
                "pid": std::process::id(),
                "state": "running",
                "uptime_s": seconds(self.started),
                "cop": *self.cop.borrow(),
                "heartbeat_ms": ago(self.last_asked()),
                "kept": self.is_all_kept(),
            },
            "server": {
                "pid": s.ward.as_ref().map(|w| w.pid),
                "state": s.machine.state().name(),
                "since_s": seconds(s.since),
                "heartbeat_ms": ago(self.last_answered()),
                "generation": s.machine.generation(),
                "restarts": s.machine.restarts(),
                "crashes_in_a_row": s.machine.crashes(),
                "adopted": s.adopted,
                "full": s.ward.as_ref().is_some_and(|w| self.says_it_is_full(w.pid)),
                "last_exit": s.last_exit,
                "status": s.said,
            },
            "standby": self.standby.borrow().status(),
            "incidents": self.incidents.borrow().status(),
            "jobs": self.jobs_status(),
            "queue": self.queue.borrow().status(now),
            "listen": listeners::names(&self.listeners.borrow()),
        })
    }
}
