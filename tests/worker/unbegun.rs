//! What waits for a thread has not begun; what comes late has been done all the same; what was dropped is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use tidegate::{
    CancelReason, Context, Dispatcher, Error, Inspect, Intake, JobPhase, JobQuery, JobState, KindOptions,
    Memory, NewJob, Registry, Report, RetryPolicy, Shutdown, State, Worker, WorkerHandle,
};
use tokio::runtime::{Builder, Runtime};

use crate::support::{Feed, Gate, job, patience, registry_of, until};

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

/// Two quick jobs of which neither can begin, since a third blocks the only thread while `meanwhile` goes on. Returns
/// what came of all, and how many of the quick ones ran.
fn behind_a_block<F: Future<Output = ()>>(
    meanwhile: impl FnOnce(Memory, WorkerHandle, Shutdown) -> F,
) -> (Report, usize, Memory) {
    let (release, released) = mpsc::sync_channel::<()>(1);
    let released = std::sync::Mutex::new(released);
    let ran = Arc::new(AtomicUsize::new(0));
    let counted = ran.clone();
    let registry = Registry::new()
        .handle_raw("block", move |_: Context| {
            // Whoever sends or hangs up lets it go.
            let _ = released.lock().expect("one at a time").recv();
            async {}
        })
        .handle_raw("quick", move |_: Context| {
            counted.fetch_add(1, Ordering::SeqCst);
            async {}
        })
        .options("quick", KindOptions::new().timeout(Duration::from_millis(50)).retry(RetryPolicy::never()));
    let memory = Memory::new();
    let worker = Worker::builder(memory.intake(), registry).cancel_grace(Duration::from_millis(20)).build();
    let worker = worker.expect("the settings make sense");
    let (handle, shutdown) = (worker.handle(), Shutdown::new());
    memory.push(NewJob::new("block", "")).expect("room");
    let jobs = runtime();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn_on(worker.run(shutdown.clone()), jobs.handle());
    let here = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let report = here.block_on(async {
        until("the thread is blocked", || handle.stats().running == 1).await;
        for _ in 0..2 {
            memory.push(NewJob::new("quick", "")).expect("room");
        }
        until("the others are handed over", || handle.stats().running == 3).await;
        meanwhile(memory.clone(), handle.clone(), shutdown.clone()).await;
        drop(release);
        tokio::time::timeout(patience(), memory.drained()).await.expect("all is done in the end");
        shutdown.stop();
        tasks.join_next().await.expect("one task").expect("no panic")
    });
    (report, ran.load(Ordering::SeqCst), memory)
}

#[test]
fn a_job_that_waits_for_a_thread_uses_up_none_of_its_time() {
    let (report, ran, _) = behind_a_block(|_, handle, _| async move {
        // Many times the timeout and the grace together.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let phases: Vec<_> = handle
            .jobs()
            .await
            .into_iter()
            .filter(|job| job.kind.as_str() == "quick")
            .map(|job| job.phase)
            .collect();
        assert_eq!(phases, [JobPhase::Starting; 2]);
    });
    assert_eq!(ran, 2);
    assert_eq!((report.stats.done, report.stats.timed_out, report.stats.aborted), (3, 0, 0), "{report}");
}

#[test]
fn a_job_that_is_cancelled_before_it_began_never_begins() {
    let (report, ran, memory) = behind_a_block(|_, handle, _| async move {
        let quick =
            handle.jobs().await.into_iter().find(|job| job.kind.as_str() == "quick").expect("it waits");
        assert!(handle.cancel_job(&quick.id).await);
        until("it is dealt with at once", || handle.stats().rejected == 1).await;
    });
    assert_eq!(
        (ran, report.stats.done, report.stats.rejected, report.stats.aborted),
        (1, 2, 1, 0),
        "{report}"
    );
    let dead = runtime().block_on(memory.list(&JobQuery::new(JobState::Dead, 9))).expect("listed");
    assert_eq!(dead[0].last_error.as_deref(), Some("cancelled on request"));
}

