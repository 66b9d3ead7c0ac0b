//! What a worker must not leave behind: [`Leftovers`].

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::signals::until;

/// Counts what is there before, to compare with what is there after.
#[derive(Debug)]
pub(crate) struct Leftovers {
    tasks: usize,
    worker: Option<String>,
}

impl Leftovers {
    /// Counts the tasks of this runtime.
    pub(crate) fn before() -> Self {
        Self { tasks: alive_tasks(), worker: None }
    }

    /// Looks for threads of this worker too. Give the worker a [`unique_name`](super::unique_name).
    pub(crate) fn of_worker(mut self, name: &str) -> Self {
        self.worker = Some(name.to_owned());
        self
    }

    /// Fails unless tasks and threads are as they were before.
    ///
    /// A thread that was joined may be listed for a moment longer, and a task that has been dropped is
    /// counted until the runtime has noticed: so it looks until it is so.
    pub(crate) async fn none(self) {
        until("no task is left", || alive_tasks() <= self.tasks).await;
        if let Some(name) = self.worker {
            until("no thread is left", || threads_named(&format!("tidegate-{name}")) == 0).await;
            until("no heartbeat is left", || threads_named(&format!("tidegate-hb-{name}")) == 0).await;
        }
    }

    /// Fails if anybody else still holds `thing`.
    pub(crate) async fn only_mine<T: ?Sized>(what: &str, thing: &Arc<T>) {
        until(&format!("nobody else holds {what}"), || Arc::strong_count(thing) == 1).await;
    }

    /// How many files this process has open, now.
    pub(crate) fn open_files() -> usize {
        fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
    }
}

fn alive_tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// How many threads of this process have this name; Linux keeps 15 bytes of it.
pub(crate) fn threads_named(name: &str) -> usize {
    ids_of_threads(name).count()
}

/// How long the threads of this name have been on a CPU, in steps of ten milliseconds.
pub(crate) fn cpu_time_of_thread(name: &str) -> Duration {
    let ticks = ids_of_threads(name).filter_map(|id| {
        let stat = fs::read_to_string(format!("/proc/self/task/{id}/stat")).ok()?;
        // The fields after the name in brackets, of which user and system time are the 12th and 13th.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    });
    Duration::from_millis(10) * u32::try_from(ticks.sum::<u64>()).unwrap_or(u32::MAX)
}

fn ids_of_threads(name: &str) -> impl Iterator<Item = String> {
    let kept = name.get(..15).unwrap_or(name).to_owned();
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    threads.filter_map(move |thread| {
        let comm = fs::read_to_string(thread.path().join("comm")).ok()?;
        (comm.trim_end() == kept).then(|| thread.file_name().to_string_lossy().into_owned())
    })
}
