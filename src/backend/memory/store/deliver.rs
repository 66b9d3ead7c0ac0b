//! What goes out, and what becomes of it: hand-over, settlement, renewal, and leases that run out.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Place, Record, Store};
use crate::enqueue::Window;
use crate::inspect::JobState;
use crate::job::{Kind, Tag};
use crate::lease::{Lease, Renewal, later};
use crate::source::{Delivery, FetchRequest, MAX_REASON_BYTES, Settled, Settlement, Stale, truncate};

impl Store {
    /// Hands out what is wanted of what is ready.
    pub(in super::super) fn fetch(&mut self, now: Instant, wanted: &FetchRequest) -> Vec<Delivery> {
        self.advance(now);
        let max = wanted.max.get().min(self.ready.len());
        let mut taken = wanted.room();
        taken.reserve(max);
        let mut haul = Haul { sent_at: now, max, quotas: Quotas::of(wanted), taken };
        if wanted.queues.is_empty() {
            self.fetch_from(None, &mut haul);
        }
        for queue in &wanted.queues {
            if let Some(line) = self.ready.line(queue) {
                self.fetch_from(Some(line), &mut haul);
            }
        }
        haul.taken
    }

    /// Takes what is wanted from one line, or from all.
    fn fetch_from(&mut self, line: Option<usize>, haul: &mut Haul<'_>) {
        while haul.room() > 0 {
            let Some((run, kind)) = self.ready.best(line, |kind| haul.quotas.left(kind) > 0) else { return };
            for _ in 0..haul.room().min(haul.quotas.left(kind)) {
                let Some(key) = self.ready.next(&run) else { break };
                let delivery = self.hand_over(key, haul.sent_at);
                haul.quotas.count(&delivery.job.kind);
                haul.taken.push(delivery);
            }
            self.ready.finish(run);
        }
    }

    /// Hands over a job that was just taken out of its lane; the lease was asked for at `sent_at`.
    fn hand_over(&mut self, key: usize, sent_at: Instant) -> Delivery {
        let ttl = self.settings.lease_ttl;
        self.tokens += 1;
        let token = self.tokens;
        self.enter(key, Place::Leased { token, until: later(self.now, ttl), cancelled: false });
        let record = &mut self.records[key];
        record.attempts = record.attempts.saturating_add(1);
        if let Some(unique) = record.unique.as_ref().filter(|unique| unique.window == Window::WhileQueued) {
            self.keys.free(&record.job.kind, unique, &record.job.id);
        }
        let tag = Tag { session: 0, key: key as u64, token };
        Delivery {
            job: record.job.clone(),
            attempt: record.attempts,
            tag,
            lease: Some(Lease::new(sent_at, ttl)),
        }
    }

    /// Applies all settlements. One that does not match a lease which still runs changes nothing.
    pub(in super::super) fn settle(&mut self, now: Instant, settled: &[Settled]) -> Stale {
        self.advance(now);
        let mut stale = Vec::new();
        for one in settled {
            match self.leased(one.tag) {
                Some((key, cancelled)) => self.settle_one(key, cancelled, one),
                None => stale.push(one.tag),
            }
        }
        Stale(stale)
    }

    fn settle_one(&mut self, key: usize, cancelled: bool, settled: &Settled) {
        if settled.settlement == Settlement::Ack {
            self.remove(key);
            self.done += 1;
            return;
        }
        let record = &mut self.records[key];
        if let Some(reason) = &settled.reason {
            record.last_error = Some(bounded(reason));
        }
        if let Settlement::Release { .. } = settled.settlement {
            record.attempts = record.attempts.saturating_sub(1);
        }
        let order = record.order;
        match settled.settlement {
            _ if cancelled => self.bury(key, Some(self.cancelled.clone())),
            Settlement::Retry { after } => {
                let order = self.next_order();
                self.wait_again(key, after, order);
            }
            Settlement::Release { after } => self.wait_again(key, after, order),
            Settlement::Ack | Settlement::Reject => self.bury(key, None),
        }
    }

