//! Jobs that have ended and are kept for a while: the dead letters and, if that is wanted, what is done.
//!
//! How many there are of each stands in the counters, so that nothing has to be counted to hold them to their bound.

use std::time::Duration;

use rusqlite::{Params, params};

use super::history::Attempt;
use super::{Stand, Time, Txn, nanoseconds};

/// How many jobs one transaction deletes at most because their time or their room is over; the rest is left to the
/// next.
const MAX_DROPPED: u32 = 1_000;

const OLDEST_DEAD: &str = "SELECT id, history FROM tidegate_jobs WHERE state = 3 ORDER BY entered LIMIT ?1";
const OLDEST_DONE: &str = "SELECT id, history FROM tidegate_jobs WHERE state = 4 ORDER BY due LIMIT ?1";
const OVERDUE: &str =
    "SELECT id, history FROM tidegate_jobs WHERE state = 4 AND due <= ?2 ORDER BY due LIMIT ?1";

impl Txn<'_> {
    /// The job is done. It is kept for this time; not at all if that is zero.
    pub(super) fn finish(
        &mut self,
        job: &Stand,
        ended: &Attempt<'_>,
        keep: Duration,
        now: Time,
    ) -> rusqlite::Result<()> {
        self.counters.done += 1;
        if keep.is_zero() {
            return self.remove(job);
        }
        let history = self.write_down(job, ended)?;
        self.keep_for(keep, job, Some(history), now)
    }

    /// A newer job has taken its place: it is neither done nor dead, and is kept for as long as what is done.
    pub(super) fn end_superseded(&mut self, job: &Stand, now: Time) -> rusqlite::Result<()> {
        self.counters.superseded += 1;
        let keep = self.settings.keep_done;
        if keep.is_zero() {
            self.forget(job.id)?; // its row may say by now that there is more than `job` knows of
            return self.remove(job);
        }
        self.keep_for(keep, job, None, now)
    }

    /// A job that has ended is kept. One that is done has so many ended attempts, and no error any more; one that made
    /// way for another is left as it is.
    fn keep_for(
        &mut self,
        keep: Duration,
        job: &Stand,
        done: Option<i64>,
        now: Time,
    ) -> rusqlite::Result<()> {
        self.free_key(job)?;
        let (entered, due) = (self.next_seq(), now.saturating_add(nanoseconds(keep)));
        self.connection
            .prepare_cached(
                "UPDATE tidegate_jobs SET state = 4, due = ?2, entered = ?3, since = ?4, cancelled = 0,
                     history = coalesce(?5, history), last_error = iif(?5 IS NULL, last_error, NULL),
                     superseded_by = iif(?5 IS NULL, superseded_by, NULL)
                 WHERE id = ?1",
            )?
            .execute(params![job.id, due, entered, now, done])?;
        self.counters.kept += 1;
        let most = self.settings.max_done;
        self.counters.kept -= self.drop_beyond(self.counters.kept, most, OLDEST_DONE)?;
        Ok(())
    }

    /// To the dead letters; the oldest of these makes room.
    pub(super) fn bury(&mut self, job: &Stand, reason: Option<&str>, now: Time) -> rusqlite::Result<()> {
        self.free_key(job)?;
        let entered = self.next_seq();
        self.connection
            .prepare_cached(
                "UPDATE tidegate_jobs SET state = 3, due = 0, entered = ?2, since = ?3,
                     last_error = coalesce(?4, last_error), superseded_by = NULL
                 WHERE id = ?1",
            )?
            .execute(params![job.id, entered, now, reason])?;
        self.counters.dead += 1;
        let dropped = self.drop_beyond(self.counters.dead, self.settings.max_dead, OLDEST_DEAD)?;
        self.counters.dead -= dropped;
        self.counters.dropped_dead += dropped;
        self.effects.dropped_dead += dropped.unsigned_abs();
        Ok(())
    }

    /// Deletes what is done and was kept for its time.
    pub(super) fn sweep(&mut self, now: Time) -> rusqlite::Result<()> {
        if self.counters.kept > 0 {
            self.counters.kept -= self.drop_jobs(OVERDUE, params![MAX_DROPPED, now])?;
        }
        Ok(())
    }

    /// Holds `count` jobs to at most `most`, and says how many had to go.
    fn drop_beyond(&self, count: i64, most: usize, oldest: &str) -> rusqlite::Result<i64> {
        let beyond = count.saturating_sub(i64::try_from(most).unwrap_or(i64::MAX));
        if beyond > 0 { self.drop_jobs(oldest, [beyond.min(MAX_DROPPED.into())]) } else { Ok(0) }
    }

    /// Deletes these jobs, which hold no key any more.
    fn drop_jobs(&self, which: &str, params: impl Params) -> rusqlite::Result<i64> {
        let jobs = {
            let mut statement = self.connection.prepare_cached(which)?;
            let rows = statement.query_map(params, |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<rusqlite::Result<Vec<(i64, i64)>>>()?
        };
        for (id, history) in &jobs {
            self.drop_job(*id, *history)?;
        }
        Ok(jobs.len() as i64)
    }

    pub(super) fn drop_job(&self, id: i64, history: i64) -> rusqlite::Result<()> {
        if history > 0 {
            self.forget(id)?;
        }
        self.connection.prepare_cached("DELETE FROM tidegate_jobs WHERE id = ?1")?.execute([id]).map(|_| ())
    }
}
