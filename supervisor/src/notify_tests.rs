//! What is said, heard, and said later.

use super::*;

fn pair() -> (tempfile::TempDir, NotifySocket, Notifier) {
    let dir = tempfile::tempdir().unwrap();
    let socket = NotifySocket::bind(&dir.path().join("n")).unwrap();
    let notifier = Notifier::to(socket.path().as_os_str()).unwrap();
    (dir, socket, notifier)
}

#[test]
fn a_barrier_falls_when_all_before_it_was_heard() {
    let (_dir, socket, to) = pair();
    to.send("READY=1").unwrap();
    assert!(!to.barrier(Duration::from_millis(10)), "nobody has heard anything yet");
    let heard = std::thread::spawn(move || {
        let mut fields = Vec::new();
        // what was asked before, and what is asked now
        while fields.iter().filter(|f| **f == Field::Barrier).count() < 2 {
            match socket.recv().unwrap() {
                Some(d) => fields.extend(d.message.fields),
                None => std::thread::yield_now(),
            }
        }
        fields
    });
    assert!(to.barrier(Duration::from_secs(30)));
    assert_eq!(heard.join().unwrap()[0], Field::Ready);
}

#[test]
fn knows_the_protocol() {
    let m = Message::parse(b"READY=1\nSTATUS=all well\nMAINPID=12\nFDNAME=listen\nX_OTHER=1\n");
    let want =
        [Field::Ready, Field::Status("all well".into()), Field::MainPid(12), Field::FdName("listen".into())];
    assert_eq!((m.fields.as_slice(), m.malformed), (&want[..], 0));
}

#[test]
fn what_a_full_queue_did_not_take_is_noticed_once() {
    let (_dir, socket, notifier) = pair();
    notifier.send("READY=1").unwrap();
    assert!(!notifier.take_missed() && notifier.has_room() && !notifier.is_heard());
    while notifier.send("STATUS=nobody reads").is_ok() {}
    assert!(notifier.take_missed() && !notifier.take_missed() && !notifier.has_room());
    notifier.forget_fds("estate");
    while socket.recv().unwrap().is_some() {}
    assert!(notifier.is_heard() && notifier.has_later() && !notifier.take_missed());
    let said = socket.recv().unwrap().unwrap().message;
    assert!(said.has(&Field::FdStoreRemove) && said.has(&Field::FdName("estate".into())), "{said:?}");
}

