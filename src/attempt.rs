//! One attempt at a job, in a task: runs the handler's future under its span, contains a panic, obeys an
//! abort, ends its children, and reports. A task that has reported may be given the next attempt of its kind.
//!
//! Invariants:
//!
//! 1. Every attempt reports exactly once, even when its future is dropped by a runtime that shuts down.
//! 2. When it reports, the handler's future has been dropped, its children have ended, and its error has been
//!    turned into text: what comes after is the engine's code only, so whoever runs it is neither blocked by a
//!    job nor made to panic.
//! 3. Who is given an attempt stands by: its report has been taken and it waits to be polled, on a queue from
//!    which any thread may take it. So the attempt begins no later than one in a new task would.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::Poll;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use slab::Slab;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::context::{Context, Run};
use crate::outcome::{Outcome, Panicked};
use crate::sync::{Mutex, lock};
use crate::telemetry;

/// How many keys of standbys are kept for a kind; those of tasks that have gone are among them.
const MAX_KEYS: usize = 1024;

/// How often a task that stands by lets others go first while the loop is about to give. A turn takes some
/// microseconds; to be woken anew would cost more than to look again so many times.
const MAX_STANDING: usize = 64;

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
    /// The loop is dealing with what it has taken, and may have something to give soon.
    in_turn: AtomicBool,
    in_place: OnceLock<Weak<dyn PollInPlace>>,
    waker: AtomicWaker,
}

/// What has been reported since the loop took it last, how often it has taken, and who stands by.
#[derive(Default)]
struct Done {
    reports: Vec<Finished>,
    takes: u64,
    standbys: Slab<Standby>,
    /// By kind: keys of standbys. Some may have gone, and their keys may be others' by now.
    by_kind: Vec<Vec<usize>>,
}

/// A task that has reported and waits to be polled once more.
struct Standby {
    kind: usize,
    /// How often the loop had taken reports when this one was made.
    ticket: u64,
    next: Option<Next>,
}

/// An attempt for a task that stands by.
struct Next {
    place: usize,
    run: Arc<Run>,
}

impl Done {
    /// Finds who may be given an attempt at a job of this kind.
    fn standby(&mut self, kind: usize) -> Option<&mut Standby> {
        let takes = self.takes;
        let may = |standby: &Standby| standby.kind == kind && standby.ticket != takes && standby.next.is_none();
        let keys = self.by_kind.get_mut(kind)?;
        let key = std::iter::from_fn(|| keys.pop()).find(|key| self.standbys.get(*key).is_some_and(may))?;
        self.standbys.get_mut(key)
    }

    fn stand_by(&mut self, kind: usize) -> usize {
        if self.standbys.is_empty() && self.standbys.capacity() > MAX_KEYS {
            self.standbys = Slab::new(); // give a burst's memory back (P2)
        }
        let key = self.standbys.insert(Standby { kind, ticket: self.takes, next: None });
        if self.by_kind.len() <= kind {
            self.by_kind.resize_with(kind + 1, Vec::new);
        }
        let keys = &mut self.by_kind[kind];
        if keys.len() >= MAX_KEYS {
            keys.clear(); // most have gone
        }
        keys.push(key);
        key
    }
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
            self.in_turn.store(true, Ordering::Relaxed);
        }
    }

    /// What was taken has been dealt with as far as it can be without waiting.
    pub(crate) fn turn_is_over(&self) {
        self.in_turn.store(false, Ordering::Relaxed);
    }

    /// Whether something has been reported. Otherwise the next report wakes the waker.
    pub(crate) fn poll_any(&self, cx: &std::task::Context<'_>) -> bool {
        self.waker.register(cx.waker());
        !lock(&self.done).reports.is_empty()
    }

    pub(crate) fn set_hot(&self, hot: bool) {
        self.hot.store(hot, Ordering::Relaxed);
    }

    /// Gives an attempt at a job of this kind to a task that stands by, if one does.
    pub(crate) fn give(&self, kind: usize, place: usize, run: &Arc<Run>) -> bool {
        let mut done = lock(&self.done);
        let Some(standby) = done.standby(kind) else { return false };
        standby.next = Some(Next { place, run: run.clone() });
        true
    }

    fn report(&self, finished: Finished) {
        lock(&self.done).reports.push(finished);
    }

    /// Reports, and makes the loop take what has been reported unless it does so by itself meanwhile. Returns
    /// the next attempt, if this task was given one.
    async fn report_and_stand_by(self: &Arc<Self>, finished: Finished, kind: usize) -> Option<Attempt> {
        if self.hot.load(Ordering::Relaxed) {
            let standing = {
                let mut done = lock(&self.done);
                done.reports.push(finished);
                Standing { key: done.stand_by(kind), completions: self }
            };
            for _ in 0..MAX_STANDING {
                requeue().await;
                if !(self.in_turn.load(Ordering::Relaxed) && standing.waits()) {
                    break;
                }
            }
            let (next, taken) = standing.leave();
            if taken {
                return next.map(|Next { place, run }| Attempt::new(place, run, kind, self.clone()));
            }
        } else {
            self.report(finished);
        }
        match self.in_place.get() {
            None => self.waker.wake(),
            Some(stage) => {
                if let Some(stage) = stage.upgrade() {
                    stage.poll_in_place();
                }
            }
        }
        None
    }
}

