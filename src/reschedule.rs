//! Putting failed jobs back into their queues, a bounded number of times: [`Reschedule`].
//!
//! For stores whose failed jobs stay failed until somebody puts them back, as Resque's do. What asks for it again and
//! again is [`Rescheduler`](crate::service::Rescheduler).

use std::time::Duration;

use async_trait::async_trait;

use crate::error::Error;
use crate::job::{JobId, Kind, Queue};

/// What a store can do whose failed jobs may be put back.
#[async_trait]
pub trait Reschedule: Send + Sync + 'static {
    /// Puts failed jobs back into their queues, those that have failed first before others. In each
    /// [`every`](Turn::every) one of all who ask does it, and the others are told that it is not their turn.
    ///
    /// # Errors
    /// Some may have been put back by then.
    ///
    /// # Cancel safety
    /// What it had begun may be done or not. Nobody else does it for half a minute.
    async fn reschedule(&self, turn: &Turn) -> Result<Rescheduled, Error>;
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Turn {
    /// The time between two turns of all who ask.
    pub every: Duration,
    /// At most so many jobs are put back or come to the end of their times. Those that stay from before are not counted, so
    /// that they hold up nobody behind them.
    pub max_jobs: usize,
    /// A job that has been put back so often stays failed.
    pub max_times: u32,
}

impl Turn {
    /// Every five minutes up to 20,000 jobs, as apisonator does it; each job up to five times.
    pub const DEFAULT: Self = Self { every: Duration::from_secs(300), max_jobs: 20_000, max_times: 5 };
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rescheduled {
    /// It was nobody's turn, or somebody else's.
    pub not_now: bool,
    /// So many were put back.
    pub put_back: usize,
    /// So many stay, since they have been put back as often as they may, can't be understood, or were put back by a person.
    pub stay: usize,
    /// Those of them that have just come to the end of their times.
    pub given_up: Vec<GivenUp>,
}

/// A job that stays failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GivenUp {
    /// Which.
    pub id: JobId,
    /// Of which kind.
    pub kind: Kind,
    /// The queue that it came from.
    pub queue: Queue,
}

impl GivenUp {
    /// That job.
    pub fn new(id: JobId, kind: Kind, queue: Queue) -> Self {
        Self { id, kind, queue }
    }
}
