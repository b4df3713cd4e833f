//! See `fuzz::notify`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::notify(data));