/// A place among those who stand by. Dropped with its task, it reports for the attempt that it was given.
struct Standing<'a> {
    key: usize,
    completions: &'a Arc<Completions>,
}

impl Standing<'_> {
    /// Whether its report has been taken, but nothing has been given yet.
    fn waits(&self) -> bool {
        let done = lock(&self.completions.done);
        done.standbys.get(self.key).is_some_and(|standby| standby.ticket != done.takes && standby.next.is_none())
    }

    /// Goes. Returns what it was given, and whether its report has been taken.
    fn leave(self) -> (Option<Next>, bool) {
        let (key, completions) = (self.key, self.completions);
        std::mem::forget(self);
        let mut done = lock(&completions.done);
        let standby = done.standbys.remove(key);
        (standby.next, standby.ticket != done.takes)
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        let standby = lock(&self.completions.done).standbys.remove(self.key);
        if let Some(Next { place, run }) = standby.next {
            drop(Attempt::new(place, run, standby.kind, self.completions.clone()));
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
    /// The number of its kind.
    kind: usize,
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
    /// Reports, and returns the next attempt for the same task, if there is one.
    async fn report(mut self, end: End, run_time: Duration, kind: usize) -> Option<Attempt> {
        self.silent = true;
        let finished = Finished { place: self.place, end, run_time };
        self.completions.report_and_stand_by(finished, kind).await
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
    pub(crate) fn new(place: usize, run: Arc<Run>, kind: usize, completions: Arc<Completions>) -> Self {
        Self { run, kind, reporter: Reporter { place, completions, silent: false } }
    }

    /// Runs `start`'s future to its end and reports; then the same with each attempt that it is given. Does
    /// not panic, whatever the handler does.
    pub(crate) async fn drive<F>(self, start: impl Fn(Context) -> F)
    where
        F: Future<Output = Outcome>,
    {
        let mut next = Some(self);
        while let Some(Self { run, kind, mut reporter }) = next {
            if !run.start() {
                reporter.silent = true; // the loop has settled it, and the place may be another's by now
                return;
            }
            let span = telemetry::job_span(&run.delivery);
            // `Instrumented` with a disabled span costs a test or two; one state machine, not two, keeps the
            // task small.
            let (end, run_time) = attempt(run, &start).instrument(span).await;
            next = reporter.report(end, run_time, kind).await;
        }
    }
}

async fn attempt<F>(run: Arc<Run>, start: &impl Fn(Context) -> F) -> (End, Duration)
where
    F: Future<Output = Outcome>,
{
    let started = Instant::now();
    let end = call(&run, start).await;
    run.end_children().await;
    (end, started.elapsed())
}

async fn call<F>(run: &Arc<Run>, start: &impl Fn(Context) -> F) -> End
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
