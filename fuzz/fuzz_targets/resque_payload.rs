//! A job in the layout of Resque, of any bytes: understood or answered, and kept byte for byte as a failed one (P10).
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidegate::fuzzing::resque_payload(data));
