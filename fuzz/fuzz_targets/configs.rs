//! See `configs` in the library.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quoral_fuzz::bodies::configs(data));
