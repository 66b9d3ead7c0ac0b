//! The backend **memory**: jobs in this process, for as long as it lives.
//!
//! The reference among the backends: it has every verb, and what it does in a case of doubt is what the
//! others are held to. Right for background work that may be lost with the process, and for tests. Not
//! durable: when the last handle is dropped, or the process ends, what it holds is gone (P4 holds within
//! the process only).
//!
//! | promise | |
//! |---|---|
//! | order | within a queue: greater priority first, then in the order in which jobs became available; one handed back with [`Release`](crate::Settlement::Release) and no delay keeps its place |
//! | queues | strictly in the order of the request; without any, the best job of all queues |
//! | bounds | jobs, dead letters, remembered unique keys and payload sizes, all by [`MemoryBuilder`] |
//! | leases | run out by the monotonic clock, whether or not anybody looks; a late settlement changes nothing |
//! | poison | a job whose lease runs out in its last attempt goes to the dead letters |
//! | unique keys | decided while the job is taken in, so that two producers never both win |
//! | ids | opaque; never used twice by the same store |
//!
//! The lock is held for each operation as a whole, and never across an await. `store` is the pure part;
//! here are the lock, the clock, waiting and waking.

mod bells;
mod store;

use std::fmt;
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::futures::Notified;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use self::bells::{Bells, For, Listeners, Ring};
use self::store::{Settings, Store};
use super::{Backend, check_leases, wall_clock};
use crate::enqueue::{Enqueue, Enqueued, NewJob};
use crate::error::Error;
use crate::inspect::{Counts, Inspect, JobQuery, Manage, StoredJob};
use crate::job::{JobId, Tag};
use crate::lease::{Reclaim, Renew, Renewal, later};
use crate::source::{Delivery, FetchRequest, Intake, Settled, Source, Stale};
use crate::sync::{Mutex, MutexGuard, lock};

/// The scheme of its URL, and its name.
pub(super) const SCHEME: &str = "memory";

/// A store of jobs in this process.
///
/// A handle: clones are cheap and all the same store, which goes, with all that it holds, when the last of
/// them (and of the [`Backend`]s and [`Intake`]s made from them) is dropped. Nothing runs in the background.
///
/// Not durable, and not shared between processes.
///
/// Of all that it does only [`fetch`](Source::fetch) and [`drained`](Memory::drained) ever wait; the other
/// futures are done when they are first polled. None of them loses anything by being dropped.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tidegate::Error> {
/// use tidegate::backend::memory::Memory;
/// use tidegate::{Inspect, NewJob};
///
/// let memory = Memory::new();
/// memory.push(NewJob::new("greet", "Ada"))?;
/// assert_eq!(memory.counts().await?.ready, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Memory(Arc<Shared>);

struct Shared {
    guarded: Mutex<Guarded>,
    bells: Bells,
    max_payload_bytes: usize,
}

struct Guarded {
    store: Store,
    listeners: Listeners,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("unfinished", &self.guarded().store.unfinished())
            .finish_non_exhaustive()
    }
}

impl Memory {
    /// An empty store with the defaults of [`MemoryBuilder`].
    pub fn new() -> Self {
        Self::from_settings(MemoryBuilder::default().settings)
    }

    /// An empty store with bounds of your own.
    pub fn builder() -> MemoryBuilder {
        MemoryBuilder::default()
    }

    fn from_settings(settings: Settings) -> Self {
        let max_payload_bytes = settings.max_payload_bytes;
        let store = Store::new(settings, Instant::now());
        let guarded = Mutex::new(Guarded { store, listeners: Listeners::default() });
        Self(Arc::new(Shared { guarded, bells: Bells::default(), max_payload_bytes }))
    }

    /// What a worker needs to take jobs from here.
    pub fn intake(&self) -> Intake {
        Intake::fixed(Arc::new(self.clone())).renewed_by_fixed(Arc::new(self.clone()))
    }

    /// All its verbs.
    pub fn backend(&self) -> Backend {
        Backend::complete(SCHEME, self.intake(), Arc::new(self.clone()))
    }

    /// Enqueues one job, from anywhere: it waits for nothing and needs no runtime.
    ///
    /// # Errors
    /// As [`enqueue`](Enqueue::enqueue).
    pub fn push(&self, job: NewJob) -> Result<Enqueued, Error> {
        job.validate(self.0.max_payload_bytes)?;
        let (now, wall) = (Instant::now(), wall_clock());
        self.with(|store| store.push(now, wall, job))
    }

