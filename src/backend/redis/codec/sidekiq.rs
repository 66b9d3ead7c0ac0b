//! The layout of Sidekiq: one object a job, in the lists `queue:NAME` and in the sorted sets `schedule`, `retry` and
//! `dead`.
//!
//! - The kind is the `class`; for the wrappers of ActiveJob it is the class inside (`wrapped`, or `job_class` of the
//!   argument). The payload is the value of `args` as it stands.
//! - `retry`: `false` is one attempt, after which the job goes nowhere; a whole number is so many attempts after the
//!   first (none, if it is negative); anything else, and nothing, leaves it to the worker's policy, as Sidekiq takes
//!   anything else for `true`.
//! - A `jid` that is missing, empty or no text is answered with an id made from the bytes ([`stable_id`]), and that is
//!   written into the job as soon as anything is: it keeps its id from then on.
//! - Times are read in both forms ([`Times`]) and written in that of the payload.
//! - A job without a `queue`, or with an empty one, is of the queue `default`; the caller, who knows from which list it
//!   came, knows better.
//!
//! What is unusual beyond that is answered as Sidekiq would: a `retry_count` that is no number is none, a `retry_for`
//! likewise, and a time that makes no sense is not there.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::args::Form;
use super::edit::Edit;
use super::json::{Object, Value};
use super::mark::{self, Mark};
use super::text::{quote, quoted};
use super::times::Number;
pub(crate) use super::times::Times;
use super::{
    ACTIVE_JOB_WRAPPERS, ERROR_CLASS, Failure, Read, cut, decode_error, named_queue, required, stable_id,
};
use crate::enqueue::NewJob;
use crate::error::Error;
use crate::job::{Job, JobId, Kind, Queue};

/// The longest `retry_for` that Sidekiq's own producer takes, in seconds; a longer one is cut to it.
const MAX_RETRY_FOR: f64 = 1e9;

/// Understands an element of a queue, or a member of `schedule`, `retry` or `dead`.
///
/// # Errors
/// [`Decode`](crate::ErrorKind::Decode) for what is no JSON object, has no `class`, or has a `class` or `queue` that is
/// no text. It never repeats the payload.
pub(crate) fn read(raw: &Bytes) -> Result<Read, Error> {
    let object = Object::of(raw).map_err(error)?;
    understand(raw, &Fields::of(&object)).map_err(error)
}

/// A job of our own as it goes into a queue, or into `schedule` if it is `scheduled`, where it has no `enqueued_at`.
///
/// The fields are in the order in which Sidekiq 8 writes them. A priority can't be written: the caller refuses it.
pub(crate) fn write(job: &NewJob, id: &JobId, now: SystemTime, times: Times, scheduled: bool) -> Vec<u8> {
    let form = Form::of(&job.payload);
    let mut out = Vec::with_capacity(job.payload.len() + 256);
    if Mark::write(&mut out, job, form) {
        out.push(b',');
    }
    match job.max_attempts {
        Some(attempts) => {
            out.extend_from_slice(format!("\"retry\":{}", attempts.saturating_sub(1)).as_bytes());
        }
        None => out.extend_from_slice(b"\"retry\":true"),
    }
    out.extend_from_slice(b",\"queue\":");
    quote(&mut out, job.queue.as_str());
    out.extend_from_slice(b",\"class\":");
    quote(&mut out, job.kind.as_str());
    out.extend_from_slice(b",\"args\":");
    form.write(&mut out, &job.payload);
    out.extend_from_slice(b",\"jid\":");
    quote(&mut out, id.as_str());
    let now = times.write(now);
    out.extend_from_slice(b",\"created_at\":");
    out.extend_from_slice(now.as_bytes());
    if !scheduled {
        out.extend_from_slice(b",\"enqueued_at\":");
        out.extend_from_slice(now.as_bytes());
    }
    out.push(b'}');
    out
}

/// A member of `schedule` or `retry` whose time has come: its queue, and the element to push there, with `times` if it
/// has none yet.
///
/// # Errors
/// As [`read`]: what no worker could read is not to be changed on its way to the dead ones.
pub(crate) fn enqueued(raw: &[u8], now: SystemTime, times: Times) -> Result<(Queue, Vec<u8>), Error> {
    push(raw, now, times, &["at"])
}

/// A dead job that an operator wants to be tried again: its queue, and the element to push there. Its attempts begin
/// anew, so all that its failures left is gone.
///
/// # Errors
/// As [`enqueued`].
pub(crate) fn revived(raw: &[u8], now: SystemTime, times: Times) -> Result<(Queue, Vec<u8>), Error> {
    const LEFT_BY_FAILURES: &[&str] = &[
        "at",
        "error_message",
        "error_class",
        "error_backtrace",
        "failed_at",
        "retried_at",
        "retry_count",
        "discarded_at",
    ];
    push(raw, now, times, LEFT_BY_FAILURES)
}

