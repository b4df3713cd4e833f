//! supervisord.conf: each `[program:x]` is a job; what applies to all of them, or to supervisord itself, is said.

use super::ini::{Entry, Section};
use super::{Context, Draft, MAX_JOBS, Translated};
use crate::config::job::MARK;
use crate::config::value::Raw;
use std::path::{Path, PathBuf};

/// Instead of a priority.
const ORDER: &str = "jobs start in the order of `after`, when those before them are ready";

/// Translates it.
pub(super) fn translate(sections: &[Section], context: &Context<'_>) -> Translated {
    let mut all = Translated::default();
    let general = sections.iter().find(|s| s.name == "supervisord");
    let environment = general.and_then(|s| s.get("environment"));
    for s in sections {
        match s.name.split_once(':').unwrap_or((&s.name, "")) {
            ("program" | "fcgi-program", name) => program(&mut all, s, name, environment, context),
            ("supervisord", _) => {
                for e in s.entries.iter().filter(|e| e.key != "environment") {
                    all.note(e.line, &format!("[supervisord] {} = {}", e.key, e.value));
                }
            }
            ("group", name) => {
                let programs = s.get("programs").map_or("", |e| &e.value);
                all.note(s.line, &format!("there are no groups: {name} was {programs}"));
                for e in s.entries.iter().filter(|e| e.key != "programs") {
                    all.note(e.line, &format!("[group:{name}] {} = {}: {ORDER}", e.key, e.value));
                }
            }
            ("include", _) => {
                let files = s.get("files").map_or("", |e| &e.value);
                all.note(s.line, &format!("import each of these too: {files}"));
            }
            _ => all.note(s.line, &format!("[{}] has no place here", s.name)),
        }
        if all.jobs.len() > MAX_JOBS {
            break;
        }
    }
    all
}

/// One program: a job, or one for each process if they differ by their number.
fn program(all: &mut Translated, s: &Section, name: &str, general: Option<&Entry>, context: &Context<'_>) {
    let number = |key: &str, default: usize| match s.get(key) {
        Some(e) => e.value.parse().unwrap_or(default),
        None => default,
    };
    let (count, first) = (number("numprocs", 1), number("numprocs_start", 0));
    let differ = s.entries.iter().any(|e| e.key != "process_name" && e.value.contains("%(process_num)"));
    let mut expander = Expander { program: name, number: first, count, context };
    if count <= 1 || !differ {
        let mut job = Draft::new(all.name(name));
        keys(&mut job, s, general, &expander);
        if count != 1 {
            job.set("workers", Raw::Int(count.min(i64::MAX as usize) as i64));
        }
        return all.jobs.push(job);
    }
    for n in 0..count.min(MAX_JOBS + 1) {
        expander.number = first.saturating_add(n);
        let mut job = Draft::new(all.name(&format!("{name}-{}", expander.number)));
        keys(&mut job, s, general, &expander);
        all.jobs.push(job);
    }
}

fn keys(job: &mut Draft, s: &Section, general: Option<&Entry>, x: &Expander<'_>) {
    // what isn't said has another default there
    job.set("inherit_env", Raw::Bool(true));
    job.text("restart", "on-failure");
    let mut env: Vec<String> = Vec::new();
    for e in general.into_iter().chain(s.get("environment")) {
        match x.expand(&e.value).and_then(|text| variables(&text)) {
            Ok(list) => env.extend(list),
            Err(why) => job.note(format!("line {}: environment = {}: {why}", e.line, e.value)),
        }
    }
    if !env.is_empty() {
        job.list("env", env);
    }
    for e in s.entries.iter().filter(|e| e.key != "environment") {
        match x.expand(&e.value) {
            Ok(value) => key(job, e, &value, x.context),
            Err(why) if e.key == "command" => job.broken = Some(format!("line {}: {why}", e.line)),
            Err(_) if e.key == "process_name" => {}
            Err(why) => job.note(format!("line {}: {} = {}: {why}", e.line, e.key, e.value)),
        }
    }
    if s.name.starts_with("fcgi-") && !job.job.command.is_empty() {
        // it accepts on its standard input
        let script = ["sh", "-c", "exec \"$@\" <&3 3<&-", "sh"].map(str::to_owned);
        let command = script.into_iter().chain(job.job.command.clone()).collect();
        job.list("command", command);
    }
    let same = |e: &Entry| is_true(&e.value);
    if s.get("redirect_stderr").is_some_and(same) {
        let stdout = job.keys.iter().find(|(k, _)| *k == "stdout").map(|(_, v)| v.clone());
        job.set("stderr", stdout.unwrap_or_else(|| Raw::Text("log".into())));
    }
}

