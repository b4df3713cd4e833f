//! A drill of the suite that runs: whom it may touch, where its load goes, and that somebody has agreed.

use super::kills::Target;
use super::origin::Asked;
use crate::cli::Common;
use crate::config::Config;
use crate::cop::upgrade::is_supervised;
use crate::exit::Exit;
use crate::logging::Fatal;
use crate::suite::Runtime;
use anyhow::Context;
use lockfile::Lockfile;
use std::path::PathBuf;
use supervisor::probe;

/// Which suite, and that it is meant.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct AttachArgs {
    /// Drill the suite that runs, with the processes that serve your clients; needs --yes
    #[arg(long)]
    pub attach: bool,
    /// Yes, do it; without it --attach says what it would do
    #[arg(long, requires = "attach")]
    pub yes: bool,
    /// With --attach: ask for this page [default: / on the suite's first TCP address]
    #[arg(long, value_name = "URL", requires = "attach")]
    pub url: Option<String>,
    /// With --attach: the suite's configuration file [default: $TRAFFIC_CONFIG, or /etc/traffic/traffic.toml]
    #[arg(long, short, value_name = "FILE", requires = "attach")]
    pub config: Option<PathBuf>,
    /// With --attach: the suite's runtime directory
    #[arg(long, value_name = "DIR", requires = "attach")]
    pub runtime_dir: Option<PathBuf>,
}

/// A suite that runs.
#[derive(Debug)]
pub struct Attached {
    runtime: Runtime,
    config: Config,
    asked: Asked,
}

impl Attached {
    /// Finds it.
    ///
    /// # Errors
    /// It doesn't run, or there is no address where it can be asked.
    pub fn find(args: &AttachArgs) -> anyhow::Result<Attached> {
        let config = args.config.clone().or_else(|| std::env::var_os("TRAFFIC_CONFIG").map(PathBuf::from));
        let common = Common { config, runtime_dir: args.runtime_dir.clone(), ..Common::default() };
        let config = common.load_to_ask()?;
        let runtime = Runtime::new(&config.suite.runtime_dir);
        if Lockfile::holder(runtime.lock("server"))?.is_none() {
            let why = format!("no server runs in {}: nothing to attach to", runtime.dir().display());
            return Err(Fatal::new(Exit::NotRunning, why).into());
        }
        let asked = match &args.url {
            Some(url) => Asked::parse(url).with_context(|| format!("--url {url}"))?,
            None => {
                let tcp = runtime.targets().into_iter().find_map(|t| match t {
                    probe::Target::Tcp(addr) => Some(addr),
                    probe::Target::Unix(_) => None,
                });
                let addr = tcp.context("the suite listens on no TCP address: name one with --url")?;
                Asked::parse(&format!("http://{addr}/"))?
            }
        };
        Ok(Attached { runtime, config, asked })
    }

    /// Its files.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Its state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.config.suite.state_dir.clone()
    }

    /// What the load asks for.
    pub fn asked(&self) -> &Asked {
        &self.asked
    }

    /// Only a program of this suite is touched, and cop only if somebody starts the next one.
    ///
    /// # Errors
    /// Why not.
    pub fn may_touch(&self, target: Target, pid: i32) -> anyhow::Result<()> {
        let name = format!("traffic_{}", target.name());
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        anyhow::ensure!(
            comm.trim_end() == name,
            "pid {pid} holds {}, but is {:?} and not {name}: it isn't touched",
            self.runtime.lock(target.name()).display(),
            comm.trim_end()
        );
        anyhow::ensure!(
            target != Target::Cop || is_supervised(pid),
            "traffic_cop (pid {pid}) has nobody above it that would start the next one (systemd, --init): it isn't touched"
        );
        Ok(())
    }

    /// Refuses unless somebody has agreed; `plan` is what would be done.
    ///
    /// # Errors
    /// What would be done.
    pub fn consent(&self, args: &AttachArgs, plan: &[String]) -> anyhow::Result<()> {
        if args.yes {
            return Ok(());
        }
        let pid = |p: &str| {
            let holder = Lockfile::holder(self.runtime.lock(p)).ok().flatten();
            format!("{p} {}", holder.map_or("-".to_owned(), |h| h.pid.to_string()))
        };
        let who = ["cop", "manager", "server"].map(pid).join(", ");
        let why = format!(
            "nothing was done. This would, to the suite in {} ({who}), which serves your clients:\n  {}\nSay --yes to do it.",
            self.runtime.dir().display(),
            plan.join("\n  ")
        );
        Err(Fatal::new(Exit::Usage, why).into())
    }
}
