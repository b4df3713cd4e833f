//! Connections that come while no server serves: they wait in the manager, in order, within bounds.

mod common;

use common::origin::Origin;
use common::*;
use std::time::{Duration, Instant};
use supervisor::pidfd::PidFd;

fn queue_status(s: &Suite) -> serde_json::Value {
    let text = expect_code(&s.run(MANAGER, &["status"]), 0);
    serde_json::from_str::<serde_json::Value>(text.trim()).unwrap()["queue"].clone()
}

/// Waits until so many are in the queue. Cop's heartbeat may be one more, wherever that is counted here: it came when the
/// server had just died, or was just told to hold.
#[track_caller]
fn wait_depth(s: &Suite, depth: u64) {
    wait_queue(s, |n| n >= depth);
}

#[track_caller]
fn wait_queue(s: &Suite, is_so: impl Fn(u64) -> bool) {
    let until = Instant::now() + LONG;
    loop {
        let q = queue_status(s);
        if is_so(q["depth"].as_u64().unwrap()) {
            return;
        }
        assert!(Instant::now() < until, "{q}");
    }
}

/// Clients that have asked.
fn asking(s: &Suite, clients: usize, path: &str) -> Vec<Client> {
    let one = |_| {
        let mut c = s.client();
        c.send(&format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n")).unwrap();
        c
    };
    (0..clients).map(one).collect()
}

#[test]
fn a_pause_holds_who_comes_and_resume_serves_them_in_order() {
    let origin = Origin::start();
    // one event thread: the order of service is the order of arrival
    let mut s = Suite::new("");
    s.write_config(&format!("[server]\nlisten = [\"127.0.0.1:0\"]\nthreads = 1\n{}", origin.route()));
    s.start();
    let mut open = Client::connect(s.addr()).unwrap();
    assert_eq!(open.get("/before").unwrap().code, 200);
    expect_code(&s.run(MANAGER, &["pause"]), 0);
    assert_eq!(open.get("/during").unwrap().code, 200, "open connections go on");
    let mut waiting: Vec<Client> = (0..600)
        .map(|n| {
            let mut c = Client::connect(s.addr()).unwrap();
            c.send(&format!("GET /{n} HTTP/1.1\r\nHost: t\r\n\r\n")).unwrap();
            c
        })
        .collect();
    wait_depth(&s, 600);
    assert_eq!(queue_status(&s)["paused"], true);
    let said = expect_code(&s.run(MANAGER, &["resume"]), 0);
    assert!(said.contains("600"), "{said}");
    for (n, c) in waiting.iter_mut().enumerate() {
        assert_eq!(c.read().unwrap().text(), format!("/{n}"));
    }
    assert_eq!(s.get("/after").code, 200);
    let q = queue_status(&s);
    assert_eq!((q["depth"].as_u64(), q["paused"].as_bool()), (Some(0), Some(false)));
    assert!(q["total"].as_u64() >= Some(600), "{q}");
    s.stop();
}

/// The order to retire is in the server's channel already when connections are handed over to it.
#[test]
fn who_is_handed_over_to_a_server_that_retires_is_served_by_the_next() {
    let mut s = Suite::new("");
    s.write_config(
        "[server]\nlisten = [\"127.0.0.1:0\"]\ndrain_timeout = \"3s\"\n[cop]\ninterval = \"60s\"\ntimeout = \"60s\"\n",
    );
    s.start();
    s.wait(0, &["event=standby-ready"]);
    let old = PidFd::open(s.pid("server")).unwrap();
    old.signal(SIGSTOP).unwrap();
    let mark = s.mark();
    let spawn = |word: &str| {
        let mut c = clean(MANAGER);
        c.arg(word).arg("-c").arg(s.path("traffic.toml"));
        c.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
    };
    let mut restart = spawn("restart");
    s.wait(mark, &["event=replace of=server"]);
    let mut pause = spawn("pause");
    s.wait(mark, &["event=pause"]);
    let mut waiting = asking(&s, 300, "/");
    wait_depth(&s, 300);
    expect_code(&s.run(MANAGER, &["resume"]), 0);
    old.signal(nix::libc::SIGCONT).unwrap();
    for c in &mut waiting {
        assert_eq!(c.read().map(|a| a.code).ok(), Some(200), "{}", s.log.text());
    }
    assert!(restart.wait().unwrap().success());
    let _ = pause.wait();
    assert!(s.log.text().contains("event=retire of=server") && !s.log.text().contains("event=retire-failed"));
    s.stop();
}

#[test]
fn who_waits_too_long_is_told_so_and_who_gives_up_is_dropped() {
    let mut s = Suite::serving("");
    expect_code(&s.run(MANAGER, &["pause", "--max-wait", "1s"]), 0);
    let gone = Client::connect(s.addr()).unwrap();
    wait_depth(&s, 1);
    drop(gone);
    wait_queue(&s, |n| n == 0);
    // it waits from its connect on
    let from = Instant::now();
    let mut c = Client::connect(s.addr()).unwrap();
    let answer = c.get("/").unwrap();
    assert_eq!(answer.code, 503);
    assert!(answer.head.contains("Retry-After:"), "{answer:?}");
    assert!(from.elapsed() >= Duration::from_secs(1));
    let q = queue_status(&s);
    assert!(q["gone"].as_u64() >= Some(1) && q["expired"].as_u64() >= Some(1), "{q}");
    expect_code(&s.run(MANAGER, &["resume"]), 0);
    assert_eq!(s.get("/").code, 200);
    s.stop();
}

#[test]
fn an_outage_is_bridged_in_order() {
    // every server dies at once until it is let live: an outage as long as the test wants
    let mut s = Suite::new("");
    s.write_config(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nthreads = 1\nstandby = false\n[manager.respawn]\nmax = \"100ms\"\n",
    );
    s.own_programs();
    s.start();
    let mend = s.break_server();
    let mark = s.mark();
    s.kill("server", SIGKILL);
    s.wait(mark, &["event=queue-begin"]);
    let mut waiting = asking(&s, 300, "/");
    wait_depth(&s, 300);
    mend();
    for c in &mut waiting {
        assert_eq!(c.read().unwrap().code, 200);
    }
    s.stop();
}

#[test]
fn the_queue_is_bounded_and_the_backlog_takes_the_rest() {
    let mut s = Suite::serving("[manager.queue]\nmax_connections = 5\n");
    expect_code(&s.run(MANAGER, &["pause"]), 0);
    let mut waiting = asking(&s, 20, "/");
    wait_depth(&s, 5);
    expect_code(&s.run(MANAGER, &["resume"]), 0);
    for c in &mut waiting {
        assert_eq!(c.read().unwrap().code, 200);
    }
    s.stop();
}

/// So many clients with a request each; the connection ends with the answer.
fn clients(s: &Suite, n: usize) -> Vec<Client> {
    let one = |_| {
        let mut c = Client::connect(s.addr()).unwrap();
        c.send("GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").unwrap();
        c
    };
    (0..n).map(one).collect()
}

/// Nobody of the suite may have more open files.
fn limit_files(s: &mut Suite, n: usize) {
    s.wrap = ["prlimit", &format!("--nofile={n}:{n}")].map(str::to_owned).to_vec();
}

#[test]
fn the_queue_leaves_descriptors_for_everything_else() {
    let mut s = Suite::new(TIGHT);
    limit_files(&mut s, 300);
    s.start();
    s.wait(0, &["event=standby-ready"]);
    let manager = s.pid("manager");
    let mark = s.mark();
    expect_code(&s.run(MANAGER, &["pause"]), 0);
    let mut waiting = clients(&s, 350);
    s.wait(mark, &["event=queue-full"]);
    // it is asked, answers cop, and starts servers
    for _ in 0..2 {
        let mark = s.mark();
        s.kill("server", SIGKILL);
        s.wait(mark, &["event=ready"]);
        s.wait(mark, &["event=standby-ready"]);
        assert!(queue_status(&s)["depth"].as_u64() > Some(100));
    }
    expect_code(&s.run(MANAGER, &["resume"]), 0);
    for c in &mut waiting {
        assert_eq!(c.read().unwrap().code, 200, "{}", s.log.text());
    }
    assert_eq!(s.pid("manager"), manager, "{}", s.log.text());
    let log = s.log.text();
    assert!(!log.contains("accept-failed") && !log.contains("spawn-failed"), "{log}");
    s.stop();
}

#[test]
fn who_the_server_has_no_room_for_is_served_when_it_has() {
    let mut s = Suite::serving("nofile = 100\nthreads = 1\n");
    let server = s.pid("server");
    let mark = s.mark();
    expect_code(&s.run(MANAGER, &["pause"]), 0);
    let mut waiting = clients(&s, 300);
    wait_depth(&s, 300);
    expect_code(&s.run(MANAGER, &["resume"]), 0);
    for c in &mut waiting {
        assert_eq!(c.read().map(|a| a.code).ok(), Some(200), "{}", s.log.text());
    }
    s.wait(mark, &["event=hand-over-short"]);
    assert_eq!((queue_status(&s)["depth"].as_u64(), s.pid("server")), (Some(0), server));
    // and before it serves
    expect_code(&s.run(MANAGER, &["pause"]), 0);
    let mut waiting = clients(&s, 300);
    wait_depth(&s, 300);
    s.kill("server", SIGKILL);
    expect_code(&s.run(MANAGER, &["resume"]), 0);
    for c in &mut waiting {
        assert_eq!(c.read().map(|a| a.code).ok(), Some(200), "{}", s.log.text());
    }
    s.stop();
}

#[test]
fn who_finds_no_room_in_the_server_in_time_is_told_so() {
    let mut s = Suite::serving("nofile = 100\nthreads = 1\n[manager.queue]\nmax_wait = \"2s\"\n");
    let server = s.pid("server");
    expect_code(&s.run(MANAGER, &["pause", "--max-wait", "60s"]), 0);
    let one = |_| {
        let mut c = Client::connect(s.addr()).unwrap();
        c.send("GET / HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
        c
    };
    let mut waiting: Vec<Client> = (0..150).map(one).collect();
    wait_depth(&s, 150);
    expect_code(&s.run(MANAGER, &["resume"]), 0);
    // nobody goes
    let codes: Vec<u16> = waiting.iter_mut().map(|c| c.read().unwrap().code).collect();
    let served = codes.iter().take_while(|code| **code == 200).count();
    assert!(served > 20 && codes[served..].iter().all(|code| *code == 503), "not in order: {codes:?}");
    assert!(served < 150, "{codes:?}");
    for c in &mut waiting[..served] {
        assert_eq!(c.get("/").unwrap().code, 200);
    }
    drop(waiting);
    assert_eq!((s.get("/").code, s.pid("server")), (200, server), "{}", s.log.text());
    s.stop();
}

/// Both together are more than a server may have open.
#[test]
fn who_waits_gives_way_to_who_was_connected() {
    let mut s = Suite::new("");
    s.write_config(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nstandby = false\n[manager.respawn]\nmax = \"100ms\"\n",
    );
    s.own_programs();
    limit_files(&mut s, 400);
    s.start();
    let mut open: Vec<Client> = (0..260).map(|_| Client::connect(s.addr()).unwrap()).collect();
    for c in &mut open {
        assert_eq!(c.get("/").unwrap().code, 200);
    }
    let mend = s.break_server();
    let mark = s.mark();
    s.kill("server", SIGKILL);
    s.wait(mark, &["event=queue-begin"]);
    let mut waiting = clients(&s, 200);
    wait_depth(&s, 200);
    mend();
    for c in &mut waiting {
        assert_eq!(c.read().map(|a| a.code).ok(), Some(200), "{}", s.log.text());
    }
    for c in &mut open {
        assert_eq!(c.get("/").map(|a| a.code).ok(), Some(200), "{}", s.log.text());
    }
    assert!(!s.log.text().contains("event=take-over-cut"), "{}", s.log.text());
    s.stop();
}

/// A server that may have fewer open files than the one before it had clients serves as many as it can.
#[test]
fn of_more_than_can_be_taken_over_as_many_are_as_there_is_room_for() {
    let mut s = Suite::new("");
    let config = |nofile: u32| {
        format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\nstandby = false\nnofile = {nofile}\n\
             [cop]\ninterval = \"60s\"\ntimeout = \"60s\"\n"
        )
    };
    s.write_config(&config(300));
    s.start();
    let mut open: Vec<Client> = (0..200).map(|_| Client::connect(s.addr()).unwrap()).collect();
    for c in &mut open {
        assert_eq!(c.get("/").unwrap().code, 200);
    }
    let server = s.pid("server");
    s.write_config(&config(100));
    let mark = s.mark();
    let manager = s.pid("manager");
    let old = PidFd::open(server).unwrap();
    old.signal(SIGSTOP).unwrap();
    PidFd::open(manager).unwrap().signal(SIGHUP).unwrap();
    s.wait(mark, &["event=reload:"]);
    old.signal(SIGKILL).unwrap();
    s.wait(mark, &["event=take-over-cut"]);
    let served = open.iter_mut().filter_map(|c| c.get("/").ok()).filter(|a| a.code == 200).count();
    assert!((30..100).contains(&served), "{served}: {}", s.log.text());
    drop(open);
    s.until("it serves", || s.get("/").code == 200);
    s.stop();
}

#[test]
fn a_server_killed_during_a_pause_leaves_the_pause() {
    let mut s = Suite::serving("");
    s.wait(0, &["event=standby-ready"]);
    let mut open = Client::connect(s.addr()).unwrap();
    assert_eq!(open.get("/").unwrap().code, 200);
    expect_code(&s.run(MANAGER, &["pause"]), 0);
    let mark = s.mark();
    s.kill("server", SIGKILL);
    s.wait(mark, &["event=ready"]);
    assert_eq!(open.get("/").unwrap().code, 200);
    let mut c = Client::connect(s.addr()).unwrap();
    c.send("GET / HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    wait_depth(&s, 1);
    expect_code(&s.run(MANAGER, &["resume"]), 0);
    assert_eq!(c.read().unwrap().code, 200);
    s.stop();
}

#[test]
fn the_queue_survives_the_death_of_the_manager() {
    let origin = Origin::start();
    let mut s = Suite::serving(&format!("[manager]\nadmin = \"127.0.0.1:0\"\n{}", origin.route()));
    expect_code(&s.run(MANAGER, &["pause"]), 0);
    let mut waiting = asking(&s, 50, "/waits");
    wait_depth(&s, 50);
    let server = s.pid("server");
    // neither the pause nor the connections die with it
    let manager = s.kill("manager", SIGKILL);
    s.until("there's another one", || s.try_pid("manager").is_some_and(|pid| pid != manager));
    s.until("it answers", || s.run(MANAGER, &["status"]).status.success());
    let mut late = Client::connect(s.addr()).unwrap();
    late.send("GET / HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    wait_depth(&s, 1);
    // who has come before waits on as well, also when the server is another one
    assert_eq!(s.pid("server"), server);
    let mark = s.mark();
    s.kill("server", SIGKILL);
    s.wait(mark, &["traffic_manager", "event=state of=server", "to=ready"]);
    let server = s.pid("server");
    assert_eq!(origin.seen("GET /waits"), 0, "{}", s.log.text());
    expect_code(&s.run(MANAGER, &["resume"]), 0);
    assert_eq!(late.read().unwrap().code, 200);
    for c in &mut waiting {
        match c.read() {
            Ok(a) => assert_eq!(a.code, 200),
            Err(e) => panic!("{e}\n{}", s.log.text()),
        }
    }
    assert_eq!(s.pid("server"), server);
    assert_eq!(s.get("/").code, 200);
    s.stop();
}

#[test]
fn a_new_manager_commands_the_server_that_it_adopted() {
    let mut s = Suite::serving("");
    let mut open = Client::connect(s.addr()).unwrap();
    assert_eq!(open.get("/").unwrap().code, 200);
    let mark = s.mark();
    s.kill("manager", SIGKILL);
    s.wait(mark, &["traffic_manager", "event=adopt of=server"]);
    let server = s.pid("server");
    expect_code(&s.run(MANAGER, &["restart"]), 0);
    assert_ne!(s.pid("server"), server);
    assert_eq!(open.get("/").unwrap().code, 200, "passed on by the adopted one");
    s.stop();
}
