//! What a dead process has left to the next one: in memory, and on disk.

use bytes::Bytes;
use policy::handover::Facts;
use proxy::cache::record as file;
use proxy::continuity::resume::resume;
use proxy::continuity::{Size, Table};
use rustix::io::pwrite;
use std::os::fd::AsFd;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Slots and buffers behind a header that is right, and what the kernel says: whatever they say, each connection goes on
/// with bytes that were kept, or is closed.
pub fn table(bytes: &[u8]) {
    let Some((kernel, records)) = bytes.split_first_chunk::<17>() else { return };
    let size = Size { slots: 4, buffers: 2 };
    let made = Table::create(size).expect("a table");
    // only 5 of the 8 words of a slot mean something, and only the beginning of a buffer
    let (slots, buffers) = records.split_at(records.len().min(size.slots * 40));
    let put = |bytes: &[u8], at: usize| {
        pwrite(&made, bytes, at as u64).expect("room");
    };
    slots.chunks(40).enumerate().for_each(|(n, slot)| put(slot, 64 + 64 * n));
    let second = buffers.len() / 2;
    put(&buffers[..second.min(BUFFER)], 64 + 64 * size.slots);
    put(&buffers[second..][..(buffers.len() - second).min(BUFFER)], 64 + 64 * size.slots + BUFFER);
    let table = Table::open(made.as_fd().try_clone_to_owned().expect("an fd")).expect("what was made");
    let word = |at: usize| u64::from_le_bytes(kernel[at..at + 8].try_into().expect("eight bytes"));
    let facts = Facts {
        bytes_in: (kernel[16] & 1 == 0).then(|| word(0)),
        bytes_out: (kernel[16] & 2 == 0).then(|| word(8)),
        closed: kernel[16] & 4 != 0,
    };
    for fd in table.fds() {
        if let Some(Ok(found)) = resume(&table, fd, &facts) {
            assert!(found.bytes.len() <= BUFFER);
            assert!(found.head().len() <= 8 << 10);
            if let Some(rest) = found.rest() {
                assert!(rest.body_sent <= rest.body_len);
            }
        }
    }
}

/// Bytes of a buffer of the table.
const BUFFER: usize = 16 << 10;

/// A file of the cache, with its checksum made right: what is read is written and read again as the same.
pub fn record(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    let now = (Instant::now(), UNIX_EPOCH + std::time::Duration::from_secs(1 << 31));
    decode_large(&bytes, now);
    if let Some((sum, rest)) = bytes.get_mut(8..).and_then(|b| b.split_first_chunk_mut::<8>()) {
        *sum = file::checksum(&[rest]).to_le_bytes();
    }
    decode_large(&bytes, now);
    let Some((key, entry)) = file::decode(Bytes::from(bytes), now) else { return };
    let (head, body) = file::encode(&key, &entry, now).expect("what was read can be written");
    let again = [&head[..], &body[..]].concat();
    let (same, entry) = file::decode(Bytes::from(again.clone()), now).expect("what was written can be read");
    assert_eq!(same, key);
    let (head, body) = file::encode(&key, &entry, now).expect("twice");
    assert!([&head[..], &body[..]].concat() == again, "written twice, and not the same");
}

fn decode_large(bytes: &[u8], now: (Instant, SystemTime)) {
    if file::is_large(bytes) {
        let _ = file::decode_large(crate::memory_file(bytes), bytes.len() as u64, now);
    }
}
