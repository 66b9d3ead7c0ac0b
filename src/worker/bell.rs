//! A word from outside to the loop: something has changed, look.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context;

use futures_util::task::AtomicWaker;

/// Rung by anybody, heard by the loop alone. Rings that come before the loop listens are heard as one.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rung: AtomicBool,
    listener: AtomicWaker,
}

impl Bell {
    pub(crate) fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        self.listener.wake();
    }

    /// Whether it was rung since it was last heard. Otherwise the next ring wakes the listener.
    pub(crate) fn poll_heard(&self, cx: &Context<'_>) -> bool {
        self.listener.register(cx.waker());
        self.rung.swap(false, Ordering::Acquire)
    }
}
