//! What settlements leave on the server under plain pop: what was popped is gone, so nothing need be taken away.
//!
//! When the connection is lost while something is written, it may be written twice: a job that is handed back, and an
//! entry of the failed ones.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use redis::{Pipeline, Value};
use tokio::time::Instant;

use super::{PlainSession, stable_id};
use crate::backend::redis::codec::Failure;
use crate::backend::redis::exchange::MOST;
use crate::backend::redis::failure::failed;
use crate::backend::redis::held::Hand;
use crate::backend::redis::keys::{Keys, MARK_SECONDS};
use crate::backend::wall_clock;
use crate::error::{Chain, Error};
use crate::job::{Queue, Tag};
use crate::source::{MAX_REASON_BYTES, Settled, Settlement, Stale, truncate};
use crate::sync::lock;

const DOING: &str = "settling jobs";
const GIVING_BACK: &str = "putting back jobs that are not to run now";

/// A job that is put off can't wait, and comes again when its queue has got through. So that it does not go round and
/// round meanwhile, no job is taken for so long.
const REST: Duration = Duration::from_millis(50);

/// Where the failed attempts of a job of these bytes are counted.
pub(super) fn tried_key(keys: &Keys, raw: &[u8]) -> String {
    format!("{}:{}", keys.tried, stable_id(raw).as_str())
}

/// How many jobs were processed, and how many of them have failed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    processed: usize,
    failed: usize,
}

impl PlainSession {
    /// The job that is settled at `place`, unless it is already settled: before, or further to the front.
    fn hand(&self, settled: &[Settled], place: usize) -> Option<Hand> {
        let tag = settled[place].tag;
        let twice = settled[..place].iter().any(|before| before.tag == tag);
        self.shared.hands.get(tag).filter(|_| !twice)
    }

    /// If all that is settled is done, or was settled before: how many are done, and which are stale.
    pub(super) fn only_done(&self, settled: &[Settled]) -> Option<(Tally, Stale)> {
        let (mut tally, mut stale) = (Tally::default(), Vec::new());
        if settled.len() > MOST || !lock(&self.shared.plain.unheard).is_empty() {
            return None;
        }
        for (place, one) in settled.iter().enumerate() {
            match self.hand(settled, place) {
                Some(hand) if one.settlement == Settlement::Ack && !hand.marked => tally.processed += 1,
                Some(_) => return None,
                None => stale.push(one.tag),
            }
        }
        Some((tally, Stale(stale)))
    }

    /// Counts them.
    pub(super) fn counted(&self, tally: Tally) -> Pipeline {
        let mut all = redis::pipe();
        self.count(&mut all, tally);
        all
    }

    fn count(&self, all: &mut Pipeline, Tally { processed, failed }: Tally) {
        let (keys, name) = (&self.shared.keys, self.shared.roll.entered());
        for (key, number) in [(&keys.processed, processed), (&keys.failed, failed)] {
            if number > 0 {
                all.cmd("INCRBY").arg(key).arg(number);
                if !name.is_empty() {
                    all.cmd("INCRBY").arg(format!("{key}:{name}")).arg(number);
                }
            }
        }
    }

    /// Writes what these leave, and forgets them.
    pub(super) async fn write(&self, settled: &[Settled]) -> Result<Stale, Error> {
        // What the server has no room for must not keep it from hearing what is done: that makes room.
        let _ = self.pay().await;
        let mut stale = Vec::new();
        for part in settled.chunks(MOST) {
            self.write_part(part, &mut stale).await?;
        }
        Ok(Stale(stale))
    }

