//! What the world around the suite may do to it: take its descriptors, its memory, its disk, its processes; and what
//! strangers may send to its sockets. It goes on, or comes back by itself.

mod common;

use common::origin::{self, Origin};
use common::*;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::resource::Resource;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::fs::chown;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Sets both limits of a running process.
fn limit(pid: i32, what: Resource, to: u64) {
    let limit = nix::libc::rlimit { rlim_cur: to, rlim_max: to };
    // SAFETY: prlimit(2) reads the one and writes nothing, as there is no place for the old limits.
    let done = unsafe { nix::libc::prlimit(pid, what as _, &limit, std::ptr::null_mut()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// Bytes like any, the same in each run.
fn noise(n: usize, seed: u32) -> Vec<u8> {
    let mut x = seed | 1;
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 24) as u8
    };
    (0..n).map(|_| next()).collect()
}

#[test]
fn garbage_to_every_socket_stops_nobody() {
    let mut s = Suite::serving("[manager]\nadmin = \"127.0.0.1:0\"\n");
    let before = s.pids();
    let admin =
        s.log.text().lines().find_map(|l| Some(l.split_once("event=admin listen=")?.1.to_owned())).unwrap();
    for seed in 0..40 {
        let bytes = noise(1 + seed as usize * 100, seed);
        for to in [s.addr(), admin.parse().unwrap()] {
            let mut c = TcpStream::connect(to).unwrap();
            let _ = c.write_all(&bytes);
        }
        for entry in fs::read_dir(s.run_dir()).unwrap() {
            let path = entry.unwrap().path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("sock") => {
                    let _ = UnixStream::connect(&path).and_then(|mut c| c.write_all(&bytes));
                }
                Some("notify") => {
                    let from = UnixDatagram::unbound().unwrap();
                    let _ = from.send_to(&bytes, &path);
                    let _ =
                        from.send_to(b"STOPPING=1\nMAINPID=1\nX_TRAFFIC_RETIRING=1\nWATCHDOG=trigger", &path);
                }
                _ => {}
            }
        }
    }
    assert_eq!(s.get("/").code, 200);
    expect_code(&s.run(MANAGER, &["status"]), 0);
    assert_eq!(s.pids(), before);
    s.stop();
}

#[test]
fn who_holds_all_control_connections_does_not_hide_the_manager_from_cop() {
    let mut s = Suite::serving("[cop]\ninterval = \"100ms\"\ntimeout = \"500ms\"\nfailures = 2\n");
    let before = s.pids();
    let begun = Instant::now();
    let hold = || UnixStream::connect(s.run_dir().join("manager.sock")).unwrap();
    let mark = s.mark();
    let mut held: Vec<UnixStream> = (0..70).map(|_| hold()).collect();
    s.wait(mark, &["event=control-full"]);
    // one that is refused is told so by its end; those that are held say nothing
    let mut refused = held.pop().unwrap();
    assert_eq!(refused.read(&mut [0; 8]).unwrap(), 0);
    // as long as a hang takes to be one
    while begun.elapsed() < Duration::from_secs(2) {
        assert_eq!(s.get("/").code, 200);
    }
    assert_eq!(s.pids(), before, "{}", s.log.text());
    drop(held);
    s.until("status is answered", || s.run(MANAGER, &["status"]).status.success());
    s.stop();
}

#[test]
fn a_server_without_descriptors_serves_whom_it_has_and_then_everybody() {
    let mut s = Suite::serving("nofile = 80\nthreads = 1\n");
    let server = s.pid("server");
    let mut open = Client::connect(s.addr()).unwrap();
    assert_eq!(open.get("/").unwrap().code, 200);
    let crowd: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(s.addr()).unwrap()).collect();
    for _ in 0..50 {
        assert_eq!(open.get("/").unwrap().code, 200);
    }
    drop(crowd);
    assert_eq!(s.get("/").code, 200);
    assert_eq!(s.pid("server"), server, "{}", s.log.text());
    s.stop();
}

