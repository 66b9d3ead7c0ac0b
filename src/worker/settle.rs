//! Settlements on their way: which wait, which go next, and what a failure of the source does to them.
//!
//! One batch is under way at a time; what ends meanwhile goes with the next, so batches grow by themselves
//! as the source gets slower. A batch that failed is kept whole and tried again: it stays bounded by P1,
//! since every settlement holds its delivery's permit. After an error that is not transient the same ones
//! go one by one, so that one bad settlement does not hold up its neighbours.

use std::num::NonZeroUsize;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Chain, Error};
use crate::lease::Trust;
use crate::lease::later;
use crate::retry::{backoff, less_jitter, unit_random};
use crate::source::{Delivery, Settled, Settlement, Source, Stale};
use crate::worker::fetch::Call;
use crate::worker::flight::{Flight, Stage};
use crate::worker::leases::Leases;
use crate::worker::reconnect::{ReconnectPolicy, Reconnecting};
use crate::worker::report::StopCause;
use crate::worker::run::Loop;

/// The most settlements that one call carries: keeps one exchange short whatever the bound is.
const MAX_BATCH: usize = 1024;

/// For how long settlements wait at most for those of jobs that have just begun: the timers' finest time.
const GATHERING: Duration = Duration::from_millis(1);

/// By how much an exchange must outlast jobs, so that gathering these costs little.
const SHORT: u32 = 4;

/// An exchange that takes as long as this, several turns of the loop, goes to a disk or over a network.
const SLOW_EXCHANGE: Duration = Duration::from_micros(50);

/// The settlements that wait, by place, and the pace of trying again.
#[derive(Default)]
pub(crate) struct Unsettled {
    waiting: Vec<usize>,
    failures: u32,
    /// Those that the source has refused and that wait still. While there are any, a log line has said so: what is logged
    /// is the change.
    refused: Vec<usize>,
    not_before: Option<Instant>,
    one_by_one: usize,
    pub(crate) gathering: Gathering,
}

/// Whether what has ended waits for what has just begun. Where an exchange takes far longer than a job, two parts of the
/// jobs would otherwise take turns for good: one runs while the other is being settled, and each exchange carries half
/// of what it might.
#[derive(Default)]
pub(crate) struct Gathering {
    /// Which answer brought the attempts that begin now.
    answer: u64,
    /// How many of these have not ended.
    fresh: usize,
    until: Option<Instant>,
    /// The longest run that ended since the answer before.
    longest: Duration,
}

impl Gathering {
    /// An exchange was answered that took so long. What it brought begins from now on.
    fn answered(&mut self, took: Duration, now: Instant) {
        let short = took >= SLOW_EXCHANGE && self.longest < took / SHORT;
        self.until = short.then(|| now + GATHERING);
        self.answer += 1;
        (self.fresh, self.longest) = (0, Duration::ZERO);
    }

    /// An attempt begins. Returns to which answer it belongs.
    pub(crate) fn began(&mut self) -> u64 {
        self.fresh += 1;
        self.answer
    }

    /// An attempt has ended that belongs to this answer.
    pub(crate) fn ended(&mut self, answer: u64, run_time: Duration) {
        self.longest = self.longest.max(run_time);
        if answer == self.answer {
            self.fresh = self.fresh.saturating_sub(1);
        }
    }

    /// Until when what has ended waits for others, if it does.
    fn until(&self) -> Option<Instant> {
        self.until.filter(|_| self.fresh > 0)
    }
}

/// A batch under way, and later its answer. The vectors go round, so that a batch allocates nothing.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) places: Vec<usize>,
    pub(crate) settled: Vec<Settled>,
    /// Those that were taken out since their lease is lost.
    lost: Vec<usize>,
    trust: Vec<Trust>,
    /// What is to be fetched in the same exchange, and what came of it.
    pub(crate) call: Option<Call>,
    fetched: Vec<Delivery>,
    /// The source can do both in one exchange.
    fuses: bool,
    /// When it was sent.
    sent_at: Option<Instant>,
    /// No session can be had any more, for a reason that waiting does not mend.
    pub(crate) no_session: bool,
}

impl Batch {
    pub(crate) fn clear(&mut self) {
        self.places.clear();
        self.settled.clear();
        self.no_session = false;
    }

