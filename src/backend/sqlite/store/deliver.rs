//! What goes out, and what becomes of it: hand-over, settlement, renewal.

use std::sync::Arc;

use rusqlite::{OptionalExtension as _, params};

use super::history::Attempt;
use super::{CANCELLED, LEASED, Span, Stand, Time, Txn, job, nanoseconds, stand};
use crate::inspect::AttemptEnd;
use crate::job::{Job, Kind, Queue, Tag};
use crate::lease::Renewal;
use crate::source::{FetchRequest, MAX_REASON_BYTES, Settled, Settlement, Stale, truncate};

/// A job that was handed over.
pub(in super::super) struct Handed {
    pub(in super::super) job: Arc<Job>,
    pub(in super::super) attempt: u32,
    pub(in super::super) tag: Tag,
}

/// The first of a lane: jobs of one queue, kind and rank.
#[derive(Clone, Debug)]
struct Head {
    queue: Queue,
    kind: Kind,
    rank: i64,
    ord: i64,
}

impl Txn<'_> {
    /// Hands out what is wanted of what is ready. If that is nothing, also says when to look again.
    pub(in super::super) fn fetch(
        &mut self,
        now: Time,
        wanted: &FetchRequest,
    ) -> rusqlite::Result<(Vec<Handed>, Time)> {
        self.advance(now)?;
        let mut haul = Haul { room: wanted.max.get(), quotas: wanted.quotas.clone(), taken: Vec::new() };
        if wanted.queues.is_empty() {
            self.fetch_from(None, &mut haul, now)?;
        }
        for queue in &wanted.queues {
            self.fetch_from(Some(queue), &mut haul, now)?;
        }
        let next = if haul.taken.is_empty() { self.next_event(now)? } else { now };
        Ok((haul.taken, next))
    }

    /// Takes what is wanted from one queue, or from all: always from the lane with the best head, as long as it has.
    fn fetch_from(&mut self, queue: Option<&Queue>, haul: &mut Haul, now: Time) -> rusqlite::Result<()> {
        if haul.room == 0 {
            return Ok(());
        }
        let mut heads = self.heads(queue)?;
        loop {
            heads.retain(|head| haul.left(&head.kind) > 0);
            let best = (0..heads.len()).min_by_key(|at| (heads[*at].rank, heads[*at].ord));
            let Some(best) = best.filter(|_| haul.room > 0) else { return Ok(()) };
            let head = heads.swap_remove(best);
            // From here on another lane of the same rank comes in between.
            let rivals = heads.iter().filter(|rival| rival.rank == head.rank).map(|rival| rival.ord);
            let before = rivals.min().unwrap_or(i64::MAX);
            let max = haul.room.min(haul.left(&head.kind));
            let taken = self.hand_over(&head, before, max, now)?;
            haul.count(&head.kind, taken.len());
            haul.taken.extend(taken);
            heads.extend(self.head_of(&head)?);
        }
    }

    /// The heads of all lanes, or of those of one queue. As many steps as there are lanes, however many jobs.
    fn heads(&self, queue: Option<&Queue>) -> rusqlite::Result<Vec<Head>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT queue, kind, rank, ord FROM tidegate_jobs
             WHERE state = 0 AND (queue, kind, rank, ord) > (?1, ?2, ?3, ?4)
             ORDER BY queue, kind, rank, ord LIMIT 1",
        )?;
        let mut heads: Vec<Head> = Vec::new();
        // No name is empty, so this comes before all. Greater than the last that a lane could have, and not only than
        // the lane: SQLite would seek to the lane's first and pass over all of it.
        let mut after = (queue.map_or("", Queue::as_str).to_owned(), String::new(), i64::MIN);
        loop {
            let head = statement
                .query_row(params![after.0, after.1, after.2, i64::MAX], |row| {
                    Ok(Head {
                        queue: Queue::new(row.get_ref(0)?.as_str()?),
                        kind: Kind::new(row.get_ref(1)?.as_str()?),
                        rank: row.get(2)?,
                        ord: row.get(3)?,
                    })
                })
                .optional()?;
            let Some(head) = head.filter(|head| queue.is_none_or(|queue| head.queue == *queue)) else {
                return Ok(heads);
            };
            after = (head.queue.as_str().to_owned(), head.kind.as_str().to_owned(), head.rank);
            heads.push(head);
        }
    }

    /// The head that a lane has now.
    fn head_of(&self, lane: &Head) -> rusqlite::Result<Option<Head>> {
        self.connection
            .prepare_cached(
                "SELECT ord FROM tidegate_jobs WHERE state = 0 AND queue = ?1 AND kind = ?2 AND rank = ?3 ORDER BY ord LIMIT 1",
            )?
            .query_row(params![lane.queue.as_str(), lane.kind.as_str(), lane.rank], |row| {
                Ok(Head { ord: row.get(0)?, ..lane.clone() })
            })
            .optional()
    }

    /// Hands over the first jobs of a lane, up to one with this order. Jobs of one hand-over share a token: it tells
    /// this hand-over of a job from all others of the same job.
    fn hand_over(
        &mut self,
        lane: &Head,
        before: i64,
        max: usize,
        now: Time,
    ) -> rusqlite::Result<Vec<Handed>> {
        let token = self.next_seq();
        let until = now.saturating_add(nanoseconds(self.settings.lease_ttl));
        let sql = concat!(
            "UPDATE tidegate_jobs SET state = 2, due = ?1, token = ?2, entered = ?2, since = ?3, attempts = attempts + 1,
                 cancelled = 0
             WHERE id IN (SELECT id FROM tidegate_jobs WHERE state = 0 AND queue = ?4 AND kind = ?5 AND rank = ?6 AND ord < ?7
                 ORDER BY ord LIMIT ?8)
             RETURNING ",
            job_columns!(),
            ", attempts, ord, unique_key, window"
        );
        let mut handed = {
            let mut statement = self.connection.prepare_cached(sql)?;
            let (queue, kind) = (lane.queue.as_str(), lane.kind.as_str());
            let rows = statement.query_map(
                params![
                    until,
                    token,
                    now,
                    queue,
                    kind,
                    lane.rank,
                    before,
                    i64::try_from(max).unwrap_or(i64::MAX)
                ],
                |row| {
                    let key = row.get::<_, i64>(0)?;
                    let tag = Tag { session: 0, key: key.unsigned_abs(), token: token.unsigned_abs() };
                    let queued = row.get::<_, Option<i64>>(11)? == Some(Span::Queued as i64);
                    let key = if queued { row.get::<_, Option<String>>(10)? } else { None };
                    let handed = Handed { job: Arc::new(job(row)?), attempt: row.get(8)?, tag };
                    Ok((row.get::<_, i64>(9)?, handed, key))
                },
            )?;
            rows.collect::<rusqlite::Result<Vec<_>>>()?
        };
        handed.sort_by_key(|(ord, ..)| *ord);
        for (_, handed, key) in &handed {
            if let Some(key) = key {
                self.let_go(&lane.kind, key, handed.tag.key.cast_signed())?;
            }
        }
        Ok(handed.into_iter().map(|(_, handed, _)| handed).collect())
    }

    /// Applies all settlements. One that does not match a lease which still runs changes nothing.
    pub(in super::super) fn settle(&mut self, now: Time, settled: &[Settled]) -> rusqlite::Result<Stale> {
        self.advance(now)?;
        let mut stale = Vec::new();
        for one in settled {
            if one.settlement == Settlement::Ack && self.delete_plain(one.tag, now)? {
                self.counters.done += 1;
                continue;
            }
            match self.leased(one.tag, now)? {
                Some(job) => self.settle_one(&job, one, now)?,
                None if self.heard_late(one.tag)? => {}
                None => stale.push(one.tag),
            }
        }
        Ok(Stale(stale))
    }

    /// Most jobs that are done have no key, were not tried before and are not kept: they can be deleted unseen.
    fn delete_plain(&self, tag: Tag, now: Time) -> rusqlite::Result<bool> {
        if tag.session != 0 || !self.settings.keep_done.is_zero() {
            return Ok(false);
        }
        self.connection
            .prepare_cached(
                "DELETE FROM tidegate_jobs WHERE id = ?1 AND state = 2 AND token = ?2 AND due > ?3
                     AND unique_key IS NULL AND history = 0 AND completed IS NULL",
            )?
            .execute(params![tag.key.cast_signed(), tag.token.cast_signed(), now])
            .map(|deleted| deleted > 0)
    }

    /// The job of a delivery that may still be settled. Of many leases that ran out at once, some may not have been taken
    /// back yet.
    fn leased(&self, tag: Tag, now: Time) -> rusqlite::Result<Option<Stand>> {
        if tag.session != 0 {
            return Ok(None);
        }
        self.connection
            .prepare_cached(concat!(
                "SELECT ",
                stand_columns!(),
                " FROM tidegate_jobs WHERE id = ?1 AND state = ?2 AND token = ?3 AND due > ?4"
            ))?
            .query_row(params![tag.key.cast_signed(), LEASED, tag.token.cast_signed(), now], stand)
            .optional()
    }

    /// Whether this is the first that is heard of an attempt whose job was completed, and is done by now.
    fn heard_late(&self, tag: Tag) -> rusqlite::Result<bool> {
        if tag.session != 0 {
            return Ok(false);
        }
        self.connection
            .prepare_cached(
                "UPDATE tidegate_jobs SET completed = NULL
                 WHERE id = ?1 AND state = 4 AND token = ?2 AND completed IS NOT NULL",
            )?
            .execute([tag.key.cast_signed(), tag.token.cast_signed()])
            .map(|changed| changed > 0)
    }

    pub(super) fn settle_one(&mut self, job: &Stand, settled: &Settled, now: Time) -> rusqlite::Result<()> {
        if settled.settlement == Settlement::Ack || job.completed.is_some() {
            let (error, output) = (settled.reason.as_deref(), settled.output.as_deref());
            let ended = Attempt { ended_at: now, end: AttemptEnd::Done, error, output };
            self.finish(job, &ended, self.settings.keep_done, now)?;
            if job.completed.is_some() {
                self.heard_late(settled.tag)?;
            }
            return Ok(());
        }
        let after = match settled.settlement {
            _ if job.cancelled => None,
            Settlement::Retry { after } | Settlement::Release { after } => Some(after),
            Settlement::Ack | Settlement::Reject => None,
        };
        let released = matches!(settled.settlement, Settlement::Release { .. });
        let reason = settled.reason.as_deref().map(|reason| truncate(reason, MAX_REASON_BYTES));
        let ended = Attempt {
            ended_at: now,
            end: match after {
                None => AttemptEnd::Rejected,
                Some(_) if released => job.end_of(AttemptEnd::Released),
                Some(_) => job.end_of(AttemptEnd::Retried),
            },
            error: reason.or(job.cancelled.then_some(CANCELLED)),
            output: settled.output.as_deref(),
        };
        let history = self.write_down(job, &ended)?;
        self.connection
            .prepare_cached(
                "UPDATE tidegate_jobs SET last_error = coalesce(?2, last_error), attempts = max(attempts - ?3, 0),
                     history = ?4
                 WHERE id = ?1",
            )?
            .execute(params![job.id, reason, released, history])?;
        match after {
            Some(after) => {
                let ord = if released { job.ord } else { self.next_seq() };
                self.wait_again(job, after, ord, now)
            }
            None => self.bury(job, job.cancelled.then_some(CANCELLED), now),
        }
    }

    /// Renews the leases that still run; the answers are in the order of the tags.
    pub(in super::super) fn renew(&mut self, now: Time, tags: &[Tag]) -> rusqlite::Result<Vec<Renewal>> {
        self.advance(now)?;
        let until = now.saturating_add(nanoseconds(self.settings.lease_ttl));
        tags.iter()
            .map(|tag| {
                let Some(job) = self.leased(*tag, now)? else { return Ok(Renewal::Lost) };
                self.connection
                    .prepare_cached("UPDATE tidegate_jobs SET due = ?2 WHERE id = ?1")?
                    .execute(params![job.id, until])?;
                Ok(if job.cancelled { Renewal::CancelRequested } else { Renewal::Kept })
            })
            .collect()
    }

    /// Takes back at most `max` jobs whose lease has run out, and says how many it was.
    pub(in super::super) fn reclaim(&mut self, now: Time, max: usize) -> rusqlite::Result<usize> {
        self.ripen(now)?;
        self.sweep(now)?;
        self.lapse(now, max)
    }
}

/// What one fetch has taken so far.
struct Haul {
    room: usize,
    /// What is left of each kind that is limited.
    quotas: Vec<(Kind, usize)>,
    taken: Vec<Handed>,
}

impl Haul {
    fn left(&self, kind: &Kind) -> usize {
        self.quotas.iter().find(|(limited, _)| limited == kind).map_or(usize::MAX, |(_, left)| *left)
    }

    fn count(&mut self, kind: &Kind, taken: usize) {
        self.room -= taken;
        if let Some((_, left)) = self.quotas.iter_mut().find(|(limited, _)| limited == kind) {
            *left -= taken;
        }
    }
}
