//! Failed jobs put back into their queues from time to time: [`Rescheduler`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Chain, Error};
use crate::reschedule::{Reschedule, Rescheduled, Turn};
use crate::shutdown::{Phase, Shutdown};
use crate::worker::WorkerHandle;

/// The least time between two turns.
const LEAST: Duration = Duration::from_secs(1);

/// How many jobs are named that stay failed; the others are counted.
const NAMED: usize = 20;

/// Puts failed jobs back into their queues from time to time, each a bounded number of times: with the backend `redis`, in
/// Resque's layout.
///
/// It does what apisonator's scheduler of failed jobs does, under the same lock, so that both may run. But a job that fails
/// again and again is not tried for ever: put back [`times`](Self::times) times, it stays among the failed ones and is
/// named in the log. Whatever number of workers run one, there is one turn in each interval.
///
/// Not for retries that a [`RetryPolicy`](crate::RetryPolicy) sees to: it begins where these have given up, and a job
/// that it has put back has all its attempts again.
#[must_use]
pub struct Rescheduler {
    store: Arc<dyn Reschedule>,
    worker: WorkerHandle,
    turn: Turn,
}

impl fmt::Debug for Rescheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rescheduler").field("turn", &self.turn).finish_non_exhaustive()
    }
}

impl Rescheduler {
    /// For the failed jobs of this store, which [`Backend::reschedule`](crate::Backend::reschedule) gives, while `worker`
    /// runs.
    pub fn new(store: Arc<dyn Reschedule>, worker: WorkerHandle) -> Self {
        Self { store, worker, turn: Turn::DEFAULT }
    }

    /// The time between two turns of all workers. Default 5 minutes, as apisonator has it.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for less than a second.
    pub fn every(mut self, time: Duration) -> Result<Self, Error> {
        if time < LEAST {
            return Err(Error::invalid(format!(
                "failed jobs are put back every {time:?}: at least {LEAST:?}"
            )));
        }
        self.turn.every = time;
        Ok(self)
    }

    /// How often a job is put back, 0 for never. Default 5. It is counted by the job's bytes, and forgotten three days
    /// after it was last put back or seen among the failed ones.
    pub fn times(mut self, times: u32) -> Self {
        self.turn.max_times = times;
        self
    }

    /// How many failed jobs a turn puts back or gives up at most. Default 20,000, as apisonator has it. Those that were given
    /// up before are not counted.
    pub fn max_jobs(mut self, jobs: usize) -> Self {
        self.turn.max_jobs = jobs;
        self
    }

    /// Puts failed jobs back, at once and then from time to time, until the worker has ended or `shutdown` is asked to
    /// stop. What fails is logged, and tried again at the next turn.
    ///
    /// # Cancel safety
    /// As [`Reschedule::reschedule`].
    pub async fn run(self, shutdown: Shutdown) {
        let over = async {
            tokio::select! {
                () = self.worker.ended() => {}
                () = shutdown.reached(Phase::Drain) => {}
            }
        };
        let turns = async {
            loop {
                match self.store.reschedule(&self.turn).await {
                    Ok(done) => self.tell(&done),
                    Err(error) => {
                        tracing::warn!(error = %Chain(&error), "failed jobs could not be put back, trying again later")
                    }
                }
                tokio::time::sleep(self.turn.every).await;
            }
        };
        tokio::select! {
            biased;
            () = over => {}
            () = turns => {}
        }
    }

    fn tell(&self, done: &Rescheduled) {
        for job in done.given_up.iter().take(NAMED) {
            let (id, kind, queue) = (&job.id, &job.kind, &job.queue);
            let times = self.turn.max_times;
            tracing::warn!(%id, %kind, %queue, times, "a job has failed again and stays failed: it was put back as often as it may");
        }
        if done.put_back > 0 || !done.given_up.is_empty() {
            let (put_back, stay, given_up) = (done.put_back, done.stay, done.given_up.len());
            tracing::info!(put_back, stay, given_up, "failed jobs were put back into their queues");
        }
    }
}
