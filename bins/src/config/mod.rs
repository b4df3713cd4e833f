//! Configuration: one table of keys, from which the parser, the environment variables and the reference are made.
//!
//! Precedence: command line > environment > file > default. All faults are found at once, each with its place.
//!
//! Read in this order: this file (what comes out), [`keys`] (the table), [`value`] (texts into values), [`route`], [`job`], [`job_values`], [`route_values`],
//! [`load`](mod@load) (the sources and their faults), [`accepted`] (what the suite goes on with), [`mod@reference`] (the table as text).

pub mod accepted;
pub mod job;
pub mod job_values;
pub mod keys;
mod limits;
pub(crate) mod lines;
pub mod load;
pub mod manager;
pub mod reference;
pub mod route;
pub mod route_values;
pub mod value;

pub use accepted::Accepted;
pub use job::Job;
pub use load::{Fault, Faults, Loaded, Source, Sources, load, load_to_ask};
pub use route::{Balance, Changes, Origin, Route};

use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    /// `[suite]`
    pub suite: Suite,
    /// `[cop]`
    pub cop: Cop,
    /// `[manager]`
    pub manager: Manager,
    /// `[server]`
    pub server: Server,
    /// `[[route]]`
    pub routes: Vec<Route>,
    /// `[[job]]`
    pub jobs: Vec<Job>,
}

/// What all three programs share.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Suite {
    /// Locks and sockets.
    pub runtime_dir: PathBuf,
    /// Logs, status, cache.
    pub state_dir: PathBuf,
    /// env_logger filter.
    pub log: String,
    /// Where the daemon logs; `state_dir/traffic.log` if not set.
    pub log_file: Option<PathBuf>,
    /// Pictures of hung processes that are kept; 0 takes none.
    pub snapshots: usize,
    /// Bytes after which it is rotated; 0 is never.
    pub log_max_size: u64,
    /// Seconds after midnight (UTC) at which it is rotated.
    pub log_rotate_at: Option<u64>,
    /// Days that rotated logs are kept; 0 is for ever.
    pub log_keep_days: u64,
    /// How many of them at most.
    pub log_keep_files: usize,
    /// Who the server is, if the suite is started by root.
    pub user: Option<String>,
    /// Its group, if not that user's own.
    pub group: Option<String>,
    /// The server may be root.
    pub allow_root: bool,
}

/// What happens to the server when the manager dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnManagerDeath {
    /// It goes on; the next manager adopts it.
    #[default]
    Adopt,
    /// It is killed, as Traffic Server does.
    Kill,
}

/// Sets of defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preset {
    /// Ours.
    #[default]
    Prompt,
    /// Those of Traffic Server's traffic_cop.
    Classic,
}

/// The watcher.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Cop {
    /// Where the defaults of the heartbeats come from.
    pub preset: Preset,
    /// Between checks, and between good heartbeats.
    pub interval: Duration,
    /// How long a heartbeat may take.
    pub timeout: Duration,
    /// Failed heartbeats in a row that are a verdict.
    pub failures: u32,
    /// From spawn to ready.
    pub start_grace: Duration,
    /// After SIGKILL.
    pub kill_timeout: Duration,
    /// Sent before SIGKILL to a hung process, so that it leaves a core.
    pub core_signal: Option<i32>,
    /// See there.
    pub on_manager_death: OnManagerDeath,
    /// -1000 to 1000: lower is killed later when memory is out.
    pub oom_score_adj: i32,
}

/// The manager.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Manager {
    /// Read-only HTTP for status and metrics.
    pub admin: Option<SocketAddr>,
    /// Between looks at the server.
    pub interval: Duration,
    /// How long a ping may take.
    pub timeout: Duration,
    /// Failed pings in a row that are a verdict.
    pub failures: u32,
    /// A thread in one round of its loop for so long has stalled.
    pub stall: Duration,
    /// Connections that wait for a server.
    pub queue: Queue,
    /// Respawns of the server.
    pub respawn: Respawn,
    /// As cop's.
    pub oom_score_adj: i32,
    /// Where control groups are made.
    pub cgroup: manager::Cgroup,
}

