//! What comes in: all of a batch or none of it, and each unique key once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::list::Links;
use super::unique::Holder;
use super::{Place, Record, Store};
use crate::enqueue::{Clash, Enqueued, NewJob, Start, Unique, Window};
use crate::error::{Error, ErrorKind};
use crate::job::{Job, JobId, Kind};

impl Store {
    /// Takes in all of them or, on an error, none. `wall` is what people's clocks show.
    pub(in super::super) fn enqueue(
        &mut self,
        now: Instant,
        wall: SystemTime,
        jobs: Vec<NewJob>,
    ) -> Result<Vec<Enqueued>, Error> {
        self.advance(now);
        self.have_room(&jobs)?;
        Ok(jobs.into_iter().map(|job| self.admit(job, wall)).collect())
    }

    /// The same for one, without the allocations of a batch.
    pub(in super::super) fn push(
        &mut self,
        now: Instant,
        wall: SystemTime,
        job: NewJob,
    ) -> Result<Enqueued, Error> {
        self.advance(now);
        self.have_room(std::slice::from_ref(&job))?;
        Ok(self.admit(job, wall))
    }

    fn have_room(&self, jobs: &[NewJob]) -> Result<(), Error> {
        let max = self.settings.max_jobs;
        let (unfinished, periods) = (self.unfinished(), self.keys.periods());
        if unfinished.max(periods).saturating_add(jobs.len()) <= max {
            return Ok(()); // even if none of them clashes with another
        }
        let (more, more_periods) = self.count_new(jobs);
        let full = |held: usize, what: &str, more: usize| {
            let context =
                format!("the memory store holds {held} {what}, of at most {max}: no room for {more} more");
            Err(Error::new(ErrorKind::Full, context))
        };
        if more > 0 && unfinished.saturating_add(more) > max {
            return full(unfinished, "jobs", more);
        }
        if more_periods > 0 && periods.saturating_add(more_periods) > max {
            return full(periods, "unique keys for a period", more_periods);
        }
        Ok(())
    }

    /// How many of them would be jobs of their own, and how many of these take a key for a period.
    fn count_new(&self, jobs: &[NewJob]) -> (usize, usize) {
        let mut taken = BTreeSet::new();
        let (mut new, mut periods) = (0, 0);
        for job in jobs {
            if let Some(unique) = &job.unique {
                let name = (&job.kind, &unique.key);
                if self.keys.holder(&job.kind, unique).is_some() || taken.contains(&name) {
                    continue;
                }
                match unique.window {
                    Window::For(Duration::ZERO) => {}
                    Window::For(_) => periods += usize::from(taken.insert(name)),
                    Window::WhileQueued | Window::UntilDone => _ = taken.insert(name),
                }
            }
            new += 1;
        }
        (new, periods)
    }

    fn admit(&mut self, new: NewJob, wall: SystemTime) -> Enqueued {
        if let Some(unique) = &new.unique
            && let Some(holder) = self.keys.holder(&new.kind, unique).cloned()
        {
            if unique.clash == Clash::ReplacePayload && self.replace_payload(&holder, &new) {
                self.supersede(&new.kind, unique, &holder.id);
                return Enqueued::Replaced(holder.id);
            }
            return Enqueued::Duplicate(holder.id);
        }
        let order = self.next_order();
        let key = self.records.vacant_key();
        let id = job_id(order, key);
        let wait = match new.start {
            Start::Now => Duration::ZERO,
            Start::After(wait) => wait,
            Start::At(moment) => moment.duration_since(wall).unwrap_or_default(),
        };
        let unique = new.unique.map(Box::new);
        if let Some(unique) = &unique {
            if unique.clash == Clash::ReplacePayload {
                self.supersede(&new.kind, unique, &id);
            }
            self.keys.claim(&new.kind, unique, Holder { id: id.clone(), key }, self.now);
        }
        let job = Job {
            id: id.clone(),
            kind: new.kind,
            queue: new.queue,
            payload: new.payload,
            priority: new.priority,
            enqueued_at: wall,
            max_attempts: new.max_attempts,
            timeout: new.timeout,
        };
        let place = self.line_up(&job, key, wait, order);
        self.insert(key, Arc::new(job), unique, place, order);
        Enqueued::Created(id)
    }

    fn insert(&mut self, key: usize, job: Arc<Job>, unique: Option<Box<Unique>>, place: Place, order: u64) {
        let entered = self.next_entry();
        let record = Record {
            job,
            unique,
            place,
            links: Links::default(),
            order,
            since: self.now,
            entered,
            attempts: 0,
            lapses: 0,
            last_error: None,
            superseded_by: None,
        };
        let inserted = self.records.insert(record);
        debug_assert_eq!(inserted, key, "a slab puts the next entry where it said");
        self.lists[place.state() as usize].push(&mut self.records, key);
    }

    /// Gives the new payload to the holder of the key, if that still waits.
    fn replace_payload(&mut self, holder: &Holder, new: &NewJob) -> bool {
        let record = self.records.get_mut(holder.key).filter(|record| record.job.id == holder.id);
        let Some(record) = record else { return false };
        let waits = matches!(record.place, Place::Ready { .. } | Place::Delayed { .. });
        if waits {
            // Whoever looked at it before keeps what was there then.
            Arc::make_mut(&mut record.job).payload = new.payload.clone();
        }
        waits
    }

    /// Whoever has the key makes way for the job `by`, which has the newest payload and holds the key, or is about to
    /// take it: what is with a worker does not come back from there, and what waits beside `by` ends at once.
    fn supersede(&mut self, kind: &Kind, unique: &Unique, by: &JobId) {
        for key in self.keys.running(kind, unique) {
            self.records[key].superseded_by = Some(Box::new(by.clone()));
        }
        for Holder { id, key } in self.keys.joined(kind, unique).to_vec() {
            debug_assert!(self.records[key].job.id == id, "who joins is a job that waits");
            self.end_superseded(key);
        }
    }
}

/// The id of a job: its number, which is never used again, and the key of its record, by which it is found
/// without an index.
fn job_id(number: u64, key: usize) -> JobId {
    let mut text = [b'-'; 41]; // two numbers of at most 20 digits
    let start = digits(key as u64, &mut text, 41);
    let start = digits(number, &mut text, start - 1);
    JobId::new(str::from_utf8(&text[start..]).unwrap_or_default())
}

/// Writes a number so that it ends before `end`, and says where it begins. Each job has an id, and the
/// formatting of the standard library takes as long as all the rest of taking a job in.
fn digits(mut number: u64, text: &mut [u8], end: usize) -> usize {
    let mut at = end;
    loop {
        at -= 1;
        text[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_number_and_key() {
        assert_eq!(job_id(0, 0).as_str(), "0-0");
        assert_eq!(job_id(1234, 907).as_str(), "1234-907");
        assert_eq!(job_id(u64::MAX, usize::MAX).as_str(), format!("{}-{}", u64::MAX, usize::MAX));
    }
}
