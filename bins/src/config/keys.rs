//! The table of keys. A key that isn't here doesn't exist; its default is read by the same function as an operator's value.

use super::manager;
use super::value::{self, Raw, Wrong};
use super::{AccessLog, Config, OnManagerDeath, Preset};

/// One key.
pub struct Key {
    /// `section.name`
    pub path: &'static str,
    /// What it takes, for the reference.
    pub takes: &'static str,
    /// Its default as an operator would write it; empty where it depends on the user (see [`Key::doc`]).
    pub default: &'static str,
    /// One or two sentences.
    pub doc: &'static str,
    /// Puts a value in its place.
    pub set: fn(&mut Config, &Raw) -> Result<(), Wrong>,
}

impl Key {
    /// The environment variable that sets it.
    pub fn env(&self) -> String {
        match self.path {
            "suite.runtime_dir" => "TRAFFIC_RUNTIME_DIR".into(),
            "suite.state_dir" => "TRAFFIC_STATE_DIR".into(),
            path => format!("TRAFFIC_{}", path.replace('.', "_").to_uppercase()),
        }
    }
}

/// `key!(path, takes, default, doc, |config, value| place = expression)`
macro_rules! key {
    ($path:literal, $takes:literal, $default:literal, $doc:literal, |$c:ident, $v:ident| $place:expr => $value:expr) => {
        Key {
            path: $path,
            takes: $takes,
            default: $default,
            doc: $doc,
            set: |$c, $v| {
                $place = $value?;
                Ok(())
            },
        }
    };
}

