//! Which unique keys are taken, and by whom.
//!
//! Pure. Invariants:
//!
//! 1. A key that anybody holds is taken by no new job.
//! 2. A key is free again only when all who hold it have let go: a job that has to wait once more joins
//!    whoever took its key meanwhile.
//! 3. Who holds a key for a period lets go of it by time alone, whatever becomes of the job.
//! 4. All who are with a worker are known by their key, whether they hold it or not: a newer job may take
//!    their place.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use tokio::time::Instant;

use super::KEPT_CAPACITY;
use crate::enqueue::{Unique, UniqueKey, Window};
use crate::job::{JobId, Kind};
use crate::lease::later;

/// The keys that are taken, or that somebody who is with a worker has.
#[derive(Debug, Default)]
pub(super) struct Keys {
    known: HashMap<Name, Known>,
    /// Those taken for a period, by when it ends; the number tells apart what ends at the same instant.
    periods: BTreeMap<(Instant, u64), (Name, JobId)>,
    numbers: u64,
}

/// Two kinds never clash.
type Name = (Kind, UniqueKey);

/// Who has a key.
#[derive(Debug, Default)]
struct Known {
    /// Who holds it. Those behind the first are jobs that wait once more while that holds their key.
    holders: Few<Holder>,
    /// Where the records of those are that are with a worker.
    running: Few<usize>,
}

/// Hardly ever more than one, and an empty vector has no allocation.
#[derive(Debug)]
struct Few<T> {
    first: Option<T>,
    /// Empty if there is no first.
    more: Vec<T>,
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
        self.known.get(&name(kind, unique))?.holders.first.as_ref()
    }

    /// Who holds the key beside the first.
    pub(super) fn joined(&self, kind: &Kind, unique: &Unique) -> &[Holder] {
        self.known.get(&name(kind, unique)).map_or(&[], |known| &known.holders.more)
    }

    /// Where the records of those are that have the key and are with a worker.
    pub(super) fn running(&self, kind: &Kind, unique: &Unique) -> impl Iterator<Item = usize> {
        let known = self.known.get(&name(kind, unique));
        known.into_iter().flat_map(|known| known.running.iter().copied())
    }

    /// A job that has the key is with a worker from now on.
    pub(super) fn goes_out(&mut self, kind: &Kind, unique: &Unique, key: usize) {
        self.known.entry(name(kind, unique)).or_default().running.push(key);
    }

    /// A job that has the key is with a worker no more.
    pub(super) fn comes_back(&mut self, kind: &Kind, unique: &Unique, key: usize) {
        self.forget(name(kind, unique), |known| known.running.remove(|other| *other == key));
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
        self.known.entry(name).or_default().holders.push(holder);
    }

    /// For a job that waits once more: it takes its key, or joins who has taken it meanwhile. A period is
    /// never begun anew.
    pub(super) fn claim_again(&mut self, kind: &Kind, unique: &Unique, holder: Holder) {
        if matches!(unique.window, Window::For(_)) {
            return;
        }
        let holders = &mut self.known.entry(name(kind, unique)).or_default().holders;
        if !holders.iter().any(|other| other.id == holder.id) {
            holders.push(holder);
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
        self.forget(name, |known| known.holders.remove(|holder| holder.id == *id));
    }

    /// Removes somebody from a key, and the key if nobody has it any more.
    fn forget(&mut self, name: Name, remove: impl FnOnce(&mut Known)) {
        let Entry::Occupied(mut entry) = self.known.entry(name) else { return };
        remove(entry.get_mut());
        if entry.get().holders.first.is_none() && entry.get().running.first.is_none() {
            entry.remove();
            if self.known.is_empty() && self.known.capacity() > KEPT_CAPACITY {
                self.known = HashMap::new(); // give a burst's memory back (P2)
            }
        }
    }
}

impl<T> Few<T> {
    fn iter(&self) -> impl Iterator<Item = &T> {
        self.first.iter().chain(&self.more)
    }

    fn push(&mut self, one: T) {
        match self.first {
            None => self.first = Some(one),
            Some(_) => self.more.push(one),
        }
    }

    /// Whoever came next is the first if that goes.
    fn remove(&mut self, is: impl Fn(&T) -> bool) {
        self.more.retain(|one| !is(one));
        if self.first.as_ref().is_some_and(&is) {
            self.first = (!self.more.is_empty()).then(|| self.more.remove(0));
        }
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self { first: None, more: Vec::new() }
    }
}

fn name(kind: &Kind, unique: &Unique) -> Name {
    (kind.clone(), unique.key.clone())
}

#[cfg(test)]
impl Keys {
    /// Who holds which key, and whether for a period.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Kind, &UniqueKey, &Holder, bool)> {
        self.known.iter().flat_map(move |(name, known)| {
            let period = move |id: &JobId| self.periods.values().any(|(other, of)| other == name && of == id);
            known.holders.iter().map(move |holder| (&name.0, &name.1, holder, period(&holder.id)))
        })
    }

    /// Who is with a worker, by which key.
    pub(super) fn all_running(&self) -> impl Iterator<Item = (&Kind, &UniqueKey, usize)> {
        self.known.iter().flat_map(|(name, known)| known.running.iter().map(|key| (&name.0, &name.1, *key)))
    }

    /// How many there are that anybody has.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}
