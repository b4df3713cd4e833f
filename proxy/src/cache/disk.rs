//! The tier on disk: a file for each entry of the store, found by its name.
//!
//! ```text
//! DIR/<when it came>-<number of its key>-<its size>       all hexadecimal
//! DIR/tmp-<process>-<count>                               being written
//! ```
//!
//! A file gets its name when it is whole (rename(2)), so a process that is killed leaves only temporary files. All that must
//! be known at the start is in the names: a new server reads one directory and no file. What is read is believed only with
//! its checksum. The oldest go first. Everything here blocks: it belongs on the threads for that.
//!
//! Two servers may use the directory at once while one takes over from the other: each knows its own files, and takes it
//! calmly if one has gone.

use super::large::{Large, Temporary, Writer};
use super::object::Object;
use super::record;
use super::store::{Entry, Key};
use bytes::Bytes;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Names that are put into the index at once.
const AT_ONCE: usize = 1000;
/// So many keys can be forgotten before it is known what there is; beyond that nothing of it counts.
const MOST_FORGOTTEN: usize = 1 << 16;
/// So much of the file system is left to others.
const RESERVE: u64 = 64 << 20;
/// How often the file system is asked for room for a file that grows, in bytes.
const STEP: u64 = 16 << 20;
/// A file costs at least a block, and its place in a directory.
const BLOCK: u64 = 4096;

#[derive(Debug, Default)]
struct Index {
    files: HashMap<u128, (u64, u64)>,
    order: BTreeSet<(u64, u128)>,
    /// Announced and not yet written: by which ticket. Whoever removes or replaces an entry takes the ticket away.
    pending: HashMap<u128, u64>,
    /// Those of them that are open: whoever removes one tells it.
    large: HashMap<u128, Weak<Large>>,
    bytes: u64,
    /// Of files that are being written and have no name yet.
    begun: u64,
    next: u64,
    /// What was forgotten before it was known what there is: what is found of it isn't brought back.
    forgotten: Forgotten,
}

#[derive(Debug, Default)]
struct Forgotten {
    numbers: HashSet<u128>,
    /// It was more than can be remembered.
    all: bool,
}

impl Forgotten {
    fn add(&mut self, number: u128) {
        self.all |= self.numbers.len() >= MOST_FORGOTTEN;
        if !self.all {
            self.numbers.insert(number);
        }
    }

    fn has(&self, number: u128) -> bool {
        self.all || self.numbers.contains(&number)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    max: u64,
    /// So much of the file system is left to others.
    reserve: u64,
    index: Mutex<Index>,
    /// Somebody has begun to find out what is there.
    claimed: AtomicBool,
    /// It is known.
    known: AtomicBool,
    scanning: Mutex<()>,
    temporary: AtomicU64,
    damaged: AtomicU64,
    refused: AtomicU64,
}

/// Numbers of the tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskStats {
    /// Files.
    pub files: usize,
    /// Bytes, in whole blocks.
    pub bytes: u64,
    /// Files that were dropped because something was wrong with them.
    pub damaged: u64,
    /// Entries that weren't written: no room on the file system, or an error.
    pub refused: u64,
}

impl Index {
    fn add(&mut self, number: u128, at: u64, size: u64) -> Option<(u64, u64)> {
        let had = self.remove(number);
        self.files.insert(number, (at, size));
        self.order.insert((at, number));
        self.bytes += on_disk(size);
        self.next = self.next.max(at + 1);
        had
    }

    fn remove(&mut self, number: u128) -> Option<(u64, u64)> {
        let (at, size) = self.files.remove(&number)?;
        self.order.remove(&(at, number));
        if let Some(large) = self.large.remove(&number).and_then(|l| l.upgrade()) {
            large.close();
        }
        self.bytes -= on_disk(size);
        Some((at, size))
    }
}

fn on_disk(size: u64) -> u64 {
    size.div_ceil(BLOCK) * BLOCK
}

