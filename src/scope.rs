//! A bounded set of child tasks that reaps itself: [`Scope`].
//!
//! Invariants:
//!
//! 1. At most `limit` children run; the permit is taken before the child is spawned and freed when its
//!    future has been dropped.
//! 2. A finished child leaves nothing behind: no list of handles is kept, only the first error and a count.
//! 3. No child outlives the last handle for longer than it takes to reach its next await point.

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::error::{BoxError, Error, ErrorKind};
use crate::outcome::Panicked;

/// A bounded set of child tasks that end with it.
///
/// [`spawn`](Scope::spawn) waits for room, [`join`](Scope::join) waits for all. The first child that fails
/// or panics cancels its siblings, and `join` reports it. A child sees cancellation as being dropped at its
/// next await point.
///
/// Dropping the last clone cancels the children without waiting for them. Inside a job, the job is not
/// settled before they have ended. A child may hold a clone and spawn siblings; it must not `join`.
///
/// Not a `JoinSet`: results are not collected (send them through a channel), so it can run for ever without
/// growing. Not a thread pool either: children share the runtime they are spawned on.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tidegate::ScopeError> {
/// use tidegate::Scope;
///
/// let scope = Scope::new(4);
/// for page in 0..100 {
///     // Waits while four are running.
///     scope.spawn(async move { fetch(page).await }).await?;
/// }
/// scope.join().await
/// # }
/// # async fn fetch(_: u32) -> Result<(), std::io::Error> { Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Scope {
    shared: Arc<Shared>,
    /// Cancels when the last clone goes; the children themselves hold only `shared`.
    _guard: Arc<DropGuard>,
}

#[derive(Debug)]
struct Shared {
    tracker: TaskTracker,
    job: Option<TaskTracker>,
    permits: Arc<Semaphore>,
    cancelled: CancellationToken,
    failures: Mutex<Failures>,
}

#[derive(Debug, Default)]
struct Failures {
    first: Option<BoxError>,
    count: usize,
}

impl Scope {
    /// A scope for at most `limit` children at once; 0 is taken as 1.
    pub fn new(limit: usize) -> Self {
        Self::build(limit, CancellationToken::new(), None)
    }

    /// A scope of a job: its token is the job's child, and the job waits for its children.
    pub(crate) fn within(limit: usize, job: &TaskTracker, cancelled: CancellationToken) -> Self {
        Self::build(limit, cancelled, Some(job.clone()))
    }

    fn build(limit: usize, cancelled: CancellationToken, job: Option<TaskTracker>) -> Self {
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS);
        let shared = Shared {
            tracker: TaskTracker::new(),
            job,
            permits: Arc::new(Semaphore::new(limit)),
            cancelled: cancelled.clone(),
            failures: Mutex::default(),
        };
        Self { shared: Arc::new(shared), _guard: Arc::new(cancelled.drop_guard()) }
    }

    /// Waits for room, then starts `child`.
    ///
    /// # Errors
    /// [`ScopeError`] when the scope has been cancelled or a child has failed: `child` was not started.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    ///
    /// # Cancel safety
    /// Dropped while waiting, it has not started `child`, which is dropped.
    pub async fn spawn<F, E>(&self, child: F) -> Result<(), ScopeError>
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError> + 'static,
    {
        let permits = self.shared.permits.clone();
        let permit = tokio::select! {
            biased;
            () = self.shared.cancelled.cancelled() => return Err(self.shared.take_error()),
            permit = permits.acquire_owned() => permit,
        };
        // The semaphore is never closed, so there is always a permit.
        let Ok(permit) = permit else { return Err(self.shared.take_error()) };
        let task = self.shared.clone().run(child, permit);
        match &self.shared.job {
            Some(job) => drop(self.shared.tracker.spawn(job.track_future(task))),
            None => drop(self.shared.tracker.spawn(task)),
        }
        Ok(())
    }

    /// Waits until no child is left.
    ///
    /// # Errors
    /// The first error or panic among the children, with how many failed in all; or that it was cancelled.
    ///
    /// # Cancel safety
    /// Dropped early, it cancels the children unless another clone is held.
    pub async fn join(self) -> Result<(), ScopeError> {
        self.shared.tracker.close();
        self.shared.tracker.wait().await;
        let failed = self.shared.failures().count > 0;
        if failed || self.shared.cancelled.is_cancelled() { Err(self.shared.take_error()) } else { Ok(()) }
    }

    /// Cancels the children and waits until they have ended.
    ///
    /// # Cancel safety
    /// The children are cancelled at the first poll, even if it is dropped then.
    pub async fn cancel(self) {
        self.shared.cancelled.cancel();
        self.shared.tracker.close();
        self.shared.tracker.wait().await;
    }

    /// How many children are running.
    pub fn len(&self) -> usize {
        self.shared.tracker.len()
    }

    /// Whether no child is running.
    pub fn is_empty(&self) -> bool {
        self.shared.tracker.is_empty()
    }
}

