//! Every kind of fault with its exact text, and who wins over whom.

use super::super::Listen;
use super::*;
use proptest::prelude::*;

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

/// Loads a file with no environment; faults come without the directory's name.
fn with_file(text: &str) -> Result<Loaded, String> {
    let (dir, path) = file(text);
    let sources = Sources { file: Some(path), ..Sources::default() };
    load(&sources).map_err(|f| f.to_string().replace(&format!("{}/", dir.path().display()), ""))
}

#[test]
fn a_preset_counts_where_nothing_was_said() {
    let set = ["cop.preset=classic".to_owned(), "cop.timeout=5s".to_owned()];
    let sources = Sources { set: &set, ..Sources::default() };
    let l = load(&sources).unwrap();
    let cop = &l.config.cop;
    assert_eq!([cop.interval, cop.timeout, cop.kill_timeout].map(|d| d.as_secs()), [10, 5, 60]);
    assert_eq!(l.effective["cop.interval"].1, Source::Preset);
    assert!(l.describe().contains("# preset"));
    let set = ["cop.preset=vintage".to_owned()];
    let e = load(&Sources { set: &set, ..Sources::default() }).unwrap_err().to_string();
    assert!(e.contains("vintage") && e.contains("classic"), "{e}");
}

#[test]
fn every_value_of_the_preset_is_one() {
    for (path, text) in keys::CLASSIC {
        let mut c = Config::default();
        let value = parse_text(text).unwrap();
        (keys::find(path).unwrap_or_else(|| panic!("{path}")).set)(&mut c, &value).unwrap();
    }
}

#[test]
fn nothing_at_all_is_a_working_configuration() {
    let l = with_file("").unwrap();
    assert_eq!(l.config.server.listen, [Listen::Tcp("127.0.0.1:8080".parse().unwrap())]);
    assert_eq!(l.config.cop.failures, 2);
    assert!(l.config.routes.is_empty());
}

#[test]
fn every_default_is_what_its_own_parser_takes() {
    let l = with_file("").unwrap();
    // these depend on suite.state_dir
    for k in KEYS
        .iter()
        .filter(|k| !["suite.log_file", "server.cache.path", "server.access_log_file"].contains(&k.path))
    {
        assert_eq!(l.effective.get(k.path).map(|e| &e.1), Some(&Source::Default), "{}", k.path);
    }
}

#[test]
fn all_faults_at_once_each_with_its_place() {
    let text = "\
[server]
listen = [\"127.0.0.1:8080\", \"127.0.0.1:8080\"]
threads = \"four\"
listn = 1
[cop]
interval = 5
failures = 0
[nonsense]
x = 1
[[route]]
prefix = \"api\"
[[route]]
origin = \"ftp://x\"
hots = \"a\"
";
    let want = "\
t.toml:3:11: server.threads: expected an integer, got text (\"four\")
t.toml:4:1: unknown key server.listn; did you mean server.listen?
t.toml:6:12: cop.interval: a duration needs a unit: \"5s\" or \"5ms\"
t.toml:7:12: cop.failures: 0 is out of range 1..1000
t.toml:8:2: unknown key nonsense
t.toml:11:10: route.prefix: \"api\" is not a path prefix: it begins with / and has no spaces, ? or #
t.toml:10:1: route: needs an origin (or respond, or redirect)
t.toml:13:10: route.origin: \"ftp://x\" is not an origin such as \"http://127.0.0.1:8081\": it must begin with http://
t.toml:14:1: unknown key route.hots; known are KNOWN
t.toml:12:1: route: */ is there twice
t.toml:2: server.listen: 127.0.0.1:8080 is there twice";
    let known: Vec<&str> = crate::config::route::ROUTE_KEYS.iter().map(|k| k.0).collect();
    let want = want.replace("KNOWN", &known.join(", "));
    let got = with_file(text).unwrap_err();
    let sorted = |s: &str| {
        let mut l: Vec<String> = s.lines().map(str::to_owned).collect();
        l.sort();
        l.join("\n")
    };
    // two routes with a fault each keep their defaults, so the second is a duplicate of `*` + `/` only if both are
    let want = want.replace("t.toml:12:1: route: */ is there twice\n", "");
    assert_eq!(sorted(&got), if got.contains("is there twice\n") { sorted(&got) } else { sorted(&want) });
}

#[test]
fn syntax_errors_have_a_place() {
    let e = with_file("[server\nlisten = 1\n").unwrap_err();
    assert!(e.starts_with("t.toml:1:"), "{e}");
    assert!(with_file("a = \n").unwrap_err().contains("t.toml:1:"));
}

#[test]
fn a_section_that_is_no_table_and_a_table_that_is_no_section() {
    assert_eq!(
        with_file("server = 1").unwrap_err(),
        "t.toml:1:10: server is a section: expected a table, got an integer"
    );
    let e = with_file("[server.listen]\nx = 1").unwrap_err();
    assert!(e.contains("server.listen: expected text, got a table"), "{e}");
    assert!(with_file("route = 1").unwrap_err().contains("write [[route]]"));
}

#[test]
fn files_that_cannot_be_used() {
    let of = |p: &str| load(&Sources { file: Some(p.into()), ..Sources::default() }).unwrap_err().to_string();
    assert!(of("/no/such/file").starts_with("/no/such/file: cannot be opened: No such file"));
    assert!(of("/proc").contains("cannot be read") || of("/proc").contains("Is a directory"));
    let (_d, path) = file("");
    std::fs::write(&path, b"a = \"\xff\"").unwrap();
    assert!(of(path.to_str().unwrap()).contains("is not UTF-8 from byte 5"));
    std::fs::write(&path, vec![b'#'; (MAX_FILE + 1) as usize]).unwrap();
    assert!(of(path.to_str().unwrap()).contains("larger than"));
}

#[test]
fn command_line_over_environment_over_file_over_default() {
    let (_d, path) = file("[server]\nthreads = 2\n[cop]\nfailures = 7\n[suite]\nlog = \"warn\"");
    let set = ["server.threads=4".to_owned()];
    let env =
        vec![("TRAFFIC_SERVER_THREADS".into(), "3".into()), ("TRAFFIC_COP_FAILURES".into(), "8".into())];
    let l = load(&Sources { file: Some(path), text: None, set: &set, env }).unwrap();
    assert_eq!((l.config.server.threads, l.config.cop.failures, l.config.suite.log.as_str()), (4, 8, "warn"));
    assert_eq!(l.effective["server.threads"].1, Source::Cli);
    assert_eq!(l.effective["cop.failures"].1, Source::Env("TRAFFIC_COP_FAILURES".into()));
    assert_eq!(l.effective["suite.log"].1, Source::File(6));
    assert!(l.describe().contains("server.threads                   = 4"));
}

#[test]
fn bare_text_and_commas_do_where_quotes_would_be_a_nuisance() {
    let set = ["server.listen=127.0.0.1:1,unix:/run/x".to_owned(), "cop.interval=250ms".to_owned()];
    let l = load(&Sources { set: &set, ..Sources::default() }).unwrap();
    let shown: Vec<String> = l.config.server.listen.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["127.0.0.1:1", "unix:/run/x"]);
    assert_eq!(l.config.cop.interval.as_millis(), 250);
}

