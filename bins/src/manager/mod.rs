//! `traffic_manager`: holds the listening sockets for ever and keeps a server on them.
//!
//! One thread, since it forks: an engine of one loop ([`engine::block_on`]) on which each fd has a small task of its own.
//! The decisions are `policy::child`'s; this program only tells it what happened and does what it asks.
//!
//! Read in this order: this file (command line, start-up, the loop), [`keep`] (the manager's state), `launch`,
//! `adopt` and `death` (the server's life), [`standby`], [`replace`]
//! (the next one), `undo` (a reload that comes to nothing), `watch` (does it hang?), [`estate`] (what the last one left),
//! [`queue`] (who comes meanwhile), `hand_over` (how they come to the server), `memo` and [`page`] (what the next manager is to
//! know), [`listeners`], `mend`, [`control`] (what may be asked over the control socket) and [`admin`] (over TCP).

pub mod admin;
mod adopt;
mod ask;
pub mod control;
mod death;
pub mod estate;
pub mod hand_over;
mod hear;
mod hook;
pub mod incident;
pub mod jobs;
pub mod keep;
mod launch;
pub mod listeners;
mod memo;
mod mend;
mod pac;
pub mod page;
pub mod queue;
mod recover;
pub mod replace;
pub mod scrape;
pub mod standby;
mod undo;
mod watch;

use self::admin::Admin;
use self::estate::Estates;
use self::jobs::Jobs;
use self::listeners::Access;
use self::memo::Memo;
use crate::cli::Common;
use crate::commands;
use crate::config::Accepted;
use crate::exit::Exit;
use crate::logging::{self, Fatal};
use crate::orders;
use crate::privileges;
use crate::server::legacy::Legacy;
use crate::server::origins;
use crate::suite::{self, Runtime};
use crate::top;
use crate::ward::Ward;
use anyhow::Context;
use engine::io::Async;
use keep::{Keep, Start};
use lockfile::{Got, Lockfile};
use proxy::continuity::{Size, Table};
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use supervisor::listen_fds::{self, Inherited};
use supervisor::notify::{Notifier, NotifySocket};
use supervisor::reaper;
use supervisor::signals::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, Signals};

const NAME: &str = "traffic_manager";

