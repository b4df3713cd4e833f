//! A suite that is started by root and whose server is somebody else. Only root can see that; for others there is nothing
//! to test.

mod common;

use common::*;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

/// On every Linux system, with no rights anywhere.
const USER: &str = "nobody";

fn uid() -> u32 {
    nix::unistd::User::from_name(USER).unwrap().unwrap().uid.as_raw()
}

/// A suite whose server is somebody else: directory and programs are where everybody can come to them.
fn shared(user: &str, more: &str) -> Suite {
    let mut s = Suite::new("");
    fs::set_permissions(s.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    s.own_programs();
    let text = format!(
        "[suite]\nuser = {user:?}\nruntime_dir = {:?}\nstate_dir = {:?}\n\
         [server]\nlisten = [\"127.0.0.1:0\"]\ndrain_timeout = \"3s\"\n{more}",
        s.run_dir(),
        s.path("state")
    );
    fs::write(s.path("traffic.toml"), text).unwrap();
    s
}

/// /proc/PID/status, by name.
fn status(pid: i32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let pair = |l: &str| l.split_once(':').map(|(k, v)| (k.to_owned(), v.trim().replace('\t', " ")));
    text.lines().filter_map(pair).collect()
}

#[track_caller]
fn assert_has_nothing(pid: i32) {
    let (s, uid) = (status(pid), uid());
    assert_eq!(s["Uid"], format!("{uid} {uid} {uid} {uid}"));
    let gid = nix::unistd::User::from_name(USER).unwrap().unwrap().gid;
    assert_eq!(s["Gid"], format!("{gid} {gid} {gid} {gid}"));
    assert_eq!(s["Groups"], gid.to_string());
    assert_eq!(s["NoNewPrivs"], "1");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(s[set], "0000000000000000", "{set}");
    }
}

fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_whitespace().map(|p| p.parse().unwrap()).collect()
}

#[test]
fn the_server_has_no_privileges_and_continuity_all_the_same() {
    if !is_root() {
        return;
    }
    let mut s = shared(USER, "");
    let mark = s.mark();
    s.start();
    s.wait(mark, &["event=standby-ready"]);
    let [cop, manager, server] = s.pids();
    assert!(status(cop)["Uid"].starts_with("0 ") && status(manager)["Uid"].starts_with("0 "));
    // the server, its keeper, the standby and its keeper
    let servers: Vec<i32> =
        children(manager).into_iter().filter(|p| !status(*p)["Uid"].starts_with("0 ")).collect();
    assert!(servers.contains(&server) && servers.len() == 2, "{servers:?}");
    for p in servers.iter().copied().chain(servers.iter().flat_map(|p| children(*p))) {
        assert_has_nothing(p);
    }
    assert_eq!(children(server).len(), 1, "a keeper");
    // who may what in the runtime directory
    let modes = |name: &str| {
        let m = fs::symlink_metadata(s.run_dir().join(name)).unwrap();
        (m.uid(), m.mode() & 0o777)
    };
    assert_eq!(fs::metadata(s.run_dir()).unwrap().mode() & 0o777, 0o750);
    assert_eq!(fs::metadata(s.run_dir()).unwrap().uid(), 0);
    assert_eq!(modes("server.lock"), (0, 0o660));
    assert_eq!(modes("manager.notify"), (0, 0o660));
    assert_eq!(modes("heartbeat.token"), (0, 0o640));
    assert_eq!(modes("manager.sock"), (0, 0o600));
    assert_eq!(modes("cop.notify"), (0, 0o600));
    // and every death is survived by an open connection
    let mut client = Client::connect(s.addr()).unwrap();
    assert_eq!(client.get("/").unwrap().code, 200);
    for program in ["server", "manager", "server", "cop", "server"] {
        let mark = s.mark();
        s.kill(program, SIGKILL);
        if program == "cop" {
            s.start();
        }
        assert_eq!(client.get("/").unwrap().code, 200, "after {program}:\n{}", s.log.text());
        match program {
            "server" => s.wait(mark, &["event=standby-ready"]),
            "manager" => s.wait(mark, &["event=adopt of=server"]),
            _ => s.wait(mark, &["event=new-cop"]),
        };
        assert_has_nothing(s.pid("server"));
    }
    let before = s.pid("server");
    expect_code(&s.run(COP, &["reload"]), 0);
    assert_ne!(s.pid("server"), before);
    assert_has_nothing(s.pid("server"));
    assert_eq!(client.get("/").unwrap().code, 200, "{}", s.log.text());
    expect_code(&s.run(COP, &["status"]), 0);
    s.stop();
}

