//! The attempts that have ended: a row each, for as long as their job is kept.
//!
//! A job that is done in its first attempt, and not kept, leaves none and pays nothing: its row says that there are
//! none to delete.

use std::sync::Arc;

use rusqlite::{Row, params};

use super::{Stand, Time, Txn, job_id, moment, shared};
use crate::inspect::{AttemptEnd, PastAttempt};
use crate::source::{MAX_OUTPUT_BYTES, MAX_REASON_BYTES, truncate};

/// How many ended attempts of a job are kept; beyond that the oldest goes. A job has 20 attempts by default, and with
/// a few that were handed back that makes its whole life.
const MAX_KEPT: i64 = 25;

/// The number of [`AttemptEnd::Superseded`].
const SUPERSEDED: i64 = 5;

/// How an attempt ended.
pub(super) struct Attempt<'a> {
    pub(super) ended_at: Time,
    pub(super) end: AttemptEnd,
    pub(super) error: Option<&'a str>,
    pub(super) output: Option<&'a [u8]>,
}

impl Stand {
    /// What an attempt comes to after which the job would wait once more.
    pub(super) fn end_of(&self, end: AttemptEnd) -> AttemptEnd {
        if self.superseded_by.is_some() { AttemptEnd::Superseded } else { end }
    }
}

impl Txn<'_> {
    /// Writes down the end of an attempt at a job that is with a worker. Returns how many there are now, which must
    /// go into its row.
    pub(super) fn write_down(&self, job: &Stand, ended: &Attempt<'_>) -> rusqlite::Result<i64> {
        let number = job.history + 1;
        let error = ended.error.map(|error| truncate(error, MAX_REASON_BYTES));
        let output = ended.output.map(|output| &output[..output.len().min(MAX_OUTPUT_BYTES)]);
        self.connection
            .prepare_cached(
                "INSERT INTO tidegate_attempts (job, number, attempt, started_at, ended_at, came_to, error, output)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                job.id,
                number,
                job.attempts,
                job.since,
                ended.ended_at,
                end_number(ended.end),
                error,
                output
            ])?;
        if number > MAX_KEPT {
            self.connection
                .prepare_cached("DELETE FROM tidegate_attempts WHERE job = ?1 AND number <= ?2")?
                .execute([job.id, number - MAX_KEPT])?;
        }
        Ok(number)
    }

    pub(super) fn forget(&self, job: i64) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("DELETE FROM tidegate_attempts WHERE job = ?1")?
            .execute([job])
            .map(|_| ())
    }
}

/// A row of the columns `attempt`, `started_at`, `ended_at`, `came_to`, `error` and `output`, and by which job it was
/// superseded.
pub(super) fn past_attempt(row: &Row<'_>) -> rusqlite::Result<PastAttempt> {
    let (started, ended) = (moment(row.get(1)?), moment(row.get(2)?));
    let mut past = PastAttempt::new(row.get(0)?, started, ended, end(row.get(3)?));
    past.superseded_by = row.get::<_, Option<i64>>(6)?.map(job_id);
    past.error = shared(row.get(4)?);
    past.output = row.get::<_, Option<Vec<u8>>>(5)?.map(Arc::from);
    Ok(past)
}

fn end_number(end: AttemptEnd) -> i64 {
    match end {
        AttemptEnd::Done => 0,
        AttemptEnd::Retried => 1,
        AttemptEnd::Rejected => 2,
        AttemptEnd::Released => 3,
        AttemptEnd::Lapsed => 4,
        AttemptEnd::Superseded => SUPERSEDED,
    }
}

fn end(number: i64) -> AttemptEnd {
    match number {
        0 => AttemptEnd::Done,
        1 => AttemptEnd::Retried,
        2 => AttemptEnd::Rejected,
        3 => AttemptEnd::Released,
        SUPERSEDED => AttemptEnd::Superseded,
        _ => AttemptEnd::Lapsed,
    }
}
