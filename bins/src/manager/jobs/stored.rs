//! Under which names a cop keeps what the next manager is to have of a worker; pure.

/// What a cop keeps of a worker under a name of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Its pidfd, the pipe of its output, and the socket for pings. A manager of an earlier version kept that of its standard error
    /// here too.
    Process,
    /// The pipe of its standard error, if that goes elsewhere than its output.
    Errors,
    /// The pipe by which it says that it is ready.
    Readiness,
}

/// The name under which a worker's fds are stored.
pub(super) fn store_name(part: Part, pid: i32, index: usize, job: &str) -> String {
    let part = match part {
        Part::Process => "",
        Part::Errors => "err-",
        Part::Readiness => "ready-",
    };
    format!("worker-{part}{pid}-{index}-{job}")
}

/// What it says.
pub(super) fn parse_name(name: &str) -> Option<(Part, i32, usize, &str)> {
    let name = name.strip_prefix("worker-")?;
    let (part, name) = match name.split_once('-')? {
        ("ready", name) => (Part::Readiness, name),
        ("err", name) => (Part::Errors, name),
        _ => (Part::Process, name),
    };
    let (pid, rest) = name.split_once('-')?;
    let (index, job) = rest.split_once('-')?;
    Some((part, pid.parse().ok().filter(|p| *p > 0)?, index.parse().ok()?, job))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_name_says_whose_it_is() {
        for part in [Part::Process, Part::Errors, Part::Readiness] {
            let name = store_name(part, 77, 3, "mail-out.v2");
            assert_eq!(parse_name(&name), Some((part, 77, 3, "mail-out.v2")));
        }
        for wrong in [
            "worker-",
            "worker-x-1-a",
            "worker--1-1-a",
            "worker-7-x-a",
            "worker-7-1",
            "worker-ready-",
            "listen-1-1-a",
        ] {
            assert_eq!(parse_name(wrong), None, "{wrong}");
        }
    }
}
