//! Handing jobs over: [`Enqueue`], [`NewJob`] and unique keys.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use compact_str::CompactString;
use serde::Serialize;

use crate::error::{Error, ErrorKind};
use crate::job::{JobId, Kind, Queue};

/// The verb of the producer.
#[async_trait]
pub trait Enqueue: Send + Sync + 'static {
    /// Enqueues all of them or, on an error, none; the answers are in the order of the jobs.
    ///
    /// When it returns, the jobs are as safe as the backend promises (`docs/guarantees.md`).
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a job that makes no sense (no kind, no queue, no attempts, an
    /// empty key, a payload that is too large); [`Full`](ErrorKind::Full) when the store's bound is reached;
    /// [`Unsupported`](ErrorKind::Unsupported) for what this backend can't keep; whatever the backend fails with.
    async fn enqueue(&self, jobs: Vec<NewJob>) -> Result<Vec<Enqueued>, Error>;
}

/// A job that is yet to be enqueued.
///
/// ```
/// use std::time::Duration;
/// use tidegate::{NewJob, Unique};
///
/// let job = NewJob::json("thumbnail", &serde_json::json!({ "file": "cat.png" }))?
///     .queue("images")
///     .delay(Duration::from_secs(5))
///     .unique(Unique::while_queued("cat.png"));
/// # Ok::<(), tidegate::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NewJob {
    /// Which handler is to run it.
    pub kind: Kind,
    /// The line to wait in.
    pub queue: Queue,
    /// Its arguments.
    pub payload: Bytes,
    /// Greater runs sooner within its queue. Default 0.
    pub priority: i16,
    /// When it becomes available. Default: at once.
    pub start: Start,
    /// How many attempts it may have; default: as the worker's policy says.
    pub max_attempts: Option<u32>,
    /// How long an attempt may take; default: as the kind's or the worker's setting says.
    pub timeout: Option<Duration>,
    /// What may not be there twice. Default: nothing.
    pub unique: Option<Unique>,
}

/// When a job becomes available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At once.
    Now,
    /// After this time.
    After(Duration),
    /// At this moment of the wall clock; in the past means at once.
    At(SystemTime),
}

impl NewJob {
    /// A job of `kind` with these bytes as its payload.
    pub fn new(kind: impl Into<Kind>, payload: impl Into<Bytes>) -> Self {
        Self {
            kind: kind.into(),
            queue: Queue::default(),
            payload: payload.into(),
            priority: 0,
            start: Start::Now,
            max_attempts: None,
            timeout: None,
            unique: None,
        }
    }

    /// A job of `kind` with `args` as JSON, as typed handlers read it.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) when `args` can't be JSON (a map whose keys are no
    /// strings, say).
    pub fn json(kind: impl Into<Kind>, args: &impl Serialize) -> Result<Self, Error> {
        let kind = kind.into();
        match serde_json::to_vec(args) {
            Ok(payload) => Ok(Self::new(kind, payload)),
            Err(error) => {
                let context = format!("arguments for kind {kind:?} can't be written as JSON");
                Err(Error::new(ErrorKind::InvalidInput, context).caused_by(error))
            }
        }
    }

    /// The line to wait in.
    #[must_use]
    pub fn queue(mut self, queue: impl Into<Queue>) -> Self {
        self.queue = queue.into();
        self
    }

    /// Greater runs sooner within its queue.
    #[must_use]
    pub fn priority(mut self, priority: i16) -> Self {
        self.priority = priority;
        self
    }

    /// Becomes available after `wait`.
    #[must_use]
    pub fn delay(mut self, wait: Duration) -> Self {
        self.start = Start::After(wait);
        self
    }

    /// Becomes available at this moment of the wall clock.
    #[must_use]
    pub fn at(mut self, moment: SystemTime) -> Self {
        self.start = Start::At(moment);
        self
    }

    /// How many attempts it may have in all, from 1.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts);
        self
    }

    /// How long one attempt may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// What may not be there twice.
    #[must_use]
    pub fn unique(mut self, unique: Unique) -> Self {
        self.unique = Some(unique);
        self
    }

    /// Checks what every backend refuses without looking at what it holds.
    pub(crate) fn validate(&self, max_payload_bytes: usize) -> Result<(), Error> {
        if self.kind.as_str().is_empty() {
            return Err(Error::invalid("a job's kind is empty: name the handler that is to run it"));
        }
        if self.queue.as_str().is_empty() {
            return Err(Error::invalid(format!("the queue of a job of kind {:?} is empty", self.kind)));
        }
        if self.max_attempts == Some(0) {
            return Err(Error::invalid(format!(
                "max_attempts of a job of kind {:?} is 0: it must be at least 1",
                self.kind
            )));
        }
        if self.unique.as_ref().is_some_and(|unique| unique.key.0.is_empty()) {
            return Err(Error::invalid(format!("the unique key of a job of kind {:?} is empty", self.kind)));
        }
        let size = self.payload.len();
        if size > max_payload_bytes {
            return Err(Error::invalid(format!(
                "the payload of a job of kind {:?} has {size} bytes: at most {max_payload_bytes} are allowed",
                self.kind
            )));
        }
        Ok(())
    }
}