    /// Waits until nothing is ready, delayed or with a worker. Dead letters don't count.
    ///
    /// Says what was so at one moment: a job that is enqueued after that is not waited for. Never returns
    /// as long as a job waits and nobody takes it.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn drained(&self) {
        loop {
            let mut bell = pin!(self.0.bells.bell(For::Quiet));
            let now = Instant::now();
            let (_listener, until) = {
                let mut guarded = self.guarded();
                guarded.store.advance(now);
                if guarded.store.unfinished() == 0 {
                    return;
                }
                let until = guarded.store.next_event(now);
                (self.listen(&mut guarded, For::Quiet, bell.as_mut()), until)
            };
            tokio::select! {
                () = bell => {}
                () = sleep_until(until) => {} // a lease may run out in a job's last attempt
            }
        }
    }

    /// How many dead letters had to go to make room for newer ones, since the store was made. Each time is
    /// logged too.
    pub fn dropped_dead_letters(&self) -> u64 {
        self.guarded().store.dropped_dead()
    }

    fn guarded(&self) -> MutexGuard<'_, Guarded> {
        lock(&self.0.guarded)
    }

    /// Does something to the store, then tells whom it concerns.
    fn with<T>(&self, act: impl FnOnce(&mut Store) -> T) -> T {
        let mut guarded = self.guarded();
        let answer = act(&mut guarded.store);
        let after = After::of(&mut guarded);
        drop(guarded);
        self.tell(after);
        answer
    }

    fn tell(&self, after: After) {
        self.0.bells.ring(after.ring);
        if after.dropped_dead > 0 {
            let (dropped, in_all) = (after.dropped_dead, after.dropped_dead_in_all);
            tracing::warn!(dropped, in_all, "the oldest dead letters went to make room: max_dead is reached");
        }
    }

    /// Takes what is there or, if that is nothing and there is time left, listens; also says until when.
    fn look(
        &self,
        now: Instant,
        deadline: Instant,
        wanted: &FetchRequest,
        what: For,
        bell: Pin<&mut Notified<'_>>,
    ) -> ControlFlow<Vec<Delivery>, (Listener<'_>, Instant)> {
        let mut guarded = self.guarded();
        let taken = guarded.store.fetch(now, wanted);
        let after = After::of(&mut guarded);
        let found = if taken.is_empty() && now < deadline {
            let until = guarded.store.next_event(now).min(deadline);
            ControlFlow::Continue((self.listen(&mut guarded, what, bell), until))
        } else {
            ControlFlow::Break(taken)
        };
        drop(guarded);
        self.tell(after);
        found
    }

    fn listen(&self, guarded: &mut Guarded, what: For, bell: Pin<&mut Notified<'_>>) -> Listener<'_> {
        guarded.listeners.join(what, bell);
        Listener { memory: self, what }
    }
}

/// What is left to do once the lock is free.
struct After {
    ring: Ring,
    dropped_dead: u64,
    dropped_dead_in_all: u64,
}

impl After {
    fn of(guarded: &mut Guarded) -> Self {
        let Guarded { store, listeners } = guarded;
        let effects = store.take_effects();
        Self {
            ring: listeners.concerned(&effects, store.unfinished() == 0),
            dropped_dead: effects.dropped_dead,
            dropped_dead_in_all: store.dropped_dead(),
        }
    }
}

/// Counts as a listener until it is dropped.
struct Listener<'a> {
    memory: &'a Memory,
    what: For,
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        self.memory.guarded().listeners.leave(self.what);
    }
}

#[async_trait]
impl Source for Memory {
    /// # Cancel safety
    /// Dropping the future loses nothing: jobs are taken in the same step in which it returns.
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        let what =
            if wanted.queues.is_empty() && wanted.quotas.is_empty() { For::AnyJob } else { For::SomeJobs };
        if stop.is_cancelled() {
            return Ok(Vec::new());
        }
        let mut now = Instant::now();
        let deadline = later(now, wanted.wait);
        loop {
            let mut bell = pin!(self.0.bells.bell(what));
            let (_listener, until) = match self.look(now, deadline, wanted, what, bell.as_mut()) {
                ControlFlow::Break(taken) => return Ok(taken),
                ControlFlow::Continue(wait) => wait,
            };
            // Who has heard the bell looks once more, stopped or not: it rang for nobody else. A ring that
            // comes together with the stop is not heard, and passes on.
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(Vec::new()),
                () = bell => {}
                () = sleep_until(until) => {}
            }
            now = Instant::now();
        }
    }

    /// # Cancel safety
    /// Never waits: it is done when it is first polled.
    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error> {
        Ok(self.with(|store| store.settle(Instant::now(), settled)))
    }

    fn fuses(&self) -> bool {
        true
    }

    /// # Cancel safety
    /// Never waits: it is done when it is first polled.
    async fn exchange(
        &self,
        settled: &[Settled],
        wanted: &FetchRequest,
    ) -> Result<(Stale, Vec<Delivery>), Error> {
        let now = Instant::now();
        Ok(self.with(|store| (store.settle(now, settled), store.fetch(now, wanted))))
    }
}

