//! Where jobs come from: [`Source`], [`Connect`], and what passes between a source and a worker.
//!
//! This is the one wall of the house: worker and backend meet only here. A source hands out
//! [`Delivery`]s and is told one [`Settlement`] for each.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::job::{Job, Kind, Queue, Tag};
use crate::lease::{Lease, Renew};
use crate::sync::{Mutex, lock};

/// Where jobs come from.
///
/// Both calls take `&self`: a waiting `fetch` and a `settle` run at once.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// Waits for work and takes at most `wanted.max` deliveries.
    ///
    /// Returns as soon as there is at least one; perhaps empty-handed after `wanted.wait`, and soon after
    /// `stop` is cancelled; if it was cancelled before, it takes nothing. Whatever it took off the queue it
    /// returns: `stop` is an argument, rather than the future being dropped, because a destructive pop must
    /// never be cut between reply and return.
    ///
    /// # Errors
    /// A [transient](Error::is_transient) error makes the worker try again (through a new session if
    /// [`Error::is_disconnect`]). [`Closed`](crate::ErrorKind::Closed) says that nothing will come any more:
    /// the worker finishes what it has and ends. Any other ends the worker with that error in its report.
    ///
    /// # Cancel safety
    /// Dropping the future may lose what it was about to return, for a source without leases. The worker
    /// drops it only when it has not answered within its time (it hangs) or at the shutdown deadline.
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error>;

    /// Applies all of them. A delivery that is no longer ours is no error: it changes nothing and its tag
    /// is returned in [`Stale`].
    ///
    /// # Errors
    /// On any error the worker keeps the whole batch and tries it again, so applying one twice must be
    /// harmless (the second time is at most reported as stale).
    ///
    /// # Cancel safety
    /// Dropped, whether it is applied is unknown. The worker drops it when it has not been answered within
    /// [`call_timeout`](crate::ReconnectPolicy::call_timeout), and tries the same again. So a settlement may be applied
    /// after its call was given up, as long as its lease runs: the job has run. A source that remembers this should then
    /// report the second one as settled; called stale, it is counted as if the job had been given away, and nothing worse.
    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error>;

    /// Whether [`exchange`](Self::exchange) costs one exchange with wherever the jobs are, rather than two. Then the
    /// worker calls it in place of `settle` whenever it has room for more. Default: no.
    fn fuses(&self) -> bool {
        false
    }

    /// Settles, and takes at most `wanted.max` of what is there without waiting for more (`wanted.wait` means nothing
    /// here). What is taken takes the places that `settled` frees, so both happen or neither.
    ///
    /// The default settles and takes nothing.
    ///
    /// # Errors
    /// As [`settle`](Self::settle): the batch is tried again.
    ///
    /// # Cancel safety
    /// As [`fetch`](Self::fetch).
    async fn exchange(
        &self,
        settled: &[Settled],
        _wanted: &FetchRequest,
    ) -> Result<(Stale, Vec<Delivery>), Error> {
        Ok((self.settle(settled).await?, Vec::new()))
    }
}

/// How to get a live session. Reconnection needs a maker, not a connection.
#[async_trait]
pub trait Connect<T: ?Sized>: Send + Sync + 'static {
    /// Makes a new session. It belongs to the runtime that awaits this.
    ///
    /// # Errors
    /// A transient error is answered by another try after a backoff; any other is final.
    async fn connect(&self) -> Result<Arc<T>, Error>;

    /// Where it connects to, for logs: without credentials.
    fn target(&self) -> String;
}

/// What a worker needs of a backend: how to get a source, and how to keep its leases.
///
/// Two connections of two purposes: that for renewals is made on the heartbeat's own thread, so that the
/// workload can't stall it (P9).
#[derive(Clone)]
#[non_exhaustive]
pub struct Intake {
    /// Makes the source's sessions.
    pub source: Arc<dyn Connect<dyn Source>>,
    /// Makes the heartbeat's sessions; `None` for a source without leases to renew.
    pub renew: Option<Arc<dyn Connect<dyn Renew>>>,
    /// By which formula its failed jobs wait for the next attempt when nobody has set a policy.
    pub retry: RetryFormula,
}

