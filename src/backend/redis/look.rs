//! Looking at what the server holds: through queues and sets part by part, so that nobody else waits long for it.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use redis::Value;

use super::codec;
use super::exchange::{array, bytes, int, text};
use super::failure::nonsense;
use super::keys::Keys;
use super::layout::{Layout, Place};
use super::link::{COUNT, SEARCH};
use super::{Redis, due};
use crate::error::Error;
use crate::inspect::{Counts, Inspect, JobQuery, JobState, Position, StoredJob};
use crate::job::{Job, JobId, Kind, Queue};

/// How many places of a queue or a set are looked through at a time, and how many seconds for which jobs wait.
const PART: usize = 1000;

/// Before all seconds, in the server's words.
const FIRST: &str = "-inf";

const LOOKING: &str = "looking for a job";
const LISTING: &str = "listing jobs";
const COUNTING: &str = "counting jobs";

/// The sets in which jobs wait or are kept, with what they are there.
fn sets(keys: &Keys) -> [Part<'_>; 3] {
    [
        Part::of(&keys.schedule, keys.waiting_in, Place::Schedule, JobState::Delayed),
        Part::of(&keys.retry, "zset", Place::Retry, JobState::Delayed),
        Part::of(&keys.dead, keys.dead_in, Place::Dead, JobState::Dead),
    ]
}

/// A job where it was found.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) state: JobState,
    pub(super) place: Place,
    /// How it stands there, in the words of the scripts.
    pub(super) how: &'static str,
    /// The second for which it waits, if it stands in a list of those of one second.
    second: Option<String>,
    /// What is counted of its attempts where it waits.
    pub(super) attempts: u32,
    /// The key that it stands at.
    pub(super) key: String,
    /// What stands there; of one with a worker the field.
    pub(super) here: Bytes,
    pub(super) raw: Bytes,
    pub(super) job: StoredJob,
    pub(super) keep_dead: bool,
}

/// What is to be looked through.
#[derive(Clone, Copy, Debug)]
struct Part<'a> {
    key: &'a str,
    how: &'static str,
    place: Place,
    state: JobState,
    /// Whose list it is.
    queue: Option<&'a Queue>,
    from: At,
    most: usize,
    with: &'a str,
    without: &'a str,
}

/// A place at a key.
#[derive(Clone, Copy, Debug, Default)]
struct At {
    place: usize,
    /// In whose list that is, where jobs wait in lists of those of one second: its score. None is the first.
    second: Option<f64>,
}

impl<'a> Part<'a> {
    fn of(key: &'a str, how: &'static str, place: Place, state: JobState) -> Self {
        Self { key, how, place, state, queue: None, from: At::default(), most: PART, with: "", without: "" }
    }

    fn of_queue(key: &'a str, queue: &'a Queue) -> Self {
        Self { queue: Some(queue), ..Self::of(key, "list", Place::Queue, JobState::Ready) }
    }

    fn of_held(keys: &'a Keys) -> Self {
        Self::of(&keys.held, "hash", Place::Held, JobState::Leased)
    }
}

impl Found {
    /// The second for which it waits, if that is part of where it stands.
    pub(super) fn score(&self) -> &str {
        self.second.as_deref().unwrap_or_default()
    }
}

impl Redis {
    /// Where the job of this id is that is `wanted`. It may have gone on by the time that this is known.
    pub(super) async fn locate(
        &self,
        id: &JobId,
        wanted: &(dyn Fn(&Found) -> bool + Sync),
    ) -> Result<Option<Found>, Error> {
        // The id of a job that brings none is made from its bytes, so that it can't be searched for.
        let by_bytes: &[_] = match self.0.layout {
            Layout::Sidekiq => &[(id.as_str(), ""), ("", "\"jid\"")],
            Layout::Resque => &[("", "")],
        };
        for (with, without) in by_bytes.iter().copied() {
            if let found @ Some(_) = self.search(id, wanted, with, without).await? {
                return Ok(found);
            }
        }
        Ok(None)
    }

    async fn search(
        &self,
        id: &JobId,
        wanted: &(dyn Fn(&Found) -> bool + Sync),
        with: &str,
        without: &str,
    ) -> Result<Option<Found>, Error> {
        // In the order in which a job goes, so that it is not missed on its way.
        let keys = &self.0.keys;
        let queues = self.queues(LOOKING).await?;
        let queues: Vec<(String, &Queue)> =
            queues.iter().map(|queue| (keys.of_queue(queue), queue)).collect();
        let sets = sets(keys).into_iter();
        let lists = queues.iter().map(|(key, queue)| Part::of_queue(key, queue));
        for part in sets.chain(lists).chain([Part::of_held(keys)]) {
            let mut part = Part { with, without, ..part };
            loop {
                let (next, found) = self.part(part, LOOKING).await?;
                if let Some(found) = found.into_iter().find(|found| found.job.job.id == *id && wanted(found))
                {
                    return Ok(Some(found));
                }
                let Some(next) = next else { break };
                part.from = next;
            }
        }
        Ok(None)
    }

