//! Looking at a running worker and steering it: [`WorkerHandle`], [`Stats`].

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::announce::Runs;
use crate::error::Error;
use crate::inspect::JobView;
use crate::job::JobId;
use crate::limit::Queues;
use crate::registry::Registry;
use crate::shutdown::Shutdown;
use crate::sync::{Mutex, lock};
use crate::worker::bell::Bell;
use crate::worker::changes::{Changes, KindDefaults};
use crate::worker::config::check_max_concurrent_jobs;
use crate::worker::reconnect::ConnectionState;
use crate::worker::slots::Slots;

/// Questions to the loop that may wait for it at once; a further one waits for its turn.
const MAX_QUESTIONS: usize = 16;

/// A handle to a [`Worker`](crate::Worker): clone it freely. It does not keep the worker running, and it
/// still answers (with the last state) when the worker has ended.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    pub(crate) control: Arc<Control>,
}

/// What the loop shares with its handles.
#[derive(Debug)]
pub(crate) struct Control {
    /// How many may run; the loop takes its permits from here.
    pub(crate) running: Slots,
    /// Tells the loop of any change.
    pub(crate) bell: Arc<Bell>,
    /// Stops this worker, whoever else shares the switch that it was given.
    pub(crate) stop: Shutdown,
    quiet: AtomicBool,
    stats: Mutex<Stats>,
    pub(crate) connection: Arc<watch::Sender<ConnectionState>>,
    /// Settings that wait for the loop.
    pub(crate) changes: Changes,
    /// Those that are served, or will be from the loop's next turn on.
    queues: Mutex<Queues>,
    /// Cancelled when the loop has ended.
    ended: CancellationToken,
    defaults: KindDefaults,
    /// Questions that wait for the loop; bounded by the permits.
    questions: Mutex<Vec<Question>>,
    permits: Semaphore,
}

/// What only the loop can answer.
#[derive(Debug)]
pub(crate) enum Question {
    Jobs(oneshot::Sender<Vec<JobView>>),
    Cancel(JobId, oneshot::Sender<bool>),
}

impl Control {
    pub(crate) fn new(max_concurrent_jobs: usize, queues: Queues, defaults: KindDefaults) -> Self {
        Self {
            running: Slots::new(max_concurrent_jobs),
            bell: Arc::default(),
            stop: Shutdown::new(),
            quiet: AtomicBool::new(false),
            stats: Mutex::new(Stats::default()),
            connection: Arc::default(),
            changes: Changes::default(),
            queues: Mutex::new(queues),
            ended: CancellationToken::new(),
            defaults,
            questions: Mutex::new(Vec::new()),
            permits: Semaphore::new(MAX_QUESTIONS),
        }
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Relaxed)
    }

    pub(crate) fn publish(&self, stats: Stats) {
        *lock(&self.stats) = stats;
    }

    /// Rings the bell at each change of either switch, for ever.
    pub(crate) async fn listen(&self, shutdown: &Shutdown) -> Infallible {
        let (mut theirs, mut ours) = (shutdown.subscribe(), self.stop.subscribe());
        loop {
            theirs.mark_unchanged();
            ours.mark_unchanged();
            self.bell.ring();
            // Neither sender goes away: both switches are borrowed here.
            tokio::select! {
                _ = theirs.changed() => {}
                _ = ours.changed() => {}
            }
        }
    }

    /// Takes the questions that wait.
    pub(crate) fn take_questions(&self) -> Vec<Question> {
        std::mem::take(&mut *lock(&self.questions))
    }
}

/// Belongs to the loop: when that has ended, or was dropped, or has panicked, nobody is left waiting for an answer.
pub(crate) struct Ended(pub(crate) Arc<Control>);

impl Drop for Ended {
    fn drop(&mut self) {
        lock(&self.0.stats).state = State::Ended;
        // Whoever asks from now on sees that it has ended; who has asked meanwhile is answered by this.
        drop(self.0.take_questions());
        self.0.ended.cancel();
    }
}

impl WorkerHandle {
    /// Fetches nothing new until [`resume`](Self::resume); running jobs go on. Deliveries that were fetched
    /// ahead still run.
    pub fn quiet(&self) {
        self.set_quiet(true);
    }

    /// Fetches again after [`quiet`](Self::quiet).
    pub fn resume(&self) {
        self.set_quiet(false);
    }

    /// Whether it was told to be quiet.
    pub fn is_quiet(&self) -> bool {
        self.control.is_quiet()
    }

    /// Stops the worker, as [`Shutdown::stop`] does for all that share the switch: drain, and sooner with
    /// each further call.
    pub fn stop(&self) {
        self.control.stop.stop();
    }

    /// Changes the bound while the worker runs. Raised, new slots are filled at once; lowered, running jobs
    /// finish and their slots close behind them.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) outside of 1 to
    /// [`MAX_CONCURRENT_JOBS`](crate::worker::MAX_CONCURRENT_JOBS); nothing is changed then.
    pub fn set_max_concurrent_jobs(&self, jobs: usize) -> Result<(), Error> {
        check_max_concurrent_jobs(jobs)?;
        self.control.running.set_limit(jobs);
        self.control.bell.ring();
        Ok(())
    }

