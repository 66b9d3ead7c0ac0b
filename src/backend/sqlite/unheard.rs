//! Settlements that were applied when nobody waited for their answer any more.
//!
//! A worker gives up a call that is not answered in time, and tries the same settlement again. It is applied by then,
//! if it was on its way: the right thing, for the job has run and its lease was good. Without a memory the second one
//! would be called stale, as if the job had been given away.

use std::collections::VecDeque;

use crate::job::Tag;
use crate::source::{Settled, Stale};
use crate::sync::{Mutex, lock};

/// How many are remembered: a few of the largest batches that a worker sends. What is forgotten is at worst called
/// stale.
pub(super) const MOST_UNHEARD: usize = 4_096;

#[derive(Default)]
pub(super) struct Unheard(Mutex<VecDeque<Tag>>);

impl Unheard {
    /// These were applied, but for the stale ones, and nobody has heard of it.
    pub(super) fn note(&self, settled: &[Settled], stale: &Stale) {
        let mut tags = lock(&self.0);
        let applied = settled.iter().map(|settled| settled.tag).filter(|tag| !stale.0.contains(tag));
        tags.extend(applied);
        let beyond = tags.len().saturating_sub(MOST_UNHEARD);
        drop(tags.drain(..beyond));
    }

    /// What is stale after all: without those that were applied before, which are told now and forgotten.
    pub(super) fn without(&self, mut stale: Stale) -> Stale {
        if !stale.0.is_empty() {
            let mut tags = lock(&self.0);
            stale.0.retain(|tag| match tags.iter().position(|applied| applied == tag) {
                Some(at) => tags.remove(at).is_none(),
                None => true,
            });
        }
        stale
    }
}
