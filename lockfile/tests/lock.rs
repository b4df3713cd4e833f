//! Taking, probing and losing a lock, with a second process.

mod peer;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use lockfile::{Error, Got, Lockfile, Process, Signal, State, Text};
use peer::{Group, Peer};
use rustix::fs::{CWD, RenameFlags, renameat_with};

#[test]
fn peer() {
    peer::serve();
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server.lock");
    (dir, path)
}

fn holder(path: &Path) -> lockfile::Holder {
    Lockfile::holder(path).unwrap().expect("somebody holds it")
}

#[test]
fn a_lock_goes_to_one_and_is_free_when_that_one_leaves() {
    let (_dir, path) = place();
    let mut ours = Lockfile::new(&path);
    assert_eq!(ours.open().unwrap(), State::Free);
    assert!(!ours.is_held());

    let mut peer = Peer::holding(&path);
    assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", peer.pid()));
    let State::Held(seen) = ours.open().unwrap() else { panic!("held by the peer") };
    assert_eq!((seen.pid, seen.process, seen.text), (peer.pid(), Process::Running, Text::Agrees));
    assert_eq!(ours.get().unwrap(), Got::Held(holder(&path)));

    assert_eq!(peer.ask("close", &path), "closed");
    assert_eq!(fs::read_to_string(&path).unwrap(), "", "no stale pid stays");
    assert_eq!(ours.get().unwrap(), Got::Acquired);
    assert_eq!(ours.get().unwrap(), Got::Acquired, "again is no error");
    assert!(ours.is_held());
    assert_eq!(peer.ask("get", &path), format!("held {}", std::process::id()));

    ours.close().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "");
    assert_eq!(peer.ask("get", &path), "acquired");
}

#[test]
fn a_lock_does_not_go_over_a_fork() {
    let (_dir, path) = place();
    let mut peer = Peer::holding(&path);
    assert_eq!(peer.ask("held-by-child", &path), "no");
    assert_eq!(holder(&path).pid, peer.pid());
    // who shares our descriptors is told which one it is
    let mut ours = Lockfile::new(&path);
    assert!(ours.fd().is_none());
    ours.open().unwrap();
    assert!(ours.fd().is_some());
}

#[test]
fn a_killed_holder_leaves_its_text_and_a_free_lock() {
    let (_dir, path) = place();
    let mut peer = Peer::holding(&path);
    peer.die();
    assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", peer.pid()));
    assert_eq!(Lockfile::holder(&path).unwrap(), None);
    let mut ours = Lockfile::new(&path);
    assert_eq!(ours.open().unwrap(), State::Free);
    assert_eq!(ours.get().unwrap(), Got::Acquired);
    assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
}

#[test]
fn of_many_at_once_one_gets_it() {
    let (_dir, path) = place();
    let mut peers: Vec<Peer> = (0..4).map(|_| Peer::start(Group::Own)).collect();
    for _ in 0..50 {
        for p in &mut peers {
            p.send(&format!("get {}", path.display()));
        }
        let answers: Vec<String> = peers.iter_mut().map(Peer::answer).collect();
        assert_eq!(answers.iter().filter(|a| *a == "acquired").count(), 1, "{answers:?}");
        for p in &mut peers {
            assert_eq!(p.ask("close", &path), "closed");
        }
    }
}

#[test]
fn the_kernel_is_believed_and_not_the_text() {
    let (_dir, path) = place();
    let peer = Peer::holding(&path);
    // a close in *this* process does nothing to the lock of that one
    for (text, expected) in [
        ("4242\n", Text::Stale(4242)),
        ("", Text::Empty),
        ("no pid\n", Text::Garbage("no pid\\n".into())),
        ("-1\n", Text::Garbage("-1\\n".into())),
    ] {
        fs::write(&path, text).unwrap();
        let seen = holder(&path);
        assert_eq!((seen.pid, seen.text), (peer.pid(), expected));
    }
    fs::write(&path, [0xff; 100_000]).unwrap();
    let Text::Garbage(shown) = holder(&path).text else { panic!("that is no pid") };
    assert!(shown.len() < 1000, "what is read is bounded");
}

