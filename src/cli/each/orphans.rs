//! Processes whose parent has ended: this process takes over those that its children leave behind.
//!
//! Otherwise process 1 would, and in many a container that one waits for nobody: what was ended would stay a
//! zombie, and its group would look as if it were still there.

use std::collections::HashSet;
use std::fs;
use std::process;

use rustix::process::{Pid, WaitOptions, waitpgid, waitpid};

/// Becomes the parent of all orphans among the descendants. Where the system knows no such thing, process 1
/// stays that.
pub(super) fn adopt() {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
}

/// Takes away what has ended in a group whose leader has been waited for.
pub(super) fn bury_group(group: Pid) {
    while let Ok(Some(_)) = waitpgid(group, WaitOptions::NOHANG) {}
}

/// Takes away the orphans that have ended, except for `known` children, for whom somebody waits: those are
/// left that made a group of their own, as daemons do. To be called now and then, on the main thread.
pub(super) fn bury(known: &HashSet<u32>) {
    let id = process::id();
    let children = fs::read_to_string(format!("/proc/self/task/{id}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse::<i32>().ok());
    for child in children.filter(|child| !known.contains(&child.cast_unsigned())) {
        // It is none of those that are waited for elsewhere: those are known from the moment they start.
        let _ = Pid::from_raw(child).map(|child| waitpid(Some(child), WaitOptions::NOHANG));
    }
}
