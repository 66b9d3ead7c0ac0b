//! Which unique keys are taken, and by whom.
//!
//! Pure. Invariants:
//!
//! 1. A name has at most one holder; only the holder frees it.
//! 2. A name taken for a period is freed by time alone, whatever becomes of its job.

use std::collections::{BTreeMap, HashMap};

use tokio::time::Instant;

use super::{KEPT_CAPACITY, later};
use crate::enqueue::{Unique, UniqueKey, Window};
use crate::job::{JobId, Kind};

/// The keys that are taken.
#[derive(Debug, Default)]
pub(super) struct Keys {
    held: HashMap<Name, Holder>,
    /// Those taken for a period, by when it ends; the number tells apart what ends at the same instant.
    periods: BTreeMap<(Instant, u64), Name>,
    numbers: u64,
}

/// Two kinds never clash.
type Name = (Kind, UniqueKey);

/// The job that holds a key; it may be finished, for a key taken for a period.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    pub(super) id: JobId,
    /// Where its record is, if it still has one.
    pub(super) key: usize,
}

impl Keys {
    /// Who holds the key.
    pub(super) fn holder(&self, kind: &Kind, unique: &Unique) -> Option<&Holder> {
        self.held.get(&name(kind, unique))
    }

    /// How many are taken for a period: these may outlive their jobs, so they have a bound of their own.
    pub(super) fn periods(&self) -> usize {
        self.periods.len()
    }

    /// Takes a free key at `now` for a job that is being enqueued.
    pub(super) fn claim(&mut self, kind: &Kind, unique: &Unique, holder: Holder, now: Instant) {
        let name = name(kind, unique);
        if let Window::For(period) = unique.window {
            if period.is_zero() {
                return;
            }
            self.numbers += 1;
            self.periods.insert((later(now, period), self.numbers), name.clone());
        }
        self.held.insert(name, holder);
    }

    /// Takes the key once more for a job that waits again, and says whether that has it now: another may
    /// have taken it meanwhile. A period is never begun anew, so it is no hindrance either.
    pub(super) fn claim_again(&mut self, kind: &Kind, unique: &Unique, holder: Holder) -> bool {
        if matches!(unique.window, Window::For(_)) {
            return true;
        }
        let id = holder.id.clone();
        self.held.entry(name(kind, unique)).or_insert(holder).id == id
    }

    /// Frees the key if the job `id` holds it, and not for a period.
    pub(super) fn free(&mut self, kind: &Kind, unique: &Unique, id: &JobId) {
        if matches!(unique.window, Window::For(_)) {
            return;
        }
        let name = name(kind, unique);
        if self.held.get(&name).is_some_and(|holder| holder.id == *id) {
            self.held.remove(&name);
            self.shrink();
        }
    }

    /// Frees the keys whose period has ended.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(ended) = self.periods.first_entry().filter(|first| first.key().0 <= now) {
            self.held.remove(&ended.remove());
            self.shrink();
        }
    }

    fn shrink(&mut self) {
        if self.held.is_empty() && self.held.capacity() > KEPT_CAPACITY {
            self.held = HashMap::new(); // give a burst's memory back (P2)
        }
    }
}

fn name(kind: &Kind, unique: &Unique) -> Name {
    (kind.clone(), unique.key.clone())
}

#[cfg(test)]
impl Keys {
    /// Who holds which key.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Kind, &UniqueKey, &Holder)> {
        self.held.iter().map(|((kind, key), holder)| (kind, key, holder))
    }
}