impl Disk {
    /// In `dir`, of at most `max` bytes. Nothing is touched before [`Disk::scan`].
    pub fn new(dir: PathBuf, max: u64) -> Disk {
        Disk {
            dir,
            max,
            reserve: RESERVE,
            index: Mutex::default(),
            claimed: AtomicBool::new(false),
            known: AtomicBool::new(false),
            scanning: Mutex::default(),
            temporary: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// The one who is first to ask; he has to call [`Disk::scan`].
    pub fn claims_scan(&self) -> bool {
        !self.claimed.swap(true, Ordering::AcqRel)
    }

    /// Who has claimed it couldn't begin: somebody else may.
    pub fn unclaim_scan(&self) {
        self.claimed.store(false, Ordering::Release);
    }

    /// It is known what is there.
    pub fn is_known(&self) -> bool {
        self.known.load(Ordering::Acquire)
    }

    /// Finds what is there. Needed once, by the server that serves: one that stands by would see too little. Who comes
    /// meanwhile waits for the end of it.
    ///
    /// # Errors
    /// The directory can't be made or read.
    pub fn scan(&self) -> io::Result<()> {
        let _one = self.scanning.lock().expect("never poisoned");
        if self.is_known() {
            return Ok(());
        }
        self.claimed.store(true, Ordering::Release);
        let (found, mut gone) = match self.list() {
            Ok(both) => both,
            Err(e) => {
                // then there is nothing
                self.known.store(true, Ordering::Release);
                return Err(e);
            }
        };
        // event threads look into the index: they wait for neither the directory nor all of it
        for some in found.chunks(AT_ONCE) {
            let mut index = self.index.lock().expect("never poisoned");
            for &(at, number, size) in some {
                let had = index.files.get(&number).copied();
                if had == Some((at, size)) || index.pending.get(&number) == Some(&at) {
                    // one of ours
                    continue;
                }
                // of two with the same key the newer one counts
                if had.is_some_and(|had| had > (at, size)) || index.forgotten.has(number) {
                    gone.push(self.path(number, at, size));
                } else if let Some((at, size)) = index.add(number, at, size) {
                    gone.push(self.path(number, at, size));
                }
            }
        }
        let mut index = self.index.lock().expect("never poisoned");
        // what was forgotten during the last of these steps was in the index by then, or is in this
        index.forgotten = Forgotten::default();
        self.known.store(true, Ordering::Release);
        gone.extend(self.evict(&mut index, 0));
        drop(index);
        gone.iter().for_each(|p| drop(fs::remove_file(p)));
        Ok(())
    }

    /// The names of entries, and the files that are of no use.
    fn list(&self) -> io::Result<(Vec<Name>, Vec<PathBuf>)> {
        fs::create_dir_all(&self.dir)?;
        let (mut found, mut gone) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.dir)?.flatten() {
            match entry.file_name().to_str().and_then(parse) {
                Some(name) => found.push(name),
                // another process may be writing it just now
                None if is_left_over(&entry) => gone.push(entry.path()),
                None => {}
            }
        }
        Ok((found, gone))
    }

    fn path(&self, number: u128, at: u64, size: u64) -> PathBuf {
        self.dir.join(format!("{at:016x}-{number:032x}-{size:x}"))
    }

    /// Makes room for `more` bytes; what has to be deleted is returned.
    fn evict(&self, index: &mut Index, more: u64) -> Vec<PathBuf> {
        let mut gone = Vec::new();
        while index.bytes + index.begun + more > self.max
            && let Some(&(at, number)) = index.order.first()
        {
            let size = index.files.get(&number).map_or(0, |f| f.1);
            gone.push(self.path(number, at, size));
            index.remove(number);
        }
        gone
    }

    /// Is there a file for this key, or is one being written? Doesn't block.
    pub fn knows(&self, key: &str) -> bool {
        let number = record::number(key);
        let index = self.index.lock().expect("never poisoned");
        index.files.contains_key(&number) || index.pending.contains_key(&number)
    }

    /// Says that an entry is going to be written, in the order in which entries come; what is removed meanwhile isn't
    /// written any more. Doesn't block.
    pub fn announce(&self, key: &str) -> u64 {
        let mut index = self.index.lock().expect("never poisoned");
        // newer than what any server has written, also one whose files aren't known yet
        let ticket = index.next.max(nanos());
        index.next = ticket + 1;
        index.pending.insert(record::number(key), ticket);
        ticket
    }

    /// What there is for a key.
    pub fn read(self: &Arc<Self>, key: &str) -> Option<Entry> {
        let number = record::number(key);
        let (at, size) = *self.index.lock().expect("never poisoned").files.get(&number)?;
        let path = self.path(number, at, size);
        match read_file(&path, size) {
            Some((k, entry)) if k == key => {
                if let Entry::Object(o) = &entry
                    && let Some(large) = o.on_disk()
                {
                    large.set_place(self, key.into());
                    let mut index = self.index.lock().expect("never poisoned");
                    // it may have gone meanwhile
                    match index.files.get(&number) {
                        Some(&now) if now == (at, size) => {
                            index.large.insert(number, Arc::downgrade(large));
                        }
                        _ => large.close(),
                    }
                }
                Some(entry)
            }
            // two keys with one number: it is the other's
            Some(_) => None,
            None if path.exists() => {
                self.damaged(key);
                None
            }
            None => {
                self.remove(key);
                None
            }
        }
    }

    /// Drops what turned out to be damaged.
    pub(super) fn damaged(&self, key: &str) {
        self.damaged.fetch_add(1, Ordering::Relaxed);
        log::warn!("event=cache-file-damaged dir={:?} key={key:?}", self.dir.display().to_string());
        self.remove(key);
    }

    /// Something couldn't be written.
    pub(super) fn refuse(&self, e: &io::Error) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        log::debug!("event=cache-file-not-written: {e}");
    }

