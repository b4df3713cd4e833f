//! A private suite under an init that does for cop what systemd does: the next cop for one that ended or hangs, with the
//! fds it had stored. And the census: every process of that suite, keepers included.

use super::origin::Origin;
use super::{COP, Client, LONG, Log, SIGKILL, SIGSEGV, SIGSTOP, Suite, is_stopped};
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use supervisor::pidfd::PidFd;
use traffic::drill::init::Init;
use traffic::drill::load::{Load, Plan};
use traffic::drill::origin::Origin as Pages;
use traffic::drill::stats::Stats;

/// What a whole suite consists of: a standby besides the three, and a keeper for all but cop.
pub const WHOLE: [&str; 7] = [
    "traffic_cop",
    "traffic_keeper",
    "traffic_keeper",
    "traffic_keeper",
    "traffic_manager",
    "traffic_server",
    "traffic_server",
];

/// How long one turn of waiting lasts when nothing happens to cop.
const TURN: Duration = Duration::from_millis(5);

pub struct Rig {
    pub init: Init,
    pub suite: Suite,
    pub origin: Origin,
    pub pages: Pages,
    pub stats: Arc<Mutex<Stats>>,
    /// Processes that a whole suite has no more.
    pub gone: Vec<i32>,
}

impl Rig {
    /// Configured, with `more` after the sections `[server]` and `[cop]`; nothing runs yet. A cop that is silent for
    /// `watchdog` is replaced.
    pub fn new(more: &str, watchdog: Option<Duration>) -> Rig {
        let (origin, pages) = (Origin::start(), Pages::built_in(true).unwrap());
        let suite = Suite::new("");
        let route = format!("[[route]]\nhost = \"*\"\nprefix = \"/drill\"\norigin = [{:?}]\n", pages.base);
        suite.write_config(&format!("{more}{}{route}", origin.route()));
        let (ours, theirs) = std::io::pipe().unwrap();
        suite.log.follow(ours);
        let log = File::from(OwnedFd::from(theirs));
        let config = suite.path("traffic.toml");
        let init = Init::new(Path::new(COP), suite.dir.path(), &config, log, watchdog).unwrap();
        Rig { init, suite, origin, pages, stats: Arc::default(), gone: Vec::new() }
    }

    /// Started, whole, serving.
    pub fn start(&mut self) {
        self.init.start().unwrap();
        self.until("the suite serves", LONG, |r| r.is_whole());
    }

    /// Looks after cop until `what` is true; fails with the whole log.
    #[track_caller]
    pub fn until(&mut self, what: &str, limit: Duration, mut is_so: impl FnMut(&Rig) -> bool) {
        let until = Instant::now() + limit;
        while !is_so(self) {
            assert!(
                Instant::now() < until,
                "not within {limit:?}: {what}; processes {:?}\n{}",
                self.census(),
                self.suite.log.text()
            );
            self.init.tend(TURN).unwrap();
        }
    }

    /// The suite's processes by number and name, those of its keepers included.
    pub fn census(&self) -> Vec<(i32, String)> {
        let dir = self.suite.dir.path().to_str().unwrap();
        let pids =
            std::fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
        pids.filter_map(|pid: i32| {
            let read = |what| std::fs::read_to_string(format!("/proc/{pid}/{what}")).ok();
            // commands like `restart` that a test runs are none of them
            let line = read("cmdline")?;
            let ours = line.contains(dir) && (line.contains("\0run\0") || line.contains("\0start\0"));
            ours.then_some((pid, read("comm")?.trim_end().to_owned()))
        })
        .collect()
    }

    /// Are all processes there, none of them twice or stopped, and the three with their locks?
    pub fn is_whole(&self) -> bool {
        let census = self.census();
        let mut names: Vec<&str> = census.iter().map(|(_, name)| name.as_str()).collect();
        names.sort();
        ["cop", "manager", "server"].into_iter().all(|p| self.suite.try_pid(p).is_some())
            && names == WHOLE
            && !census.iter().any(|(pid, _)| is_stopped(*pid) || self.gone.contains(pid))
            && self.suite.run(COP, &["status"]).status.code() == Some(0)
    }

    /// The address, once the suite has said it.
    pub fn addr(&self) -> Option<SocketAddr> {
        let text = std::fs::read_to_string(self.suite.run_dir().join("ports")).ok()?;
        text.lines().next()?.parse().ok()
    }

    /// Signals them all at once, and waits until SIGKILL and SIGSEGV have killed, and SIGSTOP has stopped them.
    #[track_caller]
    pub fn signal(&self, pids: &[i32], signal: i32) {
        let all: Vec<(i32, PidFd)> =
            pids.iter().filter_map(|&pid| Some((pid, PidFd::open(pid).ok()?))).collect();
        for (_, p) in &all {
            let _ = p.signal(signal);
        }
        let until = Instant::now() + LONG;
        for (pid, p) in &all {
            let done = || match signal {
                SIGKILL => p.poll_exit(LONG).unwrap().is_some(),
                SIGSEGV if p.poll_exit(Duration::from_millis(300)).unwrap().is_some() => true,
                SIGSEGV => {
                    // the Rust runtime swallows one before the program has given the signal its default back
                    let _ = p.signal(signal);
                    false
                }
                SIGSTOP => is_stopped(*pid) || !p.is_alive(),
                _ => true,
            };
            while !done() {
                assert!(Instant::now() < until, "signal {signal} has no effect on pid {pid}");
                std::thread::yield_now();
            }
        }
    }

    /// A connection with one answered request.
    #[track_caller]
    pub fn client(&self) -> Client {
        let mut c = Client::connect(self.addr().unwrap()).unwrap();
        assert_eq!(c.get("/hello").unwrap().code, 200);
        c
    }

    /// Every kind of request, on kept and on new connections, until it is stopped.
    pub fn load(&self) -> Load {
        let plan = Plan {
            addr: self.addr().unwrap(),
            paths: self.pages.paths(),
            connections: 6,
            keepalive_rate: 20,
            rate: 40,
            seconds: 600,
            timeout: LONG,
        };
        Load::start(plan, self.stats.clone())
    }

    /// Waits for so many good answers more.
    #[track_caller]
    pub fn wait_answers(&mut self, more: u64) {
        let ok = |r: &Rig| r.stats.lock().unwrap().ok;
        let want = ok(self) + more;
        self.until("clients are answered", LONG, |r| ok(r) >= want);
    }

    /// Ends it in order; nothing may be left.
    #[track_caller]
    pub fn stop(&mut self) {
        let ended = self.init.stop(LONG).unwrap();
        assert_eq!(ended.and_then(|s| s.code()), Some(0), "cop's end\n{}", self.suite.log.text());
        self.assert_gone();
    }

    /// No process, keepers included, no socket and no temporary file is left.
    #[track_caller]
    pub fn assert_gone(&self) {
        assert_eq!(self.census(), [], "left behind\n{}", self.suite.log.text());
        self.suite.assert_clean();
        for file in std::fs::read_dir(self.suite.path("state")).into_iter().flatten().flatten() {
            let name = file.file_name().into_string().unwrap();
            assert!(!name.contains("tmp"), "left in the state directory: {name}");
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // whatever a failed test left, supervisors first; several turns, as they start others while they live
        for name in ["traffic_cop", "traffic_manager", "traffic_server", "traffic_keeper", "traffic_server"] {
            for p in
                self.census().iter().filter(|(_, n)| n == name).filter_map(|(pid, _)| PidFd::open(*pid).ok())
            {
                let _ = p.signal(SIGKILL);
                let _ = p.poll_exit(Duration::from_secs(5));
            }
        }
    }
}
