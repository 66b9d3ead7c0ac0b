//! Who waits for the store to change, and how they are woken.
//!
//! Two steps, so that no wake-up is lost and no waker runs under the store's lock: whoever finds nothing
//! registers *under the lock* that it found nothing under ([`Listeners::join`]); whoever changes something
//! reads under the lock whom that concerns, and rings once it has let go ([`Ring`]).
//!
//! While nobody waits, ringing is a comparison.

use std::pin::Pin;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::store::Effects;

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// Any job: one listener is woken for each job.
    AnyJob,
    /// Jobs of certain queues or kinds: all listeners are woken, as who is to have the job shows only when
    /// they look. There are as many as there are workers on this store, so a few.
    SomeJobs,
    /// That nothing is left to do.
    Quiet,
}

/// One bell for each.
#[derive(Debug, Default)]
pub(super) struct Bells {
    bells: [Notify; 3],
}

/// How many listen to each bell. Under the store's lock.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Listeners([usize; 3]);

/// Whom to wake.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ring {
    one_each: usize,
    all: [bool; 3],
}

impl Bells {
    /// What becomes ready when the bell is rung. If it was rung for this one and is then dropped, the ring
    /// passes on to the next listener.
    pub(super) fn bell(&self, what: For) -> Notified<'_> {
        self.bells[what as usize].notified()
    }

    pub(super) fn ring(&self, ring: Ring) {
        for _ in 0..ring.one_each {
            self.bells[For::AnyJob as usize].notify_one();
        }
        for (bell, all) in self.bells.iter().zip(ring.all) {
            if all {
                bell.notify_waiters();
            }
        }
    }
}

impl Listeners {
    /// Registers a listener: from now on no ring passes it by. Answered by [`Listeners::leave`].
    pub(super) fn join(&mut self, what: For, bell: Pin<&mut Notified<'_>>) {
        self.0[what as usize] += 1;
        bell.enable();
    }

    pub(super) fn leave(&mut self, what: For) {
        self.0[what as usize] -= 1;
    }

    /// Whom these effects concern.
    pub(super) fn concerned(&self, effects: &Effects, quiet: bool) -> Ring {
        let listens = |what: For| self.0[what as usize] > 0;
        Ring {
            one_each: effects.ready.min(self.0[For::AnyJob as usize]),
            // A timer has to be set anew, and who sets it may be gone before it goes off: so all do.
            all: [
                effects.sooner && listens(For::AnyJob),
                (effects.sooner || effects.ready > 0) && listens(For::SomeJobs),
                quiet && listens(For::Quiet),
            ],
        }
    }
}
