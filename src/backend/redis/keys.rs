//! The names of keys, and which end of a list is which: those of a layout, and beside them ours, which no tool of
//! the layout looks at.

use super::layout::Layout;
use crate::job::Queue;

/// Set: the identities of Sidekiq's processes.
pub(super) const PROCESSES: &str = "processes";
/// It was looked for dead processes a moment ago.
pub(super) const PROCESS_CLEANUP: &str = "process_cleanup";

// Of unique keys there are `tidegate:unique:…`, one hash each (`scripts/unique.lua`), `tidegate:order`, which counts how
// often one was taken, and `tidegate:superseded`, which counts the jobs that made way for newer ones.

/// What stands where. Made once a handle.
#[derive(Debug)]
pub(super) struct Keys {
    /// What a queue's key begins with.
    pub(super) queue: String,
    pub(super) queues: String,
    pub(super) schedule: String,
    pub(super) retry: String,
    pub(super) dead: String,
    pub(super) processed: String,
    pub(super) failed: String,
    /// Sorted set: the token of a job that is with a worker, when its lease runs out (ms).
    pub(super) leases: String,
    /// Hash: the token, what was handed over: when (ms), the length of the queue's name, the queue, the bytes.
    pub(super) held: String,
    /// The last token that was given.
    pub(super) token: String,
    /// There are jobs whose lease has lapsed; of each, `tidegate:lapsed:<SHA-1 of its bytes>` counts how often.
    pub(super) lapsed: String,
    /// Hash: the tokens of running jobs that are to be cancelled.
    pub(super) cancelled: String,
    pub(super) ends: Ends,
}

/// The commands for the ends of a queue's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    /// Puts what is to be taken last, as producers do.
    pub(super) back: &'static str,
    /// Puts what is to be taken next.
    pub(super) front: &'static str,
    /// Takes, as workers do.
    pub(super) take: &'static str,
    /// How a list is read in the order in which it is taken from, in the words of `search.lua`.
    pub(super) read: &'static str,
}

impl Keys {
    pub(super) fn new(layout: Layout, prefix: &str) -> Self {
        let key = |name: &str| format!("{prefix}{name}");
        let ends = match layout {
            Layout::Sidekiq => Ends { back: "LPUSH", front: "RPUSH", take: "RPOP", read: "tail" },
        };
        Self {
            queue: key("queue:"),
            queues: key("queues"),
            schedule: key("schedule"),
            retry: key("retry"),
            dead: key("dead"),
            processed: key("stat:processed"),
            failed: key("stat:failed"),
            leases: key("tidegate:leases"),
            held: key("tidegate:held"),
            token: key("tidegate:token"),
            lapsed: key("tidegate:lapsed"),
            cancelled: key("tidegate:cancelled"),
            ends,
        }
    }

    pub(super) fn of_queue(&self, queue: &Queue) -> String {
        format!("{}{queue}", self.queue)
    }
}
