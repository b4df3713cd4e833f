//! Kept answers that are too large for memory: the head is in memory, the body is a file of the tier on disk, and is read
//! block by block as clients take it. Each block has a checksum of its own, so that a damaged one is noticed before a byte
//! of it goes out, and nobody has to read the whole first.
//!
//! ```text
//! header, as `record` has it, with a checksum for each block | room | body
//! ```

use super::disk::{Begun, Disk};
use super::record::{self, Sum};
use super::store::Key;
use crate::body::{Body, BodyError};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::fs::{self, File};
use std::future::Future;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::task::{Context, Poll, ready};

/// Bytes of a body that are read and checked at once.
pub const BLOCK: u64 = 256 << 10;
/// Room for a header beside its checksums.
const HEADER: u64 = 64 << 10;
/// The most that is written of a body whose length isn't known: its checksums have to find room before it.
const MOST_UNKNOWN: u64 = 16 << 30;

/// A body on disk. As long as somebody reads it it can be read, also if it is removed meanwhile.
#[derive(Debug)]
pub struct Large {
    /// None: it is nobody's any more.
    file: Mutex<Option<Arc<File>>>,
    at: u64,
    len: u64,
    sums: Box<[u64]>,
    /// Where it can be removed, once it has its name.
    place: OnceLock<(Weak<Disk>, Key)>,
}

impl Large {
    /// A body of `len` bytes from `at` on in a file.
    pub(super) fn new(file: File, at: u64, len: u64, sums: Vec<u64>) -> Large {
        let file = Mutex::new(Some(Arc::new(file)));
        Large { file, at, len, sums: sums.into(), place: OnceLock::new() }
    }

    /// Says where it is kept.
    pub(super) fn set_place(&self, disk: &Arc<Disk>, key: Key) {
        let _ = self.place.set((Arc::downgrade(disk), key));
    }

    /// Bytes of the body.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// A body of nothing isn't kept like this.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of its file.
    pub(super) fn size(&self) -> u64 {
        self.at + self.len
    }

    /// Bytes of memory its checksums take.
    pub(super) fn weight(&self) -> u64 {
        8 * self.sums.len() as u64
    }

    /// Checksums of its blocks.
    pub(super) fn sums(&self) -> &[u64] {
        &self.sums
    }

    /// Nobody begins to read it from here on.
    pub(super) fn close(&self) {
        self.file.lock().expect("never poisoned").take();
    }

    /// It was removed.
    pub fn is_gone(&self) -> bool {
        self.file.lock().expect("never poisoned").is_none()
    }

    /// The bytes from `from` to before `to`.
    pub fn part(self: &Arc<Self>, from: u64, to: u64) -> Body {
        let file = self.file.lock().expect("never poisoned").clone();
        Body::Stream(Box::pin(Reading { large: self.clone(), file, at: from, to, pending: None }))
    }

