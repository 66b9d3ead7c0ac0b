//! Opening the source that the configuration names, with the options that it gives.

use super::config::Settings;
use crate::backend::sqlite::Sqlite;
use crate::backend::{self, Backend};
use crate::cli::each::db::refuse_records;
use crate::error::Error;

/// Opens it. A file is made if it is not there.
///
/// Blocks for as long as the disk takes.
pub(super) fn open(settings: &Settings) -> Result<Backend, Error> {
    let Some(file) = settings.source.file() else {
        return backend::open(&settings.redis.url(&settings.source));
    };
    let set = &settings.sqlite;
    let mut builder = Sqlite::builder(file).max_payload_bytes(settings.worker.max_payload);
    if let Some(durability) = set.durability {
        builder = builder.durability(durability);
    }
    if let Some(time) = set.lease_ttl {
        builder = builder.lease_ttl(time);
    }
    if let Some(jobs) = set.max_dead {
        builder = builder.max_dead(jobs);
    }
    if let Some(time) = set.keep_done {
        builder = builder.keep_done(time);
    }
    if let Some(jobs) = set.max_done {
        builder = builder.max_done(jobs);
    }
    if let Some(attempts) = set.crash_limit {
        builder = builder.crash_limit(attempts);
    }
    if let Some(time) = set.busy_timeout {
        builder = builder.busy_timeout(time);
    }
    if let Some(time) = set.watch_every {
        builder = builder.watch_every(time);
    }
    if let Some(adopt) = set.adopt {
        builder = builder.adopt(adopt);
    }
    let jobs = builder.open()?;
    refuse_records(&jobs)?;
    Ok(jobs.backend())
}
