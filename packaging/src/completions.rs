//! Completion scripts: what clap makes of a program, and the names of jobs where a command takes one. Those are asked of the
//! running manager (`traffic_manager list --names`), which is quick, and silent when there is none.

use anyhow::Context;
use clap::{ArgAction, Command};
use clap_complete::Shell;

/// What follows a job's name in zsh's table of arguments, and what is to follow it.
const ZSH_DEFAULT: &str = ":_default' \\";
/// Before this zsh's script must have its functions.
const ZSH_END: &str = "if [ \"$funcstack[1]\" = ";

/// The script of a program.
///
/// # Errors
/// clap's script isn't what this one adds to.
pub fn script(shell: Shell, program: &Command) -> anyhow::Result<String> {
    let name = program.get_name().to_owned();
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut program.clone(), &name, &mut out);
    let out = String::from_utf8(out).context("clap's script")?;
    let verbs: Vec<&str> =
        program.get_subcommands().filter(|s| takes_job(s)).map(Command::get_name).collect();
    match shell {
        _ if verbs.is_empty() => Ok(out),
        Shell::Bash => Ok(out + &bash(&name, &verbs, program)),
        Shell::Zsh => zsh(&name, &out),
        _ => Ok(out + &fish(&name, &verbs)),
    }
}

/// Is its first argument the name of a job?
fn takes_job(command: &Command) -> bool {
    command.get_positionals().next().is_some_and(|a| a.get_id() == "name")
}

/// Options with a value; of those, the ones that say which suite it is.
fn options(program: &Command) -> (String, String) {
    let mut all: Vec<String> = Vec::new();
    for arg in program.get_subcommands().flat_map(Command::get_arguments) {
        let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
        let names = arg.get_short().map(|s| format!("-{s}")).into_iter();
        let names = names.chain(arg.get_long().map(|l| format!("--{l}")));
        all.extend(names.filter(|_| takes_value));
    }
    all.sort();
    all.dedup();
    let (suite, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|o| ["-c", "--config", "--runtime-dir"].contains(&o.as_str()));
    (suite.join("|"), others.join("|"))
}

fn bash(name: &str, verbs: &[&str], program: &Command) -> String {
    let (suite, others) = options(program);
    let verbs = verbs.join("|");
    format!(
        r#"
_{name}_jobs() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} i named= options=()
    for ((i = 2; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
            {suite}) options+=("${{COMP_WORDS[i]}}" "${{COMP_WORDS[i + 1]}}"); ((i++)) ;;
            {others}) ((i++)) ;;
            -*) ;;
            *) named=1 ;;
        esac
    done
    case ${{COMP_WORDS[1]}} in
        {verbs})
            # past the current word: that is the value of an option
            if [[ $COMP_CWORD -ge 2 && $i -le $COMP_CWORD && -z $named && $cur != -* ]]; then
                COMPREPLY=($(compgen -W "$("$1" list --names "${{options[@]}}" 2>/dev/null)" -- "$cur"))
                return
            fi
            ;;
    esac
    _{name} "$@"
}}
complete -F _{name}_jobs -o bashdefault -o default {name}
"#
    )
}

fn zsh(name: &str, script: &str) -> anyhow::Result<String> {
    let own = format!(":_{name}_jobs' \\");
    let line = |l: &str| match l.trim_start_matches("'").trim_start_matches(':').starts_with("name -- ") {
        true => l.replace(ZSH_DEFAULT, &own),
        false => l.to_owned(),
    };
    let lines: Vec<String> = script.lines().map(line).collect();
    let with = lines.join("\n") + "\n";
    let (before, end) = with.split_once(ZSH_END).context("clap's script for zsh has another end")?;
    anyhow::ensure!(with.contains(&own), "clap's script for zsh has no names of jobs");
    Ok(format!(
        r#"{before}(( $+functions[_{name}_jobs] )) ||
_{name}_jobs() {{
    local -a jobs
    jobs=(${{(f)"$({name} list --names 2>/dev/null)"}})
    _describe -t jobs 'job' jobs
}}

{ZSH_END}{end}"#
    ))
}

