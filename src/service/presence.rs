//! A worker shown on the dashboards of its store's own world, and steered from there: [`Presence`].
//!
//! It beats on a thread of its own with a runtime and a connection of its own, so that no job delays it (P9). What it
//! tells is asked of the worker's loop; if that does not answer, the last answer is told again.

use std::fmt;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::process;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::announce::{Announce, Identity, Notice, Request, Runs};
use crate::error::{Chain, Error};
use crate::inspect::{JobPhase, JobView};
use crate::job::Queue;
use crate::limit::Queues;
use crate::retry::{backoff, less_jitter, unit_random};
use crate::shutdown::{Phase, Shutdown};
use crate::source::Connect;
use crate::worker::{State, WorkerHandle};

/// The time between two beats: Sidekiq's own.
const EVERY: Duration = Duration::from_secs(10);

/// The longest such time: what was told is forgotten after a minute, and a beat may fail.
const MAX_EVERY: Duration = Duration::from_secs(25);

/// How long a beat may take, with the connection that it may need: far less than what was told lasts.
const BEAT_LIMIT: Duration = Duration::from_secs(5);

/// How long the worker's loop may take to say what it is at. It answers within a turn, unless a job holds it up, as it
/// can under [`Dispatcher::Shared`](crate::Dispatcher::Shared).
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// How long a beat that is under way may take when the worker has ended, and taking back what was told after that: half
/// a second in all, since the process is to end in time (P7).
const FINISH_LIMIT: Duration = Duration::from_millis(200);
const WITHDRAW_LIMIT: Duration = Duration::from_millis(300);

/// The waits after beats that failed: from this one on, each up to twice as long, up to the time between two beats.
const AFTER_FAILURE: Duration = Duration::from_millis(200);

/// How many jobs are logged when somebody asks what it is at: a few screens.
const LISTED: usize = 100;

/// Shows a worker on dashboards, and lets them steer it: with the backend `redis`, in Sidekiq's Web UI and API.
/// In Resque's layout it is in the list of workers alone, where nobody steers it.
///
/// There the worker stands among the processes, with its queues, its bound and the jobs that run, and what has run is
/// charted by kind. The button "Quiet" is [`WorkerHandle::quiet`], "Stop" is [`WorkerHandle::stop`], and "dump threads"
/// logs the jobs that run. Whoever may write to the store can press them.
///
/// Not needed for jobs to run, and nothing depends on it: what it can't tell during an outage it tells afterwards. It
/// is no sign that jobs get done either: only that this process lives and reaches the store.
///
/// ```no_run
/// # #[cfg(feature = "redis")]
/// # async fn example() -> Result<(), tidegate::Error> {
/// use std::sync::Arc;
/// use tidegate::backend::redis::Redis;
/// use tidegate::service::Presence;
/// use tidegate::{Registry, Shutdown, Worker};
///
/// let jobs = Redis::open("redis://127.0.0.1/")?;
/// let worker = Worker::builder(jobs.intake(), Registry::new()).build()?;
/// let presence = Presence::new(Arc::new(jobs), worker.handle()).tag("billing");
/// let shutdown = Shutdown::new();
/// tokio::join!(worker.run(shutdown.clone()), presence.run(shutdown));
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct Presence {
    connect: Arc<dyn Connect<dyn Announce>>,
    worker: WorkerHandle,
    who: Identity,
    every: Duration,
}

impl fmt::Debug for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { who, every, .. } = self;
        f.debug_struct("Presence").field("who", who).field("every", every).finish_non_exhaustive()
    }
}

impl Presence {
    /// The presence of `worker` where `connect` leads: what [`Backend::announce`](crate::backend::Backend::announce) has,
    /// or a handle of a backend. It must be of the same handle as the worker's intake, so that jobs can be shown as they
    /// stood in their queues.
    pub fn new(connect: Arc<dyn Connect<dyn Announce>>, worker: WorkerHandle) -> Self {
        let (host, pid) = (host(), process::id());
        let id = format!("{host}:{pid}:{:012x}", RandomState::new().hash_one(pid) >> 16);
        let (tag, labels) = ("tidegate".to_owned(), Vec::new());
        let who = Identity { id, host, pid, started_at: wall_clock(), tag, labels };
        Self { connect, worker, who, every: EVERY }
    }

