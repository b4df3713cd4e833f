//! Load by wrk(1).

use anyhow::{Context, bail, ensure};
use std::net::SocketAddr;
use std::process::Command;

/// What one run of load was answered.
pub struct Load {
    pub requests: f64,
    pub per_second: f64,
}

/// Loads a server for so many seconds.
///
/// # Errors
/// wrk isn't there, or met errors.
pub fn run(addr: SocketAddr, path: &str, connections: usize, seconds: u32) -> anyhow::Result<Load> {
    let mut wrk = Command::new("wrk");
    wrk.args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s"), &format!("http://{addr}{path}")]);
    let done = wrk.output().context("wrk(1), which has to be installed")?;
    ensure!(done.status.success(), "{wrk:?} ended with {}", done.status);
    parse(&String::from_utf8_lossy(&done.stdout))
}

fn parse(said: &str) -> anyhow::Result<Load> {
    if let Some(bad) = said.lines().find(|l| l.contains("Socket errors") || l.contains("Non-2xx")) {
        bail!("wrk met errors: {}", bad.trim());
    }
    let requests = said.lines().find_map(|l| l.trim().split_once(" requests in ")?.0.parse().ok());
    let per_second = said.lines().find_map(|l| l.strip_prefix("Requests/sec:")?.trim().parse().ok());
    let (requests, per_second) = requests.zip(per_second).with_context(|| format!("wrk said: {said}"))?;
    ensure!(requests > 0.0, "wrk was answered nothing");
    Ok(Load { requests, per_second })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_load_that_was_not_answered_is_an_error() {
        let good = "  8120 requests in 2.00s, 1.95MB read\nRequests/sec:   4060.12\n";
        assert_eq!(parse(good).unwrap().requests, 8120.0);
        let none = "  0 requests in 2.00s, 0.00B read\nRequests/sec:      0.00\n";
        let bad = format!("{good}  Non-2xx or 3xx responses: 12\n");
        for said in [none, &bad, "", "Requests/sec: 1\n"] {
            assert!(parse(said).is_err(), "{said}");
        }
    }
}
