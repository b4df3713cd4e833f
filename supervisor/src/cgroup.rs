//! Control groups, version 2: a group of its own for each process tree, with limits, and an end for all that is in it at once.
//!
//! Groups are made only below a directory that was given to us: by systemd (`Delegate=`, which it notes on the directory
//! itself), or by name. See cgroups(7) and the kernel's cgroup-v2 document for the files.

use rustix::io::Errno;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The kernel's period of `cpu.max`, in microseconds.
const PERIOD: u64 = 100_000;

/// Where our own processes are put when the groups of others get limits: a group with controllers may have no processes.
pub const OWN: &str = "suite";

/// What a group may have; zero: as much as there is.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Limits {
    /// Bytes.
    pub memory: u64,
    /// Processors, 0.5 for half of one.
    pub cpu: f64,
    /// Processes and threads.
    pub pids: u64,
}

impl Limits {
    /// The files that say so, each with its controller. A limit that was taken away is written too, where there is the file.
    fn files(&self) -> [(&'static str, &'static str, Option<String>); 3] {
        let memory = (self.memory > 0).then(|| self.memory.to_string());
        let cpu = (self.cpu > 0.0).then(|| format!("{} {PERIOD}", (self.cpu * PERIOD as f64).round() as u64));
        let pids = (self.pids > 0).then(|| self.pids.to_string());
        [("memory", "memory.max", memory), ("cpu", "cpu.max", cpu), ("pids", "pids.max", pids)]
    }

    /// Is there any?
    pub fn any(&self) -> bool {
        *self != Limits::default()
    }
}

/// A directory below which groups may be made.
#[derive(Debug, Clone)]
pub struct Groups(PathBuf);

impl Groups {
    /// The group that this process is in, if it was given to us to divide further.
    ///
    /// # Errors
    /// There is none of version 2, or it is not ours to divide.
    pub fn delegated() -> io::Result<Groups> {
        let own = own_group()?;
        // where we have put ourselves before
        let base = if own.ends_with(OWN) { own.parent().unwrap_or(&own).to_owned() } else { own };
        let mut value = [0u8; 8];
        let noted = ["user.delegate", "trusted.delegate"]
            .into_iter()
            .any(|name| rustix::fs::getxattr(&base, name, &mut value).is_ok_and(|n| value[..n] == *b"1"));
        match noted {
            true => Groups::at(&base),
            false => Err(io::Error::other(format!("{} was not delegated to us", base.display()))),
        }
    }

