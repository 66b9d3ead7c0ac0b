//! What a dashboard, the program or an operator may ask and change: [`Inspect`], [`Manage`], [`Counts`],
//! and the views of a job.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use crate::error::Error;
use crate::job::{Job, JobId, Kind, Queue};

/// Looking at what a backend holds.
#[async_trait]
pub trait Inspect: Send + Sync + 'static {
    /// How many jobs are in each state.
    async fn counts(&self) -> Result<Counts, Error>;

    /// One job; `None` when there is no such (it may have finished).
    async fn find(&self, id: &JobId) -> Result<Option<StoredJob>, Error>;

    /// At most `max` jobs in `state`, those that have been in it longest first.
    async fn list(&self, state: JobState, max: usize) -> Result<Vec<StoredJob>, Error>;
}

/// Changing what a backend holds. `false` means that there is no such job in a state that allows it.
#[async_trait]
pub trait Manage: Send + Sync + 'static {
    /// Cancels a job. A waiting one goes to the dead letters; for a running one its worker is told with the
    /// next renewal of its lease, and whatever it answers then, the job is not tried again.
    async fn cancel(&self, id: &JobId) -> Result<bool, Error>;

    /// Makes a dead or delayed job available now. A dead one's attempts begin anew; one whose unique key another
    /// job has taken meanwhile stays dead: `false`. A store with a bound may answer with
    /// [`Full`](crate::ErrorKind::Full).
    async fn requeue(&self, id: &JobId) -> Result<bool, Error>;

    /// Deletes a job that is not running.
    async fn delete(&self, id: &JobId) -> Result<bool, Error>;
}

/// How many jobs are in each state, and how many have left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Waiting and available.
    pub ready: u64,
    /// Waiting for their time.
    pub delayed: u64,
    /// With a worker.
    pub leased: u64,
    /// In the dead letters.
    pub dead: u64,
    /// Finished since the backend was opened, or for as long as it keeps account.
    pub done: u64,
}

impl Counts {
    /// Jobs that are not finished and not dead.
    pub fn unfinished(&self) -> u64 {
        self.ready + self.delayed + self.leased
    }
}

/// The states that a job in a store can be in. `docs/lifecycle.md` draws the transitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobState {
    /// Waiting and available.
    Ready,
    /// Waiting for its time.
    Delayed,
    /// With a worker.
    Leased,
    /// In the dead letters.
    Dead,
}

/// A job as a store holds it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoredJob {
    /// The job, raw payload included.
    pub job: Arc<Job>,
    /// Where it stands.
    pub state: JobState,
    /// How many attempts were begun and not handed back.
    pub attempts: u32,
    /// Why the last one failed.
    pub last_error: Option<Arc<str>>,
    /// When it came into this state, by the wall clock.
    pub since: SystemTime,
}

impl StoredJob {
    /// A view of `job`. For backends.
    pub fn new(job: Arc<Job>, state: JobState, attempts: u32, since: SystemTime) -> Self {
        Self { job, state, attempts, last_error: None, since }
    }
}

/// A job in flight in a worker.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JobView {
    /// Its identity.
    pub id: JobId,
    /// What sort it is.
    pub kind: Kind,
    /// Where it came from.
    pub queue: Queue,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// How far it has got.
    pub phase: JobPhase,
    /// For how long it has been in the worker's hands.
    pub age: Duration,
    /// What the handler last reported, and how long ago.
    pub progress: Option<(Progress, Duration)>,
}

impl JobView {
    pub(crate) fn new(job: &Job, attempt: u32, phase: JobPhase, age: Duration) -> Self {
        let (id, kind, queue) = (job.id.clone(), job.kind.clone(), job.queue.clone());
        Self { id, kind, queue, attempt, phase, age, progress: None }
    }
}

/// How far a delivery has got in its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JobPhase {
    /// Fetched ahead, waiting for a slot.
    Prefetched,
    /// Handed to the runtime, not yet polled: a runtime thread has to come free.
    Starting,
    /// Its handler runs.
    Running,
    /// It was told to stop and may still do so by itself.
    Cancelling,
    /// It was aborted and has not ended: it does not give its thread back.
    Stuck,
    /// It has ended; its settlement is not yet confirmed.
    Settling,
}

/// How far a handler says that it has got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Steps done.
    pub done: u64,
    /// Steps in all, if known.
    pub total: Option<u64>,
    /// A word for a person, at most 256 bytes.
    pub note: Option<Arc<str>>,
}
