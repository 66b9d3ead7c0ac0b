//! Taking jobs in: all of a call in one step, unique keys with them.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use async_trait::async_trait;
use redis::{Cmd, Value};

use super::codec::{sidekiq, stable_id};
use super::exchange::{array, bytes, int, millis};
use super::failure::nonsense;
use super::keys::Keys;
use super::layout::{Fetch, Layout};
use super::link::ENQUEUE;
use super::{Redis, SCHEME, Shared};
use crate::backend::wall_clock;
use crate::enqueue::{Clash, Enqueue, Enqueued, NewJob, Start, Unique, Window};
use crate::error::{Error, ErrorKind};
use crate::job::JobId;

const DOING: &str = "enqueueing jobs";

/// How often it is tried to replace payloads while others do so too.
const TRIES: usize = 100;

/// Identities as Sidekiq has them: 24 hexadecimal digits by chance.
#[derive(Default)]
pub(super) struct Ids {
    seed: RandomState,
    next: AtomicU64,
}

impl Ids {
    fn next(&self) -> JobId {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (high, low) = (self.seed.hash_one((number, 'h')), self.seed.hash_one((number, 'l')));
        JobId::new(format!("{high:016x}{:08x}", low >> 32))
    }
}

/// A job as it is to stand on the server.
struct Entry<'a> {
    job: &'a NewJob,
    id: JobId,
    raw: Vec<u8>,
    /// When its time comes, if it is to wait.
    at: Option<SystemTime>,
    /// What the job that it is to replace is expected to be, and what that becomes.
    replaces: (Vec<u8>, Vec<u8>),
}

impl Redis {
    fn entry<'a>(&self, job: &'a NewJob, now: SystemTime) -> Result<Entry<'a>, Error> {
        let at = match job.start {
            Start::Now => None,
            Start::After(wait) => now.checked_add(wait),
            Start::At(moment) => Some(moment),
        };
        let (at, mut id) = (at.filter(|at| *at > now), self.0.ids.next());
        let Shared { layout, times, style, .. } = *self.0;
        let raw = layout.write(job, &id, now, times, style, at.is_some())?;
        if self.0.layout == Layout::Resque {
            id = stable_id(&raw);
        }
        Ok(Entry { job, id, raw, at, replaces: Default::default() })
    }
}

/// What is said: jobs that go to the same queue one after the other are said together.
fn call_for(keys: &Keys, entries: &[Entry<'_>]) -> Cmd {
    let mut call = ENQUEUE.call(&[&keys.queues, &keys.schedule, &keys.retry, &keys.leases, &keys.ours]);
    call.arg(&keys.queue).arg(keys.ends.back).arg(&keys.delayed).arg(&keys.timestamps);
    let plain = |entry: &Entry<'_>| entry.at.is_none() && entry.job.unique.is_none();
    let alike =
        |one: &Entry<'_>, next: &Entry<'_>| plain(one) && plain(next) && one.job.queue == next.job.queue;
    for group in entries.chunk_by(alike) {
        let Some(first) = group.first() else { continue };
        if let Some(unique) = &first.job.unique {
            say_unique(&mut call, first, unique);
        } else if let Some(at) = first.at {
            let score = if keys.delayed.is_empty() { score(at) } else { whole_second(at) };
            call.arg("set").arg(score).arg(&first.raw[..]);
        } else {
            call.arg("queue").arg(first.job.queue.as_str()).arg(group.len());
            for entry in group {
                call.arg(&entry.raw[..]);
            }
        }
    }
    call
}

fn say_unique(call: &mut Cmd, entry: &Entry<'_>, unique: &Unique) {
    let (window, period) = match unique.window {
        Window::WhileQueued => ("q", 0),
        Window::UntilDone => ("d", 0),
        Window::For(period) => ("p", millis(period)),
    };
    let clash = match unique.clash {
        Clash::KeepFirst => "first",
        Clash::ReplacePayload => "replace",
    };
    call.arg("unique").arg(window).arg(period).arg(clash).arg(entry.job.queue.as_str());
    call.arg(entry.at.map(score).unwrap_or_default()).arg(&entry.raw[..]);
    call.arg(&entry.replaces.0[..]).arg(&entry.replaces.1[..]);
}

/// A moment as the sorted sets have it: seconds since 1970.
fn score(moment: SystemTime) -> String {
    let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:06}", since.as_secs(), since.subsec_micros())
}

/// The first whole second that is not before a moment.
fn whole_second(moment: SystemTime) -> String {
    let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (since.as_secs() + u64::from(since.subsec_nanos() > 0)).to_string()
}

/// What is answered.
enum Answer {
    /// What became of those that are unique.
    Done(Vec<Enqueued>),
    /// Which of those that are unique would replace what.
    Ask(Vec<(usize, Vec<u8>)>),
}

