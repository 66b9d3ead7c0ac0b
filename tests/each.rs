//! `tidegate each`, run as a person runs it: the built program, its streams, its signals, its children.
//!
//! Each test has a folder of its own and waits for events (a line on a pipe, the other end of a FIFO), never
//! for time. Each run is looked after: when it is over, no process that descends from it may be left.

#![cfg(feature = "cli")]

#[path = "support/disk.rs"]
mod disk;
#[path = "support/fed.rs"]
mod fed;
#[path = "support/pty.rs"]
mod pty;
#[path = "each/support.rs"]
mod support;

#[path = "each/durable.rs"]
mod durable;
#[path = "each/ending.rs"]
mod ending;
#[path = "each/flow.rs"]
mod flow;
#[path = "each/output.rs"]
mod output;
#[path = "each/progress.rs"]
mod progress;
#[path = "each/read_only.rs"]
mod read_only;
#[path = "each/records.rs"]
mod records;
#[path = "each/refusals.rs"]
mod refusals;
