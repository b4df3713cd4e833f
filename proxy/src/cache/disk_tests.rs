//! The directory through the eyes of one server after the other.

use super::*;
use crate::cache::object::{Head, Object};
use crate::cache::policy::Freshness;
use http::{HeaderMap, StatusCode};
use std::sync::Arc;

fn entry(body: &[u8]) -> Entry {
    let freshness = Freshness::MINUTE;
    let head = Head {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        freshness,
        received: Instant::now(),
        initial_age: 0,
    };
    Entry::Object(Arc::new(Object::new(head, Bytes::copy_from_slice(body))))
}

fn open(dir: &Path, max: u64) -> Arc<Disk> {
    let d = Arc::new(Disk::new(dir.to_owned(), max));
    d.scan().unwrap();
    d
}

fn put(d: &Disk, key: &str, entry: &Entry) {
    let ticket = d.announce(key);
    d.write(key, entry, ticket);
}

fn body(d: &Arc<Disk>, key: &str) -> Option<Vec<u8>> {
    match d.read(key)? {
        Entry::Object(o) => Some(o.body.to_vec()),
        _ => None,
    }
}

#[test]
fn the_next_server_finds_what_the_last_one_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let d = open(dir.path(), 1 << 20);
    put(&d, "a", &entry(b"1"));
    put(&d, "b", &entry(b"2"));
    put(&d, "a", &entry(b"3"));
    d.remove("b");
    let next = open(dir.path(), 1 << 20);
    assert_eq!((body(&next, "a"), body(&next, "b")), (Some(b"3".to_vec()), None));
    assert_eq!(next.stats().files, 1);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn the_bound_holds_and_the_oldest_go_first() {
    let dir = tempfile::tempdir().unwrap();
    let d = open(dir.path(), 10 * BLOCK);
    for n in 0..100 {
        put(&d, &n.to_string(), &entry(&[n; 3000]));
        assert!(d.stats().bytes <= 10 * BLOCK);
    }
    assert!(!d.knows("89") && d.knows("90") && d.knows("99"));
    // a smaller bound after a reload
    let d = open(dir.path(), 5 * BLOCK);
    assert!(d.stats().files == 5 && d.knows("99"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 5);
    put(&d, "huge", &entry(&[0; 100_000]));
    assert!(!d.knows("huge"));
}

#[test]
fn damaged_files_are_dropped_and_counted_and_strangers_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let d = open(dir.path(), 1 << 20);
    put(&d, "cut", &entry(&[1; 100]));
    put(&d, "bent", &entry(&[2; 100]));
    put(&d, "gone", &entry(&[3; 100]));
    fs::write(dir.path().join("README"), "not ours").unwrap();
    let d = open(dir.path(), 1 << 20);
    let path = |key: &str| {
        let number = record::number(key);
        let (at, size) = d.index.lock().unwrap().files[&number];
        d.path(number, at, size)
    };
    fs::write(path("cut"), "short").unwrap();
    let mut bytes = fs::read(path("bent")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path("bent"), bytes).unwrap();
    fs::remove_file(path("gone")).unwrap();
    assert_eq!([body(&d, "cut"), body(&d, "bent"), body(&d, "gone")], [None, None, None]);
    assert_eq!((d.stats().damaged, d.stats().files), (2, 0));
    assert!(dir.path().join("README").exists());
}

#[test]
fn two_servers_in_one_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (open(dir.path(), 1 << 20), open(dir.path(), 1 << 20));
    put(&a, "x", &entry(b"a"));
    put(&b, "x", &entry(b"b"));
    put(&a, "y", &entry(b"a"));
    assert_eq!((body(&a, "x"), body(&b, "x")), (Some(b"a".to_vec()), Some(b"b".to_vec())));
    let next = open(dir.path(), 1 << 20);
    assert!(body(&next, "x").is_some() && body(&next, "y").is_some());
    assert_eq!(next.stats().files, 2);
}

#[test]
fn an_unusable_directory_is_an_error_and_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let d = Arc::new(Disk::new(file.join("below"), 1 << 20));
    assert!(d.scan().is_err());
    put(&d, "a", &entry(b"1"));
    assert_eq!((d.stats().refused, d.read("a").is_none()), (1, true));
}

#[test]
fn what_is_removed_or_replaced_before_it_is_written_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let d = open(dir.path(), 1 << 20);
    let ticket = d.announce("a");
    assert!(d.knows("a"));
    d.remove("a");
    d.write("a", &entry(b"1"), ticket);
    assert!(!d.knows("a") && body(&d, "a").is_none());
    let (first, second) = (d.announce("b"), d.announce("b"));
    d.write("b", &entry(b"2"), second);
    d.write("b", &entry(b"1"), first);
    assert_eq!(body(&d, "b"), Some(b"2".to_vec()));
    let d = open(dir.path(), 1 << 20);
    assert_eq!((body(&d, "b"), d.stats().files), (Some(b"2".to_vec()), 1));
}

