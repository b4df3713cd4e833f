//! `traffic_manager top` on a terminal: a pty whose other end is read by an emulator.

mod common;

use common::*;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{FlowArg, Termios, tcflow, tcgetattr};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use supervisor::pidfd::PidFd;

struct Terminal {
    child: Child,
    /// Kept open: with it closed the terminal would be gone.
    side: OwnedFd,
    keys: File,
    screen: Arc<Mutex<vt100::Parser>>,
    before: Termios,
}

impl Terminal {
    fn start(s: &Suite) -> Terminal {
        let size = Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        // who has the other end, too, would never see the terminal go
        for end in [&pty.master, &pty.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        }
        let before = tcgetattr(&pty.slave).unwrap();
        let side = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut top = clean(MANAGER);
        top.args(["top", "--every", "100ms", "-c"]).arg(s.path("traffic.toml")).env("TERM", "xterm");
        let child = top.stdin(side()).stdout(side()).stderr(side()).spawn().unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(30, 100, 0)));
        let keys = File::from(pty.master);
        let (mut from, to) = (keys.try_clone().unwrap(), screen.clone());
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut part) {
                to.lock().unwrap().process(&part[..n]);
            }
        });
        Terminal { child, side: pty.slave, keys, screen, before }
    }

    fn signal(&self, signal: i32) {
        PidFd::open(self.child.id() as i32).unwrap().signal(signal).unwrap();
    }

    fn text(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    #[track_caller]
    fn until(&self, what: &str, is_so: impl Fn(&str) -> bool) {
        let until = Instant::now() + LONG;
        while !is_so(&self.text()) {
            assert!(Instant::now() < until, "not seen: {what}\n{}", self.text());
            std::thread::yield_now();
        }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// It ends with 0, and the terminal's modes are as they were.
    #[track_caller]
    fn leaves(&mut self) {
        let process = PidFd::open(self.child.id() as i32).unwrap();
        if process.poll_exit(LONG).unwrap().is_none() {
            panic!("it goes on\n{}", self.text());
        }
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{}", self.text());
        assert_eq!(tcgetattr(&self.side).unwrap(), self.before);
    }

    /// The same, and so is what it shows.
    #[track_caller]
    fn ends(mut self) {
        self.leaves();
        let until = Instant::now() + LONG;
        loop {
            let p = self.screen.lock().unwrap();
            let put_back = !p.screen().alternate_screen() && !p.screen().hide_cursor();
            drop(p);
            if put_back {
                return;
            }
            assert!(Instant::now() < until, "the screen isn't put back\n{}", self.text());
            std::thread::yield_now();
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_shows_the_suite_through_the_deaths_of_all_and_puts_the_terminal_back() {
    let mut s = Suite::serving("[[job]]\nname = \"nap\"\ncommand = [\"sleep\", \"1000\"]\n");
    s.wait(0, &["event=standby-ready"]);
    let mut t = Terminal::start(&s);
    t.until("all processes", |text| {
        let rows = ["cop", "manager", "server", "standby", "nap.0"];
        text.contains("serving") && rows.iter().all(|r| text.contains(&format!("\n {r} ")))
    });
    t.until("requests", |text| {
        assert_eq!(s.get("/").code, 200);
        text.contains(" requests ") && !text.contains("requests 0/s") && !text.contains("requests -")
    });
    t.press("ts");
    t.until("threads, and another order", |text| {
        text.contains("sort: cpu")
            && text.lines().any(|l| l.starts_with("   traffic_server") || l.starts_with("   net"))
    });
    t.press("t");
    let died = s.kill("server", SIGKILL);
    t.until("the take-over", |text| text.contains(&format!("pid {died} signal 9 (SIGKILL)")));
    // nobody replaces the manager while cop is stopped too
    s.kill("cop", SIGSTOP);
    let manager = s.kill("manager", SIGSTOP);
    t.until("the manager is away", |text| {
        text.contains("manager away") && text.contains(&format!("pid {died} "))
    });
    for p in [manager, s.pid("cop")] {
        PidFd::open(p).unwrap().signal(SIGCONT).unwrap();
    }
    t.until("it is back", |text| !text.contains("manager away"));
    s.kill("manager", SIGKILL);
    t.until("another manager", |text| {
        let next = s.try_pid("manager").filter(|p| *p != manager);
        next.is_some_and(|p| text.contains(&p.to_string())) && !text.contains("manager away")
    });
    t.press("q");
    t.ends();
    s.stop();
}

#[test]
fn whatever_ends_it_the_terminal_is_put_back() {
    // no suite is needed for that
    let s = Suite::new("");
    let began = |s: &Suite| {
        let t = Terminal::start(s);
        t.until("no suite", |text| text.contains("traffic") && text.contains("down"));
        t
    };
    let mut t = began(&s);
    t.press("\x03");
    t.ends();
    for signal in [SIGTERM, SIGHUP] {
        let t = began(&s);
        t.signal(signal);
        t.ends();
    }
}

#[test]
fn a_terminal_that_takes_nothing_keeps_nobody_from_leaving() {
    let s = Suite::new("");
    let mut t = Terminal::start(&s);
    t.until("no suite", |text| text.contains("traffic") && text.contains("down"));
    tcflow(&t.side, FlowArg::TCOOFF).unwrap();
    t.signal(SIGTERM);
    t.leaves();
}

#[test]
fn without_a_terminal_it_says_what_to_use() {
    let s = Suite::new("");
    let said = expect_code(&s.run(MANAGER, &["top"]), 64);
    assert!(said.contains("needs a terminal") && said.contains("status"), "{said}");
}