/// All keys but `[[route]]`, in the order of the reference.
pub static KEYS: &[Key] = &[
    key!("suite.runtime_dir", "path", "",
        "Locks and sockets. Default: /run/traffic for root, else $XDG_RUNTIME_DIR/traffic, else /tmp/traffic-UID.",
        |c, v| c.suite.runtime_dir => value::path(v)),
    key!("suite.state_dir", "path", "",
        "Logs and status. Default: /var/lib/traffic for root, else $XDG_STATE_HOME/traffic, else ~/.local/state/traffic, else /tmp/traffic-UID-state.",
        |c, v| c.suite.state_dir => value::path(v)),
    key!("suite.log", "filter", "\"info\"", "What is logged: error, warn, info, debug or trace; by module as env_logger has it. Lines of jobs always are, unless it is off.",
        |c, v| c.suite.log => value::log_filter(v)),
    key!("suite.log_file", "path", "", "Where the daemon logs. Default: traffic.log in the state directory.",
        |c, v| c.suite.log_file => value::path(v).map(Some)),
    key!("suite.log_max_size", "size", "\"64MiB\"", "The daemon's log is rotated when it is larger; \"0\" is never.",
        |c, v| c.suite.log_max_size => value::bytes(v)),
    key!("suite.log_rotate_at", "\"HH:MM\" or \"none\"", "\"00:00\"", "And every day at this time (UTC, as the log's own times).",
        |c, v| c.suite.log_rotate_at => value::time_of_day(v)),
    key!("suite.log_keep_days", "integer", "14", "Rotated logs are removed after so many days; 0 keeps them.",
        |c, v| c.suite.log_keep_days => value::integer(v, 0, 36_500)),
    key!("suite.log_keep_files", "integer", "30", "No more rotated logs than these are kept.",
        |c, v| c.suite.log_keep_files => value::integer(v, 0, 100_000).map(|n| n as usize)),
    key!("suite.snapshots", "integer", "8", "Pictures of hung processes (state and stacks from /proc) that are kept under snapshots in the state directory; 0 takes none.",
        |c, v| c.suite.snapshots => value::integer(v, 0, 10_000).map(|n| n as usize)),
    key!("suite.user", "name or \"none\"", "\"none\"",
        "Who the server runs as when the suite is started by root: the manager binds the ports as root, the server has none of its privileges. Without it, root's suite refuses to start (but see suite.allow_root).",
        |c, v| c.suite.user => value::name_or_none(v)),
    key!("suite.group", "name or \"none\"", "\"none\"", "The server's group, if not that of suite.user; its supplementary groups are added.",
        |c, v| c.suite.group => value::name_or_none(v)),
    key!("suite.allow_root", "boolean", "false", "The server may run as root: for tests and containers that map root to nobody.",
        |c, v| c.suite.allow_root => value::boolean(v)),
    key!("cop.preset", "\"prompt\" or \"classic\"", "\"prompt\"", "classic: heartbeats as Traffic Server's traffic_cop has them, every 10 s with 180 s to answer, 60 s for a kill; the manager's pings and `manager.stall` too. Keys that are set themselves count before it.",
        |c, v| c.cop.preset => preset(v)),
    key!("cop.interval", "duration", "\"1500ms\"", "Between checks of the locks, and between good heartbeats.",
        |c, v| c.cop.interval => value::positive(v)),
    key!("cop.timeout", "duration", "\"900ms\"",
        "How long a heartbeat may take. After a miss the next one follows in a quarter of the interval: with the defaults a hang is a verdict after 3.8 s at the latest.",
        |c, v| c.cop.timeout => value::positive(v)),
    key!("cop.failures", "integer", "2", "Failed heartbeats in a row until the process is replaced.",
        |c, v| c.cop.failures => value::integer(v, 1, 1000).map(|n| n as u32)),
    key!("cop.start_grace", "duration", "\"30s\"", "A process that isn't ready after this long has hung; no verdict comes earlier.",
        |c, v| c.cop.start_grace => value::positive(v)),
    key!("cop.kill_timeout", "duration", "\"10s\"", "How long a process may take to vanish after SIGKILL.",
        |c, v| c.cop.kill_timeout => value::positive(v)),
    key!("cop.core_signal", "signal or \"none\"", "\"none\"", "Sent to a hung process before SIGKILL, so that it leaves a core.",
        |c, v| c.cop.core_signal => value::signal(v)),
    key!("cop.on_manager_death", "\"adopt\" or \"kill\"", "\"adopt\"",
        "adopt: the server goes on and the next manager adopts it; kill: the server goes with its manager, as in Traffic Server.",
        |c, v| c.cop.on_manager_death => on_manager_death(v)),
    key!("cop.oom_score_adj", "integer", "-900", "From -1000 (never) to 1000: who is killed first when memory is out. Below 0 only with CAP_SYS_RESOURCE; else it stays as it is.",
        |c, v| c.cop.oom_score_adj => value::signed(v, -1000, 1000)),
    key!("manager.admin", "address or \"none\"", "\"none\"", "Read-only HTTP: / (a page), /status, /metrics, /healthz, /proxy.pac.",
        |c, v| c.manager.admin => value::address_or_none(v)),
    key!("manager.interval", "duration", "\"1500ms\"", "Between looks at the server: at its event threads, and, while no cop watches it, by a ping.",
        |c, v| c.manager.interval => value::positive(v)),
    key!("manager.timeout", "duration", "\"900ms\"", "How long a ping may take.",
        |c, v| c.manager.timeout => value::positive(v)),
    key!("manager.failures", "integer", "2", "Failed pings in a row until the server is replaced.",
        |c, v| c.manager.failures => value::integer(v, 1, 1000).map(|n| n as u32)),
    key!("manager.stall", "duration", "\"1s\"", "An event thread that was seen in the same round of its loop for so long has stalled: the server is replaced. One that waits for a disk (`task`) hasn't.",
        |c, v| c.manager.stall => value::positive(v)),
    key!("manager.oom_score_adj", "integer", "-800", "The same for the manager.",
        |c, v| c.manager.oom_score_adj => value::signed(v, -1000, 1000)),
    key!("manager.cgroup", "\"auto\", \"none\" or path", "\"auto\"",
        "Where jobs get control groups (version 2), so that limits can be set and all that a worker leaves behind is ended. auto: where systemd has delegated one (Delegate=, as in our unit); a directory of cgroup2 that was made for this.",
        |c, v| c.manager.cgroup => manager::cgroup(v)),
    key!("manager.queue.max_connections", "integer", "65536", "While no server serves, the manager accepts up to so many connections (and as its fd limit allows); more wait in the kernel's backlog.",
        |c, v| c.manager.queue.max_connections => value::integer(v, 0, 10_000_000).map(|n| n as usize)),
    key!("manager.queue.max_wait", "duration", "\"30s\"", "A connection that has waited so long there is told 503 with Retry-After.",
        |c, v| c.manager.queue.max_wait => value::positive(v)),
    key!("manager.respawn.initial", "duration", "\"0ms\"", "Wait before a respawn; a loop of crashes is braked beyond it.",
        |c, v| c.manager.respawn.initial => value::duration(v)),
    key!("manager.respawn.factor", "number", "2", "Growth of the wait from one crash to the next.",
        |c, v| c.manager.respawn.factor => value::number(v, 1.0, 100.0)),
    key!("manager.respawn.max", "duration", "\"30s\"", "Longest wait; also the wait after an error that a retry can't mend.",
        |c, v| c.manager.respawn.max => value::positive(v)),
    key!("manager.respawn.jitter", "number", "0.1", "Random part of the wait, 0 to 1.",
        |c, v| c.manager.respawn.jitter => value::number(v, 0.0, 1.0)),
    key!("manager.respawn.stable_after", "duration", "\"10s\"", "A server that was ready for so long is forgiven its earlier crashes.",
        |c, v| c.manager.respawn.stable_after => value::positive(v)),
    key!("manager.respawn.give_up_after", "integer", "0", "So many crashes in a row are answered with a respawn; after one more, clients are told 503 and nothing is tried until somebody asks (traffic_manager restart). 0: it never gives up.",
        |c, v| c.manager.respawn.give_up_after => value::integer(v, 0, 1_000_000).map(|n| n as u32)),
    key!("manager.respawn.on_give_up", "array of text", "[]", "A command to run then (at most 60 s), with TRAFFIC_EVENT=gave-up, TRAFFIC_PROGRAM=server, TRAFFIC_CRASHES and TRAFFIC_LAST_EXIT in its environment.",
        |c, v| c.manager.respawn.on_give_up => value::list(v, value::text)),
    key!("server.command", "array of text", "[]", "Another program in the place of traffic_server; it gets the listeners as LISTEN_FDS and says READY=1 on NOTIFY_SOCKET. Without a slash it is looked for in PATH.",
        |c, v| c.server.command => value::list(v, value::text)),
    key!("server.watchdog", "duration", "\"0s\"", "For another program: it gets WATCHDOG_USEC, says WATCHDOG=1 at least so often, and is replaced when it doesn't. \"0s\": nothing is asked of it.",
        |c, v| c.server.watchdog => value::duration(v)),
    key!("server.oom_score_adj", "integer", "0", "As cop.oom_score_adj, for servers.",
        |c, v| c.server.oom_score_adj => value::signed(v, -1000, 1000)),
    key!("server.nice", "integer", "0", "Priority of servers, from -20 (first; needs CAP_SYS_NICE) to 19 (last), relative to the manager's.",
        |c, v| c.server.nice => value::signed(v, -20, 19)),
    key!("server.nofile", "integer", "0", "Limit of open files of servers; 0 is the hard limit that the suite was started with.",
        |c, v| c.server.nofile => value::integer(v, 0, 1 << 30)),
    key!("server.listen", "array of addresses", "[\"127.0.0.1:8080\"]", "host:port, :port (all IPv4 addresses), unix:/path; port 0 takes a free one (see the file `ports` in the runtime directory).",
        |c, v| c.server.listen => value::list(v, value::listen)),
    key!("server.unix_mode", "octal", "\"0660\"", "Who may connect to the Unix sockets of server.listen that we make, as mode of the file.",
        |c, v| c.server.unix_mode => value::mode(v)),
    key!("server.unix_group", "name or \"none\"", "\"none\"", "Their group; \"none\": the server's. Who is to connect has to be able to look into the directory, too.",
        |c, v| c.server.unix_group => value::name_or_none(v)),
    key!("server.threads", "integer", "0", "Event threads; 0 is one a core.",
        |c, v| c.server.threads => value::integer(v, 0, 1024).map(|n| n as usize)),
    key!("server.standby", "boolean", "true", "Keep one more server that has started and waits: taking over is then a message, not a start.",
        |c, v| c.server.standby => value::boolean(v)),
    key!("server.continuity", "boolean", "true", "Keep client connections open when the server is killed, and have the next one go on with them (docs/continuity.md).",
        |c, v| c.server.continuity => value::boolean(v)),
    key!("server.max_connections", "integer", "20000", "Client connections at once; more wait in the kernel's backlog.",
        |c, v| c.server.max_connections => value::integer(v, 1, 10_000_000).map(|n| n as usize)),
    key!("server.drain_timeout", "duration", "\"30s\"", "How long requests in progress may take after SIGTERM.",
        |c, v| c.server.drain_timeout => value::duration(v)),
    key!("server.idle_timeout", "duration", "\"60s\"", "How long a keep-alive connection may be without a request.",
        |c, v| c.server.idle_timeout => value::positive(v)),
    key!("server.access_log", "\"off\", \"common\", \"combined\" or \"json\"", "\"off\"", "A line for each request, in this format.",
        |c, v| c.server.access_log => access_log(v)),
    key!("server.access_log_file", "path", "", "Where. Default: access.log in the state directory. It may be renamed at any time: within a second of the next request there is a new one, if the server may make it (as `suite.user` it may not make files in the state directory).",
        |c, v| c.server.access_log_file => value::path(v).map(Some)),
    key!("server.slow_log", "duration", "\"0\"", "Requests whose answer has not ended after so long are logged (event=slow, at most ten a second); \"0\" logs none.",
        |c, v| c.server.slow_log => value::duration(v)),
    key!("server.forward.clients", "array of addresses and networks", "[]", "Clients that may use this as a forward proxy (requests in absolute form for hosts that no route names, and CONNECT), such as \"10.0.0.0/8\". Without any, there is none.",
        |c, v| c.server.forward_clients => value::list(v, value::network)),
    key!("server.forward.connect_ports", "array of integers", "[443]", "Ports that CONNECT may lead to.",
        |c, v| c.server.forward_connect_ports => value::list(v, |v| value::integer(v, 1, 65535).map(|n| n as u16))),
    key!("server.forward.private", "boolean", "false", "Hosts with addresses that are not public (loopback, private networks, link-local) may be asked for too.",
        |c, v| c.server.forward_private => value::boolean(v)),
    key!("server.forward.tunnel_timeout", "duration", "\"10m\"", "How long nothing may move on a connection that CONNECT has made.",
        |c, v| c.server.forward_tunnel_timeout => value::positive(v)),
    key!("server.cache.memory", "size", "\"256MiB\"", "Memory for answers: those that are kept, those on their way, and what the allocator needs beside; \"0\" switches the cache off.",
        |c, v| c.server.cache_memory => value::bytes(v)),
    key!("server.cache.disk", "size", "\"0\"", "The same answers on disk, where the next server finds them, and bodies beyond 4 MiB there alone; \"0\" keeps none there.",
        |c, v| c.server.cache_disk => value::bytes(v)),
    key!("server.cache.path", "path", "", "Directory of the answers on disk, for this suite alone. Default: cache in the state directory.",
        |c, v| c.server.cache_path => value::path(v).map(Some)),
    key!("server.cache.purge", "array of addresses", "[]", "Clients that may have an answer forgotten: PURGE /path with its Host. Without any, PURGE is the origin's.",
        |c, v| c.server.cache_purge => value::list(v, value::ip)),
];

