//! What people see of a drill: a live table on a terminal, plain lines elsewhere, a summary at the end.

use super::kills::Target;
use super::stats::{Outcome, Stats, StepOutcome, quantile};
use super::strike::Record;
use super::subject::Subject;
use crate::exit::Exit;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Mutex;
use std::time::Duration;

/// Between two progress lines where there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// The live part.
#[derive(Debug)]
pub struct View {
    to_stderr: bool,
    live: bool,
    total: Duration,
    drawn: usize,
    last: Vec<String>,
    next_plain: Duration,
}

impl View {
    /// Live on a terminal; on stderr when stdout is for JSON.
    pub fn new(to_stderr: bool, terminal: bool, total: Duration) -> View {
        let live = !to_stderr && terminal;
        View { to_stderr, live, total, drawn: 0, last: Vec::new(), next_plain: PLAIN_EVERY }
    }

    /// Lines only: a scenario has its own pace.
    pub fn plain(to_stderr: bool) -> View {
        View::new(to_stderr, false, Duration::MAX)
    }

    /// Something happened.
    pub fn line(&mut self, text: &str, at: Duration) {
        let text = format!("{:>6.1} s  {text}", at.as_secs_f64());
        if self.live {
            self.last.push(text);
            let keep = self.last.len().saturating_sub(8);
            self.last.drain(..keep);
        } else {
            self.put(&format!("{text}\n"));
        }
    }

    /// Draws again.
    pub fn refresh(
        &mut self,
        at: Duration,
        subject: &Subject,
        stats: &Mutex<Stats>,
        hit: &dyn Fn(Target) -> usize,
    ) {
        let Ok(stats) = stats.lock().map(|s| s.clone()) else { return };
        if !self.live {
            if at >= self.next_plain {
                self.next_plain += PLAIN_EVERY;
                let line = format!(
                    "{} ok, {} failed, {} connections lost",
                    stats.ok,
                    stats.failures(),
                    stats.connections_lost
                );
                self.line(&line, at);
            }
            return;
        }
        let rows = [Target::Cop, Target::Manager, Target::Server].map(|t| (t.name(), subject.pid(t), hit(t)));
        let text = table(at, self.total, &rows, &stats, &self.last);
        let up = if self.drawn > 0 { format!("\x1b[{}A", self.drawn) } else { String::new() };
        self.drawn = text.lines().count();
        let cleared = text.lines().fold(String::new(), |all, line| all + "\x1b[2K" + line + "\n");
        self.put(&(up + &cleared));
    }

    /// The last drawing stays.
    pub fn end(&mut self) {
        self.drawn = 0;
    }

    fn put(&self, text: &str) {
        // a reader that went away doesn't end the drill
        let _ = if self.to_stderr {
            std::io::stderr().write_all(text.as_bytes())
        } else {
            std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush())
        };
    }
}

/// The live table.
fn table(
    at: Duration,
    total: Duration,
    rows: &[(&str, Option<i32>, usize)],
    s: &Stats,
    last: &[String],
) -> String {
    let part = (at.as_secs_f64() / total.as_secs_f64()).clamp(0.0, 1.0);
    let full = (part * 40.0) as usize;
    let mut out = format!(
        "[{}{}] {:>4.0}/{:.0} s\n",
        "#".repeat(full),
        ".".repeat(40 - full),
        at.as_secs_f64(),
        total.as_secs_f64()
    );
    let _ = writeln!(out, "{:<10}{:>9}  {:<9}{:>7}", "", "pid", "state", "killed");
    for (name, pid, killed) in rows {
        let (pid, state) = pid.map_or(("-".into(), "respawn"), |p| (p.to_string(), "alive"));
        let _ = writeln!(out, "{name:<10}{pid:>9}  {state:<9}{killed:>7}");
    }
    let rate = s.requests as f64 / at.as_secs_f64().max(0.001);
    let _ = writeln!(
        out,
        "requests  {:>9} ok {:>7} failed {:>9.0}/s   {} connections lost",
        s.ok,
        s.failures(),
        rate,
        s.connections_lost
    );
    for line in last {
        let _ = writeln!(out, "{line}");
    }
    out
}

/// What a step came to: a word, and why if it failed.
pub fn result(step: &StepOutcome) -> (&'static str, String) {
    match &step.result {
        Some(Ok(_)) => ("ok", String::new()),
        Some(Err(why)) => ("FAILED", format!("\n           {why}")),
        None => ("skipped", String::new()),
    }
}

/// How often a request failed, by kind.
pub fn by_kind(s: &Stats) -> BTreeMap<String, u64> {
    s.failed.iter().map(|(k, n)| (k.name(), *n)).collect()
}