fn fish(name: &str, verbs: &[&str]) -> String {
    format!(
        "complete -c {name} -n \"__fish_{name}_using_subcommand {}; and test (count (commandline -opc)) -eq 2\" -f -a \
         \"({name} list --names 2>/dev/null)\" -d job\n",
        verbs.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::process::Command as Process;

    fn manager(shell: Shell) -> String {
        script(shell, &traffic::manager::Cli::command()).unwrap()
    }

    /// What bash completes the last of these words to, where the manager has the jobs db, web and worker; after that, how the
    /// manager was asked.
    fn completed(words: &[&str]) -> (Vec<String>, String) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("script");
        std::fs::write(&file, manager(Shell::Bash)).unwrap();
        let quoted: Vec<String> = words.iter().map(|w| format!("'{w}'")).collect();
        let last = words.len() - 1;
        let said = dir.path().join("said");
        let run = format!(
            "source {file:?}\ntraffic_manager() {{ echo \"$*\" >{said:?}; printf '%s\\n' db web worker; echo oh >&2; }}\n\
             COMP_WORDS=({}) COMP_CWORD={last}\n$(complete -p traffic_manager | sed 's/.*-F \\([^ ]*\\).*/\\1/') \
             traffic_manager '{}' '{}'\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"",
            quoted.join(" "),
            words[last],
            words[last - 1],
        );
        let out = Process::new("bash").args(["--norc", "-c", &run]).output().unwrap();
        assert!(out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
        let list = String::from_utf8(out.stdout).unwrap();
        let asked = std::fs::read_to_string(said).unwrap_or_default();
        (list.lines().map(str::to_owned).filter(|l| !l.is_empty()).collect(), asked.trim().to_owned())
    }

    #[test]
    fn bash_completes_names_of_jobs_where_one_is_expected() {
        assert_eq!(completed(&["traffic_manager", "start", ""]).0, ["db", "web", "worker"]);
        assert_eq!(completed(&["traffic_manager", "tail", "w"]).0, ["web", "worker"]);
        let (list, asked) =
            completed(&["traffic_manager", "want", "-c", "/etc/x.toml", "--log", "info", "d"]);
        assert_eq!((list, asked.as_str()), (vec!["db".to_owned()], "list --names -c /etc/x.toml"));
        // everything else is as it was, and asks nobody
        for (words, one) in [
            (&["traffic_manager", "sta"][..], "start"),
            (&["traffic_manager", "start", "--run"], "--runtime-dir"),
            (&["traffic_manager", "check-config", "--se"], "--set"),
        ] {
            let (list, asked) = completed(words);
            assert!(list.contains(&one.to_owned()) && asked.is_empty(), "{words:?}: {list:?} {asked}");
        }
        for words in [&["traffic_manager", "want", "db", ""][..], &["traffic_manager", "start", "-c", ""]] {
            let (list, asked) = completed(words);
            assert!(!list.contains(&"db".to_owned()) && asked.is_empty(), "{words:?}: {list:?}");
        }
    }

    #[test]
    fn every_command_that_takes_a_job_is_in_every_script() {
        let program = traffic::manager::Cli::command();
        let verbs: Vec<_> =
            program.get_subcommands().filter(|s| takes_job(s)).map(|s| s.get_name().to_owned()).collect();
        assert!(verbs.len() >= 9 && verbs.contains(&"restart".to_owned()), "{verbs:?}");
        let zsh = manager(Shell::Zsh);
        assert_eq!(zsh.matches(":_traffic_manager_jobs' \\").count(), verbs.len());
        let fish = manager(Shell::Fish);
        let last = fish.lines().last().unwrap();
        assert!(verbs.iter().all(|v| last.contains(v.as_str())), "{last}");
        // the others have no jobs
        assert!(!script(Shell::Bash, &traffic::cop::Cli::command()).unwrap().contains("_jobs"));
    }
}
