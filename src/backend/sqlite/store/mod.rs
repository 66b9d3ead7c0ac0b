//! The jobs in the file: what each operation does, inside a transaction that somebody else begins and commits.
//!
//! No clock and no lock: time is an argument, in nanoseconds since 1970. The rules are those of the memory backend,
//! and the same tests hold both to them. Invariants:
//!
//! 1. A row's state, `due` and order are changed together, by the few statements here.
//! 2. `seq` only grows, and whoever takes a number from it has it alone: ids, order and tokens come from there. So
//!    an old tag can't match, even if its job is still there (P5).
//! 3. Every operation that may write first lets time have its effect ([`Txn::advance`]); who only reads sees what that
//!    would be ([`View`]).

/// What [`stand`] reads. Macros, so that no text of a statement is put together while a transaction runs.
macro_rules! stand_columns {
    () => {
        "id, state, kind, ord, unique_key, window, attempts, lapses, cancelled, max_attempts, since, history,
         completed, superseded_by"
    };
}

/// What [`job`] reads.
macro_rules! job_columns {
    () => {
        "id, kind, queue, payload, rank, enqueued_at, max_attempts, timeout"
    };
}

/// What the view of a stored job reads after that.
macro_rules! view_columns {
    () => {
        "state, attempts, since, last_error, due, cancelled, lapses, completed, superseded_by"
    };
}

mod admit;
mod deliver;
mod ended;
mod history;
mod list;
mod manage;
mod sole;
mod time;
mod unique;
mod view;

pub(super) use deliver::Handed;
pub(crate) use sole::Standing;
pub(super) use view::View;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::config::Settings;
use crate::enqueue::Window;
use crate::inspect::JobState;
use crate::job::{Job, JobId, Kind, Queue};

/// Nanoseconds since 1970; until the year 2262.
pub(super) type Time = i64;

pub(super) fn time_of(moment: SystemTime) -> Time {
    match moment.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => nanoseconds(since),
        Err(before) => -nanoseconds(before.duration()),
    }
}

pub(super) fn moment(time: Time) -> SystemTime {
    let distance = Duration::from_nanos(time.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    if time < 0 { epoch - distance } else { epoch + distance }
}

/// What is longer than 292 years is as good as never.
pub(super) fn nanoseconds(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

/// What a transaction did that concerns others than its callers.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// Something has become ready.
    pub(super) ready: bool,
    /// Something is due before all that was delayed so far.
    pub(super) sooner: bool,
    /// So many dead letters had to go to make room.
    pub(super) dropped_dead: u64,
}

/// A transaction on the file.
pub(super) struct Txn<'a> {
    connection: &'a Connection,
    settings: &'a Settings,
    counters: Counters,
    /// As they were before the part that may be undone.
    saved: Counters,
    stored: Counters,
    effects: Effects,
    /// Up to when time has had its effect, in this part.
    advanced: Option<Time>,
    /// Whether anybody waits for what is being done.
    heard: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counters {
    seq: i64,
    done: i64,
    dropped_dead: i64,
    dead: i64,
    kept: i64,
    superseded: i64,
}

/// What a job needs to be moved from one state to the next.
struct Stand {
    id: i64,
    state: i64,
    kind: Kind,
    ord: i64,
    unique: Option<(String, Span)>,
    attempts: u32,
    lapses: u32,
    cancelled: bool,
    max_attempts: Option<u32>,
    /// When it came into its state; for one with a worker, when it was handed over.
    since: Time,
    /// How many of its attempts have been written down so far.
    history: i64,
    /// When its work was committed together with word that it is completed, though its worker has not said so yet.
    completed: Option<Time>,
    /// The newer job that has taken its place: it does not wait once more.
    superseded_by: Option<i64>,
}

/// For how long a unique key is held; a period's end stands with the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Span {
    Queued = 0,
    Done = 1,
    Period = 2,
}