    fn take_out_lost<T: Clone>(&mut self, leases: &Leases<T>) {
        leases.trust(self.places.iter().copied(), Instant::now(), &mut self.trust);
        if !self.trust.contains(&Trust::Lost) {
            return;
        }
        let Self { places, settled, lost, trust, .. } = self;
        let mut at = 0..;
        settled.retain(|_| at.next().is_some_and(|at| trust[at] != Trust::Lost));
        let mut at = 0..;
        places.retain(|place| {
            let keep = at.next().is_some_and(|at| trust[at] != Trust::Lost);
            if !keep {
                lost.push(*place);
            }
            keep
        });
    }
}

impl Unsettled {
    pub(crate) fn push(&mut self, place: usize) {
        self.waiting.push(place);
    }

    /// When the next batch may go; `None` when nothing waits or it may go now.
    pub(crate) fn not_before(&self) -> Option<Instant> {
        if self.waiting.is_empty() { None } else { self.not_before.max(self.gathering.until()) }
    }

    /// Whether a batch may go at `now`.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        !self.waiting.is_empty() && self.not_before.max(self.gathering.until()).is_none_or(|at| at <= now)
    }

    /// Takes the places of the next batch, if one may go at `now`.
    pub(crate) fn next(&mut self, now: Instant, places: &mut Vec<usize>) -> bool {
        places.clear();
        if !self.is_due(now) {
            return false;
        }
        self.not_before = None;
        let size = if self.one_by_one > 0 { 1 } else { MAX_BATCH };
        places.extend(self.waiting.drain(..size.min(self.waiting.len())));
        self.one_by_one = self.one_by_one.saturating_sub(1);
        true
    }

    pub(crate) fn succeeded(&mut self, places: &[usize]) {
        self.failures = 0;
        self.not_before = None;
        if self.forget(places) {
            tracing::info!("settlements are taken again");
        }
    }

    /// These do not wait any more. Returns whether the last of those that were refused was among them.
    fn forget(&mut self, places: &[usize]) -> bool {
        if self.refused.is_empty() {
            return false;
        }
        self.refused.retain(|place| !places.contains(place));
        self.refused.is_empty()
    }

    /// Takes a failed batch back; it is tried again after a wait.
    pub(crate) fn failed(
        &mut self,
        batch: &Batch,
        error: &Error,
        policy: &ReconnectPolicy,
        seed: u64,
        now: Instant,
    ) {
        self.waiting.extend_from_slice(&batch.places);
        self.failures = self.failures.saturating_add(1);
        let whole = backoff(policy.initial, policy.factor, policy.cap, self.failures);
        let wait = less_jitter(whole, policy.jitter, unit_random((seed, "settle", self.failures)));
        // After a lost connection it is the reconnecting source that waits.
        self.not_before = (!error.is_disconnect()).then(|| later(now, wait));
        // Of a lost connection the reconnecting source says so.
        if error.is_disconnect() {
            return;
        }
        // What is refused may be one of them alone.
        self.one_by_one = self.waiting.len();
        let is_news = self.refused.is_empty();
        for place in &batch.places {
            if !self.refused.contains(place) {
                self.refused.push(*place);
            }
        }
        if is_news {
            let (kept, error) = (batch.places.len(), Chain(error));
            tracing::warn!(%error, kept, ?wait, "settlements failed and are kept, to be tried again after this wait");
        }
    }
}

/// Sends a batch through the live session. Returns the batch with the answer.
///
/// What can no longer be trusted is taken out just before it is sent (P5): an outage may have outlived a lease.
pub(crate) async fn settle<T: Clone>(
    source: &Reconnecting<dyn Source>,
    leases: &Leases<T>,
    mut batch: Batch,
) -> (Batch, Result<Stale, Error>) {
    let session = match source.session().await {
        Ok(session) => session,
        Err(error) => {
            batch.no_session = true;
            return (batch, Err(error));
        }
    };
    batch.take_out_lost(leases);
    if batch.settled.is_empty() {
        return (batch, Ok(Stale::default()));
    }
    batch.fuses = session.live.fuses();
    let answer = match batch.call.as_mut().filter(|_| batch.fuses) {
        None => source.within(source.call_timeout(), session.live.settle(&batch.settled)).await,
        Some(call) => {
            let places = call.places() + batch.settled.len();
            call.request.max = NonZeroUsize::new(places).unwrap_or(NonZeroUsize::MIN);
            let exchange = session.live.exchange(&batch.settled, &call.request);
            let answer = source.within(source.call_timeout(), exchange).await;
            answer.map(|(stale, fetched)| {
                batch.fetched = fetched;
                stale
            })
        }
    };
    match &answer {
        Ok(_) => source.succeeded(&session),
        Err(error) => source.failed(&session, error).await,
    }
    (batch, answer)
}

