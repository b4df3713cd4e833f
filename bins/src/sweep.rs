//! Strays: programs of this suite that nobody answers for any more. One that hung before it took its lock and whose parent
//! died, for instance, is found by no lock, no heartbeat and no pidfd.

use crate::config::Config;
use crate::suite::{self, Runtime};
use policy::Time;
use std::time::Duration;
use supervisor::clock;
use supervisor::identity::Executable;
use supervisor::safe_kill::{Killer, Next, Plan};
use supervisor::snapshot::Snapshots;
use supervisor::strays::{self, Wanted};

/// How often it is looked whether those that were killed are gone.
const STEP: Duration = Duration::from_millis(100);

/// Strays that are being ended.
#[derive(Debug)]
pub struct Sweep {
    program: &'static str,
    killer: Killer,
    next: Time,
}

impl Sweep {
    /// Looks for processes of that program (`traffic_manager`, `traffic_server`) with our runtime directory that aren't
    /// among `ours`. They are killed; with `polite`, after a SIGTERM and so much time. `None`: there are none.
    pub fn begin(
        config: &Config,
        program: &'static str,
        ours: &[i32],
        polite: Option<Duration>,
    ) -> Option<Sweep> {
        let runtime = Runtime::new(&config.suite.runtime_dir);
        let exe = Executable::at(&suite::sibling(program).ok()?);
        let wanted = Wanted { name: program.into(), exe, runtime_dir: runtime.dir().to_owned() };
        let found = strays::find(&wanted, ours)
            .inspect_err(|e| log::warn!("event=sweep-failed of={program}: {e}"))
            .ok()?;
        if found.unreadable > 0 {
            log::info!("event=sweep of={program} unreadable={}", found.unreadable);
        }
        if found.strays.is_empty() {
            return None;
        }
        for s in &found.strays {
            log::warn!("event=stray of={program} {}: nobody answers for it", s.identity);
        }
        let snapshots = (config.suite.snapshots > 0).then(|| Snapshots {
            dir: config.suite.state_dir.join("snapshots"),
            keep: config.suite.snapshots,
        });
        let hard = Plan::kill(config.cop.kill_timeout);
        let plan = match polite {
            Some(time) => Plan {
                core_signal: Some(lockfile::Signal::SIGTERM),
                core_time: time,
                timeout: time + hard.timeout,
                ..hard
            },
            None => {
                let core_signal = config.cop.core_signal.and_then(|s| lockfile::Signal::try_from(s).ok());
                Plan { core_signal, snapshots, ..hard }
            }
        };
        let now = clock::now();
        Some(Sweep { program, killer: Killer::new(found.strays, plan, now), next: now })
    }

    /// To its end, for who can wait. Returns how many programs had strays: 0 to 2.
    pub fn all(config: &Config) -> u32 {
        let polite = Some(config.server.drain_timeout);
        let sweeps = ["traffic_manager", "traffic_server"].map(|p| Sweep::begin(config, p, &[], polite));
        let mut count = 0;
        for mut s in sweeps.into_iter().flatten() {
            count += 1;
            while !s.step(clock::now()) {
                std::thread::sleep(s.deadline().saturating_sub(clock::now()));
            }
        }
        count
    }

    /// When [`Sweep::step`] is due.
    pub fn deadline(&self) -> Time {
        self.next
    }

    /// Goes on; true when it is over.
    pub fn step(&mut self, now: Time) -> bool {
        match self.killer.step(now) {
            Next::Wait { until, .. } => {
                self.next = until.min(now + STEP);
                false
            }
            Next::Done(report) if report.all_gone() => {
                log::info!("event=swept of={}: {report}", self.program);
                true
            }
            Next::Done(report) => {
                log::error!("event=sweep-failed of={}: {report}", self.program);
                true
            }
        }
    }
}
