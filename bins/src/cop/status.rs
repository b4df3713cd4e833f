//! `status`: what the locks, the manager and the port itself say, at this moment.

use super::beats::{self, Proof};
use super::record::{Record, rfc3339};
use crate::cli::Common;
use crate::config::{Config, load};
use crate::control;
use crate::exit::Exit;
use crate::logging::Fatal;
use crate::suite::Runtime;
use lockfile::Lockfile;
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{ErrorKind, IsTerminal};
use std::path::Path;
use std::time::Duration;
use supervisor::clock;
use supervisor::probe::Target;

/// How long the manager and the port are given to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Prints the state of the suite and says it by exit code.
///
/// # Errors
/// The configuration can't be read: it names the runtime directory.
pub fn run(common: &Common, json: bool) -> anyhow::Result<Exit> {
    let config = common.load_to_ask()?;
    may_look(&config)?;
    let mut seen = look(&config);
    if !seen.manager.is_null() {
        seen.status["suite"]["config"] = config_file(&config);
    }
    if json {
        println!("{}", seen.status)
    } else {
        print!("{}", render(&seen.status, is_colourful()))
    }
    Ok(seen.exit)
}

/// Who may not see whether there is a suite must not say that there is none.
///
/// # Errors
/// We are somebody who may not.
pub fn may_look(config: &Config) -> anyhow::Result<()> {
    let dir = &config.suite.runtime_dir;
    let runtime = Runtime::new(dir);
    let locks = ["cop", "manager", "server"].map(|p| runtime.lock(p));
    let errors = locks.iter().filter_map(|lock| File::open(lock).err());
    let mut errors = std::fs::read_dir(dir).err().into_iter().chain(errors);
    let Some(e) = errors.find(|e| e.kind() == ErrorKind::PermissionDenied) else { return Ok(()) };
    let why = format!("cannot look into {}: {e}: ask as root, or as who started the suite", dir.display());
    Err(Fatal::new(Exit::Os, why).into())
}

/// Colours are for terminals whose user hasn't said otherwise (`NO_COLOR`).
fn is_colourful() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// What was seen of a suite.
#[derive(Debug)]
pub struct Seen {
    /// What `status --json` prints.
    pub status: Value,
    /// What the manager says of itself and the others; null if it doesn't.
    pub manager: Value,
    /// Serving, degraded or down.
    pub exit: Exit,
}

