//! `tidegate run`, run as an operator runs it: the built program, a configuration, an SQLite file, signals, commands.
//!
//! Each test has a folder of its own and waits for events (a line of the log, the other end of a FIFO), never for
//! time. Each run is looked after: when it is over, no process that descends from it may be left.

#![cfg(feature = "cli")]

#[path = "support/disk.rs"]
mod disk;
#[path = "support/fed.rs"]
mod fed;
// Some of it is for `each` only.
#[allow(dead_code)]
#[path = "each/support.rs"]
mod support;

#[path = "daemon/scene.rs"]
mod scene;

#[path = "daemon/cancelling.rs"]
mod cancelling;
#[path = "daemon/config.rs"]
mod config;
#[path = "daemon/ending.rs"]
mod ending;
#[path = "daemon/jobs.rs"]
mod jobs;
#[path = "daemon/log.rs"]
mod log;
#[path = "daemon/refusals.rs"]
mod refusals;
#[path = "daemon/reload.rs"]
mod reload;
