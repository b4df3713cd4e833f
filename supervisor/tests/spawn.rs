//! Spawning real programs: what they get, what they don't, and how failures are told.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use supervisor::spawn::{Spec, Stage, spawn};

/// Runs a shell script with these fds handed over; returns what it wrote and how it ended.
fn run(script: &str, fds: &[(String, OwnedFd)], change: impl FnOnce(&mut Spec<'_>)) -> (String, String) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let mut spec = Spec {
        program: "/bin/sh".into(),
        argv: ["sh", "-c", script].map(Into::into).to_vec(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into()), ("LISTEN_FDS".into(), "99".into())],
        fds: fds.iter().map(|(n, f)| (n.clone(), f.as_fd())).collect(),
        plain: Vec::new(),
        stdio: [None, Some(write.as_fd()), None],
        cwd: None,
        umask: 0o027,
        nofile: None,
        oom_score_adj: None,
        cgroup: None,
        nice: 0,
        credentials: None,
    };
    change(&mut spec);
    let child = spawn(&spec).unwrap();
    drop(spec);
    drop(write);
    let mut out = String::new();
    File::from(read).read_to_string(&mut out).unwrap();
    assert!(child.pidfd.poll_exit(Duration::from_secs(20)).unwrap().is_some());
    (out, child.pidfd.wait().unwrap().unwrap().to_string())
}

#[test]
fn fds_arrive_in_order_under_their_names_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        std::fs::write(dir.path().join(name), name).unwrap();
        (name.to_owned(), OwnedFd::from(File::open(dir.path().join(name)).unwrap()))
    };
    let fds = [file("one"), file("two"), file("three")];
    // an fd that some library left without close-on-exec
    let leak = File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    let script = "cat <&3; echo; cat <&4; echo; cat <&5; echo; echo $LISTEN_FDS $LISTEN_FDNAMES; \
                  test $LISTEN_PID = $$ && echo mine; ls /proc/$$/fd; true";
    let (out, end) = run(script, &fds, |_| {});
    assert_eq!(end, "exit code 0");
    assert_eq!(out, "one\ntwo\nthree\n3 one:two:three\nmine\n0\n1\n2\n3\n4\n5\n");
}

#[test]
fn nothing_to_hand_over_is_nothing_said() {
    let (out, _) = run("echo ${LISTEN_FDS-none} ${LISTEN_PID-none}", &[], |_| {});
    assert_eq!(out, "none none\n");
}

#[test]
fn a_variable_that_only_looks_like_ours_is_handed_over() {
    let (out, _) = run("echo $LISTEN_ADDRESS ${LISTEN_FDS-none}", &[], |s| {
        s.env.push(("LISTEN_ADDRESS".into(), "[::]:80".into()));
    });
    assert_eq!(out, "[::]:80 none\n");
}

#[test]
fn directory_mask_limits_and_group_are_as_asked() {
    let script = "pwd; umask; ulimit -n; test $(cut -d' ' -f5 /proc/$$/stat) = $$ && echo leader";
    let (out, _) = run(script, &[], |s| {
        s.cwd = Some("/usr".into());
        s.umask = 0o077;
        s.nofile = Some((100, 200));
    });
    assert_eq!(out, "/usr\n0077\n100\nleader\n");
}

#[test]
fn nice_is_added_to_ours() {
    // a thread's own, which goes with it
    let nice = |n| move || run("nice", &[], |s| s.nice = n).0;
    let of_a_nice_one = |n: i32| {
        let set = move || {
            let ours = rustix::process::getpriority_process(None).unwrap();
            rustix::process::setpriority_process(None, ours + 2).unwrap();
            nice(n)()
        };
        std::thread::spawn(set).join().unwrap().trim().parse::<i32>().unwrap()
    };
    let ours = nice(0)().trim().parse::<i32>().unwrap();
    let most = |n: i32| (ours + n).min(19);
    assert_eq!((of_a_nice_one(0), of_a_nice_one(3)), (most(2), most(5)));
}

#[test]
fn signals_are_back_at_their_defaults_and_unblocked() {
    // this process blocks and ignores; the child must die of a signal it sends to itself
    let all = nix::sys::signal::SigSet::all();
    all.thread_block().unwrap();
    let (_, end) = run("kill -TERM $$; echo survived", &[], |_| {});
    all.thread_unblock().unwrap();
    assert_eq!(end, "signal 15 (SIGTERM)");
}

#[test]
fn failures_name_stage_and_reason() {
    let try_with = |change: fn(&mut Spec<'_>)| {
        let mut spec = Spec {
            program: "/bin/true".into(),
            argv: vec!["true".into()],
            env: Vec::new(),
            fds: Vec::new(),
            plain: Vec::new(),
            stdio: [None; 3],
            cwd: None,
            umask: 0,
            nofile: None,
            oom_score_adj: None,
            cgroup: None,
            nice: 0,
            credentials: None,
        };
        change(&mut spec);
        spawn(&spec).unwrap_err()
    };
    let e = try_with(|s| s.program = "/no/such".into());
    assert_eq!((e.stage, e.is_permanent()), (Stage::Exec, true));
    assert!(e.to_string().starts_with("/no/such: exec: No such file"), "{e}");
    let e = try_with(|s| s.program = "/etc/passwd".into());
    assert!(e.to_string().contains("exec: Permission denied"), "{e}");
    let e = try_with(|s| s.cwd = Some("/no/such".into()));
    assert_eq!(e.stage, Stage::Chdir);
    let e = try_with(|s| s.argv = vec!["x".repeat(3 << 20).into()]);
    assert!(e.to_string().contains("exec: Argument list too long"), "{e}");
    let e = try_with(|s| s.argv = vec!["a\0b".into()]);
    assert_eq!(e.stage, Stage::Prepare);
    let e = try_with(|s| s.nofile = Some((10, 5)));
    assert_eq!((e.stage, e.is_permanent()), (Stage::Limits, false));
}

#[test]
fn another_user_has_nothing_of_ours() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let nobody = supervisor::privileges::Credentials::of("nobody", None).unwrap();
    let script = "id -u; id -g; id -G; grep -E '^(Cap|NoNew)' /proc/self/status | tr -d '\\t'";
    let (out, end) = run(script, &[], |s| s.credentials = Some(nobody.clone()));
    assert_eq!(end, "exit code 0");
    let none = ["Inh", "Prm", "Eff", "Bnd", "Amb"].map(|set| format!("Cap{set}:0000000000000000")).join("\n");
    let (uid, gid) = (nobody.uid, nobody.gid);
    assert_eq!(out, format!("{uid}\n{gid}\n{gid}\n{none}\nNoNewPrivs:1\n"));
}
