//! The page as bytes, and when a look at it becomes a verdict.

use super::*;

const S: Duration = Duration::from_secs(1);

/// A page of one thread and one name.
fn page(ticks: u64) -> Vec<u8> {
    page_of(&[(ticks, 0)], &["serve"])
}

/// Of threads with their ticks and the numbers of what they called last. The first one's id is 42.
fn page_of(threads: &[(u64, u64)], names: &[&str]) -> Vec<u8> {
    let text = |text: &str| {
        let mut word = [0; 8];
        word[..text.len()].copy_from_slice(text.as_bytes());
        u64::from_le_bytes(word)
    };
    let mut words = vec![0u64; super::words(threads.len(), names.len())];
    (words[0], words[1], words[2]) = (MAGIC, threads.len() as u64, names.len() as u64);
    let (_, records) = words.split_at_mut(RECORD);
    for (n, (ticks, name)) in threads.iter().enumerate() {
        let record = [*ticks, 7, (42 + n as u64) << 32 | name, text(&format!("net-{n}"))];
        records[n * RECORD..][..4].copy_from_slice(&record);
    }
    for (n, name) in names.iter().enumerate() {
        records[(threads.len() + n) * RECORD] = text(name);
    }
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// The kernel says nothing.
fn unknown(_: u32) -> Option<Processor> {
    None
}

fn at(ticks: u64) -> Vec<Reading> {
    decode(&page(ticks)).unwrap()
}

#[test]
fn a_server_is_full_for_as_long_as_it_says_so() {
    let page = |said: u64| {
        let mut head = [MAGIC, 0, 0, 0, 0, 0, 0, 0];
        head[FULL] = said;
        head.map(u64::to_le_bytes).as_flattened().to_vec()
    };
    let at = Duration::from_millis;
    assert!(!is_full(&page(0), at(1)) && !is_full(b"", at(1)) && !is_full(&page(5_000)[..24], at(5_000)));
    assert!(is_full(&page(5_000), at(5_000)) && is_full(&page(5_000), at(6_000)));
    assert!(!is_full(&page(5_000), at(6_001)));
    let mut other = page(5_000);
    other[0] ^= 1;
    assert!(!is_full(&other, at(5_000)));
}

#[test]
fn a_page_says_what_a_thread_does() {
    let doing = |ticks| at(ticks)[0].doing.clone();
    assert_eq!(doing(0), Doing::NotStarted);
    assert_eq!(doing(4), Doing::Idle);
    assert_eq!(doing(5), Doing::Calling("serve".into()));
    assert_eq!(doing(u64::MAX), Doing::Ended);
    assert_eq!(at(5)[0].tid, 42);
    assert_eq!((at(5)[0].thread.as_str(), at(5)[0].busy_for(10)), ("net-0", Duration::from_millis(3)));
    assert_eq!(at(4)[0].busy_for(10), Duration::ZERO);
}

#[test]
fn each_thread_has_its_record_and_each_name_its_place() {
    let all = decode(&page_of(&[(5, 2), (7, 0), (9, 1), (4, 1)], &["a", "b", "c"])).unwrap();
    let said: Vec<_> = all.iter().map(|r| (r.thread.as_str(), r.tid, &r.doing)).collect();
    let calling = |name: &str| Doing::Calling(name.to_owned());
    let (c, a, b) = (calling("c"), calling("a"), calling("b"));
    assert_eq!(said, [("net-0", 42, &c), ("net-1", 43, &a), ("net-2", 44, &b), ("net-3", 45, &Doing::Idle)]);
}

#[test]
fn a_thread_that_waits_for_a_disk_has_not_stalled() {
    let mut w = Watch::new(S, S);
    let threads = || at(5).into_iter().map(|r| Reading { doing: Doing::Calling(BLOCKING.into()), ..r });
    for n in 0..100 {
        assert_eq!(w.look(&threads().collect::<Vec<_>>(), n * S, unknown), None);
    }
    assert_eq!(w.look(&at(5), 100 * S, unknown), None, "the time before doesn't count for what it does now");
    assert!(w.look(&at(5), 101 * S, unknown).is_some());
}

#[test]
fn of_several_the_one_that_has_stalled_longest_is_named() {
    let mut w = Watch::new(2 * S, S);
    let threads = |ticks: [u64; 3]| decode(&page_of(&ticks.map(|t| (t, 0)), &["serve"])).unwrap();
    let mut named = |ticks, n: u32| w.look(&threads(ticks), n * S, unknown).map(|s| (s.thread, s.time));
    assert_eq!(named([1, 5, 1], 0), None);
    assert_eq!(named([3, 5, 3], 1), None);
    assert_eq!(named([3, 5, 3], 2), Some(("net-1".into(), 2 * S)));
    assert_eq!(named([3, 5, 3], 3), Some(("net-1".into(), 3 * S)));
    assert_eq!(named([3, 7, 3], 4), Some(("net-0".into(), 3 * S)), "of equals the first");
}

#[test]
fn what_is_wrong_is_said_in_words() {
    assert_eq!(NoPage::Magic.to_string(), "not a pulse page");
    assert_eq!(NoPage::Size.to_string(), "a pulse page of an impossible size");
    let stall = Stall { thread: "net-0".into(), calling: "serve".into(), time: 2 * S };
    assert_eq!(stall.to_string(), "thread net-0 has been in one round of its loop for 2s, in \"serve\"");
}

#[test]
fn whatever_bytes_are_given_are_read_or_refused() {
    let whole = page(3);
    for cut in 0..whole.len() {
        assert!(decode(&whole[..cut]).is_err(), "{cut}");
    }
    assert_eq!(decode(b"something else"), Err(NoPage::Magic));
    for (word, value) in [(1, 2), (1, u64::MAX), (2, 2), (2, 5000)] {
        let mut bad = whole.clone();
        bad[word * 8..word * 8 + 8].copy_from_slice(&u64::to_le_bytes(value));
        assert_eq!(decode(&bad), Err(NoPage::Size));
    }
    // a name that isn't there, or isn't text, is no reason not to see the stall
    let mut odd = whole.clone();
    odd[80..88].fill(0xff);
    odd[128..136].fill(0xff);
    assert!(matches!(decode(&odd).unwrap()[0].doing, Doing::Calling(_)));
    let mut nameless = whole;
    nameless[16] = 0;
    assert_eq!(decode(&nameless).unwrap()[0].doing, Doing::Calling(String::new()));
}

#[test]
fn a_round_that_was_watched_for_the_limit_is_a_stall() {
    let mut w = Watch::new(2 * S, S);
    assert_eq!(w.look(&at(5), 100 * S, unknown), None);
    assert_eq!(w.look(&at(5), 101 * S, unknown), None);
    let stall = w.look(&at(5), 102 * S, unknown).unwrap();
    assert_eq!((stall.thread.as_str(), stall.calling.as_str(), stall.time), ("net-0", "serve", 2 * S));
}

#[test]
fn a_thread_that_moves_on_has_not_stalled() {
    let mut w = Watch::new(2 * S, S);
    for n in 0..100 {
        // always busy, never in the same round; or asleep for long
        assert_eq!(w.look(&at(2 * u64::from(n) + 1), n * S, unknown), None);
    }
    for n in 100..200 {
        assert_eq!(w.look(&at(400), n * S, unknown), None);
    }
}

#[test]
fn a_gap_between_looks_begins_anew() {
    let mut w = Watch::new(2 * S, S);
    assert_eq!(w.look(&at(5), 100 * S, unknown), None);
    // the watcher was stopped for a minute, and perhaps everybody was
    assert_eq!(w.look(&at(5), 160 * S, unknown), None);
    assert_eq!(w.look(&at(5), 161 * S, unknown), None);
    assert!(w.look(&at(5), 162 * S, unknown).is_some());
    // twice the interval is as far apart as looks may be
    let mut w = Watch::new(2 * S, S);
    assert_eq!(w.look(&at(5), 100 * S, unknown), None);
    assert!(w.look(&at(5), 102 * S, unknown).is_some());
}

#[test]
fn a_thread_that_gets_no_processor_is_starved_and_one_that_uses_it_up_has_stalled() {
    let ms = Duration::from_millis;
    let processor = |runnable, used| move |tid| (tid == 42).then_some(Processor { runnable, used: ms(used) });
    let mut w = Watch::new(2 * S, S);
    for n in 0..10 {
        // it had 7 ms before, and gets ten in a second
        assert_eq!(w.look(&at(5), n * S, processor(true, 7 + 10 * u64::from(n))), None);
    }
    // an endless loop that got its part of a busy machine
    assert!(w.look(&at(5), 10 * S, processor(true, 7 + 500)).is_some());
    // it waits for something that doesn't come: whether there is a processor doesn't matter
    let mut w = Watch::new(2 * S, S);
    assert_eq!(w.look(&at(5), Time::ZERO, processor(false, 7)), None);
    assert_eq!(w.look(&at(5), S, processor(false, 7)), None);
    assert!(w.look(&at(5), 2 * S, processor(false, 7)).is_some());
}
