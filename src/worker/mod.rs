//! What pulls and runs: [`Worker`].
//!
//! ```text
//!   Source ──fetch──▶ ready ──slot──▶ JoinSet of tasks ──reap──▶ verdict ──settle──▶ Source
//!      ▲  permit taken first                (user's runtime)                 │ permit freed
//!      └──────────────────── the loop (a thread of its own) ────────────────┘
//!                     leases ◀── the heartbeat (another thread) ──▶ Renew
//! ```
//!
//! One loop owns everything that changes; only the lease table is shared, with the heartbeat.

mod bell;
mod changes;
mod config;
mod fetch;
mod flight;
mod handle;
mod heartbeat;
mod leases;
mod reconnect;
mod report;
mod run;
mod settle;
mod slots;
mod spare;
mod stage;
mod start;
mod stopping;
mod tally;
mod verdict;

use std::sync::Arc;

pub use config::{Dispatcher, MAX_CONCURRENT_JOBS, UnknownKind, WorkerBuilder};
pub use handle::{State, Stats, WorkerHandle};
pub use reconnect::{ConnectionState, ReconnectPolicy};
pub use report::{Report, StopCause};

use crate::registry::Registry;
use crate::shutdown::Shutdown;
use crate::source::Intake;
use crate::telemetry::{ConnectionTelemetry, Telemetry};

/// Pulls jobs from a source and runs at most `max_concurrent_jobs` of them at once.
///
/// It reaps each the moment that it finishes, refills its slot, settles, renews leases, heals its
/// connection, and stops in time. Jobs run as tasks of the runtime that awaits [`run`](Worker::run).
///
/// Not a queue (that is the source), and not a scheduler of recurring jobs.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), tidegate::Error> {
/// use tidegate::{Context, Enqueue, Memory, NewJob, Registry, Shutdown, Worker};
///
/// let queue = Memory::new();
/// let registry = Registry::new().handle("greet", |name: String, _: Context| async move {
///     println!("Hello, {name}!");
/// });
/// let worker = Worker::builder(queue.intake(), registry).max_concurrent_jobs(20).build()?;
///
/// queue.enqueue(vec![NewJob::json("greet", &"world")?]).await?;
///
/// let shutdown = Shutdown::new();
/// let (report, ()) = tokio::join!(worker.run(shutdown.clone()), async {
///     queue.drained().await;
///     shutdown.stop();
/// });
/// assert_eq!(report.stats.done, 1);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct Worker {
    intake: Intake,
    name: String,
    limits: config::Limits,
    registered: changes::Registered,
    unknown: Arc<config::KnownKind>,
    telemetry: Telemetry,
    connections: [ConnectionTelemetry; 2],
    control: Arc<handle::Control>,
}

impl Worker {
    /// Begins to build a worker that takes jobs from `intake` and runs them with the handlers of `registry`.
    pub fn builder(intake: impl Into<Intake>, registry: Registry) -> WorkerBuilder {
        WorkerBuilder::new(intake.into(), registry)
    }

    /// A handle by which it can be watched and steered, before, while and after it runs.
    pub fn handle(&self) -> WorkerHandle {
        WorkerHandle { control: self.control.clone() }
    }

    /// Runs until `shutdown` (or [`WorkerHandle::stop`]) stops it, its source ends, or its source fails for
    /// good; answers with what came of it.
    ///
    /// It ends within the shutdown deadline after the first stop signal, whatever jobs, source and
    /// connection do. It does not end the process: if a job of an async handler blocks its thread for good,
    /// dropping the runtime waits for that thread; end with [`tokio::runtime::Runtime::shutdown_background`]
    /// or [`std::process::exit`] where that may happen. Blocking handlers run on threads that hold up
    /// neither.
    ///
    /// # Panics
    /// Outside a tokio runtime, or when the system gives no thread.
    ///
    /// # Cancel safety
    /// Dropping it aborts the jobs: what can still be handed back is, in the background, within the last
    /// fifth of the shutdown deadline. Under [`Dispatcher::Shared`] nothing goes on in the background: the jobs
    /// are dropped with it, nothing is handed back, and they come again, as another attempt, when their leases
    /// have run out.
    pub async fn run(self, shutdown: Shutdown) -> Report {
        start::run(self, shutdown).await
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker")
            .field("name", &self.name)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
