//! Processes whose parent has ended: this process takes over those that its children leave behind.
//!
//! Otherwise process 1 would, and in many a container that one waits for nobody: what was ended would stay a
//! zombie, and its group would look as if it were still there.

use std::collections::HashSet;
use std::fs;
use std::process;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpgid, waitpid};

/// Becomes the parent of all orphans among the descendants. Where the system knows no such thing, process 1
/// stays that.
pub(crate) fn adopt() {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
}

/// Takes away what has ended in a group whose leader has been waited for.
pub(crate) fn bury_group(group: Pid) {
    while let Ok(Some(_)) = waitpgid(group, WaitOptions::NOHANG) {}
}

/// Takes away the orphans that have ended, except for `known` children, for whom somebody waits: those are
/// left that made a group of their own, as daemons do. To be called now and then: on the main thread, or where that one
/// starts no children.
pub(crate) fn bury(known: &HashSet<u32>) {
    for child in children().into_iter().filter(|child| !known.contains(&child.cast_unsigned())) {
        // It is none of those that are waited for elsewhere: those are known from the moment they start.
        let _ = Pid::from_raw(child).map(|child| waitpid(Some(child), WaitOptions::NOHANG));
    }
}

/// How many there are. To be asked when no command runs any more.
pub(crate) fn left() -> usize {
    children().len()
}

/// Sends TERM, or KILL, to all that are left, and says how many that was. Not to be called while a command runs.
pub(crate) fn end(kill: bool) -> usize {
    let children = children();
    for child in &children {
        // Gone already, or another user's: then nothing can be done.
        let signal = if kill { Signal::KILL } else { Signal::TERM };
        let _ = Pid::from_raw(*child).map(|child| kill_process(child, signal));
    }
    children.len()
}

/// The children of the main thread, which adopts all orphans. None where the system does not tell.
fn children() -> Vec<i32> {
    let id = process::id();
    let children = fs::read_to_string(format!("/proc/self/task/{id}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}
