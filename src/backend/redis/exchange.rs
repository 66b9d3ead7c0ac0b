//! The one exchange with the server by which jobs are settled and taken: what is said, and what is answered.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use redis::{Cmd, Value};
use tokio::time::Instant;

use super::codec::dates::date;
use super::failure::nonsense;
use super::keys::Keys;
use super::link::EXCHANGE;
use crate::error::Error;
use crate::job::{Queue, Tag};
use crate::lease::later;

/// The most jobs that one exchange settles or takes: what a script can hold at once is bounded.
pub(super) const MOST: usize = 1000;

pub(super) const DOING: &str = "exchanging jobs with the server";

/// What is to become of a job that was handed over.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is gone; nothing but its token is known of it on the server.
    Done,
    /// It is gone, and so is what was noted beside it.
    MarkedDone,
    /// It goes to the back of its queue, in this form.
    Retry { queue: Queue, raw: Vec<u8> },
    /// It waits among the retries, in this form.
    Later { after: Duration, raw: Vec<u8> },
    /// It is kept with the dead ones in this form, or not at all.
    Dead { raw: Option<Vec<u8>> },
    /// The same, even if it is to be cancelled.
    End { raw: Option<Vec<u8>> },
    /// It is no job, and is kept with the dead ones in this form, whatever that is. Nothing was run, so nothing is counted.
    Unreadable { raw: Vec<u8> },
    /// It goes to the back of its queue as it was; its failed attempts are counted beside it.
    Again { attempts: u32 },
    /// It waits for a time in this form, and does not count as failed.
    Wait { after: Duration, raw: Vec<u8> },
    /// It goes back as it was: to the front of its queue, or to wait.
    Back { after: Duration },
}

/// The parts of an exchange that stay the same.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) lease_ttl: Duration,
    /// For how long jobs run on though their lease may have run out, as nobody can be asked.
    pub(super) doubt: Duration,
    /// `None`: all.
    pub(super) max_dead: Option<usize>,
    pub(super) dead_for: Duration,
}

impl Terms {
    /// Until when a job may be held whose lease was asked for at `sent_at`, unless that is renewed.
    pub(super) fn held_until(&self, sent_at: Instant) -> Instant {
        later(sent_at, self.lease_ttl.saturating_add(self.doubt))
    }

    /// From when on it is late to renew it: it was due at a third of its time.
    pub(super) fn overdue_at(&self, sent_at: Instant) -> Instant {
        later(sent_at, self.lease_ttl / 2)
    }

    /// The most dead ones, as scripts are told it.
    pub(super) fn most_dead(&self) -> String {
        self.max_dead.map(|most| most.to_string()).unwrap_or_default()
    }
}

/// How many jobs whose lease has run out an exchange gives back: others are not held up by many.
pub(super) const RECLAIM: usize = 256;

/// What an exchange is for, beside settling.
pub(super) struct Wish<'a> {
    /// Of how many jobs at most a lease that has run out is taken note of, and they are given back.
    pub(super) reclaim: usize,
    /// How many may be taken, after that.
    pub(super) most: usize,
    /// From these; none named: from all.
    pub(super) queues: &'a [Queue],
    /// Until when by the server's clock, in ms since 1970: a server that was silent for a while does what it was told
    /// meanwhile, and nobody would hear of what it has taken or hands over then.
    pub(super) until_ms: u64,
    /// It is to be noted that there is a worker.
    pub(super) seen: bool,
    /// Of which jobs the lease is renewed first.
    pub(super) overdue: &'a [Tag],
}

