//! Rules that a machine can check: layers, size, unsafe, crate roots, exit codes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Every Rust file of ours, relative to the root.
fn sources() -> Vec<PathBuf> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let skip = name == "target" || name.to_string_lossy().starts_with('.');
            if path.is_dir() && !skip {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push(path);
            }
        }
    }
    let mut list = Vec::new();
    walk(&root(), &mut list);
    let root = root();
    list.iter().map(|p| p.strip_prefix(&root).unwrap().to_owned()).collect()
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(root().join(&path)).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}

/// The layers of ARCHITECTURE.md: who may depend on whom.
fn allowed() -> BTreeMap<&'static str, Vec<&'static str>> {
    BTreeMap::from([
        ("policy", vec![]),
        ("lockfile", vec!["policy"]),
        ("engine", vec!["policy"]),
        ("supervisor", vec!["lockfile", "policy"]),
        ("proxy", vec!["engine", "policy"]),
        ("bins", vec!["policy", "lockfile", "engine", "supervisor", "proxy"]),
        ("packaging", vec!["bins"]),
        ("fuzz", vec!["policy", "supervisor", "proxy", "bins"]),
        ("benches/respawn", vec!["supervisor", "bins"]),
    ])
}

/// Crates of ours named in the `[dependencies]` of a manifest.
fn dependencies(manifest: &str, ours: &[&'static str]) -> Vec<&'static str> {
    let table: toml::Table = manifest.parse().unwrap();
    let sections = ["dependencies", "build-dependencies", "dev-dependencies"];
    let named = sections.iter().filter_map(|s| table.get(*s)?.as_table()).flat_map(|t| t.keys());
    let named: Vec<&String> = named.collect();
    ours.iter().copied().filter(|o| named.iter().any(|n| n == o)).collect()
}

fn forbidden_edges(manifest: &str, allowed: &[&str], ours: &[&'static str]) -> Vec<&'static str> {
    dependencies(manifest, ours).into_iter().filter(|d| !allowed.contains(d)).collect()
}

#[test]
fn no_crate_depends_on_what_lies_above_it() {
    let table = allowed();
    let ours: Vec<&'static str> = table.keys().copied().collect();
    for (krate, may) in &table {
        let bad = forbidden_edges(&read(format!("{krate}/Cargo.toml")), may, &ours);
        assert!(bad.is_empty(), "{krate} depends on {bad:?}; see ARCHITECTURE.md");
    }
    // and the rule can fail
    let bad = forbidden_edges("[dependencies]\nengine.workspace = true", &["policy"], &ours);
    assert_eq!(bad, ["engine"]);
}

#[test]
fn cop_reaches_neither_engine_nor_proxy() {
    // what cop is made of: everything of the package but the modules of the two programs that may
    let theirs = ["bins/src/manager", "bins/src/server", "bins/src/bin", "bins/src/lib.rs"];
    let cops = |p: &PathBuf| p.starts_with("bins/src") && !theirs.iter().any(|t| p.starts_with(t));
    let files: Vec<PathBuf> = sources().into_iter().filter(cops).collect();
    assert!(files.len() > 20, "found only {files:?}");
    for f in files {
        let text = read(&f);
        let code: Vec<&str> = text.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
        for word in ["engine::", "proxy::", "hyper::", "crate::manager", "crate::server"] {
            let hit = code.iter().find(|l| l.contains(word));
            assert!(hit.is_none(), "{} names {word}: {}", f.display(), hit.unwrap());
        }
    }
}

#[test]
fn policy_does_no_io_and_knows_no_clock() {
    for f in sources().into_iter().filter(|p| p.starts_with("policy/src")) {
        let text = read(&f);
        for word in
            ["std::fs", "std::net", "std::io", "std::thread", "Instant::now", "SystemTime", "std::process"]
        {
            assert!(!text.contains(word), "{} names {word}", f.display());
        }
    }
    assert!(dependencies(&read("policy/Cargo.toml"), &["engine"]).is_empty());
    let manifest: toml::Table = read("policy/Cargo.toml").parse().unwrap();
    assert!(manifest.get("dependencies").and_then(|d| d.as_table()).is_none_or(|t| t.is_empty()));
}

#[test]
fn files_stay_readable() {
    for f in sources() {
        let lines = read(&f).lines().count();
        assert!(lines <= 650, "{} has {lines} lines: split it", f.display());
    }
}

#[test]
fn every_file_says_what_it_is() {
    for f in sources() {
        let text = read(&f);
        let first = text.lines().find(|l| !l.is_empty()).unwrap_or("");
        assert!(first.starts_with("//!") || first.starts_with("#!"), "{} begins with {first:?}", f.display());
    }
}

#[test]
fn unsafe_is_fenced_and_explained() {
    for f in sources() {
        let text = read(&f);
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            let opens = ["unsafe {", "unsafe impl"].iter().any(|w| code.contains(w)) && !code.contains('"');
            if !opens {
                continue;
            }
            let before = lines[i.saturating_sub(6)..=i].join("\n");
            assert!(before.contains("SAFETY"), "{}:{}: unsafe without a word", f.display(), i + 1);
        }
    }
}

#[test]
fn every_benchmark_says_what_it_costs_and_a_wrong_name_is_refused() {
    let run = |arg: &str| std::process::Command::new(root().join("benches/run")).arg(arg).output().unwrap();
    let list = String::from_utf8(run("--list").stdout).unwrap();
    let dirs = fs::read_dir(root().join("benches")).unwrap().flatten();
    let names: Vec<String> = dirs
        .filter(|d| d.path().join("run").exists())
        .map(|d| d.file_name().into_string().unwrap())
        .collect();
    assert!(names.len() > 5, "found only {names:?}");
    for name in names {
        let line = list.lines().find(|l| l.split_whitespace().next() == Some(&name));
        let line = line.unwrap_or_else(|| panic!("benches/run --list has no {name}:\n{list}"));
        assert!(line.contains("minute"), "benches/{name}/run has no line \"bench:\" with its time: {line}");
    }
    let wrong = run("no-such-benchmark");
    assert_eq!(wrong.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("no-such-benchmark"));
}

#[test]
fn exit_codes_of_the_docs_are_those_of_the_enum() {
    let docs = read("docs/operations.md");
    for exit in traffic::exit::Exit::ALL {
        let row = format!("| {} |", exit.code());
        assert!(docs.contains(&row), "docs/operations.md has no row for {exit:?} ({})", exit.code());
    }
    let rows = docs
        .lines()
        .filter(|l| l.strip_prefix("| ").is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit())));
    assert_eq!(rows.count(), traffic::exit::Exit::ALL.len());
}

/// Tests that a page names as `file::test`, in code type.
fn named_tests(page: &str) -> Vec<(&str, &str)> {
    page.split('`')
        .filter_map(|code| code.split_once("::"))
        .filter(|(file, _)| file.ends_with(".rs"))
        .collect()
}

fn has_test(file: &str, name: &str) -> bool {
    let Ok(text) = fs::read_to_string(root().join(file)) else { return false };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let Some(at) = lines.iter().position(|l| l.starts_with(&format!("fn {name}("))) else { return false };
    // the attribute stands above it, others may stand between
    lines[..at]
        .iter()
        .rev()
        .take_while(|l| l.starts_with("#[") || l.starts_with("//"))
        .any(|l| *l == "#[test]")
}

#[test]
fn tests_that_the_docs_name_exist() {
    let page = read("docs/reliability.md");
    let named = named_tests(&page);
    let rows = page.lines().filter(|l| l.starts_with("| ") && l.as_bytes()[2].is_ascii_digit()).count();
    assert!(rows == 20 && named.len() > 2 * rows, "{rows} rows, {} tests", named.len());
    for (file, name) in named {
        assert!(has_test(file, name), "docs/reliability.md names {file}::{name}, which is no test");
    }
    // and the check can fail
    assert!(!has_test("tests/tidy.rs", "no_such_test"));
    assert!(!has_test("tests/tidy.rs", "has_test"));
}

#[test]
fn no_path_of_a_development_machine_is_in_the_tree() {
    let root = root();
    let parent = format!("{}/", root.parent().unwrap().display());
    if parent.len() < 3 {
        return;
    }
    for f in
        sources().iter().map(PathBuf::as_path).chain([Path::new("README.md"), Path::new("ARCHITECTURE.md")])
    {
        assert!(!read(f).contains(&parent), "{} names {parent}", f.display());
    }
}
