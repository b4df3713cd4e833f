//! Jobs and their connections: such as sleep until something calls them (a connection, or the clock), and workers with sockets
//! of their own.

mod common;

use common::jobs::*;
use common::*;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::FromRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use supervisor::pidfd::PidFd;

/// What the jobs of these tests run: this program, started by a manager. It tells who connects its pid, and keeps the
/// connection until the other end closes it. The job "once" ends after that.
#[test]
fn greeter() {
    let Ok(job) = std::env::var("TRAFFIC_JOB") else { return };
    if job == "unix" {
        // SAFETY: the manager hands it over, and nobody else here has it.
        let listener = unsafe { UnixListener::from_raw_fd(3) };
        loop {
            let mut peer = listener.accept().unwrap().0;
            writeln!(peer, "{}", std::process::id()).unwrap();
            let _ = std::io::copy(&mut peer, &mut std::io::sink());
        }
    }
    // SAFETY: the manager hands it over, and nobody else here has it.
    let listener = unsafe { TcpListener::from_raw_fd(3) };
    loop {
        let (mut peer, _) = listener.accept().unwrap();
        let mut greet = move || {
            writeln!(peer, "{}", std::process::id()).unwrap();
            let _ = std::io::copy(&mut peer, &mut std::io::sink());
        };
        match job.as_str() {
            "once" => return greet(),
            _ => drop(std::thread::spawn(greet)),
        }
    }
}

fn greeting(name: &str, more: &str) -> String {
    let program = std::env::current_exe().unwrap();
    format!(
        "[[job]]\nname = \"{name}\"\nlisten = [\"127.0.0.1:0\"]\nready = \"running 1ms\"\n\
         stdout = \"null\"\n{more}command = [{program:?}, \"--exact\", \"greeter\", \"--nocapture\"]\n"
    )
}

fn addr(s: &Suite, name: &str) -> SocketAddr {
    job(s, name)["listen"][0].as_str().unwrap().parse().unwrap()
}

/// A connection, and the pid of who serves it.
#[track_caller]
fn connect(to: SocketAddr) -> (BufReader<TcpStream>, i32) {
    let stream = TcpStream::connect_timeout(&to, LONG).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let (mut stream, mut line) = (BufReader::new(stream), String::new());
    stream.read_line(&mut line).unwrap();
    (stream, line.trim().parse().unwrap_or_else(|_| panic!("{line:?} is no pid")))
}

#[test]
fn the_first_connection_starts_a_job_and_it_stops_when_none_is_open_any_more() {
    let idle = "on_demand = true\nidle_stop = \"400ms\"\n";
    let mut s = Suite::serving(
        &[
            greeting("a", idle),
            greeting("b", idle),
            format!("[[job]]\nname = \"c\"\nafter = [\"a\"]\n{READY}"),
        ]
        .concat(),
    );
    // who comes after a job that sleeps needn't wait for it
    told(&s, &["wait-ready", "c"]);
    assert!(workers(&s, "a").is_empty() && job(&s, "a")["state"] == "asleep");
    assert!(told(&s, &["list"]).lines().any(|l| l.starts_with("a ") && l.contains("asleep")));
    let (a, b) = (addr(&s, "a"), addr(&s, "b"));
    let mark = s.mark();
    let (open, first) = connect(a);
    assert_eq!(pid(&s, "a"), first);
    // b comes and goes, twice, while a has somebody
    for _ in 0..2 {
        let mark = s.mark();
        drop(connect(b));
        s.wait(mark, &["event=asleep of=job job=b idle"]);
        s.wait(mark, &["event=exit of=job job=b", "SIGTERM"]);
    }
    assert_eq!(s.log.try_wait(mark, &["event=asleep of=job job=a"], std::time::Duration::ZERO), None);
    drop(open);
    s.wait(mark, &["event=asleep of=job job=a idle"]);
    s.wait(mark, &["event=exit of=job job=a"]);
    // the next manager watches too; nobody is refused meanwhile
    let mark = s.mark();
    until_kept(&s);
    s.kill("manager", SIGKILL);
    let (_open, second) = connect(a);
    assert_ne!(first, second);
    s.wait(mark, &["event=ready of=job job=a"]);
    // and one that is awake stays so, with the manager after that
    let mark = s.mark();
    until_kept(&s);
    s.kill("manager", SIGKILL);
    s.wait(mark, &["event=adopted of=job job=a", &format!("pid={second}")]);
    assert!(told(&s, &["stop", "a"]).contains("a is stopped"));
    assert!(workers(&s, "a").is_empty());
    told(&s, &["start", "a"]);
    assert_ne!(pid(&s, "a"), second);
    s.stop();
}

