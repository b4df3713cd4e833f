//! `traffic_server`: the proxy on the threaded event engine.
//!
//! The main thread takes the listeners, starts the engine, waits for the word to serve, takes the lock and what dead servers
//! have left, says that it is ready, and then waits for signals and orders; everything else happens on event threads.
//!
//! Read in this order: this file (the start), [`succession`] (what comes from those before), [`legacy`] (what we leave), [`duty`] (serving, and the end).

pub mod duty;
pub mod legacy;
pub mod succession;

use self::duty::Duty;
use self::legacy::Legacy;
use self::succession::Start;
use crate::cli::Common;
use crate::config::{self, Config};
use crate::exit::Exit;
use crate::logging::{self, Fatal};
use crate::manager::{listeners, take_lock};
use crate::suite::{self, Runtime};
use anyhow::Context;
use engine::acceptor::{Accepted, Acceptor, AcceptorConfig, AtLimit};
use engine::{Engine, GroupConfig};
use http::StatusCode;
use lockfile::Lockfile;
use policy::Time;
use proxy::continuity::{Continuity, Resume};
use proxy::edit::Edits;
use proxy::route::{Balance, Caching, Health, HostHeader, MaxBody, Timeouts};
use proxy::serve::Limits;
use proxy::{CacheConfig, OriginConfig, Proxy, ProxyConfig, RouteConfig, Target};
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use supervisor::notify::{Notifier, watchdog_interval};
use supervisor::signals::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, Signals};
use supervisor::{dirs, listen_fds};

const NAME: &str = "traffic_server";
/// More room than this is made when it is needed: it is 8 bytes of kernel memory each.
const RESERVED_FDS: usize = 65_536;

/// Serves HTTP as a reverse proxy. traffic_manager starts it; it can also run alone.
#[derive(Debug, clap::Parser)]
#[command(name = "traffic_server", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Serve until SIGTERM; without inherited listeners it binds its own
    Run(Common),
}

/// Carries out the command line.
///
/// # Errors
/// What went wrong, with its exit code.
pub fn run(cli: Cli) -> anyhow::Result<Exit> {
    let Command::Run(common) = cli.command;
    // first of all, so that no signal is lost
    let signals = Signals::catch(&[SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2])?;
    let notify = Notifier::from_env()?;
    let result = serve(&common, signals, &notify);
    if let Err(e) = &result {
        let text = format!("{e:#}").replace('\n', "; ");
        let _ = notify.send(&format!("STATUS={text}\nX_TRAFFIC_EXIT={}", logging::exit_of(e).code()));
    }
    result
}

fn serve(common: &Common, mut signals: Signals, notify: &Notifier) -> anyhow::Result<Exit> {
    let mut inherited = listen_fds::take().map_err(|e| Fatal::new(Exit::Usage, e.to_string()))?;
    let channel = succession::channel(&mut inherited);
    let config = common.absolute()?.load()?.config;
    logging::init(NAME, &config.suite.log);
    dirs::ensure(&config.suite.runtime_dir)?;
    let runtime = Runtime::new(&config.suite.runtime_dir);
    suite::raise_fd_limit();
    // a connection to an origin for each of a client, at the worst
    suite::reserve_fds(config.server.max_connections.saturating_mul(2).saturating_add(256).min(RESERVED_FDS));
    let alone = inherited.is_empty();
    let list = listeners::take_or_bind(&config.server.listen, inherited)?;
    if alone {
        listeners::publish(&list, &runtime)?;
    }
    let token = runtime.token().context("the heartbeat's token")?;
    let listeners: Vec<OwnedFd> = list.into_iter().map(|l| l.fd).collect();
    // before there is a second thread
    let legacy = match config.server.continuity && channel.is_some() {
        true => {
            let table = Continuity::new(legacy::table_size()).context("making the connection table")?;
            let kept: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
            let legacy = Legacy::new(table.table().clone(), &kept, &[]);
            Some((Arc::new(table), legacy))
        }
        false => None,
    };
    let engine = Engine::builder()
        .group("net", GroupConfig { threads: threads(config.server.threads), ..GroupConfig::default() })
        .group("task", GroupConfig { threads: 2, ..GroupConfig::default() })
        .start()
        .context("starting the event threads")?;
    let proxy = Proxy::new(proxy_config(&config, token)?);
    let mut start = match &channel {
        None => Start::default(),
        Some(channel) => {
            let _ = notify.send("X_TRAFFIC_STANDBY=1");
            match succession::wait(channel, &mut signals, notify)? {
                Some(start) => start,
                None => {
                    engine.shutdown(Duration::ZERO);
                    legacy.into_iter().for_each(|(_, l)| l.end());
                    return Ok(Exit::Done);
                }
            }
        }
    };
    let left = succession::collect(start.estates);
    let mut lock = Lockfile::new(runtime.lock("server"));
    take_lock(&mut lock, config.cop.start_grace)?;
    // whoever holds it sees a thread that has stalled
    notify.store_fds(&suite::pulse_name(std::process::id() as i32), &[engine.pulse()]);
    let mut taken = Vec::new();
    if let Some((continuity, legacy)) = &legacy {
        if let Some(fd) = lock.fd() {
            legacy.note_lock(fd.as_raw_fd());
        }
        legacy.announce(notify);
        taken = succession::take_over(left, continuity, notify);
        // what the manager wasn't sure that the last one had
        let known: HashSet<u64> = taken.iter().filter_map(inode).collect();
        start.queued.retain(|fd| inode(fd).is_none_or(|n| !known.contains(&n)));
        for fd in &start.queued {
            continuity.resume(fd.as_raw_fd(), Resume::default());
        }
        let _ = notify.send("X_TRAFFIC_SETTLED=1");
    }
    let continuity = legacy.as_ref().map(|(c, _)| c.clone());
    let acceptor = accept(&engine, &config, listeners, proxy, continuity, start.held)?;
    taken.into_iter().chain(start.queued).for_each(|fd| acceptor.adopt(fd));
    log::info!("event=ready pid={}", std::process::id());
    notify.send("READY=1").context("telling the manager")?;
    let drain = config.server.drain_timeout;
    let watchdog = watchdog_interval().map(|every| (every, Time::ZERO));
    Duty { signals, channel, acceptor, engine, legacy, lock, notify, drain, watchdog }.run()
}

