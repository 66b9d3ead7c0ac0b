//! Announcing a worker to others who use the same store, and hearing what they ask of it: [`Announce`], and what is
//! said there.
//!
//! For dashboards that belong to the store's own world, such as Sidekiq's. What runs here is
//! [`Presence`](crate::service::Presence); a backend implements the trait in the form that its dashboards read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use crate::error::Error;
use crate::inspect::JobView;
use crate::job::{Kind, Queue};

/// One session in which a worker is announced. Made by a [`Connect`](crate::Connect), on a connection of its own.
#[async_trait]
pub trait Announce: Send + Sync + 'static {
    /// Tells all that `notice` says, in place of what was told before, and answers with what was asked of the worker
    /// meanwhile. What is not told again within a minute is forgotten.
    ///
    /// An error may have come after it was done: what was asked is lost then, and the runs that are told again count
    /// twice.
    ///
    /// # Cancel safety
    /// Dropped early, it was done or not, as after an error.
    async fn announce(&self, notice: &Notice) -> Result<Vec<Request>, Error>;

    /// Takes back what was told of the worker, since it has ended, and tells the last runs.
    ///
    /// # Cancel safety
    /// As [`announce`](Self::announce).
    async fn withdraw(&self, who: &Identity, runs: &Runs, now: SystemTime) -> Result<(), Error>;
}

/// Who is announced.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Identity {
    /// `HOST:PID:12 hexadecimal digits`: different for each worker.
    pub id: String,
    /// The machine's name.
    pub host: String,
    /// The process's number.
    pub pid: u32,
    /// When it began, by the wall clock.
    pub started_at: SystemTime,
    /// What it is called.
    pub tag: String,
    /// Further words for a person.
    pub labels: Vec<String>,
}

/// What is told of a worker at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Notice {
    /// Whose.
    pub who: Arc<Identity>,
    /// The moment, by the wall clock.
    pub now: SystemTime,
    /// The bound.
    pub max_concurrent_jobs: usize,
    /// The queues that it serves, each with its weight, which is 0 where the order is strict. None: all.
    pub queues: Vec<(Queue, u32)>,
    /// It takes no more jobs, for now or for good.
    pub quiet: bool,
    /// The jobs that run.
    pub running: Vec<JobView>,
    /// The memory of the process that is in use, in KiB; 0 where the system does not tell.
    pub resident_kib: u64,
    /// What has run since the last notice that was told.
    pub runs: Runs,
}

/// Something that is asked of a worker through the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// To take no more jobs.
    Quiet,
    /// To stop.
    Stop,
    /// To log what it is at.
    Report,
}

/// Attempts that have ended, by kind.
pub type Runs = BTreeMap<Kind, KindRuns>;

/// Attempts of one kind that have ended. Those that were handed back uncounted are none of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KindRuns {
    /// Those that did what they were to do.
    pub done: u64,
    /// Those that failed.
    pub failed: u64,
    /// How long the former took in all, in ms.
    pub run_ms: u64,
    /// How many of them took how long: less than the bound at the same place in [`RUN_BOUNDS_MS`], and the last more
    /// than any.
    pub by_time: [u64; KindRuns::BUCKETS],
}

/// The bounds by which run times are counted, in ms. They are those of Sidekiq's histograms: each is about one and a
/// half times the one before.
pub const RUN_BOUNDS_MS: [u64; 25] = [
    20, 30, 45, 65, 100, 150, 225, 335, 500, 750, 1_100, 1_700, 2_500, 3_800, 5_750, 8_500, 13_000, 20_000,
    30_000, 45_000, 65_000, 100_000, 150_000, 225_000, 335_000,
];

/// Where a run that took so long is counted in [`KindRuns::by_time`].
pub(crate) fn bucket_of(run_time: Duration) -> usize {
    let millis = run_time.as_millis();
    RUN_BOUNDS_MS.partition_point(|bound| u128::from(*bound) <= millis)
}

impl KindRuns {
    /// How many numbers there are in `by_time`.
    pub const BUCKETS: usize = RUN_BOUNDS_MS.len() + 1;

    /// Whether nothing has ended.
    pub fn is_empty(&self) -> bool {
        self.done == 0 && self.failed == 0
    }

    /// What has come since `before`, which was taken of the same counters.
    #[must_use]
    pub(crate) fn since(&self, before: &Self) -> Self {
        let mut since = Self {
            done: self.done - before.done,
            failed: self.failed - before.failed,
            run_ms: self.run_ms - before.run_ms,
            by_time: self.by_time,
        };
        for (count, before) in since.by_time.iter_mut().zip(before.by_time) {
            *count -= before;
        }
        since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_counted_below_the_bound_that_it_has_not_reached() {
        let bucket = |millis| bucket_of(Duration::from_millis(millis));
        assert_eq!((bucket(0), bucket(19), bucket(20), bucket(29), bucket(30)), (0, 0, 1, 1, 2));
        assert_eq!((bucket(334_999), bucket(335_000), bucket(u64::MAX)), (24, 25, 25));
        assert_eq!(KindRuns::default().by_time.len(), 26);
    }
}