/// As in the packaged unit (`ProcSubset=pid`).
#[test]
fn idleness_is_seen_where_proc_has_nothing_but_processes() {
    if !is_root() {
        return;
    }
    let mut s = Suite::new("");
    let socket = s.path("s");
    let job = greeting("unix", "on_demand = true\nidle_stop = \"200ms\"\n");
    config(&s, &job.replace("127.0.0.1:0", &format!("unix:{}", socket.display())));
    let hide = "mount -t proc -o subset=pid proc /proc && exec \"$@\"";
    s.wrap = ["unshare", "--mount", "sh", "-c", hide, "sh"].map(str::to_owned).into();
    s.start();
    let mark = s.mark();
    let open = BufReader::new(UnixStream::connect(&socket).unwrap());
    s.wait(mark, &["event=called of=job job=unix connection"]);
    s.wait(mark, &["event=ready of=job job=unix"]);
    drop(open);
    s.wait(mark, &["event=asleep of=job job=unix idle"]);
    assert!(!s.log.text().contains("event=not-asked"), "{}", s.log.text());
    s.stop();
}

#[test]
fn a_job_that_ends_by_itself_is_called_again_by_the_next_connection() {
    let mut s = Suite::serving(&greeting("once", "on_demand = true\nrestart = \"on-failure\"\n"));
    let addr = addr(&s, "once");
    let (one, first) = connect(addr);
    // it takes nobody else while it has this one: it ends then, and is called by who waits
    let next = std::thread::spawn(move || connect(addr).1);
    let mark = s.mark();
    drop(one);
    s.wait(mark, &["event=asleep of=job job=once exit code 0"]);
    s.wait(mark, &["event=called of=job job=once connection"]);
    assert_ne!(next.join().unwrap(), first);
    // a crash isn't the end of its work
    let mark = s.mark();
    let (_open, third) = connect(addr);
    PidFd::open(third).unwrap().signal(SIGKILL).unwrap();
    s.wait(mark, &["event=ready of=job job=once"]);
    assert!(job(&s, "once")["asleep"] == false);
    s.stop();
}

#[test]
fn the_clock_starts_a_job_again_and_again_and_never_beside_itself() {
    let mut s = Suite::new("");
    let (runs, gate) = (s.path("runs"), s.path("gate"));
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
    let command = format!("echo run >>{}; exec cat {}", runs.display(), gate.display());
    config(
        &s,
        &format!(
            "[[job]]\nname = \"tick\"\nschedule = \"every 1s\"\ncommand = [\"sh\", \"-c\", {command:?}]\n"
        ),
    );
    s.start();
    let count = || std::fs::read_to_string(&runs).unwrap_or_default().lines().count();
    let open_gate = || std::fs::OpenOptions::new().write(true).open(&gate).unwrap();
    for n in 1..=2 {
        let mark = s.mark();
        s.wait(mark, &["event=skipped of=job job=tick", "goes on still"]);
        assert_eq!(count(), n);
        let mark = s.mark();
        drop(open_gate());
        s.wait(mark, &["event=asleep of=job job=tick exit code 0"]);
        s.wait(mark, &["event=called of=job job=tick schedule"]);
    }
    let status = job(&s, "tick")["schedule"].clone();
    let time = |key: &str| status[key].as_i64().unwrap_or_else(|| panic!("{status}"));
    assert_eq!(time("next"), time("started") + 1, "{status}");
    let list = told(&s, &["list"]);
    assert!(list.contains("next run 20") && list.contains("running since 20"), "{list}");
    // stopped, it isn't called any more
    told(&s, &["stop", "tick"]);
    assert_eq!(job(&s, "tick")["schedule"]["result"], "stopped");
    assert!(told(&s, &["list"]).contains("next run -; last run 20"));
    s.stop();
}

