//! What time does by itself: delayed jobs become ready, leases run out, what is done is forgotten.
//!
//! A transaction moves a bounded number of jobs, so that none keeps others out for long; the rest is left to the next.

use std::time::Duration;

use rusqlite::{OptionalExtension as _, params};

use super::history::Attempt;
use super::{Stand, Time, Txn, nanoseconds, stand};
use crate::inspect::AttemptEnd;

/// How many delayed jobs or lapsed leases one transaction moves: some milliseconds' worth.
const MAX_MOVED: u32 = 1_000;

/// Why the attempt of a job whose lease ran out came to nothing.
pub(super) const LAPSED: &str = "its lease ran out: the worker died, or lost touch";

/// For how many times that of a lease a job is kept which was completed and whose worker then went out of touch, so
/// that what it may yet say is known to be late and not stale. A live worker gives a lease up before one has passed.
pub(super) const LATE: u32 = 10;

impl Txn<'_> {
    /// Lets time have its effect up to `now`; nothing more if that has been done in this part already.
    pub(super) fn advance(&mut self, now: Time) -> rusqlite::Result<()> {
        if self.advanced == Some(now) {
            return Ok(());
        }
        self.ripen(now)?;
        self.lapse(now, usize::MAX)?;
        self.sweep(now)?;
        self.advanced = Some(now);
        Ok(())
    }

    /// Delayed jobs whose time has come are ready, behind those that are, in the order of their times.
    pub(super) fn ripen(&mut self, now: Time) -> rusqlite::Result<()> {
        let due = {
            let mut statement = self.connection.prepare_cached(
                "SELECT id FROM tidegate_jobs WHERE state = 1 AND due <= ?1 ORDER BY due, ord LIMIT ?2",
            )?;
            let ids = statement.query_map(params![now, MAX_MOVED], |row| row.get(0))?;
            ids.collect::<rusqlite::Result<Vec<i64>>>()?
        };
        for id in due {
            self.make_ready(id, now)?;
        }
        Ok(())
    }

    /// Takes back at most `max` jobs whose lease has run out, and says how many it was.
    pub(super) fn lapse(&mut self, now: Time, max: usize) -> rusqlite::Result<usize> {
        let lapsed = {
            let mut statement = self.connection.prepare_cached(concat!(
                "SELECT ",
                stand_columns!(),
                " FROM tidegate_jobs WHERE state = 2 AND due <= ?1 ORDER BY due, id LIMIT ?2"
            ))?;
            let max = u32::try_from(max).unwrap_or(u32::MAX).min(MAX_MOVED);
            let rows = statement.query_map(params![now, max], stand)?;
            rows.collect::<rusqlite::Result<Vec<Stand>>>()?
        };
        for job in &lapsed {
            self.lapse_one(job, now)?;
        }
        Ok(lapsed.len())
    }

    /// The attempt was counted when the job was handed over, so that one which kills its workers comes to an end too.
    fn lapse_one(&mut self, job: &Stand, now: Time) -> rusqlite::Result<()> {
        if let Some(ended_at) = job.completed {
            let keep = self.settings.keep_done.max(self.settings.lease_ttl.saturating_mul(LATE));
            let ended = Attempt { ended_at, end: AttemptEnd::Done, error: None, output: None };
            return self.finish(job, &ended, keep, now);
        }
        let lapses = job.lapses.saturating_add(1);
        let most = job.max_attempts.unwrap_or(self.settings.crash_limit);
        let ends = job.cancelled || job.attempts >= most;
        let end = if ends { AttemptEnd::Lapsed } else { job.end_of(AttemptEnd::Lapsed) };
        let ended = Attempt { ended_at: now, end, error: Some(LAPSED), output: None };
        let history = self.write_down(job, &ended)?;
        self.connection
            .prepare_cached(
                "UPDATE tidegate_jobs SET lapses = ?2, last_error = ?3, history = ?4 WHERE id = ?1",
            )?
            .execute(params![job.id, lapses, LAPSED, history])?;
        if job.cancelled {
            self.bury(job, Some(super::CANCELLED), now)
        } else if job.attempts >= most {
            self.bury(job, Some(&given_up(lapses, job.attempts, most)), now)
        } else {
            self.wait_again(job, Duration::ZERO, job.ord, now)
        }
    }

    /// When time will have an effect next. Never later than a lease's time from `now`: one that is granted meanwhile
    /// can't end sooner than that, so who sleeps until then need not be told of it.
    pub(super) fn next_event(&self, now: Time) -> rusqlite::Result<Time> {
        let next = |sql: &str| -> rusqlite::Result<Option<Time>> {
            self.connection.prepare_cached(sql)?.query_row([], |row| row.get(0)).optional()
        };
        let delayed = next("SELECT due FROM tidegate_jobs WHERE state = 1 ORDER BY due LIMIT 1")?;
        let leased = next("SELECT due FROM tidegate_jobs WHERE state = 2 ORDER BY due LIMIT 1")?;
        // Nobody waits for a deletion; only what is left of one that was too large is done at once.
        let overdue = match self.counters.kept {
            0 => None,
            _ => next("SELECT due FROM tidegate_jobs WHERE state = 4 ORDER BY due LIMIT 1")?,
        };
        let overdue = overdue.filter(|due| *due <= now);
        let lease = now.saturating_add(nanoseconds(self.settings.lease_ttl));
        Ok([delayed, leased, overdue].into_iter().flatten().fold(lease, Time::min))
    }
}

/// Why a job is dead whose last attempt nobody has settled.
pub(super) fn given_up(lapses: u32, attempts: u32, most: u32) -> String {
    format!("lease expired {lapses} times, the last time in attempt {attempts} of at most {most}")
}
