//! Idle keep-alive connections: what each costs in memory, how long a take-over of all of them lasts, and what a request
//! costs on busy connections beside them.

use crate::Scope;
use crate::clients::{self, CACHED, Crowd, FIXED};
use crate::load;
use crate::proc;
use crate::report::{Axis, Chart, Part};
use crate::sample::Series;
use crate::suite::Suite;
use anyhow::Context;
use std::net::TcpStream;

const BUSY: usize = 64;
const SECONDS: u32 = 2;
const KILLS: usize = 3;

/// What is measured, by the number of connections.
struct Measured {
    each: Series,
    taken: Series,
    kept: Series,
    new: Series,
    cpu: Series,
}

/// Measures all of it.
///
/// # Errors
/// A point can't be measured.
pub fn measure(scope: &Scope) -> anyhow::Result<Part> {
    let most = clients::most_connections()?;
    let mut points = scope.points(&[100, 300, 1_000, 3_000, 10_000, 20_000]);
    let wanted = points.last().copied().unwrap_or(most);
    points.retain(|n| *n <= most);
    let mut notes = Vec::new();
    if wanted > most {
        points.push(most);
        notes.push(format!(
            "{wanted} can't be reached here: the hard limit of open files leaves room for {most} connections."
        ));
    }
    let origin = clients::origin()?;
    let mut m = Measured {
        each: Series::new("accepted, KiB"),
        taken: Series::new("after take-overs, KiB"),
        kept: Series::new("next answer on a kept connection, ms"),
        new: Series::new("next answer on a new one, ms"),
        cpu: Series::new("CPU per request, µs"),
    };
    for _ in 0..scope.repeats {
        let config = format!(
            "threads = 1\nidle_timeout = \"1h\"\nmax_connections = 2000000\n{}",
            clients::routes(origin)
        );
        let suite = Suite::start(&config)?;
        sweep(&suite, &points, &mut m)?;
        suite.stop()?;
    }
    let x = Axis::log("idle connections");
    let charts = vec![
        Chart::new(
            "Memory of each, all processes of the suite",
            x,
            Axis::linear("KiB"),
            vec![m.each, m.taken],
        ),
        Chart::new("SIGKILL of the server until the next answer", x, Axis::log("ms"), vec![m.new, m.kept]),
        Chart::new("64 busy connections beside them, hits in memory", x, Axis::linear("µs"), vec![m.cpu]),
    ];
    Ok(Part { name: "connections", charts, notes })
}

/// One suite: more and more connections, then fewer and fewer with take-overs.
fn sweep(suite: &Suite, points: &[usize], m: &mut Measured) -> anyhow::Result<()> {
    let mut crowd = Crowd::new(suite.addr()?);
    suite.wait(0, &["event=standby-ready"])?;
    crowd.grow(1)?;
    let none = proc::settled(&suite.tree()?)?;
    for &n in points {
        crowd.grow(n).with_context(|| format!("{n} connections"))?;
        m.each.add(n, (proc::settled(&suite.tree()?)? - none) / n as f64);
    }
    let mut taken = Vec::new();
    for &n in points.iter().rev() {
        let what = || format!("{n} connections");
        crowd.shrink(n);
        for kill in 0..KILLS {
            let (new, kept) = take_over(suite, crowd.one(kill * n / KILLS)).with_context(what)?;
            m.new.add(n, new);
            m.kept.add(n, kept);
        }
        taken.push((n, proc::settled(&suite.tree()?)?));
        crowd.all_answer().with_context(what)?;
        m.cpu.add(n, request(suite).with_context(what)?);
    }
    crowd.shrink(1);
    take_over(suite, crowd.one(0))?;
    let none = proc::settled(&suite.tree()?)?;
    taken.iter().for_each(|(n, all)| m.taken.add(*n, (all - none) / *n as f64));
    Ok(())
}

/// CPU time of the whole suite for a request of the busy ones, µs.
fn request(suite: &Suite) -> anyhow::Result<f64> {
    let pids = suite.tree()?;
    let before = proc::cpu(&pids)?;
    let load = load::run(suite.addr()?, CACHED, BUSY, SECONDS)?;
    Ok((proc::cpu(&pids)? - before) / load.requests)
}

/// Milliseconds from SIGKILL of the server to the next answer on a new connection, and on one that was there. Both ask as
/// soon as it is dead. Returns when there is a standby again.
fn take_over(suite: &Suite, kept: &TcpStream) -> anyhow::Result<(f64, f64)> {
    let (addr, mark) = (suite.addr()?, suite.mark());
    let at = suite.kill("server")?;
    let answered = |stream: &TcpStream| {
        clients::ask(stream, FIXED)?;
        clients::answer(stream)?;
        anyhow::Ok(at.elapsed().as_secs_f64() * 1000.0)
    };
    let took: anyhow::Result<_> = std::thread::scope(|s| {
        let kept = s.spawn(|| answered(kept).context("a kept connection"));
        let new = clients::connect(addr, 0).and_then(|c| answered(&c)).context("a new connection")?;
        Ok((new, kept.join().expect("no panic")?))
    });
    suite.wait(mark, &["event=standby-ready"])?;
    took
}
