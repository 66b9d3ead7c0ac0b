//! Lists: which jobs come next, behind a position. First only their ids are looked for, by indexes, and then as many
//! rows are read as are wanted: the time that a part of a list takes does not depend on how far down it stands.
//!
//! A list is in sections, one behind the other: what stands in the file as being in that state, and what time has
//! brought there, though nobody has written it down yet.

use std::collections::BinaryHeap;

use rusqlite::{OptionalExtension as _, Params, params};

use super::view::{SUPERSEDED, View, lapsed_to, left_superseded};
use crate::inspect::{JobQuery, JobState, Position, StoredJob};
use crate::job::{Kind, Queue};

/// How many keys are looked for at once: some hundred KiB.
const PART: usize = 8_192;

/// Where a job stands: its section, and by which two numbers it stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    section: u8,
    at: i64,
    then: i64,
    id: i64,
}

impl Key {
    /// Before all others of its section.
    fn first_of(section: u8) -> Self {
        Self { section, at: i64::MIN, then: i64::MIN, id: 0 }
    }

    fn position(self) -> Position {
        Position::new([self.section.into(), self.at.cast_unsigned(), self.then.cast_unsigned()])
    }

    fn at(position: Position) -> Self {
        let [section, at, then] = position.parts();
        let section = u8::try_from(section).unwrap_or(u8::MAX);
        Self { section, at: at.cast_signed(), then: then.cast_signed(), id: 0 }
    }
}

/// What a list leaves out.
#[derive(Clone, Copy)]
struct Only<'a> {
    kind: Option<&'a str>,
    queue: Option<&'a str>,
}