#[test]
fn a_run_that_was_missed_is_made_up_for_if_that_is_wanted() {
    // a time of day that is far from now
    let hour = (supervisor::clock::wall_seconds() / 3600 + 12) % 24;
    let job_of = |name: &str, more: &str| {
        format!(
            "[[job]]\nname = \"{name}\"\nschedule = \"daily {hour:02}:30\"\n{more}command = [\"false\"]\n"
        )
    };
    let mut s = Suite::new(&[job_of("late", ""), job_of("strict", "missed = \"skip\"\n")].concat());
    s.env.push(("TZ".into(), "UTC".into()));
    s.start();
    // nothing was planned before: nothing is missed
    assert!(job(&s, "late")["schedule"]["started"].is_null());
    assert!(workers(&s, "late").is_empty());
    s.stop();
    // the suite was down for two days
    let file = s.path("state/jobs.json");
    let mut memory: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    for name in ["late", "strict"] {
        let dealt = &mut memory["runs"][name]["dealt"];
        *dealt = (dealt.as_i64().unwrap() - 2 * 86_400).into();
    }
    std::fs::write(&file, memory.to_string()).unwrap();
    let mark = s.mark();
    s.start();
    s.wait(mark, &["event=called of=job job=late schedule"]);
    s.wait(mark, &["event=skipped of=job job=strict it was missed"]);
    s.wait(mark, &["event=asleep of=job job=late exit code 1"]);
    let status = job(&s, "late")["schedule"].clone();
    assert_eq!(status["result"], "exit code 1");
    assert!(status["next"].as_i64() > status["ended"].as_i64(), "{status}");
    // one that has failed isn't ready; an operator may have it run at any time
    let said = expect_code(&s.run(MANAGER, &["start", "late"]), 1);
    assert!(said.contains("late isn't ready") && said.contains("exit code 1"), "{said}");
    s.stop();
}

#[test]
fn a_job_whose_schedule_is_taken_away_runs_as_any_other() {
    let job_of = |more: &str| {
        format!(
            "[[job]]\nname = \"tick\"\nready = \"running 0s\"\nrespawn_max = \"100ms\"\n{more}command = [\"true\"]\n"
        )
    };
    // two runs: by the first one nothing was finished yet
    let mut s = Suite::serving(&job_of("schedule = \"every 1h\"\n"));
    for _ in 0..2 {
        let mark = s.mark();
        told(&s, &["start", "tick"]);
        s.wait(mark, &["event=asleep of=job job=tick exit code 0"]);
    }
    let mark = s.mark();
    config(&s, &job_of(""));
    told(&s, &["reload"]);
    s.wait(mark, &["event=exit of=job job=tick", "exit code 0"]);
    s.until("it is restarted", || workers(&s, "tick").iter().any(|w| w["restarts"].as_u64() > Some(2)));
    s.stop();
}

#[test]
fn a_job_with_another_name_takes_the_sockets_of_the_last_one() {
    let mut s = Suite::serving(&greeting("old", ""));
    let addr = addr(&s, "old");
    told(&s, &["wait-ready", "old"]);
    let job_of = |name: &str| greeting(name, "").replace("127.0.0.1:0", &addr.to_string());
    let mark = s.mark();
    let (mut stream, first) = connect(addr);
    // by its address from here on, and then under another name; nobody is refused in between
    for name in ["old", "new"] {
        config(&s, &job_of(name));
        told(&s, &["reload"]);
    }
    s.wait(mark, &["event=down of=job job=old"]);
    told(&s, &["wait-ready", "new"]);
    let mut rest = String::new();
    stream.read_line(&mut rest).unwrap();
    let (_, second) = connect(addr);
    assert!(second != first && second == pid(&s, "new"));
    // the next manager has them under that name
    let mark = s.mark();
    until_kept(&s);
    s.kill("manager", SIGKILL);
    s.wait(mark, &["event=adopted of=job job=new"]);
    assert_eq!(connect(addr).1, second);
    s.stop();
}

