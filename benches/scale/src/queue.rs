//! The connection queue: clients that come while no server can be started, and what becomes of them when one can.

use crate::Scope;
use crate::clients;
use crate::proc;
use crate::report::{Axis, Chart, Part, figure};
use crate::sample::Series;
use crate::suite::{LONG, Suite};
use anyhow::{Context, ensure};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use std::net::TcpStream;
use std::time::Instant;

/// What is measured, by the number of those who wait.
struct Measured {
    memory: Series,
    first: Series,
    all: Series,
}

/// Measures all of it.
///
/// # Errors
/// A point can't be measured, somebody isn't answered, or somebody is overtaken.
pub fn measure(scope: &Scope) -> anyhow::Result<Part> {
    let most = clients::most_connections()?;
    let mut points = scope.points(&[100, 1_000, 5_000, 20_000]);
    let mut notes = Vec::new();
    for n in points.iter_mut().filter(|n| **n > most) {
        notes
            .push(format!("{n} can't be reached here: the hard limit of open files leaves room for {most}."));
        *n = most;
    }
    points.dedup();
    let mut m = Measured {
        memory: Series::new("memory of the manager, KiB"),
        first: Series::new("until the first answer, ms"),
        all: Series::new("until all are answered, ms"),
    };
    let mut base = Series::new("base");
    for _ in 0..scope.repeats {
        for &n in &points {
            let empty = outage(n, &mut m).with_context(|| format!("{n} who wait"))?;
            base.add(0, empty);
        }
    }
    let (base, memory) = (base.points()?[0].1.median, m.memory.points()?);
    let (n, full) = memory[memory.len() - 1];
    notes.push(format!(
        "Nobody waiting, the manager has {} KiB: {:.0} bytes for each of {n}. Nobody was overtaken at any point.",
        figure(base),
        (full.median - base) * 1024.0 / n as f64
    ));
    let x = Axis::log("connections that wait");
    let charts = vec![
        Chart::new("From the start of the next server", x, Axis::log("ms"), vec![m.first, m.all]),
        Chart::new("Memory of the manager while they wait", x, Axis::linear("KiB"), vec![m.memory]),
    ];
    Ok(Part { name: "queue", charts, notes })
}

/// One outage with so many clients. Returns the manager's memory before, KiB.
fn outage(n: usize, m: &mut Measured) -> anyhow::Result<f64> {
    let config = format!(
        "threads = 1\nstandby = false\nmax_connections = 2000000\n[manager.queue]\nmax_wait = \"10m\"\n\
         max_connections = 2000000\n[manager.respawn]\nmax = \"300ms\"\n{}",
        clients::routes("127.0.0.1:1".parse()?)
    );
    let suite = Suite::start(&config)?;
    let empty = proc::pss(&[suite.pid("manager")?])?;
    // no server can be started until this file is back
    let (token, away) = (suite.file("heartbeat.token"), suite.file("heartbeat.away"));
    std::fs::rename(&token, &away)?;
    std::fs::create_dir(&token)?;
    let mark = suite.mark();
    suite.kill("server")?;
    suite.wait(mark, &["event=queue-begin"])?;
    let clients = (0..n).map(|i| waiting(&suite, i)).collect::<anyhow::Result<Vec<_>>>()?;
    all_wait(&suite, n)?;
    m.memory.add(n, proc::pss(&[suite.pid("manager")?])?);
    std::fs::remove_dir(&token)?;
    std::fs::rename(&away, &token)?;
    let answers = answers(&clients)?;
    let begun = suite.last(&["event=state of=server", "to=launching"])?;
    let since = |at: Instant| at.saturating_duration_since(begun).as_secs_f64() * 1000.0;
    let order: Vec<usize> = answers.iter().map(|(i, _)| *i).collect();
    let overtaken = order.windows(2).filter(|w| w[0] > w[1]).count();
    ensure!(overtaken == 0, "{overtaken} of {n} were answered after one who had come later");
    m.first.add(n, since(answers[0].1));
    m.all.add(n, since(answers[n - 1].1));
    clients.iter().try_for_each(clients::answer)?;
    drop(clients);
    suite.stop()?;
    Ok(empty)
}

/// One who has asked.
fn waiting(suite: &Suite, number: usize) -> anyhow::Result<TcpStream> {
    let client = clients::connect(suite.addr()?, number)?;
    clients::ask(&client, clients::FIXED)?;
    Ok(client)
}

/// Waits until the manager has accepted them all. Cop's heartbeat may be one more.
fn all_wait(suite: &Suite, n: usize) -> anyhow::Result<()> {
    let until = Instant::now() + LONG;
    loop {
        let status = suite.status()?;
        let depth = status["queue"]["depth"].as_u64().context("no queue in the status")?;
        if depth as usize >= n {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{depth} of {n} are in the queue after {LONG:?}");
    }
}

/// Who is answered in which order, and when. The kernel puts them into its list of ready descriptors as answers come.
fn answers(clients: &[TcpStream]) -> anyhow::Result<Vec<(usize, Instant)>> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (i, client) in clients.iter().enumerate() {
        let once = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        epoll::add(&epoll, client, epoll::EventData::new_u64(i as u64), once)?;
    }
    let mut all = Vec::with_capacity(clients.len());
    let mut events: Vec<epoll::Event> = Vec::with_capacity(1024);
    let limit = Timespec { tv_sec: LONG.as_secs() as i64, tv_nsec: 0 };
    while all.len() < clients.len() {
        events.clear();
        let n = epoll::wait(&epoll, spare_capacity(&mut events), Some(&limit))?;
        ensure!(n > 0, "{} of {} were answered, then nobody for {LONG:?}", all.len(), clients.len());
        let now = Instant::now();
        all.extend(events.iter().map(|e| (e.data.u64() as usize, now)));
    }
    Ok(all)
}
