//! A worker that runs beside the test.

use std::time::Duration;

use tidegate::{Report, Shutdown, Stats, Worker, WorkerHandle};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A worker that was started as a task of the test's runtime.
pub(crate) struct Running {
    pub(crate) handle: WorkerHandle,
    pub(crate) shutdown: Shutdown,
    task: JoinSet<Report>,
}

/// A worker that has ended.
pub(crate) struct Ended {
    pub(crate) report: Report,
    /// From the call that stopped it until its report was there.
    pub(crate) took: Duration,
}

impl Running {
    pub(crate) fn start(worker: Worker) -> Self {
        let (handle, shutdown) = (worker.handle(), Shutdown::new());
        let mut task = JoinSet::new();
        task.spawn(worker.run(shutdown.clone()));
        Self { handle, shutdown, task }
    }

    /// Asks it to stop and waits for its end.
    pub(crate) async fn stop(self) -> Ended {
        let asked = Instant::now();
        self.shutdown.stop();
        self.ended_since(asked).await
    }

    /// Waits for its end.
    pub(crate) async fn ended(self) -> Ended {
        let now = Instant::now();
        self.ended_since(now).await
    }

    async fn ended_since(mut self, asked: Instant) -> Ended {
        let report = self.task.join_next().await.expect("it was started").expect("run does not panic");
        let took = asked.elapsed();
        balanced(&report.stats);
        assert_eq!(self.handle.stats(), report.stats, "the handle and the report tell the same");
        assert_eq!(report.stats.in_flight, 0, "nothing is in flight in a worker that has ended");
        Ended { report, took }
    }

    /// Drops the future of `Worker::run`.
    pub(crate) async fn drop_run(mut self) {
        self.task.shutdown().await;
    }
}

/// Every delivery is accounted for exactly once.
pub(crate) fn balanced(stats: &Stats) {
    let Stats { done, retried, rejected, snoozed, released, lost, stale, in_flight, .. } = *stats;
    let told = done + retried + rejected + snoozed + released + lost + stale + in_flight;
    assert_eq!(stats.fetched, told, "the books do not balance: {stats:?}");
}

/// `future`, unless it makes no progress for so long that it never will.
///
/// For tests under a paused clock: a task that spins keeps that clock from moving, so that a time-out of the
/// runtime would never come either.
pub(crate) async fn patiently<T>(future: impl Future<Output = T>) -> T {
    const PATIENCE: Duration = Duration::from_secs(20);
    let (gone, still_there) = std::sync::mpsc::sync_channel::<()>(0);
    let (give_up, given_up) = tokio::sync::oneshot::channel();
    let watch = move || {
        if still_there.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = give_up.send(());
        }
    };
    let watcher = std::thread::Builder::new().name("patience".into()).spawn(watch).expect("a thread");
    let answer = tokio::select! {
        answer = future => answer,
        Ok(()) = given_up => panic!("no end after {PATIENCE:?}: it hangs, or it spins and so stops the paused clock"),
    };
    drop(gone);
    watcher.join().expect("the watcher does not panic");
    answer
}
