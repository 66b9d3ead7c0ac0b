//! Which unique keys are taken, and by whom.
//!
//! Pure. Invariants:
//!
//! 1. A key that anybody holds is taken by no new job.
//! 2. A key is free again only when all who hold it have let go: a job that has to wait once more joins
//!    whoever took its key meanwhile.
//! 3. Who holds a key for a period lets go of it by time alone, whatever becomes of the job.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use tokio::time::Instant;

use super::KEPT_CAPACITY;
use crate::enqueue::{Unique, UniqueKey, Window};
use crate::job::{JobId, Kind};
use crate::lease::later;

/// The keys that are taken.
#[derive(Debug, Default)]
pub(super) struct Keys {
    held: HashMap<Name, Held>,
    /// Those taken for a period, by when it ends; the number tells apart what ends at the same instant.
    periods: BTreeMap<(Instant, u64), (Name, JobId)>,
    numbers: u64,
}

/// Two kinds never clash.
type Name = (Kind, UniqueKey);

/// Who holds a key.
#[derive(Debug)]
struct Held {
    first: Holder,
    /// Jobs that wait once more while the first holds their key. Hardly ever any, and an empty vector has
    /// no allocation.
    joined: Vec<Holder>,
}

/// A job that holds a key; it may be finished, if it holds it for a period.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    pub(super) id: JobId,
    /// Where its record is, if it still has one.
    pub(super) key: usize,
}

impl Keys {
    /// Who holds the key, and stands for others that would.
    pub(super) fn holder(&self, kind: &Kind, unique: &Unique) -> Option<&Holder> {
        self.held.get(&name(kind, unique)).map(|held| &held.first)
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
            self.periods.insert((later(now, period), self.numbers), (name.clone(), holder.id.clone()));
        }
        self.held.insert(name, Held { first: holder, joined: Vec::new() });
    }

    /// For a job that waits once more: it takes its key, or joins who has taken it meanwhile. A period is
    /// never begun anew.
    pub(super) fn claim_again(&mut self, kind: &Kind, unique: &Unique, holder: Holder) {
        if matches!(unique.window, Window::For(_)) {
            return;
        }
        match self.held.entry(name(kind, unique)) {
            Entry::Vacant(free) => _ = free.insert(Held { first: holder, joined: Vec::new() }),
            Entry::Occupied(mut held) if !held.get().is_held_by(&holder.id) => {
                held.get_mut().joined.push(holder)
            }
            Entry::Occupied(_) => {}
        }
    }

    /// Lets go of the key for the job `id`, unless it holds it for a period.
    pub(super) fn free(&mut self, kind: &Kind, unique: &Unique, id: &JobId) {
        if !matches!(unique.window, Window::For(_)) {
            self.let_go(name(kind, unique), id);
        }
    }

    /// Lets go of the keys whose period has ended.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(ended) = self.periods.first_entry().filter(|first| first.key().0 <= now) {
            let (name, id) = ended.remove();
            self.let_go(name, &id);
        }
    }

    fn let_go(&mut self, name: Name, id: &JobId) {
        let Entry::Occupied(mut entry) = self.held.entry(name) else { return };
        let held = entry.get_mut();
        if held.first.id != *id {
            held.joined.retain(|holder| holder.id != *id);
        } else if held.joined.is_empty() {
            entry.remove();
            if self.held.is_empty() && self.held.capacity() > KEPT_CAPACITY {
                self.held = HashMap::new(); // give a burst's memory back (P2)
            }
        } else {
            held.first = held.joined.remove(0);
        }
    }
}

impl Held {
    fn is_held_by(&self, id: &JobId) -> bool {
        self.first.id == *id || self.joined.iter().any(|holder| holder.id == *id)
    }
}

fn name(kind: &Kind, unique: &Unique) -> Name {
    (kind.clone(), unique.key.clone())
}

#[cfg(test)]
impl Keys {
    /// Who holds which key, and whether for a period.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Kind, &UniqueKey, &Holder, bool)> {
        self.held.iter().flat_map(move |(name, held)| {
            let period = move |id: &JobId| self.periods.values().any(|(other, of)| other == name && of == id);
            let holders = std::iter::once(&held.first).chain(&held.joined);
            holders.map(move |holder| (&name.0, &name.1, holder, period(&holder.id)))
        })
    }
}
