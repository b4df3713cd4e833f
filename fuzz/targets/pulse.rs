//! See `fuzz::pulse`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::pulse(data));