fn preset(v: &Raw) -> Result<Preset, Wrong> {
    match value::text(v)?.as_str() {
        "prompt" => Ok(Preset::Prompt),
        "classic" => Ok(Preset::Classic),
        other => Err(format!("{other:?} is neither \"prompt\" nor \"classic\"")),
    }
}

/// The values of [`Preset::Classic`], as an operator would write them.
pub static CLASSIC: &[(&str, &str)] = &[
    ("cop.interval", "\"10s\""),
    ("cop.timeout", "\"180s\""),
    ("cop.kill_timeout", "\"60s\""),
    ("manager.interval", "\"10s\""),
    ("manager.timeout", "\"180s\""),
    ("manager.stall", "\"180s\""),
];

fn on_manager_death(v: &Raw) -> Result<OnManagerDeath, Wrong> {
    match value::text(v)?.as_str() {
        "adopt" => Ok(OnManagerDeath::Adopt),
        "kill" => Ok(OnManagerDeath::Kill),
        other => Err(format!("{other:?} is neither \"adopt\" nor \"kill\"")),
    }
}

fn access_log(v: &Raw) -> Result<AccessLog, Wrong> {
    match value::text(v)?.as_str() {
        "off" => Ok(AccessLog::Off),
        "common" => Ok(AccessLog::Common),
        "combined" => Ok(AccessLog::Combined),
        "json" => Ok(AccessLog::Json),
        other => Err(format!("{other:?} is none of \"off\", \"common\", \"combined\" and \"json\"")),
    }
}

/// The key of that path.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.path == path)
}

/// The key that was probably meant: nearest by edits, if near enough.
pub fn nearest(path: &str) -> Option<&'static str> {
    let known = KEYS.iter().map(|k| k.path).chain(["route", "job"]);
    known.map(|k| (distance(k, path), k)).min().filter(|(d, k)| *d <= 1 + k.len() / 4).map(|(_, k)| k)
}

/// Levenshtein distance; the inputs are short.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(100).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut before = std::mem::replace(&mut row[0], i + 1);
        for (j, cb) in b.iter().enumerate() {
            let cost = before + usize::from(ca != *cb);
            before = row[j + 1];
            row[j + 1] = cost.min(before + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_near_misses_are_recognised() {
        for (i, k) in KEYS.iter().enumerate() {
            assert!(KEYS[i + 1..].iter().all(|o| o.path != k.path && o.env() != k.env()), "{}", k.path);
        }
        assert_eq!(nearest("server.listn"), Some("server.listen"));
        assert_eq!(nearest("cop.intervall"), Some("cop.interval"));
        assert_eq!(nearest("something.else.entirely"), None);
    }
}
