//! Reading another process's pulse page by its descriptor: see [`policy::pulse`].

use policy::Time;
use policy::pulse::{MOST, Processor, Reading, decode, words};
use rustix::io::pread;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

/// What each thread is doing at this moment. Nothing is asked of the process, which may be stopped or dead.
///
/// # Errors
/// It can't be read, or is no pulse page.
pub fn read(page: impl AsFd) -> io::Result<Vec<Reading>> {
    decode(&bytes(page)?).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Does that server live, though it accepts nobody more? See [`policy::pulse::is_full`].
pub fn is_full(page: impl AsFd, now: Time) -> bool {
    bytes(page).is_ok_and(|bytes| policy::pulse::is_full(&bytes, now))
}

fn bytes(page: impl AsFd) -> io::Result<Vec<u8>> {
    let size = rustix::fs::fstat(&page)?.st_size as u64;
    let mut bytes = vec![0; size.min(words(MOST, MOST) as u64 * 8) as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        match pread(&page, &mut bytes[filled..], filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// What the kernel says of a thread of a process; `None` if it is gone.
pub fn processor(pid: i32, tid: u32) -> Option<Processor> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/{name}")).ok();
    // behind the name, which may hold anything
    let stat = read("stat")?;
    let state = stat.rsplit(')').next()?.trim_start().chars().next()?;
    let used: u64 = read("schedstat")?.split_whitespace().next()?.parse().ok()?;
    Some(Processor { runnable: state == 'R', used: Duration::from_nanos(used) })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_knows_what_a_thread_has_used() {
        let (pid, tid) = (std::process::id() as i32, rustix::thread::gettid().as_raw_nonzero().get() as u32);
        let before = super::processor(pid, tid).unwrap();
        assert!(before.runnable);
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while super::processor(pid, tid).unwrap().used == before.used {
            assert!(std::time::Instant::now() < until);
        }
        assert_eq!(super::processor(pid, u32::MAX), None);
    }

    #[test]
    fn what_is_no_page_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(super::read(null).unwrap_err().to_string().contains("not a pulse page"));
        let program = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(super::read(program).unwrap_err().to_string().contains("not a pulse page"));
    }
}
