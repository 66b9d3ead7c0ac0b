//! The backends, one row each: how to get a fresh store, and what it can do.

use std::time::Duration;

use tidegate::Memory;

use crate::crippled::cripple;
use crate::fixture::{Features, Fixture, secs};

/// Timers fire at the next millisecond.
const PAUSED_SLACK: Duration = Duration::from_millis(5);

pub(crate) async fn memory() -> Fixture {
    let ttl = secs(30);
    let memory = Memory::builder().lease_ttl(ttl).crash_limit(3).build().expect("good settings");
    Fixture::of(memory.backend(), Features::ALL, ttl, PAUSED_SLACK).await
}

pub(crate) async fn crippled() -> Fixture {
    let has = Features {
        leases: false,
        delayed: false,
        priorities: false,
        unique: false,
        quotas: false,
        order: true,
    };
    Fixture::of(cripple(&Memory::new()), has, secs(30), PAUSED_SLACK).await
}
