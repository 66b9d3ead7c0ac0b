//! A bounded, structured-concurrency job runtime: never more jobs at once than you said, every slot full,
//! nothing left behind.
//!
//! A [`Worker`] pulls jobs from a [`Source`], runs at most `max_concurrent_jobs` of them at once, reaps each
//! the moment that it finishes, and tells the source what became of it. It renews leases from a thread that
//! the workload can't stall, comes back from lost connections, and stops in time.
//!
//! ```
//! use serde::Deserialize;
//! use tidegate::{Context, Enqueue, Memory, NewJob, Registry, Shutdown, Worker};
//!
//! #[derive(Deserialize)]
//! struct Resize { file: String, width: u32 }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), tidegate::Error> {
//!     let registry = Registry::new().handle("resize", |job: Resize, _: Context| async move {
//!         if job.width == 0 { Err(format!("{}: a width of 0", job.file)) } else { Ok(()) }
//!     });
//!     let queue = Memory::new();
//!     let worker = Worker::builder(queue.intake(), registry).max_concurrent_jobs(8).build()?;
//!
//!     let job = NewJob::json("resize", &serde_json::json!({ "file": "cat.png", "width": 80 }))?;
//!     queue.enqueue(vec![job]).await?;
//!
//!     let shutdown = Shutdown::new();
//!     let (report, ()) = tokio::join!(worker.run(shutdown.clone()), async {
//!         queue.drained().await; // in a service: a signal
//!         shutdown.stop();
//!     });
//!     println!("{report}");
//!     assert_eq!(report.stats.done, 1);
//!     Ok(())
//! }
//! ```
//!
//! # Where to look
//!
//! - [`Registry`], [`Handler`], [`Context`], [`Outcome`]: your code, and what it is given.
//! - [`Worker`], [`WorkerHandle`], [`Shutdown`], [`Report`]: running it.
//! - [`Memory`], [`backend`]: where jobs come from. [`Source`], [`Renew`], [`Connect`]: to write another.
//! - [`service`]: what runs beside a worker. [`announce`]: what dashboards of the store's own world are told.
//! - [`reschedule`]: failed jobs put back by the store.
//! - [`Scope`]: structured concurrency without a queue.
//! - [`telemetry`]: every metric by name.
//!
//! # Features
//!
//! None is on by default, and none changes what the code does: `sqlite` and `redis` add their backends, `cli` the program
//! `tidegate` (and `sqlite`), `http` its handlers that send jobs to a URL. `fuzzing` is for the fuzz targets alone.

#![forbid(unsafe_code)]

pub mod announce;
mod attempt;
pub mod backend;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
mod completions;
pub mod context;
pub mod enqueue;
pub mod error;
#[cfg(any(all(test, feature = "cli", feature = "redis"), feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod handler;
pub mod inspect;
pub mod job;
pub mod lease;
pub mod limit;
pub mod outcome;
mod pull;
pub mod registry;
pub mod reschedule;
pub mod retry;
pub mod scope;
pub mod service;
pub mod shutdown;
pub mod source;
mod sync;
pub mod telemetry;
pub mod worker;

pub use backend::Backend;
pub use backend::memory::Memory;
pub use context::{CancelReason, Context};
pub use enqueue::{Clash, Enqueue, Enqueued, NewJob, Start, Unique, UniqueKey, Window};
pub use error::{BoxError, Error, ErrorKind};
pub use handler::{Handler, HandlerService};
pub use inspect::{
    AttemptEnd, Counts, Inspect, JobPhase, JobQuery, JobState, JobView, Manage, PastAttempt, Position,
    Progress, StoredJob,
};
pub use job::{Job, JobId, Kind, Queue, Tag};
pub use lease::{Lease, Reclaim, Renew, Renewal};
pub use limit::Queues;
pub use outcome::{IntoOutcome, Outcome, Panicked, TimedOut};
pub use registry::{KindOptions, Registry};
pub use retry::RetryPolicy;
pub use scope::{Scope, ScopeError};
pub use shutdown::{Phase, Shutdown};
pub use source::{Connect, Delivery, FetchRequest, Intake, RetryFormula, Settled, Settlement, Source, Stale};
pub use worker::{
    ConnectionState, Dispatcher, ReconnectPolicy, Report, State, Stats, StopCause, UnknownKind, Worker,
    WorkerBuilder, WorkerHandle,
};

/// The README's examples, compiled and run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
