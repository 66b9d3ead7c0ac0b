//! The names of keys, and which end of a list is which: those of a layout, and beside them ours, which no tool of
//! the layout looks at.

use super::layout::Layout;
use crate::job::Queue;

/// For how long it is kept how many attempts of a job have failed, and how often it was put back. The scripts have the same.
pub(super) const MARK_SECONDS: u64 = 259_200;

// Of unique keys there are `tidegate:unique:…`, one hash each (`scripts/unique.lua`), `tidegate:order`, which counts how
// often one was taken, and `tidegate:superseded`, which counts the jobs that made way for newer ones.

/// The queues of apisonator, in the order in which its workers take from them.
const OF_APISONATOR: &[&str] = &["priority", "main", "stats"];

/// What stands where. Made once a handle.
#[derive(Debug)]
pub(super) struct Keys {
    /// What all begin with.
    pub(super) prefix: String,
    /// What ours begin with, which no tool of the layout looks at.
    pub(super) ours: String,
    /// Set: the identities of Sidekiq's processes.
    pub(super) processes: String,
    /// It was looked for dead processes a moment ago.
    pub(super) process_cleanup: String,
    /// What a queue's key begins with.
    pub(super) queue: String,
    pub(super) queues: String,
    pub(super) schedule: String,
    pub(super) retry: String,
    pub(super) dead: String,
    /// What the key of a list of jobs that wait for the same second begins with; in `schedule` are the seconds then.
    pub(super) delayed: String,
    /// What the key of the set begins with that says where a job waits, followed by the job.
    pub(super) timestamps: String,
    /// Of jobs that carry no count of their failed attempts, `tidegate:tried:<SHA-1 of its bytes>` has it. Empty for
    /// others.
    pub(super) tried: String,
    /// While `true` stands there, no worker takes a job. Empty if there is no such thing.
    pub(super) pause: String,
    /// What the lists begin with that end a blocking pop of ours.
    pub(super) wake: String,
    /// What stands before the bytes' identity where it is counted how often failed jobs of these were put back.
    pub(super) rescheduled: String,
    /// Held by who puts failed jobs back, apisonator's own scheduler among them.
    pub(super) reschedule_lock: String,
    /// There while it is nobody's turn to do that.
    pub(super) reschedule_turn: String,
    pub(super) workers: String,
    /// What the keys of a worker begin with.
    pub(super) worker: String,
    pub(super) heartbeats: String,
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
    /// When a worker was last seen (ms), to a second.
    pub(super) seen: String,
    /// Until when (ms) no lease is taken for run out, after a time in which no worker was seen.
    pub(super) lenient: String,
    pub(super) ends: Ends,
    /// Of all queues, those that are taken from before others, in this order. `exchange.lua` has the same.
    pub(super) first: &'static [&'static str],
    /// How jobs stand that wait for a time, in the words of `search.lua`.
    pub(super) waiting_in: &'static str,
    /// How the dead ones stand.
    pub(super) dead_in: &'static str,
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
            Layout::Resque => Ends { back: "RPUSH", front: "LPUSH", take: "LPOP", read: "list" },
        };
        let resque = layout == Layout::Resque;
        let of_resque = |name: &str| if resque { key(name) } else { String::new() };
        Self {
            prefix: prefix.to_owned(),
            ours: key("tidegate:"),
            processes: key("processes"),
            process_cleanup: key("process_cleanup"),
            queue: key("queue:"),
            queues: key("queues"),
            schedule: key(if resque { "delayed_queue_schedule" } else { "schedule" }),
            retry: key(if resque { "tidegate:retry" } else { "retry" }),
            dead: key(if resque { "failed" } else { "dead" }),
            delayed: of_resque("delayed:"),
            timestamps: of_resque("timestamps:"),
            tried: of_resque("tidegate:tried"),
            pause: of_resque("pause-all-workers"),
            wake: of_resque("tidegate:wake:"),
            rescheduled: of_resque("tidegate:rescheduled:"),
            reschedule_turn: of_resque("tidegate:reschedule:turn"),
            reschedule_lock: of_resque("threescale::backend::failedjobsscheduler:lock"),
            workers: of_resque("workers"),
            worker: of_resque("worker:"),
            heartbeats: of_resque("workers:heartbeat"),
            processed: key("stat:processed"),
            failed: key("stat:failed"),
            leases: key("tidegate:leases"),
            held: key("tidegate:held"),
            token: key("tidegate:token"),
            lapsed: key("tidegate:lapsed"),
            cancelled: key("tidegate:cancelled"),
            seen: key("tidegate:seen"),
            lenient: key("tidegate:lenient"),
            ends,
            first: if resque { OF_APISONATOR } else { &[] },
            waiting_in: if resque { "delayed" } else { "zset" },
            dead_in: if resque { "list" } else { "zset" },
        }
    }

    pub(super) fn of_queue(&self, queue: &Queue) -> String {
        format!("{}{queue}", self.queue)
    }
}