impl Loop {
    /// Fills the next batch, if one may go.
    pub(crate) fn next_batch(&mut self, batch: &mut Batch, fetching: bool, now: Instant) -> bool {
        if !self.unsettled.next(now, &mut batch.places) {
            return false;
        }
        batch.sent_at = Some(now);
        batch.settled.clear();
        batch.places.retain(|place| match self.flights.get(*place).map(|flight| &flight.stage) {
            Some(Stage::Settling(settled)) => {
                batch.settled.push(settled.clone());
                true
            }
            _ => false,
        });
        if batch.places.is_empty() {
            return false;
        }
        if !fetching {
            batch.call = self.fused_fetch(batch.places.len(), now);
        }
        if batch.call.is_none() {
            self.fetcher.expect(batch.places.len(), now);
        }
        true
    }

    /// A batch was answered. Returns it for its vectors.
    pub(crate) fn settled(&mut self, mut batch: Batch, answer: Result<Stale, Error>, now: Instant) -> Batch {
        self.fetcher.expect_nothing();
        self.fetcher.fuses |= batch.fuses;
        if let Some(sent_at) = batch.sent_at.filter(|_| batch.fuses) {
            let took = now.duration_since(sent_at);
            self.completions.set_slow_source(took >= SLOW_EXCHANGE);
            self.unsettled.gathering.answered(took, now);
        }
        self.unsettled.forget(&batch.lost);
        for place in std::mem::take(&mut batch.lost) {
            self.give_up(place);
        }
        match answer {
            Ok(Stale(stale)) => {
                self.unsettled.succeeded(&batch.places);
                self.telemetry
                    .settlements
                    .increment((batch.places.len() - stale.len().min(batch.places.len())) as u64);
                self.leases.leave(batch.places.iter().copied());
                for (place, settled) in batch.places.iter().zip(&batch.settled) {
                    if let Some(flight) = self.flights.remove(*place) {
                        self.confirm(&flight, settled, stale.contains(&settled.tag));
                        self.spare.put_back(flight.run);
                    }
                }
                if let Some(call) = batch.call.take() {
                    self.fetched_too(call, std::mem::take(&mut batch.fetched));
                }
            }
            Err(error) => {
                batch.call.take().into_iter().for_each(|call| self.not_fetched(call));
                self.stats.settle_failures += 1;
                self.telemetry.settle_failures.increment(1);
                self.unsettled.failed(&batch, &error, &self.limits.reconnect, self.limits.seed, now);
                if batch.no_session {
                    self.cause.get_or_insert(StopCause::Failed(error));
                }
            }
        }
        batch.clear();
        batch
    }

    /// Counts what the source has confirmed, or called stale.
    fn confirm(&mut self, flight: &Flight, settled: &Settled, stale: bool) {
        if stale {
            self.stats.stale += 1;
            self.telemetry.stale.increment(1);
            let job = &flight.run.delivery.job;
            tracing::warn!(id = %job.id, kind = %job.kind, "settled too late: the source had given the job away");
            return;
        }
        let outcomes = &flight.kind.telemetry.outcomes;
        let (count, counter) = match settled.settlement {
            Settlement::Ack => (&mut self.stats.done, &outcomes.done),
            Settlement::Retry { .. } => (&mut self.stats.retried, &outcomes.retried),
            Settlement::Reject => (&mut self.stats.rejected, &outcomes.rejected),
            Settlement::Release { .. } if flight.run.was_left_alone() => {
                (&mut self.stats.snoozed, &outcomes.snoozed)
            }
            Settlement::Release { .. } => (&mut self.stats.released, &outcomes.released),
        };
        *count += 1;
        counter.increment(1);
    }

