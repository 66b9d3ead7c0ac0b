//! What is the SQLite backend's own: the file outlives processes, many of which share it, die and come back.

#![cfg(feature = "sqlite")]

#[path = "support/disk.rs"]
mod disk;
#[path = "sqlite/doors.rs"]
mod doors;
#[path = "sqlite/faults.rs"]
mod faults;
#[path = "sqlite/file.rs"]
mod file;
#[path = "sqlite/flat.rs"]
mod flat;
#[path = "sqlite/fleet/mod.rs"]
mod fleet;
#[path = "sqlite/folder.rs"]
mod folder;
#[path = "sqlite/gone.rs"]
mod gone;
#[path = "support/heap.rs"]
mod heap;
#[path = "sqlite/kept.rs"]
mod kept;
#[path = "sqlite/migrate.rs"]
mod migrate;
#[path = "sqlite/power.rs"]
mod power;
#[path = "sqlite/reading.rs"]
mod reading;
#[path = "sqlite/recorder.rs"]
mod recorder;
#[path = "sqlite/shared.rs"]
mod shared;
