//! Every kind of step, and every kind of fault with its line, its step and its key.

use super::*;

fn good(text: &str) -> Scenario {
    parse("s.toml", text).unwrap_or_else(|e| panic!("{e}"))
}

/// The steps of a scenario that expects something in the end.
fn steps(text: &str) -> Vec<Action> {
    let text = format!("title = \"t\"\n{text}\n[[step]]\nexpect = {{ failed = 0 }}\n");
    let mut all: Vec<_> = good(&text).steps.into_iter().map(|s| s.action).collect();
    all.pop();
    all
}

fn fault(text: &str) -> String {
    parse("s.toml", text).unwrap_err().to_string()
}

#[test]
fn every_step_is_read_with_what_it_has_by_default() {
    let secs = Duration::from_secs;
    let (server, manager, cop) = (Target::Server, Target::Manager, Target::Cop);
    for (text, want) in [
        ("load = \"on\"", Action::Load(Rates { connections: 20, keepalive_rate: 10, rate: 50 })),
        (
            "load = \"on\"\nconnections = 1\nkeepalive_rate = 2\nrate = 3",
            Action::Load(Rates { connections: 1, keepalive_rate: 2, rate: 3 }),
        ),
        ("load = \"off\"", Action::LoadOff),
        ("wait = \"1m 30s\"", Action::Wait(secs(90))),
        ("kill = \"server\"", Action::Kill { who: vec![server], times: 1, every: secs(1) }),
        (
            "kill = [\"manager\", \"cop\"]\ntimes = 3\nevery = \"2s\"",
            Action::Kill { who: vec![manager, cop], times: 3, every: secs(2) },
        ),
        ("stop = \"cop\"", Action::Stop { who: vec![cop], lasts: None }),
        ("stop = [\"cop\"]\nfor = \"5s\"", Action::Stop { who: vec![cop], lasts: Some(secs(5)) }),
        ("hang = \"server\"\nfor = \"1s\"", Action::Hang { lasts: Some(secs(1)) }),
        ("fill_disk = true", Action::FillDisk { leave: 0, at_most: 1 << 30, lasts: None }),
        (
            "fill_disk = true\nleave = \"1MiB\"\nat_most = \"2MiB\"",
            Action::FillDisk { leave: 1 << 20, at_most: 2 << 20, lasts: None },
        ),
        ("limit_fds = \"server\"\nto = 64", Action::LimitFds { who: server, to: 64, lasts: None }),
        ("command = \"restart\"", Action::Command(Word::Restart)),
        (
            "expect = { serving = \"5s\", changed = \"server\", same = [\"cop\"], answered = 9 }",
            Action::Expect(Expect {
                serving: Some(secs(5)),
                changed: vec![server],
                same: vec![cop],
                answered: Some(9),
                within: secs(10),
                ..Expect::default()
            }),
        ),
    ] {
        let text = format!("[[step]]\n{text}");
        assert_eq!(steps(&text), [want], "{text}");
    }
    // a table of keys is as good as one that is written out
    assert_eq!(steps("[[step]]\nexpect.lost = 0"), steps("[[step]]\n[step.expect]\nlost = 0"));
}

#[test]
fn faults_name_file_step_and_key() {
    let step = |text: &str| fault(&format!("title = \"t\"\n[[step]]\nwait = \"1s\"\n[[step]]\n{text}\n"));
    for (text, want) in [
        ("", "s.toml:4:1: step 2: does nothing: it needs one of load, wait, kill, "),
        ("wait = \"1s\"\nkill = \"cop\"", "s.toml:4:1: step 2: does more than one thing"),
        (
            "kill = \"cop\"\nfor = \"1s\"",
            "s.toml:6:7: step 2 (kill): unknown key for; beside kill it takes times, every",
        ),
        ("wait = \"1s\"\nlong = 1", "step 2 (wait): unknown key long; beside wait it takes nothing"),
        ("kill = \"bob\"", "s.toml:5:8: step 2 (kill): kill: \"bob\" is none of server, manager, cop"),
        ("kill = []", "step 2 (kill): kill: names nobody"),
        ("kill = [\"cop\", \"cop\"]", "cop is there twice"),
        ("kill = 3", "step 2 (kill): kill: expected text"),
        ("kill = \"cop\"\ntimes = 0", "s.toml:6:9: step 2 (kill): times: 0 is out of range"),
        ("wait = 3", "step 2 (wait): wait: a duration needs a unit"),
        ("wait = \"2days\"", "more than a day"),
        ("load = \"up\"", "\"up\" is none of on, off"),
        ("load = \"on\"\nconnections = 0\nrate = 0", "without both there is no load"),
        ("hang = \"cop\"", "step 2 (hang): hang: \"cop\" is none of server"),
        ("fill_disk = false", "can only be true"),
        ("limit_fds = \"server\"", "step 2 (limit_fds): to: is missing"),
        ("command = \"stop\"", "\"stop\" is none of reload, restart, pause, resume"),
        ("expect = 1", "step 2 (expect): expect: expected a table"),
        ("expect = {}", "expects nothing"),
        ("expect = { within = \"1s\" }", "expects nothing"),
        (
            "expect = { fine = 1 }",
            "s.toml:5:19: step 2 (expect): unknown key expect.fine; known are serving, ",
        ),
        ("expect = { failed = -1 }", "step 2 (expect): failed: -1 is out of range"),
    ] {
        let said = step(text);
        assert!(said.contains(want), "{text:?}: {said:?} hasn't {want:?}");
    }
    for (text, want) in [
        ("", "s.toml:1:1: title: is missing"),
        ("title = \"t\"\n[[step]]\nwait = \"1s\"\n", "no step expects anything: it could not fail"),
        ("title = \"t\"\nsteps = 1\n", "s.toml:2:9: unknown key steps; known are title,"),
        ("title = 1\n", "s.toml:1:9: title: expected text"),
        ("title = \"t\"\nstep = 3\n", "write [[step]]"),
        ("title = \"t\"\nstep = [3]\n", "step 1: expected a table"),
        ("title = \"t\n", "s.toml:1:"),
    ] {
        assert!(fault(text).contains(want), "{text:?}: {:?} hasn't {want:?}", fault(text));
    }
    // and all of them at once
    let all = fault("mix = 1\n[[step]]\nwait = 1\n[[step]]\nkill = \"x\"\n");
    assert_eq!(all.lines().count(), 4, "{all}");
}

#[test]
fn no_bytes_make_it_panic() {
    use proptest::prelude::*;
    let mut runner = proptest::test_runner::TestRunner::default();
    let words = prop_oneof![
        Just("[[step]]\n".to_owned()),
        Just("title = \"t\"\n".to_owned()),
        Just("kill = [\"server\"]\n".to_owned()),
        Just("expect = { failed = 0 }\n".to_owned()),
        Just("[step.expect]\n".to_owned()),
        "\\PC{0,20}",
        "[a-z_]{1,8} = [0-9\"\\[\\{a-z]{0,6}\n",
    ];
    let texts = prop::collection::vec(words, 0..12).prop_map(|w| w.concat());
    let read = |text: String| {
        let _ = parse("s", &text);
        Ok(())
    };
    runner.run(&texts, read).unwrap();
}

#[test]
fn a_file_that_is_too_large_or_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.toml");
    assert!(file(&path).unwrap_err().to_string().contains("x.toml: cannot be opened"));
    std::fs::write(&path, vec![b'#'; MAX_FILE as usize + 1]).unwrap();
    assert!(file(&path).unwrap_err().to_string().contains("x.toml: is larger than"));
}
