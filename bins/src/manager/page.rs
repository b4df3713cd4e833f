//! A page of memory that outlives who writes it: whoever holds its fd reads what was written last, also if the writer was
//! killed while it wrote. There are two places, each with a number and a sum; the newer one whose sum is right is believed.

use proxy::cache::record::checksum;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// Number, length, sum.
const HEAD: usize = 24;

/// The page.
#[derive(Debug)]
pub struct Page {
    file: File,
    name: &'static str,
    /// Room for one place in bytes, its head included.
    place: u64,
}

impl Page {
    /// A new one, of two places of `place` bytes. It never takes more memory than that, whoever writes it.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn create(name: &'static str, place: u64) -> io::Result<Page> {
        let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        file.set_len(2 * place)?;
        fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(Page { file, name, place })
    }

    /// One that was handed over.
    pub fn open(name: &'static str, place: u64, fd: OwnedFd) -> Page {
        Page { file: fd.into(), name, place }
    }

    /// What was written last, with its number; `None`: nothing yet.
    pub fn newest(&self) -> Option<(u64, Vec<u8>)> {
        (0..2).filter_map(|at| self.read(at)).max_by_key(|p| p.0)
    }

    /// Writes `text` under `number`, one above the newest.
    ///
    /// # Errors
    /// It is longer than a place; there is no memory.
    pub fn write(&self, number: u64, text: &[u8]) -> io::Result<()> {
        if text.len() as u64 > self.place - HEAD as u64 {
            return Err(io::Error::other(format!("{} bytes are more than there is room for", text.len())));
        }
        let at = number % 2 * self.place;
        let words = [number, text.len() as u64, sum(number, text)];
        self.file.write_all_at(text, at + HEAD as u64)?;
        self.file.write_all_at(words.map(u64::to_ne_bytes).as_flattened(), at)
    }

    /// What a place says, with its number; `None`: nothing, or half of something.
    fn read(&self, at: u64) -> Option<(u64, Vec<u8>)> {
        let mut head = [0; HEAD];
        self.file.read_exact_at(&mut head, at * self.place).ok()?;
        let word = |n: usize| u64::from_ne_bytes(head[n * 8..][..8].try_into().expect("eight bytes"));
        let (number, length) = (word(0), word(1));
        if head == [0; HEAD] || length > self.place - HEAD as u64 {
            return None;
        }
        let mut text = vec![0; length as usize];
        self.file.read_exact_at(&mut text, at * self.place + HEAD as u64).ok()?;
        if sum(number, &text) != word(2) {
            log::info!("event=page-torn name={} place={at}", self.name);
            return None;
        }
        Some((number, text))
    }
}

fn sum(number: u64, text: &[u8]) -> u64 {
    checksum(&[&number.to_ne_bytes(), text])
}

impl From<Page> for OwnedFd {
    fn from(page: Page) -> OwnedFd {
        page.file.into()
    }
}

impl AsFd for Page {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: u64 = 4096;

    #[test]
    fn what_is_written_in_part_leaves_what_was_before() {
        let page = Page::create("test", PLACE).unwrap();
        assert_eq!(page.newest(), None);
        let next = |text: &[u8]| page.write(page.newest().map_or(0, |n| n.0) + 1, text);
        next(b"one").unwrap();
        next(b"two").unwrap();
        let again = || Page::open("test", PLACE, page.as_fd().try_clone_to_owned().unwrap()).newest();
        assert_eq!(again(), Some((2, b"two".to_vec())));
        // the third one goes where the first one is
        for part in [&b"thr"[..], b"", b"x"] {
            page.file.write_all_at(part, PLACE + HEAD as u64).unwrap();
            assert_eq!(again(), Some((2, b"two".to_vec())));
        }
        page.file.write_all_at(&[0xff; HEAD], PLACE).unwrap();
        assert_eq!(again(), Some((2, b"two".to_vec())));
        page.file.write_all_at(&[0xff; HEAD], 0).unwrap();
        assert_eq!(again(), None);
        // whoever has it can't have it take more
        assert!(next(&[b'x'; PLACE as usize]).is_err());
        assert!(page.file.set_len(3 * PLACE).is_err() && page.file.write_all_at(b"x", 2 * PLACE).is_err());
    }
}
