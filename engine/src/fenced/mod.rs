//! The only unsafe code of the crate; everything outside is `deny(unsafe_code)`.
//!
//! Two things need it, each behind an interface that is safe for every caller: the lock-free stack that carries events
//! into a thread ([`stack`]) and the page that another process reads ([`page`]).

pub(crate) mod stack;