#[test]
fn a_server_that_gets_no_memory_is_replaced_and_nobody_gets_half_an_answer() {
    let origin = Origin::start();
    let mut s = Suite::new("");
    s.write_config(&format!("[server]\nlisten = [\"127.0.0.1:0\"]\n{}", origin.route()));
    s.start();
    let server = s.pid("server");
    limit(server, Resource::RLIMIT_AS, 1 << 20);
    let mut whole = 0;
    for _ in 0..6 {
        let mut c = Client::connect(s.addr()).unwrap();
        if let Ok(answer) = c.get("/big")
            && answer.code == 200
        {
            let expected = answer.body.iter().enumerate().all(|(at, b)| *b == origin::big(at));
            assert!(expected && answer.body.len() > 1000, "{} bytes", answer.body.len());
            whole += 1;
        }
    }
    s.until("it serves", || s.get("/after").code == 200);
    assert!(whole > 0, "{}", s.log.text());
    s.stop();
}

/// A small file system over a directory.
struct Small(PathBuf);

impl Small {
    fn over(path: PathBuf) -> Small {
        Small::of("size=256k,mode=755", path)
    }

    fn of(options: &str, path: PathBuf) -> Small {
        fs::create_dir_all(&path).unwrap();
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
        Small(path)
    }

    /// Takes all of its room; whoever drops the file's name gives it back.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = File::create(&path).unwrap();
        while file.write_all(&[7; 512]).is_ok() {}
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn with_its_disks_full_everybody_may_die_and_is_replaced() {
    if !is_root() {
        return;
    }
    let s = Suite::new("");
    let disks = [Small::over(s.run_dir()), Small::over(s.path("state"))];
    // dropped before them: it finds by its locks whom it has to end
    let mut s = s;
    s.start();
    let filled: Vec<PathBuf> = disks.iter().map(Small::fill).collect();
    for program in ["server", "manager"] {
        let mark = s.mark();
        let old = s.kill(program, SIGKILL);
        assert_eq!(s.get("/").code, 200);
        s.until("there's another one", || s.try_pid(program).is_some_and(|pid| pid != old));
        // a command that comes before that is refused
        s.wait(mark, &[&format!("event=state of={program}"), "to=ready"]);
    }
    let o = s.run(MANAGER, &["restart"]);
    assert!(o.status.success(), "{}", s.log.text());
    assert_eq!(s.get("/").code, 200);
    expect_code(&s.run(COP, &["status"]), 0);
    filled.iter().for_each(|f| fs::remove_file(f).unwrap());
    s.stop();
    let record = fs::read_to_string(s.path("state").join("status.json")).unwrap();
    assert!(record.contains("\"running\":false") || record.contains("\"running\": false"), "{record}");
    // before the directory that it is over goes
    drop(disks);
}

/// A disk of its own over a directory, which can be made to stand still: whoever writes to it waits. (An ext4 of which the
/// journal is written to a throttled device does the same for seconds.)
/// Its image is in memory: a disk below it may stand still by itself.
struct Frozen {
    path: PathBuf,
    /// It goes after the disk.
    _below: Small,
}

fn does(program: &str, args: &[&std::ffi::OsStr]) -> bool {
    let mut c = clean(program);
    c.args(args).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    output(c).status.success()
}

impl Frozen {
    /// `None`: there are no loop devices here.
    fn over(path: PathBuf, below: PathBuf) -> Option<Frozen> {
        fs::create_dir_all(&path).unwrap();
        let below = Small::of("size=32m,mode=755", below);
        let image = below.0.join("image");
        File::create(&image).unwrap().set_len(16 << 20).unwrap();
        assert!(does("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), image.as_ref()]));
        does("mount", &["-o".as_ref(), "loop".as_ref(), image.as_ref(), path.as_ref()])
            .then_some(Frozen { path, _below: below })
    }

    /// Until what is returned is dropped.
    fn stand_still(&self) -> Standstill {
        assert!(does("fsfreeze", &["--freeze".as_ref(), self.path.as_ref()]));
        Standstill(self.path.clone())
    }
}

struct Standstill(PathBuf);

impl Drop for Standstill {
    fn drop(&mut self) {
        if !does("fsfreeze", &["--unfreeze".as_ref(), self.0.as_ref()]) {
            eprintln!("{} stands still", self.0.display());
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_disk_that_stands_still_holds_nobody_up() {
    if !is_root() {
        return;
    }
    let s = Suite::new("");
    let Some(disk) = Frozen::over(s.path("state"), s.path("disk")) else {
        return eprintln!("needs loop devices: not tried");
    };
    // dropped before it: it finds by its locks whom it has to end
    let mut s = s;
    common::jobs::config(
        &s,
        &format!(
            "{TIGHT}[[job]]\nname = \"often\"\nschedule = \"every 1s\"\ncommand = [\"true\"]\n\
             [[job]]\nname = \"job\"\ncommand = [\"sleep\", \"1000\"]\n"
        ),
    );
    s.start();
    let mark = s.mark();
    s.wait(mark, &["event=asleep of=job job=often"]);
    common::jobs::until_kept(&s);
    let still = disk.stand_still();
    let manager = s.pid("manager");
    // what runs by schedule is written down each time, and so is a picture of who hangs
    for _ in 0..2 {
        let mark = s.mark();
        s.wait(mark, &["event=asleep of=job job=often"]);
    }
    for (program, signal) in
        [("server", SIGKILL), ("server", SIGSTOP), ("manager", SIGKILL), ("manager", SIGSTOP)]
    {
        let mark = s.mark();
        let old = s.kill(program, signal);
        s.until("there's another one", || s.try_pid(program).is_some_and(|pid| pid != old));
        s.wait(mark, &[&format!("event=state of={program}"), "to=ready"]);
        assert_eq!(s.get("/").code, 200);
        if program == "server" {
            assert_eq!(s.pid("manager"), manager, "{}", s.log.text());
        }
    }
    let cop = s.kill("cop", SIGKILL);
    let mark = s.mark();
    s.spawn_cop();
    s.until("there's another cop", || s.try_pid("cop").is_some_and(|pid| pid != cop));
    s.wait(mark, &["traffic_cop", "event=serving"]);
    s.wait(mark, &["event=asleep of=job job=often"]);
    // who wants something written is told that it isn't, and it is when the disk answers, also by the next manager
    let said = common::jobs::told(&s, &["disable", "job"]);
    assert!(said.contains("the disk doesn't answer"), "{said}");
    let manager = s.kill("manager", SIGKILL);
    s.until("there's another one", || s.try_pid("manager").is_some_and(|pid| pid != manager));
    s.until("it knows", || {
        let o = s.run(MANAGER, &["list"]);
        String::from_utf8_lossy(&o.stdout).lines().any(|l| l.starts_with("job ") && l.contains("disabled"))
    });
    // and the picture of who hangs now is there when the disk is
    let hung = s.kill("server", SIGSTOP);
    s.until("there's another one", || s.try_pid("server").is_some_and(|pid| pid != hung));
    drop(still);
    let written =
        || fs::read_to_string(s.path("state").join("jobs.json")).is_ok_and(|t| t.contains("\"job\""));
    s.until("it is written down", written);
    s.wait(0, &["event=snapshot pid=", &hung.to_string()]);
    s.stop();
    let record = fs::read_to_string(s.path("state").join("status.json")).unwrap();
    assert!(record.contains("\"running\": false"), "{record}");
    // before the directory that it is over goes
    drop(disk);
}

/// A server can do without its cache: to open a file of it takes for ever here.
#[test]
fn a_cache_whose_disk_stands_still_is_no_reason_to_kill_anybody() {
    let o = Origin::start();
    let mut s = Suite::serving(&format!(
        "[server.cache]\ndisk = \"64MiB\"\n[cop]\ninterval = \"50ms\"\n\
         [manager]\ninterval = \"50ms\"\nstall = \"200ms\"\n{}",
        o.route()
    ));
    assert_eq!(s.get("/cacheable").code, 200);
    let files = || fs::read_dir(s.path("state").join("cache")).into_iter().flatten().flatten();
    let kept = || files().find(|f| !f.file_name().to_string_lossy().starts_with("tmp-"));
    s.until("it is on disk", || kept().is_some());
    let old = s.kill("server", SIGKILL);
    s.until("there's another one", || s.try_pid("server").is_some_and(|pid| pid != old));
    let file = kept().unwrap().path();
    fs::remove_file(&file).unwrap();
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (server, mark) = (s.pid("server"), s.mark());
    let mut other = s.client();
    other.send("POST /held HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n").unwrap();
    o.wait_seen("POST /held", 1);
    assert_eq!(s.get("/cacheable").code, 200);
    assert_eq!(o.seen("GET /cacheable"), 2, "its origin has it too");
    o.release();
    assert_eq!(other.read().unwrap().code, 200);
    assert_eq!(s.pid("server"), server, "{}", s.log.text());
    assert!(!s.log.text().lines().skip(mark).any(|l| l.contains("event=hang")), "{}", s.log.text());
    // whoever waits for somebody to write to it has waited long enough
    drop(File::options().read(true).write(true).open(&file));
    s.stop();
}

/// How many processes the user of that one may have, as far as it is concerned; said by that user, who needs no capability.
fn processes(s: &Suite, pid: i32, most: u32) {
    let mut c = clean(&s.wrap[0]);
    c.args(&s.wrap[1..]).args(["prlimit", "--pid", &pid.to_string(), &format!("--nproc={most}:")]);
    expect_code(&output(c), 0);
}

#[test]
fn a_manager_that_can_not_fork_promotes_the_standby_and_queues_until_it_can() {
    if !is_root() {
        return;
    }
    // somebody whose processes are ours alone
    let uid = 3_000_000 + std::process::id();
    let mut s = Suite::new("[manager.respawn]\nmax = \"100ms\"\n");
    chown(s.dir.path(), Some(uid), Some(uid)).unwrap();
    fs::set_permissions(s.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let uid = uid.to_string();
    s.wrap = ["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups"].map(str::to_owned).to_vec();
    let mark = s.mark();
    s.start();
    s.wait(mark, &["event=standby"]);
    let manager = s.pid("manager");
    processes(&s, manager, 1);
    // the standby is there already
    let mark = s.mark();
    s.kill("server", SIGKILL);
    assert_eq!(s.get("/").code, 200);
    s.wait(mark, &["event=promote"]);
    let mark = s.mark();
    s.kill("server", SIGKILL);
    let mut waiting: Vec<Client> = (0..20)
        .map(|_| {
            let mut c = Client::connect(s.addr()).unwrap();
            c.send("GET / HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
            c
        })
        .collect();
    s.wait(mark, &["event=spawn-failed of=server"]);
    processes(&s, manager, 4096);
    for c in &mut waiting {
        assert_eq!(c.read().unwrap().code, 200);
    }
    assert_eq!(s.pid("manager"), manager);
    s.stop();
}

/// Bytes of memory that a process has.
fn resident(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Beside so many clients others are answered, and each of them has cost the server little since it had so many bytes.
#[track_caller]
fn costs_little(s: &Suite, server: i32, before: u64, clients: usize) {
    for _ in 0..20 {
        assert_eq!(s.get("/").code, 200);
    }
    let each = resident(server).saturating_sub(before) / clients as u64;
    assert!(each < 48 << 10, "{each} bytes for each of them");
}

/// From now on nothing that its peer sends arrives, and nobody says that it doesn't: as of one that has lost its power or its
/// way. What it sends goes out.
fn vanish(client: &TcpStream) {
    let mut nothing = nix::libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 };
    let filter = nix::libc::sock_fprog { len: 1, filter: &mut nothing };
    // SAFETY: setsockopt(2) reads the program, of one instruction ("return 0 bytes"), while this waits.
    let done = unsafe {
        nix::libc::setsockopt(
            client.as_raw_fd(),
            nix::libc::SOL_SOCKET,
            nix::libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of_val(&filter) as _,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn clients_that_say_nothing_or_have_vanished_cost_little_and_are_forgotten_in_time() {
    let mut s = Suite::serving("idle_timeout = \"3s\"\n");
    let server = s.pid("server");
    let open = || fs::read_dir(format!("/proc/{server}/fd")).unwrap().count();
    assert_eq!(s.get("/").code, 200);
    let (memory, descriptors) = (resident(server), open());
    let said = ["", "GET / HTTP/1.1\r\nHost: t\r\nX-A: ", "GET / HTTP/1.1\r\nHost: t\r\n\r\n"];
    let crowd: Vec<TcpStream> = (0..2100)
        .map(|n| {
            let mut c = TcpStream::connect(s.addr()).unwrap();
            if n % 2 == 0 {
                vanish(&c);
            }
            c.write_all(said[n % said.len()].as_bytes()).unwrap();
            c
        })
        .collect();
    s.until("many are there at once", || open() >= descriptors + crowd.len() / 4);
    costs_little(&s, server, memory, crowd.len());
    // nobody has closed any of them but the server
    s.until("they are forgotten", || open() <= descriptors + 2);
    assert_eq!(s.pid("server"), server);
    drop(crowd);
    s.stop();
}

/// How many slow clients: 2,000 of an everyday run, or as many as are asked for.
fn crowd() -> usize {
    std::env::var("FAULTS_CROWD").map_or(2000, |n| n.parse().expect("FAULTS_CROWD is a number"))
}

#[test]
fn a_crowd_of_slow_clients_costs_little_and_delays_nobody() {
    let mut s = Suite::serving("idle_timeout = \"2s\"\n");
    let server = s.pid("server");
    let before = resident(server);
    let slow: Vec<TcpStream> = (0..crowd())
        .map(|_| {
            let mut c = TcpStream::connect(s.addr()).unwrap();
            c.write_all(b"GET /slow HTTP/1.1\r\nHost: t\r\nX-A: ").unwrap();
            c
        })
        .collect();
    costs_little(&s, server, before, slow.len());
    // each is told that it was too slow, and let go
    for mut c in slow {
        c.set_read_timeout(Some(LONG)).unwrap();
        let mut said = Vec::new();
        c.read_to_end(&mut said).unwrap();
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&said));
    }
    assert_eq!(s.pid("server"), server);
    s.stop();
}

/// Heartbeats come through the port, and there is no room for them.
#[test]
fn a_server_that_is_full_is_not_taken_for_hung_and_one_that_hangs_is() {
    let mut s = Suite::new("");
    s.write_config(&format!("[server]\nlisten = [\"127.0.0.1:0\"]\nmax_connections = 2\n{TIGHT}"));
    s.start();
    s.wait(0, &["event=standby-ready"]);
    let mut kept: Vec<Client> = (0..2).map(|_| Client::connect(s.addr()).unwrap()).collect();
    let all_served = |kept: &mut Vec<Client>| kept.iter_mut().all(|c| c.get("/").unwrap().code == 200);
    assert!(all_served(&mut kept));
    let mut waiting = Client::connect(s.addr()).unwrap();
    waiting.send("GET / HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    let (server, mark) = (s.pid("server"), s.mark());
    s.wait(mark, &["traffic_cop", "event=server-full"]);
    assert_eq!(s.log.try_wait(mark, &["event=verdict"], Duration::from_secs(5)), None);
    assert!(all_served(&mut kept));
    assert_eq!(s.pid("server"), server);
    let status = expect_code(&s.run(COP, &["status"]), 4);
    assert!(status.contains("degraded: the server is full"), "{status}");
    // it says nothing any more
    s.kill("server", SIGSTOP);
    // by cop, or by the manager if it was stopped in a round of its loop
    assert!(all_served(&mut kept));
    assert_ne!(s.pid("server"), server);
    // who has waited gets the first place
    kept.pop();
    assert_eq!(waiting.read().unwrap().code, 200);
    s.stop();
}
