//! Jobs of `sleep` under one manager: how long their start takes, what each costs, how often the manager wakes up, how long
//! commands take, and how long the next manager needs to adopt them all.

use crate::Scope;
use crate::proc;
use crate::report::{Axis, Chart, Part, figure};
use crate::sample::Series;
use crate::suite::Suite;
use anyhow::{Context, ensure};
use std::time::{Duration, Instant};

/// After this no timer of a start is left: it is longer than `start_grace` and `stable_after` below.
const SETTLED: Duration = Duration::from_secs(5);
const REST: Duration = Duration::from_secs(10);
const ASKED: usize = 5;
const KILLS: usize = 3;

/// What is measured, by the number of jobs.
struct Measured {
    start: Series,
    adopted: Series,
    memory: Series,
    wakeups: Series,
    status: Series,
    list: Series,
}

/// Measures all of it.
///
/// # Errors
/// A point can't be measured.
pub fn measure(scope: &Scope) -> anyhow::Result<Part> {
    let points = scope.points(&[1, 10, 100, 300, 1_000]);
    let mut m = Measured {
        start: Series::new("start until all are ready, ms"),
        adopted: Series::new("SIGKILL of the manager until all are adopted, ms"),
        memory: Series::new("memory of the manager, KiB"),
        wakeups: Series::new("wake-ups at rest, 1/s"),
        status: Series::new("`status`, ms"),
        list: Series::new("`list`, ms"),
    };
    for _ in 0..scope.repeats {
        let suites =
            points.iter().map(|n| Ok((*n, start(*n, &mut m)?))).collect::<anyhow::Result<Vec<_>>>()?;
        // they rest at the same time
        std::thread::sleep(SETTLED);
        rest(&suites, &mut m)?;
        for (n, suite) in suites {
            let what = || format!("{n} jobs");
            commands(n, &suite, &mut m).with_context(what)?;
            (0..KILLS).try_for_each(|_| adoption(n, &suite, &mut m)).with_context(what)?;
            suite.stop().with_context(what)?;
        }
    }
    let memory = m.memory.points()?;
    let ((one, least), (many, most)) = (memory[0], memory[memory.len() - 1]);
    let each = (most.median - least.median) / (many - one) as f64;
    let notes = vec![format!("The manager needs {} KiB for each job more.", figure(each))];
    let x = Axis::log("jobs");
    let charts = vec![
        Chart::new(
            "Until all are ready, and until all are adopted",
            x,
            Axis::log("ms"),
            vec![m.start, m.adopted],
        ),
        Chart::new("Memory of the manager", x, Axis::linear("KiB"), vec![m.memory]),
        Chart::new("Wake-ups of the manager at rest", x, Axis::linear("1/s"), vec![m.wakeups]),
        Chart::new("Commands, the client's start included", x, Axis::linear("ms"), vec![m.status, m.list]),
    ];
    Ok(Part { name: "jobs", charts, notes })
}

/// A suite with so many, all ready.
fn start(jobs: usize, m: &mut Measured) -> anyhow::Result<Suite> {
    let job = |n| {
        format!(
            "[[job]]\nname = \"sleep-{n}\"\ncommand = [\"sleep\", \"100000\"]\nready = \"running 0s\"\n\
             start_grace = \"3s\"\nstable_after = \"1s\"\n"
        )
    };
    let all: String = (0..jobs).map(job).collect();
    let begun = Instant::now();
    let suite = Suite::start(&format!("threads = 1\nstandby = false\n{all}"))?;
    let ready = suite.wait_all(0, &["event=ready of=job"], jobs).with_context(|| format!("{jobs} jobs"))?;
    m.start.add(jobs, ready.max(begun).duration_since(begun).as_secs_f64() * 1000.0);
    Ok(suite)
}

/// What managers do when nothing happens.
fn rest(suites: &[(usize, Suite)], m: &mut Measured) -> anyhow::Result<()> {
    let managers = || suites.iter().map(|(n, s)| Ok((*n, s.pid("manager")?)));
    let before =
        managers().map(|p| p.and_then(|(_, pid)| proc::sleeps(pid))).collect::<anyhow::Result<Vec<_>>>()?;
    let begun = Instant::now();
    std::thread::sleep(REST);
    for (manager, before) in managers().zip(before) {
        let (n, pid) = manager?;
        m.wakeups.add(n, (proc::sleeps(pid)? - before) / begun.elapsed().as_secs_f64());
        m.memory.add(n, proc::pss(&[pid])?);
    }
    Ok(())
}

fn commands(jobs: usize, suite: &Suite, m: &mut Measured) -> anyhow::Result<()> {
    for _ in 0..ASKED {
        let (_, took) = suite.command(&["status"])?;
        m.status.add(jobs, took.as_secs_f64() * 1000.0);
        let (said, took) = suite.command(&["list"])?;
        m.list.add(jobs, took.as_secs_f64() * 1000.0);
        let listed = said.matches("sleep-").count();
        ensure!(listed >= jobs, "`list` shows {listed} of {jobs} jobs");
    }
    Ok(())
}

/// The manager is killed; the next one has to have the same processes.
fn adoption(jobs: usize, suite: &Suite, m: &mut Measured) -> anyhow::Result<()> {
    let before = workers(suite)?;
    ensure!(before.len() == jobs, "{} of {jobs} run", before.len());
    let mark = suite.mark();
    let at = suite.kill("manager")?;
    let adopted = suite.wait_all(mark, &["event=adopted of=job"], jobs)?;
    m.adopted.add(jobs, adopted.duration_since(at).as_secs_f64() * 1000.0);
    ensure!(workers(suite)? == before, "the next manager has other processes");
    Ok(())
}

/// Pids of all that are ready, in order.
fn workers(suite: &Suite) -> anyhow::Result<Vec<i64>> {
    let status = suite.status()?;
    let jobs = status["jobs"].as_array().context("no jobs in the status")?;
    let all = jobs.iter().filter_map(|j| j["workers"].as_array()).flatten();
    let mut pids: Vec<i64> =
        all.filter(|w| w["state"] == "ready").filter_map(|w| w["pid"].as_i64()).collect();
    pids.sort_unstable();
    Ok(pids)
}
