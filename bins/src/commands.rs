//! The commands that talk to the manager that runs, or to nobody.

use crate::cli::Common;
use crate::config::Config;
use crate::config::job::{Alive, Ready};
use crate::control;
use crate::exit::Exit;
use crate::logging::Fatal;
use crate::privileges;
use crate::suite::{self, Runtime};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// How long a manager may say nothing before it is asked whether it lives.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends one request over the control socket and prints the answer.
///
/// # Errors
/// Nobody answers, or the manager refuses.
pub fn ask(common: &Common, method: &str, target: &str) -> anyhow::Result<Exit> {
    send(&common.load_to_ask()?, method, target)
}

/// Has the suite take its configuration anew: a wrong one isn't sent.
///
/// # Errors
/// All faults of the configuration; as [`ask`].
pub fn reload(common: &Common) -> anyhow::Result<Exit> {
    send(&common.load()?.config, "POST", "/reload")
}

fn send(config: &Config, method: &str, target: &str) -> anyhow::Result<Exit> {
    let runtime = Runtime::new(&config.suite.runtime_dir);
    println!("{}", request(&runtime, method, target)?.trim_end());
    Ok(Exit::Done)
}

/// The path of a job's commands.
///
/// # Errors
/// No job can have that name.
pub fn job_path(name: &str) -> anyhow::Result<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match !name.is_empty() && name.chars().all(fits) {
        true => Ok(format!("/jobs/{name}")),
        false => Err(Fatal::new(Exit::Usage, format!("{name:?} is no name of a job")).into()),
    }
}

/// Commands one job.
///
/// # Errors
/// As [`ask`].
pub fn job(common: &Common, name: &str, what: &str) -> anyhow::Result<Exit> {
    ask(common, "POST", &format!("{}/{what}", job_path(name)?))
}

/// Prints what is there, and with `follow` what comes, for ever.
///
/// # Errors
/// As [`ask`].
pub fn follow(common: &Common, path: &str, follow: bool) -> anyhow::Result<Exit> {
    let config = common.load_to_ask()?;
    let runtime = Runtime::new(&config.suite.runtime_dir);
    let mut target = path.to_owned();
    loop {
        let text = request(&runtime, "GET", &target)?;
        let (next, lines) = text.split_once('\n').unwrap_or((&text, ""));
        if !lines.trim_end().is_empty() {
            println!("{}", lines.trim_end());
        }
        if !follow {
            return Ok(Exit::Done);
        }
        target = format!("{path}?from={}", next.trim());
    }
}

/// Prints the names of the jobs, one a line. For a shell in the middle of a line: whatever is in the way, nothing is said of it.
pub fn names(common: &Common) -> Exit {
    let ask = || -> anyhow::Result<Value> {
        let runtime = Runtime::new(&common.load_to_ask()?.suite.runtime_dir);
        let (_, text) = control::request(&runtime.control(), "GET", "/jobs", Duration::from_secs(1))?;
        Ok(serde_json::from_str(&text)?)
    };
    let jobs = ask().unwrap_or_default();
    for name in jobs.as_array().into_iter().flatten().filter_map(|j| j["name"].as_str()) {
        println!("{name}");
    }
    Exit::Done
}

/// Prints the jobs as a table.
///
/// # Errors
/// As [`ask`].
pub fn list(common: &Common) -> anyhow::Result<Exit> {
    let config = common.load_to_ask()?;
    let runtime = Runtime::new(&config.suite.runtime_dir);
    let jobs: Value = serde_json::from_str(&request(&runtime, "GET", "/jobs")?)?;
    println!("{:<20}{:<10}{:>8}{:>8}{:>10}  last exit", "job", "state", "pid", "since", "restarts");
    for job in jobs.as_array().into_iter().flatten() {
        let name = job["name"].as_str().unwrap_or("?");
        let workers = job["workers"].as_array().cloned().unwrap_or_default();
        if workers.is_empty() {
            println!("{name:<20}{}", job["state"].as_str().unwrap_or("?"));
        }
        for w in workers {
            println!(
                "{:<20}{:<10}{:>8}{:>8}{:>10}  {}",
                format!("{name}.{}", w["index"]),
                w["state"].as_str().unwrap_or("?"),
                w["pid"].as_i64().map_or("-".into(), |p| p.to_string()),
                format!("{}s", w["since_s"]),
                w["restarts"].to_string(),
                match waits_for(job) {
                    Some(others) if w["state"] == "waiting" => format!("waits for {others}"),
                    _ => w["last_exit"].as_str().unwrap_or("-").to_owned(),
                },
            );
        }
        if let Some(line) = schedule_line(&job["schedule"]) {
            println!("{:<20}{line}", "");
        }
    }
    Ok(Exit::Done)
}

