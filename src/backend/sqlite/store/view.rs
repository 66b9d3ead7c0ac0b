//! What is seen by whoever only reads: counts, a job, its attempts.
//!
//! Nothing is written, so what time has done since the last who wrote is not in the file yet: a delayed job that is
//! due, a lease that has run out. It is shown as it will be found there ([`Txn::advance`](super::Txn)), from the
//! moment on at which it became so.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, Params, Row, params};

use super::history::past_attempt;
use super::time::{LAPSED, LATE, given_up};
use super::{CANCELLED, Time, job, job_id, moment, nanoseconds, number, shared, state};
use crate::backend::sqlite::config::Settings;
use crate::inspect::{AttemptEnd, Counts, JobState, PastAttempt, StoredJob};
use crate::job::JobId;

/// What becomes of a job whose lease has run out, as a number of its state, or [`SUPERSEDED`]; `?1` is the crash limit.
macro_rules! lapsed_to {
    () => {
        "CASE WHEN completed IS NOT NULL THEN 4 WHEN cancelled <> 0 OR attempts >= coalesce(max_attempts, ?1) THEN 3
             WHEN superseded_by IS NOT NULL THEN 5 ELSE 0 END"
    };
}
pub(super) use lapsed_to;

/// A delayed job for which a newer one was enqueued by a door ([`doors`](super::super::doors)): it is to end. Of the
/// others none is due at 0, so that few are read to find them.
macro_rules! left_superseded {
    () => {
        "state = 1 AND due = 0 AND superseded_by IS NOT NULL"
    };
}
pub(super) use left_superseded;

/// What a job comes to which does not wait once more, since a newer one has taken its place: kept as those that are done,
/// or gone.
pub(super) const SUPERSEDED: i64 = 5;

/// The file as it is at a moment. All that one view shows is of one transaction, which its maker begins.
pub(in super::super) struct View<'a> {
    pub(super) connection: &'a Connection,
    pub(super) settings: &'a Settings,
    pub(super) now: Time,
}

impl<'a> View<'a> {
    pub(in super::super) fn new(connection: &'a Connection, settings: &'a Settings, now: Time) -> Self {
        Self { connection, settings, now }
    }

    /// How many there are of each state: by its index, so that no job is read.
    pub(in super::super) fn counts(&self) -> rusqlite::Result<Counts> {
        let [done, dead, kept, superseded] = self
            .connection
            .prepare_cached("SELECT done, dead, kept, superseded FROM tidegate_counters")?
            .query_row([], |row| Ok([row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?, row.get(3)?]))?;
        let [over, lapsed] = ["state = 1", "state = 2"].map(|state| self.due(state));
        let [ready_again, dead_now, done_now, superseded_now] = [0, 3, 4, SUPERSEDED].map(|state| {
            let sql = concat!(
                "SELECT count(*) FROM tidegate_jobs WHERE state = 2 AND due <= ?2 AND ",
                lapsed_to!(),
                " = ?3"
            );
            self.number(sql, params![self.settings.crash_limit, self.now, state])
        });
        let ready = self.number("SELECT count(*) FROM tidegate_jobs WHERE state = 0", [])?;
        let delayed = self.number("SELECT count(*) FROM tidegate_jobs WHERE state = 1", [])?;
        let leased = self.number("SELECT count(*) FROM tidegate_jobs WHERE state = 2", [])?;
        let left =
            self.number(concat!("SELECT count(*) FROM tidegate_jobs WHERE ", left_superseded!()), [])?;
        let (over, done_now, superseded_now) = (over?, done_now?, superseded_now? + left);
        let kept_now = done_now + if self.keeps_superseded() { superseded_now } else { 0 };
        let count = |jobs: i64| jobs.max(0).unsigned_abs();
        Ok(Counts {
            ready: count(ready + over - left + ready_again?),
            delayed: count(delayed - over),
            leased: count(leased - lapsed?),
            dead: count(dead + dead_now?),
            done: count(done + done_now),
            kept: count(kept - if kept > 0 { self.due("state = 4")? } else { 0 } + kept_now),
            superseded: count(superseded + superseded_now),
            ready_since: self.ready_since()?.map(moment),
        })
    }

