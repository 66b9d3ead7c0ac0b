//! The names of keys: Sidekiq's, and beside them ours, which no tool of Sidekiq's looks at.

/// What a queue's key begins with.
pub(super) const QUEUE: &str = "queue:";
pub(super) const QUEUES: &str = "queues";
pub(super) const SCHEDULE: &str = "schedule";
pub(super) const RETRY: &str = "retry";
pub(super) const DEAD: &str = "dead";
pub(super) const PROCESSED: &str = "stat:processed";
pub(super) const FAILED: &str = "stat:failed";

/// Sorted set: the token of a job that is with a worker, when its lease runs out (ms).
pub(super) const LEASES: &str = "tidegate:leases";
/// Hash: the token, what was handed over: when (ms), the length of the queue's name, the queue, the bytes.
pub(super) const HELD: &str = "tidegate:held";
/// The last token that was given.
pub(super) const TOKEN: &str = "tidegate:token";
/// There are jobs whose lease has lapsed; of each, `tidegate:lapsed:<SHA-1 of its bytes>` counts how often.
pub(super) const LAPSED: &str = "tidegate:lapsed";
/// Hash: the tokens of running jobs that are to be cancelled.
pub(super) const CANCELLED: &str = "tidegate:cancelled";
// Of unique keys there are `tidegate:unique:…`, one hash each (`scripts/unique.lua`), `tidegate:order`, which counts how
// often one was taken, and `tidegate:superseded`, which counts the jobs that made way for newer ones.