    /// What it is called on dashboards. Default `tidegate`, so that it can be told from other programs on the store.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.who.tag = tag.into();
        self
    }

    /// Words that stand beside its name. Default none.
    pub fn labels<L: Into<String>>(mut self, labels: impl IntoIterator<Item = L>) -> Self {
        self.who.labels = labels.into_iter().map(Into::into).collect();
        self
    }

    /// The time between two beats. What is asked of the worker is heard with the next one. Default 10 s, as in
    /// Sidekiq.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for none, and above 25 s: after a minute without a beat the
    /// worker is taken for dead.
    pub fn every(mut self, time: Duration) -> Result<Self, Error> {
        if time.is_zero() || time > MAX_EVERY {
            let what =
                format!("a presence beats every {time:?}: it must be above zero and at most {MAX_EVERY:?}");
            return Err(Error::invalid(what));
        }
        self.every = time;
        Ok(self)
    }

    /// Who it is there: `HOST:PID:12 hexadecimal digits`.
    pub fn id(&self) -> &str {
        &self.who.id
    }

    /// Beats until the worker has ended, then takes back what was told, for which it takes at most half a second. If
    /// the worker has not begun when `shutdown` is asked to stop, it ends as well.
    ///
    /// While the store can't be reached it tries on, and logs when that begins and ends. What has run is counted
    /// meanwhile, and told afterwards.
    ///
    /// # Cancel safety
    /// Dropped early, it takes back what was told in the background, within that half second.
    pub async fn run(self, shutdown: Shutdown) {
        let stop = CancellationToken::new();
        let _dropped = stop.clone().drop_guard();
        let (ended, has_ended) = oneshot::channel::<()>();
        let body = move || {
            let _ended = ended;
            match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => {
                    runtime.block_on(Beating::new(self).run(&shutdown, &stop));
                    // A look-up of a name that hangs is not waited for.
                    runtime.shutdown_background();
                }
                Err(error) => {
                    tracing::error!(%error, "the worker is not announced: the system gives no runtime")
                }
            }
        };
        match thread::Builder::new().name("tidegate-seen".to_owned()).spawn(body) {
            Ok(thread) => {
                let _ = has_ended.await;
                // It has nothing left to do but to end. A panic has been printed by the panic hook.
                let _ = thread.join();
            }
            Err(error) => tracing::error!(%error, "the worker is not announced: the system gives no thread"),
        }
    }
}

/// A presence at work.
struct Beating {
    connect: Arc<dyn Connect<dyn Announce>>,
    worker: WorkerHandle,
    who: Arc<Identity>,
    every: Duration,
    session: Option<Arc<dyn Announce>>,
    /// The jobs that ran when the worker was last asked.
    running: (Vec<JobView>, Instant),
    /// The runs that have been told.
    told: Runs,
    /// How many beats have failed in a row.
    failures: u32,
}

impl Beating {
    fn new(Presence { connect, worker, who, every }: Presence) -> Self {
        let running = (Vec::new(), Instant::now());
        let (who, told) = (Arc::new(who), Runs::new());
        Self { connect, worker, who, every, session: None, running, told, failures: 0 }
    }

    async fn run(mut self, shutdown: &Shutdown, stop: &CancellationToken) {
        let worker = self.worker.clone();
        loop {
            let finish = async {
                over(&worker, shutdown, stop).await;
                tokio::time::sleep(FINISH_LIMIT).await;
            };
            let answer = tokio::select! {
                biased;
                answer = self.beat(shutdown) => answer,
                () = finish => break,
            };
            let wait = match answer {
                Ok(requests) => {
                    self.reached();
                    requests.iter().for_each(|request| self.obey(*request, shutdown));
                    // Who has pressed a button sees soon what it did.
                    if requests.is_empty() { self.every } else { Duration::ZERO }
                }
                Err(error) => self.missed(&error),
            };
            tokio::select! {
                biased;
                () = over(&worker, shutdown, stop) => break,
                () = tokio::time::sleep(wait) => {}
            }
        }
        self.withdraw().await;
    }

    async fn beat(&mut self, shutdown: &Shutdown) -> Result<Vec<Request>, Error> {
        let runs = self.worker.runs();
        let notice = self.notice(shutdown, &runs).await;
        let beat = async {
            let session = match &self.session {
                Some(session) => session.clone(),
                None => self.session.insert(self.connect.connect().await?).clone(),
            };
            session.announce(&notice).await
        };
        let late = |_| Error::timeout(format!("announcing the worker took longer than {BEAT_LIMIT:?}"));
        let requests = timeout(BEAT_LIMIT, beat).await.map_err(late)??;
        self.told = runs;
        Ok(requests)
    }

    async fn notice(&mut self, shutdown: &Shutdown, runs: &Runs) -> Notice {
        let running = self.running().await;
        Notice {
            who: self.who.clone(),
            now: wall_clock(),
            max_concurrent_jobs: self.worker.max_concurrent_jobs(),
            queues: weights(self.worker.queues()),
            quiet: self.worker.is_quiet() || self.worker.is_stopping() || shutdown.is_stopping(),
            running,
            resident_kib: resident_kib(),
            runs: self.untold(runs),
        }
    }

