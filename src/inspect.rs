//! What a dashboard, the program or an operator may ask and change: [`Inspect`], [`Manage`], [`Counts`],
//! and the views of a job and its attempts.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use crate::error::{Error, ErrorKind};
use crate::job::{Job, JobId, Kind, Queue, Tag};

/// Looking at what a backend holds.
#[async_trait]
pub trait Inspect: Send + Sync + 'static {
    /// How many jobs are in each state.
    async fn counts(&self) -> Result<Counts, Error>;

    /// One job; `None` when there is no such (it may have finished).
    async fn find(&self, id: &JobId) -> Result<Option<StoredJob>, Error>;

    /// The jobs that `wanted` describes: those that have been in their state longest first, but of those that are
    /// delayed or done, whose times are known, those whose time comes first.
    async fn list(&self, wanted: &JobQuery) -> Result<Vec<StoredJob>, Error>;

    /// The attempts at a job that have ended, the first first; none if there is no such job. Backends bound how
    /// many they keep, and drop the oldest.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) from a backend that keeps none, which is the default.
    async fn history(&self, _id: &JobId) -> Result<Vec<PastAttempt>, Error> {
        Err(Error::new(ErrorKind::Unsupported, "this backend keeps no account of attempts"))
    }
}

/// Which jobs are to be listed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JobQuery {
    /// Where they stand.
    pub state: JobState,
    /// Only those of this kind.
    pub kind: Option<Kind>,
    /// Only those in this queue.
    pub queue: Option<Queue>,
    /// Only those behind this one.
    pub after: Option<Position>,
    /// Leave out so many of the first.
    pub skip: usize,
    /// At most so many.
    pub max: usize,
}

impl JobQuery {
    /// At most `max` jobs in `state`, whatever they are.
    pub fn new(state: JobState, max: usize) -> Self {
        Self { state, kind: None, queue: None, after: None, skip: 0, max }
    }

    /// Only those of `kind`.
    #[must_use]
    pub fn kind(mut self, kind: impl Into<Kind>) -> Self {
        self.kind = Some(kind.into());
        self
    }

    /// Only those in `queue`.
    #[must_use]
    pub fn queue(mut self, queue: impl Into<Queue>) -> Self {
        self.queue = Some(queue.into());
        self
    }

    /// Only those that stand behind `last` in the list: to go through a long one part by part, whatever becomes of the
    /// jobs meanwhile. What has come into the state since stands behind all that was there; a job that has left it and
    /// come back comes twice. Parts that are deep down take no longer than the first.
    #[must_use]
    pub fn after(mut self, last: &StoredJob) -> Self {
        self.after = Some(last.position);
        self
    }

    /// Leaves out so many of the first. It takes a while where these are many: [`after`](Self::after) does not.
    #[must_use]
    pub fn skip(mut self, jobs: usize) -> Self {
        self.skip = jobs;
        self
    }

    /// Whether `job` is of the kind and in the queue that are asked for. For backends.
    pub fn takes(&self, job: &Job) -> bool {
        self.kind.as_ref().is_none_or(|kind| *kind == job.kind)
            && self.queue.as_ref().is_none_or(|queue| *queue == job.queue)
    }
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
    /// Of those and of the superseded, how many are still kept to be looked at.
    pub kept: u64,
    /// Ended without being done since a newer job had taken their place ([`Clash::ReplacePayload`](crate::Clash)), for
    /// as long as `done` is counted. They are not among the done.
    pub superseded: u64,
    /// Since when the first of those that are ready has been so, by the wall clock. `None` when none is, or nothing says
    /// when.
    pub ready_since: Option<SystemTime>,
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
    /// Finished, and kept for a while to be looked at: by backends that were told to.
    Done,
}

/// Where a job stands in the list of its state. What is in it is its backend's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Position([u64; 3]);

impl Position {
    /// A position, by whatever the backend finds it again. For backends.
    pub fn new(parts: [u64; 3]) -> Self {
        Self(parts)
    }

    /// What it was made of. For backends.
    pub fn parts(self) -> [u64; 3] {
        self.0
    }
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
    /// When a delayed job becomes ready, the lease of one with a worker runs out unless it is renewed, or a finished
    /// one is deleted. `None` in other states, and where the backend does not tell.
    pub due: Option<SystemTime>,
    /// It is with a worker, who is to be told to cancel it.
    pub cancel_requested: bool,
    /// The newer job that has taken its place ([`Clash::ReplacePayload`](crate::Clash)): a job that is with a worker
    /// is not tried again, and a finished one was not done.
    pub superseded_by: Option<JobId>,
    /// Where it stands in the list that it was found in; of a job that was found by its id it says nothing.
    pub position: Position,
}

impl StoredJob {
    /// A view of `job`. For backends.
    pub fn new(job: Arc<Job>, state: JobState, attempts: u32, since: SystemTime) -> Self {
        Self {
            job,
            state,
            attempts,
            last_error: None,
            since,
            due: None,
            cancel_requested: false,
            superseded_by: None,
            position: Position::default(),
        }
    }
}

/// An attempt that has ended, as a store remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PastAttempt {
    /// Its number, from 1. One that was handed back is not counted, so the next has the same.
    pub attempt: u32,
    /// When the job was handed over, by the wall clock.
    pub started_at: SystemTime,
    /// When it was settled, or its lease was found to have run out.
    pub ended_at: SystemTime,
    /// What it came to.
    pub end: AttemptEnd,
    /// For [`AttemptEnd::Superseded`]: the job that has taken the place of this one.
    pub superseded_by: Option<JobId>,
    /// Why, if it did not succeed.
    pub error: Option<Arc<str>>,
    /// What the handler left to be kept with it ([`Context::keep_output`](crate::Context::keep_output)).
    pub output: Option<Arc<[u8]>>,
}

impl PastAttempt {
    /// An attempt without error and output. For backends.
    pub fn new(attempt: u32, started_at: SystemTime, ended_at: SystemTime, end: AttemptEnd) -> Self {
        Self { attempt, started_at, ended_at, end, superseded_by: None, error: None, output: None }
    }
}

/// What an attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AttemptEnd {
    /// The job is done.
    Done,
    /// It failed, and the job is to be tried again.
    Retried,
    /// The job went to the dead letters.
    Rejected,
    /// It was handed back, not counted.
    Released,
    /// Nobody settled it before its lease ran out.
    Lapsed,
    /// It failed, was handed back or lapsed, and the job is not tried again: a newer one has taken its place.
    Superseded,
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
    /// For how long it has been in the worker's hands, waiting for a slot or for its settlement included.
    pub age: Duration,
    /// How long ago its handler was called; `None` if that has not happened yet.
    pub started: Option<Duration>,
    /// What the handler last reported, and how long ago.
    pub progress: Option<(Progress, Duration)>,
    /// The handle by which its source knows this attempt.
    pub tag: Tag,
}

impl JobView {
    pub(crate) fn new(job: &Job, attempt: u32, tag: Tag, phase: JobPhase, age: Duration) -> Self {
        let (id, kind, queue) = (job.id.clone(), job.kind.clone(), job.queue.clone());
        Self { id, kind, queue, attempt, phase, age, started: None, progress: None, tag }
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