fn accept(
    engine: &Engine,
    config: &Config,
    listeners: Vec<OwnedFd>,
    proxy: Arc<Proxy>,
    continuity: Option<Arc<Continuity>>,
    held: bool,
) -> anyhow::Result<Acceptor> {
    let handle = engine.handle();
    let net = handle.group("net").context("the group net")?;
    let acceptor = AcceptorConfig {
        listeners,
        held,
        max_connections: config.server.max_connections,
        at_limit: AtLimit::Pause,
        ..AcceptorConfig::default()
    };
    let serve = move |accepted: Accepted| {
        let (proxy, continuity) = (proxy.clone(), continuity.clone());
        async move {
            match accepted.into_stream() {
                Ok((stream, guard)) => {
                    proxy.connection(stream, continuity.as_deref()).await;
                    drop(guard);
                }
                Err(e) => log::warn!("event=accepted-lost: {e}"),
            }
        }
    };
    Acceptor::start(&handle, net, acceptor, serve).context("starting to accept")
}

/// By which two fds are known to be the same socket.
fn inode(fd: &OwnedFd) -> Option<u64> {
    rustix::fs::fstat(fd).ok().map(|s| s.st_ino)
}

fn threads(wanted: usize) -> usize {
    match wanted {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    }
}

fn proxy_config(config: &Config, token: String) -> anyhow::Result<ProxyConfig> {
    // differs from suite to suite, and tells nothing about the token
    let mut hash = DefaultHasher::new();
    token.hash(&mut hash);
    let routes = config.routes.iter().map(route_config).collect::<anyhow::Result<_>>()?;
    let server = &config.server;
    let path = || server.cache_path.clone().unwrap_or_else(|| config.suite.state_dir.join("cache"));
    let disk = (server.cache_disk > 0).then(|| (path(), server.cache_disk));
    Ok(ProxyConfig {
        name: format!("traffic-{:08x}", hash.finish() as u32),
        routes,
        heartbeat_token: token,
        limits: Limits { idle_timeout: config.server.idle_timeout, ..Limits::default() },
        cache: CacheConfig { memory: server.cache_memory, disk, ..CacheConfig::default() },
        purge_from: server.cache_purge.clone(),
    })
}

fn route_config(r: &config::Route) -> anyhow::Result<RouteConfig> {
    let origin = |o: &config::Origin| OriginConfig {
        host: o.host.clone(),
        port: o.port,
        path_prefix: o.path_prefix.clone(),
    };
    let status = |n: u16| StatusCode::from_u16(n).context("a status");
    let target = if let Some(root) = &r.files {
        Target::Files(root.clone())
    } else if let Some(n) = r.respond {
        Target::Fixed { status: status(n)?, body: r.respond_body.clone().into() }
    } else if let Some(to) = &r.redirect {
        Target::Redirect { status: status(r.redirect_status)?, to: to.clone() }
    } else {
        let balance = match r.balance {
            config::Balance::RoundRobin => Balance::RoundRobin,
            config::Balance::LeastConnections => Balance::LeastConnections,
        };
        Target::Origins { list: r.origins.iter().map(origin).collect(), balance }
    };
    let edits = |c: &config::Changes| Edits::new(&c.remove, &c.set).map_err(|e| Fatal::new(Exit::Config, e));
    Ok(RouteConfig {
        host: r.host.clone(),
        prefix: r.prefix.clone(),
        target,
        strip_prefix: r.strip_prefix,
        host_header: match r.host_header.as_str() {
            "keep" => HostHeader::Keep,
            "origin" => HostHeader::Origin,
            name => HostHeader::Fixed(name.parse().context("route.host_header")?),
        },
        request_headers: edits(&r.request_headers)?,
        response_headers: edits(&r.response_headers)?,
        timeouts: Timeouts {
            connect: r.connect_timeout,
            first_byte: r.first_byte_timeout,
            between: r.read_timeout,
            total: (!r.total_timeout.is_zero()).then_some(r.total_timeout),
            tunnel: r.tunnel_timeout,
        },
        max_body: MaxBody(r.max_body),
        health: Health { failures: r.max_failures, eject: r.eject_time },
        cache: if r.cache { Caching::Standard } else { Caching::Off },
        upgrade: r.upgrade.clone(),
    })
}