/// The end of it, for people.
pub fn summary(o: &Outcome) -> String {
    let mut out = String::new();
    let s = &o.stats;
    if let Some(scenario) = &o.scenario {
        let _ = writeln!(out, "\n{}", scenario.title);
        for step in &scenario.steps {
            let (word, why) = result(step);
            let _ = writeln!(out, "  {word:<8} {:>7.1} s  {}{why}", step.took.as_secs_f64(), step.text);
        }
    }
    let ms = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{v:.1} ms"));
    let kills: Vec<String> = [Target::Server, Target::Manager, Target::Cop]
        .iter()
        .map(|&t| format!("{} {}", t.name(), o.killed(t)))
        .collect();
    let _ = writeln!(out, "\nkills               {}", kills.join("   "));
    let _ = writeln!(out, "requests            {} in {:.1} s", s.requests, o.seconds);
    let _ = writeln!(out, "  answered          {}", s.ok);
    let _ = writeln!(out, "  failed            {}", s.failures());
    for (kind, n) in by_kind(s) {
        let _ = writeln!(out, "    {kind:<16}{n}");
    }
    let _ = writeln!(out, "connections         {}, lost {}", s.connections, s.connections_lost);
    if s.posts_cut + s.posts_twice > 0 {
        let _ = writeln!(
            out,
            "POSTs               {} answered 502, {} arrived twice",
            s.posts_cut, s.posts_twice
        );
    }
    let _ = writeln!(
        out,
        "latency             p50 {}   p99 {}   max {:.1} ms",
        ms(s.latency.quantile_ms(0.5)),
        ms(s.latency.quantile_ms(0.99)),
        s.latency.max_ms()
    );
    if let Some(c) = &o.chaos {
        let done: Vec<_> = c.done.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
        let _ = writeln!(out, "chaos               seed {}: {}", c.seed, done.join("   "));
        let _ = writeln!(out, "at rest, before     {}", c.before.text());
        let _ = writeln!(out, "at rest, after      {}", c.after.text());
    }
    let t = o.takeovers();
    let _ = writeln!(
        out,
        "{:<20}p50 {}   p99 {}   max {}",
        if o.scenario.is_some() { "stroke -> answer" } else { "SIGKILL -> answer" },
        ms(quantile(&t, 0.5)),
        ms(quantile(&t, 0.99)),
        ms(t.last().copied())
    );
    for c in &o.complaints {
        let _ = writeln!(out, "also                {c}");
    }
    let refused = s.failed.get(&super::stats::Failure::Refused).copied().unwrap_or(0);
    let verdict = match (o.verdict(), refused) {
        (Exit::Done, _) if o.scenario.is_some() => "PASSED: all is as the scenario expects".to_owned(),
        _ if o.scenario.is_some() => "FAILED: see above".to_owned(),
        (Exit::Done, _) if s.failures() + s.connections_lost > 0 => format!(
            "PASSED: serving and whole at the end, nobody was refused; {} requests failed and {} connections were lost",
            s.failures(),
            s.connections_lost
        ),
        (Exit::Done, _) => "PASSED: no client noticed more than a pause".to_owned(),
        _ if s.failures() + s.connections_lost + s.posts_twice == 0 => {
            "FAILED: no client lost anything, but see above".to_owned()
        }
        (_, 0) => format!(
            "FAILED: no connection was refused, but {} requests failed and {} connections were lost",
            s.failures(),
            s.connections_lost
        ),
        (_, n) => format!("FAILED: {n} connections were refused"),
    };
    let _ = writeln!(out, "verdict             {verdict}");
    out
}

fn step_json(step: &StepOutcome) -> serde_json::Value {
    json!({
        "step": step.text,
        "seconds": step.took.as_secs_f64(),
        "result": result(step).0.to_lowercase(),
        "why": step.result.as_ref().and_then(|r| r.as_ref().err()),
    })
}

fn stroke_json(r: &Record) -> serde_json::Value {
    json!({
        "stroke": r.stroke.name(),
        "who": r.hit.iter().map(|(t, pid)| json!({ "program": t.name(), "pid": pid })).collect::<Vec<_>>(),
        "takeover_ms": r.takeover.map(|t| t.as_secs_f64() * 1000.0),
        "failed_before": r.misses,
    })
}

/// The end of it, for programs.
pub fn json(o: &Outcome) -> serde_json::Value {
    let s = &o.stats;
    let t = o.takeovers();
    let steps = o.scenario.as_ref().map(|s| s.steps.iter().map(step_json).collect::<Vec<_>>());
    json!({
        "title": o.scenario.as_ref().map(|s| &s.title),
        "steps": steps,
        "strokes": o.kills.iter().map(stroke_json).collect::<Vec<_>>(),
        "requests": s.requests,
        "ok": s.ok,
        "failed": s.failures(),
        "failed_by_kind": by_kind(s),
        "connections": s.connections,
        "connections_lost": s.connections_lost,
        "posts_cut": s.posts_cut,
        "posts_twice": s.posts_twice,
        "kills": {
            "server": o.killed(Target::Server),
            "manager": o.killed(Target::Manager),
            "cop": o.killed(Target::Cop),
        },
        "takeover_ms": { "p50": quantile(&t, 0.5), "p99": quantile(&t, 0.99), "max": t.last() },
        "latency_ms": {
            "p50": s.latency.quantile_ms(0.5),
            "p99": s.latency.quantile_ms(0.99),
            "max": s.latency.max_ms(),
        },
        "seconds": o.seconds,
        "chaos": o.chaos.as_ref().map(|c| json!({
            "seed": c.seed,
            "done": c.done,
            "hit": c.hit,
            "before": c.before.json(),
            "after": c.after.json(),
        })),
        "complaints": o.complaints,
        "passed": o.verdict() == Exit::Done,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_fits_a_terminal_and_says_who_is_gone() {
        let rows = [("cop", Some(1), 0), ("manager", None, 3)];
        let t =
            table(Duration::from_secs(5), Duration::from_secs(20), &rows, &Stats::default(), &["x".into()]);
        assert!(t.lines().all(|l| l.len() <= 80), "{t}");
        assert!(t.starts_with("[##########....") && t.contains("respawn") && t.contains("      3\n"), "{t}");
    }

    #[test]
    fn json_has_what_is_promised() {
        let o = Outcome {
            stats: Stats::default(),
            kills: vec![],
            seconds: 1.0,
            complaints: vec!["x".into()],
            chaos: None,
            scenario: None,
        };
        let v = json(&o);
        for key in ["requests", "ok", "failed", "failed_by_kind", "connections_lost", "kills", "takeover_ms"]
        {
            assert!(v.get(key).is_some(), "{key}");
        }
        assert_eq!(v["passed"], false);
        assert!(summary(&o).contains("FAILED"));
    }
}