#[test]
fn closing_any_descriptor_in_the_holder_drops_the_lock() {
    let (_dir, path) = place();
    let mut peer = Peer::holding(&path);
    // the trap itself, which the crate can only warn of
    assert_eq!(peer.ask("open-and-close-by-hand", &path), "done");
    assert_eq!(Lockfile::holder(&path).unwrap(), None);
}

#[test]
fn the_crate_itself_never_walks_into_that() {
    let (dir, path) = place();
    let mut peer = Peer::holding(&path);
    let other_name = dir.path().join("link.lock");
    fs::hard_link(&path, &other_name).unwrap();
    for name in [&path, &other_name] {
        assert!(peer.ask("holder", name).contains("held by this very process"));
        assert!(peer.ask("kill", name).contains("held by this very process"));
        assert!(peer.ask("open-again", name).contains("open already"));
        assert!(peer.ask("get", name).contains("open already"));
        assert_eq!(holder(&path).pid, peer.pid(), "and still has it");
    }
}

#[test]
fn a_file_that_is_open_here_may_be_probed_but_not_opened_twice() {
    let (_dir, path) = place();
    let mut first = Lockfile::new(&path);
    first.open().unwrap();
    assert!(matches!(Lockfile::new(&path).open(), Err(Error::OpenHere { .. })));
    assert_eq!(Lockfile::holder(&path).unwrap(), None);
    first.get().unwrap();
    assert!(matches!(Lockfile::holder(&path), Err(Error::HeldHere { .. })));
    drop(first);
    assert_eq!(Lockfile::new(&path).get().unwrap(), Got::Acquired);
}

#[test]
fn a_lock_whose_file_is_removed_is_not_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.lock");
    let mut lock = Lockfile::new(&path);
    assert!(!lock.is_in_place());
    lock.open().unwrap();
    assert!(!lock.is_in_place(), "open, not held");
    assert_eq!(lock.get().unwrap(), Got::Acquired);
    assert!(lock.is_in_place());
    fs::rename(&path, dir.path().join("y")).unwrap();
    assert!(!lock.is_in_place() && lock.is_held());
    fs::write(&path, "1\n").unwrap();
    assert!(!lock.is_in_place(), "another one's file");
    lock.close().unwrap();
    assert_eq!(lock.get().unwrap(), Got::Acquired);
    assert!(lock.is_in_place());
}

#[test]
fn a_file_replaced_between_open_and_get_is_not_what_gets_locked() {
    let (_dir, path) = place();
    let mut ours = Lockfile::new(&path);
    ours.open().unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(ours.get().unwrap(), Got::Acquired);
    let mut peer = Peer::start(Group::Own);
    assert_eq!(peer.ask("get", &path), format!("held {}", std::process::id()));
}

#[test]
fn only_regular_files_are_touched() {
    let (dir, path) = place();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    fs::write(&path, "").unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for odd in [dir.path(), &fifo, &link, Path::new("/dev/null")] {
        assert!(matches!(Lockfile::new(odd).get(), Err(Error::NotRegular { .. })), "{odd:?}");
        assert!(matches!(Lockfile::holder(odd), Err(Error::NotRegular { .. })), "{odd:?}");
    }
}

/// Does this while two files change places all the time.
fn while_swapped(one: &Path, other: &Path, work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
            }
        });
        work();
        done.store(true, Ordering::Relaxed);
    });
}

