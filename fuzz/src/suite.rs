//! What the programs of the suite hear from operators and from each other.

use crate::memory_file;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use supervisor::notify::Message;
use supervisor::{fd_pass, listen_fds as inherited};
use traffic::config::load::{Sources, load};
use traffic::orders::Order;

/// A configuration file: every fault has a place in it.
pub fn config(bytes: &[u8]) {
    let file = memory_file(bytes);
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let lines = bytes.iter().filter(|b| **b == b'\n').count() + 1;
    match load(&Sources { file: Some(path.clone()), set: &[], env: Vec::new() }) {
        Ok(loaded) => assert!(!loaded.describe().is_empty()),
        Err(faults) => {
            assert!(!faults.0.is_empty());
            for fault in &faults.0 {
                let place = fault.place.strip_prefix(path.to_str().expect("ASCII"));
                let place = place.unwrap_or_else(|| panic!("{} is elsewhere", fault.place));
                let line = place.split(':').nth(1).map(|n| n.parse::<usize>().expect("a line"));
                assert!(
                    line.is_none_or(|l| l >= 1 && l <= lines),
                    "{}: there are {lines} lines",
                    fault.place
                );
                assert!(!fault.what.is_empty());
            }
        }
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
            let loaded = load(&Sources { file: Some(path), set: &[], env: Vec::new() });
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
    if let Ok(Some((order, fds))) = Order::recv(&theirs) {
        assert!(fds.is_empty());
        // what was understood is said in one way alone
        order.send(&ours, &[]).expect("room");
        assert_eq!(Order::recv(&theirs).expect("an order").map(|(o, _)| o), Some(order));
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
