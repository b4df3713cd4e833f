//! One line a transition, to stderr: with a journald priority under systemd, with time and pid elsewhere.

use crate::exit::Exit;
use std::io::Write;
use std::time::SystemTime;

/// Sets the log up for `program`, with an env_logger filter such as `info` or `warn,traffic::manager=debug`.
///
/// Lines go to stderr. A line that can't be written is dropped: a full disk or a closed pipe must not stop the suite.
pub fn init(program: &'static str, filter: &str) {
    let journald = std::env::var_os("JOURNAL_STREAM").is_some();
    let done = env_logger::Builder::new()
        .parse_filters(filter)
        .format(move |f, r| {
            if journald {
                writeln!(f, "<{}>{}", priority(r.level()), r.args())
            } else {
                let (now, pid) = (humantime::format_rfc3339_micros(SystemTime::now()), std::process::id());
                writeln!(f, "{now} {:5} {program}[{pid}] {}", r.level(), r.args())
            }
        })
        .try_init();
    if done.is_err() {
        log::debug!("logging was set up already");
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
            eprintln!("{program}: {e:#}");
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
    let os = e.chain().any(|c| c.is::<std::io::Error>() || c.is::<supervisor::dirs::DirError>());
    if os { Exit::Os } else { Exit::Failure }
}
