//! A scenario, done step by step.

use super::hands::{self, Done, Hands};
use super::{Action, Expect, Rates, Scenario, Word};
use crate::control;
use crate::drill::client::Page;
use crate::drill::kills::Target;
use crate::drill::load::{Load, Plan};
use crate::drill::stats::{Failure, ScenarioOutcome, Stats, StepOutcome};
use crate::drill::strike::{self, Probe, Record, Stroke};
use crate::drill::subject::Subject;
use crate::drill::view::View;
use anyhow::Context;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use supervisor::signals::Signals;

/// How often it is looked whether something is due.
const TICK: Duration = Duration::from_millis(50);
/// A request without its whole answer after this long has failed.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long the manager may take to carry out a command.
const COMMAND: Duration = Duration::from_secs(120);
/// A load ends by command.
const ENDLESS: u64 = 7 * 86_400;

/// What a scenario is done with.
pub struct Stage<'a> {
    /// The suite.
    pub subject: &'a mut Subject,
    /// What is asked for; the first four are small.
    pub pages: Vec<Page>,
    /// What is counted.
    pub stats: Arc<Mutex<Stats>>,
    /// What people see.
    pub view: &'a mut View,
    /// Who may interrupt.
    pub signals: &'a mut Signals,
}

/// What came of it.
#[derive(Debug)]
pub struct Played {
    /// The steps.
    pub outcome: ScenarioOutcome,
    /// All kills, stops and hangs.
    pub records: Vec<Record>,
}

/// Does all of it; a step that fails is the last one. What was done to processes and disk is undone at the end.
///
/// # Errors
/// The suite has no address.
pub fn play(scenario: &Scenario, stage: Stage<'_>) -> anyhow::Result<Played> {
    let addr = stage.subject.address()?;
    let page = stage.pages.first().context("a page")?.clone();
    let probe = Probe { addr, page };
    let mut p = Player {
        stage,
        probe,
        begun: Instant::now(),
        load: None,
        hands: Hands::default(),
        records: Vec::new(),
        before: Vec::new(),
        interrupted: false,
    };
    p.mark();
    let mut steps = Vec::new();
    let mut failed = false;
    for step in &scenario.steps {
        let (at, text) = (Instant::now(), step.action.text());
        let result = (!failed).then(|| {
            p.say(&text);
            p.perform(&step.action).map_err(|e| format!("{}: {e:#}", step.place))
        });
        if let Some(Err(why)) = &result {
            failed = true;
            p.say(&format!("FAILED {why}"));
        }
        steps.push(StepOutcome { text, at, took: at.elapsed(), result });
    }
    p.hands.undo_all();
    // an interruption has been told of already
    let _ = p.end_load();
    Ok(Played { outcome: ScenarioOutcome { title: scenario.title.clone(), steps }, records: p.records })
}

struct Player<'a> {
    stage: Stage<'a>,
    probe: Probe,
    begun: Instant,
    load: Option<Load>,
    hands: Hands,
    records: Vec<Record>,
    /// Who there was before the last thing that was done.
    before: Vec<(Target, Option<i32>)>,
    /// Somebody wants an end.
    interrupted: bool,
}

