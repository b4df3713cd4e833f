//! See `fuzz::listen_fds`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::listen_fds(data));