/// A job that failed and is to be tried again, as it goes into `retry`.
///
/// `retry_count` is the attempt's number less one, so that attempts which a lost worker made count too. A backtrace
/// that another worker left is removed: it would be that of another error.
///
/// # Errors
/// [`Decode`](crate::ErrorKind::Decode) for what is no JSON object.
pub(crate) fn retried(raw: &[u8], failure: &Failure<'_>) -> Result<Vec<u8>, Error> {
    let object = Object::of(raw).map_err(error)?;
    let fields = Fields::of(&object);
    Ok(failed(raw, &object, &fields, failure).finish())
}

/// A job that is not to be tried again, as it goes into `dead`: as [`retried`], and with `discarded_at` if its times
/// are those of Sidekiq 8. What can't be understood goes in as it is, byte for byte.
pub(crate) fn dead(raw: &[u8], failure: &Failure<'_>) -> Vec<u8> {
    let Ok(object) = Object::of(raw) else { return raw.to_vec() };
    let fields = Fields::of(&object);
    let mut edit = failed(raw, &object, &fields, failure);
    let times = fields.times(failure.times);
    if times == Times::Millis {
        edit.set("discarded_at", times.write(failure.now));
    }
    edit.finish()
}

/// A waiting job of our own that gets the payload of `job`; all else about it stays.
///
/// # Errors
/// As [`read`].
pub(crate) fn replaced(raw: &[u8], job: &NewJob) -> Result<Vec<u8>, Error> {
    let object = Object::of(raw).map_err(error)?;
    let mark = Fields::of(&object).mark.map(Mark::read).transpose().map_err(error)?.unwrap_or_default();
    let form = Form::of(&job.payload);
    let mut like = NewJob::new(job.kind.clone(), job.payload.clone());
    (like.unique, like.timeout) = (mark.unique, mark.timeout);
    let mut edit = Edit::of(&object);
    let mut field = Vec::new();
    if Mark::write(&mut field, &like, form) {
        edit.set(mark::FIELD, &field[Mark::OPENING.len()..]);
    }
    let mut args = Vec::new();
    form.write(&mut args, &job.payload);
    edit.set("args", args);
    Ok(edit.finish())
}

fn error(what: impl std::fmt::Display) -> Error {
    decode_error(what, "Sidekiq")
}

/// The fields that mean something here; of several of a name the last.
#[derive(Default)]
struct Fields<'a> {
    args: Option<Value<'a>>,
    class: Option<Value<'a>>,
    created_at: Option<Value<'a>>,
    dead: Option<Value<'a>>,
    discarded_at: Option<Value<'a>>,
    enqueued_at: Option<Value<'a>>,
    error_message: Option<Value<'a>>,
    failed_at: Option<Value<'a>>,
    jid: Option<Value<'a>>,
    mark: Option<Value<'a>>,
    queue: Option<Value<'a>>,
    retried_at: Option<Value<'a>>,
    retry: Option<Value<'a>>,
    retry_count: Option<Value<'a>>,
    retry_for: Option<Value<'a>>,
    retry_queue: Option<Value<'a>>,
    wrapped: Option<Value<'a>>,
}

impl<'a> Fields<'a> {
    fn of(object: &Object<'a>) -> Self {
        let mut fields = Self::default();
        for (key, value) in object.fields() {
            let field = match key.bytes() {
                b"args" => &mut fields.args,
                b"class" => &mut fields.class,
                b"created_at" => &mut fields.created_at,
                b"dead" => &mut fields.dead,
                b"discarded_at" => &mut fields.discarded_at,
                b"enqueued_at" => &mut fields.enqueued_at,
                b"error_message" => &mut fields.error_message,
                b"failed_at" => &mut fields.failed_at,
                b"jid" => &mut fields.jid,
                b"queue" => &mut fields.queue,
                b"retried_at" => &mut fields.retried_at,
                b"retry" => &mut fields.retry,
                b"retry_count" => &mut fields.retry_count,
                b"retry_for" => &mut fields.retry_for,
                b"retry_queue" => &mut fields.retry_queue,
                b"wrapped" => &mut fields.wrapped,
                name if name == mark::FIELD.as_bytes() => &mut fields.mark,
                _ => continue,
            };
            *field = Some(value);
        }
        fields
    }

    /// How the payload has its times, or is to get them if it has none.
    fn times(&self, without: Times) -> Times {
        Times::of([self.created_at, self.enqueued_at, self.failed_at]).unwrap_or(without)
    }

    fn id(&self) -> Option<JobId> {
        self.jid?.text().filter(|text| !text.is_empty()).map(JobId::new)
    }

    fn kind(&self) -> Result<Kind, String> {
        let class = required(self.class, "class")?;
        let inside = if ACTIVE_JOB_WRAPPERS.contains(&&*class) {
            self.wrapped.and_then(Value::text).or_else(|| active_job_class(self.args?))
        } else {
            None
        };
        Ok(Kind::new(inside.filter(|inside| !inside.is_empty()).unwrap_or(class)))
    }

