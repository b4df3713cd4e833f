//! Event threads: what more of them bring, and what they cost, under load by wrk.

use crate::Scope;
use crate::clients::{self, CACHED};
use crate::load;
use crate::proc;
use crate::report::{Axis, Chart, Part};
use crate::sample::Series;
use crate::suite::Suite;
use anyhow::Context;

const SECONDS: u32 = 2;

/// Measures requests a second and CPU time for each, by connections and threads.
///
/// # Errors
/// A point can't be measured.
pub fn measure(scope: &Scope) -> anyhow::Result<Part> {
    let cores = std::thread::available_parallelism()?.get();
    let counts: Vec<usize> = (0..).map(|n| 1 << n).take_while(|n| *n <= cores.max(2)).collect();
    let points = scope.points(&[1, 4, 16, 64, 256]);
    let origin = clients::origin()?;
    let mut suites = Vec::new();
    for n in counts {
        let suite = Suite::start(&format!("threads = {n}\n{}", clients::routes(origin)))?;
        let name = |what| format!("{n} thread{}, {what}", if n == 1 { "" } else { "s" });
        suites.push((suite, Series::new(name("thousand/s")), Series::new(name("µs"))));
    }
    for _ in 0..scope.repeats {
        for &connections in &points {
            for (suite, rate, cpu) in &mut suites {
                let pids = suite.tree()?;
                let before = proc::cpu(&pids)?;
                let load = load::run(suite.addr()?, CACHED, connections, SECONDS);
                let load = load.with_context(|| format!("{connections} connections"))?;
                rate.add(connections, load.per_second / 1000.0);
                cpu.add(connections, (proc::cpu(&pids)? - before) / load.requests);
            }
        }
    }
    let (mut rates, mut cpus) = (Vec::new(), Vec::new());
    for (suite, rate, cpu) in suites {
        suite.stop()?;
        rates.push(rate);
        cpus.push(cpu);
    }
    let x = Axis::log("connections, all busy");
    let charts = vec![
        Chart::new("Requests a second, hits in memory", x, Axis::linear("thousand/s"), rates),
        Chart::new("CPU time of the suite for each", x, Axis::linear("µs"), cpus),
    ];
    let notes = match cores {
        0..=2 => vec![format!(
            "The load and the suite share {cores} cores here, so these plots can't show what another core would bring: only \
             what a second thread costs."
        )],
        _ => Vec::new(),
    };
    Ok(Part { name: "threads", charts, notes })
}