impl Player<'_> {
    fn say(&mut self, text: &str) {
        self.stage.view.line(text, self.begun.elapsed());
    }

    fn mark(&mut self) {
        let subject = &self.stage.subject;
        self.before = [Target::Cop, Target::Manager, Target::Server].map(|t| (t, subject.pid(t))).to_vec();
    }

    /// Lets time pass; what is due is undone, and cop is looked after.
    fn pass(&mut self, time: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + time;
        loop {
            for verb in self.hands.undo_due() {
                self.say(&format!("{verb}: undone"));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.interrupted |= self.stage.subject.watch(left.min(TICK), self.stage.signals)?;
            self.go_on()?;
        }
    }

    /// Unless somebody wants an end.
    fn go_on(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.interrupted, "interrupted");
        Ok(())
    }

    /// What is worth a note.
    fn perform(&mut self, action: &Action) -> anyhow::Result<String> {
        match action {
            Action::Load(rates) => self.begin_load(*rates)?,
            Action::LoadOff => self.end_load()?,
            Action::Wait(time) => self.pass(*time)?,
            Action::Kill { who, times, every } => return self.kill(who, *times, *every),
            Action::Stop { who, lasts } => {
                self.mark();
                let struck = strike::strike(self.stage.subject, Stroke::Stop, who)?;
                let (record, held) = struck.context("not all of them are there")?;
                self.hands.keep("stop", Done::Stopped(held), *lasts);
                return self.follow(record);
            }
            Action::Hang { lasts } => return self.hang(*lasts),
            Action::FillDisk { leave, at_most, lasts } => {
                self.mark();
                let done = hands::fill_disk(&self.stage.subject.state_dir(), *leave, *at_most)?;
                self.hands.keep("fill_disk", done, *lasts);
            }
            Action::LimitFds { who, to, lasts } => {
                self.mark();
                let (pid, process) = self.hold(*who)?;
                self.hands.keep("limit_fds", hands::limit_fds(process, pid, *to)?, *lasts);
            }
            Action::Command(word) => {
                self.mark();
                return self.command(*word);
            }
            Action::Expect(e) => self.expect(e)?,
        }
        Ok(String::new())
    }

    fn hold(&self, who: Target) -> anyhow::Result<(i32, supervisor::pidfd::PidFd)> {
        self.stage.subject.hold(who)?.with_context(|| format!("there is no {}", who.name()))
    }

    fn begin_load(&mut self, r: Rates) -> anyhow::Result<()> {
        self.end_load()?;
        let plan = Plan {
            addr: self.probe.addr,
            paths: self.stage.pages.clone(),
            connections: r.connections,
            keepalive_rate: r.keepalive_rate,
            rate: r.rate,
            seconds: ENDLESS,
            timeout: TIMEOUT,
        };
        self.load = Some(Load::start(plan, self.stage.stats.clone()));
        Ok(())
    }

    fn end_load(&mut self) -> anyhow::Result<()> {
        let Some(load) = self.load.take() else { return Ok(()) };
        load.stop();
        while !load.is_finished() {
            if self.interrupted {
                load.abandon();
            }
            self.interrupted |= self.stage.subject.watch(TICK, self.stage.signals)?;
            self.hands.undo_due();
        }
        load.join();
        self.go_on()
    }

    fn kill(&mut self, who: &[Target], times: u32, every: Duration) -> anyhow::Result<String> {
        let mut notes = Vec::new();
        for n in 0..times {
            if n > 0 {
                self.pass(every)?;
            }
            self.mark();
            let struck = strike::strike(self.stage.subject, Stroke::Kill, who)?;
            let (record, _) = struck.context("not all of them are there")?;
            notes.push(self.follow(record)?);
        }
        Ok(notes.join("; "))
    }

    fn hang(&mut self, lasts: Option<Duration>) -> anyhow::Result<String> {
        self.mark();
        let (pid, _process) = self.hold(Target::Server)?;
        let done = hands::hang(pid)?;
        self.hands.keep("hang", done, lasts);
        let hit = vec![(Target::Server, pid)];
        self.follow(Record { stroke: Stroke::Hang, hit, at: Instant::now(), takeover: None, misses: 0 })
    }

    fn follow(&mut self, mut record: Record) -> anyhow::Result<String> {
        let Stage { subject, stats, signals, .. } = &mut self.stage;
        let hands = &mut self.hands;
        self.interrupted |=
            strike::follow(subject, &mut record, &self.probe, stats, signals, || drop(hands.undo_due()))?;
        let text = record.text();
        self.records.push(record);
        self.say(&text);
        self.go_on()?;
        Ok(text)
    }

    /// Without a process of its own: the manager is told, and its answer is waited for.
    fn command(&mut self, word: Word) -> anyhow::Result<String> {
        let socket = self.stage.subject.runtime().control();
        let target = format!("/{}", word.name());
        let telling = std::thread::spawn(move || control::request(&socket, "POST", &target, COMMAND));
        while !telling.is_finished() {
            self.pass(TICK)?;
        }
        let told = telling.join().map_err(|_| anyhow::anyhow!("the command died"))?;
        let (code, said) = told.context("no manager answers")?;
        anyhow::ensure!(code == 200, "the manager refused ({code}): {}", said.trim_end());
        Ok(said.trim_end().to_owned())
    }

    fn expect(&mut self, e: &Expect) -> anyhow::Result<()> {
        if let Some(limit) = e.serving {
            let Stage { subject, signals, .. } = &mut self.stage;
            let hands = &mut self.hands;
            let since = (Instant::now(), limit);
            let asked = strike::next_answer(subject, &self.probe, since, signals, || drop(hands.undo_due()))?;
            self.interrupted |= asked.interrupted;
            self.go_on()?;
            let last = asked.failed.last().map_or_else(String::new, |how| format!(" ({})", how.name()));
            anyhow::ensure!(asked.took.is_some(), "serving: no answer within {limit:?}{last}");
        }
        self.expect_pids(e)?;
        let stats = self.stage.stats.lock().map_err(|_| anyhow::anyhow!("the load died"))?.clone();
        let mut wrong = e.wrong(&stats);
        let late = |r: &&Record| e.takeover.is_some_and(|limit| r.takeover.is_none_or(|t| t > limit));
        wrong.extend(self.records.iter().filter(late).map(|r| format!("take-over: {}", r.text())));
        anyhow::ensure!(wrong.is_empty(), "{}", wrong.join("; "));
        Ok(())
    }

    fn expect_pids(&mut self, e: &Expect) -> anyhow::Result<()> {
        let until = Instant::now() + e.within;
        let before = self.before.clone();
        let was = |t: Target| before.iter().find(|(b, _)| *b == t).and_then(|(_, pid)| *pid);
        for target in &e.changed {
            loop {
                let now = self.stage.subject.pid(*target);
                if now.is_some() && now != was(*target) {
                    break;
                }
                anyhow::ensure!(
                    Instant::now() < until,
                    "changed: the {} is {} within {:?}",
                    target.name(),
                    now.map_or("gone".to_owned(), |pid| format!("still pid {pid}")),
                    e.within
                );
                self.pass(TICK)?;
            }
        }
        for target in &e.same {
            let now = self.stage.subject.pid(*target);
            anyhow::ensure!(
                now == was(*target),
                "same: the {} was {:?} and is {now:?}",
                target.name(),
                was(*target)
            );
        }
        Ok(())
    }
}

