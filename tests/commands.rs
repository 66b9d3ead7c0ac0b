//! The commands around a queue, run as a person or a script runs them: the built program, in a folder of its own, over
//! files that the library makes and reads.

#![cfg(feature = "cli")]

#[path = "support/disk.rs"]
mod disk;
#[path = "support/fed.rs"]
mod fed;
#[path = "sqlite/folder.rs"]
mod folder;
#[path = "support/pty.rs"]
mod pty;
#[path = "commands/support.rs"]
mod support;

#[path = "commands/bulk.rs"]
mod bulk;
#[path = "commands/change.rs"]
mod change;
#[path = "commands/enqueue.rs"]
mod enqueue;
#[path = "commands/hostile.rs"]
mod hostile;
#[path = "commands/lines.rs"]
mod lines;
#[path = "commands/list.rs"]
mod list;
#[path = "commands/reading.rs"]
mod reading;
#[path = "commands/refusals.rs"]
mod refusals;
#[path = "commands/shells.rs"]
mod shells;
#[path = "commands/stats.rs"]
mod stats;
#[path = "commands/terminal.rs"]
mod terminal;