fn read(answer: Value) -> Option<Answer> {
    let mut parts = array(answer)?.into_iter().peekable();
    if let Some(Value::BulkString(_)) = parts.peek() {
        parts.next();
        let mut asked = Vec::new();
        while let (Some(place), Some(there)) = (parts.next(), parts.next()) {
            asked.push((usize::try_from(int(&place)?).ok()?, bytes(there)?));
        }
        return Some(Answer::Ask(asked));
    }
    let one = |part: Value| {
        let [what, id] = <[Value; 2]>::try_from(array(part)?).ok()?;
        let id = JobId::new(String::from_utf8_lossy(&bytes(id)?));
        match bytes(what)?.as_slice() {
            b"created" => Some(Enqueued::Created(id)),
            b"first" => Some(Enqueued::Duplicate(id)),
            b"replaced" => Some(Enqueued::Replaced(id)),
            _ => None,
        }
    };
    parts.map(one).collect::<Option<_>>().map(Answer::Done)
}

#[async_trait]
impl Enqueue for Redis {
    /// A job goes to the queue of its name, which need not have been there; a payload that is a JSON array becomes the
    /// job's `args`, and any other stands in them alone.
    ///
    /// Unique keys hold among those who enqueue by this and are kept up by our own workers. A job with a key that a
    /// worker of Sidekiq runs is found to be gone when somebody asks for its key a minute later.
    ///
    /// An error that [passes](Error::is_transient) may have come after the server did it.
    async fn enqueue(&self, jobs: Vec<NewJob>) -> Result<Vec<Enqueued>, Error> {
        for job in &jobs {
            job.validate(self.0.max_payload_bytes)?;
            if let Some(what) = missing(job, self.0.layout) {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("the backend {SCHEME} has no {what}"),
                ));
            }
        }
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let now = wall_clock();
        let mut entries =
            jobs.iter().map(|job| self.entry(job, now)).collect::<Result<Vec<Entry<'_>>, Error>>()?;
        if self.0.fetch == Fetch::PlainPop {
            if entries.iter().any(|entry| entry.at.is_some()) {
                let what = "delayed jobs with plain pop: nobody would move them to their queues";
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("the backend {SCHEME} has no {what}"),
                ));
            }
            self.push_plainly(&entries).await?;
            self.0.bell.notify_waiters();
            return Ok(entries.into_iter().map(|entry| Enqueued::Created(entry.id)).collect());
        }
        for _ in 0..TRIES {
            let call = call_for(&self.0.keys, &entries);
            let answer = self.0.lane.run(&self.0.dial, DOING, &ENQUEUE, &call).await?;
            match read(answer).ok_or_else(|| nonsense(DOING))? {
                Answer::Done(unique) => {
                    self.0.bell.notify_waiters();
                    return merged(entries, unique).ok_or_else(|| nonsense(DOING));
                }
                Answer::Ask(asked) => prepare(&mut entries, asked)?,
            }
        }
        let what = "other producers replace the same job's payload without a pause";
        Err(Error::new(ErrorKind::Unavailable, format!("{DOING} failed: {what}")))
    }
}

impl Redis {
    /// Without a script, one command after the other.
    async fn push_plainly(&self, entries: &[Entry<'_>]) -> Result<(), Error> {
        let keys = &self.0.keys;
        let mut all = redis::pipe();
        for group in entries.chunk_by(|one, next| one.job.queue == next.job.queue) {
            let Some(first) = group.first() else { continue };
            all.cmd("SADD").arg(&keys.queues).arg(first.job.queue.as_str());
            all.cmd(keys.ends.back).arg(keys.of_queue(&first.job.queue));
            for entry in group {
                all.arg(&entry.raw[..]);
            }
        }
        self.0.lane.send_all(&self.0.dial, DOING, &all).await
    }
}

/// What the job asks for and can't be kept.
fn missing(job: &NewJob, layout: Layout) -> Option<&'static str> {
    if job.priority != 0 {
        return Some("priorities: give urgent jobs a queue of their own");
    }
    match layout {
        Layout::Sidekiq => None,
        Layout::Resque if job.unique.is_some() => Some("unique keys in the layout of Resque"),
        Layout::Resque if job.max_attempts.is_some() => Some("max_attempts in the layout of Resque"),
        Layout::Resque if job.timeout.is_some() => Some("timeouts of jobs in the layout of Resque"),
        Layout::Resque => None,
    }
}

/// Makes what the jobs become that are to be replaced.
fn prepare(entries: &mut [Entry<'_>], asked: Vec<(usize, Vec<u8>)>) -> Result<(), Error> {
    let mut unique: Vec<&mut Entry<'_>> =
        entries.iter_mut().filter(|entry| entry.job.unique.is_some()).collect();
    for (place, there) in asked {
        let entry = unique.get_mut(place).ok_or_else(|| nonsense(DOING))?;
        entry.replaces = (there.clone(), sidekiq::replaced(&there, entry.job)?);
    }
    Ok(())
}

/// The answers for all, in their order.
fn merged(entries: Vec<Entry<'_>>, unique: Vec<Enqueued>) -> Option<Vec<Enqueued>> {
    let mut unique = unique.into_iter();
    entries
        .into_iter()
        .map(|entry| match entry.job.unique {
            Some(_) => unique.next(),
            None => Some(Enqueued::Created(entry.id)),
        })
        .collect()
}
