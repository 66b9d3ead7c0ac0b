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
    let has = Features { history: false, ..Features::ALL };
    Fixture::of(memory.backend(), has, ttl, PAUSED_SLACK).await
}

pub(crate) async fn crippled() -> Fixture {
    let has = Features {
        leases: false,
        delayed: false,
        priorities: false,
        unique: false,
        quotas: false,
        order: true,
        history: false,
        exchange: false,
    };
    Fixture::of(cripple(&Memory::new()), has, secs(30), PAUSED_SLACK).await
}

/// A file in a folder of its own, which goes with the test.
#[cfg(feature = "sqlite")]
pub(crate) async fn sqlite() -> Fixture {
    use tidegate::backend::sqlite::{Clock, Durability, Sqlite};
    let ttl = secs(30);
    let folder = crate::folder::Folder::new();
    let sqlite = Sqlite::builder(folder.file("jobs.sqlite"))
        .lease_ttl(ttl)
        .crash_limit(3)
        .clock(Clock::Tokio)
        .durability(Durability::Normal)
        .open()
        .expect("a new file");
    let mut fixture = Fixture::of(sqlite.backend(), Features::ALL, ttl, PAUSED_SLACK).await;
    fixture._kept = Some(Box::new(folder));
    fixture
}
