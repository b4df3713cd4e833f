//! The sources, their precedence, and every fault with its place.

use super::Config;
use super::job::{JOB_KEYS, Job};
use super::keys::{self, KEYS, Key};
use super::lines::Lines;
use super::route::{self, Route};
use super::value::Raw;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// Larger files are refused.
pub(super) const MAX_FILE: u64 = 1 << 20;
/// Read when no file is named, if it's there.
pub const DEFAULT_FILE: &str = "/etc/traffic/traffic.toml";

/// Where to look.
#[derive(Debug, Default)]
pub struct Sources<'a> {
    /// A file that must exist; else [`DEFAULT_FILE`] if it's there.
    pub file: Option<PathBuf>,
    /// What the file has said, instead of what it says now.
    pub text: Option<String>,
    /// `KEY=VALUE` of the command line, later ones win.
    pub set: &'a [String],
    /// The environment.
    pub env: Vec<(OsString, OsString)>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The table's default.
    Default,
    /// A line of the file.
    File(usize),
    /// An environment variable.
    Env(String),
    /// `--set`.
    Cli,
    /// The preset.
    Preset,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File(line) => write!(f, "file, line {line}"),
            Source::Env(name) => write!(f, "environment {name}"),
            Source::Cli => f.write_str("command line"),
            Source::Preset => f.write_str("preset"),
        }
    }
}

/// What was loaded.
#[derive(Debug)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// The file, if one was read.
    pub file: Option<PathBuf>,
    /// What it says; empty without a file.
    pub text: String,
    /// For each key as written (`server.listen`): its value as text, and where it came from.
    pub effective: BTreeMap<&'static str, (String, Source)>,
    /// For each job what the file says of it, besides name, workers and command: key, value and line.
    pub job_keys: Vec<Vec<(String, String, Source)>>,
}

impl Loaded {
    /// The effective values, one a line, with their sources.
    pub fn describe(&self) -> String {
        let mut out = String::new();
        for k in KEYS {
            if let Some((value, source)) = self.effective.get(k.path) {
                out += &format!("{:<32} = {value:<28} # {source}\n", k.path);
            }
        }
        for r in &self.config.routes {
            out += &format!("route {}{} -> {}\n", r.host, r.prefix, r.target().unwrap_or_default());
        }
        for (j, keys) in self.config.jobs.iter().zip(&self.job_keys) {
            out += &format!("job {} x{}: {}\n", j.name, j.workers, j.command.join(" "));
            for (key, value, source) in keys {
                out += &format!("    {key:<28} = {value:<28} # {source}\n");
            }
        }
        out
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// `file:line:column`, `environment NAME` or `--set KEY`.
    pub place: String,
    /// What is wrong there.
    pub what: String,
}

/// All that is wrong, in the order of its places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            let end = if i + 1 < self.0.len() { "\n" } else { "" };
            write!(f, "{}: {}{end}", fault.place, fault.what)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Loads everything.
///
/// # Errors
/// All faults of all sources at once.
pub fn load(sources: &Sources<'_>) -> Result<Loaded, Faults> {
    match gather(sources) {
        (loaded, None) => Ok(loaded),
        (_, Some(faults)) => Err(faults),
    }
}

/// Loads what is right, for who only has to find a suite that runs: what is wrong has its default, and is told. That is
/// enough as long as it is certain which runtime directory is meant.
///
/// # Errors
/// All faults, if the file can't be read, or if one of them is about `suite.runtime_dir`.
pub fn load_to_ask(sources: &Sources<'_>) -> Result<(Loaded, Option<Faults>), Faults> {
    let (loaded, faults) = gather(sources);
    let Some(faults) = faults else { return Ok((loaded, None)) };
    let set_elsewhere =
        matches!(loaded.effective.get("suite.runtime_dir"), Some((_, Source::Cli | Source::Env(_))));
    let about = |text: &str| text.to_lowercase().contains("runtime_dir") || text.starts_with("suite is");
    // a file that can't be read at all: what is wrong with it has no line
    let file = loaded.file.as_ref().map(|f| f.display().to_string());
    let in_doubt = |f: &Fault| about(&f.what) || about(&f.place) || Some(&f.place) == file.as_ref();
    match !set_elsewhere && faults.0.iter().any(in_doubt) {
        true => Err(faults),
        false => Ok((loaded, Some(faults))),
    }
}

/// What is right, and what is wrong.
fn gather(sources: &Sources<'_>) -> (Loaded, Option<Faults>) {
    let mut l = Loader::default();
    let found: BTreeMap<OsString, OsString> = sources.env.iter().cloned().collect();
    l.defaults(&found);
    // there is one, or there was one
    let had_text = sources.text.as_ref().is_some_and(|t| !t.is_empty());
    let default = || Some(PathBuf::from(DEFAULT_FILE)).filter(|p| had_text || p.exists());
    let file = sources.file.clone().or_else(default);
    let mut text = String::new();
    if let Some(path) = &file {
        match sources.text.clone().map_or_else(|| read(path), Ok) {
            Ok(found) => {
                l.file(path, &found);
                text = found;
            }
            Err(why) => l.fault(path.display().to_string(), why),
        }
    }
    l.env(&found);
    l.cli(sources.set);
    l.preset();
    l.whole(file.as_deref());
    let faults = (!l.faults.is_empty()).then_some(Faults(l.faults));
    (Loaded { config: l.config, file, text, effective: l.effective, job_keys: l.job_keys }, faults)
}

#[derive(Default)]
struct Loader {
    config: Config,
    effective: BTreeMap<&'static str, (String, Source)>,
    job_keys: Vec<Vec<(String, String, Source)>>,
    /// Where each job says on what it listens.
    job_listens: Vec<String>,
    faults: Vec<Fault>,
}

impl Loader {
    fn fault(&mut self, place: impl Into<String>, what: impl Into<String>) {
        self.faults.push(Fault { place: place.into(), what: what.into() });
    }

