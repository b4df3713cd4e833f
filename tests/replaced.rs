//! Servers that are replaced in order, by a restart, a reload or SIGTERM: clients notice nothing, also if somebody dies meanwhile.

mod common;

use common::origin::{Origin, serving};
use common::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// What a server that retires passes on lies in a socket that only the manager and the next server have, and cop.
#[test]
fn what_is_passed_on_survives_the_manager_and_the_heir() {
    let (origin, mut s) = serving("");
    let mut all: Vec<Client> = (0..30).map(|_| s.client()).collect();
    for c in &mut all {
        c.send("GET /held HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    }
    origin.wait_seen("GET /held", 30);
    expect_code(&s.run(MANAGER, &["restart"]), 0);
    common::jobs::until_kept(&s);
    s.kill("manager", SIGKILL);
    s.kill("server", SIGKILL);
    origin.release();
    for c in &mut all {
        assert_eq!(c.read().unwrap_or_else(|e| panic!("{e}\n{}", s.log.text())).text(), "/held");
    }
    for c in &mut all {
        assert_eq!(c.get("/x").unwrap_or_else(|e| panic!("{e}\n{}", s.log.text())).text(), "/x");
    }
    s.stop();
}

/// What hasn't ended when the time to drain is over is gone on with as if the server had been killed.
#[test]
fn what_takes_longer_than_a_server_drains_goes_on() {
    let (origin, mut s) = serving("");
    let mut slow = s.client();
    slow.send("GET /held HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    origin.wait_seen("GET /held", 1);
    for (n, what) in ["restart", "reload"].into_iter().enumerate() {
        let mark = s.mark();
        expect_code(&s.run(MANAGER, &[what]), 0);
        s.wait(mark, &["event=stopped drained=false"]);
        origin.wait_seen("GET /held", n + 2);
    }
    origin.release();
    assert_eq!(slow.read().unwrap_or_else(|e| panic!("{e}\n{}", s.log.text())).text(), "/held");
    assert_eq!(slow.get("/x").unwrap().text(), "/x");
    s.stop();
}

#[test]
fn connections_through_an_address_that_is_no_more_go_on() {
    let origin = Origin::start();
    let mut s = Suite::new("");
    let write = |s: &Suite, addresses: &str| {
        s.write_config(&format!("[server]\nlisten = [{addresses}]\n{}", origin.route()));
    };
    write(&s, "\"127.0.0.1:0\", \"127.0.0.2:0\"");
    s.start();
    s.wait(0, &["event=standby-ready"]);
    let ports = std::fs::read_to_string(s.run_dir().join("ports")).unwrap();
    let mut there = Client::connect(ports.lines().nth(1).unwrap().parse().unwrap()).unwrap();
    let mut here = s.client();
    write(&s, "\"127.0.0.1:0\"");
    for n in 0..4 {
        match n {
            0 => drop(expect_code(&s.run(MANAGER, &["reload"]), 0)),
            _ => drop(s.kill("server", SIGKILL)),
        }
        for c in [&mut there, &mut here] {
            assert_eq!(c.get("/x").unwrap_or_else(|e| panic!("{n}: {e}\n{}", s.log.text())).text(), "/x");
        }
    }
    s.stop();
}

#[test]
fn reloads_at_the_same_time_cost_nobody_a_connection() {
    let (_origin, mut s) = serving("");
    let mut all: Vec<Client> = (0..20).map(|_| s.client()).collect();
    for n in 0..12 {
        let path = format!("/{n}");
        for c in &mut all {
            assert_eq!(c.get(&path).unwrap_or_else(|e| panic!("{e}\n{}", s.log.text())).text(), path);
        }
        let s = &s;
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| expect_code(&s.run(MANAGER, &["reload"]), 0));
            }
        });
    }
    s.stop();
}

