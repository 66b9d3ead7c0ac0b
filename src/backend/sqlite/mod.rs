//! The backend **sqlite**: durable jobs in one file, without a server, for many processes of one machine.
//!
//! | promise | |
//! |---|---|
//! | durable | what was acknowledged survives the end of the process, and by default a power failure ([`Durability`]) |
//! | order | within a queue: greater priority first, then in the order in which jobs became available; one handed back with [`Release`](crate::Settlement::Release) and no delay keeps its place |
//! | queues | strictly in the order of the request; without any, the best job of all queues |
//! | bounds | dead letters and payload sizes, by [`SqliteBuilder`]; jobs, by the disk |
//! | leases | run out by the system's clock: any live process gives their jobs out again; a late settlement changes nothing |
//! | poison | a job whose lease runs out in its last attempt goes to the dead letters |
//! | unique keys | decided in the transaction that takes the job in, so that two producers never both win |
//! | the file | removed, or replaced by another one, while it is in use: found within [`watch_every`](SqliteBuilder::watch_every), and from then on everything that writes fails with [`NotFound`](crate::ErrorKind::NotFound) until it is opened again; what was acknowledged in between is lost with the file |
//! | waking | at once within the process; from another one within [`watch_every`](SqliteBuilder::watch_every) |
//!
//! The file must be on a local disk: SQLite's locks do not work over most network file systems. Beside it there are a
//! `-wal` and a `-shm` file while it is in use; they belong to it.
//!
//! # What is kept of a job
//!
//! Of each attempt that has ended a row is kept, at most 25 a job, for as long as the job is
//! ([`Inspect::history`]). A job that is done is deleted at once, or kept for
//! [`keep_done`](SqliteBuilder::keep_done).
//!
//! # Looking at it
//!
//! [`Inspect`] writes nothing, so it waits for nobody and keeps nobody waiting; [`SqliteReader`] needs no right to write
//! either. What time has done meanwhile is shown all the same.
//!
//! # Within a transaction of yours
//!
//! The file may hold your own tables beside ours, whose names begin with `tidegate_`
//! ([`adopt`](SqliteBuilder::adopt) puts ours into a database that you have). Then a job can be enqueued in the same
//! transaction that changes your tables, and be completed in the one that holds its effect: both become true together
//! or not at all. This goes by plain SQL on a connection of your own, from any program and any driver with SQLite 3.37
//! or newer: [`ENQUEUE_SQL`], [`ENQUEUED_SQL`], [`COMPLETE_SQL`]. `docs/sqlite.md` has more, Python too.
//!
//! ```no_run
//! use rusqlite::{Connection, TransactionBehavior, params};
//! use tidegate::backend::sqlite::COMPLETE_SQL;
//! use tidegate::{Context, Registry};
//!
//! let registry = Registry::new().handle_blocking_raw("pay", |context: Context| -> rusqlite::Result<()> {
//!     let mut mine = Connection::open("jobs.sqlite")?;
//!     let transaction = mine.transaction_with_behavior(TransactionBehavior::Immediate)?;
//!     transaction.execute("UPDATE accounts SET balance = balance - 5 WHERE name = 'Ada'", [])?;
//!     let tag = context.tag();
//!     transaction.execute(COMPLETE_SQL, params![tag.key.cast_signed(), tag.token.cast_signed()])?;
//!     transaction.commit()
//! });
//! ```

// `gate` is the one connection that writes, and where many share a transaction; `reader` is the one that only reads;
// `store` is what is done in a transaction; `schema` is what is in the file.

mod config;
mod doors;
mod failure;
mod gate;
mod place;
mod reader;
mod schema;
mod sole;
mod store;
#[cfg(test)]
mod tests;
mod turn;
mod unheard;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::Connection;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use self::config::Running;
pub use self::config::{Clock, Durability, SqliteBuilder};
pub use self::doors::{COMPLETE_SQL, ENQUEUE_SQL, ENQUEUED_SQL};
use self::gate::{Gate, Lasts, Late};
use self::place::Place;
use self::reader::Reader;
pub use self::reader::SqliteReader;
pub(crate) use self::store::Standing;
use self::store::{Handed, Time, Txn, moment};
use self::unheard::Unheard;
use super::Backend;
use crate::enqueue::{Enqueue, Enqueued, NewJob};
use crate::error::Error;
use crate::inspect::{Counts, Inspect, JobQuery, Manage, PastAttempt, StoredJob};
use crate::job::{JobId, Tag};
use crate::lease::{Lease, Reclaim, Renew, Renewal, later};
use crate::source::{Delivery, FetchRequest, Intake, Settled, Settlement, Source, Stale};
use crate::sync::{Mutex, lock};