    /// How many attempts it may have, and whether it goes to the dead letters after them.
    fn attempts(&self, retry_for: Option<Duration>) -> (Option<u32>, bool) {
        let keep_dead = !self.dead.is_some_and(Value::is_false);
        let Some(retry) = self.retry else { return (retry_for.map(|_| u32::MAX), keep_dead) };
        if retry.is_false() {
            return (Some(1), false);
        }
        if retry_for.is_some() {
            return (Some(u32::MAX), keep_dead);
        }
        match retry.number() {
            Some(Number::Whole(retries)) => {
                let retries = u32::try_from(retries.max(0)).unwrap_or(u32::MAX);
                (Some(retries.saturating_add(1)), keep_dead)
            }
            _ => (None, keep_dead),
        }
    }

    fn retry_for(&self) -> Option<Duration> {
        let seconds = match self.retry_for?.number()? {
            Number::Whole(seconds) => seconds as f64,
            Number::Fraction(seconds) => seconds,
        };
        Some(Duration::from_secs_f64(seconds.clamp(0.0, MAX_RETRY_FOR)))
    }

    /// How many attempts have failed. -1, which is what Sidekiq's page makes of a job that failed once and is sent
    /// again by hand, is none.
    fn failures(&self) -> u32 {
        let count = match self.retry_count.and_then(Value::number) {
            Some(Number::Whole(count)) => count,
            Some(Number::Fraction(count)) => count as i64,
            None => -1,
        };
        u32::try_from(count.saturating_add(1).max(0)).unwrap_or(u32::MAX)
    }
}

/// The class of the ActiveJob that is serialized in the only argument.
pub(super) fn active_job_class(args: Value<'_>) -> Option<std::borrow::Cow<'_, str>> {
    Object::of(args.first()?.0).ok()?.get("job_class")?.text()
}

fn understand(raw: &Bytes, fields: &Fields<'_>) -> Result<Read, String> {
    let mark = fields.mark.map(Mark::read).transpose()?.unwrap_or_default();
    let payload = mark.form.payload(raw, fields.args)?;
    // With each retry it is enqueued anew, and its age is to grow all the same.
    let times = match fields.failures() {
        0 => [fields.enqueued_at, fields.created_at],
        _ => [fields.created_at, fields.enqueued_at],
    };
    let enqueued_at = times.into_iter().flatten().find_map(Value::moment);
    let id = fields.id().unwrap_or_else(|| stable_id(raw));
    let mut job = Job::new(id, fields.kind()?, payload, enqueued_at.unwrap_or(SystemTime::UNIX_EPOCH));
    job.queue = named_queue(fields.queue)?.unwrap_or_default();
    job.timeout = mark.timeout;
    let retry_for = fields.retry_for();
    let (max_attempts, keep_dead) = fields.attempts(retry_for);
    job.max_attempts = max_attempts;
    let first_failed_at = fields.failed_at.and_then(Value::moment);
    let later = [fields.retried_at, fields.discarded_at].into_iter().flatten().filter_map(Value::moment);
    Ok(Read {
        job,
        enqueued_at,
        failures: fields.failures(),
        last_error: fields.error_message.and_then(Value::readable).map(Arc::from),
        failed_at: later.chain(first_failed_at).max(),
        first_failed_at,
        keep_dead,
        retry_for,
        unique: mark.unique,
    })
}

/// What a failure changes, in the order in which Sidekiq does.
fn failed<'a>(raw: &[u8], object: &'a Object<'a>, fields: &Fields<'_>, failure: &Failure<'_>) -> Edit<'a> {
    let mut edit = Edit::of(object);
    keep_id(&mut edit, raw, fields);
    let retry_queue = fields.retry_queue.filter(|queue| queue.text().is_some_and(|name| !name.is_empty()));
    match (retry_queue, failure.queue) {
        (Some(queue), _) => edit.set("queue", queue.0),
        (None, Some(queue)) => edit.set("queue", quoted(queue.as_str())),
        (None, None) => {}
    }
    edit.set("error_message", quoted(cut(failure.reason)));
    edit.set("error_class", quoted(ERROR_CLASS));
    edit.remove("error_backtrace");
    let again = fields.retry_count.is_some_and(|count| count.number().is_some());
    edit.set(if again { "retried_at" } else { "failed_at" }, fields.times(failure.times).write(failure.now));
    edit.set("retry_count", failure.attempt.saturating_sub(1).to_string());
    edit
}

fn push(
    raw: &[u8],
    now: SystemTime,
    times: Times,
    removed: &[&'static str],
) -> Result<(Queue, Vec<u8>), Error> {
    let raw = Bytes::copy_from_slice(raw);
    let object = Object::of(&raw).map_err(error)?;
    let fields = Fields::of(&object);
    let queue = understand(&raw, &fields).map_err(error)?.job.queue;
    let mut edit = Edit::of(&object);
    keep_id(&mut edit, &raw, &fields);
    for name in removed {
        edit.remove(name);
    }
    edit.set("enqueued_at", fields.times(times).write(now));
    Ok((queue, edit.finish()))
}

/// What had no id gets the one under which it has been known.
fn keep_id(edit: &mut Edit<'_>, raw: &[u8], fields: &Fields<'_>) {
    if fields.id().is_none() {
        edit.set("jid", quoted(stable_id(raw).as_str()));
    }
}

#[cfg(test)]
mod tests;
