//! What a person does: cancel, requeue, delete.

use rusqlite::params;

use super::{CANCELLED, DEAD, DONE, LEASED, READY, Time, Txn, number};
use crate::job::JobId;

impl Txn<'_> {
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