/// The scheme of its URL, and its name.
pub(super) const SCHEME: &str = "sqlite";

/// Jobs in a file.
///
/// A handle: clones are cheap and share the file's connections, which are closed with the last of them. Nothing runs
/// in the background: the blocking pool of the runtime that asks does the work.
///
/// All verbs must be called within a tokio runtime. When one of their futures is dropped, what has begun is done to its
/// end, and what has not begun (it waits for others, or for a file that is locked) is never done. There are two
/// exceptions: a fetch gives back the jobs that it has taken, unless the process ends first; and a settlement is applied
/// in any case, since its job has run.
///
/// ```no_run
/// # async fn example() -> Result<(), tidegate::Error> {
/// use tidegate::backend::sqlite::Sqlite;
/// use tidegate::{Enqueue, NewJob, Registry, Shutdown, Worker};
///
/// let jobs = Sqlite::open("jobs.sqlite")?;
/// jobs.enqueue(vec![NewJob::new("greet", "Ada")]).await?;
/// let registry = Registry::new().handle_raw("greet", |_| async {});
/// Worker::builder(jobs.intake(), registry).build()?.run(Shutdown::new()).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Sqlite(Arc<Shared>);

struct Shared {
    gate: Arc<Gate>,
    watcher: Mutex<Connection>,
    path: PathBuf,
    lease_ttl: Duration,
    max_payload_bytes: usize,
    watch_every: Duration,
    clock: Running,
    reader: Arc<Reader>,
    unheard: Unheard,
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqlite").field("path", &self.0.path).finish_non_exhaustive()
    }
}