/// What is said.
pub(super) fn ask(
    keys: &Keys,
    terms: &Terms,
    wish: &Wish<'_>,
    verdicts: &[(u64, Verdict)],
    counted_as: &str,
) -> Cmd {
    let mut call = EXCHANGE.call(&[
        &keys.leases,
        &keys.held,
        &keys.token,
        &keys.lapsed,
        &keys.cancelled,
        &keys.queues,
        &keys.schedule,
        &keys.retry,
        &keys.dead,
        &keys.processed,
        &keys.failed,
        &keys.seen,
        &keys.lenient,
        &keys.ours,
    ]);
    call.arg(millis(terms.lease_ttl)).arg(wish.most.min(MOST)).arg(&keys.queue).arg(counted_as);
    call.arg(terms.most_dead()).arg(terms.dead_for.as_secs()).arg(wish.reclaim);
    call.arg(keys.ends.back).arg(keys.ends.front).arg(keys.ends.take);
    call.arg(keys.dead_in).arg(&keys.tried).arg(&keys.pause);
    let seen = if terms.doubt.is_zero() { "" } else { ["0", "1"][usize::from(wish.seen)] };
    call.arg(wish.until_ms).arg(seen).arg(wish.queues.len());
    for queue in wish.queues {
        call.arg(queue.as_str());
    }
    call.arg(wish.overdue.len());
    for tag in wish.overdue {
        call.arg(tag.token);
    }
    let done = |verdict: &Verdict| matches!(verdict, Verdict::Done);
    call.arg(verdicts.iter().filter(|(_, verdict)| done(verdict)).count());
    for (token, verdict) in verdicts {
        if done(verdict) {
            call.arg(*token);
        }
    }
    for (token, verdict) in verdicts {
        match verdict {
            Verdict::Done => continue,
            Verdict::MarkedDone => call.arg("done").arg(*token),
            Verdict::Retry { queue, raw } => call.arg("retry").arg(*token).arg(queue.as_str()).arg(&raw[..]),
            Verdict::Later { after, raw } => call.arg("later").arg(*token).arg(millis(*after)).arg(&raw[..]),
            Verdict::Dead { raw } => call.arg("dead").arg(*token).arg(raw.as_deref().unwrap_or_default()),
            Verdict::End { raw } => call.arg("end").arg(*token).arg(raw.as_deref().unwrap_or_default()),
            Verdict::Unreadable { raw } => call.arg("unreadable").arg(*token).arg(&raw[..]),
            Verdict::Again { attempts } => call.arg("again").arg(*token).arg(*attempts),
            Verdict::Wait { after, raw } => call.arg("wait").arg(*token).arg(millis(*after)).arg(&raw[..]),
            Verdict::Back { after } => call.arg("back").arg(*token).arg(millis(*after)),
        };
    }
    call
}

/// At least one for what is not nothing, so that a wait is never taken for none.
pub(super) fn millis(time: Duration) -> u64 {
    // A year is far more than a lease may have, and a thousand of them more than anything may wait.
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).min(1000 * 365 * 86_400_000)
}

/// The day in the names of the counters, by UTC.
pub(super) fn today(now: SystemTime) -> String {
    let days = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() / 86_400;
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02}")
}

/// What is answered.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// When a job that waits for its time becomes due.
    pub(super) job_due: Option<Duration>,
    /// When anything does: a job, or a lease that runs out.
    pub(super) due: Option<Duration>,
    /// The server's clock, in ms since 1970.
    pub(super) now_ms: u64,
    /// Tokens that were no longer ours.
    pub(super) stale: Vec<u64>,
    /// Tokens of jobs that were not done and are to be cancelled.
    pub(super) refused: Vec<u64>,
    pub(super) taken: Vec<Taken>,
    /// How many jobs were given back whose lease had run out.
    pub(super) reclaimed: usize,
    /// No jobs are taken until somebody says so.
    pub(super) paused: bool,
}

/// A job that was taken.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) token: u64,
    pub(super) queue: Queue,
    pub(super) raw: Bytes,
    pub(super) lapses: Lapses,
    /// How many attempts have failed, if that is counted beside it.
    pub(super) tries: u32,
}

/// What became of a job's leases before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lapses {
    /// So many have run out.
    Times(u32),
    /// It was to be cancelled when its lease ran out.
    Cancelled,
}

/// What is heard.
#[derive(Debug)]
pub(super) enum Heard {
    Answer(Answer),
    /// Nothing was done: it was too late by the server's clock, which shows this (ms since 1970).
    TooLate(u64),
}

