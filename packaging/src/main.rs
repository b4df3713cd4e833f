//! Writes what a package needs besides the programs: man pages, completions, the default configuration.
//!
//! Everything comes from the tables of the parsers (clap's, and `traffic::config::keys`), so it can't differ from what the
//! programs take. `cargo run -p packaging -- DIR` writes `DIR/man`, `DIR/completions` and `DIR/traffic.toml`.

mod completions;
mod man;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;
use std::fs;
use std::path::{Path, PathBuf};

/// The three programs.
fn programs() -> [clap::Command; 3] {
    [traffic::cop::Cli::command(), traffic::manager::Cli::command(), traffic::server::Cli::command()]
}

fn main() -> anyhow::Result<()> {
    let dir = std::env::args_os().nth(1).map(PathBuf::from).context("usage: packaging DIR")?;
    write_all(&dir)
}

/// Writes everything.
fn write_all(dir: &Path) -> anyhow::Result<()> {
    let (man_dir, completions) = (dir.join("man"), dir.join("completions"));
    for d in [&man_dir, &completions] {
        fs::create_dir_all(d).with_context(|| format!("making {}", d.display()))?;
    }
    for program in programs() {
        let name = program.get_name().to_owned();
        fs::write(man_dir.join(format!("{name}.8")), man::program(program.clone())?)?;
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let out = completions::script(shell, &program)?;
            let file = match shell {
                Shell::Bash => name.clone(),
                Shell::Zsh => format!("_{name}"),
                _ => format!("{name}.fish"),
            };
            fs::write(completions.join(file), out)?;
        }
    }
    fs::write(man_dir.join("traffic.toml.5"), man::configuration())?;
    let file = traffic::config::reference::default_file(&[
        ("suite.user", "\"traffic\""),
        ("manager.admin", "\"127.0.0.1:8083\""),
    ]);
    fs::write(dir.join("traffic.toml"), file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use traffic::config::job::JOB_KEYS;
    use traffic::config::keys::KEYS;
    use traffic::config::route::ROUTE_KEYS;
    use traffic::config::{Sources, load};

    #[test]
    fn everything_is_written_and_names_every_command_and_key() {
        let dir = tempfile::tempdir().unwrap();
        write_all(dir.path()).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        for program in programs() {
            let name = program.get_name();
            let page = read(&format!("man/{name}.8")).replace("\\-", "-");
            let direct = program.get_subcommands().map(|s| (name.to_owned(), s));
            let below = program.get_subcommands().flat_map(|parent| {
                parent.get_subcommands().map(move |s| (format!("{name} {}", parent.get_name()), s))
            });
            for (parent, sub) in direct.chain(below).filter(|(_, s)| !s.is_hide_set()) {
                assert!(
                    page.contains(&format!("{parent} {}", sub.get_name())),
                    "{parent} {}",
                    sub.get_name()
                );
                for long in sub.get_arguments().filter(|a| !a.is_hide_set()).filter_map(|a| a.get_long()) {
                    assert!(page.contains(&format!("--{long}")), "{name}.8 lacks --{long}");
                    for file in [format!("completions/{name}"), format!("completions/_{name}")] {
                        assert!(read(&file).contains(&format!("--{long}")), "{file} lacks --{long}");
                    }
                }
            }
            assert!(read(&format!("completions/{name}.fish")).contains(name));
        }
        let page = read("man/traffic.toml.5").replace("\\-", "-");
        for key in KEYS {
            assert!(page.contains(key.path), "traffic.toml.5 lacks {}", key.path);
        }
        for (table, keys) in [("route", ROUTE_KEYS), ("job", JOB_KEYS)] {
            for (key, _, _) in keys {
                assert!(page.contains(&format!("{table}.{key}")), "traffic.toml.5 lacks {table}.{key}");
            }
        }
    }

    /// The default file is right as it is, and with every one of its keys made active.
    #[test]
    fn the_default_file_is_taken_by_the_parser() {
        let dir = tempfile::tempdir().unwrap();
        write_all(dir.path()).unwrap();
        let path = dir.path().join("traffic.toml");
        let take =
            |path: &Path| load(&Sources { file: Some(path.to_owned()), ..Sources::default() }).unwrap();
        let shipped = take(&path);
        assert_eq!(shipped.config.suite.user.as_deref(), Some("traffic"));
        let text = fs::read_to_string(&path).unwrap();
        let active: String = text
            .lines()
            .map(|l| l.strip_prefix('#').filter(|l| !l.starts_with(' ')).unwrap_or(l).to_owned() + "\n")
            .collect();
        let all = dir.path().join("all.toml");
        fs::write(&all, active).unwrap();
        let all = take(&all);
        let from_file: BTreeSet<&str> = all
            .effective
            .iter()
            .filter(|(_, (_, source))| matches!(source, traffic::config::Source::File(_)))
            .map(|(k, _)| *k)
            .collect();
        assert_eq!(from_file, KEYS.iter().map(|k| k.path).collect());
        for k in KEYS.iter().filter(|k| !k.default.is_empty()) {
            assert_eq!(all.effective[k.path].0, shipped.effective[k.path].0, "{}", k.path);
        }
        assert_eq!((all.config.routes.len(), all.config.jobs.len()), (1, 1));
        for (key, default, _) in
            ROUTE_KEYS.iter().chain(JOB_KEYS).filter(|(_, default, _)| !default.is_empty())
        {
            assert!(text.contains(&format!("# {key} = {default}: ")), "traffic.toml lacks {key}");
        }
    }
}
