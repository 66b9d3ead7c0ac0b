//! What can be set, and opening.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::Sqlite;
use super::schema::{self, How};
use super::store::{Time, time_of};
use crate::backend::{check_leases, wall_clock};
use crate::error::Error;

/// What a power failure may cost. A process that crashes or is killed costs nothing either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Nothing: what was acknowledged has been written to the disk (`PRAGMA synchronous = FULL`). Only hand-overs and
    /// renewals do not wait for that, since leases end with the machine.
    #[default]
    Full,
    /// The last moments: what was acknowledged since the last checkpoint of the WAL may be gone, as if it had never
    /// happened; jobs that were settled then run again (`PRAGMA synchronous = NORMAL`). Many times as fast.
    Normal,
}

/// By which clock leases run out and delayed jobs become ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// The system's, which all processes on the file share.
    #[default]
    System,
    /// Tokio's, beginning with the system's when the store is opened: for tests with a paused clock. Not for files
    /// that other processes use.
    Tokio,
}

impl Clock {
    /// From now on.
    pub(super) fn start(self) -> Running {
        Running((self == Self::Tokio).then(|| (Instant::now(), wall_clock())))
    }
}

/// A clock at work: where tokio's and the system's agree, if it is tokio's that counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Running(Option<(Instant, SystemTime)>);

impl Running {
    pub(super) fn now(self) -> Time {
        time_of(match self.0 {
            Some((instant, wall)) => wall + instant.elapsed(),
            None => wall_clock(),
        })
    }
}

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) lease_ttl: Duration,
    pub(super) max_dead: usize,
    pub(super) keep_done: Duration,
    pub(super) max_done: usize,
    pub(super) crash_limit: u32,
}

/// How a file is opened. Made by [`Sqlite::builder`].
///
/// All programs on one file should agree on the lease's time and the limits: each goes by its own.
#[derive(Clone, Debug)]
#[must_use]
pub struct SqliteBuilder {
    pub(super) path: PathBuf,
    pub(super) settings: Settings,
    pub(super) how: How,
    pub(super) clock: Clock,
    pub(super) watch_every: Duration,
    pub(super) max_payload_bytes: Option<usize>,
}

impl SqliteBuilder {
    pub(super) fn new(path: PathBuf) -> Self {
        let settings = Settings {
            lease_ttl: Duration::from_secs(30),
            max_dead: 100_000,
            keep_done: Duration::ZERO,
            max_done: 100_000,
            crash_limit: 20,
        };
        Self {
            path,
            settings,
            how: How {
                durability: Durability::default(),
                busy_timeout: Duration::from_secs(5),
                adopt: false,
            },
            clock: Clock::default(),
            watch_every: Duration::from_millis(45),
            max_payload_bytes: None,
        }
    }

    /// For how long a job belongs to a worker that does not renew its lease; up to a year. Default 30 s: a worker
    /// renews after a third of it, and a job is tried again within half a minute of its worker's end.
    pub fn lease_ttl(mut self, ttl: Duration) -> Self {
        self.settings.lease_ttl = ttl;
        self
    }

    /// How many dead letters are kept. The oldest goes when there are more, which is logged. Default 100,000.
    pub fn max_dead(mut self, jobs: usize) -> Self {
        self.settings.max_dead = jobs;
        self
    }

    /// For how long a job that is done is kept, with its payload and its attempts, to be looked at
    /// ([`JobState::Done`](crate::JobState)). Default zero: it is deleted at once, which is also the fastest. Deleted
    /// is what has been kept for its time with the next operation on the file, a thousand at a time.
    pub fn keep_done(mut self, time: Duration) -> Self {
        self.settings.keep_done = time;
        self
    }

    /// How many jobs that are done are kept. Beyond that, those go before their time that would have gone first.
    /// Default 100,000, as for dead letters.
    pub fn max_done(mut self, jobs: usize) -> Self {
        self.settings.max_done = jobs;
        self
    }

    /// In which attempt at the latest a job goes to the dead letters when its lease runs out, if it does not say
    /// so itself ([`NewJob::max_attempts`](crate::NewJob::max_attempts)). Default 20, as
    /// [`RetryPolicy`](crate::RetryPolicy) has for failures.
    pub fn crash_limit(mut self, attempts: u32) -> Self {
        self.settings.crash_limit = attempts;
        self
    }

    /// How many bytes a payload may have. Default: what the program said that set it last, for it stands in the file, and
    /// those who enqueue in transactions of their own go by it too; in a new file 16 MiB: more is better kept elsewhere
    /// and named.
    pub fn max_payload_bytes(mut self, bytes: usize) -> Self {
        self.max_payload_bytes = Some(bytes);
        self
    }

    /// Whether jobs may be kept in a database that another program has made: among its tables come some of ours, whose
    /// names begin with `tidegate_`, and its journal becomes a WAL for good. So a transaction can change what is yours
    /// and enqueue or complete a job ([`ENQUEUE_SQL`](super::ENQUEUE_SQL)). Default `false`: such a file is refused,
    /// since its name may be a mistake. Once that is done it makes no difference.
    pub fn adopt(mut self, adopt: bool) -> Self {
        self.how.adopt = adopt;
        self
    }

    /// What a power failure may cost. Default: nothing.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.how.durability = durability;
        self
    }

    /// By which clock leases run out. Default: the system's.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// For how long to wait for other processes that have locked the file, before it fails with
    /// [`Unavailable`](crate::ErrorKind::Unavailable), which a worker answers by trying again. Default 5 s. It should be
    /// below the [`call_timeout`](crate::ReconnectPolicy::call_timeout) of the workers. Nothing is lost if it is not: a
    /// settlement that a worker has given up waiting for is applied once the file is free, and the worker, trying again,
    /// hears so.
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.how.busy_timeout = timeout;
        self
    }

    /// How often a fetch that waits looks whether another process has changed the file, and how often at most it is looked
    /// whether the file is still the one at its path. Default 45 ms: a look takes some microseconds. Changes by this
    /// process are noticed at once.
    pub fn watch_every(mut self, pause: Duration) -> Self {
        self.watch_every = pause;
        self
    }

    /// Opens the file; it is made if it is not there, but its folder is not.
    ///
    /// Blocks the thread for as long as the disk takes, and at most about `busy_timeout` more.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a setting without sense, or a file of another program;
    /// [`Denied`](crate::ErrorKind::Denied) when the file can't be opened or written;
    /// [`Decode`](crate::ErrorKind::Decode) when it is corrupt or no database;
    /// [`Unsupported`](crate::ErrorKind::Unsupported) when a newer version of this crate made it.
    pub fn open(self) -> Result<Sqlite, Error> {
        self.check()?;
        let writer = schema::open(&self.path, &self.how)?;
        let max_payload_bytes = schema::bound_payloads(&writer, &self.path, self.max_payload_bytes)?;
        let watcher = schema::open(&self.path, &self.how)?;
        Ok(Sqlite::from_parts(self, writer, watcher, max_payload_bytes))
    }
    /// Refuses settings without sense.
    pub(super) fn check(&self) -> Result<(), Error> {
        let Settings { lease_ttl, crash_limit, .. } = self.settings;
        check_leases(lease_ttl, crash_limit)?;
        if self.watch_every.is_zero() {
            return Err(Error::invalid("watch_every is 0: it must be above zero"));
        }
        Ok(())
    }
}
