//! What the command lines of the three programs have in common.

use crate::config::{self, Accepted, Config, Faults, Loaded, Sources};
use crate::exit::Exit;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// Options of every command.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Common {
    /// Configuration file [default: /etc/traffic/traffic.toml if it is there]
    #[arg(short, long, value_name = "FILE", env = "TRAFFIC_CONFIG")]
    pub config: Option<PathBuf>,
    /// Directory of locks and sockets (suite.runtime_dir)
    #[arg(long, value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// Set a key of the configuration; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub set: Vec<String>,
    /// What to log: error, warn, info, debug, trace (suite.log)
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

impl Common {
    /// With every path made absolute against the current directory.
    ///
    /// # Errors
    /// The current directory can't be read.
    pub fn absolute(&self) -> io::Result<Common> {
        Ok(self.absolute_to(&std::env::current_dir()?))
    }

    /// With every path made absolute against `dir`.
    pub fn absolute_to(&self, dir: &Path) -> Common {
        let join = |p: &PathBuf| dir.join(p);
        Common {
            config: self.config.as_ref().map(join),
            runtime_dir: self.runtime_dir.as_ref().map(join),
            ..self.clone()
        }
    }

    /// These options, with those of `over` on top.
    pub fn with(&self, over: &Common) -> Common {
        Common {
            config: over.config.clone().or(self.config.clone()),
            runtime_dir: over.runtime_dir.clone().or(self.runtime_dir.clone()),
            set: self.set.iter().chain(&over.set).cloned().collect(),
            log: over.log.clone().or(self.log.clone()),
        }
    }

    /// The same as arguments, for a child program.
    pub fn to_args(&self) -> Vec<OsString> {
        let mut args = Vec::new();
        let mut add = |name: &str, value: OsString| args.extend([OsString::from(name), value]);
        if let Some(p) = &self.config {
            add("--config", p.into());
        }
        if let Some(p) = &self.runtime_dir {
            add("--runtime-dir", p.into());
        }
        for s in &self.set {
            add("--set", s.into());
        }
        if let Some(l) = &self.log {
            add("--log", l.into());
        }
        args
    }

    /// Loads the configuration.
    ///
    /// # Errors
    /// All its faults.
    pub fn load(&self) -> Result<Loaded, Faults> {
        self.load_by(None, std::env::vars_os(), config::load)
    }

    /// Loads what the suite has accepted of the file, whatever the file says now. Without that, and if this program accepts it no
    /// more (it is another version), what the file says.
    ///
    /// # Errors
    /// All its faults.
    pub fn load_accepted(&self, accepted: Option<&Accepted>) -> Result<Loaded, Faults> {
        let Some(accepted) = accepted else { return self.load() };
        let old = accepted.text().map_err(|e| e.to_string());
        match old.and_then(|text| self.load_text(text).map_err(|faults| faults.to_string())) {
            Ok(loaded) => Ok(loaded),
            Err(why) => {
                // before there is a log
                eprintln!("event=config-unusable: the configuration that was accepted: {why}");
                self.load()
            }
        }
    }

    /// The runtime directory by that text and our own options, but for the environment: who started us may have named it there.
    pub fn runtime_dir_by(&self, text: &str) -> Option<PathBuf> {
        let env = std::env::vars_os().filter(|(name, _)| name != "TRAFFIC_RUNTIME_DIR");
        self.load_by(Some(text.to_owned()), env, config::load)
            .ok()
            .map(|loaded| loaded.config.suite.runtime_dir)
    }

    /// Loads that text as if it were the file's.
    ///
    /// # Errors
    /// All its faults.
    pub fn load_text(&self, text: String) -> Result<Loaded, Faults> {
        self.load_by(Some(text), std::env::vars_os(), config::load)
    }

    /// Loads it for a command that only asks a suite that runs: faults are told on stderr, and don't keep it from asking.
    ///
    /// # Errors
    /// All faults, if they leave it in doubt which suite is meant.
    pub fn load_to_ask(&self) -> Result<Config, Faults> {
        let (loaded, faults) = self.load_by(None, std::env::vars_os(), config::load_to_ask)?;
        if let Some(faults) = faults {
            eprintln!("warning: with this configuration a start or a reload would be refused:\n{faults}");
        }
        Ok(loaded.config)
    }

    fn load_by<T>(
        &self,
        text: Option<String>,
        env: impl Iterator<Item = (OsString, OsString)>,
        load: impl Fn(&Sources<'_>) -> Result<T, Faults>,
    ) -> Result<T, Faults> {
        let mut set = self.set.clone();
        if let Some(dir) = &self.runtime_dir {
            let dir = std::path::absolute(dir).unwrap_or(dir.clone());
            set.push(format!("suite.runtime_dir={}", toml::Value::String(dir.display().to_string())));
        }
        if let Some(log) = &self.log {
            set.push(format!("suite.log={}", toml::Value::String(log.clone())));
        }
        load(&Sources { file: self.config.clone(), text, set: &set, env: env.collect() })
    }
}

/// One with a key.
fn pair(text: &str) -> Result<String, &'static str> {
    match text.split_once('=') {
        Some((key, _)) if !key.trim().is_empty() => Ok(text.to_owned()),
        _ => Err("expected KEY=VALUE"),
    }
}

/// Parses the command line; a wrong one ends the program with 64 (clap's own 2 is not one of our codes).
pub fn parse_or_exit<T: clap::Parser>() -> T {
    T::try_parse().unwrap_or_else(|e| {
        let _ = e.print();
        let exit = if e.use_stderr() { Exit::Usage } else { Exit::Done };
        std::process::exit(i32::from(exit.code()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct P {
        #[command(flatten)]
        common: Common,
    }

    #[test]
    fn a_child_program_gets_the_same() {
        let args = ["p", "--config", "/x", "--set", "a=b", "--set", "c=d", "--log", "debug"];
        let common = P::try_parse_from(args).unwrap().common;
        assert_eq!(common.to_args(), &args[1..]);
        let over = Common { log: Some("warn".into()), set: vec!["e=f".into()], ..Common::default() };
        let both = common.with(&over);
        assert_eq!((both.set.len(), both.log.as_deref(), both.config), (3, Some("warn"), Some("/x".into())));
    }

    #[test]
    fn relative_paths_survive_a_change_of_directory() {
        let c = Common { config: Some("a.toml".into()), ..Common::default() }.absolute_to(Path::new("/d"));
        assert_eq!(c.config, Some("/d/a.toml".into()));
    }
}
