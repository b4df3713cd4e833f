//! Scenario files, and drills of a suite that runs: what is refused, what is done, and what is left alone.

mod common;

use common::*;
use lockfile::Lockfile;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use supervisor::pidfd::PidFd;
use traffic::drill::scenario::parse;

fn shipped() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/drills");
    let mut all: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

fn drill(dir: &Path, args: &[&str]) -> Output {
    let mut c = clean(COP);
    c.arg("drill").args(args).env("TMPDIR", dir);
    output(c)
}

/// The last line on stdout.
fn told(o: &Output) -> Value {
    let (out, err) = (String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr));
    let line = out.lines().last().unwrap_or_else(|| panic!("no line on stdout; stderr: {err}"));
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}\n{err}"))
}

fn write(dir: &Path, text: &str) -> String {
    let path = dir.join("s.toml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn the_scenarios_that_are_shipped_are_right_and_told_of() {
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/drills.md")).unwrap();
    let all = shipped();
    assert!(all.len() >= 10, "{all:?}");
    let dir = tempfile::tempdir().unwrap();
    for path in all {
        let scenario = parse::file(&path).unwrap_or_else(|e| panic!("{e}"));
        assert!(scenario.about.len() > 80, "{}: says too little", path.display());
        // they can be run on a suite that runs, too
        assert!(!scenario.mix && scenario.config.is_empty(), "{}", path.display());
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(page.contains(&name), "docs/drills.md doesn't name {name}");
        let said = expect_code(&drill(dir.path(), &["run", "--check", &path.display().to_string()]), 0);
        assert!(said.starts_with(&scenario.title), "{said}");
    }
}

#[test]
fn a_scenario_does_what_it_says_and_reports_it() {
    let dir = tempfile::tempdir().unwrap();
    let text = r#"
        title = "Some of everything"
        config = "[cop]\nfailures = 3\n"
        [[step]]
        load = "on"
        connections = 5
        [[step]]
        wait = "300ms"
        [[step]]
        kill = ["server", "manager"]
        times = 2
        every = "300ms"
        [[step]]
        expect = { serving = "20s", changed = ["server", "manager"], same = "cop", within = "20s" }
        [[step]]
        stop = "manager"
        for = "300ms"
        [[step]]
        limit_fds = "server"
        to = 500
        for = "100ms"
        [[step]]
        command = "restart"
        [[step]]
        expect = { changed = "server", same = ["manager", "cop"] }
        [[step]]
        load = "off"
        [[step]]
        expect = { answered = 10, failed = 0, refused = 0, lost = 0, takeover = "20s" }
    "#;
    let file = write(dir.path(), text);
    let report = dir.path().join("report.html");
    let place = tempfile::tempdir().unwrap();
    let o = drill(place.path(), &["run", &file, "--json", "--report", &report.display().to_string()]);
    let v = told(&o);
    assert_eq!((o.status.code(), &v["passed"]), (Some(0), &true.into()), "{v:#}");
    let steps = v["steps"].as_array().unwrap();
    assert!(steps.len() == 10 && steps.iter().all(|s| s["result"] == "ok"), "{v:#}");
    let strokes: Vec<_> =
        v["strokes"].as_array().unwrap().iter().map(|s| s["stroke"].as_str().unwrap()).collect();
    assert_eq!(strokes, ["SIGKILL", "SIGKILL", "SIGSTOP"], "{v:#}");
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "its directory is gone");
    let page = std::fs::read_to_string(report).unwrap();
    assert!(page.contains("Some of everything") && page.matches("<svg").count() == 3);
    assert!(page.contains(">SM<"), "the strokes are marked");
}

#[test]
fn what_is_not_as_expected_fails_with_its_place_and_ends_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let text = "title = \"Too much\"\n[[step]]\nexpect = { answered = 1000 }\n[[step]]\nkill = \"server\"\n";
    let file = write(dir.path(), text);
    let o = drill(dir.path(), &["run", &file, "--json"]);
    let v = told(&o);
    assert_eq!((o.status.code(), &v["passed"]), (Some(1), &false.into()), "{v:#}");
    let why = v["steps"][0]["why"].as_str().unwrap();
    assert!(why.contains("s.toml:2:1: step 1 (expect): answered: 0, not 1000 at least"), "{why}");
    assert_eq!(
        (&v["steps"][1]["result"], &v["strokes"]),
        (&"skipped".into(), &Value::Array(vec![])),
        "{v:#}"
    );
    // and one that can't be read is refused with all of its faults
    let file = write(dir.path(), "title = 1\n[[step]]\nkil = \"server\"\n");
    let said = expect_code(&drill(dir.path(), &["run", &file]), 78);
    assert!(
        said.contains("s.toml:1:9: title: expected text") && said.contains("step 1: does nothing"),
        "{said}"
    );
}

/// Options that lead to a suite.
fn at(s: &Suite) -> Vec<String> {
    vec!["--attach".into(), "--config".into(), s.path("traffic.toml").display().to_string()]
}

fn attached(s: &Suite, args: &[&str]) -> Output {
    let mut c = clean(COP);
    c.arg("drill").args(args).args(at(s));
    output(c)
}

