//! Values of `[manager]`.

use super::value::{self, Raw, Wrong};
use std::path::PathBuf;

/// Where control groups are made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Cgroup {
    /// Where systemd has delegated one.
    #[default]
    Auto,
    /// Nowhere.
    None,
    /// There.
    At(PathBuf),
}

/// `auto`, `none`, or a directory.
pub fn cgroup(v: &Raw) -> Result<Cgroup, Wrong> {
    match value::text(v)?.as_str() {
        "auto" => Ok(Cgroup::Auto),
        "none" => Ok(Cgroup::None),
        _ => value::path(v).map(Cgroup::At).map_err(|e| format!("{e} (or \"auto\", or \"none\")")),
    }
}
