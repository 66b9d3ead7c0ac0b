//! What the loop counts of each kind's attempts, for who announces the worker.
//!
//! The counters only grow: who tells them elsewhere remembers what it has told, so nothing is lost with an answer that
//! fails, and nobody waits for anybody. They are kept for good, one set for each kind that ever had a handler.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::announce::{KindRuns, Runs, bucket_of};
use crate::job::Kind;
use crate::sync::{Mutex, lock};

/// The counters of one kind. Only the loop writes them.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    failed: AtomicU64,
    run_ms: AtomicU64,
    by_time: [AtomicU64; KindRuns::BUCKETS],
}

impl Tally {
    /// An attempt was done that took so long.
    pub(crate) fn done(&self, run_time: Duration) {
        add(&self.run_ms, run_time.as_millis() as u64);
        add(&self.by_time[bucket_of(run_time)], 1);
    }

    /// An attempt has failed.
    pub(crate) fn failed(&self) {
        add(&self.failed, 1);
    }

    fn read(&self) -> KindRuns {
        let mut runs = KindRuns {
            failed: self.failed.load(Ordering::Relaxed),
            run_ms: self.run_ms.load(Ordering::Relaxed),
            ..KindRuns::default()
        };
        for (count, counter) in runs.by_time.iter_mut().zip(&self.by_time) {
            *count = counter.load(Ordering::Relaxed);
        }
        runs.done = runs.by_time.iter().sum();
        runs
    }
}

/// There is one writer at a time, so this need not be one step.
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

/// The counters of all kinds.
#[derive(Debug, Default)]
pub(crate) struct Tallies(Mutex<BTreeMap<Kind, Arc<Tally>>>);

impl Tallies {
    /// Those of this kind, which go on if it had a handler before.
    pub(crate) fn of(&self, kind: &Kind) -> Arc<Tally> {
        lock(&self.0).entry(kind.clone()).or_default().clone()
    }

    /// What they say now.
    pub(crate) fn read(&self) -> Runs {
        lock(&self.0).iter().map(|(kind, tally)| (kind.clone(), tally.read())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_come_since_is_the_difference() {
        let tallies = Tallies::default();
        let kind = Kind::new("mail");
        tallies.of(&kind).done(Duration::from_millis(25));
        let before = tallies.read()[&kind];
        tallies.of(&kind).done(Duration::from_millis(25));
        tallies.of(&kind).failed();
        let since = tallies.read()[&kind].since(&before);
        assert_eq!((since.done, since.failed, since.run_ms, since.by_time[1]), (1, 1, 25, 1));
        assert!(before.since(&before).is_empty());
    }
}
