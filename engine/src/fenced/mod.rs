//! The only unsafe code of the crate; everything outside is `deny(unsafe_code)`.
//!
//! Three things need it, each behind an interface that is safe for every caller: the lock-free stack that carries events
//! into a thread ([`stack`]), the cell that only the event's thread opens ([`owned`]), and the page that another process reads ([`page`]).

pub(crate) mod owned;
pub(crate) mod page;
pub(crate) mod stack;
