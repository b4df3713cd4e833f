//! Kill anything: what clients notice, who adopts whom, and how soon a hang is found.

mod common;

use common::*;
use std::time::{Duration, Instant};

#[test]
fn a_killed_server_is_replaced_and_nobody_is_refused() {
    let mut s = Suite::serving("");
    let manager = s.pid("manager");
    for _ in 0..5 {
        let dead = s.kill("server", SIGKILL);
        // at once: it waits in the backlog
        assert_eq!(s.get("/").code, 200);
        assert_ne!(s.pid("server"), dead);
    }
    assert_eq!(s.pid("manager"), manager);
    s.stop();
}

#[test]
fn a_killed_manager_is_not_noticed_by_any_client() {
    let mut s = Suite::serving("");
    let ([cop, manager, server], port) = (s.pids(), s.addr());
    let mut kept = Client::connect(port).unwrap();
    assert_eq!(kept.get("/").unwrap().code, 200);
    for _ in 0..3 {
        let mark = s.mark();
        s.kill("manager", SIGKILL);
        assert_eq!(kept.get("/").unwrap().code, 200, "on the connection it had");
        assert_eq!(s.get("/").code, 200, "on a new one");
        s.wait(mark, &["traffic_manager", "event=adopt of=server"]);
    }
    assert_eq!((s.pid("cop"), s.pid("server"), s.addr()), (cop, server, port));
    assert_ne!(s.pid("manager"), manager);
    // the new one commands the server it adopted: it replaces it, on the same port
    let mark = s.mark();
    s.kill("server", SIGKILL);
    assert_eq!(s.get("/").code, 200);
    s.wait(mark, &["event=exit of=server"]);
    assert_eq!(s.addr(), port);
    s.stop();
}

#[test]
fn a_new_cop_adopts_both_and_keeps_their_listeners() {
    let mut s = Suite::serving(TIGHT);
    let ([_, manager, server], port) = (s.pids(), s.addr());
    let dead = s.kill("cop", SIGKILL);
    assert_eq!(s.get("/").code, 200);
    let mark = s.mark();
    s.start();
    assert_ne!(s.pid("cop"), dead);
    assert_eq!((s.pid("manager"), s.pid("server")), (manager, server));
    // the manager hands its fds to the cop it hasn't met, so that its own death costs nothing either
    s.wait(mark, &["event=new-cop"]);
    s.kill("manager", SIGKILL);
    s.wait(mark, &["traffic_manager", "event=adopt of=server"]);
    assert_eq!((s.addr(), s.pid("server")), (port, server));
    assert_eq!(s.get("/").code, 200);
    s.stop();
}

#[test]
fn a_new_cop_finds_out_that_the_manager_it_adopted_hangs() {
    let mut s = Suite::serving("");
    s.kill("cop", SIGKILL);
    // stopped after that: the kernel wakes a stopped process when its parent dies
    let stopped = s.kill("manager", SIGSTOP);
    let (mark, from) = (s.mark(), Instant::now());
    s.spawn_cop();
    s.wait(mark, &["traffic_manager", "event=adopt of=server"]);
    // by three heartbeats, not by the 30 s that a start may take
    assert!(from.elapsed() < Duration::from_secs(15), "{:?}", from.elapsed());
    assert_ne!(s.pid("manager"), stopped);
    s.stop();
}

#[test]
fn manager_and_server_killed_together_come_back_on_the_same_port() {
    let mut s = Suite::serving("");
    let port = s.addr();
    let mut kept = Client::connect(port).unwrap();
    kept.send("GET / HT").unwrap();
    s.kill("manager", SIGKILL);
    s.kill("server", SIGKILL);
    assert_eq!(s.get("/").code, 200, "cop has held the listeners");
    assert_eq!(s.addr(), port);
    s.stop();
}

#[test]
fn a_server_that_is_left_alone_gives_its_listeners_to_the_next_manager() {
    let mut s = Suite::serving("");
    let ([_, _, server], port) = (s.pids(), s.addr());
    let mut kept = Client::connect(port).unwrap();
    assert_eq!(kept.get("/").unwrap().code, 200);
    for _ in 0..3 {
        s.kill("cop", SIGKILL);
        s.kill("manager", SIGKILL);
        assert_eq!(s.get("/").code, 200, "it serves alone");
        s.start();
        assert_eq!((s.pid("server"), s.addr()), (server, port));
        assert_eq!(kept.get("/").unwrap().code, 200);
    }
    // one that hangs has to go: its port is needed
    let mark = s.mark();
    s.kill("server", SIGSTOP);
    s.kill("cop", SIGKILL);
    s.kill("manager", SIGKILL);
    s.start();
    s.wait(mark, &["event=kill of=server", "it hangs"]);
    assert_ne!(s.pid("server"), server);
    assert_eq!(s.get("/").code, 200);
    s.stop();
}