    fn number(&self, sql: &str, params: impl Params) -> rusqlite::Result<i64> {
        self.connection.prepare_cached(sql)?.query_row(params, |row| row.get(0))
    }

    /// How many in this state are due by now.
    fn due(&self, state: &str) -> rusqlite::Result<i64> {
        let sql = format!("SELECT count(*) FROM tidegate_jobs WHERE {state} AND due <= ?1");
        self.number(&sql, [self.now])
    }

    /// Since when the first of the ready jobs has been so.
    fn ready_since(&self) -> rusqlite::Result<Option<Time>> {
        let first = match self.first_ready()? {
            Some(id) => Some(self.number("SELECT since FROM tidegate_jobs WHERE id = ?1", [id])?),
            None => None,
        };
        let ripe: Option<Time> = self
            .connection
            .prepare_cached(concat!(
                "SELECT min(due) FROM tidegate_jobs WHERE state = 1 AND due <= ?1 AND NOT (",
                left_superseded!(),
                ")"
            ))?
            .query_row([self.now], |row| row.get(0))?;
        let lapsed: Option<Time> = self
            .connection
            .prepare_cached(concat!(
                "SELECT min(due) FROM tidegate_jobs WHERE state = 2 AND due <= ?2 AND ",
                lapsed_to!(),
                " = 0"
            ))?
            .query_row(params![self.settings.crash_limit, self.now], |row| row.get(0))?;
        Ok([first, ripe, lapsed].into_iter().flatten().min())
    }

    /// One job as it stands; what was kept for its time is not there any more.
    pub(in super::super) fn find(&self, id: &JobId) -> rusqlite::Result<Option<StoredJob>> {
        match number(id) {
            Some(id) => self.row(id),
            None => Ok(None),
        }
    }

    pub(super) fn row(&self, id: i64) -> rusqlite::Result<Option<StoredJob>> {
        let found = self
            .connection
            .prepare_cached(concat!(
                "SELECT ",
                job_columns!(),
                ", ",
                view_columns!(),
                " FROM tidegate_jobs WHERE id = ?1"
            ))?
            .query_row([id], |row| self.stored(row))
            .optional()?;
        Ok(found.flatten())
    }

    /// The attempts at a job, the first first.
    pub(in super::super) fn history(&self, id: &JobId) -> rusqlite::Result<Vec<PastAttempt>> {
        let Some(id) = number(id) else { return Ok(Vec::new()) };
        if self.row(id)?.is_none() {
            return Ok(Vec::new());
        }
        let mut statement = self.connection.prepare_cached(
            // Who has made way for another does not begin anew: by whom stands with the job.
            "SELECT attempt, started_at, ended_at, came_to, error, output,
                 CASE came_to WHEN 5 THEN (SELECT superseded_by FROM tidegate_jobs WHERE id = job) END
             FROM tidegate_attempts WHERE job = ?1 ORDER BY number",
        )?;
        let mut past = statement.query_map([id], past_attempt)?.collect::<rusqlite::Result<Vec<_>>>()?;
        // The one whose lease has run out, which nobody has written down yet.
        let lapsed = self
            .connection
            .prepare_cached(concat!(
                "SELECT attempts, since, due, completed, superseded_by, ",
                lapsed_to!(),
                " FROM tidegate_jobs WHERE id = ?2 AND state = 2 AND due <= ?3"
            ))?
            .query_row(params![self.settings.crash_limit, id, self.now], lapsed_attempt)
            .optional()?;
        past.extend(lapsed);
        Ok(past)
    }