    fn set(&mut self, key: &'static Key, value: &Raw, place: impl Fn() -> String, source: Source) {
        match (key.set)(&mut self.config, value) {
            Ok(()) => {
                self.effective.insert(key.path, (value.to_string(), source));
            }
            Err(why) => self.fault(place(), format!("{}: {why}", key.path)),
        }
    }

    fn defaults(&mut self, env: &BTreeMap<OsString, OsString>) {
        for key in KEYS {
            let text = match key.default {
                "" => user_default(key.path, env).map(Raw::Text),
                toml => parse_text(toml).ok(),
            };
            if let Some(value) = text {
                self.set(key, &value, || "default".into(), Source::Default);
            }
        }
    }

    fn env(&mut self, env: &BTreeMap<OsString, OsString>) {
        for key in KEYS {
            let name = key.env();
            let Some(value) = env.get(OsStr::new(&name)) else { continue };
            let place = format!("environment {name}");
            match value.to_str() {
                Some(text) => {
                    let raw = loose(key, text);
                    self.set(key, &raw, || place.clone(), Source::Env(name.clone()));
                }
                None => self.fault(place, "not UTF-8"),
            }
        }
    }

    fn cli(&mut self, set: &[String]) {
        for pair in set {
            let Some((name, text)) = pair.split_once('=') else {
                self.fault(format!("--set {pair}"), "expected KEY=VALUE");
                continue;
            };
            let name = name.trim();
            match keys::find(name) {
                Some(key) => {
                    let raw = loose(key, text);
                    self.set(key, &raw, || format!("--set {name}"), Source::Cli);
                }
                None => self.fault(format!("--set {name}"), unknown(name)),
            }
        }
    }