    /// Lets a delivery go that is no longer ours: nothing is settled.
    pub(crate) fn give_up(&mut self, place: usize) {
        self.leases.leave(std::iter::once(place));
        if let Some(flight) = self.flights.remove(place) {
            self.stats.lost += 1;
            flight.kind.telemetry.outcomes.lost.increment(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const SLOW: Duration = Duration::from_millis(2);
    const BRIEF: Duration = Duration::from_micros(10);

    /// The second half of the slots has ended while the first was settled, and waits for what the answer has brought.
    #[test]
    fn what_has_ended_waits_for_what_has_just_begun() {
        let (mut gathering, now) = (Gathering::default(), Instant::now());
        let before = gathering.began();
        gathering.ended(before, BRIEF);
        assert_eq!(gathering.until(), None, "nothing is known of the source so far");
        gathering.answered(SLOW, now);
        assert_eq!(gathering.until(), None, "nothing has begun");
        let fresh = [gathering.began(), gathering.began()];
        assert_eq!(gathering.until(), Some(now + GATHERING));
        gathering.ended(before, BRIEF); // one of those before
        gathering.ended(fresh[0], BRIEF);
        assert_eq!(gathering.until(), Some(now + GATHERING));
        gathering.ended(fresh[1], BRIEF);
        assert_eq!(gathering.until(), None, "all are there");
    }

    #[test]
    fn nobody_waits_for_long_jobs_or_where_an_exchange_is_short() {
        for (took, ran) in [(SLOW, SLOW / SHORT), (SLOW, SLOW * 9), (SLOW_EXCHANGE / 2, Duration::ZERO)] {
            let (mut gathering, now) = (Gathering::default(), Instant::now());
            let before = gathering.began();
            gathering.ended(before, ran);
            gathering.answered(took, now);
            gathering.began();
            assert_eq!(gathering.until(), None, "{took:?}, {ran:?}");
            // What ran longest counts until the next answer only.
            gathering.answered(SLOW, now);
            gathering.began();
            assert_eq!(gathering.until(), Some(now + GATHERING));
        }
    }

    /// Of a lost connection whoever makes it anew says so; what comes after it is still to be told, once for as long as
    /// anything is refused, and what is refused holds nothing else up.
    #[test]
    fn that_settlements_are_refused_is_told_once_and_each_is_then_tried_alone() {
        let (mut unsettled, mut batch, policy) =
            (Unsettled::default(), Batch::default(), ReconnectPolicy::default());
        let lost = Error::new(ErrorKind::Connection, "gone");
        let full = Error::new(ErrorKind::Full, "no room");
        assert!(lost.is_disconnect() && !full.is_disconnect() && full.is_transient());
        batch.places = vec![1, 2];
        unsettled.failed(&batch, &lost, &policy, 1, Instant::now());
        assert!(unsettled.refused.is_empty() && unsettled.one_by_one == 0);
        unsettled.waiting.clear();
        unsettled.failed(&batch, &full, &policy, 1, Instant::now());
        assert_eq!((&unsettled.refused[..], unsettled.one_by_one), (&[1, 2][..], 2));
        unsettled.succeeded(&[1, 3]);
        assert_eq!(unsettled.refused, [2], "one is refused still, so nothing is told");
        batch.places = vec![2];
        unsettled.failed(&batch, &lost, &policy, 1, Instant::now());
        unsettled.failed(&batch, &full, &policy, 1, Instant::now());
        assert_eq!(unsettled.refused, [2]);
        assert!(!unsettled.forget(&[]) && unsettled.forget(&[2]) && !unsettled.forget(&[2]));
    }

    #[test]
    fn a_batch_goes_when_the_moment_is_over_though_some_have_not_ended() {
        let (mut unsettled, now) = (Unsettled::default(), Instant::now());
        unsettled.push(7);
        unsettled.gathering.answered(SLOW, now);
        unsettled.gathering.began();
        let mut places = Vec::new();
        assert!(!unsettled.is_due(now) && !unsettled.next(now, &mut places));
        assert_eq!(unsettled.not_before(), Some(now + GATHERING), "the loop's timer is set to it");
        assert!(unsettled.next(now + GATHERING, &mut places));
        assert_eq!(places, [7]);
    }
}
