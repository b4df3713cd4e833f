//! The commands that talk to the manager that runs, or to nobody.

use crate::cli::Common;
use crate::control;
use crate::exit::Exit;
use crate::logging::Fatal;
use crate::privileges;
use crate::suite::Runtime;

/// Sends one request over the control socket and prints the answer.
///
/// # Errors
/// Nobody answers, or the manager refuses.
pub fn ask(common: &Common, method: &str, target: &str) -> anyhow::Result<Exit> {
    let config = common.load()?.config;
    let runtime = Runtime::new(&config.suite.runtime_dir);
    let patience = config.cop.start_grace + config.server.drain_timeout + config.cop.kill_timeout;
    match control::request(&runtime.control(), method, target, patience) {
        Ok((200, text)) => {
            println!("{}", text.trim_end());
            Ok(Exit::Done)
        }
        Ok((code, text)) => {
            Err(Fatal::new(Exit::Failure, format!("the manager refused ({code}): {}", text.trim_end()))
                .into())
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
    privileges::check_names(&loaded.config)?;
    Ok(Exit::Done)
}
