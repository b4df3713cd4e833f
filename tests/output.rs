//! What jobs write: files that rotate, disks that are full, managers that are killed meanwhile.

mod common;

use common::jobs::*;
use common::*;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The files of that name, rotated ones first.
fn files(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().unwrap().to_str().unwrap();
    let entries = std::fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().path());
    let mut list: Vec<_> =
        entries.filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with(name)).collect();
    list.sort_by_key(|p| (p == path, p.clone()));
    list
}

fn text(path: &Path) -> String {
    files(path).iter().map(|f| std::fs::read_to_string(f).unwrap_or_default()).collect()
}

/// Until the file, rotated or not, has that in it. Nobody tells when, so it is looked at.
#[track_caller]
fn until_written(path: &Path, what: &str) -> String {
    let until = Instant::now() + LONG;
    loop {
        let text = text(path);
        if text.contains(what) {
            return text;
        }
        assert!(Instant::now() < until, "no {what:?} in {:?}", files(path));
        std::thread::yield_now();
    }
}

const COUNT: usize = 6000;

#[test]
fn a_file_rotates_and_no_line_is_lost_when_the_manager_is_killed() {
    let mut s = Suite::new("");
    let (out, err) = (s.path("out"), s.path("err"));
    // unfinished lines wait, whoever reads them
    let script = format!(
        "echo >&$NOTIFY_FD; printf unfinished >&2; i=0; while [ $i -lt {COUNT} ]; do echo \"line $i\"; i=$((i+1)); \
         done; echo end; echo ' line' >&2; exec sleep 1000"
    );
    config(
        &s,
        &format!(
            "[[job]]\nname = \"writer\"\nready = \"fd\"\nstdout = {out:?}\nstderr = {err:?}\noutput_max_size = \
             \"4KiB\"\noutput_keep = 1000\ncommand = [\"sh\", \"-c\", {script:?}]\n"
        ),
    );
    s.start();
    told(&s, &["wait-ready", "writer"]);
    let before = pid(&s, "writer");
    for _ in 0..3 {
        let mark = s.mark();
        s.kill("manager", SIGKILL);
        s.wait(mark, &["event=adopted of=job job=writer"]);
    }
    let written = until_written(&out, "end\n");
    let mut next = 0;
    for line in written.lines().filter(|l| *l != "end") {
        let number: usize =
            line.strip_prefix("line ").and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{line:?}"));
        // one may be there twice
        assert!(number <= next, "line {next} is missing");
        next = next.max(number + 1);
    }
    assert_eq!(next, COUNT);
    let sizes: Vec<u64> = files(&out).iter().map(|f| f.metadata().unwrap().len()).collect();
    assert!(sizes.len() > 2 && sizes.iter().all(|n| *n < 64 << 10), "{sizes:?}");
    assert_eq!(until_written(&err, "line\n"), "unfinished line\n");
    assert_eq!(pid(&s, "writer"), before);
    s.stop();
}

#[test]
fn only_few_rotated_files_are_kept_and_a_job_may_write_to_its_file_itself() {
    let mut s = Suite::new("");
    let (few, own) = (s.path("few"), s.path("own"));
    let job = |name: &str, out: &Path, more: &str| {
        format!(
            "[[job]]\nname = {name:?}\nready = \"fd\"\nstdout = {out:?}\n{more}command = [\"sh\", \"-c\", \"i=0; while [ $i -lt \
             3000 ]; do echo $i; i=$((i+1)); done; echo end; echo >&$NOTIFY_FD; exec sleep 1000\"]\n"
        )
    };
    let jobs = job("few", &few, "output_max_size = \"2KiB\"\noutput_keep = 2\n")
        + &job("own", &own, "output_max_size = \"0\"\n")
        + &job("null", Path::new("null"), "")
            .replace("\"null\"\ncommand", "\"null\"\nstderr = \"null\"\ncommand");
    config(&s, &jobs);
    s.start();
    ["few", "own", "null"].iter().for_each(|j| drop(told(&s, &["wait-ready", j])));
    until_written(&few, "end\n");
    assert!(told(&s, &["tail", "few"]).contains("2999\nend"));
    assert!(files(&few).len() <= 3, "{:?}", files(&few));
    assert_eq!(text(&own).lines().count(), 3001);
    assert!(told(&s, &["tail", "null"]).trim().is_empty());
    s.stop();
}

#[test]
fn a_full_disk_stops_neither_the_manager_nor_the_job() {
    let mut s = Suite::serving(
        "[[job]]\nname = \"full\"\nready = \"fd\"\nstdout = \"/dev/full\"\ncommand = [\"sh\", \"-c\", \"i=0; while [ $i -lt 20000 ]; \
         do echo a line that goes nowhere; i=$((i+1)); done; echo >&$NOTIFY_FD; exec sleep 1000\"]\n",
    );
    // it has written more than any pipe holds
    told(&s, &["wait-ready", "full"]);
    let line = s.wait(0, &["event=output-dropped of=job job=full file=/dev/full"]);
    assert!(line.contains("No space left"), "{line}");
    assert_eq!(s.log.text().matches("event=output-dropped").count(), 1, "said once");
    assert_eq!(s.get("/").code, 200);
    s.stop();
}

/// A manager that may not look at processes of other users, as in a container, can't ask them which pipe is which.
#[test]
fn what_a_job_of_another_user_says_goes_to_the_right_file_also_by_the_next_manager() {
    if !is_root() {
        return;
    }
    let mut s = Suite::new("");
    let (out, err) = (s.path("out"), s.path("err"));
    config(
        &s,
        &format!(
            "[[job]]\nname = \"two\"\nuser = \"nobody\"\nready = \"fd\"\nstdout = {out:?}\nstderr = {err:?}\ncommand = [\"sh\", \
             \"-c\", \"trap 'echo output; echo error >&2' USR1; echo >&$NOTIFY_FD; while :; do sleep 0.05; done\"]\n"
        ),
    );
    s.wrap = ["setpriv", "--bounding-set", "-sys_ptrace"].map(str::to_owned).into();
    s.start();
    told(&s, &["wait-ready", "two"]);
    for n in 1..3 {
        let mark = s.mark();
        until_kept(&s);
        s.kill("manager", SIGKILL);
        s.wait(mark, &["event=adopted of=job job=two"]);
        told(&s, &["signal", "two", "usr1"]);
        assert_eq!(until_written(&err, &"error\n".repeat(n)), "error\n".repeat(n));
        assert_eq!(until_written(&out, &"output\n".repeat(n)), "output\n".repeat(n));
    }
    s.stop();
}

#[test]
fn a_log_that_has_only_errors_has_the_lines_of_jobs() {
    let mut s = Suite::new("");
    let job = format!("[[job]]\nname = \"a\"\n{READY}");
    config(&s, &job);
    s.env.push(("TRAFFIC_SUITE_LOG".into(), "error".into()));
    s.spawn_cop();
    s.wait(0, &["job=a pid=", ": up "]);
    assert!(told(&s, &["wait-ready", "a"]).contains("ready") && told(&s, &["tail", "a"]).contains("up "));
    assert!(!s.log.text().contains("event=ready"), "{}", s.log.text());
    s.until("it serves", || s.run(COP, &["status"]).status.code() == Some(0));
    s.stop();
}