#[test]
fn root_does_not_serve_unless_it_is_allowed_to() {
    if !is_root() {
        return;
    }
    let s = Suite::new("");
    let refuse = ["start", "--set", "suite.allow_root=false"];
    let said = expect_code(&s.run(COP, &refuse), 78);
    assert!(said.contains("suite.user") && said.contains("suite.allow_root"), "{said}");
    assert!(!s.run_dir().exists(), "nothing is made before");
    let said = expect_code(
        &s.run(COP, &["start", "--set", "suite.allow_root=false", "--set", "suite.user=root"]),
        78,
    );
    assert!(said.contains("would run as root"), "{said}");
    // whoever starts it
    let said = expect_code(&s.run(SERVER, &["run", "--set", "suite.allow_root=false"]), 78);
    assert!(said.contains("would run as root"), "{said}");
    let said = expect_code(&s.run(COP, &["start", "--set", "suite.user=no-such-user"]), 78);
    assert!(said.contains("no-such-user"), "{said}");
    let said = expect_code(&s.run(MANAGER, &["check-config", "--set", "suite.user=no-such-user"]), 78);
    assert!(said.contains("no-such-user"), "{said}");
    s.write_config(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nunix_group = \"no-such-group\"\n\
         [[job]]\nname = \"a\"\ncommand = [\"true\"]\nuser = \"no-such-worker\"\n",
    );
    let o = s.run(MANAGER, &["check-config", "--set", "suite.allow_root=false"]);
    let said = format!("{}{}", expect_code(&o, 78), String::from_utf8_lossy(&o.stderr));
    for all in ["no-such-group", "job \"a\"", "no-such-worker", "started by root, it is refused"] {
        assert!(said.contains(all), "{all}: {said}");
    }
    s.write_config("[server]\nlisten = [\"127.0.0.1:0\"]\n");
    let said = expect_code(&s.run(COP, &["start", "--set", "suite.group=daemon"]), 78);
    assert!(said.contains("needs suite.user"), "{said}");
}

#[test]
fn a_closed_runtime_directory_is_named() {
    if !is_root() {
        return;
    }
    let s = shared(USER, "");
    fs::create_dir(s.run_dir()).unwrap();
    fs::set_permissions(s.run_dir(), fs::Permissions::from_mode(0o700)).unwrap();
    let said = expect_code(&s.run(COP, &["start", "-f"]), 71);
    assert!(said.contains("keep user nobody out") && said.contains("run"), "{said}");
    assert_eq!(fs::metadata(s.run_dir()).unwrap().mode() & 0o777, 0o700, "left as it was");
}

#[test]
fn the_cache_on_disk_is_the_servers_and_nothing_else_of_the_state() {
    if !is_root() {
        return;
    }
    let origin = origin::Origin::start();
    let mut s = shared(
        USER,
        &format!("access_log = \"common\"\n[server.cache]\ndisk = \"16MiB\"\n{}", origin.route()),
    );
    s.start();
    assert_eq!(s.get("/cacheable").text(), "/cacheable");
    let (state, cache) =
        (fs::metadata(s.path("state")).unwrap(), fs::metadata(s.path("state/cache")).unwrap());
    assert_eq!((state.uid(), cache.uid()), (0, uid()));
    s.stop();
    assert!(!s.log.text().contains("ERROR"), "{}", s.log.text());
    let kept: Vec<_> =
        fs::read_dir(s.path("state/cache")).unwrap().map(|e| e.unwrap().metadata().unwrap()).collect();
    assert_eq!(lines_with(&s.path("state/access.log"), "GET /cacheable").len(), 1);
    assert!(!kept.is_empty() && kept.iter().all(|f| f.uid() == uid()), "{kept:?}");
}

