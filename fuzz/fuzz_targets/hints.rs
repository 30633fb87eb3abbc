//! See `hints` in the library.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quoral_fuzz::bodies::hints(data));
