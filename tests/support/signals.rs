//! How tests make order: doors, counts, and conditions to wait for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

/// A door that stays shut until the test opens it, for some or for good.
#[derive(Debug)]
pub(crate) struct Gate {
    passes: Semaphore,
}

impl Gate {
    pub(crate) fn shut() -> Arc<Self> {
        Arc::new(Self { passes: Semaphore::new(0) })
    }

    /// Lets `more` through, now or when they come.
    pub(crate) fn let_through(&self, more: usize) {
        self.passes.add_permits(more);
    }

    /// Lets everybody through from now on.
    pub(crate) fn open(&self) {
        self.passes.close();
    }

    pub(crate) async fn pass(&self) {
        // An error says that the door is open for good.
        if let Ok(pass) = self.passes.acquire().await {
            pass.forget();
        }
    }
}

/// Counts who is inside, and how many it ever were at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inside(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    now: AtomicUsize,
    most: AtomicUsize,
    entered: AtomicUsize,
}

/// Leaves when it is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Stay(Arc<Counts>);

impl Inside {
    pub(crate) fn enter(&self) -> Stay {
        self.0.entered.fetch_add(1, Ordering::SeqCst);
        let now = self.0.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most.fetch_max(now, Ordering::SeqCst);
        Stay(self.0.clone())
    }

    pub(crate) fn now(&self) -> usize {
        self.0.now.load(Ordering::SeqCst)
    }

    pub(crate) fn most(&self) -> usize {
        self.0.most.load(Ordering::SeqCst)
    }

    /// Begins to look for the greatest number anew.
    pub(crate) fn forget_the_most(&self) {
        self.0.most.store(self.now(), Ordering::SeqCst);
    }

    pub(crate) fn entered(&self) -> usize {
        self.0.entered.load(Ordering::SeqCst)
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How long [`until`] goes on hoping: longer than any hiccup of a busy machine.
const HOPE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds; fails naming `what` if it does not within half a minute.
///
/// Looks again after a millisecond of tokio's clock, which costs nothing where that is paused.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + HOPE;
    while !condition() {
        assert!(Instant::now() < limit, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Lets everything that is ready run, without letting a paused clock move on.
pub(crate) async fn yield_often() {
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
}

/// Numbers that look random and are the same in every run: SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// A number below `sides`.
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}