    /// The jobs that run; if the worker does not say, those that did.
    async fn running(&mut self) -> Vec<JobView> {
        if let Ok(mut jobs) = timeout(ANSWER_LIMIT, self.worker.jobs()).await {
            jobs.retain(|job| !matches!(job.phase, JobPhase::Prefetched | JobPhase::Settling));
            self.running = (jobs, Instant::now());
        }
        let (jobs, asked_at) = &self.running;
        let since = asked_at.elapsed();
        let mut jobs = jobs.clone();
        jobs.iter_mut().for_each(|job| job.age += since);
        jobs
    }

    /// What has run and was not told.
    fn untold(&self, runs: &Runs) -> Runs {
        let before = |kind| self.told.get(kind).copied().unwrap_or_default();
        let since = runs.iter().map(|(kind, runs)| (kind.clone(), runs.since(&before(kind))));
        since.filter(|(_, runs)| !runs.is_empty()).collect()
    }

    fn reached(&mut self) {
        if std::mem::take(&mut self.failures) > 0 {
            tracing::info!(target = self.connect.target(), "the worker is announced again");
        }
    }

    /// Returns how long to wait.
    fn missed(&mut self, error: &Error) -> Duration {
        self.session = None;
        if self.failures == 0 {
            let (target, error) = (self.connect.target(), Chain(error));
            tracing::warn!(target, %error, "the worker can't be announced, trying on: dashboards will take it for dead");
        }
        self.failures = self.failures.saturating_add(1);
        let whole = backoff(AFTER_FAILURE, 2.0, self.every.max(AFTER_FAILURE), self.failures);
        less_jitter(whole, 0.5, unit_random((&self.who.id, self.failures)))
    }

    fn obey(&self, request: Request, shutdown: &Shutdown) {
        match request {
            Request::Quiet => {
                self.worker.quiet();
                tracing::info!(by = "dashboard", "quiet: no more jobs are taken");
            }
            // Asked twice would be asked to hurry, and a page is clicked twice easily.
            Request::Stop if self.worker.is_stopping() || shutdown.is_stopping() => {}
            Request::Stop => {
                tracing::info!(by = "dashboard", "asked to stop");
                self.worker.stop();
            }
            Request::Report => {
                for job in self.running.0.iter().take(LISTED) {
                    let JobView { id, kind, queue, attempt, phase, age, .. } = job;
                    tracing::info!(%id, %kind, %queue, attempt, ?phase, ?age, "in hand");
                }
                tracing::info!(by = "dashboard", running = self.running.0.len(), "asked what is in hand");
            }
        }
    }

    /// Takes back what was told, if that can be done in time. What remains is forgotten after a minute.
    async fn withdraw(mut self) {
        let runs = self.untold(&self.worker.runs());
        let withdraw = async {
            let session = match self.session.take() {
                Some(session) => session,
                None => self.connect.connect().await?,
            };
            session.withdraw(&self.who, &runs, wall_clock()).await
        };
        match timeout(WITHDRAW_LIMIT, withdraw).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %Chain(&error), "the worker could not be taken off dashboards");
            }
            Err(_) => {
                tracing::warn!(limit = ?WITHDRAW_LIMIT, "the worker was not taken off dashboards in time")
            }
        }
    }
}

/// Waits until there is nothing more to tell.
async fn over(worker: &WorkerHandle, shutdown: &Shutdown, stop: &CancellationToken) {
    let never_begun = async {
        shutdown.reached(Phase::Drain).await;
        if worker.stats().state != State::New {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = worker.ended() => {}
        () = stop.cancelled() => {}
        () = never_begun => {}
    }
}

/// Each queue with its weight, which is 0 where the order is strict.
fn weights(queues: Queues) -> Vec<(Queue, u32)> {
    match queues {
        Queues::All => Vec::new(),
        Queues::Strict(queues) => queues.into_iter().map(|queue| (queue, 0)).collect(),
        Queues::Weighted(queues) => queues,
    }
}

/// The machine's name. A colon would end it early in an identity.
fn host() -> String {
    let told =
        ["/proc/sys/kernel/hostname", "/etc/hostname"].iter().find_map(|file| fs::read_to_string(file).ok());
    let told = told.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    match told.trim() {
        "" => "unknown".to_owned(),
        name => name.replace(':', "-"),
    }
}

/// The memory of this process that is in use; 0 where the system does not tell.
fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[expect(clippy::disallowed_methods, reason = "the edge: what is told to people bears the time")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}
