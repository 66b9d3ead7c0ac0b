//! Putting the jobs of the list `failed` back into their queues, as apisonator does it, but not for ever: how often is
//! counted beside the job, by its bytes.
//!
//! Apisonator's lock keeps its own scheduler away meanwhile. An entry is taken out by its bytes and not by its place, so
//! that whoever else edits the list is not in the way, and after its job was put back: if we die in between, the job is
//! there twice rather than not at all. (Where scripts are allowed, transactions are too, and both happen or neither.)
//! Commands of apisonator's access list suffice.
//!
//! What stays is at the head of the list, and more and more of it. So a turn that has to leave off says where, and the next
//! one of this handle goes on there, and begins again when it has come to the end. The place is a number: when somebody
//! takes out what stands before it, some are passed over, which come when the list is gone through again.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, Value};
use tokio::time::Instant;

use super::codec::{resque, stable_id};
use super::exchange::{array, bytes, int, text};
use super::failure::{failed, nonsense};
use super::keys::MARK_SECONDS;
use super::layout::Fetch;
use super::link::send;
use super::{Redis, Shared};
use crate::error::Error;
use crate::job::Queue;
use crate::reschedule::{GivenUp, Reschedule, Rescheduled, Turn};

const DOING: &str = "putting failed jobs back";

/// For how long the lock is ours, and how much of it must be left for another batch: apisonator's figures.
const LOCK_SECONDS: u64 = 30;
const ENOUGH: Duration = Duration::from_millis(22_500);

/// How many entries are read at a time.
const PART: usize = 100;

/// How many commands put a job back.
const COMMANDS: usize = 3;

/// What stands behind the count of a job that was named.
const NAMED: &str = "named";

#[async_trait]
impl Reschedule for Redis {
    async fn reschedule(&self, turn: &Turn) -> Result<Rescheduled, Error> {
        let mut connection = self.0.dial.connect().await?;
        let keys = &self.0.keys;
        let mine = (RandomState::new().hash_one(0) % 1_000_000_000).to_string();
        let not_now = Rescheduled { not_now: true, ..Rescheduled::default() };
        let since = Instant::now();
        if !claim(&mut connection, &keys.reschedule_lock, &mine, LOCK_SECONDS).await? {
            return Ok(not_now);
        }
        // A little sooner, so that who asks just as often does not come too early each time.
        let every = turn.every.as_secs().max(2) - 1;
        let answer = match claim(&mut connection, &keys.reschedule_turn, "1", every).await {
            Ok(true) => Run { shared: &self.0, connection: &mut connection, turn, since }.go().await,
            Ok(false) => Ok(not_now),
            Err(error) => Err(error),
        };
        // If it is no longer ours, it is another's.
        let holder = send(&mut connection, DOING, redis::cmd("GET").arg(&keys.reschedule_lock)).await;
        if holder.ok().and_then(bytes).is_some_and(|holder| holder == mine.as_bytes()) {
            let _ = send(&mut connection, DOING, redis::cmd("DEL").arg(&keys.reschedule_lock)).await;
        }
        answer
    }
}

async fn claim(
    connection: &mut MultiplexedConnection,
    key: &str,
    value: &str,
    seconds: u64,
) -> Result<bool, Error> {
    let mut set = redis::cmd("SET");
    set.arg(key).arg(value).arg("NX").arg("EX").arg(seconds);
    Ok(send(connection, DOING, &set).await? != Value::Nil)
}

/// One turn under the lock.
struct Run<'r> {
    shared: &'r Shared,
    connection: &'r mut MultiplexedConnection,
    turn: &'r Turn,
    since: Instant,
}

/// An entry whose job may go back.
struct Entry {
    /// Where it stands in its part of the list.
    place: usize,
    whole: Bytes,
    payload: Bytes,
    queue: Queue,
    job: GivenUp,
    /// Where it is counted how often it was put back.
    count: String,
}

/// What came of a part of the list.
#[derive(Default)]
struct Part {
    looked: usize,
    put_back: usize,
}