impl View<'_> {
    /// The jobs that are wanted, in the order of the list.
    pub(in super::super) fn list(&self, wanted: &JobQuery) -> rusqlite::Result<Vec<StoredJob>> {
        let only = Only {
            kind: wanted.kind.as_ref().map(Kind::as_str),
            queue: wanted.queue.as_ref().map(Queue::as_str),
        };
        let mut after = wanted.after.map_or(Key::first_of(0), Key::at);
        let (mut skip, mut left, mut jobs) = (wanted.skip, wanted.max, Vec::new());
        while left > 0 {
            let part = PART.min(skip.saturating_add(left));
            let keys = self.keys(wanted.state, only, after, part)?;
            for key in keys.iter().skip(skip).take(left) {
                if let Some(mut job) = self.row(key.id)? {
                    job.position = key.position();
                    jobs.push(job);
                }
            }
            left -= left.min(keys.len().saturating_sub(skip));
            skip = skip.saturating_sub(keys.len());
            match keys.last() {
                Some(last) if keys.len() == part => after = *last,
                _ => break,
            }
        }
        Ok(jobs)
    }

    /// The id of the ready job that has been so longest, of those that stand in the file as ready.
    pub(super) fn first_ready(&self) -> rusqlite::Result<Option<i64>> {
        let mut nearest = Nearest::new(1);
        self.ready(Only { kind: None, queue: None }, i64::MIN, &mut nearest)?;
        Ok(nearest.keys().first().map(|key| key.id))
    }

    /// The next keys behind this one, over all sections of a state.
    fn keys(&self, state: JobState, only: Only<'_>, after: Key, max: usize) -> rusqlite::Result<Vec<Key>> {
        let mut keys: Vec<Key> = Vec::new();
        for section in after.section..=3 {
            let (after, max) = (after.max(Key::first_of(section)), max - keys.len());
            if max == 0 {
                break;
            }
            keys.extend(match (state, section) {
                (JobState::Ready, 0) => {
                    let mut nearest = Nearest::new(max);
                    self.ready(only, after.at, &mut nearest)?;
                    nearest.keys()
                }
                (JobState::Ready, 1) => self.delayed(only, after, self.now, max)?,
                (JobState::Ready, 2) => self.lapsed(0, only, after, max)?,
                (JobState::Delayed, 0) => self.delayed(only, self.later_than_now(after), i64::MAX, max)?,
                (JobState::Leased, 0) => self.leased(only, after, max)?,
                (JobState::Dead, 0) => self.dead(only, after, max)?,
                (JobState::Dead, 1) => self.lapsed(3, only, after, max)?,
                (JobState::Done, 0) => self.done(only, self.later_than_now(after), max)?,
                (JobState::Done, 1) => self.lapsed(4, only, after, max)?,
                (JobState::Done, 2) if self.keeps_superseded() => {
                    self.lapsed(SUPERSEDED, only, after, max)?
                }
                (JobState::Done, 3) if self.keeps_superseded() => self.left_superseded(only, after, max)?,
                _ => Vec::new(),
            });
        }
        Ok(keys)
    }

    /// Not before what is due later than now.
    fn later_than_now(&self, after: Key) -> Key {
        after.max(Key { at: self.now, then: i64::MAX, ..after })
    }

    fn delayed(&self, only: Only<'_>, after: Key, until: i64, max: usize) -> rusqlite::Result<Vec<Key>> {
        let sql = concat!(
            "SELECT due, ord, id FROM tidegate_jobs
             WHERE state = 1 AND (due, ord) > (?1, ?2) AND due <= ?3 AND NOT (",
            left_superseded!(),
            ") AND (?4 IS NULL OR kind = ?4) AND (?5 IS NULL OR queue = ?5)
             ORDER BY due, ord LIMIT ?6"
        );
        self.key_rows(sql, after, params![after.at, after.then, until, only.kind, only.queue, limit(max)])
    }

    fn done(&self, only: Only<'_>, after: Key, max: usize) -> rusqlite::Result<Vec<Key>> {
        let sql = "SELECT due, id, id FROM tidegate_jobs
             WHERE state = 4 AND (due, id) > (?1, ?2) AND (?3 IS NULL OR kind = ?3) AND (?4 IS NULL OR queue = ?4)
             ORDER BY due, id LIMIT ?5";
        self.key_rows(sql, after, params![after.at, after.then, only.kind, only.queue, limit(max)])
    }

    /// Those that are to end since a newer job has taken their place, and that no worker has.
    fn left_superseded(&self, only: Only<'_>, after: Key, max: usize) -> rusqlite::Result<Vec<Key>> {
        let sql = concat!(
            "SELECT due, ord, id FROM tidegate_jobs WHERE ",
            left_superseded!(),
            " AND (due, ord) > (?1, ?2) AND (?3 IS NULL OR kind = ?3) AND (?4 IS NULL OR queue = ?4)
             ORDER BY due, ord LIMIT ?5"
        );
        self.key_rows(sql, after, params![after.at, after.then, only.kind, only.queue, limit(max)])
    }

    /// Those whose lease has run out, and which that brings into this state.
    fn lapsed(&self, to: i64, only: Only<'_>, after: Key, max: usize) -> rusqlite::Result<Vec<Key>> {
        let sql = concat!(
            "SELECT due, id, id FROM tidegate_jobs
             WHERE state = 2 AND (due, id) > (?2, ?3) AND due <= ?4
                 AND (?5 IS NULL OR kind = ?5) AND (?6 IS NULL OR queue = ?6) AND ",
            lapsed_to!(),
            " = ?7 ORDER BY due, id LIMIT ?8"
        );
        let crash_limit = self.settings.crash_limit;
        let (kind, queue) = (only.kind, only.queue);
        self.key_rows(
            sql,
            after,
            params![crash_limit, after.at, after.then, self.now, kind, queue, to, limit(max)],
        )
    }

    fn leased(&self, only: Only<'_>, after: Key, max: usize) -> rusqlite::Result<Vec<Key>> {
        let Only { kind, queue } = only;
        self.key_rows(LEASED, after, params![after.at, after.then, kind, queue, limit(max), self.now])
    }

    fn dead(&self, only: Only<'_>, after: Key, max: usize) -> rusqlite::Result<Vec<Key>> {
        self.key_rows(DEAD, after, params![after.at, after.then, only.kind, only.queue, limit(max)])
    }

    fn key_rows(&self, sql: &str, after: Key, params: impl Params) -> rusqlite::Result<Vec<Key>> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows = statement.query_map(params, |row| {
            Ok(Key { section: after.section, at: row.get(0)?, then: row.get(1)?, id: row.get(2)? })
        })?;
        rows.collect()
    }

    // ---- ready: from all lanes, those that have been so longest ----

    /// Of those that stand in the file as ready, the nearest behind this number. There is no index of all by age, which
    /// every job would pay for twice. But a job that was never in another state became ready when it got its id, by
    /// which it stands in its lane; and of the others there is an index.
    fn ready(&self, only: Only<'_>, after: i64, nearest: &mut Nearest) -> rusqlite::Result<()> {
        for (queue, kind, rank) in self.lanes(LANES, only)? {
            let (bound, max) = (nearest.bound(), limit(nearest.max));
            let keys = self.ready_rows(IN_LANE, params![queue, kind, rank, after, bound, max])?;
            nearest.take(keys);
        }
        for (queue, kind, _) in self.lanes(MOVED_LANES, only)? {
            let (bound, max) = (nearest.bound(), limit(nearest.max));
            let keys = self.ready_rows(IN_MOVED_LANE, params![queue, kind, after, bound, max])?;
            nearest.take(keys);
        }
        Ok(())
    }

    fn ready_rows(&self, sql: &str, params: impl Params) -> rusqlite::Result<Vec<Key>> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows = statement
            .query_map(params, |row| Ok(Key { section: 0, at: row.get(0)?, then: 0, id: row.get(1)? }))?;
        rows.collect()
    }

    /// The lanes that there are, of those that are not left out: as many steps as lanes, however many jobs.
    fn lanes(&self, sql: &str, only: Only<'_>) -> rusqlite::Result<Vec<(String, String, i64)>> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut lanes = Vec::new();
        // No name is empty, so this comes before all.
        let queue = only.queue.unwrap_or_default();
        let kind = only.kind.filter(|_| only.queue.is_some()).unwrap_or_default();
        let mut after = (queue.to_owned(), kind.to_owned(), i64::MIN);
        loop {
            let lane: Option<(String, String, i64)> = statement
                .query_row(params![after.0, after.1, after.2], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })
                .optional()?;
            let Some(lane) = lane.filter(|lane| only.queue.is_none_or(|queue| lane.0 == queue)) else {
                return Ok(lanes);
            };
            if only.kind.is_none_or(|kind| lane.1 == kind) {
                lanes.push(lane.clone());
            } else if only.queue.is_some() && !lanes.is_empty() {
                return Ok(lanes); // its kind is behind that which is wanted
            }
            after = lane;
        }
    }
}

