//! The backends, one row each: how to get a fresh store, and what it can do.

use std::time::Duration;

use tidegate::Memory;

use crate::crippled::cripple;
use crate::fixture::{Features, Fixture, secs};

/// Timers fire at the next millisecond.
const PAUSED_SLACK: Duration = Duration::from_millis(5);

pub(crate) async fn memory() -> Option<Fixture> {
    let ttl = secs(30);
    let memory = Memory::builder().lease_ttl(ttl).crash_limit(3).build().expect("good settings");
    let has = Features { history: false, ..Features::ALL };
    Some(Fixture::of(memory.backend(), has, ttl, PAUSED_SLACK).await)
}

pub(crate) async fn crippled() -> Option<Fixture> {
    let has = Features {
        leases: false,
        delayed: false,
        priorities: false,
        unique: false,
        quotas: false,
        order: true,
        places: true,
        attributes: true,
        history: false,
        exchange: false,
    };
    Some(Fixture::of(cripple(&Memory::new()), has, secs(30), PAUSED_SLACK).await)
}

/// A file in a folder of its own, which goes with the test.
#[cfg(feature = "sqlite")]
pub(crate) async fn sqlite() -> Option<Fixture> {
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
    Some(Fixture::of(sqlite.backend(), Features::ALL, ttl, PAUSED_SLACK).await.keeping(folder))
}

/// What no row on a Redis server can do is not in this.
#[cfg(feature = "redis")]
const ON_REDIS: Features =
    Features { priorities: false, quotas: false, places: false, history: false, ..Features::ALL };

/// A server of the test's own, in Sidekiq's layout. Its clock is the real one, so a second is a tenth of one.
#[cfg(feature = "redis")]
pub(crate) async fn redis() -> Option<Fixture> {
    use tidegate::backend::redis::Redis;
    crate::fixture::shorten_seconds(10);
    let server = crate::redis_server::Options::new().start()?;
    let ttl = secs(20);
    let redis = Redis::builder(&server.url()).lease_ttl(ttl).crash_limit(3).open().expect("good settings");
    Some(Fixture::of(redis.backend(), ON_REDIS, ttl, REAL_SLACK).await.in_company().keeping(server))
}

/// The same in Resque's layout, where a job waits until a whole second has come.
#[cfg(feature = "redis")]
pub(crate) async fn resque() -> Option<Fixture> {
    use tidegate::backend::redis::{Layout, Redis};
    crate::fixture::shorten_seconds(4);
    let server = crate::redis_server::Options::new().start()?;
    let ttl = secs(20);
    let redis = Redis::builder(&server.url()).layout(Layout::Resque).lease_ttl(ttl).crash_limit(3);
    let redis = redis.open().expect("good settings");
    let has = Features { unique: false, attributes: false, ..ON_REDIS };
    let slack = Duration::from_secs(1) + REAL_SLACK;
    Some(Fixture::of(redis.backend(), has, ttl, slack).await.in_company().keeping(server))
}

/// The same, popped plainly by a user who may do what apisonator's access list allows.
#[cfg(feature = "redis")]
pub(crate) async fn plain_pop() -> Option<Fixture> {
    use tidegate::backend::redis::{Fetch, Layout, Redis};
    crate::fixture::shorten_seconds(10);
    let user = format!("app on >secret ~resque:* {}", crate::redis_server::APISONATOR_MAY);
    let server = crate::redis_server::Options::new().user(&user).start()?;
    let url = server.url().replacen("://", "://app:secret@", 1);
    let redis =
        Redis::builder(&url).layout(Layout::Resque).fetch(Fetch::PlainPop).open().expect("good settings");
    let has = Features { leases: false, delayed: false, unique: false, attributes: false, ..ON_REDIS };
    Some(Fixture::of(redis.backend(), has, secs(20), REAL_SLACK).await.keeping(server))
}

/// On a machine that has other things to do too.
#[cfg(feature = "redis")]
const REAL_SLACK: Duration = Duration::from_millis(300);
