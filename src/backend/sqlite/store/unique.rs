//! Which unique keys are taken, and by whom: the rules of the memory backend, in a table.

use rusqlite::{OptionalExtension as _, params};

use super::{Span, Stand, Time, Txn, nanoseconds};
use crate::enqueue::{Unique, Window};
use crate::job::Kind;

impl Txn<'_> {
    /// Lets go of the keys whose period has ended.
    pub(super) fn expire_keys(&self, now: Time) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("DELETE FROM tidegate_unique_keys WHERE until <= ?1")?
            .execute([now])
            .map(|_| ())
    }

    /// The job that holds the key, and stands for others that would.
    pub(super) fn holder(&self, kind: &Kind, key: &str) -> rusqlite::Result<Option<i64>> {
        self.connection
            .prepare_cached(
                "SELECT job FROM tidegate_unique_keys WHERE kind = ?1 AND key = ?2 ORDER BY seq LIMIT 1",
            )?
            .query_row(params![kind.as_str(), key], |row| row.get(0))
            .optional()
    }

    /// Takes a free key for a job that is being enqueued.
    pub(super) fn claim(
        &mut self,
        kind: &Kind,
        unique: &Unique,
        job: i64,
        now: Time,
    ) -> rusqlite::Result<()> {
        let until = match unique.window {
            Window::For(period) if period.is_zero() => return Ok(()),
            Window::For(period) => Some(now.saturating_add(nanoseconds(period))),
            Window::WhileQueued | Window::UntilDone => None,
        };
        self.hold(kind, unique.key.as_str(), job, until)
    }

    /// Whoever has the key makes way for the job `by`, which has the newest payload and holds the key, or is about to
    /// take it: what is with a worker does not come back from there, and what waits beside `by` ends at once.
    pub(super) fn supersede(
        &mut self,
        kind: &Kind,
        unique: &Unique,
        by: i64,
        now: Time,
    ) -> rusqlite::Result<()> {
        let named = params![kind.as_str(), unique.key.as_str(), by];
        self.connection
            .prepare_cached(
                "UPDATE tidegate_jobs SET superseded_by = ?3 WHERE state = 2 AND kind = ?1 AND unique_key = ?2",
            )?
            .execute(named)?;
        let joined = {
            let mut statement = self.connection.prepare_cached(
                "SELECT job FROM tidegate_unique_keys WHERE kind = ?1 AND key = ?2 AND job <> ?3",
            )?;
            let jobs = statement.query_map(named, |row| row.get(0))?;
            jobs.collect::<rusqlite::Result<Vec<i64>>>()?
        };
        for id in joined {
            self.connection
                .prepare_cached("UPDATE tidegate_jobs SET superseded_by = ?2 WHERE id = ?1")?
                .execute([id, by])?;
            if let Some(job) = self.stand(id)? {
                self.end_superseded(&job, now)?;
            }
        }
        Ok(())
    }

    /// For a job that waits once more: it takes its key, or joins who has taken it meanwhile. A period is never begun
    /// anew.
    pub(super) fn claim_again(&mut self, job: &Stand) -> rusqlite::Result<()> {
        let Some((key, Span::Queued | Span::Done)) = &job.unique else { return Ok(()) };
        let held: bool = self
            .connection
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM tidegate_unique_keys WHERE kind = ?1 AND key = ?2 AND job = ?3)",
            )?
            .query_row(params![job.kind.as_str(), key, job.id], |row| row.get(0))?;
        if held { Ok(()) } else { self.hold(&job.kind, key, job.id, None) }
    }

    fn hold(&mut self, kind: &Kind, key: &str, job: i64, until: Option<Time>) -> rusqlite::Result<()> {
        let seq = self.next_seq();
        self.connection
            .prepare_cached(
                "INSERT INTO tidegate_unique_keys (kind, key, seq, job, until) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![kind.as_str(), key, seq, job, until])
            .map(|_| ())
    }

    /// Lets go of the key that a job holds, unless it holds it for a period.
    pub(super) fn free_key(&self, job: &Stand) -> rusqlite::Result<()> {
        let Some((key, Span::Queued | Span::Done)) = &job.unique else { return Ok(()) };
        self.let_go(&job.kind, key, job.id)
    }

    pub(super) fn let_go(&self, kind: &Kind, key: &str, job: i64) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("DELETE FROM tidegate_unique_keys WHERE kind = ?1 AND key = ?2 AND job = ?3")?
            .execute(params![kind.as_str(), key, job])
            .map(|_| ())
    }
}
