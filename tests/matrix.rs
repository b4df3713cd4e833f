//! The kill matrix: every set of the three programs x signal x phase of the suite's life, with the real programs and real
//! signals. Each case ends in a suite that serves, whole, within the bound of its signal; or, where cop was asked to stop
//! by SIGTERM, in an orderly end that leaves nothing. What clients lost is counted and printed.
//!
//! A cop that was killed, or is silent because it was stopped, is replaced as systemd does it (`common/rig.rs`).
//! `MATRIX="cop+server SIGKILL"` runs the cases whose names contain that; `MATRIX_JOBS` says how many at once,
//! `MATRIX_LOG=1` shows the logs of those that went well, too.

mod common;

use common::rig::Rig;
use common::*;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const PROGRAMS: [&str; 3] = ["cop", "manager", "server"];
const SIGNALS: [(&str, i32); 4] =
    [("SIGKILL", SIGKILL), ("SIGSTOP", SIGSTOP), ("SIGSEGV", SIGSEGV), ("SIGTERM", SIGTERM)];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The programs exist, and don't serve yet.
    Starting,
    /// Connections are open, and silent.
    Idle,
    /// Every kind of request comes all the time.
    Load,
    /// A replacement of the server is under way; the old one has a request in progress.
    Draining,
}

#[derive(Debug, Clone)]
struct Case {
    who: Vec<&'static str>,
    signal: (&'static str, i32),
    phase: Phase,
}

/// What a case has come to.
#[derive(Debug, Default)]
struct Outcome {
    /// From the signal to the answer on a new connection.
    answer: Duration,
    /// From the signal to a whole suite, or to its end.
    over: Duration,
    requests: u64,
    lost: BTreeMap<String, u64>,
    /// POSTs that may have been carried out, so that they weren't repeated: answered 502.
    posts_cut: u64,
}

impl Case {
    fn all() -> Vec<Case> {
        let mut all = Vec::new();
        for phase in [Phase::Starting, Phase::Idle, Phase::Load, Phase::Draining] {
            for signal in SIGNALS {
                for set in 1..8 {
                    let who = (0..3).filter(|bit| set & (1 << bit) != 0).map(|bit| PROGRAMS[bit]).collect();
                    all.push(Case { who, signal, phase });
                }
            }
        }
        all
    }

    fn name(&self) -> String {
        format!("{} {} {:?}", self.who.join("+"), self.signal.0, self.phase)
    }

    fn has(&self, program: &str) -> bool {
        self.who.contains(&program)
    }

    /// Was the suite asked to stop?
    fn ends(&self) -> bool {
        self.signal.1 == SIGTERM && self.has("cop")
    }

    /// From the signal to an answer on a new connection, and to the whole suite (or its end). Twice what the settings in
    /// [`CONFIG`] come to, as this machine has other things to do too.
    fn bounds(&self) -> (Duration, Duration) {
        let (answer, over) = match (self.signal.1, self.phase) {
            // one start that comes to nothing, after its grace
            (SIGSTOP, Phase::Starting) => (12, 16),
            (SIGSTOP, _) => (8, 12),
            (SIGTERM, _) => (6, 10),
            _ => (4, 8),
        };
        (Duration::from_secs(answer), Duration::from_secs(over))
    }