/// Looks at everything.
pub fn look(config: &Config) -> Seen {
    let runtime = Runtime::new(&config.suite.runtime_dir);
    let manager = control::request(&runtime.control(), "GET", "/status", PATIENCE);
    let said: Value = match &manager {
        Ok((200, body)) => serde_json::from_str(body).unwrap_or(Value::Null),
        _ => Value::Null,
    };
    let holder = |p: &str| Lockfile::holder(runtime.lock(p)).ok().flatten().map(|h| h.pid);
    let foreign = !config.server.is_ours();
    let pid_of = |row: &Value| row["pid"].as_i64().and_then(|p| i32::try_from(p).ok());
    // one that isn't ours holds no lock
    let pids = ["cop", "manager", "server"].map(|name| match name {
        "server" if foreign => pid_of(&said[name]),
        _ => holder(name),
    });
    let mut processes = Vec::new();
    let remembered = Record::peek(&config.suite);
    let (starts, last_start, last_stop) = (remembered.starts, remembered.last_start, remembered.last_stop);
    let remembered =
        json!({ "cop": remembered.cop, "manager": remembered.manager, "server": remembered.server });
    let standby = pid_of(&said["standby"]);
    let named = ["cop", "manager", "server"].into_iter().zip(pids);
    for (name, pid) in named.chain(standby.map(|p| ("standby", Some(p)))) {
        let mut row = said.get(name).cloned().unwrap_or(json!({}));
        row["name"] = json!(name);
        row["pid"] = json!(pid);
        let alive = pid.is_some_and(|p| supervisor::pidfd::PidFd::open(p).is_ok_and(|f| f.is_alive()));
        row["state"] = match (pid, alive) {
            (None, _) => row.get("state").filter(|s| *s != "ready").cloned().unwrap_or(json!("down")),
            (Some(_), false) => json!("dead, its lock is still held"),
            (Some(p), true) => match std::fs::read_to_string(format!("/proc/{p}/stat")) {
                Ok(s) if s.rsplit(')').next().is_some_and(|r| r.trim_start().starts_with('T')) => {
                    json!("stopped")
                }
                _ if name == "server" || name == "standby" => {
                    row.get("state").cloned().unwrap_or(json!("running"))
                }
                _ => json!("running"),
            },
        };
        row["rss_kib"] = json!(pid.and_then(rss_kib));
        if let Some(life) = remembered.get(name) {
            // the manager counts its own servers; the file also those of managers before it
            row["restarts"] = life["restarts"].clone();
            row["restart_interval_s"] = life["restart_interval"].clone();
            if row["last_exit"].is_null() {
                row["last_exit"] = life["last_exit"].clone();
            }
        }
        if row["since_s"].is_null() {
            row["since_s"] = json!(pid.and_then(age_s));
        }
        processes.push(row);
    }
    let paused = said["queue"]["paused"] == true;
    let answers = match runtime.targets().first() {
        _ if foreign || paused => said["server"]["state"] == "ready",
        Some(t) => pids[2].is_some_and(|pid| heartbeat(&runtime, t, pid)),
        None => false,
    };
    // of those that everything depends on
    let lame = processes[..3].iter().find(|p| p["pid"].is_null() || p["state"] == "stopped");
    let (state, exit) = match (lame, answers) {
        _ if pids.iter().all(Option::is_none) => ("down".to_owned(), Exit::NotRunning),
        (_, false) if said["server"]["full"] == true => (
            "degraded: the server is full, and who comes waits (server.max_connections, or its limit of open files)"
                .to_owned(),
            Exit::Degraded,
        ),
        (_, false) => ("degraded: the server doesn't answer".to_owned(), Exit::Degraded),
        (Some(p), true) => (format!("degraded: {}", lameness(p)), Exit::Degraded),
        (None, true) if said.is_null() => ("degraded: the manager doesn't answer".to_owned(), Exit::Degraded),
        (None, true) if paused => {
            ("paused: new connections wait for traffic_manager resume".to_owned(), Exit::Degraded)
        }
        (None, true) => ("serving".to_owned(), Exit::Done),
    };
    let mut suite = json!({
        "state": state,
        "version": env!("CARGO_PKG_VERSION"),
        "runtime_dir": runtime.dir(),
        "starts": starts,
        "last_start": last_start,
        "last_stop": last_stop,
    });
    if let Err(e) = manager
        && exit == Exit::Degraded
    {
        suite["manager_error"] = json!(e.to_string());
    }
    let status = json!({ "suite": suite, "processes": processes, "listen": said["listen"] });
    Seen { status, manager: said, exit }
}

/// One heartbeat through the port, with patience.
fn heartbeat(runtime: &Runtime, target: &Target, pid: i32) -> bool {
    let Ok(token) = std::fs::read_to_string(runtime.token_file()) else { return false };
    let nonce = format!("status-{}", std::process::id());
    let Ok(mut probe) = beats::fetch_server(target, &token, &nonce) else { return false };
    let until = clock::now() + PATIENCE;
    loop {
        let left = until.saturating_sub(clock::now());
        if left.is_zero() {
            return false;
        }
        let timeout = clock::timespec(left);
        let flags: PollFlags = probe.interest();
        let _ = poll(&mut [PollFd::new(&probe, flags)], Some(&timeout));
        match probe.step() {
            None => {}
            Some(Ok(a)) => return beats::judge_server(&a, &nonce, pid) == Proof::Alive,
            Some(Err(_)) => return false,
        }
    }
}

/// For how long a process has been there, in seconds.
fn age_s(pid: i32) -> Option<u64> {
    let started = supervisor::identity::look(pid).ok()?.start_time / supervisor::identity::ticks_per_second();
    let up = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).ok()?;
    Some((up.tv_sec() as u64).saturating_sub(started))
}

fn rss_kib(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64 / 1024)
}

/// What is the matter with one of the three, and what helps.
fn lameness(p: &Value) -> String {
    let name = p["name"].as_str().unwrap_or("");
    match (name, p["pid"].is_null()) {
        ("cop", true) => "cop is down, and nobody watches (traffic_cop start: it adopts the others)".into(),
        ("cop", false) => "cop is stopped, and nobody watches".into(),
        (_, true) => format!("the {name} is down"),
        (_, false) => format!("the {name} is stopped"),
    }
}