#[async_trait]
impl Renew for Memory {
    async fn renew(&self, tags: &[Tag]) -> Result<Vec<Renewal>, Error> {
        Ok(self.with(|store| store.renew(Instant::now(), tags)))
    }
}

/// Leases run out by themselves, with the next call of any verb; this is for rescuers that want to know how
/// many it was.
#[async_trait]
impl Reclaim for Memory {
    async fn reclaim(&self, max: usize) -> Result<usize, Error> {
        Ok(self.with(|store| store.reclaim(Instant::now(), max)))
    }
}

#[async_trait]
impl Enqueue for Memory {
    async fn enqueue(&self, jobs: Vec<NewJob>) -> Result<Vec<Enqueued>, Error> {
        jobs.iter().try_for_each(|job| job.validate(self.0.max_payload_bytes))?;
        let (now, wall) = (Instant::now(), wall_clock());
        self.with(|store| store.enqueue(now, wall, jobs))
    }
}

#[async_trait]
impl Inspect for Memory {
    async fn counts(&self) -> Result<Counts, Error> {
        Ok(self.with(|store| store.counts(Instant::now(), wall_clock())))
    }

    async fn find(&self, id: &JobId) -> Result<Option<StoredJob>, Error> {
        Ok(self.with(|store| store.find(Instant::now(), wall_clock(), id)))
    }

    async fn list(&self, wanted: &JobQuery) -> Result<Vec<StoredJob>, Error> {
        Ok(self.with(|store| store.view_all(Instant::now(), wall_clock(), wanted)))
    }
}

#[async_trait]
impl Manage for Memory {
    async fn cancel(&self, id: &JobId) -> Result<bool, Error> {
        Ok(self.with(|store| store.cancel(Instant::now(), id)))
    }

    /// A dead job whose unique key another job has taken meanwhile stays dead: `false`.
    async fn requeue(&self, id: &JobId) -> Result<bool, Error> {
        self.with(|store| store.requeue(Instant::now(), id))
    }

    async fn delete(&self, id: &JobId) -> Result<bool, Error> {
        Ok(self.with(|store| store.delete(Instant::now(), id)))
    }
}

/// The bounds of a [`Memory`].
#[derive(Clone, Debug)]
#[must_use]
pub struct MemoryBuilder {
    settings: Settings,
}

impl Default for MemoryBuilder {
    fn default() -> Self {
        let settings = Settings {
            lease_ttl: Duration::from_secs(30),
            max_jobs: 1_000_000,
            max_dead: 10_000,
            crash_limit: 20,
            max_payload_bytes: 16 << 20,
        };
        Self { settings }
    }
}

impl MemoryBuilder {
    /// For how long a job belongs to a worker that does not renew its lease; up to a year. Default 30 s: a
    /// worker renews after a third of it, and a job is tried again within half a minute of its worker's end.
    pub fn lease_ttl(mut self, ttl: Duration) -> Self {
        self.settings.lease_ttl = ttl;
        self
    }

    /// How many jobs may be ready, delayed or with a worker at a time, and as many unique keys may be taken
    /// for a period. Beyond it `enqueue` fails with [`Full`](crate::ErrorKind::Full), and takes none of the
    /// batch. Default 1,000,000: some 350 MB of small jobs.
    pub fn max_jobs(mut self, jobs: usize) -> Self {
        self.settings.max_jobs = jobs;
        self
    }

    /// How many dead letters are kept. The oldest goes when there are more, which is logged and counted.
    /// Default 10,000, as in Sidekiq.
    pub fn max_dead(mut self, jobs: usize) -> Self {
        self.settings.max_dead = jobs;
        self
    }

    /// In which attempt at the latest a job goes to the dead letters when its lease runs out, if it does
    /// not say so itself ([`NewJob::max_attempts`]). Default 20, as
    /// [`RetryPolicy`](crate::RetryPolicy) has for failures.
    pub fn crash_limit(mut self, attempts: u32) -> Self {
        self.settings.crash_limit = attempts;
        self
    }

    /// How many bytes a payload may have. Default 16 MiB: more is better kept elsewhere and named.
    pub fn max_payload_bytes(mut self, bytes: usize) -> Self {
        self.settings.max_payload_bytes = bytes;
        self
    }

    /// An empty store with these bounds.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) when the lease's time is zero or longer than a year,
    /// or when `max_jobs` or `crash_limit` is zero.
    pub fn build(self) -> Result<Memory, Error> {
        let Settings { lease_ttl, max_jobs, crash_limit, .. } = self.settings;
        check_leases(lease_ttl, crash_limit)?;
        if max_jobs == 0 {
            return Err(Error::invalid("max_jobs is 0: it must be at least 1"));
        }
        Ok(Memory::from_settings(self.settings))
    }
}
