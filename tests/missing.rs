//! What is missing while the suite runs, or when somebody dies: its files, its sockets, who knows an origin's name.

mod common;

use common::origin::Origin;
use common::*;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// The resolver says nothing from a moment on, and then the server is killed.
#[test]
fn an_origin_is_found_while_nobody_knows_its_name() {
    if !is_root() {
        return;
    }
    let origin = Origin::start();
    let mut s = Suite::new("");
    let (hosts, conf) = (s.path("hosts"), s.path("resolv.conf"));
    fs::write(&hosts, "127.0.0.1 origin.test\n").unwrap();
    fs::write(&conf, "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n").unwrap();
    let route = origin.route().replace("127.0.0.1", "origin.test");
    s.write_config(&format!("[server]\nlisten = [\"127.0.0.1:0\"]\n{route}"));
    s.in_the_place_of(&[("/etc/hosts", &hosts), ("/etc/resolv.conf", &conf)]);
    s.start();
    assert_eq!(s.get("/one").code, 200);
    // the next server has asked for it while there was an answer
    let asks = |pid: i64| {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        tasks
            .map(|t| fs::read_to_string(t.path().join("comm")).unwrap_or_default())
            .any(|c| c.trim() == "names")
    };
    let standby = |s: &Suite| {
        let all = expect_code(&s.run(MANAGER, &["status"]), 0);
        let all: serde_json::Value = serde_json::from_str(&all).unwrap();
        all["standby"]["pid"].as_i64().filter(|_| all["standby"]["state"] == "ready")
    };
    s.until("the standby has asked", || standby(&s).is_some_and(|pid| !asks(pid)));
    fs::write(&hosts, "").unwrap();
    s.kill("server", SIGKILL);
    assert_eq!(s.get("/two").code, 200, "{}", s.log.text());
    // those after it have had no answer, but know what the others had; so they do after another manager, and another cop
    s.wait(0, &["event=resolve-failed origin=origin.test", "its last addresses count"]);
    for who in ["server", "manager", "server", "cop", "manager", "server", "server"] {
        let mark = s.mark();
        s.kill(who, SIGKILL);
        match who {
            "manager" => drop(s.wait(mark, &["traffic_manager", "event=adopt of=server"])),
            "cop" => {
                s.start();
                common::jobs::until_kept(&s);
            }
            _ => {}
        }
        assert_eq!(s.get("/three").code, 200, "after {who}: {}", s.log.text());
    }
    s.stop();
}

/// Somebody cleans up where a suite runs: nobody would find it any more, and a second one could be started beside it.
#[test]
fn files_that_are_removed_are_made_anew() {
    let mut s = Suite::new("");
    common::jobs::config(&s, &format!("{TIGHT}[[job]]\nname = \"job\"\ncommand = [\"sleep\", \"1000\"]\n"));
    s.start();
    let (addr, cop) = (s.addr(), s.pid("cop"));
    let serves = |s: &Suite| {
        s.until("it serves", || {
            s.run(COP, &["status"]).status.code() == Some(0) && s.try_pid("cop") == Some(cop)
        });
    };
    serves(&s);
    let job = common::jobs::pid(&s, "job");
    let mut kept = Client::connect(addr).unwrap();
    assert_eq!(kept.get("/").unwrap().code, 200);
    // all of them: manager and server are followed by others that can be reached
    let mark = s.mark();
    fs::remove_dir_all(s.run_dir()).unwrap();
    s.wait(mark, &["traffic_cop", "event=files-restored"]);
    s.wait(mark, &["traffic_manager", "event=start"]);
    assert_eq!(kept.get("/").unwrap().code, 200, "on the connection it had");
    serves(&s);
    assert_eq!((s.addr(), common::jobs::pid(&s, "job")), (addr, job));
    // the manager's, one after the other: there is another manager, and the same server
    let server = s.pid("server");
    for name in ["ports", "manager.notify", "manager.sock"] {
        let mark = s.mark();
        fs::remove_file(s.run_dir().join(name)).unwrap();
        s.wait(mark, &["traffic_manager", "event=start"]);
        s.wait(mark, &["traffic_cop", "event=state of=manager from=starting to=ready"]);
        assert_eq!(kept.get("/").unwrap().code, 200);
        serves(&s);
    }
    assert_eq!(server, s.pid("server"));
    // cop's own, one after the other: everybody else goes on, and what cop is to keep it keeps
    let others = ["manager", "server"].map(|p| s.pid(p));
    for name in ["cop.lock", "cop.notify", "heartbeat.token"] {
        let mark = s.mark();
        fs::remove_file(s.run_dir().join(name)).unwrap();
        s.wait(mark, &["traffic_cop", "event=files-restored"]);
        serves(&s);
    }
    // a server that is just starting may have made another one
    let token = s.run_dir().join("heartbeat.token");
    let (right, mark) = (fs::read_to_string(&token).unwrap(), s.mark());
    fs::write(&token, "0".repeat(32)).unwrap();
    s.wait(mark, &["traffic_cop", "event=files-restored"]);
    assert_eq!(fs::read_to_string(&token).unwrap(), right);
    serves(&s);
    assert_eq!(others, ["manager", "server"].map(|p| s.pid(p)));
    // the next server has the same token, the next manager what cop has kept
    common::jobs::until_kept(&s);
    s.kill("server", SIGKILL);
    s.kill("manager", SIGKILL);
    serves(&s);
    assert_eq!(common::jobs::pid(&s, "job"), job);
    assert_eq!(kept.get("/").unwrap().code, 200, "on the connection it had");
    // nobody can be started beside it, also before cop has looked
    assert!(expect_code(&s.run(COP, &["start"]), 75).contains("already running"));
    fs::remove_dir_all(s.run_dir()).unwrap();
    assert!(expect_code(&s.run(COP, &["start"]), 75).contains("already running"));
    serves(&s);
    s.stop();
}

