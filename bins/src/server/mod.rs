//! `traffic_server`: the proxy on the threaded event engine.
//!
//! The main thread takes the listeners, starts the engine, waits for the word to serve, asks for what dead servers have left,
//! takes the lock, takes over, says that it is ready, and then waits for signals and orders; everything else happens on event
//! threads.
//!
//! Read in this order: this file (the start), [`succession`] (what comes from those before), [`legacy`] (what we leave), [`proxying`] (the
//! configuration as the proxy takes it), [`duty`] (serving, and the end).

pub mod duty;
pub mod legacy;
pub mod origins;
pub mod proxying;
pub mod succession;

use self::duty::Duty;
use self::legacy::Legacy;
use self::succession::{Handed, Start, Taken};
use crate::cli::Common;
use crate::config::{self, Config};
use crate::exit::Exit;
use crate::logging::{self, Fatal};
use crate::manager::{listeners, take_lock};
use crate::privileges;
use crate::suite::{self, Runtime};
use anyhow::Context;
use engine::acceptor::{Accepted, Acceptor, AcceptorConfig, AtLimit};
use engine::{Engine, GroupConfig};
use lockfile::Lockfile;
use policy::Time;
use proxy::Proxy;
use proxy::continuity::{Continuity, Resume};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use supervisor::notify::{Notifier, watchdog_interval};
use supervisor::signals::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, Signals};
use supervisor::{dirs, listen_fds};

const NAME: &str = "traffic_server";
/// How long the manager may take to pass on what we leave; one that is dead has a successor, which asks.
const ANNOUNCED: Duration = Duration::from_millis(200);
/// Descriptors that are needed from the take-over until we serve: by the lock and to accept.
const FDS_TO_SERVE: usize = 16;
/// And for each listener: duplicates, and a spare one.
const FDS_A_LISTENER: usize = 4;
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
    let accepted = config::Accepted::take(&mut inherited);
    let config = common.absolute()?.load_accepted(accepted.as_ref())?.config;
    logging::init(NAME, &config.suite);
    let origins = origins::Known::take(&mut inherited);
    privileges::refuse_root(&config)?;
    dirs::ensure(&config.suite.runtime_dir)?;
    let runtime = Runtime::new(&config.suite.runtime_dir);
    suite::raise_fd_limit();
    // a connection to an origin for each of a client, at the worst
    suite::reserve_fds(config.server.max_connections.saturating_mul(2).saturating_add(256).min(RESERVED_FDS));
    let alone = inherited.is_empty();
    let access = match alone {
        true => listeners::Access::of_server(&config)?,
        // they are there; whose they are isn't to be found out now
        false => listeners::Access { mode: config.server.unix_mode, group: None },
    };
    let list = listeners::take_or_bind(&config.server.listen, access, inherited)?;
    if alone {
        listeners::publish(&list, &runtime)?;
    }
    let token = runtime.token().context("the heartbeat's token")?;
    let names: Vec<String> = list.iter().map(listeners::Listener::fd_name).collect();
    let listeners: Vec<OwnedFd> = list.into_iter().map(|l| l.fd).collect();
    // before there is a second thread
    let legacy = match config.server.continuity && channel.is_some() {
        true => {
            let table = Continuity::new(legacy::table_size()).context("making the connection table")?;
            let kept: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
            let legacy = Legacy::new(table.table().clone(), &kept, &[], legacy::begin_roll());
            Some((Arc::new(table), legacy))
        }
        false => None,
    };
    let roll = legacy.as_ref().and_then(|(_, legacy)| legacy.roll());
    let engine = Engine::builder()
        .group("net", GroupConfig { threads: threads(config.server.threads), ..GroupConfig::default() })
        .group("task", GroupConfig { threads: 2, ..GroupConfig::default() })
        // those of `task` do nothing but blocking work: one that a slow disk doesn't let die keeps nobody waiting
        .on_thread_start(move |group| roll.filter(|_| group != "task").and_then(legacy::sign))
        .start()
        .context("starting the event threads")?;
    let proxy = Proxy::new(proxying::proxy_config(&config, token)?);
    proxy.look_up_origins();
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
    // found while we waited, or by one that started when we did
    origins.recall();
    if let Some((continuity, _)) = &legacy {
        continuity.table().begin();
    }
    let left = start.collect(FDS_TO_SERVE + FDS_A_LISTENER * listeners.len());
    let mut lock = Lockfile::new(runtime.lock("server"));
    take_lock(&mut lock, config.cop.start_grace)?;
    // whoever holds it sees a thread that has stalled
    notify.store_fds(&suite::pulse_name(std::process::id() as i32), &[engine.pulse()]);
    let mut taken = Taken::default();
    if let Some((continuity, legacy)) = &legacy {
        if let Some(fd) = lock.fd() {
            legacy.note_lock(fd.as_raw_fd());
        }
        legacy.announce(notify);
        taken = succession::take_over(left, continuity, notify);
        // what the manager wasn't sure that the last one had
        if !start.queued.is_empty() {
            let known = taken.numbers();
            start.queued.retain(|fd| succession::number(fd).is_none_or(|n| !known.contains(&n)));
        }
        for fd in &start.queued {
            continuity.resume(fd.as_raw_fd(), Resume::default());
        }
        say_taken(&mut start.handed, notify);
        // from here on we have what nobody else has: were we and the manager killed before it has passed on how to get it,
        // it would be lost
        if !notify.barrier(ANNOUNCED) {
            log::warn!("event=announce-slow: the manager hasn't taken what we leave within {ANNOUNCED:?}");
        }
    } else if channel.is_some() {
        say_taken(&mut start.handed, notify);
    }
    let continuity = legacy.as_ref().map(|(c, _)| c.clone());
    let duplicates = listeners.iter().map(OwnedFd::try_clone).collect::<Result<Vec<_>, _>>()?;
    let acceptor = accept(&engine, &config, listeners, proxy.clone(), continuity, start.held)?;
    taken.serve().into_iter().chain(start.queued).for_each(|fd| acceptor.adopt(fd));
    log::info!("event=ready pid={}", std::process::id());
    notify.say("READY=1");
    let drain = config.server.drain_timeout;
    let watchdog = watchdog_interval().map(|every| (every, Time::ZERO));
    let listeners = names.into_iter().zip(duplicates).collect();
    Duty {
        signals,
        channel,
        handed: start.handed,
        acceptor,
        engine,
        proxy,
        legacy,
        lock,
        listeners,
        notify,
        drain,
        watchdog,
    }
    .run()
}

/// Says what is ours from here on, and whether there was no room for more.
fn say_taken(handed: &mut Handed, notify: &Notifier) {
    notify.say_in_turn(&handed.settled());
    handed.end_series().into_iter().for_each(|short| notify.say_in_turn(&short));
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
    // not before it serves: a standby asks nobody
    proxy::probes::start(&proxy, &handle, net);
    let acceptor = AcceptorConfig {
        listeners,
        held,
        // one event thread accepts for itself, and nothing changes hands; several get their connections in turn
        accept_threads: usize::from(handle.threads(net).len() > 1),
        max_connections: config.server.max_connections,
        at_limit: AtLimit::Pause,
        nodelay: true,
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

fn threads(wanted: usize) -> usize {
    match wanted {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    }
}