    /// A row of `job_columns` and `view_columns`, as time has left it; `None` if it is to be deleted.
    fn stored(&self, row: &Row<'_>) -> rusqlite::Result<Option<StoredJob>> {
        let due: Time = row.get(12)?;
        let mut stored =
            StoredJob::new(Arc::new(job(row)?), state(row.get(8)?), row.get(9)?, moment(row.get(10)?));
        stored.last_error = shared(row.get(11)?);
        stored.superseded_by = row.get::<_, Option<i64>>(16)?.map(job_id);
        let is_over = due <= self.now;
        match stored.state {
            // Since when, nobody has written down.
            JobState::Delayed if is_over && stored.superseded_by.is_some() => {
                return Ok(self.end_superseded(stored, self.now));
            }
            JobState::Delayed if is_over => {
                (stored.state, stored.since) = (JobState::Ready, moment(due));
            }
            JobState::Leased if is_over => return self.lapse(stored, row, due),
            JobState::Done if is_over => return Ok(None),
            JobState::Delayed | JobState::Leased | JobState::Done => stored.due = Some(moment(due)),
            JobState::Ready | JobState::Dead => {}
        }
        stored.cancel_requested = stored.state == JobState::Leased && row.get(13)?;
        Ok(Some(stored))
    }

    /// The same as `Txn::lapse_one` does to the row.
    fn lapse(&self, mut stored: StoredJob, row: &Row<'_>, due: Time) -> rusqlite::Result<Option<StoredJob>> {
        let (cancelled, lapses, completed): (bool, u32, Option<Time>) =
            (row.get(13)?, row.get(14)?, row.get(15)?);
        let lapses = lapses.saturating_add(1);
        let most = stored.job.max_attempts.unwrap_or(self.settings.crash_limit);
        stored.since = moment(due);
        (stored.state, stored.last_error) = if completed.is_some() {
            stored.due = Some(moment(due.saturating_add(nanoseconds(self.kept_for()))));
            (JobState::Done, None)
        } else if cancelled {
            (JobState::Dead, Some(CANCELLED.into()))
        } else if stored.attempts >= most {
            (JobState::Dead, Some(given_up(lapses, stored.attempts, most).into()))
        } else if stored.superseded_by.is_some() {
            stored.last_error = Some(LAPSED.into());
            return Ok(self.end_superseded(stored, due));
        } else {
            (JobState::Ready, Some(LAPSED.into()))
        };
        stored.superseded_by = None;
        Ok(Some(stored))
    }

    /// The same as `Txn::end_superseded` does to the row at this time; `None` if it is not kept.
    fn end_superseded(&self, mut stored: StoredJob, at: Time) -> Option<StoredJob> {
        (stored.state, stored.since) = (JobState::Done, moment(at));
        stored.due = Some(moment(at.saturating_add(nanoseconds(self.settings.keep_done))));
        self.keeps_superseded().then_some(stored)
    }

    pub(super) fn keeps_superseded(&self) -> bool {
        !self.settings.keep_done.is_zero()
    }

    /// For how long a completed job is kept whose worker has not said so.
    fn kept_for(&self) -> Duration {
        self.settings.keep_done.max(self.settings.lease_ttl.saturating_mul(LATE))
    }
}

/// The attempt of a job whose lease has run out, as `Txn::lapse_one` writes it down: a row of `attempts`, `since`, `due`,
/// `completed`, `superseded_by` and what it came to.
fn lapsed_attempt(row: &Row<'_>) -> rusqlite::Result<PastAttempt> {
    let completed: Option<Time> = row.get(3)?;
    let superseded = row.get::<_, i64>(5)? == SUPERSEDED;
    let end = match completed {
        Some(_) => AttemptEnd::Done,
        None if superseded => AttemptEnd::Superseded,
        None => AttemptEnd::Lapsed,
    };
    let ended = completed.map_or_else(|| row.get(2), Ok)?;
    let mut past = PastAttempt::new(row.get(0)?, moment(row.get(1)?), moment(ended), end);
    past.superseded_by = row.get::<_, Option<i64>>(4)?.filter(|_| superseded).map(job_id);
    past.error = (end != AttemptEnd::Done).then(|| LAPSED.into());
    Ok(past)
}
