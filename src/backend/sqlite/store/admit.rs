//! What comes in: all of a batch or none of it, and each unique key once.

use std::time::Duration;

use rusqlite::params;

use super::{Span, Time, Txn, job_id, moment, nanoseconds};
use crate::enqueue::{Clash, Enqueued, NewJob, Start};

impl Txn<'_> {
    /// Takes in all of them.
    pub(in super::super) fn enqueue(
        &mut self,
        now: Time,
        jobs: &[NewJob],
    ) -> rusqlite::Result<Vec<Enqueued>> {
        self.advance(now)?;
        if jobs.iter().any(|job| job.unique.is_some()) {
            self.expire_keys(now)?;
        }
        jobs.iter().map(|job| self.admit(job, now)).collect()
    }

    fn admit(&mut self, new: &NewJob, now: Time) -> rusqlite::Result<Enqueued> {
        if let Some(unique) = &new.unique
            && let Some(holder) = self.holder(&new.kind, unique.key.as_str())?
        {
            if unique.clash == Clash::ReplacePayload && self.replace_payload(holder, new)? {
                self.supersede(&new.kind, unique, holder, now)?;
                return Ok(Enqueued::Replaced(job_id(holder)));
            }
            return Ok(Enqueued::Duplicate(job_id(holder)));
        }
        let id = self.next_seq();
        if let Some(unique) = &new.unique {
            if unique.clash == Clash::ReplacePayload {
                self.supersede(&new.kind, unique, id, now)?;
            }
            self.claim(&new.kind, unique, id, now)?;
        }
        let wait = match new.start {
            Start::Now => Duration::ZERO,
            Start::After(wait) => wait,
            Start::At(at) => at.duration_since(moment(now)).unwrap_or_default(),
        };
        let (state, due) = self.line_up(wait, now)?;
        self.connection
            .prepare_cached(
                "INSERT INTO tidegate_jobs (id, state, queue, kind, rank, ord, due, entered, since, enqueued_at, max_attempts,
                     timeout, attempts, lapses, token, cancelled, unique_key, window, payload)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?1, ?6, ?1, ?7, ?7, ?8, ?9, 0, 0, 0, 0, ?10, ?11, ?12)",
            )?
            .execute(params![
                id,
                state,
                new.queue.as_str(),
                new.kind.as_str(),
                -i64::from(new.priority),
                due,
                now,
                new.max_attempts,
                new.timeout.map(nanoseconds),
                new.unique.as_ref().map(|unique| unique.key.as_str()),
                new.unique.as_ref().map(|unique| Span::of(unique.window) as i64),
                new.payload.as_ref(),
            ])?;
        Ok(Enqueued::Created(job_id(id)))
    }

    /// Gives the new payload to the holder of the key, if that still waits.
    fn replace_payload(&self, holder: i64, new: &NewJob) -> rusqlite::Result<bool> {
        self.connection
            .prepare_cached("UPDATE tidegate_jobs SET payload = ?2 WHERE id = ?1 AND state IN (0, 1)")?
            .execute(params![holder, new.payload.as_ref()])
            .map(|changed| changed > 0)
    }
}
