//! What a person asks and does: counts, views, cancel, requeue, delete.

use std::time::SystemTime;

use tokio::time::Instant;

use super::{Place, Record, Store};
use crate::enqueue::Window;
use crate::error::{Error, ErrorKind};
use crate::inspect::{Counts, JobQuery, JobState, Position, StoredJob};
use crate::job::JobId;

impl Store {
    /// `wall` is what people's clocks show at `now`.
    pub(in super::super) fn counts(&mut self, now: Instant, wall: SystemTime) -> Counts {
        self.advance(now);
        let ready_since = self.list(JobState::Ready).first().map(|key| self.wall_of(key, wall));
        let count = |state| self.list(state).len() as u64;
        Counts {
            ready: count(JobState::Ready),
            delayed: count(JobState::Delayed),
            leased: count(JobState::Leased),
            dead: count(JobState::Dead),
            done: self.done,
            kept: 0,
            superseded: self.superseded,
            ready_since,
        }
    }

    /// One job as it stands. `wall` is what people's clocks show at `now`.
    pub(in super::super) fn find(&mut self, now: Instant, wall: SystemTime, id: &JobId) -> Option<StoredJob> {
        self.advance(now);
        self.key_of(id).map(|key| self.view(key, wall))
    }

    /// What is asked for, in the order of the list.
    pub(in super::super) fn view_all(
        &mut self,
        now: Instant,
        wall: SystemTime,
        wanted: &JobQuery,
    ) -> Vec<StoredJob> {
        self.advance(now);
        let after = wanted.after.map(Position::parts);
        let wants = |key: &usize| wanted.takes(&self.records[*key].job);
        let at = |key: usize| (self.position(key), key);
        let mut keys: Vec<([u64; 3], usize)> = match wanted.state {
            JobState::Done => Vec::new(), // none is kept
            JobState::Delayed => self.delayed.iter().map(|(.., key)| *key).filter(wants).map(at).collect(),
            state => self.list(state).keys(&self.records).filter(wants).map(at).collect(),
        };
        if wanted.state == JobState::Leased {
            keys.sort_unstable(); // their list is in the order of their leases' ends (invariant 3)
        }
        let keys = keys.into_iter().skip_while(|(position, _)| after.is_some_and(|after| *position <= after));
        let view = |(position, key)| {
            let mut view = self.view(key, wall);
            view.position = Position::new(position);
            view
        };
        keys.skip(wanted.skip).take(wanted.max).map(view).collect()
    }

    /// Where a record stands in the list of its state.
    fn position(&self, key: usize) -> [u64; 3] {
        let Record { place, order, entered, .. } = self.records[key];
        match place {
            Place::Delayed { due } => {
                let due = due.saturating_duration_since(self.begun);
                [due.as_secs(), due.subsec_nanos().into(), order]
            }
            Place::Ready { .. } | Place::Leased { .. } | Place::Dead => [entered, 0, 0],
        }
    }

    /// Cancels a job that waits, or marks one that runs.
    pub(in super::super) fn cancel(&mut self, now: Instant, id: &JobId) -> bool {
        self.advance(now);
        let Some(key) = self.key_of(id) else { return false };
        match &mut self.records[key].place {
            Place::Dead => return false,
            Place::Leased { cancelled, .. } => *cancelled = true,
            Place::Ready { .. } | Place::Delayed { .. } => self.bury(key, Some(self.cancelled.clone())),
        }
        true
    }

    /// Makes a dead or delayed job ready, unless it is dead and another job has taken its unique key.
    pub(in super::super) fn requeue(&mut self, now: Instant, id: &JobId) -> Result<bool, Error> {
        self.advance(now);
        let Some(key) = self.key_of(id) else { return Ok(false) };
        match self.records[key].place {
            Place::Ready { .. } | Place::Leased { .. } => return Ok(false),
            Place::Delayed { .. } => {}
            Place::Dead => {
                let (unfinished, max) = (self.unfinished(), self.settings.max_jobs);
                if unfinished >= max {
                    let context = format!(
                        "the memory store holds {unfinished} jobs, of at most {max}: {id} stays dead"
                    );
                    return Err(Error::new(ErrorKind::Full, context));
                }
                let Record { job, unique, attempts, lapses, .. } = &mut self.records[key];
                if let Some(unique) = unique
                    && !matches!(unique.window, Window::For(_))
                    && self.keys.holder(&job.kind, unique).is_some()
                {
                    return Ok(false);
                }
                (*attempts, *lapses) = (0, 0);
            }
        }
        self.make_ready(key);
        Ok(true)
    }

    /// Deletes a job that is not with a worker.
    pub(in super::super) fn delete(&mut self, now: Instant, id: &JobId) -> bool {
        self.advance(now);
        let key = self.key_of(id).filter(|key| self.records[*key].place.state() != JobState::Leased);
        key.inspect(|key| self.remove(*key)).is_some()
    }

    /// Where the record of a job is: the id says it, and the record says whether it is still that job's.
    fn key_of(&self, id: &JobId) -> Option<usize> {
        let (_, key) = id.as_str().rsplit_once('-')?;
        let key = key.parse().ok()?;
        self.records.get(key).filter(|record| record.job.id == *id).map(|_| key)
    }

    /// When a record came into its state, by people's clocks.
    fn wall_of(&self, key: usize, wall: SystemTime) -> SystemTime {
        let since = self.now.saturating_duration_since(self.records[key].since);
        wall.checked_sub(since).unwrap_or(wall)
    }

    fn view(&self, key: usize, wall: SystemTime) -> StoredJob {
        let Record { job, place, attempts, last_error, superseded_by, .. } = &self.records[key];
        let since = self.wall_of(key, wall);
        let mut view = StoredJob::new(job.clone(), place.state(), *attempts, since);
        view.last_error = last_error.clone();
        let (due, cancelled) = match place {
            Place::Delayed { due } => (Some(*due), false),
            Place::Leased { until, cancelled, .. } => (Some(*until), *cancelled),
            Place::Ready { .. } | Place::Dead => (None, false),
        };
        view.due = due.and_then(|due| wall.checked_add(due.saturating_duration_since(self.now)));
        view.cancel_requested = cancelled;
        view.superseded_by = superseded_by.as_deref().cloned();
        view
    }
}
