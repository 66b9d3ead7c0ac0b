//! A job in the layout of Sidekiq, of any bytes: understood or answered, and the same job after a failure (P4, P10).
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidegate::fuzzing::sidekiq_payload(data));
