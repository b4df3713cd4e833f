//! Who has which buffer of a table.

use super::table::Table;
use std::sync::Mutex;

/// The buffers of a table that nobody uses.
#[derive(Debug)]
pub struct Buffers {
    pub(super) free: Mutex<Vec<u32>>,
}

impl Buffers {
    /// All of them are free. The last one given back is the first one taken, so that memory is touched only as needed.
    pub fn new(n: usize) -> Buffers {
        Buffers { free: Mutex::new((0..n as u32).rev().collect()) }
    }

    pub(super) fn take(&self) -> Option<usize> {
        self.free.lock().expect("never poisoned").pop().map(|b| b as usize)
    }

    /// Of `table`, with so many bytes of it used; no record names it any more. What was read into it is nobody else's: who has it next
    /// may die between a read and its record, and the next server believes the kernel how much that has read.
    pub(super) fn give_back(&self, table: &Table, buffer: usize, used: usize) {
        table.wipe(buffer, used);
        self.free.lock().expect("never poisoned").push(buffer as u32);
    }
}