    fn config(&self) -> String {
        let grace = if self.phase == Phase::Starting { "3s" } else { "10s" };
        format!("{CONFIG}start_grace = \"{grace}\"\n")
    }
}

const CONFIG: &str = "[manager]\nstall = \"2s\"\n[server]\nlisten = [\"127.0.0.1:0\"]\ndrain_timeout = \"3s\"\nthreads = 2\n\
     [cop]\ninterval = \"150ms\"\ntimeout = \"1s\"\nfailures = 2\nkill_timeout = \"3s\"\n";

/// A cop that is silent for so long is replaced.
const WATCHDOG: Duration = Duration::from_millis(1500);

fn run(case: &Case) -> Outcome {
    let mut rig = Rig::new(&case.config(), Some(WATCHDOG));
    if case.phase != Phase::Starting {
        rig.start();
    }
    let outcome = match case.phase {
        Phase::Starting => starting(case, &mut rig),
        Phase::Idle => idle(case, &mut rig),
        Phase::Load => load(case, &mut rig),
        Phase::Draining => draining(case, &mut rig),
    };
    if !outcome.lost.is_empty() || std::env::var_os("MATRIX_LOG").is_some() {
        eprintln!("{}", rig.suite.log.text());
    }
    outcome
}

fn starting(case: &Case, rig: &mut Rig) -> Outcome {
    rig.init.start().unwrap();
    let number =
        |line: &str| line.split("pid=").nth(1).and_then(|l| l.split(' ').next()?.parse().ok()).unwrap();
    let mut pids = Vec::new();
    for program in &case.who {
        pids.push(match *program {
            "cop" => {
                rig.suite.wait(0, &["traffic_cop", "event=start"]);
                rig.init.cop().unwrap().0
            }
            other => number(&rig.suite.wait(0, &[&format!("event=spawn of={other} pid=")])),
        });
    }
    let from = Instant::now();
    rig.signal(&pids, case.signal.1);
    finish(case, rig, from)
}

fn idle(case: &Case, rig: &mut Rig) -> Outcome {
    let mut clients: Vec<Client> = (0..3).map(|_| rig.client()).collect();
    let pids: Vec<i32> = case.who.iter().map(|p| rig.suite.pid(p)).collect();
    let from = Instant::now();
    rig.signal(&pids, case.signal.1);
    let mut outcome = finish(case, rig, from);
    if !case.ends() {
        for c in &mut clients {
            outcome.requests += 1;
            match c.get("/again") {
                Ok(a) if a.text() == "/again" => {}
                Ok(a) => *outcome.lost.entry(format!("status {}", a.code)).or_default() += 1,
                Err(e) => *outcome.lost.entry(format!("idle connection: {e}")).or_default() += 1,
            }
        }
        rig.stop();
    }
    outcome
}

fn load(case: &Case, rig: &mut Rig) -> Outcome {
    let load = rig.load();
    rig.wait_answers(50);
    let mut slow = rig.client();
    slow.send("GET /held HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    rig.origin.wait_seen("GET /held", 1);
    let pids: Vec<i32> = case.who.iter().map(|p| rig.suite.pid(p)).collect();
    let from = Instant::now();
    rig.signal(&pids, case.signal.1);
    let mut outcome = if case.ends() {
        // what comes after the end was asked for is refused; what was in progress is not
        load.stop();
        rig.origin.release();
        let outcome = finish(case, rig, from);
        load.join();
        outcome
    } else {
        let answer = wait_answer(case, rig, from);
        rig.origin.release();
        let outcome = Outcome { answer, ..finish(case, rig, from) };
        rig.wait_answers(50);
        load.stop();
        rig.until("the load ends", LONG, |_| load.is_finished());
        rig.stop();
        outcome
    };
    let stats = rig.stats.lock().unwrap().clone();
    outcome.requests = stats.requests + 1;
    outcome.posts_cut = stats.posts_cut;
    if !case.ends() {
        outcome.lost.extend(stats.failed.iter().map(|(kind, n)| (kind.name(), *n)));
        if stats.connections_lost > 0 {
            outcome.lost.insert("connections".into(), stats.connections_lost);
        }
    }
    if rig.pages.posts_twice() > 0 {
        outcome.lost.insert("posts twice".into(), rig.pages.posts_twice());
    }
    held(&mut slow, &mut outcome);
    outcome
}

fn draining(case: &Case, rig: &mut Rig) -> Outcome {
    let mut slow = rig.client();
    slow.send("GET /held HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    rig.origin.wait_seen("GET /held", 1);
    let old = rig.suite.pid("server");
    let mark = rig.suite.mark();
    let mut restart = clean(MANAGER);
    restart.arg("restart").arg("-c").arg(rig.suite.path("traffic.toml"));
    let mut restart =
        restart.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    rig.suite.wait(mark, &["event=retire of=server"]);
    // the server that was, and the one that is to be, if it has the lock by now
    let mut pids: Vec<i32> = case.who.iter().filter_map(|p| rig.suite.try_pid(p)).collect();
    if case.has("server") && !pids.contains(&old) {
        pids.push(old);
    }
    let from = Instant::now();
    rig.signal(&pids, case.signal.1);
    if case.ends() {
        rig.origin.release();
    }
    let ended = case.ends();
    let answered = if ended { None } else { Some(wait_answer(case, rig, from)) };
    // a suite with a request in progress is not whole: its old server is still there
    rig.origin.release();
    rig.gone.push(old);
    let mut outcome = finish(case, rig, from);
    outcome.answer = answered.unwrap_or(outcome.answer);
    outcome.requests += 1;
    held(&mut slow, &mut outcome);
    let _ = restart.kill();
    let _ = restart.wait();
    if !ended {
        rig.stop();
    }
    outcome
}

/// The answer to a request that was in progress when the signal came.
fn held(slow: &mut Client, outcome: &mut Outcome) {
    match slow.read() {
        Ok(a) if a.text() == "/held" => {}
        Ok(a) => *outcome.lost.entry(format!("in progress: status {}", a.code)).or_default() += 1,
        Err(e) => *outcome.lost.entry(format!("in progress: {e}")).or_default() += 1,
    }
}

/// From the signal to the answer on a connection that was begun right after it. Only while the suite starts there may be
/// no port yet, so that one has to try again.
fn wait_answer(case: &Case, rig: &mut Rig, from: Instant) -> Duration {
    let (limit, _) = case.bounds();
    if case.phase == Phase::Starting {
        rig.until("a new connection is answered", limit, |r| {
            let get = |to| Client::connect_within(to, Duration::from_millis(250))?.get("/new");
            r.addr().is_some_and(|to| get(to).is_ok_and(|a| a.text() == "/new"))
        });
        return from.elapsed();
    }
    let to = rig.addr().unwrap();
    let client = std::thread::spawn(move || {
        let answer = Client::connect_within(to, limit).and_then(|mut c| c.get("/new"));
        (answer, from.elapsed())
    });
    rig.until("a new connection is answered", limit + LONG, |_| client.is_finished());
    let (answer, took) = client.join().unwrap();
    match answer {
        Ok(a) if a.text() == "/new" && took < limit => took,
        other => panic!("a new connection, after {took:?}: {other:?}\n{}", rig.suite.log.text()),
    }
}

/// The end that a case must come to, within its bounds.
fn finish(case: &Case, rig: &mut Rig, from: Instant) -> Outcome {
    let (_, over) = case.bounds();
    if case.ends() {
        let (_, cop) = rig.init.cop().unwrap();
        let ended = cop.poll_exit(over.saturating_sub(from.elapsed())).unwrap();
        assert!(
            ended.is_some(),
            "no end within {over:?}; processes {:?}\n{}",
            rig.census(),
            rig.suite.log.text()
        );
        let took = from.elapsed();
        let status = cop.wait().unwrap().unwrap();
        assert_eq!(status.code(), Some(0), "{status}\n{}", rig.suite.log.text());
        rig.assert_gone();
        return Outcome { answer: took, over: took, ..Outcome::default() };
    }
    let answer = wait_answer(case, rig, from);
    rig.until("the suite is whole", over.saturating_sub(from.elapsed()), Rig::is_whole);
    let outcome = Outcome { answer, over: from.elapsed(), ..Outcome::default() };
    if case.phase == Phase::Starting {
        rig.stop();
    }
    outcome
}

#[test]
fn every_set_of_programs_survives_every_signal_in_every_phase() {
    let filter = std::env::var("MATRIX").unwrap_or_default();
    let jobs = std::env::var("MATRIX_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    let cases: Vec<Case> = Case::all().into_iter().filter(|c| c.name().contains(&filter)).collect();
    assert!(!cases.is_empty(), "no case contains MATRIX={filter:?}");
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    eprintln!("case {}", case.name());
                    let result = catch_unwind(AssertUnwindSafe(|| run(case)));
                    results.lock().unwrap().push((case.clone(), result.map_err(|_| ())));
                }
            });
        }
    });
    let results = results.into_inner().unwrap();
    let mut bad = Vec::new();
    eprintln!("{:<34}{:>10}{:>10}{:>10}{:>7}  lost", "case", "answer ms", "over ms", "requests", "502");
    for case in &cases {
        let Some((_, result)) = results.iter().find(|(c, _)| c.name() == case.name()) else { continue };
        let Ok(o) = result else {
            eprintln!("{:<34} FAILED", case.name());
            bad.push(case.name());
            continue;
        };
        let lost = if o.lost.is_empty() { "-".to_owned() } else { format!("{:?}", o.lost) };
        let (answer, over) = (o.answer.as_millis(), o.over.as_millis());
        eprintln!("{:<34}{answer:>10}{over:>10}{:>10}{:>7}  {lost}", case.name(), o.requests, o.posts_cut);
        if !o.lost.is_empty() {
            bad.push(format!("{}: lost {lost}", case.name()));
        }
    }
    assert!(bad.is_empty(), "{} of {} cases:\n{}", bad.len(), cases.len(), bad.join("\n"));
}

