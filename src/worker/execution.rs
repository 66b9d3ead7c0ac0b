//! One job, once: runs its handler under its span, contains a panic, obeys an abort, and ends its children.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument as _;

use crate::context::{CancelReason, Context, Run};
use crate::handler::HandlerService;
use crate::outcome::{Outcome, Panicked, TimedOut};
use crate::telemetry;

/// What the task of a job yields.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Which place of the loop's table it had.
    pub(crate) place: usize,
    pub(crate) end: End,
    pub(crate) run_time: Duration,
}

/// How an attempt ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The handler returned.
    Returned(Outcome),
    /// It panicked.
    Panicked(Panicked),
    /// It was dropped at an await point.
    Aborted,
}

/// Runs one attempt. Does not panic, whatever the handler does (save for a panic while it is being dropped
/// after it has panicked already, which aborts any Rust program).
pub(crate) async fn execute(place: usize, handler: HandlerService, run: Arc<Run>) -> Finished {
    let span = telemetry::job_span(&run.delivery);
    if span.is_disabled() {
        attempt(place, handler, run).await
    } else {
        attempt(place, handler, run).instrument(span).await
    }
}

async fn attempt(place: usize, handler: HandlerService, run: Arc<Run>) -> Finished {
    run.start();
    let started = Instant::now();
    let end = call(&handler, &run).await;
    run.end_children().await;
    Finished { place, end, run_time: started.elapsed() }
}

async fn call(handler: &HandlerService, run: &Arc<Run>) -> End {
    let mut future = None;
    let returned = run
        .until_abort(|cx| {
            let polled = catch_unwind(AssertUnwindSafe(|| {
                future.get_or_insert_with(|| handler.start(Context::new(run.clone()))).as_mut().poll(cx)
            }));
            match polled {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(outcome)) => Poll::Ready(Ok(outcome)),
                Err(panic) => Poll::Ready(Err(panic)),
            }
        })
        .await;
    // Dropping is the user's code too.
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(future)));
    match (returned, dropped) {
        (Some(Err(panic)), _) | (_, Err(panic)) => End::Panicked(panicked(panic)),
        (Some(Ok(outcome)), Ok(())) => End::Returned(outcome),
        (None, Ok(())) => End::Aborted,
    }
}

/// Takes the message and drops the rest, which may itself panic.
fn panicked(payload: Box<dyn Any + Send>) -> Panicked {
    let message = Panicked::new(payload.as_ref());
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again); // give up on a payload that panics each time it is dropped
    }
    message
}

/// What the attempt comes to, given why it was told to stop, if it was. `None`: it is not ours to settle.
pub(crate) fn verdict(run: &Run, end: End) -> Option<Outcome> {
    let reason = run.cancel_reason();
    if reason == Some(CancelReason::LeaseLost) {
        return None;
    }
    let outcome = match (end, reason) {
        // What was finished is finished, told to stop or not.
        (End::Returned(Outcome::Done), _) => Outcome::Done,
        (_, Some(CancelReason::Requested)) => Outcome::reject("cancelled on request"),
        (End::Returned(Outcome::Fail { .. }) | End::Aborted, Some(CancelReason::Shutdown)) => {
            Outcome::Snooze(Duration::ZERO)
        }
        (End::Returned(Outcome::Fail { .. }) | End::Aborted, Some(CancelReason::Timeout)) => {
            Outcome::fail(TimedOut { timeout: run.timeout.unwrap_or_default() })
        }
        (End::Returned(outcome), _) => outcome,
        (End::Panicked(panic), _) => Outcome::fail(panic),
        // Only the loop aborts, and never without a reason.
        (End::Aborted, _) => Outcome::Snooze(Duration::ZERO),
    };
    Some(outcome)
}
