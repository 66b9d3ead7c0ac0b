//! The wall clock, and what a job's handler tells by it.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::context::Context;

/// When the attempt will be told to stop, in whole seconds since 1970, rounded down; `None` if it has no timeout.
pub(crate) fn deadline(context: &Context) -> Option<u64> {
    let left = context.deadline()?.saturating_duration_since(Instant::now());
    let at = wall_clock().checked_add(left)?;
    at.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// Now, as other processes count the time.
#[expect(clippy::disallowed_methods, reason = "the edge: other processes know no clock but the wall's")]
pub(crate) fn wall_clock() -> SystemTime {
    SystemTime::now()
}