impl Sqlite {
    /// Opens the file with the defaults of [`SqliteBuilder`]; it is made if it is not there. A path that begins with
    /// `file:` is read as an SQLite URI.
    ///
    /// # Errors
    /// As [`SqliteBuilder::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::builder(path).open()
    }

    /// How to open the file with settings of your own.
    pub fn builder(path: impl AsRef<Path>) -> SqliteBuilder {
        SqliteBuilder::new(path.as_ref().to_owned())
    }

    fn from_parts(
        builder: SqliteBuilder,
        writer: Connection,
        watcher: Connection,
        max_payload_bytes: usize,
    ) -> Self {
        let clock = builder.clock.start();
        let reader = Arc::new(Reader::new(&builder, clock));
        let SqliteBuilder { path, settings, how, watch_every, .. } = builder;
        let lease_ttl = settings.lease_ttl;
        let place = Place::of(&path, &writer, watch_every);
        let gate = Gate::new(writer, place, &how, settings);
        let watcher = Mutex::new(watcher);
        let unheard = Unheard::default();
        let shared =
            Shared { gate, watcher, path, lease_ttl, max_payload_bytes, watch_every, clock, reader, unheard };
        Self(Arc::new(shared))
    }

    /// What a worker needs to take jobs from here.
    pub fn intake(&self) -> Intake {
        Intake::fixed(Arc::new(self.clone())).renewed_by_fixed(Arc::new(self.clone()))
    }

    /// All its verbs.
    pub fn backend(&self) -> Backend {
        Backend::complete(SCHEME, self.intake(), Arc::new(self.clone()))
    }

    /// To be asked within a transaction: what waits for the file, perhaps for seconds, must not act on a time that has
    /// passed. A lease that was granted so would have run out before it came.
    fn now(&self) -> Time {
        self.0.clock.now()
    }

    /// When the store's clock will show `time`.
    fn instant(&self, time: Time, now: Time) -> Instant {
        let wait = moment(time).duration_since(moment(now)).unwrap_or_default();
        later(Instant::now(), wait)
    }

    async fn pass<T: Send + 'static>(
        &self,
        doing: &'static str,
        act: impl FnOnce(&mut Txn<'_>, Time) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let this = self.clone();
        let act = move |txn: &mut Txn<'_>| act(txn, this.now());
        self.0.gate.pass(doing, Lasts::ForGood, Late::Skip, act, drop).await
    }

    /// Takes what is there, or says when to look again.
    async fn look(&self, wanted: FetchRequest) -> Result<(Vec<Delivery>, Instant), Error> {
        let (this, that) = (self.clone(), self.clone());
        let unheard = move |(handed, ..): (Vec<Handed>, Time, Instant)| that.give_back(&handed);
        let act = move |txn: &mut Txn<'_>| {
            let granted_at = Instant::now();
            txn.fetch(this.now(), &wanted).map(|(handed, next)| (handed, next, granted_at))
        };
        let (handed, next, granted_at) =
            self.0.gate.pass("fetching jobs", Lasts::UntilPowerFails, Late::Skip, act, unheard).await?;
        Ok((self.deliveries(handed, granted_at), self.instant(next, self.now())))
    }

    /// What was handed over in a transaction that began at `granted_at`, or later.
    fn deliveries(&self, handed: Vec<Handed>, granted_at: Instant) -> Vec<Delivery> {
        let lease = Some(Lease::new(granted_at, self.0.lease_ttl));
        let delivery = |Handed { job, attempt, tag }| Delivery { job, attempt, tag, lease };
        handed.into_iter().map(delivery).collect()
    }

    /// Whoever fetched these has gone: others may have them at once.
    fn give_back(&self, handed: &[Handed]) {
        let release =
            |handed: &Handed| Settled::new(handed.tag, Settlement::Release { after: Duration::ZERO });
        let settled: Vec<Settled> = handed.iter().map(release).collect();
        let this = self.clone();
        if !settled.is_empty() {
            let act = move |txn: &mut Txn<'_>| txn.settle(this.now(), &settled).map(|_| ());
            self.0.gate.leave_behind("handing jobs back", act);
        }
    }

    /// Waits until another process has changed the file since it had this version, or has taken it away.
    async fn changed_since(&self, before: rusqlite::Result<i64>) {
        let Ok(before) = before else { return std::future::pending().await };
        loop {
            sleep(self.0.watch_every).await;
            // If it can't be read, or is not there any more, whoever looks next says why.
            if self.0.gate.place.look().is_err() || self.version().ok() != Some(before) {
                return;
            }
        }
    }

    /// A number that changes when another connection commits: as SQLite has it in memory, a look of microseconds.
    fn version(&self) -> rusqlite::Result<i64> {
        lock(&self.0.watcher).prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
    }
}