    /// What is meant of a part, and where the next one begins, if there may be more.
    async fn part(&self, part: Part<'_>, doing: &'static str) -> Result<(Option<At>, Vec<Found>), Error> {
        let keys = &self.0.keys;
        let mut call = SEARCH.call(&[part.key, &keys.leases, &keys.cancelled, &keys.lapsed, &keys.ours]);
        call.arg(part.how).arg(part.from.place).arg(part.most).arg(part.with).arg(part.without);
        call.arg(&keys.tried).arg(&keys.delayed);
        match part.from.second {
            Some(second) => call.arg(second.to_string()),
            None => call.arg(FIRST),
        };
        let answer = self.0.lane.run(&self.0.dial, doing, &SEARCH, &call).await?;
        read_part(answer, &part, self.0.layout, keys).ok_or_else(|| nonsense(doing))
    }

    async fn queues(&self, doing: &'static str) -> Result<Vec<Queue>, Error> {
        let ask = redis::Cmd::smembers(&self.0.keys.queues);
        let answer = self.0.lane.send(&self.0.dial, doing, &ask).await?;
        due::queues_in(answer).ok_or_else(|| nonsense(doing))
    }
}

fn read_part(
    answer: Value,
    part: &Part<'_>,
    layout: Layout,
    keys: &Keys,
) -> Option<(Option<At>, Vec<Found>)> {
    let [seen, last, found] = <[Value; 3]>::try_from(array(answer)?).ok()?;
    let (seen, last) = (usize::try_from(int(&seen)?).ok()?, text(last)?);
    let next = match part.how {
        // There are as many with workers as these have slots, and all of them were looked at.
        "hash" => None,
        "delayed" if last.is_empty() => None,
        "delayed" => Some(At { place: seen, second: Some(last.parse().ok()?) }),
        _ => (seen == PART).then_some(At { place: part.from.place + PART, second: None }),
    };
    let found = array(found)?
        .into_iter()
        .map(|found| read_found(found, part, layout, keys))
        .collect::<Option<_>>()?;
    Some((next, found))
}

fn read_found(found: Value, part: &Part<'_>, layout: Layout, keys: &Keys) -> Option<Found> {
    let [value, beside, lapses, runs_out, cancelled, superseded_by] =
        <[Value; 6]>::try_from(array(found)?).ok()?;
    let value = Bytes::from(bytes(value)?);
    let beside = text(beside)?;
    let lapses: u32 = text(lapses)?.parse().unwrap_or(0);
    let held = (part.place == Place::Held).then(|| parts(&value)).flatten();
    let (since, queue, raw) = match held {
        Some((since, queue, raw)) => (Some(since), Some(queue), raw),
        None => (None, part.queue.cloned(), value.clone()),
    };
    let stood = layout.unwrap(part.place, &raw);
    let score = beside.parse::<f64>().ok().and_then(moment);
    let queue = queue.or(stood.queue);
    // What stands beside a dead one is of another of the same bytes.
    let attempts = if part.state == JobState::Dead { 0 } else { stood.attempts.saturating_add(lapses) };
    let (mut job, keep_dead) = view(layout, &stood.raw, part.state, queue, attempts, score);
    if part.place == Place::Dead
        && let Some(failed_at) = stood.failed_at
    {
        job.since = failed_at;
    }
    job.last_error = stood.last_error.or(job.last_error);
    if let Some(since) = since {
        job.since = since;
        job.due = text(runs_out)?.parse::<f64>().ok().and_then(|ms| moment(ms / 1000.0));
        job.cancel_requested = int(&cancelled)? == 1;
        job.superseded_by = Some(text(superseded_by)?).filter(|id| !id.is_empty()).map(JobId::new);
    }
    let (mut key, mut how, mut second) = (part.key.to_owned(), part.how, None);
    if part.how == "tail" {
        how = "list";
    } else if part.how == "delayed" {
        key = format!("{}{beside}", keys.delayed);
        second = Some(beside.clone());
    }
    let here = if part.place == Place::Held { Bytes::from(beside) } else { value };
    let Part { state, place, .. } = *part;
    Some(Found { state, place, how, second, attempts, key, here, raw: stood.raw, job, keep_dead })
}

