//! How many more descriptors this process may have.

use std::os::fd::{AsFd, AsRawFd};

/// The limit of open files.
pub fn limit() -> usize {
    use nix::sys::resource::{Resource, getrlimit};
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX))
}

/// The numbers from the lowest that is free up to the limit of open files; `any` is one that is open. The kernel gives out the
/// lowest free one, so all below it are in use.
pub fn left(any: impl AsFd) -> usize {
    // the next one is had for a moment; at the limit there is none
    let next = rustix::io::fcntl_dupfd_cloexec(any, 0).map(|fd| fd.as_raw_fd() as usize);
    next.map_or(0, |next| limit().saturating_sub(next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_is_used_up_by_asking() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let before = left(&null);
        assert!(before > 0);
        // other tests open and close meanwhile, but not so many
        (0..10_000).for_each(|_| assert!(left(&null).abs_diff(before) < 1000));
    }
}
