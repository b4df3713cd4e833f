//! The table of keys as text: the reference in docs/ and the commented default file.

use super::job::JOB_KEYS;
use super::keys::KEYS;
use super::route::ROUTE_KEYS;

/// docs/configuration.md, whole.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Configuration\n\n\
         One TOML file (`-c FILE`, else `$TRAFFIC_CONFIG`, else `/etc/traffic/traffic.toml` if it is there; at most 1 MiB); everything has a working default.\n\
         Command line (`--set KEY=VALUE`) > environment > file > default. Unknown keys are errors. \
         `traffic_manager check-config` says all that is wrong, or the effective values and where each came from.\n\n\
         This page is made from the parser's own table (`bins/src/config/keys.rs`); a test compares them.\n",
    );
    let mut section = "";
    for k in KEYS {
        let (s, name) = k.path.rsplit_once('.').unwrap_or(("", k.path));
        if s != section {
            section = s;
            out += &format!(
                "\n## [{section}]\n\n| key | takes | default | environment | |\n|---|---|---|---|---|\n"
            );
        }
        let default = if k.default.is_empty() { "see text".into() } else { format!("`{}`", k.default) };
        out += &format!("| `{name}` | {} | {default} | `{}` | {} |\n", k.takes, k.env(), k.doc);
    }
    out += "\n## [[route]]\n\n| key | default | |\n|---|---|---|\n";
    for (name, default, doc) in ROUTE_KEYS {
        let default = if default.is_empty() { "required".into() } else { format!("`{default}`") };
        out += &format!("| `{name}` | {default} | {doc} |\n");
    }
    out += "\n## [[job]]\n\nA program that the manager keeps running (docs/jobs.md).\n\n| key | default | |\n|---|---|---|\n";
    for (name, default, doc) in JOB_KEYS {
        let default = if default.is_empty() { "required".into() } else { format!("`{default}`") };
        out += &format!("| `{name}` | {default} | {doc} |\n");
    }
    out
}

/// The default file: every key with its explanation, commented out, but for those in `active` (path and TOML value).
pub fn default_file(active: &[(&str, &str)]) -> String {
    let mut out = String::from(
        "# Configuration of the traffic suite; see traffic.toml(5). Every key is here; what is commented out is the default.\n\
         # After a change: traffic_manager check-config, then systemctl reload traffic.\n",
    );
    let mut section = "";
    for k in KEYS {
        let (s, name) = k.path.rsplit_once('.').unwrap_or(("", k.path));
        if s != section {
            section = s;
            out += &format!("\n[{section}]\n");
        }
        out += &format!("# {}\n", k.doc);
        out += &match active.iter().find(|(path, _)| *path == k.path) {
            Some((_, value)) => format!("{name} = {value}\n"),
            None if k.default.is_empty() => format!("#{name} = {:?}\n", roots_default(k.path)),
            None => format!("#{name} = {}\n", k.default),
        };
    }
    out += "\n# Where requests go; several are allowed, the longest prefix of the right host wins. Without any there is a welcome page.\n";
    out += "#[[route]]\n#origin = [\"http://127.0.0.1:8081\"]\n# and, with their defaults:\n";
    out += &with_defaults(ROUTE_KEYS);
    out += "\n# Programs that the manager keeps running beside the server (docs/jobs.md); several are allowed.\n";
    out += "#[[job]]\n#name = \"web\"\n#command = [\"/usr/local/bin/web\"]\n# and, with their defaults:\n";
    out + &with_defaults(JOB_KEYS)
}

/// The keys of an array of tables that have a default, as comments.
fn with_defaults(keys: &[(&str, &str, &str)]) -> String {
    let optional = keys.iter().filter(|(_, default, _)| !default.is_empty());
    optional.map(|(name, default, doc)| format!("# {name} = {default}: {doc}\n")).collect()
}

/// What a path comes to when root starts the suite.
fn roots_default(path: &str) -> &'static str {
    match path {
        "suite.runtime_dir" => "/run/traffic",
        "suite.state_dir" => "/var/lib/traffic",
        "suite.log_file" => "/var/lib/traffic/traffic.log",
        "server.access_log_file" => "/var/lib/traffic/access.log",
        "server.cache.path" => "/var/lib/traffic/cache",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    /// Update with `BLESS=1 cargo test -p traffic --lib reference`.
    #[test]
    fn the_page_is_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        let want = super::markdown();
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(path, &want).unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(path).unwrap_or_default(),
            want,
            "BLESS=1 updates docs/configuration.md"
        );
    }
}