/// When something was handed over, from which queue, and what.
fn parts(held: &Bytes) -> Option<(SystemTime, Queue, Bytes)> {
    let mut ends = held.iter().enumerate().filter(|(_, byte)| **byte == b':').map(|(at, _)| at);
    let (first, second) = (ends.next()?, ends.next()?);
    let number = |from: usize, to: usize| std::str::from_utf8(&held[from..to]).ok()?.parse::<u64>().ok();
    let since = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(number(0, first)?))?;
    let name_ends = usize::try_from(number(first + 1, second)?).ok()?.checked_add(second + 1)?;
    let queue = Queue::new(String::from_utf8_lossy(held.get(second + 1..name_ends)?));
    Some((since, queue, held.slice(name_ends..)))
}

/// A score: seconds since 1970.
fn moment(seconds: f64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)
}

/// A job as people see it, and whether it is kept when it dies.
fn view(
    layout: Layout,
    raw: &Bytes,
    state: JobState,
    queue: Option<Queue>,
    lapses: u32,
    score: Option<SystemTime>,
) -> (StoredJob, bool) {
    let in_queue = queue.clone().unwrap_or_default();
    let Ok(read) = layout.read(raw, &in_queue) else {
        // It is shown all the same, so that it can be deleted.
        let id = codec::stable_id(raw);
        let mut job = Job::new(id, Kind::new("(unreadable)"), raw.clone(), SystemTime::UNIX_EPOCH);
        job.queue = queue.unwrap_or_default();
        let mut stored = StoredJob::new(Arc::new(job), state, 0, score.unwrap_or(SystemTime::UNIX_EPOCH));
        stored.last_error = Some(format!("this is no job in the layout of {}", layout.name()).into());
        return (stored, true);
    };
    let mut job = read.job;
    if let Some(queue) = queue {
        job.queue = queue;
    }
    let running = u32::from(state == JobState::Leased);
    let attempts = read.failures.saturating_add(lapses).saturating_add(running);
    let since = match state {
        JobState::Dead => score.or(read.failed_at),
        _ => read.failed_at,
    };
    let since = since.or(read.enqueued_at).unwrap_or(job.enqueued_at);
    let mut stored = StoredJob::new(Arc::new(job), state, attempts, since);
    stored.last_error = read.last_error;
    stored.due = score.filter(|_| state == JobState::Delayed);
    (stored, read.keep_dead)
}

/// By which time a job has its place in a list.
fn time_of(job: &StoredJob) -> SystemTime {
    job.due.filter(|_| job.state == JobState::Delayed).unwrap_or(job.since)
}

/// That time, and by what the job is told from others of the same time.
fn position_of(job: &StoredJob) -> [u64; 3] {
    let since = time_of(job).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut hasher = DefaultHasher::new();
    job.job.id.hash(&mut hasher);
    [since.as_secs(), since.subsec_nanos().into(), hasher.finish()]
}

/// Goes through what stands at one key, from what has been there longest.
struct Cursor {
    key: String,
    how: &'static str,
    place: Place,
    queue: Option<Queue>,
    /// The next place to look at, if there may be more.
    next: Option<At>,
    ahead: VecDeque<StoredJob>,
}

impl Cursor {
    fn new(key: String, how: &'static str, place: Place, queue: Option<Queue>) -> Self {
        Self { key, how, place, queue, next: Some(At::default()), ahead: VecDeque::new() }
    }

    /// Reads on until a job is there that is wanted, or the end.
    async fn fill(&mut self, redis: &Redis, wanted: &JobQuery) -> Result<(), Error> {
        while self.ahead.is_empty()
            && let Some(from) = self.next
        {
            let how = self.how;
            let part = Part::of(&self.key, how, self.place, wanted.state);
            let part = Part { queue: self.queue.as_ref(), from, ..part };
            let (next, mut found) = redis.part(part, LISTING).await?;
            if how == "hash" {
                found.sort_by_key(|found| std::str::from_utf8(&found.here).ok()?.parse::<u64>().ok());
            }
            self.next = next;
            let jobs = found.into_iter().map(|found| found.job);
            self.ahead.extend(jobs.filter(|job| wanted.takes(&job.job)));
        }
        Ok(())
    }
}

impl Redis {
    /// The jobs that are wanted, of those of which `counts` says so when they come by in the order of the list.
    async fn walk(
        &self,
        wanted: &JobQuery,
        mut counts: impl FnMut([u64; 3]) -> bool + Send,
    ) -> Result<Vec<StoredJob>, Error> {
        let mut cursors = self.cursors(wanted.state).await?;
        let (mut skip, mut jobs) = (wanted.skip, Vec::new());
        while jobs.len() < wanted.max {
            for cursor in &mut cursors {
                cursor.fill(self, wanted).await?;
            }
            let first = cursors
                .iter_mut()
                .filter(|cursor| !cursor.ahead.is_empty())
                .min_by_key(|cursor| cursor.ahead.front().map(time_of));
            let Some(mut job) = first.and_then(|cursor| cursor.ahead.pop_front()) else { break };
            let position = position_of(&job);
            if !counts(position) {
                continue;
            }
            job.position = Position::new(position);
            match skip {
                0 => jobs.push(job),
                _ => skip -= 1,
            }
        }
        Ok(jobs)
    }

