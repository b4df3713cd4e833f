//! Reading another process's pulse page by its descriptor: see [`policy::pulse`].

use policy::pulse::{MOST, Reading, decode, words};
use rustix::io::pread;
use std::io;
use std::os::fd::AsFd;

/// What each thread is doing at this moment. Nothing is asked of the process, which may be stopped or dead.
///
/// # Errors
/// It can't be read, or is no pulse page.
pub fn read(page: impl AsFd) -> io::Result<Vec<Reading>> {
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
    decode(&bytes[..filled]).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_no_page_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(super::read(null).unwrap_err().to_string().contains("not a pulse page"));
        let program = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(super::read(program).unwrap_err().to_string().contains("not a pulse page"));
    }
}