/// A key that at most one job of a kind may have at a time. Two kinds never clash.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UniqueKey(pub(crate) CompactString);

impl UniqueKey {
    /// A key from its text.
    pub fn new(text: impl AsRef<str>) -> Self {
        Self(CompactString::new(text))
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A unique key with the window in which it holds, and what becomes of a second job.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unique {
    /// The key.
    pub key: UniqueKey,
    /// For how long it is taken.
    pub window: Window,
    /// What a second job with the same key does.
    pub clash: Clash,
}

/// For how long a unique key is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// While the job waits; free again from the moment that it is handed to a worker, and taken once more if it has to
    /// wait again: it is to be retried, was handed back, or its lease ran out.
    ///
    /// If another has taken the key meanwhile, what counts is what that one asked for. With [`Clash::KeepFirst`] both
    /// are kept, since nobody asked for anything to be replaced, and the key is taken for as long as any of them
    /// waits. With [`Clash::ReplacePayload`] the older one is superseded.
    WhileQueued,
    /// Until it is done or in the dead letters.
    UntilDone,
    /// For so long after it was enqueued, whatever becomes of it.
    For(Duration),
}

/// What becomes of a second job with the same unique key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clash {
    /// It is dropped: the first one stands for both.
    KeepFirst,
    /// Its payload replaces that of the first one while that still waits: newest payload wins. If the first
    /// one is already running, the second is dropped under [`Window::UntilDone`] and [`Window::For`] as long as that
    /// holds the key, and a job of its own where the key is free.
    ///
    /// **No older payload is handed out after a newer one.** Once the newer one is taken in, whatever is with a worker
    /// under the same kind and key is *superseded*, whatever was asked for with it: it may be done where it runs, or go
    /// to the dead letters, but it is not tried again. Where it would have had to wait once more it ends instead, also
    /// if the newer job is done by then, or was cancelled or deleted: it is the newest that anybody wanted. Others that
    /// wait beside the one whose payload is replaced are superseded at once. A superseded job is neither done nor dead;
    /// [`Counts::superseded`](crate::Counts) counts it, and where finished jobs are kept it is kept like them, with its
    /// history and [who took its place](crate::StoredJob::superseded_by). Whoever requeues a dead job brings it back
    /// all the same.
    ///
    /// What it does not do: it stops no job that runs, nor one that was fetched ahead and has not begun, and under
    /// [`Window::WhileQueued`] the newer one may run beside it. A job that has waited for longer than its
    /// [`Window::For`] is a job of its own and stays: else a queue slower than the period would never run any.
    ReplacePayload,
}

impl Unique {
    /// Unique while it waits in the queue.
    pub fn while_queued(key: impl AsRef<str>) -> Self {
        Self { key: UniqueKey::new(key), window: Window::WhileQueued, clash: Clash::KeepFirst }
    }

    /// Unique until it is done.
    pub fn until_done(key: impl AsRef<str>) -> Self {
        Self { window: Window::UntilDone, ..Self::while_queued(key) }
    }

    /// Unique for `period` after it was enqueued.
    pub fn for_period(key: impl AsRef<str>, period: Duration) -> Self {
        Self { window: Window::For(period), ..Self::while_queued(key) }
    }

    /// A second job's payload replaces the waiting one's: newest payload wins.
    #[must_use]
    pub fn replace_payload(mut self) -> Self {
        self.clash = Clash::ReplacePayload;
        self
    }
}

/// What became of a [`NewJob`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enqueued {
    /// It is a job now, with this id.
    Created(JobId),
    /// A job with the same unique key was there: this one, and nothing was added.
    Duplicate(JobId),
    /// A waiting job with the same unique key has got the new payload.
    Replaced(JobId),
}

impl Enqueued {
    /// The id of the job that stands for it.
    pub fn id(&self) -> &JobId {
        match self {
            Self::Created(id) | Self::Duplicate(id) | Self::Replaced(id) => id,
        }
    }
}