#[test]
fn what_a_full_queue_did_not_take_is_said_later_in_order() {
    let (dir, socket, notifier) = pair();
    let [fd, other] = ["/dev/null", "/dev/zero"].map(|p| std::fs::File::open(p).unwrap());
    let names: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let heard = || {
        let next = || socket.recv().unwrap().map(|d| d.message);
        let name = |m: Message| (m.fd_name().unwrap().to_owned(), m.has(&Field::FdStore));
        std::iter::from_fn(next).map(name).collect::<Vec<_>>()
    };
    let all = |notifier: &Notifier| {
        let mut all = heard();
        while notifier.say_later() > 0 {
            all.extend(heard());
        }
        all.extend(heard());
        all
    };
    names.iter().for_each(|n| notifier.store_fds(n, &[fd.as_fd()]));
    assert!(notifier.has_later());
    assert_eq!(all(&notifier), names.iter().map(|n| (n.clone(), true)).collect::<Vec<_>>());
    // what is to be forgotten before it was said need not be kept first; what is stored again is said once
    names.iter().for_each(|n| notifier.store_fds(n, &[fd.as_fd()]));
    names.iter().rev().for_each(|n| notifier.forget_fds(n));
    notifier.store_fds("99", &[fd.as_fd()]);
    let said = all(&notifier);
    let last = |n: &String| said.iter().rev().find(|(name, _)| name == n).map(|(_, is)| *is);
    assert!(names[..99].iter().all(|n| last(n) == Some(false)) && last(&names[99]) == Some(true));
    assert!(said.len() < 2 * names.len() && !notifier.take_missed());
    // of words the last ones count
    names.iter().for_each(|n| notifier.store_fds(n, &[fd.as_fd()]));
    while notifier.send("STATUS=there is room for words").is_ok() {}
    ["MAINPID=1", "READY=1", "MAINPID=2"].into_iter().for_each(|line| notifier.say(line));
    let mut words = Vec::new();
    loop {
        let left = notifier.say_later();
        let fields = std::iter::from_fn(|| socket.recv().unwrap()).flat_map(|d| d.message.fields);
        words.extend(fields.filter(|f| matches!(f, Field::Ready | Field::MainPid(_))));
        if left == 0 {
            break;
        }
    }
    assert_eq!(words, [Field::MainPid(2), Field::Ready]);
    // several may have the same name, and one that is stored again while it waits is said once
    names.iter().for_each(|n| notifier.store_fds(n, &[fd.as_fd()]));
    for _ in 0..3 {
        [&other, &fd].into_iter().for_each(|f| notifier.store_fds("99", &[f.as_fd()]));
    }
    assert_eq!(all(&notifier).iter().filter(|(n, is)| n == "99" && *is).count(), 2);
    // nobody is there (a child that another test has just forked may have the socket for a moment, but no name leads there): what
    // should have been forgotten is said to the next one
    std::fs::remove_file(socket.path()).unwrap();
    drop(socket);
    notifier.store_fds("a", &[fd.as_fd()]);
    notifier.forget_fds("b");
    assert!(notifier.take_missed() && notifier.has_later());
    let next = NotifySocket::bind(&dir.path().join("n")).unwrap();
    assert_eq!(notifier.say_later(), 0);
    assert!(next.recv().unwrap().unwrap().message.has(&Field::FdName("b".into())));
}

#[test]
fn garbage_is_counted_and_nothing_more() {
    for bad in [&b"\xff\xfe=1"[..], b"READY", b"=1", b"READY=yes", b"MAINPID=-4", b"FDNAME=a:b", b"ERRNO=x"] {
        let m = Message::parse(bad);
        assert_eq!((m.fields.len(), m.malformed), (0, 1), "{bad:?}");
    }
    assert!(Message::parse("A\n".repeat(4000).as_bytes()).malformed <= 64);
    let long = format!("STATUS={}\x1b[2J", "x".repeat(3000));
    let Field::Status(s) = &Message::parse(long.as_bytes()).fields[0] else { panic!() };
    assert_eq!(s.len(), 512, "bounded, and without control characters");
}

#[test]
fn carries_lines_fds_and_the_sender() {
    let dir = tempfile::tempdir().unwrap();
    let rx = NotifySocket::bind(&dir.path().join("n")).unwrap();
    assert!(rx.recv().unwrap().is_none());
    let tx = Notifier::to(rx.path().as_os_str()).unwrap();
    let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
    tx.send_fds("FDSTORE=1\nFDNAME=x", &[a.as_fd(), b.as_fd()]).unwrap();
    tx.send("READY=1").unwrap();
    let d = rx.recv().unwrap().unwrap();
    assert_eq!((d.pid, d.fds.len()), (std::process::id() as i32, 2));
    assert!(d.message.has(&Field::FdStore));
    assert!(rx.recv().unwrap().unwrap().message.has(&Field::Ready));
}

#[test]
fn a_new_receiver_takes_the_path_of_an_ended_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n");
    drop(NotifySocket::bind(&path).unwrap());
    assert!(NotifySocket::bind(&path).is_ok());
    assert!(NotifySocket::bind(&dir.path().join("x".repeat(120))).is_err());
}

#[test]
fn nobody_to_tell_is_fine_and_a_bad_name_is_not() {
    Notifier::default().send("READY=1").unwrap();
    assert!(Notifier::to(OsStr::new("relative")).unwrap_err().to_string().contains("relative"));
}
