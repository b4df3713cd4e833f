//! The timer wheel: hierarchical, pure, exact.
//!
//! Seven levels of 64 slots (Varghese and Lauck, scheme 7; kernel timers and tokio have the same shape). A slot of
//! level *n* spans 64^n ticks. A timer lies on the level of the highest bit in which its deadline differs from
//! `elapsed`, so that everything on a lower level is due before everything on a higher one. When `elapsed` reaches a
//! slot of a higher level, its timers fall to the levels below ("cascade"), at most six times in a timer's life.
//!
//! What it promises, and the property test in `tests/wheel.rs` holds it to:
//!
//! - it knows no clock: a tick is what the caller says it is, and time comes in through [`Wheel::pop`];
//! - insert, cancel and reset are O(1): entries are in a slab, slots are doubly linked lists of indices;
//! - timers come out in the order of their deadlines, and in the order of insertion where these are equal;
//! - a jump over any distance costs what is due, not the distance;
//! - [`Wheel::next`] is never later than the earliest deadline, and equal to it unless timers were cancelled: each slot
//!   remembers the earliest deadline that ever was in it, so nobody has to wake up merely to cascade;
//! - a key of a timer that has fired or was cancelled is recognised by its generation and does nothing.

const BITS: u32 = 6;
const SLOTS: usize = 1 << BITS;
const LEVELS: usize = 7;
/// The end of time, 139 years at a millisecond a tick: whatever is later is taken for it.
pub const MAX_TICK: u64 = (1 << (BITS * LEVELS as u32)) - 1;
const NONE: u32 = u32::MAX;

/// Names one timer of one wheel for ever: the key of a timer that is over never names another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TimerKey {
    index: u32,
    generation: u32,
}

impl TimerKey {
    /// As one word, for places that want an atomic.
    pub fn to_bits(self) -> u64 {
        u64::from(self.index) << 32 | u64::from(self.generation)
    }

    /// The inverse of [`TimerKey::to_bits`].
    pub fn from_bits(bits: u64) -> Self {
        TimerKey { index: (bits >> 32) as u32, generation: bits as u32 }
    }
}

struct Entry<V> {
    deadline: u64,
    generation: u32,
    prev: u32,
    next: u32,
    /// level * 64 + slot
    place: u16,
    /// None: free, and `next` is the free list
    value: Option<V>,
}

#[derive(Clone, Copy)]
struct Slot {
    head: u32,
    tail: u32,
    /// Not later than any deadline in the slot.
    earliest: u64,
}

const EMPTY: Slot = Slot { head: NONE, tail: NONE, earliest: u64::MAX };

struct Level {
    occupied: u64,
    slots: [Slot; SLOTS],
}

/// A set of timers carrying values.
pub struct Wheel<V> {
    elapsed: u64,
    levels: [Level; LEVELS],
    entries: Vec<Entry<V>>,
    free: u32,
    len: usize,
}

impl<V> Default for Wheel<V> {
    fn default() -> Self {
        Self::new(0)
    }
}

impl<V> Wheel<V> {
    /// An empty wheel at tick `now`.
    pub fn new(now: u64) -> Self {
        let levels = std::array::from_fn(|_| Level { occupied: 0, slots: [EMPTY; SLOTS] });
        Wheel { elapsed: now.min(MAX_TICK), levels, entries: Vec::new(), free: NONE, len: 0 }
    }

    /// Live timers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No live timers.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A timer for tick `deadline`; one that has passed is due at once.
    pub fn insert(&mut self, deadline: u64, value: V) -> TimerKey {
        let index = match self.free {
            NONE => {
                let index = self.entries.len() as u32;
                assert!(index != NONE, "more than 4 billion timers");
                let entry = Entry {
                    deadline: 0,
                    generation: 0,
                    prev: NONE,
                    next: NONE,
                    place: 0,
                    value: Some(value),
                };
                self.entries.push(entry);
                index
            }
            index => {
                let entry = &mut self.entries[index as usize];
                self.free = entry.next;
                entry.value = Some(value);
                index
            }
        };
        self.entries[index as usize].deadline = deadline.clamp(self.elapsed, MAX_TICK);
        self.link(index);
        self.len += 1;
        TimerKey { index, generation: self.entries[index as usize].generation }
    }