impl Expect {
    /// What of the counts isn't as expected.
    fn wrong(&self, s: &Stats) -> Vec<String> {
        let refused = s.failed.get(&Failure::Refused).copied().unwrap_or(0);
        let kinds: Vec<_> = s.failed.iter().map(|(how, n)| format!("{n} {}", how.name())).collect();
        let more = |what: &str, limit: Option<u64>, n: u64| {
            limit.filter(|l| n > *l).map(|l| format!("{what}: {n}, not {l} at most ({})", kinds.join(", ")))
        };
        let longer = |what: &str, limit: Option<Duration>, ms: Option<f64>| {
            let over = limit.filter(|l| ms.is_none_or(|ms| ms > l.as_secs_f64() * 1000.0))?;
            Some(format!(
                "{what}: {}, not under {over:?}",
                ms.map_or("nothing was answered".into(), |ms| format!("{ms:.1} ms"))
            ))
        };
        let all = [
            more("failed", self.failed, s.failures()),
            more("refused", self.refused, refused),
            more("lost", self.lost, s.connections_lost),
            self.answered.filter(|n| s.ok < *n).map(|n| format!("answered: {}, not {n} at least", s.ok)),
            longer("p99", self.p99, s.latency.quantile_ms(0.99)),
            longer("longest", self.longest, s.latency.quantile_ms(1.0)),
        ];
        all.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_count_has_its_limit_and_is_named_when_it_is_over() {
        let mut s = Stats::default();
        let now = Instant::now();
        s.good(now, Duration::from_millis(100));
        s.bad(now, Failure::Refused);
        s.bad(now, Failure::Reset);
        s.connections_lost = 1;
        let ms = |n| Some(Duration::from_millis(n));
        for (e, wrong) in [
            (Expect { failed: Some(2), refused: Some(1), lost: Some(1), ..Expect::default() }, ""),
            (
                Expect { failed: Some(1), ..Expect::default() },
                "failed: 2, not 1 at most (1 refused, 1 reset)",
            ),
            (Expect { refused: Some(0), ..Expect::default() }, "refused: 1, not 0"),
            (Expect { lost: Some(0), ..Expect::default() }, "lost: 1, not 0"),
            (Expect { answered: Some(1), p99: ms(101), longest: ms(101), ..Expect::default() }, ""),
            (Expect { answered: Some(2), ..Expect::default() }, "answered: 1, not 2 at least"),
            (Expect { p99: ms(99), ..Expect::default() }, "p99: 100.0 ms, not under 99ms"),
            (Expect { longest: ms(99), ..Expect::default() }, "longest: 100.0 ms, not under"),
        ] {
            let said = e.wrong(&s).join("; ");
            assert!(said.starts_with(wrong) && said.is_empty() == wrong.is_empty(), "{said} {wrong}");
        }
        let e = Expect { p99: ms(1), ..Expect::default() };
        assert!(e.wrong(&Stats::default())[0].contains("nothing was answered"));
    }
}
