//! What the kernel says of processes: memory, CPU time, wake-ups, and who descends from whom.

use anyhow::{Context, bail};
use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

/// A process and all that descend from it.
pub fn tree(root: i32) -> anyhow::Result<Vec<i32>> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        // one that has ended meanwhile is none
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let parent = stat.rsplit(')').next().and_then(|s| s.split_whitespace().nth(1)?.parse().ok());
        children.entry(parent.context("/proc has a stat without a parent")?).or_default().push(pid);
    }
    let mut all = vec![root];
    let mut next = 0;
    while next < all.len() {
        all.extend(children.remove(&all[next]).unwrap_or_default());
        next += 1;
    }
    Ok(all)
}

fn number(path: &str, key: &str) -> anyhow::Result<f64> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    let line = text.lines().find_map(|l| l.strip_prefix(key));
    let value = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
    value.with_context(|| format!("{path} has no number for {key}"))
}

/// Memory of processes in KiB: what is shared is divided by those who share it. One that has ended meanwhile has none.
pub fn pss(pids: &[i32]) -> anyhow::Result<f64> {
    let total: f64 =
        pids.iter().filter_map(|p| number(&format!("/proc/{p}/smaps_rollup"), "Pss:").ok()).sum();
    match total > 0.0 {
        true => Ok(total),
        false => bail!("none of the processes {pids:?} says what memory it has"),
    }
}

/// Their memory in KiB when it has stopped falling.
pub fn settled(pids: &[i32]) -> anyhow::Result<f64> {
    const QUIET: Duration = Duration::from_secs(2);
    let begun = Instant::now();
    let (mut least, mut since) = (pss(pids)?, begun);
    while since.elapsed() < QUIET && begun.elapsed() < 10 * QUIET {
        std::thread::sleep(QUIET / 10);
        let now = pss(pids)?;
        if now < least - 64.0 {
            (least, since) = (now, Instant::now());
        }
    }
    pss(pids)
}

/// CPU time that all threads of processes have used, in µs.
pub fn cpu(pids: &[i32]) -> anyhow::Result<f64> {
    let mut total = 0.0;
    for pid in pids {
        // threads may end while they are listed
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        let of = |t: fs::DirEntry| fs::read_to_string(t.path().join("schedstat")).ok();
        for text in tasks.flatten().filter_map(of) {
            let nanoseconds = text.split_whitespace().next().and_then(|n| n.parse::<f64>().ok());
            total += nanoseconds.context("schedstat without a number")? / 1000.0;
        }
    }
    match total > 0.0 {
        true => Ok(total),
        false => bail!("none of the processes {pids:?} says what CPU time it has used"),
    }
}

/// How often a process has gone to sleep by itself since it began.
pub fn sleeps(pid: i32) -> anyhow::Result<f64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("threads of {pid}"))?;
    let of =
        |t: fs::DirEntry| number(&t.path().join("status").display().to_string(), "voluntary_ctxt_switches:");
    tasks.flatten().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_have_memory_and_cpu_time_and_nobody_has_none() {
        let own = std::process::id() as i32;
        assert!(tree(own).unwrap().contains(&own));
        assert!(pss(&[own]).unwrap() > 100.0 && cpu(&[own]).unwrap() > 0.0 && sleeps(own).is_ok());
        let nobody = [i32::MAX];
        assert!(pss(&nobody).is_err() && cpu(&nobody).is_err() && sleeps(nobody[0]).is_err());
    }
}
