//! One attempt at a job, in a task: runs the handler's future under its span, contains a panic, obeys an
//! abort, ends its children, and reports. A task that has reported may be given the next attempt of its kind.
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
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::task::coop::has_budget_remaining;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::completions::{Completions, End, Finished, Told};
use crate::context::{Context, Run};
use crate::outcome::{Outcome, Panicked};
use crate::pull::{MAX_IN_A_ROW, Next, Ticket};
use crate::telemetry;

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
    kind: usize,
    completions: Arc<Completions>,
    silent: bool,
    /// The task pulls others of its kind after this.
    ticket: Option<Ticket>,
}

impl Reporter {
    /// Reports how it ended and how long it took; nothing if the loop has settled it.
    fn tell(&mut self, ended: Option<(End, Duration)>, tired: bool) -> Told {
        self.silent = true;
        let finished = ended.map(|(end, run_time)| Finished { place: self.place, end, run_time });
        self.completions.tell(finished, self.kind, self.ticket, tired)
    }

    /// The next attempt for the same task, if there is one: from now on this reports for it.
    async fn next(&mut self, told: Told) -> Option<Arc<Run>> {
        let next = self.completions.next(self.kind, told).await;
        self.ticket = None; // it is with the next, or has ended
        next.map(|Next { place, kind, run, ticket }| {
            (self.place, self.kind, self.ticket, self.silent) = (place, kind, ticket, false);
            run
        })
    }

    /// The job waits for something: others see to what this task was to pull.
    fn is_kept(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.completions.is_kept(self.kind, ticket);
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if !self.silent {
            self.completions.report_dropped(self.place);
        }
        if let Some(ticket) = self.ticket {
            self.completions.is_dropped(self.kind, ticket);
        }
    }
}

impl Attempt {
    /// An attempt for the delivery in `place`. Dropped without having been run, it reports that.
    pub(crate) fn new(next: Next, completions: Arc<Completions>) -> Self {
        let Next { place, kind, run, ticket } = next;
        Self { run, reporter: Reporter { place, kind, completions, silent: false, ticket } }
    }

    /// Runs `start`'s future to its end and reports; then the same with each attempt that it is given or pulls. Does not
    /// panic, whatever the handler does.
    ///
    /// Not an `async fn`: that keeps room for each argument twice, in every task.
    pub(crate) fn drive<F>(self, start: impl Fn(Context) -> F) -> impl Future<Output = ()>
    where
        F: Future<Output = Outcome>,
    {
        let Self { run, mut reporter } = self;
        let (mut next, mut in_a_row) = (Some(run), 0_u32);
        async move {
            while let Some(run) = next.take() {
                let started = Instant::now();
                let ended = if run.start(started) {
                    let span = telemetry::job_span(&run.delivery);
                    // `Instrumented` with a disabled span costs a test or two; one state machine, not two, keeps
                    // the task small.
                    let mut running = std::pin::pin!(attempt(run, started, &start).instrument(span));
                    let ended = std::future::poll_fn(|cx| {
                        let polled = running.as_mut().poll(cx);
                        if polled.is_pending() {
                            reporter.is_kept();
                        }
                        polled
                    });
                    Some(ended.await)
                } else {
                    drop(run); // the loop has settled it, and the place may be another's by now
                    None
                };
                in_a_row = (in_a_row + 1) % MAX_IN_A_ROW;
                // What is pulled shares the task's budget for a poll: who has none left waits for no reason of its own.
                let tired = in_a_row == 0 || !has_budget_remaining();
                let told = reporter.tell(ended, tired);
                next = reporter.next(told).await;
            }
        }
    }
}

#[expect(clippy::manual_async_fn, reason = "an `async fn` keeps room for each argument twice, in every task")]
fn attempt<F>(
    run: Arc<Run>,
    started: Instant,
    start: &impl Fn(Context) -> F,
) -> impl Future<Output = (End, Duration)>
where
    F: Future<Output = Outcome>,
{
    async move {
        let mut end = call(&run, start).await;
        run.end_children().await;
        if matches!(end, End::Aborted) {
            end = match run.take_late() {
                None => End::Aborted,
                Some(Ok(outcome)) => End::Returned(outcome.rendered()),
                Some(Err(panic)) => End::Panicked(Panicked::contained(panic)),
            };
        }
        (end, started.elapsed())
    }
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
#[cfg(test)]
mod tests {
    use super::*;

    /// What sleeps is mostly that: a hundred thousand jobs at once are as many tasks.
    #[test]
    fn a_task_holds_little_beside_the_handlers_future() {
        fn size<A, R>(_: impl Fn(A) -> R) -> usize {
            size_of::<R>()
        }
        let handler = |_: Context| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Outcome::Done
        };
        let (task, future) = (size(|attempt: Attempt| attempt.drive(handler)), size(handler));
        assert!(task <= future + 288, "{task} bytes for a future of {future}");
    }
}