    /// Takes a timer out. None: it has fired or was cancelled before.
    pub fn cancel(&mut self, key: TimerKey) -> Option<V> {
        self.check(key)?;
        self.unlink(key.index);
        Some(self.release(key.index))
    }

    /// Moves a timer to another deadline. False: it has fired or was cancelled before.
    pub fn reset(&mut self, key: TimerKey, deadline: u64) -> bool {
        if self.check(key).is_none() {
            return false;
        }
        self.unlink(key.index);
        self.entries[key.index as usize].deadline = deadline.clamp(self.elapsed, MAX_TICK);
        self.link(key.index);
        true
    }

    /// The value of a live timer.
    pub fn get_mut(&mut self, key: TimerKey) -> Option<&mut V> {
        self.check(key)?.value.as_mut()
    }

    /// Moves the time to `now` (never back) and takes out the earliest timer that is due, if any. Call until None.
    pub fn pop(&mut self, now: u64) -> Option<V> {
        let now = now.clamp(self.elapsed, MAX_TICK);
        loop {
            let first = self.first();
            let Some((level, slot)) = first.filter(|&(level, slot)| self.starts(level, slot) <= now) else {
                self.elapsed = now;
                return None;
            };
            self.elapsed = self.elapsed.max(self.starts(level, slot));
            if level == 0 {
                let index = self.levels[0].slots[slot].head;
                self.unlink(index);
                return Some(self.release(index));
            }
            self.cascade(level, slot);
        }
    }

    /// When to call [`Wheel::pop`] next: not later than the earliest deadline.
    pub fn next(&self) -> Option<u64> {
        self.first().map(|(level, slot)| self.levels[level].slots[slot].earliest)
    }

    /// The lowest level that has timers, and its first slot with some. There is no wrap-around: all deadlines of a
    /// level agree with `elapsed` in the bits above that level.
    fn first(&self) -> Option<(usize, usize)> {
        let level = self.levels.iter().position(|l| l.occupied != 0)?;
        Some((level, self.levels[level].occupied.trailing_zeros() as usize))
    }

    /// The first tick of a slot.
    fn starts(&self, level: usize, slot: usize) -> u64 {
        let shift = level as u32 * BITS;
        let above = self.elapsed >> (shift + BITS) << (shift + BITS);
        above | (slot as u64) << shift
    }

    fn cascade(&mut self, level: usize, slot: usize) {
        let mut index = self.levels[level].slots[slot].head;
        self.levels[level].slots[slot] = EMPTY;
        self.levels[level].occupied &= !(1 << slot);
        while index != NONE {
            let next = self.entries[index as usize].next;
            self.link(index);
            index = next;
        }
    }

    fn check(&mut self, key: TimerKey) -> Option<&mut Entry<V>> {
        self.entries
            .get_mut(key.index as usize)
            .filter(|e| e.generation == key.generation && e.value.is_some())
    }

    fn link(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        let differs = entry.deadline ^ self.elapsed;
        let level = ((63 - (differs | 1).leading_zeros()) / BITS) as usize;
        let slot = (entry.deadline >> (level as u32 * BITS)) as usize % SLOTS;
        entry.place = (level * SLOTS + slot) as u16;
        let list = &mut self.levels[level].slots[slot];
        let deadline = entry.deadline;
        entry.prev = list.tail;
        entry.next = NONE;
        list.earliest = list.earliest.min(deadline);
        let tail = std::mem::replace(&mut list.tail, index);
        if tail == NONE {
            list.head = index;
            self.levels[level].occupied |= 1 << slot;
        } else {
            self.entries[tail as usize].next = index;
        }
    }

    fn unlink(&mut self, index: u32) {
        let Entry { prev, next, place, .. } = self.entries[index as usize];
        let (level, slot) = (usize::from(place) / SLOTS, usize::from(place) % SLOTS);
        let list = &mut self.levels[level].slots[slot];
        if prev == NONE {
            list.head = next;
        }
        if next == NONE {
            list.tail = prev;
        }
        if list.head == NONE {
            *list = EMPTY;
            self.levels[level].occupied &= !(1 << slot);
        }
        if prev != NONE {
            self.entries[prev as usize].next = next;
        }
        if next != NONE {
            self.entries[next as usize].prev = prev;
        }
    }

    fn release(&mut self, index: u32) -> V {
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.next = self.free;
        self.free = index;
        self.len -= 1;
        entry.value.take().expect("a linked entry has a value")
    }
}
