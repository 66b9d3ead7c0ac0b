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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Take,
        TakeBeyond,
        Drop(usize),
        SetLimit(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Take),
            1 => Just(Step::TakeBeyond),
            4 => (0usize..20).prop_map(Step::Drop),
            2 => (0usize..12).prop_map(Step::SetLimit),
        ]
    }

    proptest! {
        #[test]
        fn what_is_taken_is_what_is_held_and_none_is_given_beyond_the_limit(
            limit in 0usize..12, steps in proptest::collection::vec(step(), 0..100),
        ) {
            let slots = Slots::new(limit);
            let (mut limit, mut held) = (limit, Vec::new());
            for step in steps {
                match step {
                    Step::Take => {
                        let permit = slots.take();
                        prop_assert_eq!(permit.is_some(), held.len() < limit);
                        held.extend(permit);
                    }
                    Step::TakeBeyond => held.push(slots.take_beyond()),
                    Step::Drop(at) if at < held.len() => drop(held.swap_remove(at)),
                    Step::Drop(_) => {}
                    Step::SetLimit(new) => {
                        slots.set_limit(new);
                        limit = new;
                    }
                }
                prop_assert_eq!((slots.taken(), slots.limit()), (held.len(), limit));
                prop_assert_eq!(slots.free(), limit.saturating_sub(held.len()));
            }
            drop(held);
            prop_assert_eq!(slots.taken(), 0);
        }
    }

    #[test]
    fn threads_that_take_at_once_never_hold_more_than_there_are() {
        const LIMIT: usize = 3;
        let slots = Slots::new(LIMIT);
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    for _ in 0..20_000 {
                        if let Some(permit) = slots.take() {
                            assert!(slots.taken() <= LIMIT);
                            drop(permit);
                        }
                    }
                });
            }
        });
        assert_eq!(slots.taken(), 0);
    }

    #[test]
    fn clones_share_the_count_and_a_permit_outlives_them() {
        let slots = Slots::new(1);
        let clone = slots.clone();
        let permit = clone.take().expect("it is free");
        drop(clone);
        assert!(slots.take().is_none());
        drop(permit);
        assert!(slots.take().is_some());
    }
}
