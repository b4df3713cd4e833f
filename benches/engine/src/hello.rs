//! CPU per request of a hyper "hello" on the engine and on tokio's current_thread runtime.
//!
//! Both servers run all the time, on CPU 0; wrk loads them in turns from CPU 1. What a request costs is the server's own
//! CPU time by the kernel's account, so it matters little how busy the machine is besides.

use crate::table::{Goal, Sample, Table};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

const ROUNDS: usize = 9;
const SECONDS: usize = 2;

/// A server in a process of its own. It ends when its standard input is closed.
pub struct Server {
    child: Child,
    pub port: u16,
}

impl Server {
    pub fn start(kind: &str, timed: bool) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("our own path"));
        command.args(["serve", kind]).args(timed.then_some("timed"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a server");
        let mut line = String::new();
        let out = child.stdout.as_mut().expect("it is piped");
        BufReader::new(out).read_line(&mut line).expect("its port");
        Server { child, port: line.trim().parse().expect("a port") }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time of all its threads in µs.
    fn cpu(&self) -> f64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("procfs");
        let of_one = |task: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            stat.split_whitespace().next()?.parse::<f64>().ok()
        };
        tasks.flatten().filter_map(of_one).sum::<f64>() / 1000.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

pub fn measure(table: &mut Table) {
    for (timed, connections, goal) in [(true, 64, Goal::None), (false, 64, Goal::None), (true, 1, Goal::None)]
    {
        let servers = [Server::start("engine", timed), Server::start("tokio", timed)];
        let mut cpu = [Vec::new(), Vec::new()];
        let mut rate = [Vec::new(), Vec::new()];
        for round in 0..=ROUNDS {
            for n in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                let before = servers[n].cpu();
                let Some((requests, per_second)) = load(servers[n].port, connections) else {
                    eprintln!("wrk is not installed: no HTTP numbers");
                    return;
                };
                if round > 0 {
                    cpu[n].push((servers[n].cpu() - before) / requests);
                    rate[n].push(per_second / 1000.0);
                }
            }
        }
        let [ours, theirs] = cpu.map(Sample::of);
        let goal =
            if connections == 64 { Goal::AtMost((theirs.median * 110.0).round() / 100.0) } else { goal };
        let timeout = if timed { "header timeout" } else { "no timeout" };
        let what = format!("hyper hello, {connections} keep-alive, {timeout}: CPU per request");
        table.row(&what, "µs", ours, goal, Some(("tokio current_thread", theirs)));
        let [ours, theirs] = rate.map(Sample::of);
        table.row("  and requests", "k/s", ours, Goal::None, Some(("tokio current_thread", theirs)));
    }
}

/// Requests answered, and that per second. None: there is no wrk.
fn load(port: u16, connections: usize) -> Option<(f64, f64)> {
    let url = format!("http://127.0.0.1:{port}/");
    let cpu = (1 % crate::cpus()).to_string();
    let args = ["-c", &cpu, "wrk", "-t1", &format!("-c{connections}"), &format!("-d{SECONDS}s"), &url];
    let out = Command::new("taskset").args(args).output().ok().filter(|o| o.status.success())?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "wrk met errors:\n{text}");
    let requests = text.lines().find_map(|l| l.trim().split_once(" requests in ")?.0.parse().ok())?;
    let rate = text.lines().find_map(|l| l.strip_prefix("Requests/sec:")?.trim().parse().ok())?;
    Some((requests, rate))
}