    /// Blocks.
    fn read(&self, file: &File, block: u64) -> io::Result<Bytes> {
        let from = block * BLOCK;
        let mut bytes = vec![0; BLOCK.min(self.len - from) as usize];
        let read = file.read_exact_at(&mut bytes, self.at + from);
        let good = read.is_ok() && self.sums.get(block as usize) == Some(&record::checksum(&[&bytes]));
        if good {
            return Ok(bytes.into());
        }
        self.close();
        if let Some((disk, key)) = self.place.get()
            && let Some(disk) = disk.upgrade()
        {
            disk.damaged(key);
        }
        Err(read.err().unwrap_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a damaged block")))
    }
}

type Piece = Pin<Box<dyn Future<Output = io::Result<Bytes>>>>;

/// A body as a client takes it: no more than one block is in memory.
struct Reading {
    large: Arc<Large>,
    file: Option<Arc<File>>,
    at: u64,
    to: u64,
    pending: Option<Piece>,
}

impl HttpBody for Reading {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if this.at >= this.to {
            return Poll::Ready(None);
        }
        let block = this.at / BLOCK;
        let pending = this.pending.get_or_insert_with(|| {
            let (large, file) = (this.large.clone(), this.file.clone());
            Box::pin(async move {
                let read = move || match file {
                    Some(file) => large.read(&file, block),
                    None => Err(io::ErrorKind::NotFound.into()),
                };
                engine::blocking::run(read).await.map_err(io::Error::other)?
            })
        });
        let piece = ready!(pending.as_mut().poll(cx));
        this.pending = None;
        Poll::Ready(Some(match piece {
            Ok(bytes) => {
                let (from, to) = (this.at - block * BLOCK, (this.to - block * BLOCK).min(BLOCK));
                this.at = block * BLOCK + to;
                Ok(Frame::data(bytes.slice(from as usize..to as usize)))
            }
            Err(e) => Err(BodyError::File(e)),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.at >= self.to
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.to - self.at)
    }
}

/// A body on its way to disk. It blocks; dropped before its end, it leaves nothing behind.
pub(super) struct Writer {
    file: File,
    path: Temporary,
    at: u64,
    /// None: nobody has said.
    len: Option<u64>,
    written: u64,
    sums: Vec<u64>,
    block: Sum,
}

/// A file without its name, which is removed unless it gets one.
pub(super) struct Temporary {
    path: PathBuf,
    begun: Begun,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Temporary {
    /// To be made at `path`.
    pub fn new(path: PathBuf, begun: Begun) -> Temporary {
        Temporary { path, begun }
    }

    /// Gives it its name.
    pub fn publish(self, name: &PathBuf) -> io::Result<()> {
        // what is dropped here is the old name, which is nobody's then
        fs::rename(&self.path, name)
    }
}

impl Writer {
    /// A new file for a body of `len` bytes, or of an unknown length.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn new(path: Temporary, len: Option<u64>) -> io::Result<Writer> {
        let at = Writer::room(len.unwrap_or(MOST_UNKNOWN));
        let file = File::options().read(true).write(true).create_new(true).open(&path.path)?;
        io::Seek::seek(&mut &file, io::SeekFrom::Start(at))?;
        Ok(Writer { file, path, at, len, written: 0, sums: Vec::new(), block: Sum::default() })
    }

    /// Bytes before a body of so many.
    fn room(len: u64) -> u64 {
        (HEADER + 8 * len.div_ceil(BLOCK)).next_multiple_of(4096)
    }

    /// Bytes of a file for a body of so many, whose length is known.
    pub fn size(len: u64) -> u64 {
        Writer::room(len) + len
    }

    /// Bytes of the file as far as it has been written.
    pub fn size_so_far(&self) -> u64 {
        self.at + self.written
    }

    /// It was said how much will come.
    pub fn has_length(&self) -> bool {
        self.len.is_some()
    }

    /// There will be so many bytes of it.
    ///
    /// # Errors
    /// There may not be that many.
    pub fn grow(&mut self, size: u64) -> io::Result<()> {
        self.path.begun.grow(size)
    }

    /// Appends.
    ///
    /// # Errors
    /// Those of write(2), or it is more than was announced, or than there is room for checksums.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if self.written + bytes.len() as u64 > self.len.unwrap_or(MOST_UNKNOWN) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.file.write_all(bytes)?;
        while !bytes.is_empty() {
            let n = (BLOCK - self.written % BLOCK).min(bytes.len() as u64);
            self.block.add(&bytes[..n as usize]);
            bytes = &bytes[n as usize..];
            self.written += n;
            if self.written.is_multiple_of(BLOCK) {
                self.sums.push(std::mem::take(&mut self.block).end());
            }
        }
        Ok(())
    }

    /// All of it has come. The file has no header and no name yet.
    ///
    /// # Errors
    /// It is less than was announced.
    pub fn end(mut self) -> io::Result<(Large, Temporary)> {
        if self.len.is_some_and(|len| len != self.written) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !self.written.is_multiple_of(BLOCK) {
            self.sums.push(self.block.end());
        }
        Ok((Large::new(self.file, self.at, self.written, self.sums), self.path))
    }
}

impl Large {
    /// Writes the header into the room before the body.
    ///
    /// # Errors
    /// It is too long, or those of pwrite(2).
    pub(super) fn put_header(&self, header: impl FnOnce(u64) -> Vec<u8>) -> io::Result<()> {
        let header = header(self.at);
        let file = self.file.lock().expect("never poisoned").clone();
        match file {
            Some(file) if header.len() as u64 <= self.at => file.write_all_at(&header, 0),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}
