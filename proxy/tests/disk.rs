//! The cache's tier on disk over sockets: one proxy after the other on the same directory.

mod common;
use common::*;
use proxy::cache::CacheConfig;
use std::path::{Path, PathBuf};

fn suite(o: &Origin, dir: &Path) -> Suite {
    let mut c = config(vec![to(&[o])]);
    c.cache = CacheConfig { disk: Some((dir.to_owned(), 64 << 20)), ..CacheConfig::default() };
    c.purge_from = vec!["127.0.0.1".parse().unwrap()];
    Suite::new(c)
}

/// Files that take as long to open as this lives: FIFOs that nobody writes to.
struct Stalled(Vec<PathBuf>);

impl Stalled {
    fn all_in(dir: &Path) -> Stalled {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).collect();
        for file in &files {
            std::fs::remove_file(file).unwrap();
            mknodat(CWD, file, FileType::Fifo, Mode::RWXU, 0).unwrap();
        }
        Stalled(files)
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        for file in &self.0 {
            drop(std::fs::OpenOptions::new().read(true).write(true).open(file));
        }
    }
}

fn written(s: &Suite, files: usize) {
    until("it is on disk", || s.proxy.stats().disk.files == files);
}

/// Asks for `/` once, and ends with so many files.
fn leave(s: Suite, files: usize) {
    s.get("/");
    written(&s, files);
}

fn origin() -> Origin {
    Origin::new(|q| {
        let lang = q.field("accept-language").unwrap_or_default();
        let fields = match q.path() {
            "/vary" => "Cache-Control: max-age=600\r\nVary: Accept-Language\r\n",
            _ => "Cache-Control: max-age=600\r\nAge: 5\r\nX-A: b\r\n",
        };
        let filler = "0123456789".repeat(if q.path() == "/big" { 200_000 } else { 1 });
        match q.line().starts_with("GET") {
            true => Do::Send(ok(fields, &format!("{lang}{}{filler}", q.number))),
            false => Do::Send(ok("", "")),
        }
    })
}

#[test]
fn the_next_process_is_warm() {
    let dir = tempfile::tempdir().unwrap();
    let o = origin();
    let s = suite(&o, dir.path());
    let first = s.get("/");
    let big = s.get("/big");
    let ask = |s: &Suite, lang: &str| s.ask(&get("/vary", &format!("Accept-Language: {lang}\r\n"))).body;
    let (de, en) = (ask(&s, "de"), ask(&s, "en"));
    written(&s, 5);
    drop(s);
    let s = suite(&o, dir.path());
    let r = s.get("/");
    assert!(r.cache().starts_with("hit"), "{}", r.cache());
    assert_eq!(
        (r.body.as_str(), r.field("x-a"), r.field("date")),
        (first.body.as_str(), Some("b".into()), first.field("date"))
    );
    assert!(r.field("age").unwrap().parse::<u64>().unwrap() >= 5);
    assert!(s.get("/big").body == big.body);
    assert_eq!((ask(&s, "de"), ask(&s, "en")), (de, en));
    assert_eq!(o.count(), 4);
    assert!(ask(&s, "fr").starts_with("fr"));
}

#[test]
fn what_was_made_invalid_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let o = origin();
    let s = suite(&o, dir.path());
    s.get("/a");
    s.get("/b");
    written(&s, 2);
    s.ask("DELETE /a HTTP/1.1\r\nHost: example.org\r\n\r\n");
    assert_eq!(s.proxy.stats().disk.files, 1, "when it is answered it is done");
    drop(s);
    let s = suite(&o, dir.path());
    s.get("/a");
    s.get("/b");
    assert_eq!(o.seen().iter().filter(|q| q.line().starts_with("GET /a")).count(), 2);
    assert_eq!(o.seen().iter().filter(|q| q.line().starts_with("GET /b")).count(), 1);
}

#[test]
fn what_is_made_invalid_before_anybody_has_looked_does_not_come_back_either() {
    let o = origin();
    let request = |method: &str| format!("{method} /a HTTP/1.1\r\nHost: example.org\r\n\r\n");
    for method in ["DELETE", "PURGE"] {
        let dir = tempfile::tempdir().unwrap();
        let s = suite(&o, dir.path());
        let old = s.get("/a").body;
        written(&s, 1);
        drop(s);
        let s = suite(&o, dir.path());
        assert_eq!(s.ask(&request(method)).status, 200, "{method}: there was something");
        assert_ne!(s.get("/a").body, old, "{method}");
    }
}

#[test]
fn a_disk_that_does_not_answer_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let o = origin();
    leave(suite(&o, dir.path()), 1);
    let stalled = Stalled::all_in(dir.path());
    let s = suite(&o, dir.path());
    let r = s.get("/");
    assert!(r.status == 200 && r.cache().contains("fwd=miss"), "{}", r.cache());
    assert_eq!(o.count(), 2);
    let r = s.ask("DELETE / HTTP/1.1\r\nHost: example.org\r\n\r\n");
    assert_eq!(r.status, 200, "nor is who changes something held up");
    drop(stalled);
}

#[test]
fn a_large_answer_comes_though_the_disk_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let o = huge_origin();
    leave(small_memory(&o, dir.path()), 2);
    let stalled = Stalled::all_in(dir.path());
    let s = small_memory(&o, dir.path());
    let (first, second) = (s.get("/"), s.get("/"));
    assert!(first.whole && first.body == huge(1) && second.whole && second.body == huge(2));
    drop(stalled);
}