/// The lane behind `?1` (its queue), `?2` (its kind) and `?3` (its rank).
const LANES: &str = "SELECT queue, kind, rank FROM tidegate_jobs INDEXED BY tidegate_jobs_ready
    WHERE state = 0 AND (queue, kind, rank, ord) > (?1, ?2, ?3, 9223372036854775807)
    ORDER BY queue, kind, rank, ord LIMIT 1";

const IN_LANE: &str = "SELECT id, id FROM tidegate_jobs INDEXED BY tidegate_jobs_ready
    WHERE state = 0 AND queue = ?1 AND kind = ?2 AND rank = ?3 AND ord > ?4 AND ord < ?5 AND ord = id AND entered = id
    ORDER BY ord LIMIT ?6";

/// The same among those that were in another state before. The third is no rank: all of a kind are passed over.
const MOVED_LANES: &str =
    "SELECT queue, kind, 9223372036854775807 FROM tidegate_jobs INDEXED BY tidegate_jobs_moved
    WHERE state = 0 AND entered <> id AND (queue, kind, entered) > (?1, ?2, ?3)
    ORDER BY queue, kind, entered LIMIT 1";

const IN_MOVED_LANE: &str = "SELECT entered, id FROM tidegate_jobs INDEXED BY tidegate_jobs_moved
    WHERE state = 0 AND entered <> id AND queue = ?1 AND kind = ?2 AND entered > ?3 AND entered < ?4
    ORDER BY entered LIMIT ?5";

/// `?6` is the time: a lease that has run out is none any more. (There are as many as run, so they can be sorted.)
const LEASED: &str = "SELECT entered, id, id FROM tidegate_jobs
    WHERE state = 2 AND due > ?6 AND (entered, id) > (?1, ?2)
        AND (?3 IS NULL OR kind = ?3) AND (?4 IS NULL OR queue = ?4)
    ORDER BY entered, id LIMIT ?5";

const DEAD: &str = "SELECT entered, id, id FROM tidegate_jobs
    WHERE state = 3 AND (entered, id) > (?1, ?2)
        AND (?3 IS NULL OR kind = ?3) AND (?4 IS NULL OR queue = ?4)
    ORDER BY entered, id LIMIT ?5";

fn limit(jobs: usize) -> i64 {
    i64::try_from(jobs).unwrap_or(i64::MAX)
}

/// The nearest keys of those that were taken so far.
struct Nearest {
    keys: BinaryHeap<Key>,
    max: usize,
}

impl Nearest {
    fn new(max: usize) -> Self {
        Self { keys: BinaryHeap::new(), max }
    }

    /// What does not come before this is too far away.
    fn bound(&self) -> i64 {
        self.keys.peek().filter(|_| self.keys.len() >= self.max).map_or(i64::MAX, |last| last.at)
    }

    fn take(&mut self, keys: Vec<Key>) {
        for key in keys {
            self.keys.push(key);
            if self.keys.len() > self.max {
                self.keys.pop();
            }
        }
    }

    /// All of them, in order.
    fn keys(self) -> Vec<Key> {
        self.keys.into_sorted_vec()
    }
}
