//! One attempt at a job, as a task: runs the handler's future under its span, contains a panic, obeys an
//! abort, ends its children, and reports.
//!
//! Invariants:
//!
//! 1. Every attempt reports exactly once, even when its future is dropped by a runtime that shuts down.
//! 2. When it reports, the handler's future has been dropped, its children have ended, and its error has been
//!    turned into text: what comes after is the engine's code only, so whoever runs it is neither blocked by a
//!    job nor made to panic.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::Poll;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::context::{Context, Run};
use crate::outcome::{Outcome, Panicked};
use crate::sync::{Mutex, lock};
use crate::telemetry;

/// How an attempt ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The handler returned.
    Returned(Outcome),
    /// It panicked.
    Panicked(Panicked),
    /// It was dropped at an await point, as it was told to.
    Aborted,
    /// Its task was dropped by the runtime, which is going down.
    Dropped,
}

/// What an attempt reports.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Which place of the loop's table it had.
    pub(crate) place: usize,
    pub(crate) end: End,
    pub(crate) run_time: Duration,
}

/// What can be polled by whoever has just finished a job.
pub(crate) trait PollInPlace: Send + Sync {
    /// Polls it here and now, unless somebody else is at it; who is then looks once more.
    fn poll_in_place(&self);
}

/// Where attempts report, and how the loop learns of it.
///
/// A worker's loop may live on a thread of its own. To wake that for each finished job would cost two changes
/// of thread a job; instead the task that has just finished a job, which by that proves that its thread is not
/// blocked, polls the loop on the spot. `docs/design.md` has the figures.
#[derive(Default)]
pub(crate) struct Completions {
    done: Mutex<Done>,
    /// The loop has reaped something lately and has set itself a timer to look again soon: then a finished
    /// attempt may let the jobs that wait on its thread go first, so that the loop takes several at once.
    hot: AtomicBool,
    in_place: OnceLock<Weak<dyn PollInPlace>>,
    waker: AtomicWaker,
}

/// What has been reported since the loop took it last, and how often it has taken.
#[derive(Default)]
struct Done {
    reports: Vec<Finished>,
    takes: u64,
}

impl std::fmt::Debug for Completions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Completions").field("hot", &self.hot).finish_non_exhaustive()
    }
}

impl Completions {
    /// From now on the loop is polled through this.
    pub(crate) fn poll_through(&self, stage: Weak<dyn PollInPlace>) {
        // Set once, before the first attempt is started.
        let _ = self.in_place.set(stage);
    }

    /// Takes all that has been reported; `room` must be empty, and is left in its place.
    pub(crate) fn take(&self, room: &mut Vec<Finished>) {
        let mut done = lock(&self.done);
        if !done.reports.is_empty() {
            std::mem::swap(&mut done.reports, room);
            done.takes += 1;
        }
    }

    /// Whether something has been reported. Otherwise the next report wakes the waker.
    pub(crate) fn poll_any(&self, cx: &std::task::Context<'_>) -> bool {
        self.waker.register(cx.waker());
        !lock(&self.done).reports.is_empty()
    }

    pub(crate) fn set_hot(&self, hot: bool) {
        self.hot.store(hot, Ordering::Relaxed);
    }

    /// Returns a ticket by which to tell whether the report has been taken.
    fn report(&self, finished: Finished) -> u64 {
        let mut done = lock(&self.done);
        done.reports.push(finished);
        done.takes
    }

    /// Makes the loop take what has been reported, unless it has meanwhile.
    async fn tell(&self, ticket: u64) {
        if self.hot.load(Ordering::Relaxed) {
            requeue().await;
            if lock(&self.done).takes != ticket {
                return; // a neighbour has taken it along
            }
        }
        match self.in_place.get() {
            None => self.waker.wake(),
            Some(stage) => {
                if let Some(stage) = stage.upgrade() {
                    stage.poll_in_place();
                }
            }
        }
    }
}

/// Lets the tasks go first that wait on this thread.
///
/// Not `tokio::task::yield_now`: that keeps the task out of the other threads' reach until this thread comes
/// to a pause, which a blocking job may delay; a plain wake-up puts it at the end of the queue, for any thread
/// to steal.
pub(crate) async fn requeue() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// One attempt, ready to be run.
#[derive(Debug)]
pub(crate) struct Attempt {
    run: Arc<Run>,
    reporter: Reporter,
}

/// Reports on drop, unless the attempt has reported itself.
#[derive(Debug)]
struct Reporter {
    place: usize,
    completions: Arc<Completions>,
    silent: bool,
}

impl Reporter {
    fn report(&mut self, end: End, run_time: Duration) -> u64 {
        self.silent = true;
        self.completions.report(Finished { place: self.place, end, run_time })
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if !self.silent {
            self.completions.report(Finished {
                place: self.place,
                end: End::Dropped,
                run_time: Duration::ZERO,
            });
            self.completions.waker.wake();
        }
    }
}

impl Attempt {
    /// An attempt for the delivery in `place`. Dropped without having been run, it reports that.
    pub(crate) fn new(place: usize, run: Arc<Run>, completions: Arc<Completions>) -> Self {
        Self { run, reporter: Reporter { place, completions, silent: false } }
    }

    /// Runs `start`'s future to its end and reports. Does not panic, whatever the handler does.
    pub(crate) async fn drive<F>(self, start: impl FnOnce(Context) -> F)
    where
        F: Future<Output = Outcome>,
    {
        let Self { run, mut reporter } = self;
        if !run.start() {
            reporter.silent = true; // the loop has settled it, and the place may be another's by now
            return;
        }
        let span = telemetry::job_span(&run.delivery);
        // `Instrumented` with a disabled span costs a test or two; one state machine, not two, keeps the task
        // small.
        let (end, run_time) = attempt(run, start).instrument(span).await;
        let ticket = reporter.report(end, run_time);
        reporter.completions.tell(ticket).await;
    }
}

async fn attempt<F>(run: Arc<Run>, start: impl FnOnce(Context) -> F) -> (End, Duration)
where
    F: Future<Output = Outcome>,
{
    let started = Instant::now();
    let end = call(&run, start).await;
    run.end_children().await;
    (end, started.elapsed())
}

async fn call<F>(run: &Arc<Run>, start: impl FnOnce(Context) -> F) -> End
where
    F: Future<Output = Outcome>,
{
    let future = match catch_unwind(AssertUnwindSafe(|| start(Context::new(run.clone())))) {
        Ok(future) => future,
        Err(panic) => return End::Panicked(Panicked::contained(panic)),
    };
    let mut future = std::pin::pin!(Some(future));
    let returned = run
        .until_abort(|cx| {
            let Some(live) = future.as_mut().as_pin_mut() else { return Poll::Pending };
            match catch_unwind(AssertUnwindSafe(|| live.poll(cx))) {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(outcome)) => Poll::Ready(Ok(outcome)),
                Err(panic) => Poll::Ready(Err(panic)),
            }
        })
        .await;
    let dropped = drop_contained(future);
    match (returned, dropped) {
        (Some(Err(panic)), _) | (_, Err(panic)) => End::Panicked(Panicked::contained(panic)),
        (Some(Ok(outcome)), Ok(())) => End::Returned(outcome.rendered()),
        (None, Ok(())) => End::Aborted,
    }
}

/// Dropping is the user's code too.
fn drop_contained<F>(mut future: Pin<&mut Option<F>>) -> Result<(), Box<dyn Any + Send>> {
    catch_unwind(AssertUnwindSafe(|| future.set(None)))
}