/// Clients that ask without a pause on their connections until they are told to stop: the number of answers, or what failed.
fn busy(s: &Suite, clients: usize) -> (Arc<AtomicBool>, Vec<JoinHandle<Result<usize, String>>>) {
    let stop = Arc::new(AtomicBool::new(false));
    let one = |n: usize| {
        let (stop, mut c) = (stop.clone(), s.client());
        std::thread::spawn(move || {
            let mut answers = 0;
            while !stop.load(Ordering::SeqCst) {
                let path = format!("/{n}/{answers}");
                match c.get(&path) {
                    Ok(a)
                        if a.text() == path && !a.head.to_ascii_lowercase().contains("connection: close") => {
                    }
                    Ok(a) => return Err(format!("{path}: {a:?}")),
                    Err(e) => return Err(format!("{path}: {e}")),
                }
                answers += 1;
            }
            Ok(answers)
        })
    };
    let clients = (0..clients).map(one).collect();
    (stop, clients)
}

fn all_well(stop: &AtomicBool, clients: Vec<JoinHandle<Result<usize, String>>>, s: &Suite) {
    stop.store(true, Ordering::SeqCst);
    for c in clients {
        match c.join().unwrap() {
            Ok(n) => assert!(n > 0),
            Err(e) => panic!("{e}\n{}", s.log.text()),
        }
    }
}

#[test]
fn restart_and_reload_cost_no_connection_and_no_request() {
    let (origin, mut s) = serving("");
    let mut idle = s.client();
    idle.get("/x").unwrap();
    let (stop, clients) = busy(&s, 4);
    for verb in ["restart", "reload", "restart", "reload"] {
        let (before, manager) = (s.pid("server"), s.pid("manager"));
        expect_code(&s.run(MANAGER, &[verb]), 0);
        assert_ne!(s.pid("server"), before);
        assert_eq!(s.pid("manager"), manager);
        assert_eq!(idle.get("/x").unwrap().text(), "/x");
    }
    // a request in progress is finished by the one that has it, while the next one serves
    let mut slow = s.client();
    slow.send("POST /held HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\nhi").unwrap();
    origin.wait_seen("POST /held", 1);
    expect_code(&s.run(MANAGER, &["restart"]), 0);
    assert_eq!(s.get("/new").code, 200);
    origin.release();
    assert_eq!(slow.read().unwrap().text(), "/held");
    assert_eq!(slow.get("/after").unwrap().text(), "/after");
    all_well(&stop, clients, &s);
    s.stop();
}

#[test]
fn sigterm_to_the_server_costs_no_connection_either() {
    let (_origin, mut s) = serving("");
    let (stop, clients) = busy(&s, 3);
    for _ in 0..4 {
        let mark = s.mark();
        s.kill("server", SIGTERM);
        s.wait(mark, &["event=ready"]);
        s.wait(mark, &["event=exit of=retiring"]);
    }
    all_well(&stop, clients, &s);
    s.stop();
}

#[test]
fn a_next_server_that_can_not_start_leaves_the_one_that_serves() {
    let origin = Origin::start();
    let mut s = Suite::new(&origin.route());
    s.own_programs();
    s.start();
    s.wait(0, &["event=standby-ready"]);
    let mut c = s.client();
    c.get("/x").unwrap();
    let server = s.pid("server");
    let mend = s.break_server();
    let said = expect_code(&s.run(MANAGER, &["reload"]), 1);
    assert!(said.contains("exit code 3"), "{said}");
    assert_eq!(s.pid("server"), server);
    assert_eq!(c.get("/x").unwrap().text(), "/x");
    mend();
    expect_code(&s.run(MANAGER, &["reload"]), 0);
    assert_ne!(s.pid("server"), server);
    assert_eq!(c.get("/x").unwrap().text(), "/x");
    s.stop();
}

#[test]
fn kills_in_the_middle_of_a_replacement_are_survived() {
    let (origin, mut s) = serving("");
    let mut slow = s.client();
    slow.send("GET /held HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    origin.wait_seen("GET /held", 1);
    let old = supervisor::pidfd::PidFd::open(s.pid("server")).unwrap();
    expect_code(&s.run(MANAGER, &["restart"]), 0);
    // the old one still has a request in progress, and is killed: the new one, serving already, takes it over
    old.signal(SIGKILL).unwrap();
    origin.wait_seen("GET /held", 2);
    origin.release();
    assert_eq!(slow.read().unwrap().text(), "/held");
    s.stop();
}