/// Sockets that listen there.
fn listening(addr: SocketAddr) -> usize {
    let all = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let line = format!(":{:04X} 00000000:0000 0A ", addr.port());
    all.lines().filter(|l| l.contains(&line)).count()
}

/// Who serves many connections, each from a port of its own.
fn served_by(addr: SocketAddr) -> std::collections::BTreeSet<i64> {
    (0..64).map(|_| i64::from(connect(addr).1)).collect()
}

#[test]
fn workers_with_sockets_of_their_own_share_what_comes_and_leave_nobody_waiting() {
    let mut s = Suite::serving(&greeting("web", "reuseport = true\nworkers = 3\n"));
    let addr = addr(&s, "web");
    let pids = |s: &Suite| -> std::collections::BTreeSet<i64> {
        workers(s, "web").iter().map(|w| w["pid"].as_i64().unwrap()).collect()
    };
    told(&s, &["wait-ready", "web"]);
    assert_eq!((listening(addr), served_by(addr)), (3, pids(&s)));
    // one is killed: who was to come to it waits for the next one
    let (mark, before) = (s.mark(), pids(&s));
    let killed = PidFd::open(workers(&s, "web")[1]["pid"].as_i64().unwrap() as i32).unwrap();
    killed.signal(SIGKILL).unwrap();
    assert!(killed.poll_exit(LONG).unwrap().is_some());
    let served = served_by(addr);
    s.wait(mark, &["event=ready of=job job=web worker=1"]);
    assert!(served.is_subset(&(&before | &pids(&s))), "{served:?}");
    assert_eq!((listening(addr), served_by(addr)), (3, pids(&s)));
    // the next manager has them all
    let mark = s.mark();
    let before = pids(&s);
    until_kept(&s);
    s.kill("manager", SIGKILL);
    for n in 0..3 {
        s.wait(mark, &[&format!("event=adopted of=job job=web worker={n}")]);
    }
    assert_eq!((listening(addr), served_by(addr), pids(&s)), (3, before.clone(), before));
    told(&s, &["restart", "web"]);
    assert_eq!((listening(addr), served_by(addr)), (3, pids(&s)));
    // also those that an operator has asked for: who waits for one that dies waits for its successor
    told(&s, &["want", "web", "4"]);
    told(&s, &["wait-ready", "web"]);
    let mark = s.mark();
    until_kept(&s);
    s.kill("manager", SIGKILL);
    s.wait(mark, &["event=adopted of=job job=web worker=3"]);
    let extra = workers(&s, "web")[3]["pid"].as_i64().unwrap() as i32;
    let (number, extra) = (extra, PidFd::open(extra).unwrap());
    extra.signal(SIGSTOP).unwrap();
    s.until("it is stopped", || is_stopped(number));
    let waiting: Vec<TcpStream> = (0..64).map(|_| TcpStream::connect_timeout(&addr, LONG).unwrap()).collect();
    extra.signal(SIGKILL).unwrap();
    for stream in waiting {
        stream.set_read_timeout(Some(LONG)).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "somebody was let go");
    }
    told(&s, &["wait-ready", "web"]);
    assert_eq!(listening(addr), 4);
    // nobody comes to where nobody is
    told(&s, &["want", "web", "1"]);
    for n in 1..4 {
        s.wait(mark, &[&format!("event=down of=job job=web worker={n}")]);
    }
    assert_eq!((listening(addr), served_by(addr).len()), (1, 1));
    told(&s, &["want", "web", "2"]);
    told(&s, &["wait-ready", "web"]);
    assert_eq!((listening(addr), served_by(addr)), (2, pids(&s)));
    s.stop();
}