#[async_trait]
impl Source for Sqlite {
    /// # Cancel safety
    /// Dropped while it takes jobs, it gives them back; the attempt is not counted.
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        if stop.is_cancelled() {
            return Ok(Vec::new());
        }
        let deadline = later(Instant::now(), wanted.wait);
        loop {
            // From here on it hears whenever all listeners are told, before it is first polled too; and whatever another
            // process does from here on is a change, be it done after the look and before anybody waits.
            let (bell, before) = (self.0.gate.bell.notified(), self.version());
            let (taken, next) = self.look(wanted.clone()).await?;
            if !taken.is_empty() || Instant::now() >= deadline {
                return Ok(taken);
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(Vec::new()),
                () = bell => {}
                () = self.changed_since(before) => {}
                () = sleep_until(next.min(deadline)) => {}
            }
        }
    }

    /// # Cancel safety
    /// Dropped, it is applied all the same, if by then the lease still runs. Who tries again is told that it is
    /// settled, and not that it is stale.
    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error> {
        let (settled, this, that) = (settled.to_vec(), self.clone(), self.clone());
        let unheard = move |(stale, settled): (Stale, Vec<Settled>)| that.0.unheard.note(&settled, &stale);
        let act = move |txn: &mut Txn<'_>| txn.settle(this.now(), &settled).map(|stale| (stale, settled));
        let (stale, _) = self.0.gate.pass("settling jobs", Lasts::ForGood, Late::Do, act, unheard).await?;
        Ok(self.0.unheard.without(stale))
    }

    fn fuses(&self) -> bool {
        true
    }

    /// # Cancel safety
    /// Dropped, it settles all the same, as [`settle`](Self::settle) does; it takes nothing any more, or gives back what
    /// it took.
    async fn exchange(
        &self,
        settled: &[Settled],
        wanted: &FetchRequest,
    ) -> Result<(Stale, Vec<Delivery>), Error> {
        type Done = (Stale, Vec<Handed>, Instant, Vec<Settled>);
        let (settled, wanted) = (settled.to_vec(), wanted.clone());
        let (this, that) = (self.clone(), self.clone());
        let unheard = move |(stale, handed, _, settled): Done| {
            that.0.unheard.note(&settled, &stale);
            that.give_back(&handed);
        };
        let act = move |txn: &mut Txn<'_>| {
            let (granted_at, now) = (Instant::now(), this.now());
            let stale = txn.settle(now, &settled)?;
            let handed = if txn.is_heard() { txn.fetch(now, &wanted)?.0 } else { Vec::new() };
            Ok((stale, handed, granted_at, settled))
        };
        let (stale, handed, granted_at, _) =
            self.0.gate.pass("settling and fetching jobs", Lasts::ForGood, Late::Do, act, unheard).await?;
        Ok((self.0.unheard.without(stale), self.deliveries(handed, granted_at)))
    }
}

#[async_trait]
impl Renew for Sqlite {
    async fn renew(&self, tags: &[Tag]) -> Result<Vec<Renewal>, Error> {
        let tags = tags.to_vec();
        let this = self.clone();
        let act = move |txn: &mut Txn<'_>| txn.renew(this.now(), &tags);
        self.0.gate.pass("renewing leases", Lasts::UntilPowerFails, Late::Skip, act, drop).await
    }
}

/// Leases run out by themselves, with the next call of any verb that writes; this is for rescuers that want to know how
/// many it was.
#[async_trait]
impl Reclaim for Sqlite {
    async fn reclaim(&self, max: usize) -> Result<usize, Error> {
        self.pass("taking back jobs", move |txn, now| txn.reclaim(now, max)).await
    }
}

#[async_trait]
impl Enqueue for Sqlite {
    async fn enqueue(&self, jobs: Vec<NewJob>) -> Result<Vec<Enqueued>, Error> {
        jobs.iter().try_for_each(|job| job.validate(self.0.max_payload_bytes))?;
        self.pass("enqueueing jobs", move |txn, now| txn.enqueue(now, &jobs)).await
    }
}

/// Looking writes nothing, waits for nobody who writes and keeps nobody waiting, as with [`SqliteReader`].
#[async_trait]
impl Inspect for Sqlite {
    async fn counts(&self) -> Result<Counts, Error> {
        self.0.reader.clone().counts().await
    }

    async fn find(&self, id: &JobId) -> Result<Option<StoredJob>, Error> {
        self.0.reader.clone().find(id).await
    }

    async fn list(&self, wanted: &JobQuery) -> Result<Vec<StoredJob>, Error> {
        self.0.reader.clone().list(wanted).await
    }

    /// At most the last 25 of a job, and for as long as it is kept. One that was handed back is among them.
    async fn history(&self, id: &JobId) -> Result<Vec<PastAttempt>, Error> {
        self.0.reader.clone().history(id).await
    }
}

#[async_trait]
impl Manage for Sqlite {
    async fn cancel(&self, id: &JobId) -> Result<bool, Error> {
        let id = id.clone();
        self.pass("cancelling a job", move |txn, now| txn.cancel(now, &id)).await
    }

    /// A dead job whose unique key another job has taken meanwhile stays dead: `false`.
    async fn requeue(&self, id: &JobId) -> Result<bool, Error> {
        let id = id.clone();
        self.pass("requeueing a job", move |txn, now| txn.requeue(now, &id)).await
    }

    async fn delete(&self, id: &JobId) -> Result<bool, Error> {
        let id = id.clone();
        self.pass("deleting a job", move |txn, now| txn.delete(now, &id)).await
    }
}
