//! A worker that counts its jobs, and conditions that come true.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidegate::backend::redis::Redis;
use tidegate::{Context, Enqueue as _, Error, NewJob, Registry, StopCause, Worker, WorkerBuilder};
use tokio::time::Instant;

use crate::faults::running::Running;

/// Longer than any hiccup of a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn open(url: &str) -> Redis {
    Redis::open(url).expect("a good URL")
}

pub(crate) async fn push(jobs: &Redis, queue: &str) -> Result<(), Error> {
    jobs.enqueue(vec![NewJob::new("kind", "[1]").queue(queue)]).await.map(drop)
}

/// A worker, and how many jobs it has run.
pub(crate) struct Counted {
    pub(crate) running: Running,
    ran: Arc<AtomicU64>,
}

impl Counted {
    pub(crate) fn start(jobs: &Redis) -> Self {
        Self::start_with(jobs, |worker| worker)
    }

    pub(crate) fn start_with(jobs: &Redis, set: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Self {
        let ran = Arc::new(AtomicU64::new(0));
        let count = ran.clone();
        let registry = Registry::new().handle_raw("kind", move |_: Context| {
            count.fetch_add(1, Ordering::Relaxed);
            async {}
        });
        let worker = set(Worker::builder(jobs.intake(), registry)).build().expect("good settings");
        Self { running: Running::start(worker), ran }
    }

    pub(crate) fn ran(&self) -> u64 {
        self.ran.load(Ordering::Relaxed)
    }

    /// Enqueues a job and waits until it has been run and settled.
    pub(crate) async fn runs_a_job(&self, jobs: &Redis, queue: &str) {
        let before = self.running.handle.stats().done;
        until("a job is accepted", async || push(jobs, queue).await.is_ok()).await;
        until("a job is done", async || self.running.handle.stats().done > before).await;
    }

    /// Why it ended, by itself.
    pub(crate) async fn fails(self) -> Error {
        let ended = tokio::time::timeout(PATIENCE, self.running.ended()).await.expect("it ends by itself");
        match ended.report.cause {
            StopCause::Failed(error) => error,
            other => panic!("it did not fail: {other:?}"),
        }
    }
}

/// The whole of what an error says, with its causes.
pub(crate) fn whole(error: &Error) -> String {
    let mut said = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        said.push_str(": ");
        said.push_str(&error.to_string());
        cause = error.source();
    }
    said
}
