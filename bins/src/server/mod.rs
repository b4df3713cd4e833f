//! `traffic_server`: the proxy on the threaded event engine.
//!
//! The main thread takes the lock and the listeners, starts the engine, says that it is ready, and then waits for signals;
//! everything else happens on event threads.

pub mod succession;

use self::succession::{Legacy, Word};
use crate::cli::Common;
use crate::config::{self, Config};
use crate::exit::Exit;
use crate::logging::{self, Fatal};
use crate::manager::{listeners, take_lock};
use crate::suite::Runtime;
use anyhow::Context;
use engine::acceptor::{Accepted, Acceptor, AcceptorConfig, AtLimit};
use engine::{Engine, GroupConfig};
use http::StatusCode;
use lockfile::Lockfile;
use proxy::continuity::Continuity;
use proxy::edit::Edits;
use proxy::route::{Balance, Caching, Health, HostHeader, MaxBody, Timeouts};
use proxy::serve::Limits;
use proxy::{CacheConfig, OriginConfig, Proxy, ProxyConfig, RouteConfig, Target};
use rustix::event::{PollFd, PollFlags, poll};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use supervisor::notify::Notifier;
use supervisor::signals::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, Signals};
use supervisor::{dirs, listen_fds};

const NAME: &str = "traffic_server";

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
    raise_fd_limit();
    let alone = inherited.is_empty();
    let list = listeners::take_or_bind(&config.server.listen, inherited)?;
    if alone {
        listeners::publish(&list, &runtime)?;
    }
    let token = runtime.token().context("the heartbeat's token")?;
    let listeners: Vec<OwnedFd> = list.into_iter().map(|l| l.fd).collect();
    // before there is a second thread
    let mut legacy = match config.server.continuity && channel.is_some() {
        true => Some(Legacy::new(&listeners).context("making the connection table")?),
        false => None,
    };
    let engine = Engine::builder()
        .group("net", GroupConfig { threads: threads(config.server.threads), ..GroupConfig::default() })
        .group("task", GroupConfig { threads: 2, ..GroupConfig::default() })
        .start()
        .context("starting the event threads")?;
    let proxy = Proxy::new(proxy_config(&config, token)?);
    let estates = match &channel {
        None => Vec::new(),
        Some(channel) => {
            let _ = notify.send("X_TRAFFIC_STANDBY=1");
            match succession::wait(channel, &mut signals)? {
                Word::Serve(estates) => {
                    log::debug!("event=promoted estates={}", estates.len());
                    estates
                }
                Word::End => {
                    engine.shutdown(Duration::ZERO);
                    legacy.into_iter().for_each(Legacy::end);
                    return Ok(Exit::Done);
                }
            }
        }
    };
    let left = succession::collect(estates);
    let mut lock = Lockfile::new(runtime.lock("server"));
    take_lock(&mut lock, config.cop.start_grace)?;
    let mut taken = Vec::new();
    if let Some(legacy) = &mut legacy {
        legacy.announce(lock.fd().map(|fd| fd.as_raw_fd()), notify);
        taken = succession::take_over(left, &legacy.continuity);
        let _ = notify.send("X_TRAFFIC_SETTLED=1");
    }
    let continuity = legacy.as_ref().map(|l| l.continuity.clone());
    let acceptor = accept(&engine, &config, listeners, proxy, continuity)?;
    taken.into_iter().for_each(|fd| acceptor.adopt(fd));
    log::info!("event=ready pid={}", std::process::id());
    notify.send("READY=1").context("telling the manager")?;
    wait_for_end(&mut signals, &acceptor);
    let _ = notify.send("STOPPING=1");
    acceptor.stop();
    let report = engine.shutdown(config.server.drain_timeout);
    log::info!("event=stopped drained={} cancelled={}", report.drained, report.cancelled);
    legacy.into_iter().for_each(Legacy::end);
    lock.close()?;
    Ok(Exit::Done)
}

fn accept(
    engine: &Engine,
    config: &Config,
    listeners: Vec<OwnedFd>,
    proxy: Arc<Proxy>,
    continuity: Option<Arc<Continuity>>,
) -> anyhow::Result<Acceptor> {
    let handle = engine.handle();
    let net = handle.group("net").context("the group net")?;
    let acceptor = AcceptorConfig {
        listeners,
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

/// Sleeps until a signal asks for the end.
fn wait_for_end(signals: &mut Signals, acceptor: &Acceptor) {
    loop {
        let polled = poll(&mut [PollFd::new(&*signals, PollFlags::IN)], None);
        if polled.is_err_and(|e| e != rustix::io::Errno::INTR) {
            return;
        }
        for signal in signals.pending() {
            match signal {
                SIGTERM | SIGINT | SIGQUIT => {
                    log::info!("event=stop signal={signal}");
                    return;
                }
                SIGUSR1 | SIGUSR2 => log::info!("event=state acceptor={:?}", acceptor.stats()),
                // the manager reloads us by replacing us
                _ => {}
            }
        }
    }
}

fn threads(wanted: usize) -> usize {
    match wanted {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    }
}

/// Connections need fds: take what we may.
fn raise_fd_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(e) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        log::warn!("event=rlimit-failed nofile={hard}: {e}");
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
        },
        max_body: MaxBody(r.max_body),
        health: Health { failures: r.max_failures, eject: r.eject_time },
        cache: if r.cache { Caching::Standard } else { Caching::Off },
    })
}