    async fn write_part(&self, settled: &[Settled], stale: &mut Vec<Tag>) -> Result<(), Error> {
        let (mut all, mut tally) = (redis::pipe(), Tally::default());
        // How many answers each has.
        let mut parts = Vec::with_capacity(settled.len());
        for (place, one) in settled.iter().enumerate() {
            match self.hand(settled, place) {
                Some(hand) => {
                    let before = all.len();
                    self.add(&mut all, &hand, one, &mut tally);
                    parts.push((one.tag, all.len() - before));
                }
                None if lock(&self.shared.plain.unheard).remove(&one.tag) => {}
                None => stale.push(one.tag),
            }
        }
        self.count(&mut all, tally);
        let mut answers = if all.is_empty() { Vec::new() } else { self.send(DOING, &all).await? }.into_iter();
        let (mut written, mut first_error) = (Vec::with_capacity(parts.len()), None);
        for (tag, length) in parts {
            let answers: Vec<Value> = answers.by_ref().take(length).collect();
            match answers.into_iter().try_for_each(|answer| answer.extract_error().map(drop)) {
                Ok(()) => written.push(tag),
                Err(error) => drop(first_error.get_or_insert_with(|| failed(DOING, error))),
            }
        }
        self.shared.hands.remove(written.iter().copied());
        // Counts that were refused are for people only.
        let Some(error) = first_error else { return Ok(()) };
        // The worker hears that nothing was settled, and tries all of these again.
        lock(&self.shared.plain.unheard).extend(written);
        Err(error)
    }

    fn add(&self, all: &mut Pipeline, hand: &Hand, settled: &Settled, tally: &mut Tally) {
        let keys = &self.shared.keys;
        let (queue, tried) = (keys.of_queue(&hand.queue), tried_key(keys, &hand.raw));
        let reason = truncate(settled.reason.as_deref().unwrap_or_default(), MAX_REASON_BYTES);
        let tried_once_more = |all: &mut Pipeline| {
            // The mark first: who sees the count has seen it.
            all.cmd("SETEX").arg(&keys.tried).arg(MARK_SECONDS).arg(1);
            all.cmd("SETEX").arg(&tried).arg(MARK_SECONDS).arg(hand.attempt);
        };
        match settled.settlement {
            Settlement::Ack => tally.processed += 1,
            Settlement::Retry { after } => {
                *tally = Tally { processed: tally.processed + 1, failed: tally.failed + 1 };
                tried_once_more(all);
                if after.is_zero() {
                    all.cmd(keys.ends.back).arg(&queue).arg(&hand.raw[..]);
                    all.cmd("SADD").arg(&keys.queues).arg(hand.queue.as_str());
                } else {
                    all.cmd("RPUSH").arg(&keys.dead).arg(self.failed_entry(hand, reason));
                    self.trim(all);
                }
                return;
            }
            Settlement::Reject => {
                *tally = Tally { processed: tally.processed + 1, failed: tally.failed + 1 };
                all.cmd("RPUSH").arg(&keys.dead).arg(self.failed_entry(hand, reason));
                self.trim(all);
            }
            Settlement::Release { after } => {
                let side = if after.is_zero() { keys.ends.front } else { keys.ends.back };
                all.cmd(side).arg(&queue).arg(&hand.raw[..]);
                all.cmd("SADD").arg(&keys.queues).arg(hand.queue.as_str());
                if !after.is_zero() {
                    *lock(&self.rest) = Some(Instant::now() + REST);
                }
                return;
            }
        }
        if hand.marked {
            all.cmd("DEL").arg(&tried);
        }
    }

    fn failed_entry(&self, hand: &Hand, reason: &str) -> Vec<u8> {
        let (now, times) = (wall_clock(), self.shared.times);
        let failure = Failure { reason, now, attempt: hand.attempt, queue: Some(&hand.queue), times };
        self.shared.layout.dead(&hand.raw, &self.shared.roll.name(), &failure)
    }

    fn trim(&self, all: &mut Pipeline) {
        match self.shared.terms.max_dead {
            None => {}
            Some(0) => drop(all.cmd("DEL").arg(&self.shared.keys.dead)),
            Some(most) => drop(all.cmd("LTRIM").arg(&self.shared.keys.dead).arg(format!("-{most}")).arg(-1)),
        }
    }