    /// May a body of this size be kept at all?
    pub(super) fn takes(&self, len: u64) -> bool {
        on_disk(Writer::size(len)) <= self.max
    }

    /// A file for a body of `len` bytes, or of an unknown length.
    ///
    /// # Errors
    /// No room, or what the file system says.
    pub(super) fn begin_large(self: &Arc<Self>, len: Option<u64>) -> io::Result<Writer> {
        let size = len.map_or(0, Writer::size);
        self.room(size)?;
        let begun = Begun { disk: self.clone(), bytes: 0 };
        Writer::new(Temporary::new(self.temporary_name(), begun), len)
    }

    /// Appends to a file. If its length isn't known, there is looked for room step by step.
    ///
    /// # Errors
    /// No room, or what the file system says.
    pub(super) fn append(&self, writer: &mut Writer, bytes: &[u8]) -> io::Result<()> {
        let size = writer.size_so_far();
        let more = size + bytes.len() as u64;
        // what doesn't come makes nobody go
        writer.grow(more)?;
        if !writer.has_length() && more / STEP != size / STEP {
            self.room(STEP)?;
        }
        writer.write(bytes)
    }

    /// Removes old files until there is room for one of so many bytes.
    fn make_room(&self, size: u64) {
        let gone = self.evict(&mut self.index.lock().expect("never poisoned"), on_disk(size));
        gone.iter().for_each(|p| drop(fs::remove_file(p)));
    }

    /// Gives a written body its header and its name, unless its ticket has been taken away.
    pub(super) fn publish_large(self: &Arc<Self>, key: &Key, o: &Object, file: Temporary, ticket: u64) {
        let Some(large) = o.on_disk() else { return };
        let number = record::number(key);
        let size = large.size();
        let path = self.path(number, ticket, size);
        large.set_place(self, key.clone());
        let now = (Instant::now(), SystemTime::now());
        let put = large.put_header(|at| record::encode_large(key, o, large, at, now));
        if let Err(e) = put.and_then(|()| file.publish(&path)) {
            self.refuse(&e);
            large.close();
            return self.remove_if(number, Some(ticket));
        }
        self.publish(number, ticket, size, path, Some(large));
    }

    /// Writes an entry, in the place of an older one, unless its ticket has been taken away.
    pub fn write(&self, key: &str, entry: &Entry, ticket: u64) {
        let number = record::number(key);
        let temporary = self.temporary_name();
        let written = self.write_temporary(key, entry, &temporary);
        let size = match written {
            Ok(Some(size)) => size,
            other => {
                if let Err(e) = other {
                    self.refuse(&e);
                }
                let _ = fs::remove_file(&temporary);
                // what is there is older than what isn't written
                return self.remove_if(number, Some(ticket));
            }
        };
        // event threads look into the index: the disk isn't waited for with it in hand
        let path = self.path(number, ticket, size);
        if fs::rename(&temporary, &path).is_err() {
            let _ = fs::remove_file(&temporary);
            return self.remove_if(number, Some(ticket));
        }
        self.publish(number, ticket, size, path, None);
    }

    /// Puts a file that has its name into the index, unless its ticket has been taken away.
    fn publish(&self, number: u128, ticket: u64, size: u64, path: PathBuf, large: Option<&Arc<Large>>) {
        let mut gone = Vec::new();
        let mut index = self.index.lock().expect("never poisoned");
        if index.pending.get(&number) == Some(&ticket) {
            index.pending.remove(&number);
            gone.extend(index.add(number, ticket, size).map(|(at, size)| self.path(number, at, size)));
            index.large.extend(large.map(|l| (number, Arc::downgrade(l))));
            gone.extend(self.evict(&mut index, 0));
        } else {
            large.into_iter().for_each(|l| l.close());
            gone.push(path);
        }
        drop(index);
        gone.iter().for_each(|p| drop(fs::remove_file(p)));
    }

    /// The size of what was written; None if it is nothing for the disk.
    fn write_temporary(&self, key: &str, entry: &Entry, path: &Path) -> io::Result<Option<u64>> {
        let now = (Instant::now(), SystemTime::now());
        let Some((head, body)) = record::encode(key, entry, now) else { return Ok(None) };
        let size = (head.len() + body.len()) as u64;
        if on_disk(size) > self.max {
            return Ok(None);
        }
        self.room(size)?;
        self.make_room(size);
        write_file(path, &head, &body)?;
        Ok(Some(size))
    }

