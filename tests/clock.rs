//! The wall clock is set forward and back by days while the suite runs under load, and each time somebody is killed: nobody is
//! taken for hung, every request is answered, what is kept stays as old as it is, and jobs aren't called for each time that was
//! passed over.
//!
//! Nobody can have a wall clock of its own, so the programs are told another time by a library that is preloaded into them
//! (`clock/ahead.c`). The kernel's timers don't know of it, and would take a time before the machine's for over: so it is always
//! ahead, by more or by less.

mod common;

use common::jobs::{self, job, told};
use common::origin::Origin;
use common::*;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Scope;
use std::time::{Duration, Instant, SystemTime};

const DAY: i64 = 86_400;

/// By how much the programs' clock is ahead.
struct Clock(File);

impl Clock {
    /// For a suite that isn't started yet.
    fn of(s: &mut Suite) -> Clock {
        let (library, ahead) = (s.path("ahead.so"), s.path("ahead"));
        let mut cc = clean("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(&library);
        cc.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/clock/ahead.c"));
        expect_code(&output(cc), 0);
        let clock = Clock(File::create(&ahead).unwrap());
        clock.set(0);
        s.env.push(("LD_PRELOAD".into(), library.display().to_string()));
        s.env.push(("CLOCK_AHEAD".into(), ahead.display().to_string()));
        clock
    }

    fn set(&self, ahead: i64) {
        self.0.write_all_at(&ahead.to_ne_bytes(), 0).unwrap();
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let named = |l: &&str| l.split(':').next().is_some_and(|n| n.eq_ignore_ascii_case(name));
    head.lines().find(named)?.split_once(':').map(|(_, v)| v.trim())
}

/// Seconds by which the answers' `Date` is ahead of our clock.
fn ahead(answer: &Answer) -> i64 {
    let date = seconds_of(field(&answer.head, "date").expect("it has a date"));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    date - now.as_secs() as i64
}

fn seconds_of(text: &str) -> i64 {
    let date = httpdate::parse_http_date(text).unwrap_or_else(|e| panic!("{text:?}: {e}"));
    date.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64
}

/// Clients that ask for what is kept, for what isn't, and for what the server makes itself, until the end.
struct Load {
    end: AtomicBool,
    answers: AtomicUsize,
}

impl Load {
    fn run<'s>(&'s self, scope: &'s Scope<'s, '_>, to: SocketAddr) {
        for path in ["/cacheable/a", "/passed/on", "/own"] {
            scope.spawn(move || {
                let mut client = Client::connect(to).unwrap();
                while !self.end.load(Ordering::Relaxed) {
                    let answer = client.get(path).unwrap_or_else(|e| panic!("GET {path}: {e}"));
                    assert_eq!(answer.code, 200);
                    let age = field(&answer.head, "age").map(|a| a.parse::<u64>().expect("an age"));
                    // as long as this test may take
                    assert!(age.is_none_or(|a| a < 600), "{}", answer.head);
                    self.answers.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    }

    /// Waits until so many more requests are answered, and for so long at least.
    fn goes_on(&self, s: &Suite, least: Duration) {
        let (begun, before) = (Instant::now(), self.answers.load(Ordering::Relaxed));
        while begun.elapsed() < least || self.answers.load(Ordering::Relaxed) < before + 300 {
            assert!(begun.elapsed() < LONG, "no answers:\n{}", s.log.text());
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_clock_that_is_set_forward_and_back_costs_nothing() {
    let origin = Origin::start();
    let runs = |s: &Suite, job: &str| fs::read_to_string(s.path(job)).unwrap_or_default().lines().count();
    let mut s = Suite::new("");
    let called = |name: &str, schedule: &str| {
        let command = format!("echo run >>{}", s.path(name).display());
        format!(
            "[[job]]\nname = \"{name}\"\nschedule = \"{schedule}\"\ncommand = [\"sh\", \"-c\", {command:?}]\n"
        )
    };
    let more = [
        TIGHT,
        "[server.cache]\ndisk = \"16MiB\"\n",
        "[[route]]\nhost = \"*\"\nprefix = \"/own\"\nrespond = 200\nrespond_body = \"ours\"\n",
        &origin.route(),
        &called("hourly", "every 1h"),
        &called("nightly", "daily 00:30,06:30,12:30,18:30"),
        "[[job]]\nname = \"other\"\nready = \"running 1ms\"\ncommand = [\"sleep\", \"1000\"]\n",
    ];
    jobs::config(&s, &more.concat());
    let clock = Clock::of(&mut s);
    clock.set(DAY);
    s.start();
    assert!((ahead(&s.get("/own")) - DAY).abs() < 60, "the library isn't preloaded");
    let load = Load { end: AtomicBool::new(false), answers: AtomicUsize::new(0) };
    std::thread::scope(|scope| {
        load.run(scope, s.addr());
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // how often it is set forward, as jobs see it
            let mut forward = 0;
            for (to, victim) in [(2 * DAY, "server"), (DAY, "server"), (0, "manager"), (DAY, "cop")] {
                load.goes_on(&s, Duration::ZERO);
                let before = s.pids();
                clock.set(to);
                // several heartbeats, each of which could be taken for missed
                load.goes_on(&s, Duration::from_secs(1));
                assert_eq!(s.pids(), before, "{}", s.log.text());
                let mark = s.mark();
                let killed = s.kill(victim, SIGKILL);
                if victim == "cop" {
                    s.spawn_cop();
                }
                s.until("there's another one", || s.try_pid(victim).is_some_and(|pid| pid != killed));
                load.goes_on(&s, Duration::ZERO);
                s.until("each answer has the new time", || (ahead(&s.get("/own")) - to).abs() < 60);
                s.until("its cop knows it", || s.run(COP, &["status"]).status.success());
                assert_eq!(s.log.try_wait(mark, &["event=hang"], Duration::ZERO), None);
                // jobs are looked at
                told(&s, &["stop", "other"]);
                told(&s, &["start", "other"]);
                forward += usize::from(to > 0 && (victim == "cop" || to == 2 * DAY));
                s.until("jobs are called", || {
                    runs(&s, "hourly") >= forward && runs(&s, "nightly") >= forward
                });
            }
        }));
        load.end.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|e| {
            eprintln!("{}", s.log.text());
            std::panic::resume_unwind(e)
        });
    });
    // once for each time that the clock was set forward; perhaps it was half past six meanwhile
    assert_eq!(runs(&s, "hourly"), 2, "{}", s.log.text());
    assert!((2..=3).contains(&runs(&s, "nightly")), "{}", s.log.text());
    let next = job(&s, "hourly")["schedule"]["next"].as_i64().unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64 + DAY;
    assert!((now..=now + 3600).contains(&next), "{next} at {now}");
    s.stop();
    assert!(!s.log.text().contains("panicked"), "{}", s.log.text());
}
