//! The suite as all that a container runs: cop is the first process of a pid namespace, and there is no systemd. It takes
//! root to make one; for others there is nothing to test.

mod common;

use common::*;
use std::fs;
use std::time::Instant;
use supervisor::pidfd::PidFd;

fn contained(more: &str) -> Option<Suite> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let mut s = Suite::new(more);
    let unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL"];
    s.wrap = unshare.map(str::to_owned).to_vec();
    s.start();
    Some(s)
}

/// Parent and state of a process, by /proc/PID/stat.
fn stat(pid: i32) -> Option<(i32, char)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut rest = text.rsplit(')').next()?.split_whitespace();
    let state = rest.next()?.chars().next()?;
    Some((rest.next()?.parse().ok()?, state))
}

fn init_of(s: &Suite) -> i32 {
    stat(s.pid("cop")).unwrap().0
}

#[track_caller]
fn other(s: &Suite, program: &str, than: i32) -> i32 {
    let end = Instant::now() + LONG;
    loop {
        match s.try_pid(program) {
            Some(p) if p != than => return p,
            _ => assert!(Instant::now() < end, "no other {program}:\n{}", s.log.text()),
        }
        std::thread::yield_now();
    }
}

#[test]
fn the_first_process_starts_cop_again_keeps_the_sockets_and_reaps() {
    let Some(mut s) = contained("") else { return };
    let (init, port) = (init_of(&s), s.addr());
    assert_eq!(fs::read_to_string(format!("/proc/{init}/comm")).unwrap().trim(), "traffic_cop");
    let mut client = Client::connect(port).unwrap();
    assert_eq!(client.get("/").unwrap().code, 200);
    for _ in 0..3 {
        let (cop, mark) = (s.pid("cop"), s.mark());
        s.kill("cop", SIGKILL);
        other(&s, "cop", cop);
        s.wait(mark, &["event=new-cop"]);
        assert_eq!(client.get("/").unwrap().code, 200, "{}", s.log.text());
    }
    // all three at once: whoever connects meanwhile waits
    let pids = s.pids();
    let held: Vec<PidFd> = pids.iter().map(|p| PidFd::open(*p).unwrap()).collect();
    held.iter().for_each(|p| p.signal(SIGKILL).unwrap());
    assert_eq!((s.get("/").code, s.addr()), (200, port));
    assert_ne!(s.pid("cop"), pids[0]);
    // whatever has become init's child and ended is gone
    let end = Instant::now() + LONG;
    let zombies = || {
        let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap_or_default();
        children
            .split_whitespace()
            .filter(|p| stat(p.parse().unwrap()).is_some_and(|(_, s)| s == 'Z'))
            .count()
    };
    while zombies() > 0 {
        assert!(Instant::now() < end, "zombies");
        std::thread::yield_now();
    }
    let mark = s.mark();
    PidFd::open(init).unwrap().signal(SIGHUP).unwrap();
    s.wait(mark, &["traffic_manager", "event=reload:"]);
    s.terminate(init);
}

#[test]
fn a_pause_outlives_all_three_and_is_a_start() {
    let Some(mut s) = contained("[cop]\nstart_grace = \"5s\"\n") else { return };
    let init = init_of(&s);
    // who asks from outside has no number inside
    let inside = |s: &Suite, program: &str, word: &str| {
        let mut c = clean("nsenter");
        c.args(["-t", &init.to_string(), "-p", "-m", program, word, "-c"]).arg(s.path("traffic.toml"));
        output(c)
    };
    expect_code(&inside(&s, MANAGER, "pause"), 0);
    let (pids, mark) = (s.pids(), s.mark());
    let held: Vec<PidFd> = pids.iter().map(|p| PidFd::open(*p).unwrap()).collect();
    held.iter().for_each(|p| p.signal(SIGKILL).unwrap());
    let mut client = Client::connect(s.addr()).unwrap();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    s.wait(mark, &["traffic_cop", "event=serving"]);
    let status = inside(&s, COP, "status");
    assert!(String::from_utf8_lossy(&status.stdout).contains("paused"), "{status:?}\n{}", s.log.text());
    expect_code(&inside(&s, MANAGER, "resume"), 0);
    assert_eq!(client.read().unwrap().code, 200);
    s.terminate(init);
}

/// Cop would end with 78, and the container with it.
#[test]
fn a_file_that_is_wrong_ends_no_container() {
    let Some(mut s) = contained("") else { return };
    let right = fs::read_to_string(s.path("traffic.toml")).unwrap();
    fs::write(s.path("traffic.toml"), "[server").unwrap();
    for programs in [&["cop"][..], &["cop", "manager", "server"]] {
        let cop = s.pid("cop");
        let mark = s.mark();
        for p in programs {
            s.kill(p, SIGKILL);
        }
        other(&s, "cop", cop);
        assert_eq!(s.get("/").code, 200);
        s.wait(mark, &["event=serving"]);
    }
    fs::write(s.path("traffic.toml"), right).unwrap();
    let init = init_of(&s);
    s.terminate(init);
}

#[test]
fn a_cop_that_hangs_is_replaced_by_the_first_process() {
    let Some(mut s) = contained("") else { return };
    let (init, cop) = (init_of(&s), s.pid("cop"));
    let mark = s.mark();
    s.kill("cop", SIGSTOP);
    s.wait(mark, &["traffic_init", "event=hang of=cop"]);
    other(&s, "cop", cop);
    s.wait(mark, &["event=new-cop"]);
    assert_eq!(s.get("/").code, 200);
    s.terminate(init);
}

#[test]
fn a_start_that_fails_ends_the_container_with_its_code() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let s = Suite::new("");
    s.write_config("[server]\nlisten = [\"127.0.0.1:0\"]\ncommand = [\"/nonexistent/server\"]\n");
    let said = expect_code(&s.run(COP, &["start", "-f", "--init"]), 71);
    assert!(said.contains("/nonexistent/server"), "{said}");
    s.assert_clean();
    s.write_config("[server]\nno_such_key = 1\n");
    expect_code(&s.run(COP, &["start", "-f", "--init"]), 78);
}
