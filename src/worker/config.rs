//! The worker's settings: [`WorkerBuilder`] and [`Limits`].

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::handler::HandlerService;
use crate::job::Kind;
use crate::limit::Queues;
use crate::registry::Registry;
use crate::retry::{Fnv, RetryPolicy};
use crate::source::Intake;
use crate::telemetry::{ConnectionTelemetry, KindTelemetry, Telemetry};
use crate::worker::Worker;
use crate::worker::changes::KindDefaults;
use crate::worker::handle::Control;
use crate::worker::reconnect::ReconnectPolicy;
use crate::worker::tally::Tally;

/// The most jobs that may be allowed at once: a million tasks of one kibibyte each fill a gibibyte.
pub const MAX_CONCURRENT_JOBS: usize = 1 << 20;

/// Where the loop that fetches, starts, reaps and settles runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dispatcher {
    /// On a thread of its own, with a heartbeat thread beside it. The default: a job that blocks its runtime
    /// thread stalls neither the other slots nor the leases (P3, P7, P9). `docs/design.md` has the price.
    #[default]
    OwnThread,
    /// As tasks of the runtime that awaits [`Worker::run`]. For tests under a paused clock, and for programs
    /// of one thread whose jobs never block it: the promises P3, P7 and P9 then hold only as long as no job
    /// does.
    Shared,
}

/// What becomes of a job whose kind has no handler here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownKind {
    /// A failed attempt: tried again later, perhaps by a worker that knows it; to the dead letters when the
    /// attempts are used up. The default, since new kinds are often enqueued before every worker is updated.
    #[default]
    Retry,
    /// To the dead letters at once.
    Reject,
    /// Handed back after a minute, uncounted, for another worker. For fleets whose workers know different
    /// kinds of one queue; a kind that nobody knows then goes round for ever.
    Release,
}

/// Settings that hold for all jobs.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) max_concurrent_jobs: usize,
    pub(crate) prefetch: usize,
    pub(crate) shutdown_deadline: Duration,
    pub(crate) job_timeout: Option<Duration>,
    pub(crate) cancel_grace: Duration,
    pub(crate) fetch_wait: Duration,
    pub(crate) max_payload_bytes: usize,
    pub(crate) queues: Queues,
    pub(crate) unknown_kind: UnknownKind,
    pub(crate) reconnect: ReconnectPolicy,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) seed: u64,
}

/// The kinds that have handlers. They come from the registry, so no payload can choose colliding keys, and the
/// look-up of each job need not pay for a hash that withstands that.
pub(crate) type Kinds = HashMap<Kind, Arc<KnownKind>, BuildHasherDefault<Fnv>>;

/// A kind as the loop knows it.
pub(crate) struct KnownKind {
    /// Counted from 0 in this worker.
    pub(crate) number: usize,
    /// `None` for the one entry that stands for all unknown kinds.
    pub(crate) handler: Option<HandlerService>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retry: RetryPolicy,
    pub(crate) telemetry: KindTelemetry,
    pub(crate) tally: Arc<Tally>,
}

/// Builds a [`Worker`]. Made by [`Worker::builder`].
///
/// Every setting has a default that suits a service of ordinary jobs; only the source and the registry are
/// yours to give.
#[derive(Debug)]
#[must_use]
pub struct WorkerBuilder {
    intake: Intake,
    registry: Registry,
    name: String,
    retry: RetryPolicy,
    limits: Limits,
}

impl WorkerBuilder {
    pub(crate) fn new(intake: Intake, registry: Registry) -> Self {
        let limits = Limits {
            max_concurrent_jobs: 20,
            prefetch: 0,
            shutdown_deadline: Duration::from_secs(25),
            job_timeout: Some(Duration::from_secs(30 * 60)),
            cancel_grace: Duration::from_secs(5),
            fetch_wait: Duration::from_secs(10),
            max_payload_bytes: 16 << 20,
            queues: Queues::All,
            unknown_kind: UnknownKind::Retry,
            reconnect: ReconnectPolicy::default(),
            dispatcher: Dispatcher::OwnThread,
            seed: rand_seed(),
        };
        let retry = RetryPolicy::from(intake.retry);
        Self { intake, registry, name: "default".to_owned(), retry, limits }
    }

    /// What the worker is called in metrics, logs and thread names. Default `default`; give each worker of a
    /// process its own. It must not contain a NUL.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// At most so many jobs at once (P1), from 1 to [`MAX_CONCURRENT_JOBS`]. Default 20, as the worker that
    /// this one replaces had. Can be changed while it runs.
    pub fn max_concurrent_jobs(mut self, jobs: usize) -> Self {
        self.limits.max_concurrent_jobs = jobs;
        self
    }

    /// How many deliveries may be held beyond those that run, so that a slot need not wait for a round trip
    /// to the source. Default 0: nothing is held that can't run. A few times the jobs that finish during one
    /// round trip is enough.
    pub fn prefetch(mut self, deliveries: usize) -> Self {
        self.limits.prefetch = deliveries;
        self
    }

    /// From the first stop signal to the end takes at most this long (P7). Default 25 s, as in Sidekiq: less
    /// than the 30 s after which Kubernetes kills.
    ///
    /// The last fifth of it (at most 5 s) is kept for ending what has not finished: jobs are told to stop
    /// when it begins, and aborted half-way through it.
    pub fn shutdown_deadline(mut self, deadline: Duration) -> Self {
        self.limits.shutdown_deadline = deadline;
        self
    }