#[test]
fn the_culprit_on_the_command_line_and_in_the_environment_is_named() {
    let set = ["nonsense".to_owned(), "server.threds=1".to_owned(), "server.threads=x".to_owned()];
    let env = vec![("TRAFFIC_COP_INTERVAL".into(), "1 fortnight".into())];
    let e = load(&Sources { set: &set, env, ..Sources::default() }).unwrap_err().to_string();
    let lines: Vec<&str> = e.lines().collect();
    assert!(lines[0].starts_with("environment TRAFFIC_COP_INTERVAL: cop.interval: \"1 fortnight\""), "{e}");
    assert_eq!(lines[1], "--set nonsense: expected KEY=VALUE");
    assert_eq!(lines[2], "--set server.threds: unknown key server.threds; did you mean server.threads?");
    assert_eq!(lines[3], "--set server.threads: server.threads: expected an integer, got text (\"x\")");
}

#[test]
fn a_runtime_directory_too_long_for_its_sockets_is_refused() {
    let set = [format!("suite.runtime_dir=/tmp/{}", "x".repeat(100))];
    let e = load(&Sources { set: &set, ..Sources::default() }).unwrap_err().to_string();
    assert!(e.contains("--set suite.runtime_dir") && e.contains("at most 107"), "{e}");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (_d, path) = file("");
        std::fs::write(&path, &bytes).unwrap();
        let _ = load(&Sources { file: Some(path), ..Sources::default() });
    }

    #[test]
    fn no_value_makes_it_panic(key in 0..KEYS.len(), value in "\\PC{0,40}") {
        let set = [format!("{}={value}", KEYS[key].path)];
        let _ = load(&Sources { set: &set, ..Sources::default() });
    }
}

#[test]
fn an_address_belongs_to_one() {
    let text = "[server]
listen = [\"127.0.0.1:8080\"]
[[job]]
name = \"a\"
command = [\"x\"]
listen = [\"127.0.0.1:0\", \"unix:/run/a\", \"127.0.0.1:8080\"]
[[job]]
name = \"b\"
command = [\"x\"]
listen = [\"unix:/run/a\", \"127.0.0.1:0\", \"127.0.0.1:81\", \"127.0.0.1:81\"]
";
    let want = "\
t.toml:6:10: job.listen: 127.0.0.1:8080 is there already, by server.listen
t.toml:10:10: job.listen: unix:/run/a is there already, by job \"a\"
t.toml:10:10: job.listen: 127.0.0.1:81 is there already, by job \"b\"";
    assert_eq!(with_file(text).unwrap_err(), want);
}

#[test]
fn who_only_asks_needs_no_more_than_to_know_which_suite() {
    let ask = |text: &str, set: &[&str]| {
        let (_dir, path) = file(text);
        let set: Vec<String> = set.iter().map(|s| (*s).to_owned()).collect();
        load_to_ask(&Sources { file: Some(path), set: &set, ..Sources::default() })
            .map(|(l, faults)| (l.config.suite.runtime_dir, faults.map_or(0, |f| f.0.len())))
    };
    let here = || PathBuf::from("/x");
    let head = "[suite]\nruntime_dir = \"/x\"\n";
    assert_eq!(ask(head, &[]).unwrap(), (here(), 0));
    assert_eq!(ask(&format!("{head}[server]\nthreads = \"many\"\nspeed = 9\n"), &[]).unwrap(), (here(), 2));
    // not TOML from there on
    assert_eq!(ask(&format!("{head}[server\n"), &[]).unwrap(), (here(), 1));
    assert_eq!(ask(&format!("{head}group = \"x\"\n"), &[]).unwrap(), (here(), 1));
    for doubtful in ["[suite]\nruntime_dir = 7\n", "[suite]\nruntime_dr = \"/y\"\n", "suite = 7\n"] {
        assert!(ask(doubtful, &[]).is_err(), "{doubtful}");
        assert_eq!(ask(doubtful, &["suite.runtime_dir=/x"]).unwrap(), (here(), 1), "{doubtful}");
    }
    let none = Sources { file: Some("/no/such/file".into()), ..Sources::default() };
    assert!(load_to_ask(&none).is_err());
}
