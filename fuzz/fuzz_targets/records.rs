//! Records as a backend stores them, cut or foreign, are read or refused: never a panic, never a hang (P10).
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidegate::fuzzing::records(data));