impl Span {
    fn of(window: Window) -> Self {
        match window {
            Window::WhileQueued => Self::Queued,
            Window::UntilDone => Self::Done,
            Window::For(_) => Self::Period,
        }
    }

    fn from_number(number: i64) -> Self {
        match number {
            0 => Self::Queued,
            1 => Self::Done,
            _ => Self::Period,
        }
    }
}

const READY: i64 = 0;
const DELAYED: i64 = 1;
const LEASED: i64 = 2;
const DEAD: i64 = 3;
const DONE: i64 = 4;

/// Why a job that somebody cancelled is dead.
const CANCELLED: &str = "cancelled";

fn stand(row: &Row<'_>) -> rusqlite::Result<Stand> {
    let key: Option<String> = row.get(4)?;
    let window: Option<i64> = row.get(5)?;
    Ok(Stand {
        id: row.get(0)?,
        state: row.get(1)?,
        kind: Kind::new(row.get_ref(2)?.as_str()?),
        ord: row.get(3)?,
        unique: key.zip(window.map(Span::from_number)),
        attempts: row.get(6)?,
        lapses: row.get(7)?,
        cancelled: row.get(8)?,
        max_attempts: row.get(9)?,
        since: row.get(10)?,
        history: row.get(11)?,
        completed: row.get(12)?,
        superseded_by: row.get(13)?,
    })
}

fn job(row: &Row<'_>) -> rusqlite::Result<Job> {
    let payload: Vec<u8> = row.get(3)?;
    let rank: i64 = row.get(4)?;
    let timeout: Option<i64> = row.get(7)?;
    let mut job = Job::new(
        job_id(row.get(0)?),
        Kind::new(row.get_ref(1)?.as_str()?),
        payload.into(),
        moment(row.get(5)?),
    );
    job.queue = Queue::new(row.get_ref(2)?.as_str()?);
    job.priority = i16::try_from(-rank).unwrap_or_default();
    job.max_attempts = row.get(6)?;
    job.timeout = timeout.map(|time| Duration::from_nanos(time.unsigned_abs()));
    Ok(job)
}

fn job_id(number: i64) -> JobId {
    JobId::new(number.to_string())
}

/// The number in an id, if it is one of ours.
fn number(id: &JobId) -> Option<i64> {
    let number = id.as_str().parse().ok()?;
    (job_id(number) == *id).then_some(number)
}

impl<'a> Txn<'a> {
    pub(super) fn begin(connection: &'a Connection, settings: &'a Settings) -> rusqlite::Result<Self> {
        let counters = connection
            .prepare_cached("SELECT seq, done, dropped_dead, dead, kept, superseded FROM tidegate_counters")?
            .query_row([], |row| {
                Ok(Counters {
                    seq: row.get(0)?,
                    done: row.get(1)?,
                    dropped_dead: row.get(2)?,
                    dead: row.get(3)?,
                    kept: row.get(4)?,
                    superseded: row.get(5)?,
                })
            })?;
        let effects = Effects::default();
        Ok(Self {
            connection,
            settings,
            counters,
            saved: counters,
            stored: counters,
            effects,
            advanced: None,
            heard: true,
        })
    }

    /// Whether anybody waits for what follows.
    pub(super) fn set_heard(&mut self, heard: bool) {
        self.heard = heard;
    }

    pub(super) fn is_heard(&self) -> bool {
        self.heard
    }

    /// What follows can be undone by itself.
    pub(super) fn save(&mut self) -> rusqlite::Result<()> {
        self.saved = self.counters;
        self.run("SAVEPOINT part")
    }

    pub(super) fn keep(&mut self) -> rusqlite::Result<()> {
        self.run("RELEASE part")
    }

    /// Its effects are rung out all the same: whoever hears finds nothing.
    pub(super) fn undo(&mut self) -> rusqlite::Result<()> {
        self.counters = self.saved;
        self.advanced = None;
        self.run("ROLLBACK TO part")?;
        self.run("RELEASE part")
    }

