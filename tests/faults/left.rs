//! What is left of something that has ended: threads, file descriptors, tasks.

use std::fs;
use std::time::Duration;

/// How many file descriptors the process has open.
pub(crate) fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("/proc is mounted").count()
}

/// The names of the process's threads (the first 15 bytes, as the kernel keeps them).
pub(crate) fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc is mounted");
    // A thread may end between the listing and the look.
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .map(|name| name.trim_end().to_owned())
        .collect()
}

/// How many of them have a name that begins like this.
pub(crate) fn threads_named(prefix: &str) -> usize {
    threads().iter().filter(|name| name.starts_with(prefix)).count()
}

/// How often the thread of this name has gone to sleep by itself, and for how long it has run.
///
/// # Panics
/// When there is none, or more than one.
pub(crate) fn effort(thread: &str) -> (u64, Duration) {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc is mounted");
    let named = |path: &std::path::Path| {
        fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim_end() == thread)
    };
    let paths: Vec<_> = tasks.flatten().map(|task| task.path()).filter(|path| named(path)).collect();
    let [path] = paths.as_slice() else { panic!("{} threads are called {thread:?}", paths.len()) };
    let status = fs::read_to_string(path.join("status")).expect("the thread is there");
    let sleeps = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    let sleeps = sleeps.and_then(|count| count.trim().parse().ok()).expect("the kernel counts its switches");
    let schedule =
        fs::read_to_string(path.join("schedstat")).expect("the kernel keeps account of its threads");
    let ran = schedule.split(' ').next().and_then(|nanos| nanos.parse().ok()).expect("nanoseconds first");
    (sleeps, Duration::from_nanos(ran))
}

/// Waits until `condition` holds, for a few seconds at most: for what the kernel or another thread finishes a
/// moment after a call has returned.
pub(crate) fn soon(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("after five seconds it is still not so that {what}");
}
