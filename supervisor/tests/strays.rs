//! Which processes are strays of a suite, and which are somebody else's.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use supervisor::identity::Executable;
use supervisor::safe_kill::{Plan, safe_kill};
use supervisor::strays::{Wanted, find};

const NAME: &str = "traffic_stray";

/// A program named like ours, waiting for the end of its standard input.
struct Program(Child);

impl Program {
    fn start(exe: &Path, env: Option<&Path>, args: &[&str]) -> Program {
        let mut command = Command::new(exe);
        command.env_clear().args(["-c", "echo ready; read line", NAME]).args(args);
        if let Some(dir) = env {
            command.env("TRAFFIC_RUNTIME_DIR", dir);
        }
        Program::ready(command)
    }

    fn ready(mut command: Command) -> Program {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Program(child)
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A shell under our name. It is copied by a process of its own: a descriptor open for writing here could be inherited by
/// another test's child, and the program then not be started (ETXTBSY).
fn install(dir: &Path) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    let exe = dir.join(NAME);
    let shell = Path::new("/bin/sh").canonicalize().unwrap();
    assert!(Command::new("cp").arg(shell).arg(&exe).status().unwrap().success());
    exe
}

fn pids(wanted: &Wanted, except: &[i32]) -> Vec<i32> {
    let mut pids: Vec<i32> = find(wanted, except).unwrap().strays.iter().map(|t| t.identity.pid).collect();
    pids.sort_unstable();
    pids
}

fn sorted(programs: &[&Program]) -> Vec<i32> {
    let mut pids: Vec<i32> = programs.iter().map(|p| p.pid()).collect();
    pids.sort_unstable();
    pids
}

#[test]
fn a_stray_has_our_name_and_our_program_and_our_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (run, other_run) = (dir.path().join("run"), dir.path().join("other"));
    fs::create_dir(&run).unwrap();
    fs::create_dir(&other_run).unwrap();
    let (exe, other_exe) = (install(&dir.path().join("a")), install(&dir.path().join("b")));
    let run_text = run.to_str().unwrap();
    let wanted = Wanted { name: NAME.into(), exe: Executable::at(&exe), runtime_dir: run.clone() };
    assert_eq!(pids(&wanted, &[]), []);

    let by_variable = Program::start(&exe, Some(&run), &[]);
    let by_option = Program::start(&exe, Some(&other_run), &["--runtime-dir", run_text]);
    let roundabout = Program::start(&exe, None, &[&format!("--runtime-dir={run_text}/../run/.")]);
    let relative = {
        let mut command = Command::new(&exe);
        command.env_clear().args(["-c", "echo ready; read line", NAME, "--runtime-dir=run"]);
        command.current_dir(dir.path());
        Program::ready(command)
    };
    // none of these
    let _other_dir = Program::start(&exe, Some(&other_run), &[]);
    let _overruled = Program::start(&exe, Some(&run), &["--runtime-dir", other_run.to_str().unwrap()]);
    let _no_dir = Program::start(&exe, None, &[]);
    let _other_exe = Program::start(&other_exe, Some(&run), &[]);
    let _other_name = {
        let link = dir.path().join("somebody");
        std::os::unix::fs::symlink(&exe, &link).unwrap();
        Program::start(&link, Some(&run), &[])
    };
    // found by argv[0], whatever it calls itself
    let renamed = {
        let link = dir.path().join("other_comm");
        std::os::unix::fs::symlink(&exe, &link).unwrap();
        let mut command = Command::new(&link);
        command.arg0(&exe).env_clear().env("TRAFFIC_RUNTIME_DIR", &run).args(["-c", "echo ready; read line"]);
        Program::ready(command)
    };
    let all = [&by_variable, &by_option, &roundabout, &relative, &renamed];
    assert_eq!(pids(&wanted, &[]), sorted(&all));
    // between fork and exec a child looks like its parent, which sees to it
    assert_eq!(pids(&wanted, &[std::process::id() as i32]), []);
    assert_eq!(pids(&wanted, &[by_variable.pid(), renamed.pid()]), sorted(&all[1..4]));

    // replaced on disk while they run
    fs::remove_file(&exe).unwrap();
    assert_eq!(pids(&wanted, &[]), sorted(&all), "by its path, deleted or not");
    install(&dir.path().join("a"));
    let new = Wanted { exe: Executable::at(&exe), ..wanted.clone() };
    assert_eq!(pids(&new, &[]), sorted(&all));

    let report = safe_kill(find(&wanted, &[]).unwrap().strays, Plan::kill(Duration::from_secs(30)));
    assert_eq!(report.outcomes.len(), all.len());
    assert!(report.all_gone(), "{report}");
    assert_eq!(pids(&wanted, &[]), [], "zombies are no strays");
}