/// The jobs that a job waits for.
fn waits_for(job: &Value) -> Option<String> {
    let others: Vec<&str> = job["waits_for"].as_array()?.iter().filter_map(Value::as_str).collect();
    Some(others.join(", "))
}

/// When a job runs next, and how it ran last, in local time.
fn schedule_line(schedule: &Value) -> Option<String> {
    let local = |key: &str| {
        let at = jiff::Timestamp::from_second(schedule[key].as_i64()?).ok()?;
        Some(at.to_zoned(jiff::tz::TimeZone::system()).strftime("%F %T%:z").to_string())
    };
    let last = || match (local("started"), local("ended")) {
        (Some(started), None) => format!("running since {started}"),
        (Some(started), Some(ended)) => {
            let how = schedule["result"].as_str().unwrap_or("");
            format!("last run {started} to {ended}: {how}")
        }
        _ => "no run yet".into(),
    };
    schedule.is_object().then(|| format!("next run {}; {}", local("next").unwrap_or("-".into()), last()))
}

/// The manager knows how long what it is asked may take, and says when that is over: its answer is waited for while it lives.
fn request(runtime: &Runtime, method: &str, target: &str) -> anyhow::Result<String> {
    let socket = runtime.control();
    // the same one: what a dead manager was asked, the next one doesn't know of
    let lives = |pid: i32| {
        let beat = control::request(&socket, "GET", "/heartbeat", PATIENCE);
        beat.is_ok_and(|(_, text)| text.trim_end().ends_with(&format!("pid={pid}")))
    };
    match control::request_while(&socket, method, target, PATIENCE, lives) {
        Ok((200, text)) => Ok(text),
        Ok((code, text)) => {
            Err(Fatal::new(Exit::Failure, format!("the manager refused ({code}): {}", text.trim_end()))
                .into())
        }
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            let why = format!("cannot ask the manager on {}: {e}", runtime.control().display());
            Err(Fatal::new(Exit::Os, why).into())
        }
        Err(e) => {
            let why = format!("no manager answers on {}: {e}", runtime.control().display());
            Err(Fatal::new(Exit::NotRunning, why).into())
        }
    }
}

/// Prints the effective configuration with its sources, or everything that is wrong with it.
///
/// # Errors
/// All faults at once.
pub fn check_config(common: &Common) -> anyhow::Result<Exit> {
    let loaded = common.load()?;
    match &loaded.file {
        Some(f) => println!("# {}", f.display()),
        None => println!("# no file"),
    }
    print!("{}", loaded.describe());
    if let Some(why) = privileges::refused_to_root(&loaded.config)
        && rustix::process::geteuid().is_root()
    {
        eprintln!("warning: started by root, it is refused: {why}");
    }
    // who starts the suite may have another PATH, and more rights than we have
    missing_programs(&loaded.config).iter().for_each(|line| eprintln!("warning: {line}"));
    match privileges::missing_names(&loaded.config) {
        missing if missing.is_empty() => Ok(Exit::Done),
        missing => Err(Fatal::new(Exit::Config, missing.join("\n")).into()),
    }
}

/// The commands of the configuration whose programs can't be run from here, one text each.
fn missing_programs(config: &Config) -> Vec<String> {
    let of_jobs = config.jobs.iter().flat_map(|j| {
        let ready = if let Ready::Exec(c) = &j.ready { c.first() } else { None };
        let alive = if let Alive::Exec(c) = &j.alive { c.first() } else { None };
        let all = [("command", j.command.first()), ("ready", ready), ("alive", alive)];
        all.map(|(key, program)| (format!("job {:?}: job.{key}", j.name), program, j.cwd.as_deref()))
    });
    let of_suite = [
        ("server.command", config.server.command.first()),
        ("manager.respawn.on_give_up", config.manager.respawn.on_give_up.first()),
    ];
    let all = of_suite.into_iter().map(|(key, program)| (key.to_owned(), program, None)).chain(of_jobs);
    all.filter_map(|(key, program, cwd)| {
        let program = program?;
        let at = cwd.unwrap_or(Path::new("/")).join(suite::find_program(program));
        let why = match std::fs::metadata(&at) {
            Err(_) if !program.contains('/') => "it isn't in PATH".to_owned(),
            Ok(m) if !m.is_file() => "it is no file".to_owned(),
            _ => rustix::fs::access(&at, rustix::fs::Access::EXEC_OK).err()?.to_string(),
        };
        Some(format!("{key}: {program:?} can't be run: {why}"))
    })
    .collect()
}