fn key(job: &mut Draft, e: &Entry, value: &str, context: &Context<'_>) {
    let mut not = |why: &str| job.note(format!("line {}: {} = {value}: {why}", e.line, e.key));
    let path = match at_home(value, context) {
        Some(path) => path,
        None if ["directory", "stdout_logfile", "stderr_logfile"].contains(&e.key.as_str()) => {
            return not("whose home that is isn't known here");
        }
        None => value.to_owned(),
    };
    match e.key.as_str() {
        "command" => match shlex::split(value) {
            Some(words) if !words.is_empty() => job.list("command", words),
            _ => job.broken = Some(format!("line {}: {value:?} is no command", e.line)),
        },
        "directory" => job.text("cwd", absolute(&path, context.here)),
        "umask" => job.text("umask", value),
        "autostart" => job.set("autostart", Raw::Bool(is_true(value))),
        "autorestart" if value.eq_ignore_ascii_case("unexpected") => job.text("restart", "on-failure"),
        "autorestart" => job.text("restart", if is_true(value) { "always" } else { "never" }),
        "startsecs" => job.text("ready", format!("running {value}s")),
        "startretries" => job.set("give_up_after", integer(value)),
        "exitcodes" if value.trim() != "0" => not("only code 0 is a success"),
        "stopsignal" => {
            job.text("stop_signal", format!("SIG{}", value.to_uppercase().trim_start_matches("SIG")))
        }
        "stopwaitsecs" => job.text("stop_timeout", format!("{value}s")),
        "stopasgroup" if is_true(value) => {
            not("the stop signal goes to the first process; when that has ended, its group is killed");
        }
        "user" => job.text("user", value),
        "stdout_logfile" => log_file(job, "stdout", &path, context.here),
        "stderr_logfile" => log_file(job, "stderr", &path, context.here),
        "stdout_logfile_maxbytes" => job.text("output_max_size", binary_size(value)),
        "stdout_logfile_backups" => job.set("output_keep", integer(value)),
        "socket" => job.list("listen", vec![socket(value)]),
        "priority" => not(ORDER),
        "stderr_logfile_maxbytes" | "stderr_logfile_backups" => not("it is that of standard output"),
        // the numbers are dealt with; the others are as they are here
        "numprocs" | "numprocs_start" if value.parse::<usize>().is_err() => not("it is no number"),
        "exitcodes" | "stopasgroup" | "killasgroup" | "redirect_stderr" | "numprocs" | "numprocs_start"
        | "process_name" => {}
        _ => not("there is nothing like it"),
    }
}

fn is_true(value: &str) -> bool {
    ["true", "t", "on", "yes", "y", "1"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

/// A number, or what isn't one for the parser to refuse.
fn integer(value: &str) -> Raw {
    value.parse().map_or_else(|_| Raw::Text(value.to_owned()), Raw::Int)
}

/// `50MB` are 50 MiB there.
fn binary_size(value: &str) -> String {
    let upper = value.to_uppercase();
    let unit = ["KB", "MB", "GB"].into_iter().find(|u| upper.ends_with(u));
    match unit {
        Some(u) => format!("{}{}iB", &upper[..upper.len() - 2], &u[..1]),
        None => upper,
    }
}

/// A path that may begin with `~`: the home of who imports it, as it was that of who started supervisord.
fn at_home(path: &str, context: &Context<'_>) -> Option<String> {
    match path.strip_prefix('~') {
        None => Some(path.to_owned()),
        Some(rest) if rest.is_empty() || rest.starts_with('/') => Some((context.variable)("HOME")? + rest),
        Some(_) => None,
    }
}

fn absolute(path: &str, here: &Path) -> String {
    here.join(path).display().to_string()
}

fn log_file(job: &mut Draft, key: &'static str, value: &str, here: &Path) {
    let standard =
        PathBuf::from(value).starts_with("/dev/fd") || ["/dev/stdout", "/dev/stderr"].contains(&value);
    match value.to_uppercase().as_str() {
        "AUTO" | "SYSLOG" => job.text(key, "log"),
        _ if standard => job.text(key, "log"),
        "NONE" | "OFF" | "" => job.text(key, "null"),
        _ => job.text(key, absolute(value, here)),
    }
}

/// `tcp://localhost:9000`, `unix:///run/x.sock`
fn socket(value: &str) -> String {
    match (value.strip_prefix("tcp://"), value.strip_prefix("unix://")) {
        (Some(address), _) => address.replace("localhost:", "127.0.0.1:"),
        (_, Some(path)) => format!("unix:{path}"),
        _ => value.to_owned(),
    }
}

/// What `%(name)s` stands for.
struct Expander<'a> {
    program: &'a str,
    number: usize,
    count: usize,
    context: &'a Context<'a>,
}

impl Expander<'_> {
    fn expand(&self, text: &str) -> Result<String, String> {
        let (mut out, mut rest) = (String::new(), text);
        while let Some((before, after)) = rest.split_once('%') {
            out += before;
            if let Some(after) = after.strip_prefix('%') {
                out.push('%');
                rest = after;
                continue;
            }
            let parts = after.strip_prefix('(').and_then(|a| a.split_once(')'));
            let Some((name, after)) = parts else {
                return Err("a % that is none of %(name)s and %%".into());
            };
            let digits = after.bytes().take_while(u8::is_ascii_digit).count();
            let (width, kind) = after.split_at(digits);
            let value = self.value(name)?;
            match (kind.chars().next(), value.parse::<usize>()) {
                (Some('s'), _) => out += &value,
                (Some('d'), Ok(n)) if width.starts_with('0') => {
                    let width = width.parse().unwrap_or(0).min(32);
                    out += &format!("{n:0width$}");
                }
                (Some('d'), Ok(n)) => out += &n.to_string(),
                _ => return Err(format!("%({name}) in a form that isn't known")),
            }
            rest = &kind[1..];
        }
        Ok(out + rest)
    }

    fn value(&self, name: &str) -> Result<String, String> {
        if let Some(variable) = name.strip_prefix("ENV_") {
            let value = (self.context.variable)(variable);
            return value.ok_or_else(|| format!("the variable {variable} isn't set here"));
        }
        Ok(match name {
            "program_name" | "group_name" => self.program.to_owned(),
            "process_num" => self.number.to_string(),
            "numprocs" => self.count.to_string(),
            "here" => self.context.here.display().to_string(),
            _ => return Err(format!("%({name}) isn't known here")),
        })
    }
}