/// What can't be made anew proves nothing: whoever works goes on.
#[test]
fn files_that_can_not_be_made_anew_are_no_reason_to_kill_anybody() {
    let mut s = Suite::serving(TIGHT);
    let (pids, addr) = (s.pids(), s.addr());
    let mut kept = Client::connect(addr).unwrap();
    let (run, aside, mark) = (s.run_dir(), s.path("aside"), s.mark());
    fs::rename(&run, &aside).unwrap();
    std::os::unix::fs::symlink(s.path("nowhere"), &run).unwrap();
    s.wait(mark, &["traffic_cop", "event=files-lost"]);
    s.wait(mark, &["traffic_cop", "event=heartbeat-failed of=manager"]);
    assert_eq!(kept.get("/").unwrap().code, 200);
    fs::remove_file(&run).unwrap();
    fs::rename(&aside, &run).unwrap();
    s.wait(mark, &["traffic_cop", "event=files-found"]);
    s.until("it serves", || s.run(COP, &["status"]).status.code() == Some(0));
    assert_eq!(s.pids(), pids);
    assert!(!s.log.text().contains("event=signal"), "{}", s.log.text());
    s.stop();
}

/// Its file is all by which a Unix socket is found.
#[test]
fn a_unix_socket_that_is_removed_is_made_anew() {
    let mut s = Suite::new("");
    let socket = s.path("http.sock");
    let listen = format!("[server]\nlisten = [\"127.0.0.1:0\", \"unix:{}\"]\n", socket.display());
    s.write_config(&format!("{listen}{TIGHT}"));
    s.start();
    s.wait(0, &["event=standby-ready"]);
    let asks = || -> std::io::Result<bool> {
        let mut c = UnixStream::connect(&socket)?;
        c.write_all(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        c.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    };
    assert!(asks().unwrap());
    let mut kept = Client::connect(s.addr()).unwrap();
    for _ in 0..2 {
        fs::remove_file(&socket).unwrap();
        assert_eq!(kept.get("/").unwrap().code, 200);
        s.until("it is there again", || asks().is_ok_and(|well| well));
        assert_eq!(kept.get("/").unwrap().code, 200);
        common::jobs::until_kept(&s);
        let mark = s.mark();
        s.kill("manager", SIGKILL);
        s.wait(mark, &["traffic_manager", "event=adopt of=server"]);
        s.kill("server", SIGKILL);
        assert!(asks().unwrap(), "{}", s.log.text());
        s.wait(mark, &["event=standby-ready"]);
    }
    s.stop();
}

/// Another program takes the admin address in the moment in which a manager is dead.
#[test]
fn an_admin_address_that_somebody_else_has_is_no_reason_for_no_manager() {
    // nobody knows which port is free later: one is taken, and let go just before
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = held.local_addr().unwrap();
    let mut s = Suite::new("");
    s.write_config(&format!("[manager]\nadmin = \"{addr}\"\n[server]\nlisten = [\"127.0.0.1:0\"]\n"));
    // at a start it is a mistake
    let said = expect_code(&s.run(COP, &["start", "-f"]), 71);
    assert!(said.contains(&format!("manager.admin {addr}: Address")), "{said}");
    drop(held);
    s.start();
    s.wait(0, &[&format!("event=admin listen={addr}")]);
    // nobody starts the next manager before the address is taken
    let mark = s.mark();
    let cop = s.kill("cop", SIGSTOP);
    s.kill("manager", SIGKILL);
    let mut theirs = None;
    s.until("the address is free", || {
        theirs = std::net::TcpListener::bind(addr).ok();
        theirs.is_some()
    });
    supervisor::pidfd::PidFd::open(cop).unwrap().signal(SIGCONT).unwrap();
    s.wait(mark, &["event=admin-failed", &format!("listen={addr}")]);
    s.wait(mark, &["traffic_manager", "event=adopt of=server"]);
    assert_eq!(s.get("/").code, 200);
    drop(theirs);
    s.wait(mark, &[&format!("event=admin listen={addr}")]);
    s.stop();
}