#[test]
fn limits_and_priorities_are_set_by_list() {
    if !is_root() {
        return;
    }
    let mut s = shared(USER, "nofile = 4321\nnice = 3\noom_score_adj = 55\n");
    s.start();
    let [cop, manager, server] = s.pids();
    let oom = |pid: i32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().to_owned();
    // lowering it is a capability of its own, which a container's root may lack
    let sys_resource = u64::from_str_radix(&status(cop)["CapEff"], 16).unwrap() & 1 << 24 != 0;
    let ours = oom(std::process::id() as i32);
    let want = if sys_resource { ["-900", "-800", "55"] } else { [&ours, &ours, "55"] };
    assert_eq!([oom(cop), oom(manager), oom(server)], want.map(str::to_owned));
    let nice = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(')').next().unwrap().split_whitespace().nth(16).unwrap().parse::<i32>().unwrap()
    };
    assert_eq!(nice(server) - nice(manager), 3);
    let limits = fs::read_to_string(format!("/proc/{server}/limits")).unwrap();
    let files = limits.lines().find(|l| l.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().nth(3), Some("4321"));
    s.stop();
}

#[test]
fn another_program_in_the_servers_place_has_no_privileges_either() {
    if !is_root() {
        return;
    }
    let script =
        "printf 'READY=1' | socat -u - UNIX-SENDTO:$NOTIFY_SOCKET 2>/dev/null; id -u; exec sleep 1000";
    let s =
        shared(USER, &format!("command = [\"/bin/sh\", \"-c\", {script:?}]\n[cop]\nstart_grace = \"2s\"\n"));
    let said = expect_code(&s.run(COP, &["start", "-f"]), 1);
    assert!(said.lines().any(|l| l == uid().to_string()), "{said}");
}

/// Users may be kept elsewhere, and nobody there may answer when somebody dies.
#[test]
fn whom_nobody_knows_any_more_goes_on_as_who_he_was() {
    if !is_root() {
        return;
    }
    let mut s =
        shared("someone", "[[job]]\nname = \"job\"\nuser = \"someone\"\ncommand = [\"sleep\", \"1000\"]\n");
    let (passwd, group) = (s.path("passwd"), s.path("group"));
    let add = |to: &std::path::Path, from: &str, line: &str| {
        fs::write(to, fs::read_to_string(from).unwrap() + line).unwrap();
    };
    add(&passwd, "/etc/passwd", "someone:x:54321:54321::/:/bin/false\n");
    add(&group, "/etc/group", "someone:x:54321:\n");
    s.in_the_place_of(&[("/etc/passwd", &passwd), ("/etc/group", &group)]);
    s.start();
    let uid_of = |pid: i32| fs::metadata(format!("/proc/{pid}")).map(|m| m.uid()).unwrap_or(u32::MAX);
    let job = |s: &Suite| common::jobs::workers(s, "job")[0]["pid"].as_i64().unwrap_or(0) as i32;
    s.until("the job is there", || job(&s) > 0 && uid_of(job(&s)) == 54321);
    assert_eq!(uid_of(s.pid("server")), 54321);
    // nobody knows him
    for (file, from) in [(&passwd, "/etc/passwd"), (&group, "/etc/group")] {
        fs::write(file, fs::read_to_string(from).unwrap()).unwrap();
    }
    let all_go_on = |s: &Suite| {
        for _ in 0..3 {
            s.kill("server", SIGKILL);
            assert_eq!(s.get("/").code, 200, "{}", s.log.text());
            assert_eq!(uid_of(s.pid("server")), 54321);
        }
        let old = job(s);
        supervisor::pidfd::PidFd::open(old).unwrap().signal(SIGKILL).unwrap();
        s.until("another one works", || ![0, old].contains(&job(s)) && uid_of(job(s)) == 54321);
    };
    all_go_on(&s);
    common::jobs::until_kept(&s);
    let mark = s.mark();
    s.kill("manager", SIGKILL);
    s.wait(mark, &["traffic_manager", "event=adopt of=server"]);
    all_go_on(&s);
    // a reload would ask for him, and is refused
    let said = expect_code(&s.run(MANAGER, &["reload"]), 1);
    assert!(said.contains("there is no user \"someone\""), "{said}");
    all_go_on(&s);
    // the next cop finds a suite that runs
    s.kill("cop", SIGKILL);
    s.start();
    all_go_on(&s);
    s.stop();
}