/// `A="b c",D=e` as `NAME=value`.
fn variables(text: &str) -> Result<Vec<String>, String> {
    let (mut all, mut rest) = (Vec::new(), text.trim());
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or_else(|| format!("{rest:?} is no NAME=value"))?;
        let (name, after) = (name.trim(), after.trim_start());
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c == ',') {
            return Err(format!("{name:?} is no name"));
        }
        if MARK.contains(&name) {
            return Err(format!("{name} isn't for others to set"));
        }
        let (value, next) = match after.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                after[1..].split_once(quote).ok_or_else(|| format!("the quote of {name} isn't closed"))?
            }
            _ => after.split_at(after.find([',', '\n']).unwrap_or(after.len())),
        };
        all.push(format!("{name}={}", value));
        let next = next.trim_start();
        rest = next.strip_prefix(',').unwrap_or(next).trim_start();
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{check, printed};
    use super::*;
    use policy::jobs::Restart;
    use std::time::Duration;

    #[test]
    fn a_program_with_everything() {
        let toml = printed(
            "[supervisord]\nlogfile=/tmp/x.log ; log\nenvironment=ALL=\"1\"\n\
             [program:cat-5]\ncommand=/bin/cat --a=\"b c\" %(here)s %(ENV_HOME)s 100%%\nprocess_name=%(program_name)s\n\
             directory=data\numask=027\npriority=999\nautostart=false\nautorestart=true\nstartsecs=10\nstartretries=3\n\
             exitcodes=0,2\nstopsignal=quit\nstopwaitsecs=20\nstopasgroup=true\nkillasgroup=true\nuser=chrism\n\
             redirect_stderr=true\nstdout_logfile=/a/path\nstdout_logfile_maxbytes=1MB\nstdout_logfile_backups=7\n\
             environment=A=\"1,2\", B=2,\n  C='x y'\nserverurl=AUTO\n",
        );
        let c = check(&toml);
        let j = &c.jobs[0];
        assert_eq!(j.command, ["/bin/cat", "--a=b c", "/srv/app", "/home/me", "100%"]);
        assert_eq!((j.name.as_str(), j.autostart, j.restart), ("cat-5", false, Restart::Always));
        assert_eq!((j.cwd.as_deref(), j.umask), (Some(Path::new("/srv/app/data")), 0o027));
        assert_eq!(j.ready, crate::config::job::Ready::Running(Duration::from_secs(10)));
        assert_eq!((j.give_up_after, j.stop_signal, j.stop_timeout.as_secs()), (3, nix::libc::SIGQUIT, 20));
        assert_eq!((j.user.as_deref(), j.inherit_env), (Some("chrism"), true));
        assert_eq!(j.stdout, j.stderr);
        assert!(toml.contains("output_max_size = \"1MiB\"") && toml.contains("output_keep = 7"), "{toml}");
        let env: Vec<String> = j.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(env, ["ALL=1", "A=1,2", "B=2", "C=x y"]);
        for said in [
            "line 2: [supervisord] logfile",
            "priority = 999: jobs start",
            "exitcodes = 0,2",
            "serverurl = AUTO: there is nothing like it",
            "stopasgroup",
        ] {
            assert!(toml.lines().any(|l| l.starts_with('#') && l.contains(said)), "{said}: {toml}");
        }
    }

    #[test]
    fn defaults_are_those_of_supervisord() {
        let j = check(&printed("[program:x]\ncommand=true\n")).jobs.remove(0);
        assert_eq!((j.restart, j.workers, j.give_up_after), (Restart::OnFailure, 1, 0));
    }

    #[test]
    fn processes_that_differ_by_their_number_are_jobs_of_their_own() {
        let same = check(&printed(
            "[program:x]\ncommand=true\nnumprocs=3\nprocess_name=%(program_name)s_%(process_num)02d\n",
        ));
        assert_eq!((same.jobs.len(), same.jobs[0].workers), (1, 3));
        let all = check(&printed(
            "[program:x]\ncommand=run --port=80%(process_num)02d\nnumprocs=2\nnumprocs_start=8\n",
        ));
        let list: Vec<_> = all.jobs.iter().map(|j| (j.name.as_str(), j.command[1].as_str())).collect();
        assert_eq!(list, [("x-8", "--port=8008"), ("x-9", "--port=8009")]);
        assert!(
            printed("[program:x]\ncommand=%(process_num)d\nnumprocs=99999999\n").contains("at most 1000")
        );
    }

    #[test]
    fn a_fastcgi_program_gets_its_socket_as_standard_input() {
        let j = check(&printed(
            "[fcgi-program:php]\ncommand=/usr/bin/php-cgi -q\nsocket=tcp://localhost:9000\nsocket_backlog=5\n",
        ));
        assert_eq!(j.jobs[0].listen[0].to_string(), "127.0.0.1:9000");
        assert_eq!(j.jobs[0].command[4..], ["/usr/bin/php-cgi", "-q"]);
    }

    #[test]
    fn what_has_no_place_is_said_and_what_can_not_be_is_a_comment() {
        let toml = printed(
            "[unix_http_server]\nfile=/x\n[group:g]\nprograms=a,b\n[include]\nfiles=*.conf\n[eventlistener:e]\ncommand=x\n\
             [program:a]\ncommand=x \"y\n[program:b]\ncommand=%(ENV_NOPE)s\n[program:c]\nuser=x\n[program:d]\ncommand=true\nstopsignal=NOPE\n",
        );
        let c = check(&toml);
        assert_eq!(c.jobs.iter().map(|j| j.name.as_str()).collect::<Vec<_>>(), ["d"]);
        for said in [
            "[unix_http_server]",
            "g was a,b",
            "*.conf",
            "[eventlistener:e]",
            "\"a\" can't be translated",
            "NOPE isn't set",
            "\"c\" can't be translated: it has no command",
            "no signal",
        ] {
            assert!(toml.lines().any(|l| l.starts_with('#') && l.contains(said)), "{said}: {toml}");
        }
    }

    #[test]
    fn a_tilde_is_somebodys_home() {
        let toml = printed(
            "[program:a]\ncommand=true\ndirectory=~\nstdout_logfile=~/a.log\nstderr_logfile=~nobody/a.err\n\
             [group:g]\nprograms=a\npriority=7\n",
        );
        let job = &check(&toml).jobs[0];
        assert_eq!(job.cwd, Some("/home/me".into()));
        assert_eq!(job.stdout, crate::config::job::Output::File("/home/me/a.log".into()));
        assert_eq!(job.stderr, crate::config::job::Output::Log, "left as it is");
        for said in
            ["stderr_logfile = ~nobody/a.err: whose home", "line 8: [group:g] priority = 7: jobs start"]
        {
            assert!(toml.lines().any(|l| l.starts_with('#') && l.contains(said)), "{said}: {toml}");
        }
    }

    #[test]
    fn lists_of_variables() {
        assert_eq!(variables("A=1,B=\"2,3\"\nC=x"), Ok(vec!["A=1".into(), "B=2,3".into(), "C=x".into()]));
        for bad in ["A", "=1", "A=\"1", "A B=1", "A=1,,"] {
            assert!(variables(bad).is_err(), "{bad}");
        }
    }
}
