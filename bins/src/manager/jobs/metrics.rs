//! The numbers of jobs, as Prometheus reads them. The label is `name`: `job` is Prometheus' own.

use super::{Job, Worker};
use crate::manager::keep::Keep;
use proxy::metrics::{begin, flag};
use std::cell::Cell;
use std::fmt::Write;
use std::rc::Rc;

/// Processes that ended without having been asked to, and those that were ended because they hung.
#[derive(Default)]
pub(super) struct Ends {
    success: Cell<u64>,
    failure: Cell<u64>,
    hang: Cell<u64>,
}

impl Ends {
    /// All of them: success, failure, hang.
    pub(super) fn all(&self) -> [u64; 3] {
        [&self.success, &self.failure, &self.hang].map(Cell::get)
    }

    /// Those of the last manager's time.
    pub(super) fn recall(&self, all: [u64; 3]) {
        [&self.success, &self.failure, &self.hang].into_iter().zip(all).for_each(|(n, was)| n.set(was));
    }

    /// One more, if it ended `by_itself` or had `hung`.
    pub(super) fn count(&self, by_itself: bool, success: bool, hung: bool) {
        let n = match (hung, by_itself, success) {
            (true, ..) => &self.hang,
            (_, true, true) => &self.success,
            (_, true, false) => &self.failure,
            _ => return,
        };
        n.set(n.get() + 1);
    }
}

/// What is said of each job: name, help, value.
type Gauge = (&'static str, &'static str, fn(&Job) -> f64);

const GAUGES: [Gauge; 6] = [
    ("wanted", "1 if the job is to be up, by its configuration or by command.", |j| flag(j.up.get())),
    ("ready", "1 while all workers of the job are ready, have done their work, or sleep.", |j| {
        flag(j.is_ready())
    }),
    ("asleep", "1 while the job waits for a connection or its hour.", |j| flag(!j.call.is_awake())),
    ("workers_wanted", "Workers that the job is to have.", |j| j.want.get() as f64),
    ("workers_ready", "Workers of the job that are ready.", |j| workers(j, |w| w.is_ready())),
    ("workers_failed", "Workers of the job that aren't tried again, or whose last run failed.", |j| {
        workers(j, |w| w.is_over())
    }),
];

fn workers(job: &Job, which: impl Fn(&Rc<Worker>) -> bool) -> f64 {
    job.workers.borrow().iter().filter(|w| which(w)).count() as f64
}

impl Keep {
    /// Those of all jobs; nothing if there are none.
    pub(in crate::manager) fn jobs_metrics(&self) -> String {
        let list = self.jobs.borrow().list.clone();
        let mut out = String::new();
        if list.is_empty() {
            return out;
        }
        for (name, help, value) in GAUGES {
            let name = format!("traffic_job_{name}");
            begin(&mut out, &name, "gauge", help);
            for job in list.iter() {
                let _ = writeln!(out, "{name}{{name=\"{}\"}} {}", job.name, value(job));
            }
        }
        let name = "traffic_job_exits_total";
        let help = "Processes of the job that ended unasked, or hung (or weren't ready in time), since the suite began.";
        begin(&mut out, name, "counter", help);
        for job in list.iter() {
            let Ends { success, failure, hang } = &job.ends;
            for (result, n) in [("success", success), ("failure", failure), ("hang", hang)] {
                let _ = writeln!(out, "{name}{{name=\"{}\",result=\"{result}\"}} {}", job.name, n.get());
            }
        }
        out
    }
}