/// The manager opens the files of jobs' output; it is root, and these users may put there what they like.
#[test]
fn no_jobs_user_has_the_manager_append_to_files_of_others() {
    if !is_root() {
        return;
    }
    let mut s = Suite::new("");
    fs::set_permissions(s.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let secret = s.path("secret");
    fs::write(&secret, "secret\n").unwrap();
    let theirs = s.path("theirs");
    fs::create_dir(&theirs).unwrap();
    std::os::unix::fs::chown(&theirs, Some(uid()), None).unwrap();
    // where only root can write, another link all the same; unless this is built where anybody can
    let ours = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::set_permissions(ours.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let links = [theirs.join("loud"), theirs.join("own"), ours.path().join("link")];
    links.iter().for_each(|l| std::os::unix::fs::symlink(&secret, l).unwrap());
    fs::hard_link(&secret, ours.path().join("second")).unwrap_or_default();
    let gate = s.path("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::chown(&gate, Some(uid()), None).unwrap();
    let script = format!(
        "echo begun; echo >&$NOTIFY_FD; while :; do read line <{} && echo $line; done",
        gate.display()
    );
    let job = |name: &str, out: &std::path::Path, more: &str, script: &str| {
        format!(
            "[[job]]\nname = {name:?}\nuser = {USER:?}\nready = \"fd\"\nstdout = {out:?}\nstderr = \"null\"\n{more}\
             command = [\"sh\", \"-c\", {script:?}]\n"
        )
    };
    let once = "echo begun; echo >&$NOTIFY_FD; exec sleep 1000";
    common::jobs::config(
        &s,
        &[
            job("loud", &links[0], "output_max_size = \"100B\"\n", &script),
            job("own", &links[1], "output_max_size = \"0\"\n", once),
            job("link", &links[2], "", once),
            job("second", &ours.path().join("second"), "", once),
            job("plain", &ours.path().join("plain"), "", once),
        ]
        .concat(),
    );
    s.start();
    for name in ["loud", "own", "link", "second", "plain"] {
        common::jobs::told(&s, &["wait-ready", name]);
    }
    let dropped = |name: &str| s.wait(0, &["event=output-dropped of=job", &format!("job={name} file=")]);
    for name in ["loud", "own"] {
        let line = dropped(name);
        assert!(line.contains(&format!("theirs/{name}: as user {USER}: Permission denied")), "{line}");
    }
    let who = supervisor::privileges::Credentials::of(USER, None).unwrap();
    if !supervisor::as_user::may_change(&links[2], &who).unwrap() {
        assert!(dropped("link").contains("it is a link"), "{}", s.log.text());
        if ours.path().join("second").exists() {
            assert!(dropped("second").contains("hard link"), "{}", s.log.text());
        }
        s.until("a plain file is written", || {
            fs::metadata(ours.path().join("plain")).is_ok_and(|m| m.len() > 0 && m.uid() == 0)
        });
    }
    // its own file is that user's, also when it has been rotated
    fs::remove_file(&links[0]).unwrap();
    let rotated = || fs::read_dir(&theirs).unwrap().count() > 4;
    s.until("it is rotated", || {
        // its reader comes and goes
        let _ = fs::write(&gate, "a line\n");
        rotated()
    });
    s.wait(0, &["event=output-resumed of=job job=loud"]);
    for entry in fs::read_dir(&theirs).unwrap().map(Result::unwrap) {
        let meta = fs::symlink_metadata(entry.path()).unwrap();
        assert!(meta.is_symlink() || (meta.uid(), meta.mode() & 0o777) == (uid(), 0o640), "{entry:?}");
    }
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret\n");
    s.stop();
}
