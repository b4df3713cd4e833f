//! What a process leaves behind: descendants that have left its process group (setsid(2), a double fork) and so are told of
//! by nothing but what they have inherited.
//!
//! The mark is a set of variables in the environment that the process was started with, which its descendants have too
//! unless they were made to forget it. A descendant is held by pidfd before its mark is read, and is believed only if it
//! lives after that: its number can't have gone to another process in between.

use crate::identity::os;
use crate::pidfd::PidFd;
use procfs::process::Process;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

/// So much is read of an environment, in bytes.
const BYTES: u64 = 256 * 1024;

/// A flag of proc_pid_stat(5): it is ending (PF_EXITING).
const EXITING: u32 = 0x4;
/// It is the kernel's own (PF_KTHREAD).
const KERNEL: u32 = 0x20_0000;
/// So often the environment of a process that is in the midst of an exec is looked at, and so long in between.
const LOOKS: usize = 50;
const MOMENT: Duration = Duration::from_micros(200);

/// A process that was found.
#[derive(Debug)]
pub struct Found {
    /// For people.
    pub pid: i32,
    /// By which it is signalled.
    pub pidfd: PidFd,
    /// Values of the variables that were asked for; `None`: it is ending, and has no environment any more.
    pub mark: Option<Vec<String>>,
}

/// Looks at the children of this process that are none of `known`: with a subreaper these are orphans of its children. Those
/// that carry all of `variables`, and those that are ending, whose own orphans come here next.
pub fn orphans(variables: &[&str], known: &[i32]) -> Vec<Found> {
    let strangers = crate::reaper::children().into_iter().filter(|pid| !known.contains(pid));
    strangers.filter_map(|pid| examine(pid, variables).ok().flatten()).collect()
}

/// All processes of the machine that carry all of `variables` and that we may look at.
///
/// # Errors
/// /proc can't be read.
pub fn marked(variables: &[&str]) -> io::Result<Vec<Found>> {
    let me = std::process::id() as i32;
    let entries = std::fs::read_dir("/proc")?.flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok()).filter(|pid| *pid != me);
    let found = pids.filter_map(|pid| examine(pid, variables).ok().flatten());
    Ok(found.filter(|f| f.mark.is_some()).collect())
}

/// Those of them of which the first of `variables` is that path.
///
/// # Errors
/// As [`marked`].
pub fn marked_of(variables: &[&str], whose: &Path) -> io::Result<Vec<Found>> {
    let mut found = marked(variables)?;
    found.retain(|f| f.mark.as_ref().is_some_and(|m| Some(m[0].as_str()) == whose.to_str()));
    Ok(found)
}

/// The process of this number, if it carries all of `variables` or is ending.
///
/// # Errors
/// It is gone, or it can't be looked at.
pub fn examine(pid: i32, variables: &[&str]) -> io::Result<Option<Found>> {
    // most have none: no descriptor is spent on them
    if matches!(look(pid, variables)?, Look::Stranger) {
        return Ok(None);
    }
    let pidfd = PidFd::open(pid)?;
    let mark = match look(pid, variables)? {
        Look::Stranger => return Ok(None),
        Look::Ending => None,
        Look::Marked(mark) => Some(mark),
    };
    Ok(pidfd.is_alive().then_some(Found { pid, pidfd, mark }))
}

enum Look {
    Stranger,
    Ending,
    Marked(Vec<String>),
}

fn look(pid: i32, variables: &[&str]) -> io::Result<Look> {
    for _ in 0..LOOKS {
        let bytes = environ(pid)?;
        if !bytes.is_empty() {
            return Ok(values(&bytes, variables).map_or(Look::Stranger, Look::Marked));
        }
        let stat = Process::new(pid).and_then(|p| p.stat()).map_err(os)?;
        if stat.flags & EXITING != 0 {
            return Ok(Look::Ending);
        }
        // in the midst of an exec it has none for a moment, and no place for it either
        let place = stat.env_start.zip(stat.env_end).map_or(0, |(start, end)| end.saturating_sub(start));
        if stat.flags & KERNEL != 0 || (stat.env_start != Some(0) && place == 0) {
            break;
        }
        if place == 0 {
            std::thread::sleep(MOMENT);
        }
    }
    Ok(Look::Stranger)
}

fn environ(pid: i32) -> io::Result<Vec<u8>> {
    // most fit in one read
    let mut bytes = Vec::with_capacity(4096);
    File::open(format!("/proc/{pid}/environ"))?.take(BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The values of all those variables, if it has them all.
fn values(environ: &[u8], variables: &[&str]) -> Option<Vec<String>> {
    let of = |name: &&str| {
        let mut entries = environ.split(|b| *b == 0);
        let value = entries.find_map(|e| e.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
        String::from_utf8(value.to_vec()).ok()
    };
    variables.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    #[test]
    fn a_mark_is_all_of_its_variables() {
        let environ = b"A=1\0TRAFFIC_X=web\0TRAFFIC_XY=other\0B=\0";
        assert_eq!(values(environ, &["TRAFFIC_X", "B"]), Some(vec!["web".into(), String::new()]));
        assert_eq!(values(environ, &["TRAFFIC_X", "C"]), None);
        assert_eq!(values(environ, &["X"]), None);
        assert_eq!(values(b"X=\xff\0", &["X"]), None);
    }

    #[test]
    fn who_has_left_session_and_parent_is_found_by_its_mark() {
        let mark = format!("{}-{:?}", std::process::id(), std::thread::current().id());
        let script = "setsid sh -c 'echo $$; exec sleep 60' & exit 0";
        let mut c = Command::new("sh");
        c.args(["-c", script]).env("TRAFFIC_TREE_TEST", &mark).stdout(Stdio::piped());
        let mut first = c.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(first.stdout.take().unwrap()).read_line(&mut line).unwrap();
        first.wait().unwrap();
        let of_ours = |f: &Found| f.mark.as_deref() == Some(std::slice::from_ref(&mark));
        let found: Vec<Found> = marked(&["TRAFFIC_TREE_TEST"]).unwrap().into_iter().filter(of_ours).collect();
        assert_eq!(found.iter().map(|f| f.pid.to_string()).collect::<Vec<_>>(), [line.trim()]);
        found[0].pidfd.signal(nix::libc::SIGKILL).unwrap();
        assert!(found[0].pidfd.poll_exit(Duration::from_secs(20)).unwrap().is_some());
        let again = marked(&["TRAFFIC_TREE_TEST"]).unwrap();
        assert!(!again.iter().any(of_ours), "an ended one is nobody");
    }
}
