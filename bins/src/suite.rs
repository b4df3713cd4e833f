//! The places and names that the three programs agree on.

use anyhow::Context;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use supervisor::listen_fds::Inherited;
use supervisor::probe::Target;

/// The files of a runtime directory.
#[derive(Debug, Clone)]
pub struct Runtime {
    dir: PathBuf,
}

impl Runtime {
    /// Of that directory.
    pub fn new(dir: &Path) -> Runtime {
        Runtime { dir: dir.to_owned() }
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A program's lock: `cop`, `manager` or `server`.
    pub fn lock(&self, program: &str) -> PathBuf {
        self.dir.join(format!("{program}.lock"))
    }

    /// The manager's control socket.
    pub fn control(&self) -> PathBuf {
        self.dir.join("manager.sock")
    }

    /// A program's notify socket: `cop` or `manager`.
    pub fn notify(&self, program: &str) -> PathBuf {
        self.dir.join(format!("{program}.notify"))
    }

    /// The addresses that are really bound, one a line.
    pub fn ports(&self) -> PathBuf {
        self.dir.join("ports")
    }

    /// The file of [`Runtime::token`].
    pub fn token_file(&self) -> PathBuf {
        self.dir.join("heartbeat.token")
    }

    /// Where heartbeats of the server can be sent, read from [`Runtime::ports`]; empty while it isn't there.
    pub fn targets(&self) -> Vec<Target> {
        let text = std::fs::read_to_string(self.ports()).unwrap_or_default();
        text.lines().filter_map(Target::parse).collect()
    }

    /// The heartbeat's token: the one that we were handed, else the file's; made if there is none yet.
    ///
    /// # Errors
    /// The file can be neither read nor made.
    pub fn token(&self) -> io::Result<String> {
        let path = self.token_file();
        if let Ok(handed) = std::env::var(TOKEN) {
            // who looks from outside finds it in the file; a server may not make one
            if !path.exists() {
                let _ = self.put_token(&handed);
            }
            return Ok(handed);
        }
        match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let mut random = [0u8; 16];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let fresh: String = random.iter().map(|b| format!("{b:02x}")).collect();
        match self.put_token(&fresh)? {
            true => Ok(fresh),
            false => std::fs::read_to_string(&path),
        }
    }

    /// Makes the file of the token, whole, if there is none. False: there is one.
    ///
    /// # Errors
    /// It can't be made.
    pub fn put_token(&self, token: &str) -> io::Result<bool> {
        // whoever comes first makes it: a link can't be half there
        let tmp = self.dir.join(format!("heartbeat.token.{}", std::process::id()));
        // one of the same number has died over it
        let _ = std::fs::remove_file(&tmp);
        let mut f = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&tmp)?;
        io::Write::write_all(&mut f, token.as_bytes())?;
        let linked = std::fs::hard_link(&tmp, self.token_file());
        std::fs::remove_file(&tmp)?;
        match linked {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Removes what an ended suite has no use for. Locks stay: their files are harmless, and removing one that somebody
    /// is about to take would let two hold "the" lock.
    pub fn clean(&self) {
        let names = ["manager.sock", "cop.notify", "manager.notify", "ports", "heartbeat.token"];
        for name in names {
            let _ = std::fs::remove_file(self.dir.join(name));
        }
        // and what somebody was about to rename to one of them when he was killed
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let file = entry.file_name();
            let is_draft = |name| file.to_str()?.strip_prefix(name)?.strip_prefix('.').map(|_| ());
            if names.into_iter().any(|name| is_draft(name).is_some()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// The variable in which a manager and its servers are handed the heartbeat's token: somebody may have removed the file.
pub const TOKEN: &str = "TRAFFIC_HEARTBEAT_TOKEN";

/// The path at which the server answers heartbeats.
pub const HEARTBEAT_PATH: &str = "/.traffic/heartbeat";

/// The header in which cop tells the manager how many milliseconds ago the server has answered it.
pub const SERVER_ANSWERED: &str = "traffic-server-answered";

/// The headers of a heartbeat of the server.
pub fn heartbeat_headers(token: &str, nonce: &str) -> Vec<String> {
    vec![format!("traffic-heartbeat: {token}"), format!("traffic-nonce: {nonce}")]
}

/// Reads a heartbeat's body `traffic-heartbeat pid=N nonce=X`: the pid, if the nonce is ours.
pub fn heartbeat_pid(body: &[u8], nonce: &str) -> Option<i32> {
    let text = std::str::from_utf8(body).ok()?.trim_end();
    let (pid, echoed) = text.strip_prefix("traffic-heartbeat pid=")?.split_once(" nonce=")?;
    (echoed == nonce).then(|| pid.parse().ok()).flatten()
}

/// The executable of a sibling program: beside our own, also when ours was replaced on disk meanwhile.
///
/// # Errors
/// Our own path can't be read.
pub fn sibling(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::fs::read_link("/proc/self/exe").context("reading /proc/self/exe")?;
    let dir = own.parent().unwrap_or(Path::new("/"));
    Ok(dir.join(name))
}

/// Where programs are looked for by those who have no environment, or one of their own.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a command's program is: as it stands if it has a slash, else the first of that name in PATH that can be run. One
/// that isn't found stays as it is, and the attempt to run it says so.
pub fn find_program(name: &str) -> PathBuf {
    if name.contains('/') {
        return name.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| PATH.into());
    let can_run = |p: &PathBuf| rustix::fs::access(p, rustix::fs::Access::EXEC_OK).is_ok() && p.is_file();
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(can_run).unwrap_or_else(|| name.into())
}

/// The environment for a child program: ours, less what was meant for us alone, plus `extra`.
pub fn child_env(extra: &[(&str, OsString)]) -> Vec<(OsString, OsString)> {
    let ours = |k: &OsString| {
        let k = k.to_string_lossy();
        ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"].contains(&k.as_ref())
            || k.starts_with("WATCHDOG_")
            || ["NOTIFY_SOCKET", "MAINPID", STOP_ON_EOF, TOKEN].contains(&k.as_ref())
            || extra.iter().any(|(name, _)| *name == k)
    };
    let mut env: Vec<_> = std::env::vars_os().filter(|(k, _)| !ours(k)).collect();
    env.extend(extra.iter().map(|(k, v)| (OsString::from(k), v.clone())));
    env
}

/// The variable by which a server that isn't ours (`server.command`) is known: whose it is (the runtime directory).
pub const SERVER_OF: &str = "TRAFFIC_SERVER_OF";

/// What a manager says in the place of its server's pid while serving is paused.
pub const PAUSED: i32 = -2;

/// The name under which a server's estate (the way to its keeper, its connection table) is stored.
pub fn estate_name(server: i32, keeper: i32) -> String {
    format!("estate-{server}-{keeper}")
}

/// Server and keeper of an estate.
pub fn estate_of(name: &str) -> Option<(i32, i32)> {
    let (server, keeper) = name.strip_prefix("estate-")?.split_once('-')?;
    Some((server.parse().ok()?, keeper.parse().ok()?)).filter(|(s, k)| *s > 0 && *k > 0)
}

/// The name under which a server's pulse page is stored.
pub fn pulse_name(server: i32) -> String {
    format!("pulse-{server}")
}

/// The server of a pulse page.
pub fn pulse_of(name: &str) -> Option<i32> {
    name.strip_prefix("pulse-")?.parse().ok().filter(|pid| *pid > 0)
}

/// Is that the name of a listening socket of ours, the server's or a job's?
pub fn is_listener(name: &str) -> bool {
    name.starts_with("listen") || name.starts_with("job-listen")
}

/// Pulse pages that an earlier manager had: taken out of what was inherited, each with its server.
pub fn take_pages(inherited: &mut Vec<Inherited>) -> Vec<(i32, OwnedFd)> {
    take_named(inherited, pulse_of)
}

/// Takes what has a name that `of` understands.
pub fn take_named<T>(inherited: &mut Vec<Inherited>, of: impl Fn(&str) -> Option<T>) -> Vec<(T, OwnedFd)> {
    let (ours, others): (Vec<_>, Vec<_>) =
        std::mem::take(inherited).into_iter().partition(|i| of(&i.name).is_some());
    *inherited = others;
    ours.into_iter().filter_map(|i| Some((of(&i.name)?, i.fd))).collect()
}

/// Takes the fd of that name out of what was inherited, if there is one.
pub fn take_one(inherited: &mut Vec<Inherited>, name: &str) -> Option<OwnedFd> {
    take_named(inherited, |n| (n == name).then_some(())).pop().map(|((), fd)| fd)
}

/// Connections need fds: take what we may.
pub fn raise_fd_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(e) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        log::warn!("event=rlimit-failed nofile={hard}: {e}");
    }
}

/// Makes room in the fd table for `n` fds. To be called with one thread: with more than one user of a table the kernel waits
/// for a grace period (some ten milliseconds) whenever it grows, which is what a take-over would have to wait for.
pub fn reserve_fds(n: usize) {
    use nix::sys::resource::{Resource, getrlimit};
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    let highest = (n as u64).min(limit).saturating_sub(1) as i32;
    if let Ok(null) = std::fs::File::open("/dev/null")
        && let Err(e) = rustix::io::fcntl_dupfd_cloexec(&null, highest)
    {
        log::debug!("event=reserve-failed fds={n}: {e}");
    }
}

/// Set by the drill: cop ends its suite when its standard input ends.
pub const STOP_ON_EOF: &str = "TRAFFIC_STOP_ON_STDIN_EOF";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_needs_the_form_and_our_nonce() {
        assert_eq!(heartbeat_pid(b"traffic-heartbeat pid=42 nonce=n1\n", "n1"), Some(42));
        assert_eq!(heartbeat_pid(b"traffic-heartbeat pid=42 nonce=n0\n", "n1"), None);
        assert_eq!(heartbeat_pid(b"<html>hello</html>", "n1"), None);
        assert_eq!(heartbeat_pid(b"\xff", "n1"), None);
    }

    #[test]
    fn a_program_is_looked_for_in_path_and_only_without_a_slash() {
        assert!(find_program("sh").is_absolute());
        assert_eq!(find_program("./sh"), Path::new("./sh"));
        assert_eq!(find_program("no such program"), Path::new("no such program"));
    }

    #[test]
    fn the_token_is_made_once() {
        let d = tempfile::tempdir().unwrap();
        let r = Runtime::new(d.path());
        let first = r.token().unwrap();
        assert_eq!((first.len(), r.token().unwrap()), (32, first));
        assert_eq!(std::fs::read_dir(d.path()).unwrap().count(), 1);
    }

    #[test]
    fn locks_stay_and_drafts_of_the_dead_go() {
        let d = tempfile::tempdir().unwrap();
        for name in
            ["cop.lock", "ports", "ports.77.tmp", "heartbeat.token", "heartbeat.token.77", "portsmouth"]
        {
            std::fs::write(d.path().join(name), "").unwrap();
        }
        Runtime::new(d.path()).clean();
        let mut left: Vec<_> = std::fs::read_dir(d.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["cop.lock", "portsmouth"]);
    }

    #[test]
    fn children_get_nothing_that_was_meant_for_us() {
        let env = child_env(&[("TRAFFIC_RUNTIME_DIR", "/x".into())]);
        assert!(env.iter().all(|(k, _)| k != "NOTIFY_SOCKET" && k != "LISTEN_FDS"));
        assert_eq!(env.iter().filter(|(k, _)| k == "TRAFFIC_RUNTIME_DIR").count(), 1);
    }
}