#[test]
fn a_cop_that_is_continued_kills_nobody_and_knows_who_came_meanwhile() {
    let mut rig = Rig::new(&format!("{CONFIG}start_grace = \"10s\"\n"), None);
    rig.start();
    let load = rig.load();
    rig.wait_answers(20);
    let ([cop, manager, _], mark) = (rig.suite.pids(), rig.suite.mark());
    rig.signal(&[cop], SIGSTOP);
    // more servers than its socket takes messages
    for _ in 0..6 {
        let mark = rig.suite.mark();
        rig.suite.kill("server", SIGKILL);
        rig.suite.wait(mark, &["event=standby-ready"]);
        // a request that is in progress in two crashes is answered 502: let those that were be answered first
        rig.wait_answers(100);
    }
    let server = rig.suite.pid("server");
    rig.signal(&[cop], SIGCONT);
    // two rounds of its check, in which all its old deadlines are over
    assert_eq!(rig.suite.log.try_wait(mark, &["event=verdict"], Duration::from_secs(2)), None);
    assert_eq!(rig.suite.pids(), [cop, manager, server]);
    // the manager says all that it couldn't: cop watches the server that there is, not the one that it knew
    rig.until("cop knows the server", LONG, |r| {
        let mark = r.suite.mark();
        r.suite.kill("cop", SIGUSR1);
        r.suite
            .wait(mark, &["traffic_cop", "event=state manager="])
            .contains(&format!("server_pid=Some({server})"))
    });
    load.stop();
    rig.until("the load ends", LONG, |_| load.is_finished());
    let stats = rig.stats.lock().unwrap().clone();
    assert_eq!((stats.failures(), stats.connections_lost), (0, 0), "{:?}", stats.failed);
    rig.until("the suite is whole", LONG, Rig::is_whole);
    rig.stop();
}

#[test]
fn an_orderly_stop_leaves_the_listeners_to_the_next_suite_and_nothing_else() {
    let mut rig = Rig::new("", None);
    rig.start();
    let addr = rig.addr().unwrap();
    rig.stop();
    let until = Instant::now() + LONG;
    let stored = loop {
        let stored = rig.init.stored();
        if stored.iter().all(|name| name.starts_with("listen")) {
            break stored;
        }
        assert!(Instant::now() < until, "init still keeps {stored:?}");
        std::thread::yield_now();
    };
    assert_eq!(stored.len(), 1, "{stored:?}");
    // who comes meanwhile waits, and is the first to be served
    let mut early = Client::connect(addr).unwrap();
    rig.start();
    assert_eq!(rig.addr(), Some(addr));
    assert_eq!(early.get("/hello").unwrap().code, 200);
    rig.stop();
}
