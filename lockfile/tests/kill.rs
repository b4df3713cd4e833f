//! Ending the holder of a lock, and never a stranger.

mod peer;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lockfile::{Error, Killed, Lockfile, Signal};
use peer::{Group, Peer};

#[test]
fn peer() {
    peer::serve();
}

/// Long enough for a loaded machine; no test that passes waits for it.
const ENOUGH: Duration = Duration::from_secs(30);

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server.lock");
    (dir, path)
}

#[test]
fn nobody_is_killed_for_a_free_or_missing_lock() {
    let (_dir, path) = place();
    let lock = Lockfile::new(&path);
    assert_eq!(lock.kill(Signal::SIGKILL, None, ENOUGH).unwrap(), Killed::NobodyHeldIt);
    assert!(!path.exists());
    // a stale text names a process that must not be touched: ourselves
    fs::write(&path, format!("{}\n", std::process::id())).unwrap();
    assert_eq!(lock.kill(Signal::SIGKILL, None, ENOUGH).unwrap(), Killed::NobodyHeldIt);
}

#[test]
fn the_holder_goes_whatever_the_text_says() {
    let (_dir, path) = place();
    let peer = Peer::holding(&path);
    fs::write(&path, format!("{}\n", std::process::id())).unwrap();
    // nobody reaps it meanwhile: a zombie is gone too
    assert_eq!(
        Lockfile::new(&path).kill(Signal::SIGTERM, None, ENOUGH).unwrap(),
        Killed::Gone { pid: peer.pid(), after: Signal::SIGTERM, lock_free: true }
    );
}

#[test]
fn the_core_signal_comes_first_and_reaches_a_stopped_process() {
    let (_dir, path) = place();
    let peer = Peer::holding(&path);
    peer.signal(Signal::SIGSTOP);
    assert_eq!(
        // any signal that ends a process does for the core signal; this one leaves no core of a test
        Lockfile::new(&path).kill(Signal::SIGKILL, Some(Signal::SIGUSR1), ENOUGH).unwrap(),
        Killed::Gone { pid: peer.pid(), after: Signal::SIGUSR1, lock_free: true }
    );
}

#[test]
fn a_stopped_process_is_continued_so_that_it_can_end_in_its_own_way() {
    let (_dir, path) = place();
    let mut peer = Peer::holding(&path);
    assert_eq!(peer.ask("handle-term", &path), "handles");
    peer.signal(Signal::SIGSTOP);
    assert_eq!(
        Lockfile::new(&path).kill(Signal::SIGKILL, Some(Signal::SIGTERM), ENOUGH).unwrap(),
        Killed::Gone { pid: peer.pid(), after: Signal::SIGTERM, lock_free: true }
    );
}

#[test]
fn who_withstands_is_reported_in_time_and_killed_by_the_next_step() {
    let (_dir, path) = place();
    let mut peer = Peer::holding(&path);
    assert_eq!(peer.ask("ignore-term", &path), "ignored");
    let lock = Lockfile::new(&path);
    let start = Instant::now();
    let bound = Duration::from_millis(50);
    assert_eq!(lock.kill(Signal::SIGTERM, None, bound).unwrap(), Killed::StillThere { pid: peer.pid() });
    assert!(start.elapsed() >= bound);
    assert_eq!(
        lock.kill(Signal::SIGKILL, Some(Signal::SIGTERM), 4 * bound).unwrap(),
        Killed::Gone { pid: peer.pid(), after: Signal::SIGKILL, lock_free: true }
    );
}