    /// Renews the leases that still run; the answers are in the order of the tags.
    pub(in super::super) fn renew(&mut self, now: Instant, tags: &[Tag]) -> Vec<Renewal> {
        self.advance(now);
        let renewed_until = later(self.now, self.settings.lease_ttl);
        let mut renew = |tag| {
            let Some((key, cancelled)) = self.leased(tag) else { return Renewal::Lost };
            if let Place::Leased { until, .. } = &mut self.records[key].place {
                *until = renewed_until;
            }
            let leased = &mut self.lists[JobState::Leased as usize];
            leased.remove(&mut self.records, key); // to the end: invariant 3
            leased.push(&mut self.records, key);
            if cancelled { Renewal::CancelRequested } else { Renewal::Kept }
        };
        tags.iter().map(|tag| renew(*tag)).collect()
    }

    /// Takes back at most `max` jobs whose lease has run out, and says how many it was.
    pub(in super::super) fn reclaim(&mut self, now: Instant, max: usize) -> usize {
        self.ripen(now);
        self.lapse(max)
    }

    /// The record of a delivery that may still be settled, and whether its job was cancelled.
    fn leased(&self, tag: Tag) -> Option<(usize, bool)> {
        let key = usize::try_from(tag.key).ok().filter(|_| tag.session == 0)?;
        match self.records.get(key)?.place {
            Place::Leased { token, cancelled, .. } if token == tag.token => Some((key, cancelled)),
            _ => None,
        }
    }

    /// The lease that runs out next: when, and whose.
    pub(super) fn next_lapse(&self) -> Option<(Instant, usize)> {
        let key = self.list(JobState::Leased).first()?;
        match self.records[key].place {
            Place::Leased { until, .. } => Some((until, key)),
            _ => None,
        }
    }

    pub(super) fn lapse(&mut self, max: usize) -> usize {
        let mut lapsed = 0;
        while lapsed < max
            && let Some((_, key)) = self.next_lapse().filter(|(until, _)| *until <= self.now)
        {
            self.lapse_one(key);
            lapsed += 1;
        }
        lapsed
    }

    /// A lease has run out. The attempt was counted when the job was handed over, so that one which kills
    /// its workers comes to an end too.
    fn lapse_one(&mut self, key: usize) {
        let record = &mut self.records[key];
        record.lapses = record.lapses.saturating_add(1);
        record.last_error = Some(self.lapsed.clone());
        let Record { attempts, lapses, order, place, .. } = *record;
        let most = record.job.max_attempts.unwrap_or(self.settings.crash_limit);
        if let Place::Leased { cancelled: true, .. } = place {
            self.bury(key, Some(self.cancelled.clone()));
        } else if attempts >= most {
            let reason = format!(
                "lease expired {lapses} times, the last time in attempt {attempts} of at most {most}"
            );
            self.bury(key, Some(reason.into()));
        } else {
            self.wait_again(key, Duration::ZERO, order);
        }
    }
}

/// A reason as it is kept: whoever made it may have passed by [`Settled::because`], which cuts it.
fn bounded(reason: &Arc<str>) -> Arc<str> {
    if reason.len() <= MAX_REASON_BYTES { reason.clone() } else { truncate(reason, MAX_REASON_BYTES).into() }
}

/// What one fetch has taken so far.
struct Haul<'a> {
    sent_at: Instant,
    max: usize,
    quotas: Quotas<'a>,
    taken: Vec<Delivery>,
}

impl Haul<'_> {
    fn room(&self) -> usize {
        self.max - self.taken.len()
    }
}

/// How many of each limited kind may still be taken.
struct Quotas<'a> {
    quotas: &'a [(Kind, usize)],
    taken: Vec<usize>,
}

impl<'a> Quotas<'a> {
    fn of(wanted: &'a FetchRequest) -> Self {
        Self { quotas: &wanted.quotas, taken: vec![0; wanted.quotas.len()] }
    }

    fn position(&self, kind: &Kind) -> Option<usize> {
        self.quotas.iter().position(|(limited, _)| limited == kind)
    }

    fn left(&self, kind: &Kind) -> usize {
        self.position(kind).map_or(usize::MAX, |at| self.quotas[at].1.saturating_sub(self.taken[at]))
    }

    fn count(&mut self, kind: &Kind) {
        if let Some(at) = self.position(kind) {
            self.taken[at] += 1;
        }
    }
}