    /// A preset counts where nothing was said.
    fn preset(&mut self) {
        if self.config.cop.preset != super::Preset::Classic {
            return;
        }
        for (path, text) in keys::CLASSIC {
            let silent = matches!(self.effective.get(path), Some((_, Source::Default)));
            if let (true, Some(key), Ok(value)) = (silent, keys::find(path), parse_text(text)) {
                self.set(key, &value, || "cop.preset".into(), Source::Preset);
            }
        }
    }

    // ---- the file ----

    fn file(&mut self, path: &Path, text: &str) {
        let shown = path.display().to_string();
        let lines = Lines::of(text);
        let place = |span: Range<usize>| {
            let (line, column) = lines.at(span.start);
            format!("{shown}:{line}:{column}")
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        for e in errors {
            self.fault(place(e.span().unwrap_or(0..0)), e.message().to_owned());
        }
        let line = |span: Range<usize>| Source::File(lines.at(span.start).0);
        self.table("", table.get_ref(), &place, &line);
    }

    /// Goes down the tables, joining names with dots.
    fn table(
        &mut self,
        above: &str,
        table: &DeTable<'_>,
        place: &impl Fn(Range<usize>) -> String,
        line: &impl Fn(Range<usize>) -> Source,
    ) {
        for (name, value) in table {
            let path = if above.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{above}.{}", name.get_ref())
            };
            if path == "route" {
                self.routes(value, place);
            } else if path == "job" {
                self.jobs(value, place, line);
            } else if let Some(key) = keys::find(&path) {
                self.set(key, &raw(value.get_ref()), || place(value.span()), line(value.span()));
            } else if let (DeValue::Table(t), true) = (value.get_ref(), is_section(&path)) {
                self.table(&path, t, place, line);
            } else if is_section(&path) {
                let what =
                    format!("{path} is a section: expected a table, got {}", raw(value.get_ref()).kind());
                self.fault(place(value.span()), what);
            } else {
                self.fault(place(name.span()), unknown(&path));
            }
        }
    }

    fn routes(&mut self, value: &toml::Spanned<DeValue<'_>>, place: &impl Fn(Range<usize>) -> String) {
        let DeValue::Array(list) = value.get_ref() else {
            return self.fault(place(value.span()), "route: is an array of tables: write [[route]]");
        };
        for item in list.iter() {
            let DeValue::Table(t) = item.get_ref() else {
                self.fault(place(item.span()), "route: expected a table");
                continue;
            };
            let mut r = Route::default();
            let mut named = false;
            for (name, value) in t {
                let Some(outcome) = r.set(name.get_ref(), &raw(value.get_ref())) else {
                    let known = route::ROUTE_KEYS.iter().map(|k| k.0).collect::<Vec<_>>().join(", ");
                    let what = format!("unknown key route.{}; known are {known}", name.get_ref());
                    self.fault(place(name.span()), what);
                    continue;
                };
                named |= ["origin", "respond", "redirect"].contains(&name.get_ref().as_ref());
                if let Err(why) = outcome {
                    self.fault(place(value.span()), format!("route.{}: {why}", name.get_ref()));
                }
            }
            if !named {
                self.fault(place(item.span()), "route: needs an origin (or respond, or redirect)");
            } else if r.has_several_targets() {
                self.fault(place(item.span()), "route: origin, respond and redirect exclude each other");
            }
            if self.config.routes.iter().any(|o| (&o.host, &o.prefix) == (&r.host, &r.prefix)) {
                self.fault(place(item.span()), format!("route: {}{} is there twice", r.host, r.prefix));
            }
            self.config.routes.push(r);
        }
    }

