//! What a server leaves behind, so that the next one can go on with its connections when it is killed.
//!
//! Each connection has a record in a [`table::Table`] of shared memory, by fd number, and the bytes of its unanswered
//! requests in a buffer there. A connection's [`journal::Journal`] is the only writer of its record. Every change is made
//! whole by one store, so a kill between any two instructions leaves a record that is true; what a system call did just
//! before its record could say so, the kernel is asked for (`policy::handover`).
//!
//! Read in this order: [`table`] (the memory), [`journal`] (who writes), [`resume`] (who reads).

pub mod journal;
#[allow(unsafe_code)]
mod map;
pub mod resume;
pub mod table;

pub use journal::ForwardMark;
pub use resume::Resume;
pub use table::{Size, Table};
