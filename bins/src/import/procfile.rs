//! A Procfile: a name, a colon, and what a shell is to run, as foreman and Heroku have it.

use super::{Context, Draft, Mistake, Translated};

/// What foreman gives the first process type, and how far the next one is from it.
const PORT: usize = 5000;
const PORT_STEP: usize = 100;

/// Translates it.
///
/// # Errors
/// A line that is neither empty nor a comment nor `name: command`.
pub(super) fn translate(text: &str, context: &Context<'_>) -> Result<Translated, Mistake> {
    let mut all = Translated::default();
    let lines = text.lines().enumerate().map(|(n, l)| (n + 1, l.trim()));
    for (line, text) in lines.filter(|(_, l)| !l.is_empty() && !l.starts_with('#')) {
        let fits = |name: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
        };
        let parts = text.split_once(':').map(|(name, command)| (name.trim(), command.trim()));
        let Some((name, command)) = parts.filter(|(name, command)| fits(name) && !command.is_empty()) else {
            return Err(Mistake { line, why: format!("{text:?} is no \"name: command\"") });
        };
        let port = PORT + PORT_STEP * all.jobs.len();
        let mut job = Draft::new(all.name(name));
        shell(&mut job, command);
        job.text("cwd", context.here.display().to_string());
        job.list("env", vec![format!("PORT={port}")]);
        job.set("inherit_env", crate::config::value::Raw::Bool(true));
        if name == "release" {
            job.text("restart", "never");
        }
        all.jobs.push(job);
    }
    if all.jobs.iter().any(|j| j.name == "release") {
        let others = all.jobs.iter_mut().filter(|j| j.name != "release");
        others.for_each(|j| j.list("after", vec!["release".into()]));
    }
    all.notes
        .push("PORT is what foreman would have it; listen = [...] has the manager hold the socket.".into());
    if context.here.join(".env").exists() {
        all.notes.push(
            ".env isn't read: put its variables into env, or have the manager's environment set.".into(),
        );
    }
    Ok(all)
}

/// What a shell is to run: without one if it needs none, and in the shell's place if that is possible, so that the stop signal
/// reaches it.
fn shell(job: &mut Draft, command: &str) {
    let plain = !command.contains(|c: char| "$`|&;<>()*?[]{}~#!\\\n".contains(c));
    let assigns = command.split_whitespace().next().is_some_and(|word| word.contains('='));
    let words = shlex::split(command).filter(|words| plain && !assigns && !words.is_empty());
    match words {
        Some(words) => job.list("command", words),
        None => {
            let several = command.contains(|c: char| "|&;()`\n".contains(c));
            let script = match (several, assigns) {
                (true, _) => command.to_owned(),
                (false, true) => format!("exec env {command}"),
                (false, false) => format!("exec {command}"),
            };
            job.list("command", vec!["sh".into(), "-c".into(), script]);
            if several {
                job.note("the stop signal reaches the shell; what it runs is killed when that has ended");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{check, printed};

    #[test]
    fn commands_run_without_a_shell_where_they_can() {
        let toml = printed(
            "# it\nweb: bundle exec puma -p $PORT\nworker: rake 'jobs work'\nenv: A=1 run me\nboth: a && b\nrelease: migrate\n",
        );
        let jobs = check(&toml).jobs;
        let command = |n: usize| jobs[n].command.join("|");
        assert_eq!(command(0), "sh|-c|exec bundle exec puma -p $PORT");
        assert_eq!(command(1), "rake|jobs work");
        assert_eq!(command(2), "sh|-c|exec env A=1 run me");
        assert_eq!(command(3), "sh|-c|a && b");
        assert!(toml.contains("reaches the shell"));
        assert_eq!(jobs[1].env, [("PORT".to_owned(), "5100".to_owned())]);
        assert_eq!(jobs[0].cwd.as_deref(), Some(std::path::Path::new("/srv/app")));
        assert_eq!(
            (jobs[4].restart, jobs[3].after.as_slice()),
            (policy::jobs::Restart::Never, &["release".to_owned()][..])
        );
    }

    #[test]
    fn a_line_that_is_none_is_named() {
        for (text, line) in [("web: a\nnonsense\n", 2), ("a b: c\n", 1), ("web:\n", 1), (": x\n", 1)] {
            assert!(printed(text).starts_with(&format!("line {line}: ")), "{text}: {}", printed(text));
        }
    }
}