#[test]
fn damage_is_a_miss() {
    let dir = tempfile::tempdir().unwrap();
    let o = origin();
    leave(suite(&o, dir.path()), 1);
    for f in std::fs::read_dir(dir.path()).unwrap() {
        let path = f.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let n = bytes.len();
        bytes[n - 3] ^= 4;
        std::fs::write(&path, bytes).unwrap();
    }
    let s = suite(&o, dir.path());
    assert_eq!(s.get("/").status, 200);
    assert_eq!((o.count(), s.proxy.stats().disk.damaged), (2, 1));
}

#[test]
fn a_disk_that_cannot_be_used_costs_nothing_but_itself() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let o = origin();
    let s = suite(&o, &file.join("below"));
    assert_eq!(s.get("/").status, 200);
    assert!(s.get("/").cache().starts_with("hit"));
}

const HUGE: usize = 12 << 20;

fn huge(number: usize) -> String {
    format!("{number:08}").repeat(HUGE / 8)
}

fn huge_origin() -> Origin {
    Origin::new(|q| {
        let fields = "Cache-Control: max-age=600\r\nETag: \"x\"\r\nVary: Accept-Language\r\n";
        let chunked = q.path() == "/chunked";
        match q.line().starts_with("GET") {
            true if chunked => Do::Send(
                format!(
                    "HTTP/1.1 200 OK\r\n{fields}Transfer-Encoding: chunked\r\n\r\n{HUGE:x}\r\n{}\r\n0\r\n\r\n",
                    huge(q.number)
                )
                .into_bytes(),
            ),
            true => Do::Send(ok(fields, &huge(q.number))),
            false => Do::Send(ok("", "")),
        }
    })
}

fn small_memory(o: &Origin, dir: &Path) -> Suite {
    let mut c = config(vec![to(&[o])]);
    c.cache =
        CacheConfig { memory: 8 << 20, disk: Some((dir.to_owned(), 200 << 20)), ..CacheConfig::default() };
    Suite::new(c)
}

#[test]
fn what_is_too_large_for_memory_is_on_disk_alone() {
    // also if nobody said how long it is
    for path in ["/", "/chunked"] {
        let dir = tempfile::tempdir().unwrap();
        let o = huge_origin();
        let s = small_memory(&o, dir.path());
        let first = s.get(path);
        assert!(first.whole && first.body == huge(0), "{}", first.body.len());
        // the way to the variant, and the variant
        written(&s, 2);
        let hit = s.get(path);
        assert!(hit.cache().starts_with("hit") && hit.body == huge(0), "{}", hit.cache());
        assert_eq!(hit.field("content-length"), Some(HUGE.to_string()));
        assert!(s.proxy.stats().cache_bytes < 1 << 20, "its body isn't in memory");
        let part = s.ask(&get(path, "Range: bytes=5000001-5300000\r\n"));
        assert_eq!((part.status, part.body.as_str()), (206, &huge(0)[5_000_001..5_300_001]));
        assert_eq!(s.ask(&get(path, "If-None-Match: \"x\"\r\n")).status, 304);
        drop(s);
        let s = small_memory(&o, dir.path());
        let hit = s.get(path);
        let good = hit.cache().starts_with("hit") && hit.body == huge(0);
        assert!(good, "the next process has it too: {}", hit.cache());
        assert_eq!(o.count(), 1);
        s.ask(&format!("DELETE {path} HTTP/1.1\r\nHost: example.org\r\n\r\n"));
        assert!(s.get(path).body == huge(2), "what was made invalid is gone");
    }
}

#[test]
fn what_turns_out_to_be_too_large_for_the_disk_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let o = huge_origin();
    let mut c = config(vec![to(&[&o])]);
    c.cache = CacheConfig {
        memory: 8 << 20,
        disk: Some((dir.path().to_owned(), 6 << 20)),
        ..CacheConfig::default()
    };
    let s = Suite::new(c);
    let first = s.get("/chunked");
    assert!(first.whole && first.body == huge(0), "its client gets it all the same");
    until("it is given up", || s.proxy.stats().disk.refused == 1);
    assert!(s.get("/chunked").body == huge(1));
}

#[test]
fn a_damaged_block_cuts_the_answer_and_never_changes_it() {
    let dir = tempfile::tempdir().unwrap();
    let o = huge_origin();
    let s = small_memory(&o, dir.path());
    s.get("/");
    written(&s, 2);
    let files = || std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().path());
    let path = files().max_by_key(|p| p.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let n = bytes.len();
    bytes[n - HUGE / 2] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let cut = s.get("/");
    assert!(!cut.whole && huge(0).starts_with(&cut.body), "{} bytes", cut.body.len());
    assert_eq!(s.proxy.stats().disk.damaged, 1);
    assert!(s.get("/").body == huge(1), "the next one is from the origin");
}

#[test]
fn a_client_that_goes_away_leaves_the_rest_to_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let o = huge_origin();
    let s = small_memory(&o, dir.path());
    let mut c = s.client();
    c.send(get("/", ""));
    std::io::Read::read(&mut c.stream, &mut [0; 10]).unwrap();
    drop(c);
    written(&s, 2);
    assert!(s.get("/").cache().starts_with("hit"));
    assert_eq!(o.count(), 1);
}
