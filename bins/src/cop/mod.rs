//! `traffic_cop`: the process that never dies, and the operator's command.
//!
//! It must not know the engine or HTTP servers; it has one thread, a few fds in one `poll`, and spends its life waiting.
//!
//! Read in this order: this file (the commands), [`start`], [`watch`] (the loop),
//! [`beats`] (its heartbeats), [`record`] (what it leaves for `status`), [`stop`], [`status`], [`upgrade`], [`init`] (as the first
//! process of a container).

pub mod beats;
pub mod init;
pub mod record;
pub mod start;
pub mod status;
pub mod stop;
pub mod upgrade;
pub mod watch;

use crate::cli::Common;
use crate::drill::{self, DrillArgs};
use crate::exit::Exit;

/// Watches over traffic_manager and traffic_server: starts them, asks them, replaces them.
#[derive(Debug, clap::Parser)]
#[command(name = "traffic_cop", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Start the suite; returns when it serves, or says why it doesn't
    Start {
        /// Stay in the foreground, log to stderr
        #[arg(short, long)]
        foreground: bool,
        /// With -f: be cop's init, as is done where this is the first process of a container
        #[arg(long, requires = "foreground")]
        init: bool,
        /// With -f: don't, even there
        #[arg(long, requires = "foreground", conflicts_with = "init")]
        no_init: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Stop the suite in order; returns when all three are gone
    Stop(Common),
    /// Stop, then start with the options of the running suite (those given here come on top)
    Restart(Common),
    /// Have the running suite take the programs that are on disk now; clients notice nothing
    Upgrade(Common),
    /// Check the configuration, then have the running suite take it
    Reload(Common),
    /// Say what runs: exit 0 serving, 3 not running, 4 degraded
    Status {
        /// As one JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Start a private suite, load it, kill its processes, and say what clients noticed
    Drill(Box<DrillArgs>),
}

/// Carries out the command line.
///
/// # Errors
/// What went wrong, with its exit code (see [`crate::logging::exit_of`]).
pub fn run(cli: Cli) -> anyhow::Result<Exit> {
    match cli.command {
        Command::Start { foreground: true, init, no_init, common }
            if init || (init::is_first() && !no_init) =>
        {
            init::run(&common)
        }
        Command::Start { foreground, common, .. } => start::run(&common, foreground),
        Command::Stop(common) => stop::run(&common),
        Command::Restart(common) => stop::restart(&common),
        Command::Upgrade(common) => upgrade::run(&common),
        Command::Reload(common) => stop::reload(&common),
        Command::Status { json, common } => status::run(&common, json),
        Command::Drill(args) => drill::run(&args),
    }
}