/// The connection queue.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Queue {
    /// The most that wait here; more wait in the kernel's backlog.
    pub max_connections: usize,
    /// How long a client waits before it is told 503.
    pub max_wait: Duration,
}

/// How respawns are braked.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Respawn {
    /// Wait before the first.
    pub initial: Duration,
    /// Growth.
    pub factor: f64,
    /// Longest wait.
    pub max: Duration,
    /// Random part, 0 to 1.
    pub jitter: f64,
    /// Ready for so long: forgiven.
    pub stable_after: Duration,
    /// Crashes in a row; 0 is never.
    pub give_up_after: u32,
    /// Run then.
    pub on_give_up: Vec<String>,
}

/// The server.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Server {
    /// Any program; empty is our traffic_server.
    pub command: Vec<String>,
    /// Another program says `WATCHDOG=1` at least so often; zero: it doesn't.
    pub watchdog: Duration,
    /// As cop's.
    pub oom_score_adj: i32,
    /// nice(2), -20 to 19.
    pub nice: i32,
    /// Limit of open files; 0 is as many as we may.
    pub nofile: u64,
    /// Addresses.
    pub listen: Vec<Listen>,
    /// Mode of the Unix sockets among them.
    pub unix_mode: u32,
    /// Their group.
    pub unix_group: Option<String>,
    /// Event threads; 0 is one a core.
    pub threads: usize,
    /// Keep one more server that waits to take over.
    pub standby: bool,
    /// Keep connections open when the server is killed.
    pub continuity: bool,
    /// Client connections at once.
    pub max_connections: usize,
    /// From SIGTERM to the end.
    pub drain_timeout: Duration,
    /// Keep-alive connections without a request.
    pub idle_timeout: Duration,
    /// Bytes of answers kept in memory; 0 is no cache.
    pub cache_memory: u64,
    /// Bytes of answers kept on disk; 0 is none.
    pub cache_disk: u64,
    /// Where; `state_dir/cache` if not set.
    pub cache_path: Option<PathBuf>,
    /// Who may use PURGE.
    pub cache_purge: Vec<IpAddr>,
    /// Who may use the forward proxy; nobody: there is none.
    pub forward_clients: Vec<IpNet>,
    /// Ports that CONNECT may lead to.
    pub forward_connect_ports: Vec<u16>,
    /// Addresses that are not public may be asked for.
    pub forward_private: bool,
    /// How long nothing may move after CONNECT.
    pub forward_tunnel_timeout: Duration,
    /// A line for each request.
    pub access_log: AccessLog,
    /// Where; `state_dir/access.log` if not set.
    pub access_log_file: Option<PathBuf>,
    /// Requests that take longer are logged apart; zero is none.
    pub slow_log: Duration,
}

/// How a line of the access log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AccessLog {
    /// There is none.
    #[default]
    Off,
    /// NCSA common log format.
    Common,
    /// The same with referrer and user agent.
    Combined,
    /// A JSON object.
    Json,
}

impl Suite {
    /// Where the daemon logs.
    pub fn log_path(&self) -> PathBuf {
        self.log_file.clone().unwrap_or_else(|| self.state_dir.join("traffic.log"))
    }
}

impl Server {
    /// Where requests are logged.
    pub fn access_log_path(&self, suite: &Suite) -> PathBuf {
        self.access_log_file.clone().unwrap_or_else(|| suite.state_dir.join("access.log"))
    }

    /// Where answers are kept on disk.
    pub fn cache_dir(&self, suite: &Suite) -> PathBuf {
        self.cache_path.clone().unwrap_or_else(|| suite.state_dir.join("cache"))
    }
}

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Listen {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
}

impl Server {
    /// Is it our traffic_server, and no other program?
    pub fn is_ours(&self) -> bool {
        self.command.is_empty()
    }
}

impl Listen {
    /// Is it any free port?
    pub fn is_any_port(&self) -> bool {
        matches!(self, Listen::Tcp(a) if a.port() == 0)
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Listen::Tcp(a) => a.fmt(f),
            Listen::Unix(p) => write!(f, "unix:{}", p.display()),
        }
    }
}