/// Reads an answer.
pub(super) fn understand(answer: Value) -> Result<Heard, Error> {
    if let Value::Array(parts) = &answer
        && let [now] = &parts[..]
        && let Some(now_ms) = int(now).and_then(|now| u64::try_from(now).ok())
    {
        return Ok(Heard::TooLate(now_ms));
    }
    read(answer).map(Heard::Answer).ok_or_else(|| nonsense(DOING))
}

fn read(answer: Value) -> Option<Answer> {
    let Value::Array(parts) = answer else { return None };
    let [now, job_due, due, stale, refused, first, taken, lapses, reclaimed, tries, paused] =
        <[Value; 11]>::try_from(parts).ok()?;
    let mut answer = Answer {
        now_ms: u64::try_from(int(&now)?).ok()?,
        job_due: wait(&job_due)?,
        due: wait(&due)?,
        stale: tokens(stale)?,
        refused: tokens(refused)?,
        taken: Vec::new(),
        reclaimed: usize::try_from(int(&reclaimed)?).ok()?,
        paused: int(&paused)? == 1,
    };
    let mut token = u64::try_from(int(&first)?).ok()?;
    for group in array(taken)? {
        let mut group = array(group)?.into_iter();
        let queue = Queue::new(String::from_utf8_lossy(&bytes(group.next()?)?));
        answer.taken.reserve(group.len());
        for raw in group {
            let raw = Bytes::from(bytes(raw)?);
            answer.taken.push(Taken { token, queue: queue.clone(), raw, lapses: Lapses::Times(0), tries: 0 });
            token += 1;
        }
    }
    for (place, times) in notes(lapses)? {
        answer.taken.get_mut(place)?.lapses = match times.as_str() {
            "cancelled" => Lapses::Cancelled,
            times => Lapses::Times(times.parse().unwrap_or(u32::MAX)),
        };
    }
    for (place, times) in notes(tries)? {
        answer.taken.get_mut(place)?.tries = times.parse().unwrap_or(u32::MAX);
    }
    Some(answer)
}

/// What was noted of which of the jobs taken.
fn notes(value: Value) -> Option<Vec<(usize, String)>> {
    let note = |pair: &[Value]| {
        let place = usize::try_from(int(&pair[0])?).ok()?;
        Some((place, text(pair[1].clone())?))
    };
    array(value)?.chunks_exact(2).map(note).collect()
}

fn wait(value: &Value) -> Option<Option<Duration>> {
    int(value).map(|wait| u64::try_from(wait).ok().map(Duration::from_millis))
}

fn tokens(value: Value) -> Option<Vec<u64>> {
    array(value)?.into_iter().map(|token| text(token)?.parse().ok()).collect()
}

pub(super) fn array(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(values) | Value::Set(values) => Some(values),
        _ => None,
    }
}

pub(super) fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        _ => None,
    }
}

pub(super) fn text(value: Value) -> Option<String> {
    String::from_utf8(bytes(value)?).ok()
}

pub(super) fn int(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_day_is_that_of_the_calendar() {
        for (seconds, day) in [
            (0, "1970-01-01"),
            (68_255_999, "1972-02-29"),
            (68_256_000, "1972-03-01"),
            (951_782_400, "2000-02-29"),
            (1_763_683_199, "2025-11-20"),
            (1_763_683_200, "2025-11-21"),
            (1_798_761_599, "2026-12-31"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(today(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), day);
        }
    }

    #[test]
    fn a_wait_is_never_taken_for_none() {
        assert_eq!(millis(Duration::ZERO), 0);
        assert_eq!(millis(Duration::from_nanos(1)), 1);
        assert_eq!(millis(Duration::from_micros(1500)), 2);
        assert!(millis(Duration::MAX) < 1 << 53);
    }

    #[test]
    fn an_answer_of_another_form_is_refused() {
        for answer in [
            Value::Nil,
            Value::Int(7),
            Value::Array(vec![Value::Int(1); 11]),
            Value::Array(vec![Value::Int(-1)]),
            Value::Array(vec![]),
        ] {
            assert!(understand(answer).is_err());
        }
    }
}
