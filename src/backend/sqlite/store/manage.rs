//! What a person asks and does: counts, views, cancel, requeue, delete.

use std::sync::Arc;

use rusqlite::{OptionalExtension as _, Row, params};

use super::{
    CANCELLED, DEAD, DELAYED, DONE, LEASED, READY, Time, Txn, job, job_id, moment, number, shared, state,
    state_number,
};
use crate::inspect::{Counts, JobQuery, JobState, StoredJob};
use crate::job::{JobId, Kind, Queue};

impl Txn<'_> {
    pub(in super::super) fn counts(&mut self, now: Time) -> rusqlite::Result<Counts> {
        self.advance(now)?;
        let count = |state: i64| {
            // The number is part of the text, so that the index of that state is used.
            self.connection
                .prepare_cached(&format!("SELECT count(*) FROM tidegate_jobs WHERE state = {state}"))?
                .query_row([], |row| row.get(0).map(i64::unsigned_abs))
        };
        Ok(Counts {
            ready: count(READY)?,
            delayed: count(DELAYED)?,
            leased: count(LEASED)?,
            dead: count(DEAD)?,
            done: self.counters.done.unsigned_abs(),
            kept: count(DONE)?,
            superseded: self.counters.superseded.unsigned_abs(),
        })
    }

    /// One job as it stands.
    pub(in super::super) fn find(&mut self, now: Time, id: &JobId) -> rusqlite::Result<Option<StoredJob>> {
        self.advance(now)?;
        let Some(id) = number(id) else { return Ok(None) };
        self.connection
            .prepare_cached(concat!(
                "SELECT ",
                job_columns!(),
                ", ",
                view_columns!(),
                " FROM tidegate_jobs WHERE id = ?1"
            ))?
            .query_row([id], stored)
            .optional()
    }

    /// What is asked for, those that have been in their state longest first.
    pub(in super::super) fn list(
        &mut self,
        now: Time,
        wanted: &JobQuery,
    ) -> rusqlite::Result<Vec<StoredJob>> {
        self.advance(now)?;
        let sql = format!(
            "SELECT {}, {} FROM tidegate_jobs
             WHERE state = {} AND (?1 IS NULL OR kind = ?1) AND (?2 IS NULL OR queue = ?2)
             ORDER BY entered, ord LIMIT ?3 OFFSET ?4",
            job_columns!(),
            view_columns!(),
            state_number(wanted.state)
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let [max, skip] = [wanted.max, wanted.skip].map(|count| i64::try_from(count).unwrap_or(i64::MAX));
        let (kind, queue) =
            (wanted.kind.as_ref().map(Kind::as_str), wanted.queue.as_ref().map(Queue::as_str));
        let rows = statement.query_map(params![kind, queue, max, skip], stored)?;
        rows.collect()
    }

    /// Cancels a job that waits, or marks one that runs.
    pub(in super::super) fn cancel(&mut self, now: Time, id: &JobId) -> rusqlite::Result<bool> {
        self.advance(now)?;
        let Some(id) = number(id) else { return Ok(false) };
        let Some(job) = self.stand(id)? else { return Ok(false) };
        match job.state {
            DEAD | DONE => return Ok(false),
            LEASED if job.completed.is_some() => return Ok(false),
            LEASED => {
                self.connection
                    .prepare_cached("UPDATE tidegate_jobs SET cancelled = 1 WHERE id = ?1")?
                    .execute([id])?;
            }
            _ => self.bury(&job, Some(CANCELLED), now)?,
        }
        Ok(true)
    }

    /// Makes a dead or delayed job ready, unless it is dead and another job has taken its unique key.
    pub(in super::super) fn requeue(&mut self, now: Time, id: &JobId) -> rusqlite::Result<bool> {
        self.advance(now)?;
        self.expire_keys(now)?;
        let Some(id) = number(id) else { return Ok(false) };
        let Some(job) = self.stand(id)? else { return Ok(false) };
        match job.state {
            READY | LEASED | DONE => return Ok(false),
            DEAD => {
                if let Some((key, span)) = &job.unique
                    && *span != super::Span::Period
                    && self.holder(&job.kind, key)?.is_some()
                {
                    return Ok(false);
                }
                self.connection
                    .prepare_cached("UPDATE tidegate_jobs SET attempts = 0, lapses = 0 WHERE id = ?1")?
                    .execute(params![id])?;
            }
            _ => {}
        }
        self.make_ready(id, now)?;
        Ok(true)
    }

    /// Deletes a job that is not with a worker.
    pub(in super::super) fn delete(&mut self, now: Time, id: &JobId) -> rusqlite::Result<bool> {
        self.advance(now)?;
        let Some(id) = number(id) else { return Ok(false) };
        match self.stand(id)? {
            Some(job) if job.state != LEASED => self.remove(&job).map(|()| true),
            _ => Ok(false),
        }
    }
}

fn stored(row: &Row<'_>) -> rusqlite::Result<StoredJob> {
    let mut stored =
        StoredJob::new(Arc::new(job(row)?), state(row.get(8)?), row.get(9)?, moment(row.get(10)?));
    stored.last_error = shared(row.get(11)?);
    let due = match stored.state {
        JobState::Delayed | JobState::Leased | JobState::Done => Some(row.get(12)?),
        JobState::Ready | JobState::Dead => None,
    };
    stored.due = due.map(moment);
    stored.superseded_by = row.get::<_, Option<i64>>(14)?.map(job_id);
    stored.cancel_requested = stored.state == JobState::Leased && row.get(13)?;
    Ok(stored)
}
