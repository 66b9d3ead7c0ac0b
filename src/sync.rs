//! What is shared between threads is built from these, so that loom can take their place.
//!
//! Built with `--cfg tidegate_loom` (a name of our own: under `--cfg loom` tokio would drop its sockets and
//! signals), the tests of `worker::leases` run under loom's scheduler.

#[cfg(not(tidegate_loom))]
pub(crate) use std::sync::{Mutex, MutexGuard};

#[cfg(tidegate_loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard};

/// Locks, and goes on if another thread panicked while it held the lock: every critical section of this
/// crate leaves what it guards whole at each point where it could panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
