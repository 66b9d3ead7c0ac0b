//! What the tests of stopping, healing and staying flat have in common: a server that can be lost, jobs that
//! misbehave, a record of the log, and counts of what is left.

#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod jobs;
pub(crate) mod left;
pub(crate) mod log;
pub(crate) mod pops;
pub(crate) mod running;
pub(crate) mod server;
