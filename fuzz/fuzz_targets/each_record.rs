//! The bytes of an input, of any size and sense, become records, and commands or clear refusals (P10).
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidegate::fuzzing::each_record(data));
