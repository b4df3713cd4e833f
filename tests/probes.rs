//! Jobs that are asked whether they are ready, and whether they still work: by HTTP, by a command, by pings.

mod common;

use common::jobs::*;
use common::*;
use supervisor::pidfd::PidFd;

/// Soon, also on a busy machine.
const TIGHT: &str = "probe_interval = \"100ms\"\nprobe_timeout = \"1s\"\nprobe_failures = 2\n";

#[test]
fn a_job_is_ready_when_it_answers_and_is_replaced_when_it_does_not() {
    let mut s = Suite::new("");
    let (socket, other, mute) = (s.path("web.sock"), s.path("other"), s.path("mute.sock"));
    let url = format!("http://unix:{}:/", socket.display());
    config(
        &s,
        &format!(
            "[[job]]\nname = \"web\"\nready = {url:?}\nalive = {url:?}\n{TIGHT}\
             command = [{SERVER:?}, \"run\", \"--runtime-dir\", {other:?}, \"--set\", \"suite.allow_root=true\", \
             \"--set\", \"server.listen=[\\\"unix:{}\\\"]\"]\n\
             [[job]]\nname = \"mute\"\nlisten = [\"unix:{}\"]\nready = \"http://unix:{}:/\"\ncommand = [\"sleep\", \"1000\"]\n",
            socket.display(),
            mute.display(),
            mute.display(),
        ),
    );
    s.start();
    // the manager accepts on its socket, so to speak, but nobody answers
    s.wait(0, &["event=starting of=job job=mute"]);
    told(&s, &["start", "web"]);
    assert_eq!(workers(&s, "mute")[0]["state"], "starting");
    let first = pid(&s, "web");
    let mark = s.mark();
    PidFd::open(first).unwrap().signal(SIGSTOP).unwrap();
    s.wait(mark, &["event=hang of=job job=web", "GET / 2 times in a row"]);
    s.wait(mark, &["event=ready of=job job=web"]);
    assert_ne!(pid(&s, "web"), first);
    s.stop();
}

#[test]
fn a_command_says_whether_a_job_is_ready_and_works_and_is_killed_when_it_hangs() {
    let mut s = Suite::new("");
    let (good, asks, asker) = (s.path("good"), s.path("asks"), s.path("asker"));
    // the second one hangs, with a child
    let alive =
        format!("test -e {} || {{ echo $$ >{}; sleep 1000 & wait; }}", asks.display(), asker.display());
    config(
        &s,
        &format!(
            "[[job]]\nname = \"x\"\nready = [\"test\", \"-e\", {good:?}]\nalive = [\"sh\", \"-c\", {alive:?}]\n{TIGHT}\
             command = [\"sleep\", \"1000\"]\n"
        ),
    );
    std::fs::write(&asks, "").unwrap();
    s.start();
    s.wait(0, &["event=starting of=job job=x"]);
    assert_eq!(workers(&s, "x")[0]["state"], "starting");
    std::fs::write(&good, "").unwrap();
    told(&s, &["wait-ready", "x"]);
    let first = pid(&s, "x");
    let mark = s.mark();
    std::fs::remove_file(&asks).unwrap();
    s.wait(mark, &["event=probe-killed job=x"]);
    let group = std::fs::read_to_string(&asker).unwrap();
    s.wait(mark, &["event=hang of=job job=x"]);
    std::fs::write(&asks, "").unwrap();
    s.wait(mark, &["event=ready of=job job=x"]);
    assert_ne!(pid(&s, "x"), first);
    s.stop();
    // its child went with it
    assert_eq!(lines_with(std::path::Path::new(&format!("/proc/{}/status", group.trim())), "Name"), [""; 0]);
    assert_eq!(of_group(group.trim()), [0; 0]);
}

/// Processes of a process group.
fn of_group(group: &str) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let is_in = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(2)) == Some(group)
    };
    pids.filter(is_in).collect()
}

#[test]
fn a_job_that_answers_no_pings_is_replaced_also_by_the_next_manager() {
    let answer = "echo >&$NOTIFY_FD; while read -r what word; do echo pong $word; done <&$TRAFFIC_PING_FD >&$TRAFFIC_PING_FD";
    let mut s = Suite::serving(&format!(
        "[[job]]\nname = \"worker\"\nworkers = 2\nready = \"fd\"\nalive = \"ping\"\n{TIGHT}command = [\"sh\", \"-c\", {answer:?}]\n"
    ));
    told(&s, &["wait-ready", "worker"]);
    let pids =
        |s: &Suite| workers(s, "worker").iter().map(|w| w["pid"].as_i64().unwrap()).collect::<Vec<_>>();
    for manager in ["first", "second"] {
        let before = pids(&s);
        let mark = s.mark();
        PidFd::open(before[1] as i32).unwrap().signal(SIGSTOP).unwrap();
        s.wait(mark, &["event=hang of=job job=worker worker=1", "ping 2 times in a row"]);
        s.wait(mark, &["event=ready of=job job=worker worker=1"]);
        let after = pids(&s);
        assert_eq!(before[0], after[0], "{manager}");
        assert_ne!(before[1], after[1], "{manager}");
        until_kept(&s);
        s.kill("manager", SIGKILL);
        s.wait(mark, &["event=adopted of=job job=worker worker=1"]);
    }
    assert!(!s.log.text().contains("event=hang of=job job=worker worker=0"));
    s.stop();
}
