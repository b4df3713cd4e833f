//! One line a transition, to stderr: with a journald priority where that is the journal, with time and pid elsewhere.
//!
//! Read in this order: this file (what a line looks like), [`sink`] (where it goes), [`rotate`] (the daemon's file).

pub mod rotate;
pub mod sink;

use crate::config::Suite;
use crate::exit::Exit;
use rotate::Rotation;
use sink::Sink;
use std::io::Write;
use std::sync::Mutex;
use std::time::SystemTime;

/// The target of what jobs write to the log.
pub const JOB: &str = "job";

/// Cop's, if it has a log file.
static ROTATION: Mutex<Option<Rotation>> = Mutex::new(None);

/// Sets the log up for `program`, as the configuration has it.
///
/// Lines go to stderr. A line that can't be written at once is dropped and counted: a full disk or a pipe that nobody
/// reads must not stop the suite.
pub fn init(program: &'static str, suite: &Suite) {
    let journald = is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref());
    let head = move |level: log::Level| match journald {
        true => format!("<{}>", priority(level)),
        false => {
            let now = humantime::format_rfc3339_micros(SystemTime::now());
            format!("{now} {level:5} {program}[{}] ", std::process::id())
        }
    };
    let dropped = move |lines| format!("{}event=log-dropped lines={lines}", head(log::Level::Warn));
    let sink = Sink::new(Some(&suite.log_path()), program == "traffic_cop", dropped);
    let mut builder = env_logger::Builder::new();
    builder.parse_filters(&suite.log);
    if suite.log.split('/').next().unwrap_or("").trim().is_empty() {
        // what no filter stands for, as long as nothing is added to it
        builder.filter_level(log::LevelFilter::Error);
    }
    if jobs_pass(&suite.log) {
        builder.filter_module(JOB, log::LevelFilter::Info);
    }
    let done = builder
        .target(env_logger::Target::Pipe(Box::new(sink)))
        .format(move |f, r| {
            // a priority is a line's own
            let text = r.args().to_string();
            text.lines().try_for_each(|line| writeln!(f, "{}{line}", head(r.level())))
        })
        .try_init();
    if done.is_err() {
        log::debug!("logging was set up already");
    }
}

/// Do lines of jobs belong in a log with that filter? Whatever its level is: it is about us, not about what they say.
fn jobs_pass(filter: &str) -> bool {
    let mut modules = filter.split('/').next().unwrap_or("").split(',').map(str::trim);
    let is_of_jobs = |m: &str| m.split_once('=').is_some_and(|(module, _)| module == JOB);
    !modules.any(|m| m.eq_ignore_ascii_case("off") || is_of_jobs(m))
}

/// Is our stderr the stream that `JOURNAL_STREAM` (device:inode) names? It is inherited by those whose stderr is not.
fn is_journal(stream: Option<&str>) -> bool {
    let stat = rustix::fs::fstat(rustix::stdio::stderr());
    let ours = stat.map(|s| format!("{}:{}", s.st_dev, s.st_ino));
    stream.is_some() && ours.ok().as_deref() == stream
}

/// The log file may have been renamed: it is looked at with the next line.
pub fn reopen() {
    sink::reopen();
}

/// Cop rotates its suite's log from here on.
pub fn rotate_by(rotation: Rotation) {
    if let Ok(mut r) = ROTATION.lock() {
        *r = Some(rotation);
    }
}

/// Rotates the log if it is time to; called by cop every now and then.
pub fn tick() {
    // taken out meanwhile: it logs
    let taken = ROTATION.lock().ok().and_then(|mut r| r.take());
    if let Some(mut rotation) = taken {
        rotation.look();
        rotate_by(rotation);
    }
}

/// syslog(3) priorities.
fn priority(level: log::Level) -> u8 {
    match level {
        log::Level::Error => 3,
        log::Level::Warn => 4,
        log::Level::Info => 6,
        log::Level::Debug | log::Level::Trace => 7,
    }
}

/// A failure that knows its exit code.
#[derive(Debug)]
pub struct Fatal {
    /// How the program ends.
    pub exit: Exit,
    /// What is said on stderr.
    pub text: String,
}

impl Fatal {
    /// A failure with its reason.
    pub fn new(exit: Exit, text: impl Into<String>) -> Fatal {
        Fatal { exit, text: text.into() }
    }
}

impl std::fmt::Display for Fatal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Fatal {}

/// Ends `main`: prints the chain of an error once, and picks the exit code.
pub fn finish(program: &str, result: anyhow::Result<Exit>) -> std::process::ExitCode {
    match result {
        Ok(exit) => exit.into(),
        Err(e) => {
            // stderr may be full or gone, which is no reason to end otherwise
            let _ = writeln!(std::io::stderr(), "{program}: {e:#}");
            exit_of(&e).into()
        }
    }
}

/// The exit code an error stands for.
pub fn exit_of(e: &anyhow::Error) -> Exit {
    if let Some(f) = e.downcast_ref::<Fatal>() {
        return f.exit;
    }
    if e.is::<crate::config::Faults>() {
        return Exit::Config;
    }
    let is_os = |c: &(dyn std::error::Error + 'static)| {
        c.is::<std::io::Error>()
            || c.is::<supervisor::dirs::DirError>()
            || c.is::<supervisor::spawn::SpawnError>()
    };
    if e.chain().any(is_os) { Exit::Os } else { Exit::Failure }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_off_keeps_lines_of_jobs_out() {
        for filter in ["error", "warn,proxy=debug", "proxy=off", "INFO", "warn/text", ""] {
            assert!(jobs_pass(filter), "{filter}");
        }
        for filter in ["off", "OFF,proxy=debug", "warn, off", "warn,job=error"] {
            assert!(!jobs_pass(filter), "{filter}");
        }
    }
}
