//! What follows from several keys at once: how long who has to stop, and how respawns are braked.

use super::{Config, Respawn};
use policy::backoff;
use policy::jobs::Order;
use policy::ladder::Rungs;
use std::time::Duration;

/// A job's worker, and what it leaves behind, have vanished so long after SIGKILL.
const KILLED: Duration = Duration::from_secs(10);

impl Config {
    /// The ladder for a server: its drain time, then the hard rungs.
    pub fn server_rungs(&self) -> Rungs {
        Rungs {
            polite: self.server.drain_timeout + Duration::from_secs(1),
            core: self.cop.core_signal.map(|_| Duration::from_secs(5)),
            kill: self.cop.kill_timeout,
        }
    }

    /// That for a manager, which must have the time to walk its server down its own, and then its jobs theirs.
    pub fn manager_rungs(&self) -> Rungs {
        let server = self.server_rungs();
        Rungs { polite: server.whole() + self.jobs_time() + Duration::from_secs(2), ..server }
    }

    /// Jobs stop in their order, each within its own time, with what they leave behind.
    fn jobs_time(&self) -> Duration {
        let table: Vec<_> = self.jobs.iter().map(|j| (j.name.clone(), j.after.clone())).collect();
        // what is wrong with it was said when it was loaded
        let order = Order::new(&table).unwrap_or_default();
        order.longest(|j| self.jobs[j].stop_timeout * 2 + KILLED)
    }
}

impl Respawn {
    /// As `policy` has it.
    pub fn limits(&self) -> backoff::Limits {
        backoff::Limits {
            initial: self.initial,
            factor: self.factor,
            max: self.max,
            jitter: self.jitter,
            stable_after: self.stable_after,
            give_up_after: self.give_up_after,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Job;

    #[test]
    fn a_manager_has_the_time_of_its_server_and_then_of_its_jobs() {
        let seconds = Duration::from_secs;
        let mut c = Config::default();
        c.server.drain_timeout = seconds(30);
        c.cop.kill_timeout = seconds(10);
        assert_eq!((c.server_rungs().whole(), c.manager_rungs().polite), (seconds(41), seconds(43)));
        let job = |name: &str, after: &[&str]| Job {
            name: name.into(),
            after: after.iter().map(|s| (*s).into()).collect(),
            stop_timeout: seconds(20),
            ..Job::default()
        };
        c.jobs = vec![job("db", &[]), job("web", &["db"])];
        assert_eq!(c.manager_rungs().polite, seconds(143));
    }
}
