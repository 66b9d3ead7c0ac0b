//! What an attempt comes to. Pure.

use std::time::Duration;

use crate::completions::End;
use crate::context::{CancelReason, Run};
use crate::outcome::{Outcome, TimedOut};

/// The reason of a job that was cancelled and did not finish all the same.
pub(crate) const ON_REQUEST: &str = "cancelled on request";

/// What the attempt comes to, given why it was told to stop, if it was. `None`: it is not ours to settle.
pub(crate) fn verdict(run: &Run, end: End) -> Option<Outcome> {
    let reason = run.cancel_reason();
    if reason == Some(CancelReason::LeaseLost) {
        return None;
    }
    let outcome = match (end, reason) {
        // What was finished is finished, told to stop or not.
        (End::Returned(Outcome::Done), _) => Outcome::Done,
        (_, Some(CancelReason::Requested)) => Outcome::reject(ON_REQUEST),
        (End::Returned(Outcome::Fail { .. }) | End::Aborted, Some(CancelReason::Shutdown)) => {
            Outcome::Snooze(Duration::ZERO)
        }
        (End::Returned(Outcome::Fail { .. }) | End::Aborted, Some(CancelReason::Timeout)) => {
            Outcome::fail(TimedOut { timeout: run.timeout.unwrap_or_default() })
        }
        (End::Returned(outcome), _) => outcome,
        (End::Panicked(panic), _) => Outcome::fail(panic),
        // The loop aborts only after telling to stop, and a runtime that goes down is no fault of the job's.
        (End::Aborted | End::Dropped, _) => Outcome::Snooze(Duration::ZERO),
    };
    Some(outcome)
}