    /// A directory of the operator's choice.
    ///
    /// # Errors
    /// It is no control group, or we may not make groups in it.
    pub fn at(base: &Path) -> io::Result<Groups> {
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", base.display()));
        fs::metadata(base.join("cgroup.procs")).map_err(named)?;
        rustix::fs::access(base, rustix::fs::Access::WRITE_OK).map_err(|e| named(e.into()))?;
        Ok(Groups(base.to_owned()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The group of that name, which may hold groups of its own: `job.web`, `job.web/0`.
    pub fn group(&self, name: &str) -> Group {
        Group(self.0.join(name))
    }

    /// Lets groups directly below have those limits: our own processes go out of the way first.
    ///
    /// # Errors
    /// The kernel or its owner hasn't given us such a controller.
    pub fn allow(&self, limits: &Limits) -> io::Result<()> {
        let have = fs::read_to_string(self.0.join("cgroup.controllers"))?;
        for (controller, _, value) in limits.files() {
            if value.is_none() {
                continue;
            }
            if !have.split_whitespace().any(|c| c == controller) {
                return Err(io::Error::other(format!(
                    "{} has no controller {controller:?}, only: {}",
                    self.0.display(),
                    have.trim_end()
                )));
            }
            let switch = self.0.join("cgroup.subtree_control");
            let on = fs::read_to_string(&switch)?;
            if on.split_whitespace().any(|c| c == controller) {
                continue;
            }
            match fs::write(&switch, format!("+{controller}")) {
                Err(e) if e.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
                    self.step_aside()?;
                    fs::write(&switch, format!("+{controller}"))?;
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Whoever is in the directory itself goes to a group below.
    fn step_aside(&self) -> io::Result<()> {
        let own = self.group(OWN);
        own.make()?;
        for pid in pids_in(&self.0)? {
            match fs::write(own.procs(), pid.to_string()) {
                // it has ended
                Err(e) if e.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {}
                other => other?,
            }
        }
        Ok(())
    }
}

/// One group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group(PathBuf);

impl Group {
    /// Makes it, if it isn't there.
    ///
    /// # Errors
    /// What the system says.
    pub fn make(&self) -> io::Result<()> {
        match fs::create_dir(&self.0) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// A group within it.
    pub fn group(&self, name: &str) -> Group {
        Group(self.0.join(name))
    }

    /// The file that takes who is to be in it.
    pub fn procs(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }

    /// Sets its limits, or takes them away.
    ///
    /// # Errors
    /// What the system says.
    pub fn limit(&self, limits: &Limits) -> io::Result<()> {
        for (_, file, value) in limits.files() {
            let path = self.0.join(file);
            match value {
                Some(value) => fs::write(path, value)?,
                None if path.exists() => fs::write(path, "max")?,
                None => {}
            }
        }
        Ok(())
    }

    /// Who is in it; nobody, if it isn't there.
    pub fn pids(&self) -> Vec<i32> {
        pids_in(&self.0).unwrap_or_default()
    }

    /// Ends all that are in it, and in groups within it, at once: also those that fork meanwhile.
    ///
    /// # Errors
    /// There is no such group, or the kernel is older than 5.14.
    pub fn kill(&self) -> io::Result<()> {
        fs::write(self.0.join("cgroup.kill"), "1")
    }

    /// Removes it, if nobody is in it.
    pub fn remove(&self) {
        let _ = fs::remove_dir(&self.0);
    }
}

fn pids_in(dir: &Path) -> io::Result<Vec<i32>> {
    let text = fs::read_to_string(dir.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|l| l.parse().ok()).collect())
}

/// Our own group of version 2.
fn own_group() -> io::Result<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    let path = groups.lines().find_map(|l| l.strip_prefix("0::"));
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    match (path, mount_point(&mounts)) {
        (Some(path), Some(mount)) => Ok(mount.join(path.trim_start_matches('/'))),
        _ => Err(io::Error::other("there are no control groups of version 2")),
    }
}

/// Where they are mounted: the fifth field of a line whose type, after " - ", is cgroup2.
fn mount_point(mounts: &str) -> Option<PathBuf> {
    let of_line = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        right.starts_with("cgroup2 ").then(|| left.split(' ').nth(4).map(PathBuf::from))?
    };
    mounts.lines().find_map(of_line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_by_its_type() {
        let text = "24 1 0:22 / /sys rw - sysfs sysfs rw\n\
                    30 24 0:26 /x /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(text), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point("1 1 0:1 / /cgroup2 rw - tmpfs cgroup2 rw\n"), None);
    }

    #[test]
    fn limits_are_what_the_kernel_reads() {
        let dir = tempfile::tempdir().unwrap();
        let group = Group(dir.path().to_owned());
        group.limit(&Limits { memory: 1 << 20, cpu: 0.5, pids: 0 }).unwrap();
        let read = |f: &str| fs::read_to_string(dir.path().join(f)).ok();
        assert_eq!(
            [read("memory.max"), read("cpu.max"), read("pids.max")],
            [Some("1048576".into()), Some("50000 100000".into()), None]
        );
        // one that is taken away is taken away there
        group.limit(&Limits::default()).unwrap();
        assert_eq!(read("memory.max"), Some("max".into()));
        assert!(!Limits::default().any() && Limits { pids: 1, ..Limits::default() }.any());
    }

    #[test]
    fn what_is_no_group_of_ours_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let e = Groups::at(dir.path()).unwrap_err().to_string();
        assert!(e.contains(dir.path().to_str().unwrap()), "{e}");
        fs::write(dir.path().join("cgroup.procs"), "").unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "cpu pids\n").unwrap();
        let groups = Groups::at(dir.path()).unwrap();
        let e = groups.allow(&Limits { memory: 1, ..Limits::default() }).unwrap_err().to_string();
        assert!(e.contains("\"memory\"") && e.contains("cpu pids"), "{e}");
        assert!(groups.allow(&Limits::default()).is_ok());
    }
}
