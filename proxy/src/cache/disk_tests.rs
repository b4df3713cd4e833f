//! The directory through the eyes of one server after the other.

use super::*;
use crate::cache::object::{Head, Object};
use crate::cache::policy::Freshness;
use http::{HeaderMap, StatusCode};
use std::sync::Arc;

fn entry(body: &[u8]) -> Entry {
    let freshness = Freshness {
        lifetime: 60,
        stale_while_revalidate: 0,
        stale_if_error: None,
        strict: false,
        ask_always: false,
    };
    let head = Head {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        freshness,
        received: Instant::now(),
        initial_age: 0,
    };
    Entry::Object(Arc::new(Object::new(head, Bytes::copy_from_slice(body))))
}

fn open(dir: &Path, max: u64) -> Disk {
    let d = Disk::new(dir.to_owned(), max);
    d.scan().unwrap();
    d
}

fn put(d: &Disk, key: &str, entry: &Entry) {
    let ticket = d.announce(key);
    d.write(key, entry, ticket);
}

fn body(d: &Disk, key: &str) -> Option<Vec<u8>> {
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
    let d = Disk::new(file.join("below"), 1 << 20);
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
