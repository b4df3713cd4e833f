//! What was worth keeping of the fuzzing, once more; and each target on bytes that no fuzzer has seen.

use std::fs;
use std::path::Path;

#[test]
fn every_kept_input_holds() {
    for (name, target) in fuzz::TARGETS {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let files = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let mut n = 0;
        for file in files {
            let path = file.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            let held = std::panic::catch_unwind(|| target(&bytes));
            assert!(held.is_ok(), "{name} doesn't hold for {}", path.display());
            n += 1;
        }
        assert!(n >= 5, "{name} has only {n} inputs");
    }
}

#[test]
fn every_cut_of_a_kept_input_holds() {
    for (name, target) in fuzz::TARGETS {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let files = fs::read_dir(&dir)
            .unwrap()
            .map(|f| f.unwrap().path())
            .filter(|p| fs::metadata(p).unwrap().len() < 300);
        for path in files.take(20) {
            let bytes = fs::read(&path).unwrap();
            for end in 0..bytes.len() {
                target(&bytes[..end]);
            }
        }
    }
}

#[test]
fn every_target_has_a_program() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    for (name, _) in fuzz::TARGETS {
        assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")), "{name} can't be fuzzed");
    }
}
