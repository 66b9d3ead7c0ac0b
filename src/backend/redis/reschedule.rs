//! Putting the jobs of the list `failed` back into their queues, as apisonator does it, but not for ever: how often is
//! counted beside the job, by its bytes.
//!
//! Apisonator's lock keeps its own scheduler away meanwhile. An entry is taken out by its bytes and not by its place, so
//! that whoever else edits the list is not in the way, and after its job was put back: if we die in between, the job is
//! there twice rather than not at all. (Where scripts are allowed, transactions are too, and both happen or neither.)
//! Commands of apisonator's access list suffice.

use std::hash::{BuildHasher as _, RandomState};
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
    whole: Bytes,
    payload: Bytes,
    queue: Queue,
    job: GivenUp,
}

impl Run<'_> {
    async fn go(mut self) -> Result<Rescheduled, Error> {
        let mut done = Rescheduled::default();
        let there = self.ask(redis::cmd("LLEN").arg(&self.shared.keys.dead)).await?;
        // What fails anew meanwhile is for the next turn.
        let there =
            int(&there).and_then(|there| usize::try_from(there).ok()).ok_or_else(|| nonsense(DOING))?;
        let most = there.min(self.turn.max_jobs);
        while done.put_back + done.stay < most && self.since.elapsed() < ENOUGH {
            let seen = done.put_back + done.stay;
            let (from, length) = (done.stay, PART.min(most - seen));
            let mut range = redis::cmd("LRANGE");
            range.arg(&self.shared.keys.dead).arg(from).arg(from + length - 1);
            let part = array(self.ask(&range).await?).ok_or_else(|| nonsense(DOING))?;
            let part: Vec<Bytes> = part.into_iter().filter_map(bytes).map(Bytes::from).collect();
            if part.is_empty() {
                break;
            }
            self.put_back(part, &mut done).await?;
        }
        Ok(done)
    }

    async fn put_back(&mut self, part: Vec<Bytes>, done: &mut Rescheduled) -> Result<(), Error> {
        let whole = part.len();
        let entries: Vec<Entry> = part.into_iter().filter_map(|whole| self.entry(whole)).collect();
        done.stay += whole - entries.len();
        if entries.is_empty() {
            return Ok(());
        }
        let counts: Vec<String> = entries.iter().map(|entry| self.count_key(entry)).collect();
        let times = array(self.ask(redis::cmd("MGET").arg(&counts)).await?).ok_or_else(|| nonsense(DOING))?;
        let mut all = redis::pipe();
        if self.shared.fetch == Fetch::Reliable {
            all.atomic();
        }
        let (mut put_back, mut stay, mut given_up) = (0, 0, Vec::new());
        for ((entry, count), times) in entries.into_iter().zip(&counts).zip(times) {
            let times = text(times).unwrap_or_default();
            let (times, named) = times.split_once(' ').unwrap_or((&times, ""));
            let times: u32 = times.parse().unwrap_or(0);
            if times < self.turn.max_times {
                self.add(&mut all, &entry, count, times + 1);
                put_back += 1;
                continue;
            }
            // It stays, and with each turn the time for which that is kept begins anew.
            let value = format!("{times} {NAMED}");
            all.cmd("SETEX").arg(count).arg(MARK_SECONDS).arg(value);
            stay += 1;
            if named.is_empty() {
                given_up.push(entry.job);
            }
        }
        self.send(&all).await?;
        done.put_back += put_back;
        done.stay += stay;
        done.given_up.append(&mut given_up);
        Ok(())
    }

    /// What can't go back is none.
    fn entry(&self, whole: Bytes) -> Option<Entry> {
        let read = resque::read_failed(&whole).ok().filter(|read| read.retried_at.is_none())?;
        let job = self.shared.layout.read(&read.payload, &read.queue).ok()?.job;
        let job = GivenUp::new(job.id, job.kind, read.queue.clone());
        Some(Entry { whole, payload: read.payload, queue: read.queue, job })
    }

    fn count_key(&self, entry: &Entry) -> String {
        format!("{}{}", self.shared.keys.rescheduled, stable_id(&entry.payload).as_str())
    }

    fn add(&self, all: &mut Pipeline, entry: &Entry, count: &str, times: u32) {
        let keys = &self.shared.keys;
        all.cmd("SETEX").arg(count).arg(MARK_SECONDS).arg(times);
        all.cmd("SADD").arg(&keys.queues).arg(entry.queue.as_str());
        all.cmd(keys.ends.back).arg(keys.of_queue(&entry.queue)).arg(&entry.payload[..]);
        all.cmd("LREM").arg(&keys.dead).arg(1).arg(&entry.whole[..]);
    }

    async fn ask(&mut self, command: &Cmd) -> Result<Value, Error> {
        send(self.connection, DOING, command).await
    }

    async fn send(&mut self, all: &Pipeline) -> Result<(), Error> {
        all.query_async(self.connection).await.map_err(|error| failed(DOING, error))
    }
}