#[test]
fn a_suite_that_runs_is_drilled_only_with_consent_and_no_other_is_touched() {
    let mut s = Suite::serving("");
    let mut other = Suite::serving("");
    s.wait(0, &["event=standby-ready"]);
    let (before, bystander) = (s.pids(), other.pids());
    let said = expect_code(&attached(&s, &["--kill", "server,manager", "--seconds", "7"]), 64);
    for word in [
        "nothing was done",
        "--yes",
        "for 7 s",
        "kill in turn, every 2s: server, manager",
        &format!("server {}", before[2]),
    ] {
        assert!(said.contains(word), "{word:?} in {said}");
    }
    let dir = tempfile::tempdir().unwrap();
    let text = "title = \"Kill\"\n[[step]]\nload = \"on\"\n[[step]]\nkill = \"server\"\n[[step]]\nload = \"off\"\n\
                [[step]]\nexpect = { answered = 1, failed = 0, lost = 0, changed = \"server\", same = [\"manager\", \"cop\"] }\n";
    let file = write(dir.path(), text);
    let said = expect_code(&attached(&s, &["run", &file]), 64);
    assert!(said.contains("kill server") && said.contains("--yes"), "{said}");
    assert_eq!(s.pids(), before, "nobody was touched");
    let v = told(&attached(&s, &["run", &file, "--yes", "--json"]));
    assert_eq!(v["passed"], true, "{v:#}");
    assert_eq!(v["strokes"][0]["who"][0]["pid"], before[2], "{v:#}");
    let v =
        told(&attached(&s, &["--kill", "manager", "--seconds", "2", "--every", "500ms", "--yes", "--json"]));
    assert!(v["passed"] == true && v["kills"]["manager"].as_u64().unwrap() >= 1, "{v:#}");
    assert_ne!(s.pid("manager"), before[1]);
    // nobody would start this cop again
    let o = attached(&s, &["--kill", "cop", "--seconds", "2", "--every", "500ms", "--yes", "--json"]);
    let said = expect_code(&o, 1);
    assert!(said.contains("nobody above it") && s.pid("cop") == before[0], "{said}");
    assert_eq!(other.pids(), bystander);
    s.stop();
    other.stop();
}

/// The line on open files.
fn limit(pid: i32) -> String {
    lines_with(Path::new(&format!("/proc/{pid}/limits")), "Max open files").concat()
}

#[test]
fn what_was_done_is_undone_when_somebody_interrupts() {
    // a cop that finds nothing meanwhile
    let mut s = Suite::serving("[cop]\ninterval = \"60s\"\ntimeout = \"60s\"\n");
    let (manager, server) = (s.pid("manager"), s.pid("server"));
    let before = limit(server);
    let dir = tempfile::tempdir().unwrap();
    let text = "title = \"Stop\"\n[[step]]\nlimit_fds = \"server\"\nto = 300\n[[step]]\nstop = \"manager\"\n\
                [[step]]\nwait = \"10m\"\n[[step]]\nexpect = { failed = 0 }\n";
    let file = write(dir.path(), text);
    let mut c = clean(COP);
    c.args(["drill", "run", &file, "--yes"]).args(at(&s));
    let mut drill = c.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(drill.stdout.take().unwrap()).lines();
    let mut lines = lines.map(Result::unwrap);
    assert!(lines.any(|l| l.contains("wait 10m")));
    assert!(is_stopped(manager) && limit(server).contains(" 300 "), "{}", limit(server));
    let process = PidFd::open(drill.id() as i32).unwrap();
    process.signal(SIGTERM).unwrap();
    assert!(lines.any(|l| l.contains("interrupted")));
    assert!(process.poll_exit(LONG).unwrap().is_some(), "it goes on");
    assert_eq!(drill.wait().unwrap().code(), Some(1));
    assert!(!is_stopped(manager) && limit(server) == before, "{}", limit(server));
    assert_eq!((s.pid("manager"), s.pid("server")), (manager, server));
    s.stop();
}

#[test]
fn who_holds_a_lock_and_is_none_of_the_suite_is_not_touched() {
    // this very process
    let s = Suite::new("");
    std::fs::create_dir(s.run_dir()).unwrap();
    let mut lock = Lockfile::new(s.run_dir().join("server.lock"));
    assert!(matches!(lock.get().unwrap(), lockfile::Got::Acquired));
    let origin = origin::Origin::start();
    let url = format!("http://{}/small", origin.addr);
    let o = attached(&s, &["--kill", "server", "--seconds", "1", "--every", "100ms", "--url", &url, "--yes"]);
    let said = expect_code(&o, 1);
    assert!(said.contains("and not traffic_server: it isn't touched"), "{said}");
    lock.close().unwrap();
    let said = expect_code(&attached(&s, &["--yes"]), 3);
    assert!(said.contains("no server runs in"), "{said}");
}

#[test]
fn options_of_one_kind_are_refused_with_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "title = \"t\"\nmix = true\n[[step]]\nexpect = { failed = 0 }\n");
    for (args, why) in [
        (&["--yes"][..], "--attach"),
        (&["--attach", "--chaos"], "--chaos"),
        (&["--attach", "--mix"], "--mix"),
        (&["--url", "http://x/"], "--attach"),
        (&["--attach", "run", &file], "run"),
        (&["run", &file, "--attach", "--yes"], "mix or config"),
        (&["run"], "FILE"),
    ] {
        let said = expect_code(&drill(dir.path(), args), 64);
        assert!(said.contains(why), "{args:?}: {said}");
    }
    let said = expect_code(&drill(dir.path(), &["--seconds", "1", "--report", "/no/such/place.html"]), 71);
    assert!(said.contains("--report: making /no/such/place.html"), "{said}");
}