    fn jobs(
        &mut self,
        value: &toml::Spanned<DeValue<'_>>,
        place: &impl Fn(Range<usize>) -> String,
        line: &impl Fn(Range<usize>) -> Source,
    ) {
        let DeValue::Array(list) = value.get_ref() else {
            return self.fault(place(value.span()), "job: is an array of tables: write [[job]]");
        };
        let (mut places, mut names) = (Vec::new(), HashSet::new());
        for item in list.iter() {
            let DeValue::Table(t) = item.get_ref() else {
                self.fault(place(item.span()), "job: expected a table");
                continue;
            };
            let mut j = Job::default();
            for (name, value) in t {
                let Some(outcome) = j.set(name.get_ref(), &raw(value.get_ref())) else {
                    let known = JOB_KEYS.iter().map(|k| k.0).collect::<Vec<_>>().join(", ");
                    let what = format!("unknown key job.{}; known are {known}", name.get_ref());
                    self.fault(place(name.span()), what);
                    continue;
                };
                if let Err(why) = outcome {
                    self.fault(place(value.span()), format!("job.{}: {why}", name.get_ref()));
                }
            }
            for required in ["name", "command"] {
                if !t.keys().any(|k| k.get_ref() == required) {
                    self.fault(place(item.span()), format!("job: needs a {required}"));
                }
            }
            if !j.name.is_empty() && !names.insert(j.name.clone()) {
                self.fault(place(item.span()), format!("job: {:?} is there twice", j.name));
            }
            let at = |key: &str| {
                let found = t.iter().find(|(k, _)| k.get_ref() == key);
                place(found.map_or(item.span(), |(_, v)| v.span()))
            };
            for (key, why) in j.contradictions() {
                self.fault(at(key), format!("job.{key}: {why}"));
            }
            self.job_listens.push(at("listen"));
            let told = |key: &str| ["name", "workers", "command"].contains(&key);
            let others = t.iter().filter(|(key, _)| !told(key.get_ref()));
            let said =
                others.map(|(k, v)| (k.get_ref().to_string(), raw(v.get_ref()).to_string(), line(v.span())));
            self.job_keys.push(said.collect());
            self.config.jobs.push(j);
            places.push(item.span());
        }
        let table: Vec<_> = self.config.jobs.iter().map(|j| (j.name.clone(), j.after.clone())).collect();
        if let Err(mistake) = policy::jobs::Order::new(&table) {
            let names: Vec<String> = table.into_iter().map(|(n, _)| n).collect();
            let at = places.get(mistake.job()).cloned().unwrap_or(value.span());
            self.fault(place(at), format!("job.after: {}", mistake.with(&names)));
        }
    }

    /// What can only be seen when all is there.
    fn whole(&mut self, file: Option<&Path>) {
        let place = |l: &Loader, key: &'static str| match l.effective.get(key) {
            Some((_, Source::File(line))) => {
                format!("{}:{line}", file.unwrap_or(Path::new("?")).display())
            }
            Some((_, Source::Env(name))) => format!("environment {name}"),
            Some((_, Source::Cli)) => format!("--set {key}"),
            _ => key.to_owned(),
        };
        let at = place(self, "server.listen");
        let of_server = self.config.server.listen.iter().map(|l| (l.clone(), at.clone(), None));
        let jobs = self.config.jobs.iter().zip(&self.job_listens);
        let of_jobs = jobs.flat_map(|(job, at)| {
            job.listen.iter().map(move |l| (l.clone(), at.clone(), Some(job.name.clone())))
        });
        let wanted: Vec<_> = of_server.chain(of_jobs).filter(|(l, ..)| !l.is_any_port()).collect();
        let mut taken = HashMap::new();
        for (l, at, job) in wanted {
            let what = match (&job, taken.get(&l)) {
                (_, None) => {
                    taken.insert(l, job);
                    continue;
                }
                (None, Some(_)) => format!("server.listen: {l} is there twice"),
                (Some(_), Some(None)) => format!("job.listen: {l} is there already, by server.listen"),
                (Some(_), Some(Some(by))) => format!("job.listen: {l} is there already, by job {by:?}"),
            };
            self.fault(at, what);
        }
        if self.config.server.listen.is_empty() {
            self.fault(place(self, "server.listen"), "server.listen: needs at least one address");
        }
        if self.config.suite.group.is_some() && self.config.suite.user.is_none() {
            self.fault(place(self, "suite.group"), "suite.group: needs suite.user");
        }
        // the longest name we put there, with its slash
        let longest = self.config.suite.runtime_dir.join("manager.notify");
        let bytes = longest.as_os_str().len();
        if bytes > supervisor::dirs::MAX_SOCKET_PATH {
            let what = format!(
                "suite.runtime_dir: {} would be {bytes} bytes; the path of a Unix socket has at most 107",
                longest.display()
            );
            self.fault(place(self, "suite.runtime_dir"), what);
        }
    }
}