    /// How long an attempt may take, unless its kind or the job itself says otherwise; `None` is no limit.
    /// Default 30 min: a hang costs its slot for a bounded time (P6).
    pub fn job_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.limits.job_timeout = timeout.into();
        self
    }

    /// How long a job that was told to stop may take to do so before it is aborted. Default 5 s. At shutdown
    /// the deadline may leave less.
    pub fn cancel_grace(mut self, grace: Duration) -> Self {
        self.limits.cancel_grace = grace;
        self
    }

    /// How long a fetch may wait for work before it returns empty-handed. Default 10 s: a source that has
    /// not answered [`ReconnectPolicy::call_timeout`] after that is taken to be dead.
    pub fn fetch_wait(mut self, wait: Duration) -> Self {
        self.limits.fetch_wait = wait;
        self
    }

    /// Larger payloads go to the dead letters unread. Default 16 MiB.
    pub fn max_payload_bytes(mut self, bytes: usize) -> Self {
        self.limits.max_payload_bytes = bytes;
        self
    }

    /// Which queues it serves, in which order. Default: all that the source has.
    pub fn queues(mut self, queues: Queues) -> Self {
        self.limits.queues = queues;
        self
    }

    /// How failures are retried, unless a kind says otherwise. Default: as the source has it ([`Intake::retry`]), which
    /// is [`RetryPolicy::default`], and for jobs in Sidekiq's layout [`RetryPolicy::sidekiq`].
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// What becomes of a job whose kind has no handler. Default: retried.
    pub fn unknown_kind(mut self, policy: UnknownKind) -> Self {
        self.limits.unknown_kind = policy;
        self
    }

    /// How a lost connection is come back to.
    pub fn reconnect(mut self, policy: ReconnectPolicy) -> Self {
        self.limits.reconnect = policy;
        self
    }

    /// Where the loop runs. Default: on a thread of its own.
    pub fn dispatcher(mut self, place: Dispatcher) -> Self {
        self.limits.dispatcher = place;
        self
    }

    /// What chance is drawn from: jitter and the order of weighted queues. Default: different in every
    /// process. Give a number to have the same again.
    pub fn seed(mut self, seed: u64) -> Self {
        self.limits.seed = seed;
        self
    }

    /// Checks the settings and builds the worker. Registers its metrics with the recorder installed now.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput), naming the setting, its value and its range.
    pub fn build(self) -> Result<Worker, Error> {
        let Self { intake, registry, name, retry, limits } = self;
        if name.contains('\0') {
            // Threads are called by it.
            return Err(Error::invalid(format!("name is {name:?}: it must not contain a NUL")));
        }
        validate(&limits, &retry)?;
        let defaults = KindDefaults::new(name.clone(), limits.job_timeout, retry);
        let registered = defaults.register(registry)?;
        let unknown = Arc::new(defaults.unknown());
        let telemetry = Telemetry::register(&name);
        let connections = ["source", "heartbeat"].map(|what| ConnectionTelemetry::register(&name, what));
        let control = Arc::new(Control::new(limits.max_concurrent_jobs, limits.queues.clone(), defaults));
        Ok(Worker { intake, name, limits, registered, unknown, telemetry, connections, control })
    }
}

fn validate(limits: &Limits, retry: &RetryPolicy) -> Result<(), Error> {
    let Limits { max_concurrent_jobs, prefetch, .. } = *limits;
    check_max_concurrent_jobs(max_concurrent_jobs)?;
    if prefetch > MAX_CONCURRENT_JOBS {
        return Err(Error::invalid(format!(
            "prefetch is {prefetch}: it must be at most {MAX_CONCURRENT_JOBS}"
        )));
    }
    let nonzero = [
        ("job_timeout", limits.job_timeout.unwrap_or(Duration::MAX)),
        ("fetch_wait", limits.fetch_wait),
        ("reconnect call_timeout", limits.reconnect.call_timeout),
    ];
    if let Some((setting, _)) = nonzero.iter().find(|(_, time)| time.is_zero()) {
        return Err(Error::invalid(format!("{setting} is 0: nothing could succeed within it")));
    }
    let ReconnectPolicy { initial, cap, .. } = limits.reconnect;
    if initial.is_zero() || cap < initial {
        return Err(Error::invalid(format!(
            "reconnect waits from {initial:?} up to {cap:?}: it must begin above zero, and not above its cap"
        )));
    }
    if limits.reconnect.factor < 1.0 || !limits.reconnect.factor.is_finite() {
        return Err(Error::invalid(format!(
            "reconnect factor is {}: it must be at least 1",
            limits.reconnect.factor
        )));
    }
    if !(0.0..=1.0).contains(&limits.reconnect.jitter) {
        let jitter = limits.reconnect.jitter;
        return Err(Error::invalid(format!("reconnect jitter is {jitter}: it must be from 0 to 1")));
    }
    retry.validate()?;
    limits.queues.validate()
}

/// The range of `max_concurrent_jobs`, at the start and while running.
pub(crate) fn check_max_concurrent_jobs(jobs: usize) -> Result<(), Error> {
    if (1..=MAX_CONCURRENT_JOBS).contains(&jobs) {
        return Ok(());
    }
    Err(Error::invalid(format!("max_concurrent_jobs is {jobs}: it must be from 1 to {MAX_CONCURRENT_JOBS}")))
}

/// Different in every process and at every call.
fn rand_seed() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::process::id())
}