/// What stands at a path when it is opened counts, also where it was something else when it was looked at.
#[test]
fn what_is_put_in_the_place_of_a_lock_file_is_neither_followed_nor_waited_for() {
    let (dir, path) = place();
    let held = dir.path().join("held.lock");
    let _owner = Peer::holding(&held);
    let (link, fifo) = (dir.path().join("link"), dir.path().join("fifo"));
    std::os::unix::fs::symlink(&held, &link).unwrap();
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    for odd in [link, fifo] {
        fs::write(&path, "").unwrap();
        let mut wrong = None;
        while_swapped(&path, &odd, || {
            let nobody = |seen: &Result<_, Error>| matches!(seen, Ok(None) | Err(Error::NotRegular { .. }));
            wrong = (0..20_000).map(|_| Lockfile::holder(&path)).find(|seen| !nobody(seen));
        });
        assert!(wrong.is_none(), "{wrong:?}");
        // whichever of the two is there now
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_path_that_comes_to_name_our_own_lock_file_does_not_cost_us_the_lock() {
    let (dir, path) = place();
    let mut ours = Lockfile::new(&path);
    assert_eq!(ours.get().unwrap(), Got::Acquired);
    let (probed, link) = (dir.path().join("probed.lock"), dir.path().join("link.lock"));
    fs::write(&probed, "").unwrap();
    fs::hard_link(&path, &link).unwrap();
    let mut seen = None;
    while_swapped(&probed, &link, || {
        let known = |seen: &Result<_, Error>| matches!(seen, Ok(None) | Err(Error::HeldHere { .. }));
        seen = (0..20_000).map(|_| Lockfile::holder(&probed)).find(|seen| !known(seen));
    });
    assert!(seen.is_none(), "{seen:?}");
    assert_eq!(Peer::start(Group::Own).ask("get", &path), format!("held {}", std::process::id()));
}

#[test]
fn a_directory_that_may_not_be_written_is_an_error_with_a_reason() {
    let (dir, path) = place();
    let held = dir.path().join("held.lock");
    let owner = Peer::holding(&held);
    fs::set_permissions(&held, fs::Permissions::from_mode(0o444)).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let mut peer = Peer::start(Group::Own);
    assert_eq!(peer.ask("become-nobody", &path), "nobody");
    let said = peer.ask("get", &path);
    assert!(
        said.contains("cannot open lock file") && said.contains("server.lock: Permission denied"),
        "{said}"
    );
    // neither can a file that is there be locked, but it can be probed
    assert!(peer.ask("get", &held).contains("Permission denied"));
    assert!(peer.ask("holder", &held).contains(&format!("pid: {}", owner.pid())));
    assert_eq!(peer.ask("holder", &path), "None", "a probe creates nothing");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_missing_directory_is_an_error_for_a_lock_and_nobody_for_a_probe() {
    let (dir, _) = place();
    let path = dir.path().join("none/server.lock");
    assert!(matches!(Lockfile::new(&path).get(), Err(Error::Os { action: "open", .. })));
    assert_eq!(Lockfile::holder(&path).unwrap(), None);
}

#[test]
fn a_lock_outlives_its_process_in_a_shared_descriptor_table() {
    let (_dir, path) = place();
    let mut peer = Peer::holding(&path);
    assert_eq!(peer.ask("keeper", &path), "kept");
    peer.signal(Signal::SIGKILL);
    let stdin = peer.stdin.take();
    peer.child.wait().unwrap();
    let seen = holder(&path);
    // within a pid namespace the kernel has no number left to show
    match seen.process {
        Process::Dead => assert_eq!((seen.pid, seen.text), (peer.pid(), Text::Agrees)),
        Process::Hidden => assert_eq!((seen.pid, seen.text), (0, Text::Stale(peer.pid()))),
        Process::Running => panic!("it is dead: {seen:?}"),
    }
    assert!(matches!(Lockfile::new(&path).get().unwrap(), Got::Held(_)));
    // the keeper goes with the last writer of its standard input, and the end of its output tells that it is gone
    drop(stdin);
    peer.drained();
    assert_eq!(Lockfile::new(&path).get().unwrap(), Got::Acquired);
}

#[test]
fn a_longer_pid_of_a_dead_holder_is_covered_to_its_last_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.lock");
    for left in ["4294967295\n", "", &"garbage ".repeat(100)] {
        std::fs::write(&path, left).unwrap();
        let mut lock = Lockfile::new(&path);
        assert!(matches!(lock.get().unwrap(), Got::Acquired));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        lock.close().unwrap();
    }
}
