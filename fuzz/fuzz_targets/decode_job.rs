//! Bytes from a queue, of any size and sense, become a job or a clear error: never a panic, never a hang (P10).
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidegate::fuzzing::decode_job(data));
