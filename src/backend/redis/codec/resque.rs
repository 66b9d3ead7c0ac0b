//! The layout of Resque, and of those who share it (node-resque, apisonator): one object a job in the lists
//! `queue:NAME`, and entries in the list `failed`.
//!
//! - The kind is the `class`; for the wrapper of ActiveJob it is the `job_class` of the argument. The payload is the
//!   value of `args` as it stands; none, or `null`, is the empty array.
//! - A payload has no id: the job's is made from all its bytes ([`stable_id`]), so two jobs of the same bytes have the
//!   same. It has no time and counts no attempts either.
//! - The queue is the list that it came from, whatever the `queue` of node-resque says.
//! - Of what Resque does not know, our own producer writes only how the payload stands in the arguments, and only if it
//!   is no array. Resque itself drops that when it enqueues a failed job again: such a payload then comes as an array
//!   of one.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use super::args::{self, Form};
use super::json::{MAX_DEPTH, Object, Value};
use super::mark::{self, Mark};
use super::sidekiq::active_job_class;
use super::text::quote;
use super::{
    ACTIVE_JOB_WRAPPERS, ERROR_CLASS, Failure, Read, cut, dates, decode_error, named_queue, required,
    stable_id,
};
use crate::enqueue::NewJob;
use crate::error::{Error, ErrorKind};
use crate::job::{Job, Kind, Queue};

/// Whose fields a payload has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Style {
    /// `class`, `args`: Resque.
    #[default]
    Resque,
    /// `class`, `queue`, `args`: node-resque.
    NodeResque,
}

/// An entry of the list `failed`, understood.
#[derive(Clone, Debug)]
pub(crate) struct ReadFailed {
    /// What stood in the queue: byte for byte if we wrote the entry. To be understood with [`read`].
    pub(crate) payload: Bytes,
    /// The queue that it was taken from.
    pub(crate) queue: Queue,
    /// Why it failed.
    pub(crate) error: Option<Arc<str>>,
    /// When it failed.
    pub(crate) failed_at: Option<SystemTime>,
    /// When it was enqueued again. Resque leaves the entry there.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "an entry is understood whole, and nobody shows this yet")
    )]
    pub(crate) retried_at: Option<SystemTime>,
}

/// The class under which a payload that is no JSON object is shown among the failed ones.
const UNREADABLE: &str = "Tidegate::Unreadable";

/// How the payload stands in an entry that we wrote, where that is not plain to see: the value of `tidegate.payload`.
const CODED: &str = "base64";
const SPACED: &str = "spaced";

/// Understands an element of a queue.
///
/// # Errors
/// [`Decode`](ErrorKind::Decode) for what is no JSON object or has no `class` that is a text. It never repeats the
/// payload.
pub(crate) fn read(raw: &Bytes, queue: &Queue) -> Result<Read, Error> {
    let object = Object::of(raw).map_err(error)?;
    let (mark, payload) = marked(raw, &object).map_err(error)?;
    let kind = kind(&object).map_err(error)?;
    let mut job = Job::new(stable_id(raw), kind, payload, SystemTime::UNIX_EPOCH);
    job.queue = queue.clone();
    job.timeout = mark.timeout;
    Ok(Read {
        job,
        enqueued_at: None,
        failures: 0,
        last_error: None,
        failed_at: None,
        first_failed_at: None,
        keep_dead: true,
        retry_for: None,
        unique: mark.unique,
    })
}