    /// Puts jobs back to where they were popped from. What the server does not take is kept, and put back with
    /// [`pay`](Self::pay).
    pub(super) async fn give_back(&self, jobs: Vec<(Queue, Bytes)>) -> Result<(), Error> {
        // Kept from the beginning: who waits for this may go.
        lock(&self.shared.plain.kept).splice(0..0, jobs);
        let _turn = self.shared.plain.paying.lock().await;
        self.pay_jobs().await.inspect_err(|error| self.tell_of_debts(error))
    }

    /// Something is kept here that is to stand on the server.
    pub(super) fn owes(&self) -> bool {
        self.shared.plain.debts() != (0, 0)
    }

    /// Writes what could not be written when it was to: jobs that are not to run now, and the entries of those that could
    /// not be understood.
    ///
    /// # Errors
    /// If there is now so much of it that no more may be popped.
    pub(super) async fn pay(&self) -> Result<(), Error> {
        let plain = &self.shared.plain;
        if !self.owes() {
            return Ok(());
        }
        let _turn = plain.paying.lock().await;
        let paid = match self.pay_jobs().await {
            Ok(()) => self.pay_entries().await,
            Err(error) => Err(error),
        };
        if let Err(error) = paid {
            self.tell_of_debts(&error);
            // What is popped, run and settled makes room for entries.
            return if plain.owes_much() { Err(error) } else { Ok(()) };
        }
        if plain.said.swap(false, Ordering::Relaxed) {
            tracing::info!(
                target = self.shared.dial.target,
                "plain pop: what stood in this process alone is written"
            );
        }
        Ok(())
    }

    fn tell_of_debts(&self, error: &Error) {
        let plain = &self.shared.plain;
        // A connection that is lost is told of where it is made anew.
        if !error.is_disconnect() && !plain.said.swap(true, Ordering::Relaxed) {
            let (jobs, entries) = plain.debts();
            tracing::warn!(
                target = self.shared.dial.target,
                jobs,
                entries,
                error = %Chain(error),
                "plain pop: jobs that are not to run now, or entries of what is no job, can't be written: they stand in \
                 this process alone until they are"
            );
        }
    }

    /// Puts back the jobs that are kept. In its turn: others only put more in front of them meanwhile. They stay until the
    /// server has answered.
    async fn pay_jobs(&self) -> Result<(), Error> {
        let (keys, kept) = (&self.shared.keys, &self.shared.plain.kept);
        let jobs = lock(kept).clone();
        if jobs.is_empty() {
            return Ok(());
        }
        let mut all = redis::pipe();
        for (queue, raw) in jobs.iter().rev() {
            all.cmd(keys.ends.front).arg(keys.of_queue(queue)).arg(&raw[..]);
        }
        let answers = self.send(GIVING_BACK, &all).await?;
        let (mut left, mut error) = (Vec::new(), None);
        let count = jobs.len();
        for (job, answer) in jobs.into_iter().zip(answers.into_iter().rev()) {
            if let Err(why) = answer.extract_error() {
                left.push(job);
                error = Some(failed(GIVING_BACK, why));
            }
        }
        let mut kept = lock(kept);
        let before = kept.len() - count;
        kept.splice(before.., left);
        error.map_or(Ok(()), Err)
    }

    /// Writes the entries that are owed. In its turn: others only add more meanwhile.
    async fn pay_entries(&self) -> Result<(), Error> {
        let owed = lock(&self.shared.plain.owed).clone();
        if owed.is_empty() {
            return Ok(());
        }
        let mut all = redis::pipe();
        all.cmd("RPUSH").arg(&self.shared.keys.dead).arg(&owed);
        self.trim(&mut all);
        self.count(&mut all, Tally { processed: owed.len(), failed: owed.len() });
        // Counts that were refused are for people only.
        let mut answers = self.send(DOING, &all).await?;
        answers.swap_remove(0).extract_error().map_err(|error| failed(DOING, error))?;
        lock(&self.shared.plain.owed).drain(..owed.len());
        Ok(())
    }
}