/// The thread can't be stopped, and is waited for: what it has done need not be done again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocking_handler_that_finishes_after_its_abort_has_finished() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let registry = Registry::new().handle_blocking_raw("late", move |context: Context| {
        counted.fetch_add(1, Ordering::SeqCst);
        while context.cancel_reason() != Some(CancelReason::Timeout) {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(300)); // far beyond the grace
        match context.payload().as_ref() {
            b"done" => Ok(()),
            b"panics" => panic!("late, and on purpose"),
            _ => Err("late, and failed"),
        }
    });
    let memory = Memory::new();
    let worker = Worker::builder(memory.intake(), registry)
        .job_timeout(Duration::from_millis(20))
        .cancel_grace(Duration::from_millis(20))
        .retry(RetryPolicy::never())
        .build()
        .expect("the settings make sense");
    for payload in ["done", "panics", "fails"] {
        memory.push(NewJob::new("late", payload)).expect("room");
    }
    let shutdown = Shutdown::new();
    let stop = async {
        memory.drained().await;
        shutdown.stop();
    };
    let (report, ()) = tokio::join!(worker.run(shutdown.clone()), stop);
    assert_eq!(runs.load(Ordering::SeqCst), 3);
    assert_eq!((report.stats.done, report.stats.rejected, report.stats.panicked), (1, 2, 1), "{report}");
}

#[tokio::test]
async fn a_handle_answers_when_a_shared_run_was_dropped() {
    let feed = Feed::new().with([job("a")]).shared();
    let gate = Gate::shut();
    let registry = registry_of(move |_| {
        let gate = gate.clone();
        async move { gate.pass().await }
    });
    let worker = Worker::builder(feed.intake(), registry).dispatcher(Dispatcher::Shared).build();
    let worker = worker.expect("the settings make sense");
    let handle = worker.handle();
    tokio::select! {
        report = worker.run(Shutdown::new()) => panic!("it ended: {report}"),
        () = until("it runs", || handle.stats().running == 1) => {}
    }
    assert_eq!(handle.stats().state, State::Ended);
    let asked = async { (handle.jobs().await.len(), handle.cancel_job(&job("a").id).await) };
    assert_eq!(tokio::time::timeout(patience(), asked).await.expect("it answers"), (0, false));
}

/// A scope that somebody keeps beyond its job starts nothing any more (P6).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scope_that_outlives_its_job_starts_no_child() {
    let (give, mut given) = tokio::sync::mpsc::channel(1);
    let registry = Registry::new().handle_raw("kind", move |context: Context| {
        let give = give.clone();
        async move { give.send(context.scope(2)).await.expect("the test waits") }
    });
    let memory = Memory::new();
    memory.push(NewJob::new("kind", "")).expect("room");
    let worker = Worker::builder(memory.intake(), registry).build().expect("the settings make sense");
    let shutdown = Shutdown::new();
    let stop = async {
        let scope = given.recv().await.expect("it runs");
        memory.drained().await;
        let ran = Arc::new(AtomicUsize::new(0));
        let counted = ran.clone();
        let child = async move {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok::<_, Error>(())
        };
        assert!(scope.spawn(child).await.is_err());
        assert!(scope.join().await.is_err());
        assert_eq!(ran.load(Ordering::SeqCst), 0);
        shutdown.stop();
    };
    let (report, ()) = tokio::join!(worker.run(shutdown.clone()), stop);
    assert_eq!(report.stats.done, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_for_ever_is_a_long_one() {
    let feed = Feed::new().with([job("a")]).leased(Duration::MAX).shared();
    let worker = Worker::builder(Intake::fixed(feed.clone()), registry_of(|_| async {})).build();
    let worker = worker.expect("the settings make sense");
    let shutdown = Shutdown::new();
    let stop = async {
        feed.drained().await;
        shutdown.stop();
    };
    let (report, ()) = tokio::join!(worker.run(shutdown.clone()), stop);
    assert_eq!((report.stats.done, report.stats.lost), (1, 0));
}
