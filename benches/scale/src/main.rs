//! How cost grows: connections, jobs, the queue, threads. The real programs are measured, and plots are drawn.
//!
//! `benches/scale/run [NAME…]`. Read: [`sample`] (what a point is), [`suite`] and [`clients`] (what is measured, and who asks),
//! then one file for each thing that grows; [`report`] and [`plot`] are what comes out.

mod clients;
mod connections;
mod jobs;
mod load;
mod plot;
mod proc;
mod queue;
mod report;
mod sample;
mod suite;
mod threads;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use report::Part;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

/// How cost grows: measures, prints tables, draws plots.
#[derive(Debug, Parser)]
struct Cli {
    /// What grows; everything if not said
    names: Vec<Name>,
    /// How often each point is measured anew
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// The least and the greatest point but one of each, once: does it work here?
    #[arg(long)]
    quick: bool,
    /// Make the plots and tables of docs/scale.md anew
    #[arg(long)]
    docs: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Name {
    Connections,
    Jobs,
    Queue,
    Threads,
}

/// How much is to be measured.
struct Scope {
    repeats: usize,
    quick: bool,
}

impl Scope {
    /// Those of the points that are wanted.
    fn points(&self, all: &[usize]) -> Vec<usize> {
        match self.quick {
            true => vec![all[0], all[all.len() / 2]],
            false => all.to_vec(),
        }
    }
}

fn main() -> ExitCode {
    match measure(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("scale: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(cli: &Cli) -> anyhow::Result<()> {
    let scope = Scope { repeats: if cli.quick { 1 } else { cli.repeats.max(1) }, quick: cli.quick };
    clients::most_connections()?;
    // what else the machine does, before we do anything
    let foot = format!("{}; repeats: {}", machine()?, scope.repeats);
    for name in [Name::Connections, Name::Jobs, Name::Queue, Name::Threads] {
        if !cli.names.is_empty() && !cli.names.contains(&name) {
            continue;
        }
        let measured = match name {
            Name::Connections => connections::measure(&scope),
            Name::Jobs => jobs::measure(&scope),
            Name::Queue => queue::measure(&scope),
            Name::Threads => threads::measure(&scope),
        };
        let part = measured.with_context(|| format!("{name:?} couldn't be measured"))?;
        write(&part, cli.docs, &foot)?;
    }
    Ok(())
}

/// Prints the table; writes the plot, and with `docs` both into the documentation.
fn write(part: &Part, docs: bool, foot: &str) -> anyhow::Result<()> {
    let (table, svg) = (part.table()?, plot::svg(part, foot)?);
    println!("## {}\n\n{foot}\n\n{table}", part.name);
    let dir = Path::new(if docs { "docs/scale" } else { "target/scale" });
    fs::create_dir_all(dir)?;
    let path = dir.join(part.name).with_extension("svg");
    fs::write(&path, svg).with_context(|| path.display().to_string())?;
    eprintln!("{} is written", path.display());
    if docs {
        let page = fs::read_to_string("docs/scale.md").context("docs/scale.md")?;
        fs::write("docs/scale.md", report::replace(&page, part.name, &format!("{foot}\n\n{table}"))?)?;
    }
    Ok(())
}

/// The day, the machine's kind, and how busy it is.
fn machine() -> anyhow::Result<String> {
    let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    let day = now.split('T').next().context("a date")?;
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let field =
        |name: &str| cpus.lines().find_map(|l| l.strip_prefix(name)?.split_once(": ").map(|(_, v)| v));
    let model = field("model name").unwrap_or("unknown CPU");
    let cores = std::thread::available_parallelism()?;
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let kernel: Vec<&str> = release.split(['.', '-']).take(2).collect();
    let load = fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().context("a load average")?;
    Ok(format!("{day}, {model}, {cores} cores, Linux {}, load average {load} before", kernel.join(".")))
}