/// By which formula the waits between a job's attempts grow. [`RetryPolicy`](crate::RetryPolicy) has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RetryFormula {
    /// [`RetryPolicy::default`](crate::RetryPolicy::default).
    #[default]
    Exponential,
    /// [`RetryPolicy::sidekiq`](crate::RetryPolicy::sidekiq).
    Sidekiq,
}

impl Intake {
    /// From a maker of sources.
    pub fn new(source: Arc<dyn Connect<dyn Source>>) -> Self {
        Self { source, renew: None, retry: RetryFormula::default() }
    }

    /// From a source that needs no connection, and so is never made anew.
    pub fn fixed(source: Arc<dyn Source>) -> Self {
        Self::new(Arc::new(Fixed(source)))
    }

    /// The same, with a maker of renewers.
    #[must_use]
    pub fn renewed_by(mut self, renew: Arc<dyn Connect<dyn Renew>>) -> Self {
        self.renew = Some(renew);
        self
    }

    /// The same, with a formula for the waits after failures: for a source whose jobs others retry too.
    #[must_use]
    pub fn retried_by(mut self, formula: RetryFormula) -> Self {
        self.retry = formula;
        self
    }

    /// The same, with a renewer that needs no connection.
    #[must_use]
    pub fn renewed_by_fixed(self, renew: Arc<dyn Renew>) -> Self {
        self.renewed_by(Arc::new(Fixed(renew)))
    }
}

impl fmt::Debug for Intake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intake")
            .field("source", &self.source.target())
            .field("renews", &self.renew.is_some())
            .finish()
    }
}

/// What is always there: connecting gives the same again.
struct Fixed<T: ?Sized>(Arc<T>);

#[async_trait]
impl<T: ?Sized + Send + Sync + 'static> Connect<T> for Fixed<T> {
    async fn connect(&self) -> Result<Arc<T>, Error> {
        Ok(self.0.clone())
    }

    fn target(&self) -> String {
        "in this process".to_owned()
    }
}

/// The most deliveries for which room is kept from one fetch to the next; about 100 KiB.
const MAX_ROOM: usize = 1024;

/// What the worker asks a source for.
#[derive(Debug)]
#[non_exhaustive]
pub struct FetchRequest {
    /// At most so many deliveries.
    pub max: NonZeroUsize,
    /// The queues to take from, in this order; empty means all that the source has.
    pub queues: Vec<Queue>,
    /// Kinds of which at most so many may be in the answer. A source that can't filter by kind ignores
    /// this, and the worker hands back what is too many.
    pub quotas: Vec<(Kind, usize)>,
    /// Return within this time, perhaps empty-handed.
    pub wait: Duration,
    /// An answer that has not come so long after that is waited for no longer, and nor is one to an
    /// [`exchange`](Source::exchange) that has not come after this time: what is asked of a server should have no effect
    /// later on. Default 10 s, as [`ReconnectPolicy::call_timeout`](crate::ReconnectPolicy::call_timeout) has it.
    pub call_timeout: Duration,
    /// Goes round from answer to answer.
    room: Mutex<Vec<Delivery>>,
}

impl FetchRequest {
    /// A request for at most `max` deliveries of any queue and kind, waiting up to `wait`.
    pub fn new(max: NonZeroUsize, wait: Duration) -> Self {
        let call_timeout = CALL_TIMEOUT;
        Self { max, queues: Vec::new(), quotas: Vec::new(), wait, call_timeout, room: Mutex::default() }
    }

    /// An empty vector for the answer: that of an earlier answer if the worker has one to spare, so that a
    /// fetch need not allocate. Any other vector will do as well.
    pub fn room(&self) -> Vec<Delivery> {
        std::mem::take(&mut *lock(&self.room))
    }

    /// Takes an answer's vector back for the next, unless it is one of a burst.
    pub(crate) fn put_room_back(&self, mut room: Vec<Delivery>) {
        room.clear();
        if room.capacity() <= MAX_ROOM {
            *lock(&self.room) = room;
        }
    }

