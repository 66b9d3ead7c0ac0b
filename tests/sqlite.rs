//! What is the SQLite backend's own: the file outlives processes, many of which share it, die and come back.

#![cfg(feature = "sqlite")]

#[path = "sqlite/file.rs"]
mod file;
#[path = "sqlite/flat.rs"]
mod flat;
#[path = "sqlite/fleet.rs"]
mod fleet;
#[path = "sqlite/shared.rs"]
mod shared;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A folder of the test's own, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tidegate-sqlite-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder for the test");
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
