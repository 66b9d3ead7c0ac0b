//! The text of a configuration, of any size and sense, is read or refused, and no secret in it is shown (P10).
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidegate::fuzzing::config(data));