    /// How many of `kind` the answer may hold; `None` when that is not limited.
    pub fn quota(&self, kind: &Kind) -> Option<usize> {
        self.quotas.iter().find(|(limited, _)| limited == kind).map(|(_, quota)| *quota)
    }
}

/// The same request; the room stays with the first.
impl Clone for FetchRequest {
    fn clone(&self) -> Self {
        let Self { max, wait, call_timeout, .. } = *self;
        let (queues, quotas) = (self.queues.clone(), self.quotas.clone());
        Self { max, queues, quotas, wait, call_timeout, room: Mutex::default() }
    }
}

/// How long an answer is waited for, unless something else is set.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// One hand-over of a job: the job, which attempt this is, and the right to work on it.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// What is to be done.
    pub job: Arc<Job>,
    /// Which attempt this is, from 1. Counted by the source when it hands the job out, so that a crash
    /// counts too.
    pub attempt: u32,
    /// The handle by which it is settled.
    pub tag: Tag,
    /// The right to work on it for a time; `None` for a source that has no leases.
    pub lease: Option<Lease>,
}

/// What the source is told about one delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Done: the job is finished.
    Ack,
    /// Failed: the attempt counts, and the job becomes available again after this time.
    Retry {
        /// How long it waits before its next attempt.
        after: Duration,
    },
    /// Given up: the job goes to the dead letters with its raw payload.
    Reject,
    /// Handed back unharmed: this attempt does not count. Available again after this time.
    Release {
        /// How long it waits; zero means at once, at the front of its queue if the source has an order.
        after: Duration,
    },
}

/// One settlement on its way to the source.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settled {
    /// Which delivery.
    pub tag: Tag,
    /// What became of it.
    pub settlement: Settlement,
    /// Why, for `Retry` and `Reject`: the error with its causes in one line, at most
    /// [`MAX_REASON_BYTES`] long.
    pub reason: Option<Arc<str>>,
    /// What the handler left to be kept with the attempt, whatever it came to; at most [`MAX_OUTPUT_BYTES`] long.
    /// A source that keeps no account of attempts drops it.
    pub output: Option<Arc<[u8]>>,
}

/// The most bytes of an error text that are kept with a settlement. Sidekiq keeps 10,000 characters; a
/// reason is for a person to read, and 4 KiB holds a long chain of causes.
pub const MAX_REASON_BYTES: usize = 4096;

/// The most bytes of output that are kept with an attempt: some pages of a log for a person to read. More belongs
/// in a file of its own.
pub const MAX_OUTPUT_BYTES: usize = 64 << 10;

impl Settled {
    /// A settlement without a reason.
    pub fn new(tag: Tag, settlement: Settlement) -> Self {
        Self { tag, settlement, reason: None, output: None }
    }

    /// The same, with what the handler left, cut to [`MAX_OUTPUT_BYTES`].
    #[must_use]
    pub fn with_output(mut self, output: &[u8]) -> Self {
        self.output = Some(Arc::from(&output[..output.len().min(MAX_OUTPUT_BYTES)]));
        self
    }

    /// The same, with the reason why, cut to [`MAX_REASON_BYTES`] at a character's boundary.
    #[must_use]
    pub fn because(mut self, reason: &str) -> Self {
        self.reason = Some(Arc::from(truncate(reason, MAX_REASON_BYTES)));
        self
    }
}

/// The deliveries of a settled batch that were no longer ours. Their settlement changed nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stale(pub Vec<Tag>);

/// The longest prefix of `text` of at most `bytes` bytes that ends at a character's boundary.
pub(crate) fn truncate(text: &str, bytes: usize) -> &str {
    if text.len() <= bytes {
        return text;
    }
    let mut end = bytes;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let text = "ä".repeat(MAX_REASON_BYTES);
        let tag = Tag { session: 0, key: 0, token: 0 };
        let settled = Settled::new(tag, Settlement::Reject).because(&format!("x{text}"));
        let kept = settled.reason.expect("a reason was given");
        assert_eq!(kept.len(), MAX_REASON_BYTES - 1);
        assert!(kept.ends_with('ä'));
    }
}