/// Runs an ignored test of this file in a process of its own.
fn elsewhere(program: &str, before: &[&str], test: &str, dir: &Path) -> std::process::Child {
    let name = format!("cache::disk::tests::{test}");
    std::process::Command::new(program)
        .args(before)
        .args(["--exact", &name, "--ignored", "--nocapture"])
        .env("DISK_TEST_DIR", dir)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

fn given_dir() -> PathBuf {
    std::env::var_os("DISK_TEST_DIR").expect("said by the test that runs this one").into()
}

/// The same for whoever knows the key.
fn bytes_of(key: &str) -> Vec<u8> {
    let n: usize = key.parse().unwrap();
    (0..1000 + n * 7919 % 600_000).map(|i| (i * (n + 1) % 251) as u8).collect()
}

fn put_large(d: &Arc<Disk>, key: &str, bytes: &[u8]) -> io::Result<()> {
    let Entry::Object(o) = entry(b"") else { unreachable!() };
    let mut w = d.begin_large(Some(bytes.len() as u64))?;
    bytes.chunks(10_000).try_for_each(|c| w.write(c))?;
    let (large, file) = w.end()?;
    let o = Object::large(o.head.clone(), Arc::new(large));
    let ticket = d.announce(key);
    d.publish_large(&key.into(), &o, file, ticket);
    Ok(())
}

/// The whole body, wherever it is.
fn whole(d: &Arc<Disk>, key: &str) -> Option<Vec<u8>> {
    let Entry::Object(o) = d.read(key)? else { return None };
    let engine = engine::Engine::builder().group("task", Default::default()).start().unwrap();
    let (tx, rx) = std::sync::mpsc::channel();
    let task = engine.handle().group("task").unwrap();
    engine.handle().spawn_on(task, move || async move {
        let all = http_body_util::BodyExt::collect(o.part(0, o.len())).await;
        tx.send(all.ok().map(|all| all.to_bytes().to_vec())).unwrap();
    });
    let all = rx.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
    engine.shutdown(std::time::Duration::ZERO);
    all
}

#[test]
#[ignore = "is run, and killed, by the next test"]
fn writes_until_it_is_killed() {
    let d = open(&given_dir(), 1 << 30);
    for n in 0.. {
        let key = (n % 50).to_string();
        match n % 2 {
            0 => put(&d, &key, &entry(&bytes_of(&key))),
            _ => put_large(&d, &key, &bytes_of(&key)).unwrap(),
        }
        println!("{n}");
    }
}

#[test]
fn a_kill_at_any_instant_leaves_whole_entries_alone() {
    use std::io::BufRead;
    let dir = tempfile::tempdir().unwrap();
    let exe = std::env::current_exe().unwrap();
    let mut found = 0;
    for n in 0..8 {
        let mut child = elsewhere(exe.to_str().unwrap(), &[], "writes_until_it_is_killed", dir.path());
        // some way into its work, which is somewhere else each time
        let out = io::BufReader::new(child.stdout.take().unwrap());
        let lines = out.lines().map_while(Result::ok).filter(|l| l.parse::<u64>().is_ok());
        assert_eq!(lines.take(5 + n * 7).count(), 5 + n * 7);
        child.kill().unwrap();
        child.wait().unwrap();
        let d = open(dir.path(), 1 << 30);
        for key in 0..50 {
            let key = key.to_string();
            if d.knows(&key) {
                assert_eq!(whole(&d, &key).as_ref(), Some(&bytes_of(&key)), "{key}");
                found += 1;
            }
        }
        assert_eq!(d.stats().damaged, 0);
    }
    assert!(found > 50, "only {found}");
}

#[test]
#[ignore = "is run by the next test, on a file system of its own"]
fn fills_a_small_file_system() {
    let dir = given_dir();
    let mut d = Disk::new(dir.clone(), 1 << 30);
    d.reserve = 0;
    let d = Arc::new(d);
    d.scan().unwrap();
    put(&d, "first", &entry(&[1; 100_000]));
    assert_eq!(whole(&d, "first"), Some(vec![1; 100_000]));
    for n in 0..100 {
        put(&d, &n.to_string(), &entry(&[2; 100_000]));
    }
    let s = d.stats();
    assert!(s.refused > 50 && s.files > 5 && s.damaged == 0, "{s:?}");
    assert!(put_large(&d, "large", &[3; 3_000_000]).is_err());
    assert_eq!(whole(&d, "first"), Some(vec![1; 100_000]));
    // what doesn't fit leaves nothing lying about
    assert_eq!(fs::read_dir(&dir).unwrap().count(), s.files);
    // and with the usual reserve nothing is written at all
    let d = open(&dir.join("more"), 1 << 30);
    put(&d, "a", &entry(b"1"));
    assert_eq!((d.stats().files, d.stats().refused), (0, 1));
    println!("filled");
}

#[test]
fn a_full_disk_means_no_caching_and_no_errors() {
    let dir = tempfile::tempdir().unwrap();
    let exe = std::env::current_exe().unwrap();
    let script = "mount -t tmpfs -o size=2m none \"$DISK_TEST_DIR\" && exec \"$@\"";
    let before = ["--map-root-user", "--mount", "sh", "-c", script, "sh", exe.to_str().unwrap()];
    let child = elsewhere("unshare", &before, "fills_a_small_file_system", dir.path());
    let out = child.wait_with_output().unwrap();
    let (text, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    if errors.contains("unshare:") || errors.contains("mount:") {
        eprintln!("not tested: this system allows no mount namespace: {errors}");
        return;
    }
    assert!(out.status.success() && text.contains("filled"), "{text}{errors}");
}

#[test]
fn large_bodies_are_read_by_the_block_and_damage_in_one_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let d = open(dir.path(), 1 << 30);
    let bytes: Vec<u8> = (0..1_000_000usize).map(|i| (i % 253) as u8).collect();
    put_large(&d, "a", &bytes).unwrap();
    put_large(&d, "b", &bytes).unwrap();
    let d = open(dir.path(), 1 << 30);
    assert_eq!((whole(&d, "a").as_ref(), d.stats().files), (Some(&bytes), 2));
    let path = {
        let number = record::number("a");
        let (at, size) = d.index.lock().unwrap().files[&number];
        d.path(number, at, size)
    };
    let mut all = fs::read(&path).unwrap();
    let n = all.len();
    all[n - 600_000] ^= 1;
    fs::write(&path, &all).unwrap();
    assert_eq!((whole(&d, "a"), d.stats().damaged, d.stats().files), (None, 1, 1));
    assert!(d.read("a").is_none() && !path.exists());
    // who has it in hand learns that it was removed
    let Some(Entry::Object(o)) = d.read("b") else { panic!() };
    d.remove("b");
    assert!(o.is_gone());
    // less than was announced is nothing
    let mut w = d.begin_large(Some(1000)).unwrap();
    w.write(&[0; 999]).unwrap();
    assert!(w.end().is_err());
    let mut w = d.begin_large(Some(1000)).unwrap();
    assert!(w.write(&[0; 1001]).is_err());
    drop(w);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_is_being_written_counts_and_has_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let d = open(dir.path(), 20 << 20);
    put(&d, "a", &entry(b"1"));
    let mut begun = [Some(12 << 20), Some(12 << 20), None].map(|len| d.begin_large(len).unwrap());
    assert_eq!(d.stats().files, 1, "what is there isn't removed for what doesn't come");
    let piece = vec![0; 4 << 20];
    for n in [0, 1, 2, 0] {
        d.append(&mut begun[n], &piece).unwrap();
    }
    assert_eq!(d.stats().files, 1);
    assert!(d.append(&mut begun[1], &piece).is_err(), "all would be more than there may be");
    drop(begun);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let mut last = d.begin_large(Some(19 << 20)).unwrap();
    for _ in 0..4 {
        d.append(&mut last, &piece).unwrap();
    }
    d.append(&mut last, &piece[..3 << 20]).unwrap();
    assert_eq!(d.stats().files, 1);
}

#[test]
fn what_a_killed_server_has_begun_is_removed_by_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut dead = std::process::Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let name = |pid: u32| dir.path().join(format!("tmp-{pid}-0"));
    // somebody who lives may be writing his
    let (dead, alive) = (name(dead.id()), name(std::os::unix::process::parent_id()));
    [&dead, &alive].iter().for_each(|p| fs::write(p, "x").unwrap());
    open(dir.path(), 1 << 20);
    assert!(!dead.exists() && alive.exists());
}

#[test]
fn what_is_forgotten_before_it_is_known_is_not_found() {
    let dir = tempfile::tempdir().unwrap();
    let d = open(dir.path(), 1 << 20);
    put(&d, "a", &entry(b"1"));
    put(&d, "b", &entry(b"2"));
    put(&d, "c", &entry(b"3"));
    let next = Arc::new(Disk::new(dir.path().to_owned(), 1 << 20));
    assert!(next.take("a").is_none() && next.take("c").is_none() && !next.is_known());
    put(&next, "c", &entry(b"4"));
    next.scan().unwrap();
    assert!(next.is_known());
    assert_eq!((body(&next, "a"), body(&next, "b")), (None, Some(b"2".to_vec())));
    assert_eq!(body(&next, "c"), Some(b"4".to_vec()), "what has come since is there");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}