impl Shared {
    async fn run<F, E>(self: Arc<Self>, child: F, permit: OwnedSemaphorePermit)
    where
        F: Future<Output = Result<(), E>>,
        E: Into<BoxError> + 'static,
    {
        let ended = tokio::select! {
            biased;
            () = self.cancelled.cancelled() => None,
            ended = AssertUnwindSafe(child).catch_unwind() => Some(ended),
        };
        drop(permit); // the future has been dropped by now (invariant 1)
        let error: BoxError = match ended {
            None | Some(Ok(Ok(()))) => return,
            Some(Ok(Err(error))) => error.into(),
            Some(Err(panic)) => Panicked::contained(panic).into(),
        };
        {
            let mut failures = self.failures();
            failures.count += 1;
            failures.first.get_or_insert(error);
        }
        self.cancelled.cancel();
    }

    fn failures(&self) -> std::sync::MutexGuard<'_, Failures> {
        // Nothing panics while it is held; should something, two numbers are still two numbers.
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_error(&self) -> ScopeError {
        let mut failures = self.failures();
        let first = failures.first.take().unwrap_or_else(|| {
            let what = if failures.count > 0 { "a child failed" } else { "the scope was cancelled" };
            Error::new(ErrorKind::Closed, what).into()
        });
        ScopeError { first, failed: failures.count }
    }
}

/// Why a [`Scope`] ended before all its children were done.
#[derive(Debug)]
pub struct ScopeError {
    first: BoxError,
    failed: usize,
}

impl ScopeError {
    /// The first child's error; a [`Panicked`] if it panicked.
    pub fn into_first(self) -> BoxError {
        self.first
    }

    /// How many children failed; 0 when the scope was cancelled from outside.
    pub fn failed(&self) -> usize {
        self.failed
    }
}

impl fmt::Display for ScopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.failed {
            0 => write!(f, "children were cancelled"),
            1 => write!(f, "a child failed"),
            more => write!(f, "{more} children failed, the first"),
        }
    }
}

impl std::error::Error for ScopeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.first.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn forever() -> Result<(), std::io::Error> {
        std::future::pending().await
    }

    #[tokio::test(start_paused = true)]
    async fn the_children_of_a_jobs_scope_count_among_the_jobs_until_they_have_ended() {
        let (job, token) = (TaskTracker::new(), CancellationToken::new());
        let scope = Scope::within(3, &job, token.child_token());
        for _ in 0..3 {
            scope.spawn(forever()).await.expect("there is room");
        }
        assert_eq!((job.len(), scope.len()), (3, 3));
        token.cancel();
        job.close();
        job.wait().await;
        assert_eq!((job.len(), scope.len()), (0, 0));
        assert!(scope.join().await.is_err_and(|error| error.failed() == 0), "it was cancelled from outside");
    }

    #[tokio::test(start_paused = true)]
    async fn a_jobs_scope_that_fails_does_not_cancel_the_job() {
        let (job, token) = (TaskTracker::new(), CancellationToken::new());
        let scope = Scope::within(3, &job, token.child_token());
        scope.spawn(async { Err::<(), _>(std::io::Error::other("no")) }).await.expect("there is room");
        assert!(scope.join().await.is_err());
        assert!(!token.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_permit_is_free_when_its_child_was_dropped_and_not_before() {
        struct Slow(Arc<Semaphore>);
        impl Drop for Slow {
            fn drop(&mut self) {
                assert_eq!(self.0.available_permits(), 0, "the place was given away too early");
            }
        }
        let scope = Scope::new(1);
        let permits = scope.shared.permits.clone();
        let child = Slow(permits.clone());
        let work = async move {
            let _child = child;
            Ok::<(), std::io::Error>(())
        };
        scope.spawn(work).await.expect("there is room");
        scope.join().await.expect("no child failed");
        assert_eq!(permits.available_permits(), 1);
    }
}