/// Holds the listening sockets and keeps a traffic_server on them; without `run` it talks to the manager that runs.
#[derive(Debug, clap::Parser)]
#[command(name = "traffic_manager", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Be the manager (traffic_cop starts it this way)
    Run(Common),
    /// Print the running manager's state as JSON
    Status(Common),
    /// Print the numbers as Prometheus reads them
    Metrics(Common),
    /// Have the running manager take its configuration anew
    Reload(Common),
    /// Replace the server in order
    Restart {
        /// A job: its workers are restarted one after the other; without it the server is replaced
        name: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Show the suite live: processes, threads, connections, queue, requests, take-overs
    Top {
        /// Time between two looks
        #[arg(long, default_value = "1s", value_parser = crate::config::value::duration_of)]
        every: Duration,
        #[command(flatten)]
        common: Common,
    },
    /// List the jobs with their workers
    List {
        /// Only their names, one a line, and nothing if no manager answers: for shells that complete them
        #[arg(long)]
        names: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Start a job, and wait until it is ready
    Start {
        /// The job
        name: String,
        #[command(flatten)]
        common: Common,
    },
    /// Stop a job, and wait until it is down
    Stop {
        /// The job
        name: String,
        #[command(flatten)]
        common: Common,
    },
    /// Stop a job, and have it stay down until it is enabled, over restarts of the suite too
    Disable {
        /// The job
        name: String,
        #[command(flatten)]
        common: Common,
    },
    /// Let a disabled job run again, and start it if it starts by itself
    Enable {
        /// The job
        name: String,
        #[command(flatten)]
        common: Common,
    },
    /// Wait until all workers of a job are ready
    WaitReady {
        /// The job
        name: String,
        #[command(flatten)]
        common: Common,
    },
    /// Change how many workers a job has, until the next reload that says otherwise
    Want {
        /// The job
        name: String,
        /// How many
        workers: usize,
        #[command(flatten)]
        common: Common,
    },
    /// Send a signal to all workers of a job
    Signal {
        /// The job
        name: String,
        /// HUP, USR1 …
        signal: String,
        #[command(flatten)]
        common: Common,
    },
    /// Print the last lines that a job wrote
    Tail {
        /// The job
        name: String,
        /// Go on printing
        #[arg(short, long)]
        follow: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Print what has happened to jobs, one JSON object a line
    Events {
        /// Go on printing
        #[arg(short, long)]
        follow: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Hold new connections in the manager; open ones go on
    Pause {
        /// After this long a waiting client is told 503 (default: manager.queue.max_wait)
        #[arg(long, value_name = "DURATION")]
        max_wait: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// End a pause: who has waited is served
    Resume(Common),
    /// Print the programs of a supervisord.conf or a Procfile as jobs, and what can't be translated as comments
    Import {
        /// The file
        file: std::path::PathBuf,
    },
    /// Say everything that is wrong with a configuration, or what it comes to
    CheckConfig(Common),
}

/// Carries out the command line.
///
/// # Errors
/// What went wrong, with its exit code.
pub fn run(cli: Cli) -> anyhow::Result<Exit> {
    match cli.command {
        Command::Run(common) => serve(&common),
        Command::Status(common) => commands::ask(&common, "GET", "/status"),
        Command::Metrics(common) => commands::ask(&common, "GET", "/metrics"),
        Command::Reload(common) => commands::reload(&common),
        Command::Restart { name: None, common } => commands::ask(&common, "POST", "/restart"),
        Command::Restart { name: Some(name), common } => commands::job(&common, &name, "restart"),
        Command::Top { every, common } => top::run(&common, every),
        Command::List { names: false, common } => commands::list(&common),
        Command::List { names: true, common } => Ok(commands::names(&common)),
        Command::Start { name, common } => commands::job(&common, &name, "start"),
        Command::Stop { name, common } => commands::job(&common, &name, "stop"),
        Command::Disable { name, common } => commands::job(&common, &name, "disable"),
        Command::Enable { name, common } => commands::job(&common, &name, "enable"),
        Command::WaitReady { name, common } => commands::job(&common, &name, "wait-ready"),
        Command::Want { name, workers, common } => {
            commands::job(&common, &name, &format!("want?n={workers}"))
        }
        Command::Signal { name, signal, common } => {
            commands::job(&common, &name, &format!("signal?signal={}", signal.to_uppercase()))
        }
        Command::Tail { name, follow, common } => {
            commands::job_path(&name).and_then(|p| commands::follow(&common, &format!("{p}/tail"), follow))
        }
        Command::Events { follow, common } => commands::follow(&common, "/events", follow),
        Command::Pause { max_wait, common } => match max_wait {
            Some(d) => commands::ask(&common, "POST", &format!("/pause?max_wait={}", d.replace(' ', ""))),
            None => commands::ask(&common, "POST", "/pause"),
        },
        Command::Resume(common) => commands::ask(&common, "POST", "/resume"),
        Command::Import { file } => crate::import::run(&file),
        Command::CheckConfig(common) => commands::check_config(&common),
    }
}

/// The manager's whole life. A failure is told to cop before the end, which reports it to the operator.
fn serve(common: &Common) -> anyhow::Result<Exit> {
    // first of all, so that no signal is lost
    let signals = Signals::catch(&[SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD])?;
    let inherited = listen_fds::take().map_err(|e| Fatal::new(Exit::Usage, e.to_string()))?;
    let upstream = Rc::new(Notifier::from_env()?);
    let result = live(common, signals, inherited, &upstream);
    if let Err(e) = &result {
        let text = format!("{e:#}").replace('\n', "; ");
        let _ = upstream.send(&format!("STATUS={text}\nX_TRAFFIC_EXIT={}", logging::exit_of(e).code()));
    }
    result
}

fn live(
    common: &Common,
    signals: Signals,
    mut inherited: Vec<Inherited>,
    upstream: &Rc<Notifier>,
) -> anyhow::Result<Exit> {
    let common = common.absolute()?;
    let accepted = Accepted::take(&mut inherited);
    let loaded = common.load_accepted(accepted.as_ref())?;
    let accepted = accepted.filter(|a| a.text().is_ok_and(|text| text == loaded.text));
    let accepted =
        accepted.map_or_else(|| Accepted::of(&loaded.text), Ok).context("keeping the configuration")?;
    let config = loaded.config;
    logging::init(NAME, &config.suite);
    Memo::recall_names(&inherited);
    let credentials = privileges::prepare(&config)?;
    privileges::look_up(&config.jobs);
    let runtime = Runtime::new(&config.suite.runtime_dir);
    let mut lock = Lockfile::new(runtime.lock("manager"));
    take_lock(&mut lock, config.cop.start_grace)?;
    reaper::become_subreaper()?;
    suite::raise_fd_limit();
    suite::reserve_fds(4096);
    let kept: Vec<String> = inherited.iter().map(|i| i.name.clone()).collect();
    let channels = orders::take_channels(&mut inherited);
    let inbound = orders::take_inbound(&mut inherited);
    let pages = suite::take_pages(&mut inherited);
    let estates = Estates::take(&mut inherited, upstream);
    let at = runtime.notify("manager");
    let jobs = Jobs::take(&mut inherited, &at);
    let had_memo = Memo::is_in(&inherited);
    let memo = Memo::take(&mut inherited);
    let origins = suite::take_one(&mut inherited, origins::NAME).or_else(origins::page);
    let sockets = jobs::take_or_bind(&config.jobs, &mut inherited)?;
    let notify = NotifySocket::bind(&at).with_context(|| format!("cannot listen on {}", at.display()))?;
    privileges::share_notify(&runtime, credentials.as_ref())?;
    recover::listeners(&config, &runtime, &notify, &mut inherited);
    let listeners = listeners::take_or_bind(&config.server.listen, Access::of_server(&config)?, inherited)?;
    let used: Vec<&str> = sockets
        .iter()
        .flat_map(jobs::Sockets::all)
        .chain(&listeners)
        .map(listeners::Listener::name)
        .collect();
    listeners::forget_others(&kept, &used, upstream);
    let control = control::bind(&runtime)
        .with_context(|| format!("cannot listen on {}", runtime.control().display()))?;
    let goes_on = had_memo || Ward::of_server(&config, &runtime, 0).is_ok_and(|found| found.is_some());
    let admin = config.manager.admin.map(|addr| Admin::take(addr, goes_on)).transpose()?;
    listeners::publish(&listeners, &runtime)
        .with_context(|| format!("cannot write {}", runtime.ports().display()))?;
    // connections that wait in the queue outlive us too
    let table = Arc::new(Table::create(Size { slots: 0, buffers: 0 })?);
    let kept: Vec<_> = listeners.iter().map(|l| l.fd.as_fd()).collect();
    let first: Vec<_> = admin.iter().map(AsFd::as_fd).collect();
    let legacy = Legacy::new(table, &kept, &first, None);
    if let Some(fd) = lock.fd() {
        legacy.note_lock(fd.as_raw_fd());
    }
    log::info!("event=start listen={:?}", listeners::names(&listeners));
    let keep = Keep::new(Start {
        config,
        accepted,
        file: loaded.file,
        origins,
        common,
        runtime,
        listeners,
        legacy,
        estates,
        channels,
        inbound,
        pages,
        jobs,
        memo,
        upstream: upstream.clone(),
        notify,
    });
    keep.store_fds(upstream);
    let end = keep.clone();
    let exit = engine::Local::new()?.run(main_loop(keep, signals, control, admin, sockets));
    // also when it ends for a fault: nothing that was ours stays
    end.end_legacy();
    lock.close()?;
    exit
}

/// Everything that can happen has a task; the main one waits for the end.
async fn main_loop(
    keep: Rc<Keep>,
    signals: Signals,
    control: std::os::unix::net::UnixListener,
    admin: Option<Admin>,
    sockets: Vec<jobs::Sockets>,
) -> anyhow::Result<Exit> {
    drop(engine::spawn(hear_signals(keep.clone(), signals)));
    drop(engine::spawn(hear_server(keep.clone())));
    drop(engine::spawn(control::serve(keep.clone(), control)));
    if let Some(admin) = admin {
        drop(engine::spawn(admin::serve(keep.clone(), admin)));
    }
    keep.begin();
    keep.begin_jobs(sockets);
    let exit = keep.ended().await?;
    keep.flush_memory();
    keep.runtime().clean_manager();
    Ok(exit)
}

async fn hear_signals(keep: Rc<Keep>, mut signals: Signals) {
    let wake = match signals.as_fd().try_clone_to_owned().and_then(Async::new) {
        Ok(wake) => wake,
        Err(e) => return log::error!("event=signals-failed: {e}"),
    };
    while wake.readable().await.is_ok() {
        wake.clear_read();
        for signal in signals.pending() {
            on_signal(&keep, signal);
        }
        keep.reap_orphans();
    }
}

fn on_signal(keep: &Rc<Keep>, signal: i32) {
    match signal {
        SIGCHLD => {}
        SIGHUP => {
            // said before anything is started, which inherits the file that this line goes to
            logging::reopen();
            log::info!("event=reload-asked signal={signal}");
            match keep.reload() {
                Ok(text) => log::info!("event=reload: {text}"),
                Err(e) => log::error!("event=reload-refused: {e:#}"),
            }
        }
        SIGUSR1 | SIGUSR2 => log::info!("event=state {}", keep.status()),
        // nobody but cop decides that the suite is to end, and cop uses SIGINT: this is for our program alone
        SIGTERM if keep.has_a_successor() => {
            log::info!("event=leave signal={signal}: the next manager adopts the server");
            // what we have open is what it gets: nothing is closed in order
            std::process::exit(i32::from(Exit::Done.code()));
        }
        _ => {
            log::info!("event=stop signal={signal}");
            keep.stop();
        }
    }
}

async fn hear_server(keep: Rc<Keep>) {
    let socket = match keep.notify_fd().and_then(Async::new) {
        Ok(socket) => socket,
        Err(e) => return log::error!("event=notify-failed: {e}"),
    };
    while socket.readable().await.is_ok() {
        // edge-triggered: noted as empty before it is emptied
        socket.clear_read();
        while keep.listen() {
            // a sender that never stops gets its next turn after everybody else
            engine::yield_now().await;
        }
    }
}

/// Takes a lock whose holder may be just ending: waits for it (event: its pidfd) instead of giving up at once.
///
/// # Errors
/// Somebody else holds it and goes on living.
pub fn take_lock(lock: &mut Lockfile, patience: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + patience.min(Duration::from_secs(10));
    loop {
        let holder = match lock.get()? {
            Got::Acquired => return Ok(()),
            Got::Held(h) => h,
        };
        let left = until.saturating_duration_since(Instant::now());
        let ended = match supervisor::pidfd::PidFd::open(holder.pid) {
            // it ended between the two questions
            Err(_) => true,
            Ok(p) => !left.is_zero() && p.poll_exit(left.min(Duration::from_millis(500)))?.is_some(),
        };
        if left.is_zero() {
            let why = format!("{} is held by pid {}", lock.path().display(), holder.pid);
            return Err(Fatal::new(Exit::LockHeld, why).into());
        }
        if ended {
            // the kernel lets go of a dead process's locks before its pidfd says so; what is left shares its fds
            std::thread::yield_now();
        }
    }
}

impl Runtime {
    /// Removes what only a living manager has a use for.
    fn clean_manager(&self) {
        let _ = std::fs::remove_file(self.control());
        let _ = std::fs::remove_file(self.notify("manager"));
    }
}
