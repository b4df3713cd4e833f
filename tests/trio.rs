//! The three programs as an operator meets them: start, stop, status, restart, reload, and every refusal with its code.

mod common;

use common::*;
use std::net::TcpListener;
use supervisor::pidfd::PidFd;

/// A daemonized suite must not outlive its test.
struct Daemon<'a>(&'a Suite);

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let _ = self.0.run(COP, &["stop"]);
    }
}

#[test]
fn a_daemon_starts_serves_and_leaves_nothing() {
    let s = Suite::new("");
    expect_code(&s.run(COP, &["status"]), 3);
    let _end = Daemon(&s);
    expect_code(&s.run(COP, &["start"]), 0);
    // it serves when start has returned, not later
    assert_eq!(s.get("/").code, 200);
    let json = expect_code(&s.run(COP, &["status", "--json"]), 0);
    let v: serde_json::Value = serde_json::from_str(json.trim()).unwrap();
    assert_eq!(v["suite"]["state"], "serving");
    // the standby may be there already
    let rows = v["processes"].as_array().unwrap();
    assert!(rows.len() == 3 || rows.len() == 4, "{json}");
    for (row, pid) in rows.iter().zip(s.pids()) {
        assert_eq!(row["pid"], pid);
    }
    // detached: own session, root directory, no terminal, nothing of ours open
    let cop = s.pid("cop");
    let stat = std::fs::read_to_string(format!("/proc/{cop}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    assert_ne!(fields[3].parse::<i32>().unwrap(), nix::unistd::getsid(None).unwrap().as_raw(), "its session");
    assert_eq!(fields[4], "0", "no controlling terminal");
    assert_eq!(std::fs::read_link(format!("/proc/{cop}/cwd")).unwrap().to_str(), Some("/"));
    // a second one is refused and told who is there
    let refused = expect_code(&s.run(COP, &["start"]), 75);
    assert!(refused.contains(&format!("pid {cop}")), "{refused}");
    assert_eq!(s.get("/").code, 200);
    expect_code(&s.run(COP, &["stop"]), 0);
    s.assert_clean();
    expect_code(&s.run(COP, &["status"]), 3);
    expect_code(&s.run(COP, &["stop"]), 3);
}

#[test]
fn restart_keeps_the_options_of_the_running_suite() {
    let s = Suite::new("");
    let _end = Daemon(&s);
    expect_code(&s.run(COP, &["start", "--set", "manager.respawn.give_up_after=7"]), 0);
    let before = s.pids();
    expect_code(&s.run(COP, &["restart"]), 0);
    let after = s.pids();
    assert!(before.iter().all(|p| !after.contains(p)), "{before:?} {after:?}");
    let cmdline = std::fs::read_to_string(format!("/proc/{}/cmdline", s.pid("manager"))).unwrap();
    assert!(cmdline.contains("give_up_after=7"), "{cmdline:?}");
    // and those of the one before
    expect_code(&s.run(COP, &["restart"]), 0);
    let cmdline = std::fs::read_to_string(format!("/proc/{}/cmdline", s.pid("manager"))).unwrap();
    assert!(cmdline.contains("give_up_after=7"), "{cmdline:?}");
}

#[test]
fn an_upgrade_replaces_all_three_and_open_connections_go_on() {
    let s = Suite::new("");
    let _end = Daemon(&s);
    expect_code(&s.run(COP, &["upgrade"]), 3);
    expect_code(&s.run(COP, &["start", "--set", "manager.respawn.give_up_after=7"]), 0);
    let mut client = Client::connect(s.addr()).unwrap();
    assert_eq!(client.get("/").unwrap().code, 200);
    for _ in 0..2 {
        let (before, port) = (s.pids(), s.addr());
        expect_code(&s.run(COP, &["upgrade"]), 0);
        let after = s.pids();
        assert!(before.iter().all(|p| !after.contains(p)), "{before:?} {after:?}");
        assert_eq!(s.addr(), port);
        assert_eq!(client.get("/").unwrap().code, 200);
        let cmdline = std::fs::read_to_string(format!("/proc/{}/cmdline", after[1])).unwrap();
        assert!(cmdline.contains("give_up_after=7"), "{cmdline:?}");
    }
    // a configuration that is wrong by now is found before anything is touched
    let before = s.pids();
    s.write_config("[server]\nno_such_key = 1\n");
    expect_code(&s.run(COP, &["upgrade"]), 78);
    assert_eq!(s.pids(), before);
    s.write_config("[server]\nlisten = [\"127.0.0.1:0\"]\n");
}

#[test]
fn a_port_in_use_is_said_and_nothing_stays() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let s = Suite::new("");
    s.write_config(&format!("[server]\nlisten = [\"{addr}\"]\n"));
    let said = expect_code(&s.run(COP, &["start"]), 71);
    assert!(said.contains(&addr) && said.contains("in use"), "{said}");
    s.assert_clean();
    // the same in the foreground
    expect_code(&s.run(COP, &["start", "-f"]), 71);
    s.assert_clean();
}

#[test]
fn all_faults_of_a_configuration_are_said_at_once_with_their_lines() {
    let s = Suite::new("");
    s.write_config(
        "[server]\nlisten = [\"127.0.0.1:99999\"]\nlisten_on = 1\nthreads = \"many\"\n[[route]]\nhost = \"*\"\nprefix = \"/\"\norigin = [\"gopher://x\"]\n[cop\n",
    );
    let syntax = expect_code(&s.run(COP, &["start"]), 78);
    assert!(syntax.contains("traffic.toml:"), "{syntax}");
    s.write_config(
        "[server]\nlisten = [\"127.0.0.1:99999\"]\nlisten_on = 1\nthreads = \"many\"\n[[route]]\nhost = \"*\"\nprefix = \"/\"\norigin = [\"gopher://x\"]\n",
    );
    for program in [COP, MANAGER, SERVER] {
        let verb = if program == COP { "start" } else { "run" };
        let said = expect_code(&s.run(program, &[verb]), 78);
        // the head written for every test has four lines
        for (line, what) in [(6, "99999"), (7, "listen_on"), (8, "many"), (12, "gopher")] {
            let place = format!("traffic.toml:{line}");
            assert!(said.lines().any(|l| l.contains(&place) && l.contains(what)), "{what} in {said}");
        }
    }
    let check = expect_code(&s.run(MANAGER, &["check-config"]), 78);
    assert!(check.contains("listen_on"), "{check}");
}

#[test]
fn a_start_waits_for_a_cop_that_was_just_killed() {
    let s = Suite::new("");
    let _end = Daemon(&s);
    expect_code(&s.run(COP, &["start"]), 0);
    let others = [s.pid("manager"), s.pid("server")];
    for _ in 0..5 {
        // it needs a moment to die, and nobody waits for that here
        PidFd::open(s.pid("cop")).unwrap().signal(SIGKILL).unwrap();
        expect_code(&s.run(COP, &["start"]), 0);
    }
    assert_eq!([s.pid("manager"), s.pid("server")], others);
    // one that lives isn't waited for
    assert!(expect_code(&s.run(COP, &["start"]), 75).contains("already running"));
}

#[test]
fn programs_that_can_not_be_run_are_warned_of() {
    let s = Suite::new("");
    let there = s.path("there");
    std::fs::write(&there, "").unwrap();
    s.write_config(&format!(
        "[server]\ncommand = [\"/no/such\"]\n[[job]]\nname = \"a\"\ncommand = [\"no-such-program\"]\nready = [\"true\"]\n\
         alive = [{there:?}]\n[[job]]\nname = \"b\"\ncommand = [\"sh\", \"-c\", \"x\"]\n"
    ));
    let said = expect_code(&s.run(MANAGER, &["check-config"]), 0);
    let warnings: Vec<&str> = said.lines().filter(|l| l.starts_with("warning: ")).collect();
    assert_eq!(warnings.len(), 3, "{said}");
    assert!(
        warnings[0].starts_with("warning: server.command: \"/no/such\" can't be run: No such file"),
        "{said}"
    );
    assert_eq!(
        warnings[1],
        "warning: job \"a\": job.command: \"no-such-program\" can't be run: it isn't in PATH"
    );
    assert!(warnings[2].contains("job.alive") && warnings[2].contains("Permission denied"), "{said}");
}

#[test]
fn a_wrong_command_line_is_usage() {
    let s = Suite::new("");
    expect_code(&s.run(COP, &["start", "--no-such-option"]), 64);
    expect_code(&s.run(COP, &["fly"]), 64);
    expect_code(&s.run(MANAGER, &[]), 64);
    let mut missing = clean(COP);
    missing.args(["start", "-c", "/nonexistent/traffic.toml"]);
    let said = expect_code(&output(missing), 78);
    assert!(said.contains("/nonexistent/traffic.toml"), "{said}");
}

#[test]
fn a_runtime_directory_that_is_a_link_is_refused() {
    let s = Suite::new("");
    std::fs::create_dir(s.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink(s.path("elsewhere"), s.run_dir()).unwrap();
    let said = expect_code(&s.run(COP, &["start"]), 71);
    assert!(said.contains("run"), "{said}");
    assert_eq!(std::fs::read_dir(s.path("elsewhere")).unwrap().count(), 0);
}

#[test]
fn a_server_that_can_not_be_started_ends_the_start_with_its_reason() {
    let s = Suite::new("");
    s.write_config("[server]\nlisten = [\"127.0.0.1:0\"]\ncommand = [\"/nonexistent/server\"]\n");
    let said = expect_code(&s.run(COP, &["start"]), 71);
    assert!(said.contains("/nonexistent/server") && said.contains("No such file"), "{said}");
    s.assert_clean();
}

#[test]
fn a_server_that_never_gets_ready_ends_the_start_in_time() {
    let s = Suite::new("");
    s.write_config(
        "[server]\nlisten = [\"127.0.0.1:0\"]\ncommand = [\"/bin/sleep\", \"1000\"]\ndrain_timeout = \"1s\"\n[cop]\nstart_grace = \"1s\"\n",
    );
    let said = expect_code(&s.run(COP, &["start"]), 1);
    assert!(said.contains("not serving after 1s"), "{said}");
    s.assert_clean();
}

#[test]
fn a_log_on_a_full_disk_does_not_stop_the_suite() {
    let s = Suite::new("");
    let _end = Daemon(&s);
    expect_code(&s.run(COP, &["start", "--set", "suite.log_file=\"/dev/full\""]), 0);
    s.kill("server", SIGKILL);
    assert_eq!(s.get("/").code, 200);
}

#[test]
fn reload_takes_a_right_configuration_and_refuses_a_wrong_one() {
    let mut s = Suite::serving("");
    let first = s.pid("server");
    assert_eq!(s.get("/").code, 200, "the welcome page");
    s.write_config("[server]\nlisten = [\"127.0.0.1:0\"]\nlisten_on = 1\n");
    let said = expect_code(&s.run(COP, &["reload"]), 78);
    assert!(said.contains("listen_on"), "{said}");
    assert_eq!(s.pid("server"), first);
    // nobody listens there: the route is seen by its 502
    s.write_config(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n[[route]]\nhost = \"*\"\nprefix = \"/\"\norigin = [\"http://127.0.0.1:1\"]\n",
    );
    let (port, manager) = (s.addr(), s.pid("manager"));
    expect_code(&s.run(COP, &["reload"]), 0);
    assert_ne!(s.pid("server"), first);
    assert_eq!((s.addr(), s.pid("manager")), (port, manager));
    assert_eq!(s.get("/").code, 502);
    s.stop();
}

#[test]
fn a_stop_that_comes_during_the_start_is_obeyed() {
    let mut s = Suite::new("[cop]\nstart_grace = \"20s\"\n");
    let mark = s.mark();
    s.spawn_cop();
    // as early as can be told that it runs
    s.wait(mark, &["traffic_cop", "event=start"]);
    s.stop();
}

#[test]
fn another_program_gets_the_listeners_and_is_kept_up() {
    let mut s = Suite::new("");
    // our own server, in the place of somebody's: it has its own runtime directory and knows nothing of this suite
    let other = s.path("other");
    s.write_config(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\ncommand = [{SERVER:?}, \"run\", \"--runtime-dir\", {other:?}, \"--set\", \"suite.allow_root=true\", \"--set\", \"server.listen=[\\\"127.0.0.1:0\\\"]\"]\n"
    ));
    s.start();
    assert_eq!(s.get("/").code, 200);
    let lock = other.join("server.lock");
    let first = lockfile::Lockfile::holder(&lock).unwrap().unwrap().pid;
    let mark = s.mark();
    PidFd::open(first).unwrap().signal(SIGKILL).unwrap();
    assert_eq!(s.get("/").code, 200, "waited in the backlog");
    s.wait(mark, &["event=spawn of=server"]);
    let second = lockfile::Lockfile::holder(&lock).unwrap().unwrap().pid;
    assert_ne!(first, second);
    let foreign = PidFd::open(second).unwrap();
    s.stop();
    assert!(foreign.poll_exit(LONG).unwrap().is_some());
}