    /// Before the commit.
    pub(super) fn end(self) -> rusqlite::Result<Effects> {
        if self.counters != self.stored {
            let Counters { seq, done, dropped_dead, dead, kept, superseded } = self.counters;
            self.connection
                .prepare_cached(
                    "UPDATE tidegate_counters SET seq = ?1, done = ?2, dropped_dead = ?3, dead = ?4, kept = ?5,
                         superseded = ?6",
                )?
                .execute([seq, done, dropped_dead, dead, kept, superseded])?;
        }
        Ok(self.effects)
    }

    fn run(&self, statement: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(statement)?.execute([]).map(|_| ())
    }

    fn next_seq(&mut self) -> i64 {
        self.counters.seq += 1;
        self.counters.seq
    }

    // ---- from one state to the next ----

    fn stand(&self, id: i64) -> rusqlite::Result<Option<Stand>> {
        self.connection
            .prepare_cached(concat!("SELECT ", stand_columns!(), " FROM tidegate_jobs WHERE id = ?1"))?
            .query_row([id], stand)
            .optional()
    }

    /// A job waits once more from now on, and takes its unique key again; one whose place a newer job has taken ends
    /// instead.
    fn wait_again(&mut self, job: &Stand, wait: Duration, ord: i64, now: Time) -> rusqlite::Result<()> {
        if job.superseded_by.is_some() {
            return self.end_superseded(job, now);
        }
        self.claim_again(job)?;
        self.leaves(job.state);
        let (state, due) = self.line_up(wait, now)?;
        let entered = self.next_seq();
        self.connection
            .prepare_cached(
                "UPDATE tidegate_jobs SET state = ?2, due = ?3, ord = ?4, entered = ?5, since = ?6, cancelled = 0 WHERE id = ?1",
            )?
            .execute(params![job.id, state, due, ord, entered, now])?;
        Ok(())
    }

    /// The state of a job that waits for so long, and when it is due. Its row must follow.
    fn line_up(&mut self, wait: Duration, now: Time) -> rusqlite::Result<(i64, Time)> {
        if wait.is_zero() {
            self.effects.ready = true;
            return Ok((READY, 0));
        }
        let due = now.saturating_add(nanoseconds(wait));
        if !self.effects.sooner {
            let first: Option<Time> = self
                .connection
                .prepare_cached("SELECT due FROM tidegate_jobs WHERE state = 1 ORDER BY due LIMIT 1")?
                .query_row([], |row| row.get(0))
                .optional()?;
            self.effects.sooner = first.is_none_or(|first| due < first);
        }
        Ok((DELAYED, due))
    }

    /// A delayed or dead job is ready now, behind those that are.
    fn make_ready(&mut self, id: i64, now: Time) -> rusqlite::Result<()> {
        let Some(job) = self.stand(id)? else { return Ok(()) };
        if job.superseded_by.is_some() {
            return self.end_superseded(&job, now); // a door has left it so
        }
        let ord = self.next_seq();
        self.wait_again(&job, Duration::ZERO, ord, now)
    }

    fn remove(&mut self, job: &Stand) -> rusqlite::Result<()> {
        self.free_key(job)?;
        self.leaves(job.state);
        self.drop_job(job.id, job.history)
    }

    /// One of those that have ended is there no more, or begins anew.
    fn leaves(&mut self, state: i64) {
        match state {
            DEAD => self.counters.dead -= 1,
            DONE => self.counters.kept -= 1,
            _ => {}
        }
    }
}

fn state(number: i64) -> JobState {
    match number {
        READY => JobState::Ready,
        DELAYED => JobState::Delayed,
        LEASED => JobState::Leased,
        DONE => JobState::Done,
        _ => JobState::Dead,
    }
}

/// A text that several may hold.
fn shared(text: Option<String>) -> Option<Arc<str>> {
    text.map(Arc::from)
}
