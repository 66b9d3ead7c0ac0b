//! Changing what the server holds: a job is looked for, and changed in one step if it is still where it was.

use async_trait::async_trait;

use super::Redis;
use super::codec::Failure;
use super::exchange::{Heard, RECLAIM, Wish, ask, int, understand};
use super::failure::nonsense;
use super::link::{CHANGE, EXCHANGE};
use super::look::Found;
use super::source::CANCELLED;
use crate::backend::wall_clock;
use crate::error::Error;
use crate::inspect::{JobState, Manage};
use crate::job::{JobId, Queue};
use crate::lease::Reclaim;

/// How often a job is looked for again that went on meanwhile.
const TRIES: usize = 5;

/// The farthest time that a script can tell from the next.
const NEVER_MS: u64 = 1 << 53;

/// Where a job is to go.
enum To {
    Dead(Option<Vec<u8>>),
    Queue(Queue, Vec<u8>),
    Away,
    /// Its worker is to be told.
    Cancelled,
}

impl Redis {
    /// Changes a job as `decide` says, which gives nothing for one that can't be changed so.
    async fn change(
        &self,
        id: &JobId,
        doing: &'static str,
        decide: impl Fn(&Found) -> Option<To> + Sync,
    ) -> Result<bool, Error> {
        for _ in 0..TRIES {
            // Where two have the same identity, it is the one that can be changed so.
            let found = self.locate(id, &|found| decide(found).is_some()).await?;
            let Some(found) = found else { return Ok(false) };
            let Some(to) = decide(&found) else { return Ok(false) };
            if self.change_found(&found, &to, doing).await? {
                self.0.bell.notify_waiters();
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn change_found(&self, found: &Found, to: &To, doing: &'static str) -> Result<bool, Error> {
        let keys = &self.0.keys;
        let (key, ours) = (&found.key, &keys.ours);
        let mut call = CHANGE.call(&[key, &keys.queues, &keys.dead, &keys.cancelled, &keys.schedule, ours]);
        call.arg(match found.state {
            JobState::Leased => "hash",
            _ => found.how,
        });
        call.arg(&found.here[..]);
        match to {
            To::Dead(Some(raw)) => call.arg("dead").arg(&raw[..]).arg(""),
            To::Queue(queue, raw) => call.arg("queue").arg(&raw[..]).arg(queue.as_str()),
            To::Dead(None) | To::Away => call.arg("away").arg("").arg(""),
            To::Cancelled => call.arg("cancelled").arg("").arg(""),
        };
        call.arg(&keys.queue).arg(self.0.terms.most_dead()).arg(self.0.terms.dead_for.as_secs());
        call.arg(keys.ends.back).arg(keys.dead_in).arg(found.score()).arg(&keys.timestamps).arg(&keys.tried);
        let attempts = if found.state == JobState::Delayed { found.attempts } else { 0 };
        call.arg(attempts);
        let answer = self.0.lane.run(&self.0.dial, doing, &CHANGE, &call).await?;
        Ok(int(&answer) == Some(1))
    }
}

#[async_trait]
impl Manage for Redis {
    async fn cancel(&self, id: &JobId) -> Result<bool, Error> {
        self.change(id, "cancelling a job", |found| match found.state {
            JobState::Dead | JobState::Done => None,
            JobState::Leased => Some(To::Cancelled),
            JobState::Ready | JobState::Delayed => {
                let (now, queue, times) = (wall_clock(), Some(&found.job.job.queue), self.0.times);
                let failure = Failure { reason: CANCELLED, now, attempt: found.job.attempts, queue, times };
                Some(To::Dead(found.keep_dead.then(|| self.0.layout.dead(&found.raw, "", &failure))))
            }
        })
        .await
    }

    async fn requeue(&self, id: &JobId) -> Result<bool, Error> {
        self.change(id, "requeueing a job", |found| {
            let anew = match found.state {
                JobState::Dead => self.0.layout.revived(&found.here, wall_clock(), self.0.times),
                JobState::Delayed => {
                    let due = self.0.layout.due(found.place, &found.here, wall_clock(), self.0.times);
                    due.map(|(queue, raw, _)| (queue, raw))
                }
                JobState::Ready | JobState::Leased | JobState::Done => return None,
            };
            anew.ok().map(|(queue, raw)| To::Queue(queue, raw))
        })
        .await
    }

    async fn delete(&self, id: &JobId) -> Result<bool, Error> {
        self.change(id, "deleting a job", |found| (found.state != JobState::Leased).then_some(To::Away)).await
    }
}

/// Every exchange of a worker does this for a number of jobs; this is for rescuers that want to know how many it was.
#[async_trait]
impl Reclaim for Redis {
    async fn reclaim(&self, max: usize) -> Result<usize, Error> {
        let wish = Wish {
            reclaim: max.min(RECLAIM),
            most: 0,
            queues: &[],
            until_ms: NEVER_MS,
            seen: true,
            overdue: &[],
        };
        let call = ask(&self.0.keys, &self.0.terms, &wish, &[], "");
        let answer = self.0.lane.run(&self.0.dial, "taking back jobs", &EXCHANGE, &call).await?;
        match understand(answer)? {
            Heard::Answer(answer) => Ok(answer.reclaimed),
            Heard::TooLate(_) => Err(nonsense("taking back jobs")),
        }
    }
}
