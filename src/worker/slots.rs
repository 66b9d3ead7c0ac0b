//! Capacity: [`Slots`] and the [`Permit`]s taken from it.
//!
//! Invariant: `taken` equals the number of live permits, since only [`Slots::take`] makes one and only its
//! drop takes it back. A permit is taken before the fetch and lives until the settlement is confirmed (P1).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many places there are, and how many are taken. Clones share the count.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    count: Arc<Count>,
}

#[derive(Debug)]
struct Count {
    limit: AtomicUsize,
    taken: AtomicUsize,
}

/// One place. Dropping it frees the place.
#[derive(Debug)]
#[must_use]
pub(crate) struct Permit {
    count: Arc<Count>,
}

impl Slots {
    pub(crate) fn new(limit: usize) -> Self {
        Self { count: Arc::new(Count { limit: AtomicUsize::new(limit), taken: AtomicUsize::new(0) }) }
    }

    /// Takes a place that is free.
    pub(crate) fn take(&self) -> Option<Permit> {
        let free = |taken: usize| (taken < self.limit()).then_some(taken + 1);
        self.count.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free).ok()?;
        Some(Permit { count: self.count.clone() })
    }

    /// Takes a place whether or not one is free, for what is here already and has to be counted.
    pub(crate) fn take_beyond(&self) -> Permit {
        self.count.taken.fetch_add(1, Ordering::Relaxed);
        Permit { count: self.count.clone() }
    }

    /// How many are free; none while more are taken than there are, after the limit was lowered.
    pub(crate) fn free(&self) -> usize {
        self.limit().saturating_sub(self.taken())
    }

    pub(crate) fn taken(&self) -> usize {
        self.count.taken.load(Ordering::Relaxed)
    }

    pub(crate) fn limit(&self) -> usize {
        self.count.limit.load(Ordering::Relaxed)
    }

    /// Raising opens places at once; lowering takes none away from those who have one.
    pub(crate) fn set_limit(&self, limit: usize) {
        self.count.limit.store(limit, Ordering::Relaxed);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.count.taken.fetch_sub(1, Ordering::Relaxed);
    }
}