fn unknown(path: &str) -> String {
    match keys::nearest(path) {
        Some(near) => format!("unknown key {path}; did you mean {near}?"),
        None => format!("unknown key {path}"),
    }
}

fn is_section(path: &str) -> bool {
    KEYS.iter().any(|k| k.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// The text of a file that people write.
///
/// # Errors
/// It can't be read, is larger than a mebibyte, or is no UTF-8.
pub fn read(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|e| format!("cannot be opened: {e}"))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("is larger than {MAX_FILE} bytes"));
    }
    String::from_utf8(bytes)
        .map_err(|e| format!("is not UTF-8 from byte {} on", e.utf8_error().valid_up_to()))
}

pub(crate) fn raw(v: &DeValue<'_>) -> Raw {
    match v {
        DeValue::String(s) => Raw::Text(s.to_string()),
        DeValue::Integer(i) => match i64::from_str_radix(&i.as_str().replace('_', ""), i.radix()) {
            Ok(n) => Raw::Int(n),
            Err(_) => Raw::Other("an integer that is too large"),
        },
        DeValue::Float(f) => f.as_str().replace('_', "").parse().map_or(Raw::Other("a float"), Raw::Float),
        DeValue::Boolean(b) => Raw::Bool(*b),
        DeValue::Array(list) => Raw::List(list.iter().map(|v| raw(v.get_ref())).collect()),
        DeValue::Table(_) => Raw::Other("a table"),
        DeValue::Datetime(_) => Raw::Other("a date"),
    }
}

/// A value as it stands in a file.
pub(super) fn parse_text(toml: &str) -> Result<Raw, ()> {
    DeValue::parse(toml).map(|v| raw(v.get_ref())).map_err(|_| ())
}

/// A value of the environment or the command line: TOML, or bare text where text is taken; lists may be given with commas.
fn loose(key: &Key, text: &str) -> Raw {
    let array = key.takes.starts_with("array");
    match parse_text(text) {
        Ok(v) => v,
        Err(()) if array => Raw::List(text.split(',').map(|s| Raw::Text(s.trim().to_owned())).collect()),
        Err(()) => Raw::Text(text.to_owned()),
    }
}

/// Defaults that depend on who asks.
fn user_default(path: &str, env: &BTreeMap<OsString, OsString>) -> Option<String> {
    let uid = rustix::process::geteuid().as_raw();
    let var = |k: &str| env.get(OsStr::new(k)).and_then(|v| v.to_str()).filter(|v| v.starts_with('/'));
    match path {
        "suite.runtime_dir" if uid == 0 => Some("/run/traffic".into()),
        "suite.runtime_dir" => Some(match var("XDG_RUNTIME_DIR") {
            Some(dir) => format!("{dir}/traffic"),
            None => format!("/tmp/traffic-{uid}"),
        }),
        "suite.state_dir" if uid == 0 => Some("/var/lib/traffic".into()),
        "suite.state_dir" => Some(match (var("XDG_STATE_HOME"), var("HOME")) {
            (Some(dir), _) => format!("{dir}/traffic"),
            (None, Some(home)) => format!("{home}/.local/state/traffic"),
            (None, None) => format!("/tmp/traffic-{uid}-state"),
        }),
        _ => None,
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
