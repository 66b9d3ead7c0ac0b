//! What stands in Redis, as bytes, and the jobs that it means: in the layouts of Sidekiq ([`sidekiq`]) and of Resque
//! ([`resque`]).
//!
//! Pure functions, without a connection and without a clock: the time is an argument. The bytes come from outside and
//! are hostile: no input makes any of these panic, and an error says what is wrong and where, never what stood there.
//! What is not understood of an object is kept as it is, byte for byte, and so are the arguments of a job: they may
//! hold strings that are no UTF-8.

mod args;
pub(crate) mod dates;
mod edit;
mod json;
mod mark;
pub(crate) mod resque;
pub(crate) mod sidekiq;
mod text;
mod times;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use self::times::Times;
use crate::enqueue::Unique;
use crate::error::{Error, ErrorKind};
use crate::job::{Job, JobId, Queue};

/// What stands in a queue, in a set of waiting ones or in the dead letters, understood.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    /// The job. Its payload shares the raw bytes, unless it had to be decoded. It has no priority: there is no such
    /// thing in either layout.
    pub(crate) job: Job,
    /// When it was enqueued, if it says so; otherwise `job.enqueued_at` is the epoch, and the time at which it was
    /// fetched is to be put in, so that nobody finds it decades old.
    pub(crate) enqueued_at: Option<SystemTime>,
    /// How many attempts have failed as the payload itself has it: 0, or `retry_count` + 1.
    pub(crate) failures: u32,
    /// Why the last one failed.
    pub(crate) last_error: Option<Arc<str>>,
    /// When the last one failed: the newest of `failed_at`, `retried_at` and `discarded_at`.
    pub(crate) failed_at: Option<SystemTime>,
    /// When the first one failed.
    pub(crate) first_failed_at: Option<SystemTime>,
    /// Whether it goes to the dead letters when it dies. False for `dead: false` and `retry: false`: it goes nowhere.
    pub(crate) keep_dead: bool,
    /// For how long after its first failure it is tried again. This replaces the counting of attempts, so
    /// `job.max_attempts` is then `u32::MAX`.
    pub(crate) retry_for: Option<Duration>,
    /// The unique key that our own producer gave it.
    pub(crate) unique: Option<Unique>,
}

/// An attempt that failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure<'a> {
    /// Why.
    pub(crate) reason: &'a str,
    /// When that is written down.
    pub(crate) now: SystemTime,
    /// Its number, from 1.
    pub(crate) attempt: u32,
    /// The queue that the job was taken from, which is written into the payload as Sidekiq does, so that a job goes
    /// back there that named no queue or another; `None` leaves what stands there.
    pub(crate) queue: Option<&'a Queue>,
    /// How times are written into a payload that has none yet.
    pub(crate) times: Times,
}

/// What failed jobs are said to have failed with, where Ruby puts the class of an exception.
pub(crate) const ERROR_CLASS: &str = "Tidegate::JobFailed";

/// The most characters of an error text that are written, as in Sidekiq.
const MAX_ERROR_CHARS: usize = 10_000;

/// The classes in which ActiveJob wraps its jobs. The job's own class stands inside.
const ACTIVE_JOB_WRAPPERS: &[&str] = &[
    "Sidekiq::ActiveJob::Wrapper",
    "ActiveJob::QueueAdapters::SidekiqAdapter::JobWrapper",
    "ActiveJob::QueueAdapters::ResqueAdapter::JobWrapper",
];

/// The beginning of `reason` that is kept.
fn cut(reason: &str) -> &str {
    reason.char_indices().nth(MAX_ERROR_CHARS).map_or(reason, |(end, _)| &reason[..end])
}

/// An error about bytes from outside. `what` never repeats them.
fn decode_error(what: impl std::fmt::Display, layout: &str) -> Error {
    Error::new(ErrorKind::Decode, format!("this is no job in the layout of {layout}: {what}"))
}

/// The text of a field that has to hold one.
fn required<'a>(value: Option<json::Value<'a>>, name: &str) -> Result<Cow<'a, str>, String> {
    let value = value.filter(|value| !value.is_null()).ok_or_else(|| format!("it has no `{name}`"))?;
    let text = value.text().ok_or_else(|| format!("its `{name}` is no text in UTF-8"))?;
    if text.is_empty() { Err(format!("its `{name}` is empty")) } else { Ok(text) }
}

/// The queue that a payload names; `None` if it names none.
fn named_queue(value: Option<json::Value<'_>>) -> Result<Option<Queue>, String> {
    match value {
        Some(value) if !value.is_null() => {
            let text = value.text().ok_or("its `queue` is no text in UTF-8")?;
            Ok(Some(Queue::new(text)).filter(|queue| !queue.as_str().is_empty()))
        }
        _ => Ok(None),
    }
}

/// An id for a job that has none: 24 hexadecimal digits, as a `jid` has, made from all of `raw` and nothing else, so
/// that it is the same in every process and every version. Two jobs of the same bytes have the same id. It is no
/// cryptographic hash: who writes into the queue can make two jobs that have the same.
pub(crate) fn stable_id(raw: &[u8]) -> JobId {
    // Two lanes of multiply and shift; each step can be undone, so no byte is forgotten. The factors are odd and have
    // about as many ones as zeros: those of MurmurHash3 and of SplitMix64.
    const FACTORS: [u64; 2] = [0x87c3_7b91_1142_53d5, 0x4cf5_ad43_2745_937f];
    let step = |lane: u64, word: u64, factor: u64| {
        let mixed = (lane ^ word).wrapping_mul(factor);
        mixed ^ (mixed >> 29)
    };
    let length = raw.len() as u64;
    let mut lanes = [length ^ 0x9e37_79b9_7f4a_7c15, length ^ 0xbf58_476d_1ce4_e5b9];
    for chunk in raw.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        let word = u64::from_le_bytes(word);
        lanes = [step(lanes[0], word, FACTORS[0]), step(lanes[1], word.rotate_left(32), FACTORS[1])];
    }
    let high = step(lanes[0], lanes[1], FACTORS[1]);
    let low = step(lanes[1], high, FACTORS[0]);
    JobId::new(format!("{high:016x}{:08x}", low >> 32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_bytes_is_the_same_for_ever() {
        assert_eq!(stable_id(b"").as_str(), "f7da0c10ebe860eecb318045");
        assert_eq!(stable_id(br#"{"class":"A","args":[1]}"#).as_str(), "4e91d12a25bab9c55ce7f80e");
        let ids: std::collections::HashSet<JobId> =
            (0..10_000).map(|n| stable_id(format!(r#"{{"class":"A","args":[{n}]}}"#).as_bytes())).collect();
        assert_eq!(ids.len(), 10_000);
        assert_ne!(stable_id(b"a"), stable_id(b"a\0"), "the length counts");
    }

    #[test]
    fn a_long_reason_is_cut_after_so_many_characters() {
        let reason = "é".repeat(MAX_ERROR_CHARS + 1);
        assert_eq!(cut(&reason).chars().count(), MAX_ERROR_CHARS);
        assert_eq!(cut("é"), "é");
    }
}
