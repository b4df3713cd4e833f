//! `traffic_manager import FILE`: the programs of another supervisor's configuration as `[[job]]`s, with what couldn't be
//! translated as comments beside them.
//!
//! Every value goes through the parser of the key that it is for, so what is printed passes `check-config`; one that it
//! refuses becomes a comment. Read in this order: this file, `ini` and `supervisord`, `procfile`.

mod ini;
mod procfile;
mod supervisord;

use crate::config::Job;
use crate::config::load;
use crate::config::value::Raw;
use crate::exit::Exit;
use crate::logging::Fatal;
use std::path::Path;

/// More jobs than these are a mistake.
const MAX_JOBS: usize = 1000;
/// Of what is quoted in a comment.
const MAX_QUOTE: usize = 200;

/// Prints the translation of a file.
///
/// # Errors
/// It can't be read, or isn't what it seems to be: with file and line.
pub fn run(file: &Path) -> anyhow::Result<Exit> {
    let shown = file.display().to_string();
    let wrong = |what: String| Fatal::new(Exit::Config, format!("{shown}: {what}"));
    let text = load::read(file).map_err(wrong)?;
    let here = std::path::absolute(file)?.parent().map_or("/".into(), Path::to_owned);
    let variable = |name: &str| std::env::var(name).ok();
    print!("{}", translated(&text, &shown, &here, &variable).map_err(|e| Fatal::new(Exit::Config, e))?);
    Ok(Exit::Done)
}

/// The translation of what is in the file `shown` in the directory `here`, with that environment.
///
/// # Errors
/// It isn't what it seems to be: with file and line.
pub fn translated(
    text: &str,
    shown: &str,
    here: &Path,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<String, String> {
    let all = translate(text, &Context { here, variable });
    all.map(|all| all.render(shown)).map_err(|e| format!("{shown}:{}: {}", e.line, e.why))
}

/// What a file's text depends on.
struct Context<'a> {
    /// The directory it is in.
    here: &'a Path,
    /// The environment.
    variable: &'a dyn Fn(&str) -> Option<String>,
}

/// Why a file can't be read at all.
#[derive(Debug, PartialEq)]
struct Mistake {
    line: usize,
    why: String,
}

fn translate(text: &str, context: &Context<'_>) -> Result<Translated, Mistake> {
    if let Some(at) = text.find('\0') {
        let line = text[..at].lines().count().max(1);
        return Err(Mistake { line, why: "it is no text".into() });
    }
    let first = text.lines().map(str::trim).find(|l| !l.is_empty() && !l.starts_with(['#', ';']));
    let all = match first {
        Some(line) if line.starts_with('[') => supervisord::translate(&ini::parse(text)?, context),
        Some(_) => procfile::translate(text, context)?,
        None => return Err(Mistake { line: 1, why: "nothing is in it".into() }),
    };
    match all.jobs.len() {
        0..=MAX_JOBS => Ok(all),
        n => Err(Mistake { line: 1, why: format!("{n} jobs; at most {MAX_JOBS} are taken") }),
    }
}

/// What a file comes to.
#[derive(Debug, Default)]
struct Translated {
    jobs: Vec<Draft>,
    /// About the file as a whole.
    notes: Vec<String>,
}

impl Translated {
    fn note(&mut self, line: usize, what: &str) {
        self.notes.push(format!("line {line}: {what}"));
    }

    /// A name that is allowed, and that no other job has.
    fn name(&self, wanted: &str) -> String {
        let fits = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
        let mut name: String = wanted.chars().map(fits).take(32).collect();
        if name.is_empty() || name == "server" {
            name.push_str("job");
        }
        let free = |name: &str| self.jobs.iter().all(|j| j.name != name);
        let other = |n: usize| {
            let end = format!("-{n}");
            name.chars().take(32 - end.len()).collect::<String>() + &end
        };
        if free(&name) { name } else { (2..).map(other).find(|n| free(n)).unwrap_or_default() }
    }

    fn render(&self, file: &str) -> String {
        let mut out = format!(
            "# Made from {} by traffic_manager import. What has no place here is in comments: look at them.\n",
            one_line(file)
        );
        self.notes.iter().for_each(|n| out += &format!("# {}\n", one_line(n)));
        for job in &self.jobs {
            out.push('\n');
            out += &job.render();
        }
        out
    }
}

/// One job to be.
#[derive(Debug)]
struct Draft {
    name: String,
    /// What the keys that were set come to.
    job: Job,
    keys: Vec<(&'static str, Raw)>,
    notes: Vec<String>,
    /// Why it can't be one.
    broken: Option<String>,
}

impl Draft {
    fn new(name: String) -> Draft {
        let job = Job::default();
        let mut draft = Draft { name: name.clone(), job, keys: Vec::new(), notes: Vec::new(), broken: None };
        draft.set("name", Raw::Text(name));
        draft
    }

