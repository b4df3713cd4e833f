//! Processes of this suite that nobody answers for any more: left by a dead manager, or by one that lost its lock.
//!
//! A stray has the same name *and* the same executable *and* the same runtime directory. The name alone would
//! kill the neighbour's suite, and has done so elsewhere. A process whose runtime directory cannot be seen is none.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use procfs::process::{Process, all_processes};

use crate::identity::{Executable, Identity, ProcessState, look_at, os};
use crate::pidfd::PidFd;
use crate::safe_kill::Target;

/// What the strays in question have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The program's name, as in `comm` (of which the first 15 bytes count) or as the last part of `argv[0]`.
    pub name: String,
    /// The program.
    pub exe: Executable,
    /// The runtime directory, as the process got it by `--runtime-dir` or else by `TRAFFIC_RUNTIME_DIR`.
    pub runtime_dir: PathBuf,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// The strays, each held by a pidfd that was taken before it was looked at.
    pub strays: Vec<Target>,
    /// How many had the name, but could not be looked into (another user's, or out of descriptors).
    pub unreadable: usize,
    /// Whether there were more than [`LIMIT`]; the others are found next time.
    pub more: bool,
}

/// So many strays at once; each costs a descriptor.
pub const LIMIT: usize = 64;

/// So much is read of a command line or environment.
const BYTES: u64 = 256 * 1024;

const VARIABLE: &[u8] = b"TRAFFIC_RUNTIME_DIR=";
const OPTION: &[u8] = b"--runtime-dir";

/// Looks through all processes for strays, leaving out this process, `except` and the children of those: between fork and exec a
/// child looks like its parent. Zombies are none: there is nothing left of them to end.
///
/// # Errors
/// /proc cannot be read.
pub fn find(wanted: &Wanted, except: &[i32]) -> io::Result<Found> {
    let mut found = Found::default();
    let me = std::process::id() as i32;
    for process in all_processes().map_err(os)?.flatten().filter(|p| p.pid != me && !except.contains(&p.pid))
    {
        match examine(wanted, &process, except) {
            Ok(None) => {}
            Ok(Some(_)) if found.strays.len() == LIMIT => {
                found.more = true;
                break;
            }
            Ok(Some(stray)) => found.strays.push(stray),
            // it ended while we looked
            Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(nix::libc::ESRCH) => {}
            Err(_) => found.unreadable += 1,
        }
    }
    Ok(found)
}

fn examine(wanted: &Wanted, process: &Process, except: &[i32]) -> io::Result<Option<Target>> {
    let (look, comm) = look_at(process)?;
    // the cheap question first; what has another name is asked for its argv[0]
    if look.state == ProcessState::Zombie || except.contains(&look.parent) {
        return Ok(None);
    }
    if [crate::keeper::NAME, crate::aside::NAME].contains(&&*comm) {
        // it shows its ward's command line
        return Ok(None);
    }
    let by_comm = comm.as_bytes() == &wanted.name.as_bytes()[..wanted.name.len().min(15)];
    let argv = match read(process, "cmdline") {
        Ok(argv) => argv,
        Err(e) if by_comm => return Err(e),
        Err(_) => return Ok(None),
    };
    if !by_comm && name_of(&argv) != Some(wanted.name.as_bytes()) {
        return Ok(None);
    }
    // from here on the number cannot go to another process unnoticed
    let pidfd = PidFd::open(process.pid)?;
    let identity = Identity::of(process.pid)?;
    let Some(exe) = &identity.exe else { return Err(io::ErrorKind::PermissionDenied.into()) };
    if identity.start_time != look.start_time || !exe.same(&wanted.exe) {
        return Ok(None);
    }
    let Some(dir) = runtime_dir(&argv, &read(process, "environ")?) else { return Ok(None) };
    let dir = process.cwd().map_or(dir.clone(), |cwd| cwd.join(dir));
    // alive after the last look, so all that was seen is of the process that the pidfd holds
    Ok((same_dir(&dir, &wanted.runtime_dir) && pidfd.is_alive()).then(|| Target::held(identity, pidfd)))
}

fn read(process: &Process, name: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    process.open_relative(name).map_err(os)?.take(BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn name_of(argv: &[u8]) -> Option<&[u8]> {
    let first = argv.split(|b| *b == 0).next()?;
    first.rsplit(|b| *b == b'/').next()
}

/// The runtime directory by command line or environment, in this order, as the programs themselves see it.
fn runtime_dir(argv: &[u8], environ: &[u8]) -> Option<PathBuf> {
    let mut words = argv.split(|b| *b == 0).skip(1);
    let mut by_option = None;
    while let Some(word) = words.next() {
        match word.strip_prefix(OPTION) {
            Some(b"") => by_option = words.next(),
            Some([b'=', value @ ..]) => by_option = Some(value),
            _ => {}
        }
    }
    let by_variable = || environ.split(|b| *b == 0).find_map(|v| v.strip_prefix(VARIABLE));
    let value = by_option.or_else(by_variable).filter(|v| !v.is_empty())?;
    Some(OsString::from(OsStr::from_bytes(value)).into())
}

/// The same path, or two names of the same directory.
fn same_dir(a: &Path, b: &Path) -> bool {
    let id = |p: &Path| std::fs::metadata(p).ok().map(|m| (m.dev(), m.ino()));
    a == b || id(a).is_some_and(|id_a| Some(id_a) == id(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_counts_before_the_variable() {
        let dir = |argv: &[u8], env: &[u8]| runtime_dir(argv, env).map(|d| d.to_str().unwrap().to_owned());
        let env = b"A=1\0TRAFFIC_RUNTIME_DIR=/env\0B=2\0";
        assert_eq!(dir(b"p\0", env).unwrap(), "/env");
        assert_eq!(dir(b"p\0--runtime-dir\0/opt\0", env).unwrap(), "/opt");
        assert_eq!(dir(b"p\0--runtime-dir=/opt\0run\0", b"").unwrap(), "/opt");
        assert_eq!(dir(b"--runtime-dir=/x\0--runtime-dirs\0/y\0", b"XTRAFFIC_RUNTIME_DIR=/z\0"), None);
        assert_eq!(dir(b"p\0--runtime-dir\0", b"\xff\xfe\0"), None);
    }

    #[test]
    fn a_name_is_the_last_part_of_the_path() {
        assert_eq!(name_of(b"/usr/bin/traffic_server\0run\0"), Some(&b"traffic_server"[..]));
        assert_eq!(name_of(b"traffic_server"), Some(&b"traffic_server"[..]));
    }
}