    /// Since when the next of the queues that has been ready longest has been so.
    async fn ready_since(&self) -> Result<Option<SystemTime>, Error> {
        let mut first = None;
        for queue in self.queues(COUNTING).await? {
            let key = self.0.keys.of_queue(&queue);
            let next = Part { how: self.0.keys.ends.read, most: 1, ..Part::of_queue(&key, &queue) };
            let (_, found) = self.part(next, COUNTING).await?;
            let since = found.iter().map(|found| found.job.since);
            // There are layouts in which nothing says when.
            first = since.filter(|since| *since > SystemTime::UNIX_EPOCH).chain(first).min();
        }
        Ok(first)
    }

    async fn cursors(&self, state: JobState) -> Result<Vec<Cursor>, Error> {
        let keys = &self.0.keys;
        if state == JobState::Ready {
            let queues = self.queues(LISTING).await?.into_iter();
            let cursor =
                |queue| Cursor::new(keys.of_queue(&queue), keys.ends.read, Place::Queue, Some(queue));
            return Ok(queues.map(cursor).collect());
        }
        let parts = sets(keys).into_iter().chain([Part::of_held(keys)]).filter(|part| part.state == state);
        Ok(parts.map(|part| Cursor::new(part.key.to_owned(), part.how, part.place, None)).collect())
    }
}

#[async_trait]
impl Inspect for Redis {
    /// What was done is what was processed and has not failed, by Sidekiq's counters: of all workers there ever were.
    async fn counts(&self) -> Result<Counts, Error> {
        let keys = &self.0.keys;
        let sets = [
            &keys.queues,
            &keys.schedule,
            &keys.retry,
            &keys.leases,
            &keys.dead,
            &keys.processed,
            &keys.failed,
            &keys.ours,
        ];
        let (mut from, mut counted) = (FIRST.to_owned(), 0);
        let counts = loop {
            let mut call = COUNT.call(&sets.map(String::as_str));
            call.arg(&keys.queue).arg(&keys.delayed).arg(keys.dead_in).arg(&from).arg(PART);
            let answer = self.0.lane.run(&self.0.dial, COUNTING, &COUNT, &call).await?;
            let answer = array(answer).ok_or_else(|| nonsense(COUNTING))?;
            let [of_seconds, last] = match <[Value; 2]>::try_from(answer) {
                Ok(part) => part,
                Err(all) => break all,
            };
            counted += int(&of_seconds).and_then(|jobs| u64::try_from(jobs).ok()).unwrap_or_default();
            from = format!("({}", text(last).ok_or_else(|| nonsense(COUNTING))?);
        };
        let counts: Option<Vec<u64>> = counts.iter().map(|count| u64::try_from(int(count)?).ok()).collect();
        let counts = counts.and_then(|counts| <[u64; 7]>::try_from(counts).ok());
        let [ready, delayed, leased, dead, processed, failed, superseded] =
            counts.ok_or_else(|| nonsense(COUNTING))?;
        let delayed = delayed + counted;
        let done = processed.saturating_sub(failed);
        let ready_since = if ready > 0 { self.ready_since().await? } else { None };
        Ok(Counts { ready, delayed, leased, dead, done, kept: 0, superseded, ready_since })
    }

    /// Goes through all that there is, part by part: where a job is, is not known.
    async fn find(&self, id: &JobId) -> Result<Option<StoredJob>, Error> {
        Ok(self.locate(id, &|_| true).await?.map(|found| found.job))
    }

    /// In the order in which a queue is taken from, and those that wait by their time. What comes and goes meanwhile
    /// may be missed or come twice. What stands behind a job is looked for from the beginning on, so it takes the longer
    /// the farther down that is. In Resque's layout, nothing says since when a job is in its queue: behind one that has
    /// gone, that list begins anew.
    async fn list(&self, wanted: &JobQuery) -> Result<Vec<StoredJob>, Error> {
        let Some(after) = wanted.after.map(Position::parts) else {
            return self.walk(wanted, |_| true).await;
        };
        let mut passed = false;
        let behind = |position| {
            let counts = passed;
            passed = passed || position == after;
            counts
        };
        let jobs = self.walk(wanted, behind).await?;
        if passed {
            return Ok(jobs);
        }
        // It has gone. From the first of its time on: better one twice than one of the same moment not at all.
        let from = |position: [u64; 3]| {
            passed = passed || position[..2] >= after[..2];
            passed
        };
        self.walk(wanted, from).await
    }
}
