//! What the programs of the suite hear from operators and from each other.

use crate::memory_file;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use supervisor::notify::Message;
use supervisor::probe::{Parsed, parse};
use supervisor::{fd_pass, listen_fds as inherited};
use traffic::config::Faults;
use traffic::config::load::{Loaded, Sources, load};
use traffic::drill::scenario::parse as scenarios;
use traffic::exposition::Exposition;
use traffic::orders::Order;

/// A configuration file: every fault has a place in it, and a schedule goes on.
pub fn config(bytes: &[u8]) {
    let file = memory_file(bytes);
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    match load(&Sources { file: Some(path.clone()), ..Sources::default() }) {
        Ok(loaded) => {
            assert!(!loaded.describe().is_empty());
            schedules(&loaded);
        }
        Err(faults) => have_places(&faults, path.to_str().expect("ASCII"), bytes),
    }
}

fn have_places(faults: &Faults, name: &str, bytes: &[u8]) {
    let lines = bytes.iter().filter(|b| **b == b'\n').count() + 1;
    assert!(!faults.0.is_empty());
    for fault in &faults.0 {
        let place = fault.place.strip_prefix(name);
        let place = place.unwrap_or_else(|| panic!("{} is elsewhere", fault.place));
        let line = place.split(':').nth(1).map(|n| n.parse::<usize>().expect("a line"));
        assert!(line.is_none_or(|l| l >= 1 && l <= lines), "{}: there are {lines} lines", fault.place);
        assert!(!fault.what.is_empty());
    }
}

fn schedules(loaded: &Loaded) {
    for schedule in loaded.config.jobs.iter().filter_map(|job| job.schedule.as_ref()) {
        let mut at = 0;
        for _ in 0..3 {
            let next = schedule.after(at, &|at| at % 7200).expect("a job that is never due");
            assert!(next > at, "{schedule:?} is due at {next}, after {at}");
            at = next;
        }
    }
}

/// A drill's scenario: every fault has a place in it.
pub fn scenario(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match scenarios::parse("file", text) {
        Ok(scenario) => assert!(!scenario.title.is_empty() && !scenario.steps.is_empty()),
        Err(faults) => have_places(&faults, "file", bytes),
    }
}

/// An answer to a heartbeat: once it is judged, more bytes change nothing; and its end decides in any case.
pub fn probe(bytes: &[u8]) {
    let all = parse(bytes, false);
    let mut judged = Parsed::Partial;
    for n in (0..bytes.len()).step_by((bytes.len() / 64).max(1)) {
        let now = parse(&bytes[..n], false);
        assert!(judged == Parsed::Partial || judged == now, "{judged:?}, and then {now:?}");
        judged = now;
    }
    assert!(judged == Parsed::Partial || judged == all, "{judged:?}, and then {all:?}");
    let ended = parse(bytes, true);
    assert_ne!(ended, Parsed::Partial);
    assert!(all == Parsed::Partial || all == ended, "{all:?}, and at the end {ended:?}");
    if let Parsed::Whole(answer) = ended {
        assert!(answer.body.len() < bytes.len());
    }
}

/// The numbers of a server: what is wrong with them has a line.
pub fn exposition(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Exposition::parse(text) {
        Ok(all) => {
            for sample in &all.samples {
                assert!(!sample.name.is_empty() && sample.labels.keys().all(|name| !name.is_empty()));
                assert!(all.sum(&sample.name).is_some());
            }
        }
        Err(why) => assert!(why.starts_with("line ") || why == "the last line isn't ended", "{why}"),
    }
}

/// Another supervisor's configuration: what it is translated to has no fault.
pub fn import(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let variable = |name: &str| (name == "HOME").then(|| "/root".to_owned());
    match traffic::import::translated(text, "file", Path::new("/srv"), &variable) {
        Err(why) => assert!(why.starts_with("file:"), "{why}"),
        Ok(toml) => {
            let file = memory_file(toml.as_bytes());
            let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
            let loaded = load(&Sources { file: Some(path), ..Sources::default() });
            assert!(loaded.is_ok(), "{}\n{toml}", loaded.unwrap_err());
        }
    }
}

/// A datagram of sd_notify(3).
pub fn notify(bytes: &[u8]) {
    let message = Message::parse(bytes);
    assert!(message.fields.len() + message.malformed as usize <= 64);
    if let Some(name) = message.fd_name() {
        assert_eq!(inherited::name_for(name), name, "a name that can't be passed on");
    }
}

/// `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES`, a line each.
pub fn listen_fds(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.splitn(3, '\n');
    let (pid, fds, names) = (lines.next(), lines.next(), lines.next());
    if let Ok(list) = inherited::parse(pid, fds, names, 7) {
        assert!(list.len() <= inherited::MAX);
        assert!(list.is_empty() || pid.and_then(|p| p.parse::<u32>().ok()) == Some(7));
    }
    let name = inherited::name_for(&text);
    assert!(name.len() <= 255 && !name.contains(':') && name.bytes().all(|b| b.is_ascii_graphic()));
}

/// A datagram of the channel between a manager and its server.
pub fn order(bytes: &[u8]) {
    let (ours, theirs) = fd_pass::pair().expect("a pair");
    if fd_pass::send(&ours, bytes, &[]).is_err() {
        return;
    }
    if let Ok(Some((order, fds, _))) = Order::recv(&theirs) {
        assert!(fds.is_empty());
        // what was understood is said in one way alone
        order.send(&ours, &[]).expect("room");
        assert_eq!(Order::recv(&theirs).expect("an order").map(|(o, ..)| o), Some(order));
    }
}

/// A pulse page, as the manager reads it.
pub fn pulse(bytes: &[u8]) {
    if let Ok(readings) = policy::pulse::decode(bytes) {
        for reading in &readings {
            let _ = reading.busy_for(u64::from(bytes[0]));
        }
        let second = std::time::Duration::from_secs(1);
        let mut watch = policy::pulse::Watch::new(second, second);
        for at in 0..4 {
            let _ = watch.look(&readings, second * at, |_| None);
        }
    }
}
