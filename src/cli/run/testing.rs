//! What the tests of the handlers share: one attempt at a job by itself, and a real worker over a store in memory
//! that remembers what the store was told.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::backend::memory::Memory;
use crate::context::{Context, Run};
use crate::enqueue::NewJob;
use crate::error::Error;
use crate::handler::Handler;
use crate::inspect::Inspect as _;
use crate::job::{Job, JobId, Kind, Tag};
use crate::outcome::{IntoOutcome as _, Outcome};
use crate::registry::Registry;
use crate::shutdown::Shutdown;
use crate::source::{Delivery, FetchRequest, Intake, Settled, Source, Stale};
use crate::worker::{Report, Worker, WorkerBuilder};

/// How long anything may take before a test gives up on it. Never waited for when all is well.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// The kind of all jobs here.
pub(super) const KIND: &str = "work";

/// The first attempt at a job, without a worker.
pub(super) fn attempt(job: Job, timeout: Option<Duration>) -> Context {
    let tag = Tag { session: 0, key: 0, token: 0 };
    let run = Run::new(Delivery { job: Arc::new(job), attempt: 1, tag, lease: None }, timeout);
    assert!(run.start(tokio::time::Instant::now()));
    Context::new(Arc::new(run))
}

/// A job of this kind's own.
pub(super) fn job(payload: impl Into<Bytes>) -> Job {
    Job::new(JobId::new("job-7"), Kind::new(KIND), payload.into(), SystemTime::UNIX_EPOCH)
}

/// Runs one attempt; gives what it came to, its error as text, and what it left to be kept.
pub(super) async fn outcome_of(handler: &impl Handler, context: Context) -> (Outcome, String, String) {
    let outcome = tokio::time::timeout(LIMIT, handler.call(context.clone())).await.expect("it ends");
    let outcome = outcome.into_outcome();
    let output = context.run().take_output().unwrap_or_default();
    let reason = outcome.reason().unwrap_or_default();
    (outcome, reason, String::from_utf8_lossy(&output).into_owned())
}

/// A worker at work.
pub(super) struct Rig {
    pub(super) memory: Memory,
    pub(super) shutdown: Shutdown,
    told: mpsc::Receiver<Settled>,
    worker: JoinSet<Report>,
}

impl Rig {
    /// Starts a worker for jobs of [`KIND`].
    pub(super) fn start(handler: impl Handler, change: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Self {
        let memory = Memory::new();
        let (tell, told) = mpsc::channel(10_000);
        let source = Recording { inner: memory.clone(), tell };
        let intake = Intake::fixed(Arc::new(source)).renewed_by_fixed(Arc::new(memory.clone()));
        let builder = Worker::builder(intake, Registry::new().handle_raw(KIND, handler));
        let worker = change(builder).build().expect("settings that make sense");
        let shutdown = Shutdown::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(worker.run(shutdown.clone()));
        Self { memory, shutdown, told, worker: tasks }
    }

    pub(super) fn push(&self, payload: impl Into<Bytes>) {
        self.memory.push(NewJob::new(KIND, payload)).expect("there is room");
    }

    /// The next settlement that the store has applied.
    pub(super) async fn told(&mut self) -> Settled {
        tokio::time::timeout(LIMIT, self.told.recv()).await.expect("in time").expect("the worker runs")
    }

    /// Stops, and checks that the worker holds nothing any more.
    pub(super) async fn end(mut self) -> Report {
        self.shutdown.stop();
        let report = tokio::time::timeout(LIMIT, self.worker.join_next()).await.expect("in time");
        let counts = self.memory.counts().await.expect("counted");
        assert_eq!(counts.leased, 0, "{counts:?}");
        report.expect("one worker").expect("it does not panic")
    }
}

/// The store, and somebody who listens.
struct Recording {
    inner: Memory,
    tell: mpsc::Sender<Settled>,
}

#[async_trait]
impl Source for Recording {
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        self.inner.fetch(wanted, stop).await
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error> {
        let stale = self.inner.settle(settled).await?;
        for one in settled {
            self.tell.try_send(one.clone()).expect("somebody listens");
        }
        Ok(stale)
    }
}

/// A folder of the test's own, which goes with it.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tidegate-run-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, contents).expect("a file of our own");
        path
    }

    pub(super) fn fifo(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        let made = Command::new("mkfifo").arg(&path).status().expect("mkfifo is there");
        assert!(made.success());
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