#[test]
fn all_three_killed_start_again_without_cleaning_anything() {
    let mut s = Suite::serving("");
    for _ in 0..3 {
        for p in ["cop", "manager", "server"] {
            s.kill(p, SIGKILL);
        }
        s.start();
        assert_eq!(s.get("/").code, 200);
    }
    s.stop();
}

#[test]
fn a_stopped_server_is_replaced_within_four_seconds_by_default() {
    let mut s = Suite::serving("");
    let from = Instant::now();
    let stopped = s.kill("server", SIGSTOP);
    assert_eq!(s.get("/").code, 200);
    let took = from.elapsed();
    assert_ne!(s.pid("server"), stopped);
    // 4 s on a machine with nothing else to do; tests share theirs
    assert!(took < Duration::from_secs(6), "{took:?}");
    s.stop();
}

#[test]
fn a_stopped_manager_is_replaced_and_the_server_stays() {
    let mut s = Suite::serving(TIGHT);
    let server = s.pid("server");
    let mark = s.mark();
    let stopped = s.kill("manager", SIGSTOP);
    assert_eq!(s.get("/").code, 200);
    s.wait(mark, &["traffic_manager", "event=adopt of=server"]);
    assert_ne!(s.pid("manager"), stopped);
    assert_eq!(s.pid("server"), server);
    s.stop();
}

#[test]
fn a_watcher_that_was_stopped_kills_nobody_when_it_wakes() {
    let mut s = Suite::serving(TIGHT);
    // the last thing that a start does
    s.wait(0, &["event=standby-ready"]);
    let before = s.pids();
    let mark = s.mark();
    s.kill("cop", SIGSTOP);
    // more than all its patience: (interval + timeout) x failures; nothing may happen meanwhile
    assert_eq!(s.log.try_wait(mark, &["event="], Duration::from_secs(3)), None);
    s.kill("cop", SIGCONT);
    // and then two rounds of its check, in which the old deadlines are long over
    assert_eq!(s.log.try_wait(mark, &["event=verdict"], Duration::from_secs(3)), None, "{}", s.log.text());
    assert_eq!(s.pids(), before);
    assert_eq!(s.get("/").code, 200);
    s.stop();
}

#[test]
fn the_classic_behaviour_takes_the_server_down_with_its_manager() {
    let mut s = Suite::serving("[cop]\non_manager_death = \"kill\"\n");
    let [_, manager, server] = s.pids();
    let process = supervisor::pidfd::PidFd::open(server).unwrap();
    let mark = s.mark();
    s.kill("manager", SIGKILL);
    s.wait(mark, &["event=kill of=server"]);
    assert!(process.poll_exit(LONG).unwrap().is_some());
    assert_eq!(s.get("/").code, 200);
    assert_ne!((s.pid("manager"), s.pid("server")), (manager, server));
    assert_ne!(s.pid("server"), server);
    s.stop();
}

#[test]
fn other_ways_to_die_are_answered_alike() {
    let mut s = Suite::serving("");
    for signal in [SIGSEGV, SIGTERM, nix::libc::SIGABRT] {
        let mark = s.mark();
        let dead = s.kill("server", signal);
        s.wait(mark, &["event=exit", &format!("pid={dead}:")]);
        assert_eq!(s.get("/").code, 200);
        assert_ne!(s.pid("server"), dead);
    }
    s.stop();
}

#[test]
fn a_hung_standby_costs_two_seconds_and_no_more() {
    let mut s = Suite::serving("");
    let line = s.wait(0, &["event=standby-ready"]);
    let standby: i32 = line.rsplit('=').next().unwrap().parse().unwrap();
    supervisor::pidfd::PidFd::open(standby).unwrap().signal(SIGSTOP).unwrap();
    let from = Instant::now();
    s.kill("server", SIGKILL);
    assert_eq!(s.get("/").code, 200);
    assert!(from.elapsed() < Duration::from_secs(8), "{:?}", from.elapsed());
    s.stop();
}

#[test]
fn a_stopped_server_is_killed_even_with_a_core_signal_that_it_can_not_hear() {
    let mut s = Suite::serving(&TIGHT.replace("[cop]", "[cop]\ncore_signal = \"SIGABRT\""));
    let stopped = s.kill("server", SIGSTOP);
    assert_eq!(s.get("/").code, 200);
    assert_ne!(s.pid("server"), stopped);
    s.stop();
}
