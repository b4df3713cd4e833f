//! Logs: rotation, reopening, and that nothing that is wrong with a log stops the suite.

mod common;

use common::*;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use supervisor::pidfd::PidFd;

/// A daemonized suite must not outlive its test.
struct Daemon<'a>(&'a Suite);

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let _ = self.0.run(COP, &["stop"]);
    }
}

/// Looks until it is so; files tell nobody when they change.
#[track_caller]
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !so() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::yield_now();
    }
}

fn rotated(s: &Suite) -> Vec<PathBuf> {
    let all = fs::read_dir(s.path("state")).unwrap().map(|e| e.unwrap().path());
    let mut list: Vec<PathBuf> = all.filter(|p| p.to_str().unwrap().contains("traffic.log.")).collect();
    list.sort();
    list
}

fn signal(pid: i32, signal: i32) {
    // it may be replaced in this very moment
    let _ = PidFd::open(pid).and_then(|p| p.signal(signal));
}

#[test]
fn a_log_that_is_too_large_is_rotated_and_all_three_follow() {
    let s = Suite::new(TIGHT);
    let _end = Daemon(&s);
    let options = ["start", "--set", "suite.log_max_size=4096", "--set", "suite.log_keep_files=2"];
    expect_code(&s.run(COP, &options), 0);
    let log = s.path("state/traffic.log");
    // lines until it is large enough, three times
    let mut seen = Vec::new();
    until("three rotations", || {
        ["cop", "manager", "server"].iter().filter_map(|p| s.try_pid(p)).for_each(|p| signal(p, SIGUSR1));
        seen.extend(rotated(&s).into_iter().filter(|p| !seen.contains(p)).collect::<Vec<_>>());
        seen.len() >= 3
    });
    until("two are kept", || rotated(&s).len() <= 2);
    // everybody writes to the new one
    for program in ["traffic_cop", "traffic_manager", "traffic_server"] {
        let of = |line: &&str| line.contains(&format!(" {program}[")) && line.contains("event=state");
        let pid = s.pid(program.strip_prefix("traffic_").unwrap());
        until(program, || {
            signal(pid, SIGUSR1);
            let current = fs::read_to_string(&log).unwrap_or_default();
            let newest =
                rotated(&s).pop().map(|p| fs::read_to_string(p).unwrap_or_default()).unwrap_or_default();
            // what is large meanwhile is rotated again
            (current.clone() + &newest).lines().any(|l| of(&l))
        });
    }
    assert_eq!(s.get("/").code, 200);
}

#[test]
fn a_log_that_was_moved_away_is_made_anew_on_sighup() {
    let s = Suite::new("");
    let _end = Daemon(&s);
    expect_code(&s.run(COP, &["start"]), 0);
    let (log, old) = (s.path("state/traffic.log"), s.path("state/old"));
    fs::rename(&log, &old).unwrap();
    signal(s.pid("cop"), SIGHUP);
    until("cop's line in the new file", || !lines_with(&log, "traffic_cop").is_empty());
    until("the manager's", || !lines_with(&log, "traffic_manager").is_empty());
    until("the server's", || {
        s.try_pid("server").into_iter().for_each(|p| signal(p, SIGUSR1));
        !lines_with(&log, "traffic_server").is_empty()
    });
}

#[test]
fn a_log_that_was_moved_away_is_made_anew_also_if_cop_has_nothing_to_say() {
    let s = Suite::new(TIGHT);
    let _end = Daemon(&s);
    expect_code(&s.run(COP, &["start"]), 0);
    let (log, old) = (s.path("state/traffic.log"), s.path("state/old.log"));
    fs::rename(&log, &old).unwrap();
    until("there's a new one", || log.exists());
    // the manager looks at the name once a second, when it has something to say
    until("it is written to", || {
        expect_code(&s.run(MANAGER, &["restart"]), 0);
        fs::read_to_string(&log).unwrap().contains("event=promote of=server")
    });
    fs::remove_file(&log).unwrap();
    until("there's another one", || log.exists());
}

#[test]
fn a_pipe_that_nobody_reads_stops_nothing_and_what_was_dropped_is_said() {
    let s = Suite::new(TIGHT);
    let fifo = s.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    let reader = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&fifo).unwrap();
    nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let _end = Daemon(&s);
    expect_code(&s.run(COP, &["start", "--set", &format!("suite.log_file={fifo:?}")]), 0);
    for program in ["server", "manager", "server", "server", "manager", "server"] {
        let before = s.pid(program);
        s.kill(program, SIGKILL);
        assert_eq!(s.get("/").code, 200);
        until("the next one", || s.try_pid(program).is_some_and(|p| p != before));
    }
    expect_code(&s.run(COP, &["status"]), 0);
    let log: Arc<Log> = Arc::default();
    log.follow(blocking(reader));
    // it can be written to again: each says what it has dropped
    let lost = loop {
        signal(s.pid("cop"), SIGUSR1);
        signal(s.pid("manager"), SIGUSR1);
        match log.try_wait(0, &["event=log-dropped"], LONG / 30) {
            Some(line) => break line,
            None => assert!(s.try_pid("cop").is_some()),
        }
    };
    let lines: u64 = lost.rsplit("lines=").next().unwrap().parse().unwrap();
    assert!(lines > 0, "{lost}");
}

fn blocking(f: File) -> File {
    let flags = nix::fcntl::OFlag::empty();
    nix::fcntl::fcntl(&f, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
    f
}

#[test]
fn a_fifo_without_a_reader_is_refused_and_not_waited_for() {
    let s = Suite::new("");
    let fifo = s.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    let said = expect_code(&s.run(COP, &["start", "--set", &format!("suite.log_file={fifo:?}")]), 71);
    assert!(said.contains("opening the log"), "{said}");
}

#[test]
fn priorities_are_for_the_journal_and_nobody_else() {
    let mut s = Suite::new("");
    // inherited from a session whose stderr was the journal; ours is a pipe
    s.env.push(("JOURNAL_STREAM".into(), "8:12345".into()));
    s.start();
    s.stop();
    assert!(s.log.text().lines().all(|l| !l.starts_with('<')), "{}", s.log.text());
}
