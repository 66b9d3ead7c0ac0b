//! What the loop and the heartbeat thread share: the [`LeaseTable`] behind its lock.
//!
//! The only mutable state that two threads of the engine share, and what loom checks. Invariants:
//!
//! 1. Whether a delivery may be settled and whether its lease was lost are decided under the same lock, so
//!    the loop never settles what the heartbeat has called lost (P5).
//! 2. Before the heartbeat waits it notes, under the lock, until when; whoever enters a lease that has to be
//!    looked at sooner sees that note under the same lock, and wakes it. No wake-up is lost, and a busy
//!    worker with leases of one length wakes it once for a whole stretch of jobs.

use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::job::Tag;
use crate::lease::{Lease, LeaseTable, Renewal, Trust};
use crate::sync::{Mutex, lock};

/// The leases of one worker. `T` is the control block of a run.
#[derive(Debug)]
pub(crate) struct Leases<T> {
    state: Mutex<State<T>>,
    wake: Notify,
}

#[derive(Debug)]
struct State<T> {
    table: LeaseTable<T>,
    waits_for: Option<WaitsFor>,
}

/// What the heartbeat waits for. A woken one waits for nothing until it has looked again.
#[derive(Clone, Copy, Debug)]
enum WaitsFor {
    /// The first entry at all.
    Entry,
    /// The first lease that is due, then.
    Due(Instant),
    /// The end of trust in the first, then, while a renewal is under way.
    Loss(Instant),
}

impl WaitsFor {
    fn is_too_late_for(self, lease: &Lease) -> bool {
        match self {
            Self::Entry => true,
            Self::Due(at) => lease.due_at() < at,
            Self::Loss(at) => lease.trusted_until() < at,
        }
    }
}

/// What the heartbeat should do next.
#[derive(Debug, PartialEq)]
pub(crate) enum Beat {
    /// Nothing is leased: sleep until woken.
    Sleep,
    /// Nothing is due before this instant.
    Wait(Instant),
    /// Renew these, the first of which was due at this instant.
    Renew(Vec<(usize, Tag)>, Instant),
}

impl<T: Clone> Leases<T> {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::new(State { table: LeaseTable::new(), waits_for: None }), wake: Notify::new() }
    }

    /// Enters the leases of a batch. Returns whether the heartbeat has to be [woken](Leases::wake).
    pub(crate) fn enter(&self, batch: impl Iterator<Item = (usize, Tag, Lease, T)>) -> bool {
        let mut state = lock(&self.state);
        let mut wake = false;
        for (place, tag, lease, owner) in batch {
            wake |= state.waits_for.is_some_and(|wait| wait.is_too_late_for(&lease));
            state.table.insert(place, tag, lease, owner);
        }
        if wake {
            state.waits_for = None;
        }
        wake
    }

    /// Takes out those whose deliveries have been settled or given up.
    pub(crate) fn leave(&self, places: impl Iterator<Item = usize>) {
        let mut state = lock(&self.state);
        places.for_each(|place| state.table.remove(place));
    }

    /// For each place, whether its delivery may be settled at `now`.
    pub(crate) fn trust(&self, places: impl Iterator<Item = usize>, now: Instant, answer: &mut Vec<Trust>) {
        let state = lock(&self.state);
        answer.clear();
        answer.extend(places.map(|place| state.table.trust(place, now)));
    }

    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits until `at` (for ever if `None`), or until woken.
    pub(crate) async fn wait(&self, at: Option<Instant>) {
        let woken = self.wake.notified();
        match at {
            None => woken.await,
            Some(at) => {
                // Either way the heartbeat looks again.
                let _ = tokio::time::timeout_at(at, woken).await;
            }
        }
    }

    /// What the heartbeat should do at `now`.
    pub(crate) fn beat(&self, now: Instant) -> Beat {
        let mut state = lock(&self.state);
        let Some(due_at) = state.table.next_due() else {
            // Entries that are lost already need nothing more; they count as none.
            state.waits_for = Some(WaitsFor::Entry);
            return Beat::Sleep;
        };
        let due = state.table.due(now);
        state.waits_for = due.is_empty().then_some(WaitsFor::Due(due_at));
        if due.is_empty() { Beat::Wait(due_at) } else { Beat::Renew(due, due_at) }
    }

    /// When trust in the first lease ends, for the heartbeat to wait for.
    pub(crate) fn wait_for_loss(&self) -> Option<Instant> {
        let mut state = lock(&self.state);
        let loss = state.table.next_loss();
        state.waits_for = Some(loss.map_or(WaitsFor::Entry, WaitsFor::Loss));
        loss
    }

    /// How long an answer to a renewal may take: a third of the shortest TTL leaves time for one more try.
    pub(crate) fn patience(&self) -> Option<Duration> {
        lock(&self.state).table.shortest_ttl().map(|ttl| ttl / 3)
    }

    /// Applies the answers to renewals that were sent at `sent_at`; returns whom to tell what.
    pub(crate) fn renewed(&self, answers: &[(usize, Tag, Renewal)], sent_at: Instant) -> Vec<(T, Renewal)> {
        let mut state = lock(&self.state);
        let told = answers.iter().filter_map(|(place, tag, answer)| {
            state.table.renewed(*place, *tag, sent_at, *answer).map(|owner| (owner, *answer))
        });
        told.collect()
    }

    /// Marks as lost what can no longer be believed at `now`; returns whom to tell.
    pub(crate) fn expire(&self, now: Instant) -> Vec<T> {
        lock(&self.state).table.expire(now)
    }
}
