//! Man pages in roff: one for each program with all of its commands, and one for the configuration.

use clap::Command;
use clap_mangen::Man;
use traffic::config::job::JOB_KEYS;
use traffic::config::keys::KEYS;
use traffic::config::route::ROUTE_KEYS;

/// Exit codes and signals are described in one place.
const OPERATIONS: &str = include_str!("../../docs/operations.md");

/// The page of a program: what clap makes of it, with a section for each command.
///
/// # Errors
/// Writing to memory, so none.
pub fn program(command: Command) -> std::io::Result<Vec<u8>> {
    let name = command.get_name().to_owned();
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let man = Man::new(command.clone()).section("8").manual("Traffic suite").source(version());
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    out.extend(b".SH COMMANDS\n");
    commands(&mut out, &name, &command)?;
    out.extend(section("EXIT STATUS", "## Exit codes").bytes());
    out.extend(section("SIGNALS", "## Signals").bytes());
    out.extend(files().bytes());
    let others = ["traffic_cop", "traffic_manager", "traffic_server"].into_iter().filter(|o| *o != name);
    let also: Vec<String> = others.map(|o| format!(".BR {o} (8)")).collect();
    out.extend(
        format!(".SH SEE ALSO\n{},\n.BR traffic.toml (5)\n.PP\n/usr/share/doc/traffic\n", also.join(",\n"))
            .bytes(),
    );
    Ok(out)
}

/// A section for each command of `parent`, and for those below them.
fn commands(out: &mut Vec<u8>, parent: &str, command: &Command) -> std::io::Result<()> {
    for sub in command.get_subcommands().filter(|s| !s.is_hide_set() && s.get_name() != "help") {
        let name = format!("{parent} {}", sub.get_name());
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        out.extend(format!(".SS {}\n{}\n", escape(&name), escape(&about)).bytes());
        // clap's own section has a heading of the first order
        let mut options = Vec::new();
        Man::new(sub.clone().disable_help_flag(true)).render_options_section(&mut options)?;
        let options = String::from_utf8_lossy(&options).into_owned();
        out.extend(options.replace(".SH OPTIONS\n", ".PP\n").bytes());
        commands(out, &name, sub)?;
    }
    Ok(())
}

/// traffic.toml(5).
pub fn configuration() -> String {
    let mut out = format!(".TH traffic.toml 5 \"\" \"{}\" \"Traffic suite\"\n", version());
    out += ".SH NAME\ntraffic.toml \\- configuration of traffic_cop, traffic_manager and traffic_server\n";
    out += ".SH DESCRIPTION\nOne TOML file (\\-c FILE, else $TRAFFIC_CONFIG, else /etc/traffic/traffic.toml if it is there; at most 1 MiB); everything has a working default.\n\
            The command line (\\-\\-set KEY=VALUE) goes before the environment, that before the file.\nUnknown keys are errors.\n\
            .B traffic_manager check\\-config\nsays all that is wrong, or the effective values and where each came from.\n";
    let mut section = "";
    for k in KEYS {
        let (s, _) = k.path.rsplit_once('.').unwrap_or(("", k.path));
        if s != section {
            section = s;
            out += &format!(".SH [{}]\n", escape(section));
        }
        let default = if k.default.is_empty() { String::new() } else { format!("; default {}", k.default) };
        out += &format!(
            ".TP\n\\fB{}\\fR ({}{})\n{}\nEnvironment: {}\n",
            escape(k.path),
            escape(k.takes),
            escape(&default),
            escape(k.doc),
            escape(&k.env())
        );
    }
    for (table, keys) in [("route", ROUTE_KEYS), ("job", JOB_KEYS)] {
        out += &format!(".SH [[{table}]]\n");
        for (name, default, doc) in keys {
            let default = if default.is_empty() { "required".into() } else { format!("default {default}") };
            let (name, default, doc) = (escape(name), escape(&default), escape(doc));
            out += &format!(".TP\n\\fB{table}.{name}\\fR ({default})\n{doc}\n");
        }
    }
    out + ".SH SEE ALSO\n.BR traffic_cop (8),\n.BR traffic_manager (8),\n.BR traffic_server (8)\n"
}

fn version() -> String {
    format!("traffic {}", env!("CARGO_PKG_VERSION"))
}

fn files() -> String {
    let list = [
        ("/etc/traffic/traffic.toml", "the configuration, see traffic.toml(5)"),
        ("/run/traffic", "locks and sockets (suite.runtime_dir)"),
        ("/var/lib/traffic", "log, status and cache (suite.state_dir)"),
    ];
    let items: String = list.iter().map(|(f, d)| format!(".TP\n.I {}\n{}\n", escape(f), escape(d))).collect();
    format!(".SH FILES\n{items}")
}

/// The table under a heading of docs/operations.md as tagged paragraphs: first column, then the others.
fn section(title: &str, heading: &str) -> String {
    let after = OPERATIONS.split_once(heading).map_or("", |(_, rest)| rest);
    let rows = after.lines().skip_while(|l| !l.starts_with('|')).take_while(|l| l.starts_with('|'));
    let cells =
        |row: &str| row.trim_matches('|').split('|').map(|c| c.trim().replace('`', "")).collect::<Vec<_>>();
    let mut rows = rows.map(cells);
    let head = rows.next().unwrap_or_default();
    let mut out = format!(".SH {title}\n");
    for row in rows.skip(1) {
        let Some((first, rest)) = row.split_first() else { continue };
        let named = |(n, c): (usize, &String)| match rest.len() {
            1 => c.clone(),
            _ => format!("{}: {c}", head.get(n + 1).map_or("", String::as_str)),
        };
        let text = rest.iter().enumerate().map(named).collect::<Vec<_>>().join("; ");
        out += &format!(".TP\n.B {}\n{}\n", escape(first), escape(&text));
    }
    out
}

/// Text that roff takes as text: no control lines, no escapes, hyphens that can be searched for.
fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let line = |l: &str| if l.starts_with(['.', '\'']) { format!("\\&{l}") } else { l.to_owned() };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}
