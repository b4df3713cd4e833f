//! Jobs that are starting when their manager is killed: the next one knows that, and waits for them as the last one did.

mod common;

use common::jobs::*;
use common::*;
use std::path::PathBuf;
use supervisor::notify::Notifier;
use supervisor::pidfd::PidFd;

/// What a job of these tests runs: this program, started by a manager. It says that it is ready when its file `go` is there, and
/// feeds its watchdog from then on.
#[test]
fn notifier() {
    let Some(go) = std::env::var_os("GO").map(PathBuf::from) else { return };
    let manager = Notifier::from_env().unwrap();
    let pause = || std::thread::sleep(std::time::Duration::from_millis(20));
    while !go.exists() {
        pause();
    }
    manager.send("READY=1").unwrap();
    std::fs::write(go.with_extension("said"), "").unwrap();
    loop {
        let _ = manager.send("WATCHDOG=1");
        pause();
    }
}

fn notifying(go: &std::path::Path, more: &str) -> String {
    let program = std::env::current_exe().unwrap();
    format!(
        "[[job]]\nname = \"notify\"\nready = \"notify\"\nstdout = \"null\"\nenv = [\"GO={}\"]\n{more}\
         command = [{program:?}, \"--exact\", \"notifier\", \"--nocapture\"]\n",
        go.display()
    )
}

#[test]
fn a_job_that_starts_when_its_manager_is_killed_goes_on_starting() {
    let mut s = Suite::new("");
    let go = s.path("go");
    let wait = format!("while ! test -e {}; do sleep 0.02; done", go.display());
    config(
        &s,
        &format!(
            "{}\
             [[job]]\nname = \"fd\"\nready = \"fd\"\ncommand = [\"sh\", \"-c\", \"printf still >&$NOTIFY_FD; {wait}; \
             echo >&$NOTIFY_FD; exec sleep 1000\"]\n\
             [[job]]\nname = \"exec\"\nready = [\"test\", \"-e\", {go:?}]\nalive = [\"test\", \"-e\", {go:?}]\n\
             probe_interval = \"50ms\"\nprobe_failures = 1\ncommand = [\"sleep\", \"1000\"]\n\
             [[job]]\nname = \"last\"\nafter = [\"fd\", \"exec\", \"notify\"]\n{READY}",
            notifying(&go, "watchdog = \"2s\"\n"),
        ),
    );
    s.start();
    const JOBS: [&str; 3] = ["fd", "exec", "notify"];
    JOBS.iter().for_each(|j| drop(s.wait(0, &["event=starting of=job", &format!("job={j} ")])));
    let before = JOBS.map(|j| pid(&s, j));
    for _ in 0..2 {
        let mark = s.mark();
        until_kept(&s);
        s.kill("manager", SIGKILL);
        for (name, pid) in JOBS.iter().zip(before) {
            s.wait(mark, &["event=adopted of=job", &format!("job={name} "), &format!("pid={pid}")]);
            assert_eq!(workers(&s, name)[0]["state"], "starting", "{name}");
        }
        assert_eq!(job(&s, "last")["state"], "waiting");
    }
    let mark = s.mark();
    std::fs::write(&go, "").unwrap();
    told(&s, &["wait-ready", "last"]);
    for (name, pid) in JOBS.iter().zip(before) {
        s.wait(mark, &["event=ready of=job", &format!("job={name} "), &format!("pid={pid}")]);
    }
    // and the next one has them as ready
    let mark = s.mark();
    until_kept(&s);
    s.kill("manager", SIGKILL);
    s.wait(mark, &["event=adopted of=job job=last"]);
    assert_eq!(
        JOBS.map(|j| (workers(&s, j)[0]["state"].clone(), pid(&s, j))),
        before.map(|p| ("ready".into(), p))
    );
    s.stop();
}

#[test]
fn what_a_job_says_while_no_manager_lives_reaches_the_next_one() {
    let mut s = Suite::new("");
    let go = s.path("go");
    config(&s, &notifying(&go, ""));
    s.start();
    s.wait(0, &["event=starting of=job job=notify"]);
    let first = pid(&s, "notify");
    for round in 0..2 {
        let mark = s.mark();
        until_kept(&s);
        // nobody is there who would start another one
        s.kill("cop", SIGSTOP);
        s.kill("manager", SIGKILL);
        if round == 1 {
            std::fs::write(&go, "").unwrap();
            s.until("it has said so", || go.with_extension("said").exists());
        }
        PidFd::open(s.pid("cop")).unwrap().signal(SIGCONT).unwrap();
        s.wait(mark, &["event=adopted of=job job=notify"]);
        if round == 1 {
            s.wait(mark, &["event=ready of=job job=notify", &format!("pid={first}")]);
        }
    }
    s.stop();
}

#[test]
fn the_start_grace_does_not_begin_anew_with_the_next_manager() {
    let mut s = Suite::serving(
        "[[job]]\nname = \"never\"\nready = [\"false\"]\nstart_grace = \"4s\"\ncommand = [\"sleep\", \"1000\"]\n",
    );
    s.wait(0, &["event=starting of=job job=never"]);
    let (begun, first) = (std::time::Instant::now(), pid(&s, "never"));
    for _ in 0..2 {
        let mark = s.mark();
        until_kept(&s);
        s.kill("manager", SIGKILL);
        s.wait(mark, &["event=adopted of=job job=never"]);
    }
    // a busy machine may make that as long as it likes, but then the grace was given anew
    let adopted = begun.elapsed();
    s.wait(0, &["event=exit of=job job=never", &format!("of_pid={first} ")]);
    let whole = begun.elapsed();
    assert!(adopted.as_secs() >= 3 || whole.as_secs_f64() < 7.0, "{adopted:?}, then {whole:?}");
    s.stop();
}