impl Run<'_> {
    async fn go(mut self) -> Result<Rescheduled, Error> {
        let mut done = Rescheduled::default();
        let there = self.ask(redis::cmd("LLEN").arg(&self.shared.keys.dead)).await?;
        let there =
            int(&there).and_then(|there| usize::try_from(there).ok()).ok_or_else(|| nonsense(DOING))?;
        let left_off = &self.shared.rescheduled_to;
        let mut at = Some(left_off.load(Ordering::Relaxed)).filter(|at| *at < there).unwrap_or(0);
        // What fails anew meanwhile is for the next turn.
        let mut left = there - at;
        while left > 0 && self.room(&done) > 0 && self.since.elapsed() < ENOUGH {
            let mut range = redis::cmd("LRANGE");
            range.arg(&self.shared.keys.dead).arg(at).arg(at + PART.min(left) - 1);
            let part = array(self.ask(&range).await?).ok_or_else(|| nonsense(DOING))?;
            let part: Vec<Bytes> = part.into_iter().filter_map(bytes).map(Bytes::from).collect();
            if part.is_empty() {
                left = 0;
                break;
            }
            let Part { looked, put_back } = self.put_back(part, &mut done).await?;
            at += looked - put_back;
            left = left.saturating_sub(looked);
        }
        left_off.store(if left == 0 { 0 } else { at }, Ordering::Relaxed);
        Ok(done)
    }

    /// How many more may be put back or given up. What has stayed before is not counted: else nobody behind it would have
    /// a turn.
    fn room(&self, done: &Rescheduled) -> usize {
        self.turn.max_jobs.saturating_sub(done.put_back + done.given_up.len())
    }

    async fn put_back(&mut self, part: Vec<Bytes>, done: &mut Rescheduled) -> Result<Part, Error> {
        let (room, mut looked) = (self.room(done), part.len());
        let entries: Vec<Entry> =
            part.into_iter().enumerate().filter_map(|(place, whole)| self.entry(place, whole)).collect();
        let times = self.counted(&entries).await?;
        let (mut back, mut given_up, mut marks) = (Vec::new(), Vec::new(), redis::pipe());
        for (entry, times) in entries.into_iter().zip(times) {
            if back.len() + given_up.len() == room {
                looked = entry.place;
                break;
            }
            let Some(times) = times else { continue };
            let (times, named) = times.split_once(' ').unwrap_or((&times, ""));
            let times: u32 = times.parse().unwrap_or(0);
            if times < self.turn.max_times {
                back.push((entry, times + 1));
                continue;
            }
            // It stays, and with each turn the time for which that is kept begins anew.
            let value = format!("{times} {NAMED}");
            marks.cmd("SETEX").arg(&entry.count).arg(MARK_SECONDS).arg(value);
            if named.is_empty() {
                given_up.push(entry.job);
            }
        }
        match self.shared.fetch {
            Fetch::Reliable => self.move_back(&back, marks).await?,
            Fetch::PlainPop => self.move_back_plainly(&back, marks).await?,
        }
        done.put_back += back.len();
        done.stay += looked - back.len();
        done.given_up.append(&mut given_up);
        Ok(Part { looked, put_back: back.len() })
    }

    /// What can't go back is none.
    fn entry(&self, place: usize, whole: Bytes) -> Option<Entry> {
        let read = resque::read_failed(&whole).ok().filter(|read| read.retried_at.is_none())?;
        let job = self.shared.layout.read(&read.payload, &read.queue).ok()?.job;
        let job = GivenUp::new(job.id, job.kind, read.queue.clone());
        let count = format!("{}{}", self.shared.keys.rescheduled, stable_id(&read.payload).as_str());
        Some(Entry { place, whole, payload: read.payload, queue: read.queue, job, count })
    }

    /// What is counted beside each of these; nothing for one whose queue's key is something else, which can't take it.
    async fn counted(&mut self, entries: &[Entry]) -> Result<Vec<Option<String>>, Error> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut queues: Vec<&Queue> = entries.iter().map(|entry| &entry.queue).collect();
        queues.sort_unstable();
        queues.dedup();
        let mut ask = redis::pipe();
        let counts: Vec<&str> = entries.iter().map(|entry| &*entry.count).collect();
        ask.cmd("MGET").arg(counts);
        for queue in &queues {
            ask.cmd("LLEN").arg(self.shared.keys.of_queue(queue));
        }
        let mut answers = self.answers(&ask).await?.into_iter();
        let times = answers.next().ok_or_else(|| nonsense(DOING))?;
        let times = times.extract_error().map_err(|error| failed(DOING, error))?;
        let times = array(times).ok_or_else(|| nonsense(DOING))?;
        let mut refuse = Vec::new();
        for (queue, answer) in queues.into_iter().zip(answers) {
            match answer.extract_error() {
                Ok(_) => {}
                Err(error) if error.code() == Some("WRONGTYPE") => refuse.push(queue),
                Err(error) => return Err(failed(DOING, error)),
            }
        }
        let beside = |(entry, times): (&Entry, Value)| {
            (!refuse.contains(&&entry.queue)).then(|| text(times).unwrap_or_default())
        };
        Ok(entries.iter().zip(times).map(beside).collect())
    }

    /// Adds [`COMMANDS`], the last of which puts the job into its queue.
    fn push(&self, all: &mut Pipeline, entry: &Entry, times: u32) {
        let keys = &self.shared.keys;
        all.cmd("SETEX").arg(&entry.count).arg(MARK_SECONDS).arg(times);
        all.cmd("SADD").arg(&keys.queues).arg(entry.queue.as_str());
        all.cmd(keys.ends.back).arg(keys.of_queue(&entry.queue)).arg(&entry.payload[..]);
    }

    fn remove(&self, all: &mut Pipeline, entry: &Entry) {
        all.cmd("LREM").arg(&self.shared.keys.dead).arg(1).arg(&entry.whole[..]);
    }

    async fn move_back(&mut self, back: &[(Entry, u32)], mut all: Pipeline) -> Result<(), Error> {
        for (entry, times) in back {
            self.push(&mut all, entry, *times);
            self.remove(&mut all, entry);
        }
        if all.is_empty() {
            return Ok(());
        }
        all.atomic().query_async(self.connection).await.map_err(|error| failed(DOING, error))
    }

    /// Only the entries of those go that stand in their queues: the server may refuse to take a job, and would remove its
    /// entry all the same.
    async fn move_back_plainly(&mut self, back: &[(Entry, u32)], marks: Pipeline) -> Result<(), Error> {
        let mut all = marks;
        let skip = all.len();
        back.iter().for_each(|(entry, times)| self.push(&mut all, entry, *times));
        if all.is_empty() {
            return Ok(());
        }
        let answers = self.answers(&all).await?;
        let (mut gone, mut refused) = (redis::pipe(), None);
        for ((entry, _), answers) in back.iter().zip(answers[skip..].chunks_exact(COMMANDS)) {
            match answers[COMMANDS - 1].clone().extract_error() {
                Ok(_) => self.remove(&mut gone, entry),
                Err(error) => drop(refused.get_or_insert_with(|| failed(DOING, error))),
            }
        }
        if !gone.is_empty() {
            gone.query_async::<()>(self.connection).await.map_err(|error| failed(DOING, error))?;
        }
        refused.map_or(Ok(()), Err)
    }

    async fn ask(&mut self, command: &Cmd) -> Result<Value, Error> {
        send(self.connection, DOING, command).await
    }

    /// What each is answered, which may be an error of its own.
    async fn answers(&mut self, all: &Pipeline) -> Result<Vec<Value>, Error> {
        let answers = self.connection.send_packed_commands(all, 0, all.len()).await;
        let answers = answers.map_err(|error| failed(DOING, error))?;
        if answers.len() == all.len() { Ok(answers) } else { Err(nonsense(DOING)) }
    }
}
