//! The table of keys as text: the reference in docs/ and the commented default file.

use super::keys::KEYS;
use super::route::ROUTE_KEYS;

/// docs/configuration.md, whole.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Configuration\n\n\
         One TOML file (`-c FILE`, else `/etc/traffic/traffic.toml` if it is there); everything has a working default.\n\
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
    out
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