    /// Forgets a key.
    pub fn remove(&self, key: &str) {
        self.remove_if(record::number(key), None);
    }

    /// Forgets a key without waiting for the disk: what is to be removed is returned. None if there was nothing.
    pub fn take(&self, key: &str) -> Option<Option<PathBuf>> {
        self.take_if(record::number(key), None)
    }

    /// Forgets a number, if it has this ticket.
    fn remove_if(&self, number: u128, ticket: Option<u64>) {
        if let Some(Some(path)) = self.take_if(number, ticket) {
            let _ = fs::remove_file(path);
        }
    }

    fn take_if(&self, number: u128, ticket: Option<u64>) -> Option<Option<PathBuf>> {
        let mut index = self.index.lock().expect("never poisoned");
        if ticket.is_some() && index.pending.get(&number) != ticket.as_ref() {
            return None;
        }
        let pending = index.pending.remove(&number).is_some();
        if !self.is_known() {
            index.forgotten.add(number);
        }
        let had = index.remove(number).map(|(at, size)| self.path(number, at, size));
        (pending || had.is_some()).then_some(had)
    }

    fn temporary_name(&self) -> PathBuf {
        let n = self.temporary.fetch_add(1, Ordering::Relaxed);
        self.dir.join(format!("tmp-{}-{n}", std::process::id()))
    }

    fn room(&self, size: u64) -> io::Result<()> {
        match fs2::available_space(&self.dir)? >= size.saturating_add(self.reserve) {
            true => Ok(()),
            false => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    /// Its numbers.
    pub fn stats(&self) -> DiskStats {
        let index = self.index.lock().expect("never poisoned");
        DiskStats {
            files: index.files.len(),
            bytes: index.bytes,
            damaged: self.damaged.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

/// A file that is being written, as far as it counts for the bound.
pub(super) struct Begun {
    disk: Arc<Disk>,
    bytes: u64,
}

impl Begun {
    /// It will have so many bytes; old files make room for it.
    ///
    /// # Errors
    /// What is being written would be more than there may be.
    pub fn grow(&mut self, size: u64) -> io::Result<()> {
        let more = on_disk(size).saturating_sub(self.bytes);
        let mut index = self.disk.index.lock().expect("never poisoned");
        if index.begun + more > self.disk.max {
            return Err(io::ErrorKind::StorageFull.into());
        }
        index.begun += more;
        self.bytes += more;
        let gone = self.disk.evict(&mut index, 0);
        drop(index);
        gone.iter().for_each(|p| drop(fs::remove_file(p)));
        Ok(())
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.disk.index.lock().expect("never poisoned").begun -= self.bytes;
    }
}

fn nanos() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// When an entry came, the number of its key, and its size.
type Name = (u64, u128, u64);

fn parse(name: &str) -> Option<Name> {
    let mut parts = name.split('-');
    let (at, number, size) = (parts.next()?, parts.next()?, parts.next()?);
    if at.len() != 16 || number.len() != 32 || parts.next().is_some() {
        return None;
    }
    Some((
        u64::from_str_radix(at, 16).ok().filter(|at| *at < 1 << 63)?,
        u128::from_str_radix(number, 16).ok()?,
        u64::from_str_radix(size, 16).ok().filter(|size| *size < 1 << 48)?,
    ))
}

/// Nobody is going to give it a name: its process has ended, or hasn't written for long.
fn is_left_over(entry: &fs::DirEntry) -> bool {
    let name = entry.file_name();
    let Some(rest) = name.to_str().and_then(|n| n.strip_prefix("tmp-")) else { return false };
    let pid = rest.split_once('-').and_then(|(pid, _)| pid.parse::<u32>().ok());
    let has_ended = |pid| pid != std::process::id() && !Path::new(&format!("/proc/{pid}")).exists();
    let age = entry.metadata().and_then(|m| m.modified()).map(|m| m.elapsed().unwrap_or_default());
    pid.is_some_and(has_ended) || age.is_ok_and(|a| a.as_secs() > 60)
}

/// What a file of this size says; None if anything is wrong with it.
fn read_file(path: &Path, size: u64) -> Option<(String, Entry)> {
    let mut file = fs::File::open(path).ok()?;
    let mut start = [0; 8];
    if file.metadata().ok()?.len() != size || file.read_exact(&mut start).is_err() {
        return None;
    }
    let now = (Instant::now(), SystemTime::now());
    if record::is_large(&start) {
        return record::decode_large(file, size, now);
    }
    let mut bytes = Vec::with_capacity(size as usize);
    bytes.extend_from_slice(&start);
    file.read_to_end(&mut bytes).ok()?;
    record::decode(Bytes::from(bytes), now)
}

fn write_file(path: &Path, head: &[u8], body: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(head)?;
    file.write_all(body)
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