/// A word of a state, padded to `width`, in the colour of what it means.
fn tinted(state: &str, width: usize, colour: bool) -> String {
    let code = match state.split([':', ',', ' ']).next().unwrap_or("") {
        "serving" | "running" | "ready" => "32",
        "degraded" | "paused" | "starting" | "launching" | "stopping" | "backoff" => "33",
        _ => "31",
    };
    match colour {
        true => format!("\x1b[{code}m{state:<width$}\x1b[0m"),
        false => format!("{state:<width$}"),
    }
}

/// The file of the configuration that runs, and whether it has changed since it was taken; null if that can't be said.
fn config_file(config: &Config) -> Value {
    let socket = Runtime::new(&config.suite.runtime_dir).control();
    let Ok((200, said)) = control::request(&socket, "GET", "/config", PATIENCE) else { return Value::Null };
    let said: Value = serde_json::from_str(&said).unwrap_or_default();
    let (Some(file), Some(text)) = (said["file"].as_str(), said["text"].as_str()) else { return Value::Null };
    let changed = match File::open(file) {
        // we may not look
        Err(e) if e.kind() != ErrorKind::NotFound => None,
        _ => Some(load::read(Path::new(file)).ok().as_deref() != Some(text)),
    };
    json!({ "file": file, "changed": changed })
}

/// The table for people.
fn render(v: &Value, colour: bool) -> String {
    let text = |v: &Value| match v {
        Value::Null => "-".to_owned(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    };
    let mut out = format!("suite    {}", tinted(&text(&v["suite"]["state"]), 0, colour));
    if v["suite"]["state"] == "down" {
        out += &format!(" in {}", text(&v["suite"]["runtime_dir"]));
        if v["suite"]["last_stop"].is_u64() {
            out += &format!(", stopped {}", rfc3339(v["suite"]["last_stop"].as_u64()));
        }
    } else if v["suite"]["last_start"].is_u64() {
        out += &format!(", started {}", rfc3339(v["suite"]["last_start"].as_u64()));
    }
    out += "\n";
    if let Some(list) = v["listen"].as_array() {
        out += &format!("listen   {}\n", list.iter().map(text).collect::<Vec<_>>().join(" "));
    }
    if v["suite"]["config"]["changed"] == true {
        let file = text(&v["suite"]["config"]["file"]);
        out += &format!("config   {file} has changed since it was taken (traffic_manager reload takes it)\n");
    }
    out += &format!(
        "{:<9}{:>8}  {:<12}{:>9}{:>11}{:>10}{:>10}  {}\n",
        "", "pid", "state", "since", "heartbeat", "restarts", "rss KiB", "last exit"
    );
    for p in v["processes"].as_array().into_iter().flatten() {
        out += &format!(
            "{:<9}{:>8}  {}{:>9}{:>11}{:>10}{:>10}  {}\n",
            text(&p["name"]),
            text(&p["pid"]),
            tinted(&text(&p["state"]), 12, colour),
            p["since_s"].as_u64().map_or("-".into(), span),
            p["heartbeat_ms"].as_u64().map_or("-".into(), |ms| format!("{:.1}s ago", ms as f64 / 1000.0)),
            text(&p["restarts"]),
            text(&p["rss_kib"]),
            text(&p["last_exit"]),
        );
    }
    out
}

/// `59s`, `12m0s`, `5h12m`, `3d4h`
pub fn span(s: u64) -> String {
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{}h", s / 86_400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_change_nothing_but_the_colour() {
        let v = json!({
            "suite": { "state": "degraded: the server doesn't answer" },
            "processes": [{ "name": "cop", "pid": 1, "state": "running" }, { "name": "server", "state": "down" }],
        });
        let (plain, tinted) = (render(&v, false), render(&v, true));
        assert!(!plain.contains('\x1b'));
        for want in ["\x1b[33mdegraded: ", "\x1b[32mrunning     \x1b[0m", "\x1b[31mdown        \x1b[0m"] {
            assert!(tinted.contains(want), "{want:?} in {tinted:?}");
        }
        let bare = ["31", "32", "33", "0"].iter().fold(tinted, |t, c| t.replace(&format!("\x1b[{c}m"), ""));
        assert_eq!(bare, plain);
    }
}