    /// The bound now.
    pub fn max_concurrent_jobs(&self) -> usize {
        self.control.running.limit()
    }

    /// Serves these queues from now on, in this order. A fetch that is under way for others is told to return; what
    /// has been fetched already is run.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) as when building a worker; nothing is changed then.
    pub fn set_queues(&self, queues: Queues) -> Result<(), Error> {
        queues.validate()?;
        lock(&self.control.queues).clone_from(&queues);
        self.control.changes.queues(queues);
        self.control.bell.ring();
        Ok(())
    }

    /// The queues that it serves, in this order.
    pub fn queues(&self) -> Queues {
        lock(&self.control.queues).clone()
    }

    /// Runs what is fetched from now on by this registry in place of the one before: handlers, layers, and the
    /// options of kinds. Jobs in hand keep the handlers and options that they were fetched with, but count against
    /// the new caps. A kind without options gets the timeout and the retry policy that the worker was built with.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) as when building a worker; nothing is changed then.
    pub fn set_registry(&self, registry: Registry) -> Result<(), Error> {
        self.control.changes.registered(self.control.defaults.register(registry)?);
        self.control.bell.ring();
        Ok(())
    }

    /// What it has done so far, and what it holds: numbers of one moment, whose books balance.
    pub fn stats(&self) -> Stats {
        *lock(&self.control.stats)
    }

    /// What has run so far, by kind.
    pub(crate) fn runs(&self) -> Runs {
        self.control.defaults.tallies.read()
    }

    /// Whether [`stop`](Self::stop) was called.
    pub fn is_stopping(&self) -> bool {
        self.control.stop.is_stopping()
    }

    /// Waits until the worker has ended, however that came; for ever if it is never run.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn ended(&self) {
        self.control.ended.cancelled().await;
    }

    /// The state of the connection to the source.
    pub fn connection(&self) -> watch::Receiver<ConnectionState> {
        self.control.connection.subscribe()
    }

    /// The jobs in flight: those that were fetched ahead, run, or wait for their settlement. Empty when the
    /// worker has not begun or has ended.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn jobs(&self) -> Vec<JobView> {
        self.ask(Question::Jobs).await.unwrap_or_default()
    }

    /// Tells a job in flight to stop, with [`CancelReason::Requested`](crate::CancelReason::Requested);
    /// unless it finishes all the same it goes to the dead letters. Returns whether it is in flight here.
    ///
    /// # Cancel safety
    /// Dropped early, the job may or may not be cancelled.
    pub async fn cancel_job(&self, id: &JobId) -> bool {
        self.ask(|answer| Question::Cancel(id.clone(), answer)).await.unwrap_or(false)
    }

    async fn ask<A>(&self, question: impl FnOnce(oneshot::Sender<A>) -> Question) -> Option<A> {
        // The semaphore is never closed.
        let _permit = self.control.permits.acquire().await.ok()?;
        let (answer, answered) = oneshot::channel();
        lock(&self.control.questions).push(question(answer));
        if self.stats().state != State::Running {
            // Whether the loop has seen it or not: nobody will any more.
            self.control.take_questions();
        }
        self.control.bell.ring();
        answered.await.ok()
    }

    fn set_quiet(&self, quiet: bool) {
        self.control.quiet.store(quiet, Ordering::Relaxed);
        self.control.bell.ring();
    }
}

/// Whether a worker has begun or ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// [`Worker::run`](crate::Worker::run) has not been awaited yet.
    #[default]
    New,
    /// It runs.
    Running,
    /// It has ended.
    Ended,
}

/// What a worker has done and what it holds.
///
/// At every moment `fetched` is the sum of `done`, `retried`, `rejected`, `snoozed`, `released`, `lost`,
/// `stale` and `in_flight`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Whether it has begun or ended.
    pub state: State,
    /// Deliveries that the source handed over.
    pub fetched: u64,
    /// Attempts that were started.
    pub started: u64,
    /// Acknowledged: the job is finished.
    pub done: u64,
    /// Failed and given back for another attempt.
    pub retried: u64,
    /// Given up, to the dead letters.
    pub rejected: u64,
    /// Put off by their handler.
    pub snoozed: u64,
    /// Handed back uncounted, at shutdown or for another worker.
    pub released: u64,
    /// Not settled since their lease was lost, or since they still ran when the worker had to end.
    pub lost: u64,
    /// Settled too late: the source had given them to someone else.
    pub stale: u64,
    /// In hand: fetched ahead, running, or waiting for their settlement.
    pub in_flight: u64,
    /// Of these, running.
    pub running: u64,
    /// Attempts that failed, for whatever reason; each is among `retried` or `rejected` too.
    pub failed: u64,
    /// Attempts that panicked.
    pub panicked: u64,
    /// Attempts that ran into their timeout.
    pub timed_out: u64,
    /// Attempts that were dropped at an await point since they did not stop when told to.
    pub aborted: u64,
    /// Batches of settlements that failed and were kept to be tried again.
    pub settle_failures: u64,
}
