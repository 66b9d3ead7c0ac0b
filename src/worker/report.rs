//! What is left to say when a worker has ended: [`Report`].

use std::fmt;
use std::time::Duration;

use crate::error::{Chain, Error};
use crate::inspect::{JobPhase, JobView};
use crate::worker::handle::Stats;

/// The answer of [`Worker::run`](crate::Worker::run): why it stopped, what it did, what it still held.
#[derive(Debug)]
#[non_exhaustive]
pub struct Report {
    /// Why it stopped.
    pub cause: StopCause,
    /// What it did. `in_flight` is 0: what was still held counts as `lost`.
    pub stats: Stats,
    /// What could be neither finished nor handed back before the deadline: jobs that did not give their
    /// thread back ([`JobPhase::Stuck`]), and settlements that were not confirmed
    /// ([`JobPhase::Settling`]). A source with leases hands each to a worker again when its lease runs
    /// out; without leases it is lost.
    pub held: Vec<JobView>,
    /// From the first stop signal to the end; zero if there was none.
    pub stopping_took: Duration,
}

/// Why a worker stopped.
#[derive(Debug)]
#[non_exhaustive]
pub enum StopCause {
    /// It was told to.
    Shutdown,
    /// The source said that nothing will come any more, and all that had come is settled.
    SourceEnded,
    /// The source failed in a way that trying again can't mend.
    Failed(Error),
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            StopCause::Shutdown => write!(f, "stopped within {:?}", self.stopping_took)?,
            StopCause::SourceEnded => write!(f, "the source has ended")?,
            StopCause::Failed(error) => write!(f, "the source failed: {}", Chain(error))?,
        }
        let Stats { done, retried, rejected, released, lost, stale, .. } = self.stats;
        write!(f, "; {done} done, {retried} retried, {rejected} rejected, {released} handed back")?;
        if lost + stale > 0 {
            write!(f, ", {lost} lost, {stale} stale")?;
        }
        for job in &self.held {
            let what = match job.phase {
                JobPhase::Settling => "was not confirmed",
                _ => "is still running",
            };
            write!(f, "; {} ({}) {what} after {:?}", job.id, job.kind, job.age)?;
        }
        Ok(())
    }
}