/// A job of our own as it goes into a queue. When it becomes available is not said: the caller sees to that.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) for what the layout has no place for: a priority, a number of attempts, a
/// timeout, a unique key.
pub(crate) fn write(job: &NewJob, style: Style) -> Result<Vec<u8>, Error> {
    let unsupported = [
        (job.priority != 0, "priority"),
        (job.max_attempts.is_some(), "max_attempts"),
        (job.timeout.is_some(), "timeout"),
        (job.unique.is_some(), "unique key"),
    ];
    if let Some((_, what)) = unsupported.iter().find(|(asked, _)| *asked) {
        let context =
            format!("the layout of Resque can't keep a {what}, which a job of kind {:?} has", job.kind);
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    let form = Form::of(&job.payload);
    let mut out = Vec::with_capacity(job.payload.len() + 128);
    if Mark::write(&mut out, job, form) {
        out.push(b',');
    }
    out.extend_from_slice(b"\"class\":");
    quote(&mut out, job.kind.as_str());
    if style == Style::NodeResque {
        out.extend_from_slice(b",\"queue\":");
        quote(&mut out, job.queue.as_str());
    }
    out.extend_from_slice(b",\"args\":");
    form.write(&mut out, &job.payload);
    out.push(b'}');
    Ok(out)
}

/// A job that failed, as it goes into the list `failed`: with the fields of Resque in its order, and the payload among
/// them byte for byte.
///
/// A payload that is no JSON object can't stand there as it is: its Base64 does, as the only argument of a class
/// `Tidegate::Unreadable`, and a field `tidegate` at the end says so.
pub(crate) fn failed_entry(raw: &[u8], queue: &Queue, worker: &str, failure: &Failure<'_>) -> Vec<u8> {
    // The entry is one level more.
    let plain = Object::of(raw).is_ok_and(|object| object.depth() < MAX_DEPTH);
    let spaced = raw.first() != Some(&b'{') || raw.last() != Some(&b'}');
    let mut out = Vec::with_capacity(raw.len() + failure.reason.len() + 256);
    let mut field = |name: &str, write: &dyn Fn(&mut Vec<u8>)| {
        out.push(if out.is_empty() { b'{' } else { b',' });
        quote(&mut out, name);
        out.push(b':');
        write(&mut out);
    };
    field("failed_at", &|out| quote(out, &dates::write(failure.now)));
    field("payload", &|out| {
        if plain {
            out.extend_from_slice(raw);
            return;
        }
        out.extend_from_slice(b"{\"class\":");
        quote(out, UNREADABLE);
        out.extend_from_slice(b",\"args\":[");
        quote(out, &args::encode(raw));
        out.extend_from_slice(b"]}");
    });
    field("exception", &|out| quote(out, ERROR_CLASS));
    field("error", &|out| quote(out, cut(failure.reason)));
    field("backtrace", &|out| out.extend_from_slice(b"[]"));
    field("worker", &|out| quote(out, worker));
    field("queue", &|out| quote(out, queue.as_str()));
    if !plain || spaced {
        field(mark::FIELD, &|out| {
            out.extend_from_slice(b"{\"payload\":");
            quote(out, if plain { SPACED } else { CODED });
            out.push(b'}');
        });
    }
    out.push(b'}');
    out
}

/// Understands an entry of the list `failed`, ours or another's.
///
/// # Errors
/// [`Decode`](ErrorKind::Decode) for what is no JSON object or has no `payload`, or where neither it nor its payload
/// has a `queue` that is a text. (An empty entry is one that Resque is just removing.) It never repeats the entry.
pub(crate) fn read_failed(entry: &Bytes) -> Result<ReadFailed, Error> {
    if entry.is_empty() {
        return Err(entry_error("it is empty"));
    }
    let object = Object::of(entry).map_err(entry_error)?;
    let payload = failed_payload(entry, &object).map_err(entry_error)?;
    let queue = match named_queue(object.get("queue")).map_err(entry_error)? {
        Some(queue) => queue,
        None => inner_queue(&payload).ok_or_else(|| entry_error("it has no `queue`"))?,
    };
    let moment = |name: &str| dates::read(&object.get(name)?.text()?);
    Ok(ReadFailed {
        payload,
        queue,
        error: object.get("error").and_then(Value::readable).map(Arc::from),
        failed_at: moment("failed_at"),
        retried_at: moment("retried_at"),
    })
}

/// The queue that a job names, as node-resque's do and as a delayed one has to.
pub(crate) fn queue_of(raw: &[u8]) -> Option<Queue> {
    inner_queue(raw)
}

fn error(what: impl std::fmt::Display) -> Error {
    decode_error(what, "Resque")
}

fn entry_error(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Decode, format!("this is no failed job in the layout of Resque: {what}"))
}

fn marked(raw: &Bytes, object: &Object<'_>) -> Result<(Mark, Bytes), String> {
    let mark = object.get(mark::FIELD).map(Mark::read).transpose()?.unwrap_or_default();
    let payload = mark.form.payload(raw, object.get("args"))?;
    Ok((mark, payload))
}

fn kind(object: &Object<'_>) -> Result<Kind, String> {
    let class = required(object.get("class"), "class")?;
    let inside = if ACTIVE_JOB_WRAPPERS.contains(&&*class) {
        object.get("args").and_then(active_job_class)
    } else {
        None
    };
    Ok(Kind::new(inside.filter(|inside| !inside.is_empty()).unwrap_or(class)))
}

fn failed_payload(entry: &Bytes, object: &Object<'_>) -> Result<Bytes, String> {
    let payload = object.get("payload").ok_or("it has no `payload`")?;
    let how = object.get(mark::FIELD).and_then(|mark| Object::of(mark.0).ok()?.get("payload")?.text());
    match how.as_deref() {
        Some(CODED) => {
            let coded = Object::of(payload.0).ok().and_then(|object| object.get("args")?.first());
            let bytes = coded.and_then(args::decode).ok_or("its `payload` holds no Base64")?;
            Ok(Bytes::from(bytes))
        }
        Some(SPACED) => Ok(entry.slice_ref(object.get_spaced("payload").unwrap_or(payload.0))),
        _ => Ok(entry.slice_ref(payload.0)),
    }
}

fn inner_queue(payload: &[u8]) -> Option<Queue> {
    named_queue(Object::of(payload).ok()?.get("queue")).ok().flatten()
}

#[cfg(test)]
mod tests;