    /// Sets a key, or says why not.
    fn set(&mut self, key: &'static str, value: Raw) {
        let mut next = self.job.clone();
        match next.set(key, &value) {
            Some(Ok(())) => {
                self.job = next;
                self.keys.retain(|(k, _)| *k != key);
                self.keys.push((key, value));
            }
            Some(Err(why)) => self.note(format!("{key} = {value}: {why}")),
            None => self.note(format!("there is no key {key}")),
        }
    }

    fn text(&mut self, key: &'static str, value: impl Into<String>) {
        self.set(key, Raw::Text(value.into()));
    }

    fn list(&mut self, key: &'static str, values: Vec<String>) {
        self.set(key, Raw::List(values.into_iter().map(Raw::Text).collect()));
    }

    fn note(&mut self, what: impl Into<String>) {
        self.notes.push(what.into());
    }

    fn render(&self) -> String {
        let mut out = String::from("[[job]]\n");
        for (key, value) in &self.keys {
            out += &format!("{key} = {}\n", toml_of(value));
        }
        let missing = self.job.command.is_empty().then(|| "it has no command".to_owned());
        let contradicts = || {
            let mut all = self.job.contradictions().into_iter();
            all.next().map(|(key, why)| format!("{key}: {why}"))
        };
        if let Some(why) = self.broken.clone().or(missing).or_else(contradicts) {
            out = out.lines().map(|l| format!("#{l}\n")).collect();
            out = format!("# {:?} can't be translated: {}\n{out}", self.name, one_line(&why));
        }
        self.notes.iter().for_each(|n| out += &format!("# not translated: {}\n", one_line(n)));
        out
    }
}

fn toml_of(value: &Raw) -> String {
    match value {
        Raw::Text(s) => toml::Value::String(s.clone()).to_string(),
        Raw::List(l) => format!("[{}]", l.iter().map(toml_of).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

/// Fit for a comment.
fn one_line(text: &str) -> String {
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let short: String = printable.take(MAX_QUOTE).collect();
    short.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;
    use proptest::prelude::*;

    pub(super) fn printed(text: &str) -> String {
        let variable = |name: &str| (name == "HOME").then(|| "/home/me".to_owned());
        let context = Context { here: Path::new("/srv/app"), variable: &variable };
        match translate(text, &context) {
            Ok(all) => all.render("FILE"),
            Err(e) => format!("line {}: {}", e.line, e.why),
        }
    }

    /// The parser of the configuration takes it.
    pub(super) fn check(toml: &str) -> crate::config::Config {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.toml");
        std::fs::write(&file, toml).unwrap();
        let loaded = load(&crate::config::Sources { file: Some(file), ..crate::config::Sources::default() });
        loaded.unwrap_or_else(|e| panic!("{e}\n{toml}")).config
    }

    #[test]
    fn names_are_made_to_fit_and_differ() {
        let toml = printed("web: a\nweb: b\nserver: c\nthis_name_is_much_longer_than_it_may_be_here: d\n");
        let names: Vec<String> = check(&toml).jobs.into_iter().map(|j| j.name).collect();
        assert_eq!(names, ["web", "web-2", "serverjob", "this_name_is_much_longer_than_it"]);
    }

    #[test]
    fn what_is_nothing_says_so() {
        assert_eq!(printed("# only\n\n"), "line 1: nothing is in it");
        assert_eq!(printed("web: a\nb\0: c\n"), "line 2: it is no text");
    }

    const KEYS: &[&str] = &[
        "command",
        "process_name",
        "numprocs",
        "numprocs_start",
        "directory",
        "umask",
        "priority",
        "autostart",
        "autorestart",
        "startsecs",
        "startretries",
        "exitcodes",
        "stopsignal",
        "stopwaitsecs",
        "stopasgroup",
        "killasgroup",
        "user",
        "redirect_stderr",
        "stdout_logfile",
        "stderr_logfile",
        "stdout_logfile_maxbytes",
        "stderr_logfile_maxbytes",
        "stdout_logfile_backups",
        "stderr_logfile_backups",
        "environment",
        "socket",
    ];

    proptest! {
        #[test]
        fn whatever_is_read_what_is_printed_is_taken(text in "(\\[program:[a-z%]{0,3}\\]\n|[a-z_]{1,12}[=:][^\n]{0,20}\n|[ -~\n]{0,20}){0,12}") {
            let out = printed(&text);
            prop_assert!(out.starts_with("line ") || !check(&out).jobs.is_empty() || !out.contains("\n[[job]]"));
        }

        #[test]
        fn keys_of_programs_with_any_value(
            key in prop::sample::select(KEYS.to_vec()), value in "[ -~]{0,24}"
        ) {
            check(&printed(&format!("[program:x]\ncommand=true\n{key}={value}\n")));
        }
    }
}
