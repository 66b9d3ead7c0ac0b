//! The bytes of a line, of any size and sense, become a job that queues take, or a clear refusal (P10).
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidegate::fuzzing::job_line(data));