#[test]
fn the_core_signal_has_half_of_the_time() {
    let (_dir, path) = place();
    let mut peer = Peer::holding(&path);
    assert_eq!(peer.ask("ignore-term", &path), "ignored");
    let (start, time) = (Instant::now(), Duration::from_secs(1));
    assert_eq!(
        Lockfile::new(&path).kill(Signal::SIGKILL, Some(Signal::SIGTERM), time).unwrap(),
        Killed::Gone { pid: peer.pid(), after: Signal::SIGKILL, lock_free: true }
    );
    assert!((time / 2..2 * time).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[test]
fn where_nobody_may_look_the_kernels_word_must_do() {
    if !nix::unistd::getuid().is_root() {
        eprintln!("not root: there is no other user to be");
        return;
    }
    let (dir, path) = place();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut holder = Peer::start(Group::Own);
    assert_eq!(holder.ask("become-nobody", &path), "nobody");
    assert_eq!(holder.ask("get", &path), "acquired");
    let said = Peer::without_ptrace().ask("kill", &path);
    assert!(said.starts_with(&format!("Gone {{ pid: {}", holder.pid())), "{said}");
}

#[test]
fn a_recycled_pid_is_left_alone() {
    let (_dir, path) = place();
    let mut peer = Peer::holding(&path);
    // the lock stays with the keeper's table, under a pid that is another program from here on
    assert_eq!(peer.ask("keeper-and-exec", &path), "another program");
    let lock = Lockfile::new(&path);
    assert_eq!(Lockfile::holder(&path).unwrap().unwrap().pid, peer.pid());
    assert_eq!(
        lock.kill(Signal::SIGKILL, Some(Signal::SIGUSR1), ENOUGH).unwrap(),
        Killed::Recycled { pid: peer.pid() }
    );
    assert!(peer.child.try_wait().unwrap().is_none(), "the stranger lives");
}

#[test]
fn a_dead_holder_is_not_signalled() {
    let (_dir, path) = place();
    let mut peer = Peer::holding(&path);
    assert_eq!(peer.ask("keeper", &path), "kept");
    let lock = Lockfile::new(&path);
    let stdin = peer.stdin.take();
    peer.signal(Signal::SIGKILL);
    peer.wait_unreaped();
    assert_eq!(lock.kill(Signal::SIGKILL, None, ENOUGH).unwrap(), Killed::HolderDead { pid: peer.pid() });
    peer.child.wait().unwrap();
    let reaped = lock.kill(Signal::SIGKILL, None, ENOUGH).unwrap();
    // within a pid namespace the kernel has no number left to show
    let expected = [Killed::HolderDead { pid: peer.pid() }, Killed::Unreachable { pid: 0 }];
    assert!(expected.contains(&reaped), "{reaped:?}");
    drop(stdin);
}

#[test]
fn a_holder_killed_under_a_keeper_leaves_a_lock_that_is_not_free() {
    let (_dir, path) = place();
    let mut peer = Peer::holding(&path);
    assert_eq!(peer.ask("keeper", &path), "kept");
    assert_eq!(
        Lockfile::new(&path).kill(Signal::SIGKILL, None, ENOUGH).unwrap(),
        Killed::Gone { pid: peer.pid(), after: Signal::SIGKILL, lock_free: false }
    );
}

#[test]
fn a_group_goes_with_its_leader_even_those_who_withstand_the_core_signal() {
    let (_dir, path) = place();
    let mut peer = Peer::holding(&path);
    // the leader dies of SIGUSR1, the member does not
    let member = peer::pidfd(peer.ask("member", &path).parse().unwrap());
    assert_eq!(
        Lockfile::new(&path).kill_group(Signal::SIGKILL, Some(Signal::SIGUSR1), ENOUGH).unwrap(),
        Killed::Gone { pid: peer.pid(), after: Signal::SIGUSR1, lock_free: true }
    );
    assert!(peer::ends(&member, ENOUGH), "the member is killed although the leader was dead by then");
}

#[test]
fn a_group_that_is_not_the_holders_own_is_not_touched() {
    let (_dir, path) = place();
    let lock = Lockfile::new(&path);
    let refused = |why: &str| match lock.kill_group(Signal::SIGKILL, None, ENOUGH) {
        Err(Error::Group { why: said, .. }) => assert!(said.contains(why), "{said}"),
        other => panic!("{other:?}"),
    };
    let mut ours = Peer::start(Group::Ours);
    assert_eq!(ours.ask("get", &path), "acquired");
    refused("our own");
    ours.die();

    let mut leader = Peer::start(Group::Own);
    let mut member = Peer::start(Group::Of(leader.pid()));
    assert_eq!(member.ask("get", &path), "acquired");
    refused("does not lead");
    assert!(leader.child.try_wait().unwrap().is_none() && member.child.try_wait().unwrap().is_none());
}

#[test]
fn who_may_not_signal_is_told_so() {
    if !nix::unistd::getuid().is_root() {
        eprintln!("not root: there is no other user to be");
        return;
    }
    let (dir, path) = place();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut holder = Peer::holding(&path);
    let mut peer = Peer::start(Group::Own);
    assert_eq!(peer.ask("become-nobody", &path), "nobody");
    let said = peer.ask("kill", &path);
    assert!(
        said.contains("cannot send SIGKILL to pid") && said.contains("Operation not permitted"),
        "{said}"
    );
    assert!(holder.child.try_wait().unwrap().is_none());
}
