//! P6: a job that takes too long is told to stop, then aborted; it costs its own slot for a bounded time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate::{
    CancelReason, Context, Dispatcher, Intake, Job, JobPhase, KindOptions, Registry, Report, Settlement,
    Worker,
};
use tokio::time::Instant;

use crate::support::{
    Feed, KIND, Leftovers, Recording, Told, during, job, registry_of, under_both, until_phase,
};

const TIMEOUT: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(5);

/// Runs one job to its first settlement on a paused clock; says after how long that came.
async fn run(registry: Registry, job: Job) -> (Report, Told, Duration) {
    let feed = Feed::new().with([job]).shared();
    let recording = Recording::around(feed);
    let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
        .job_timeout(TIMEOUT)
        .cancel_grace(GRACE)
        .dispatcher(Dispatcher::Shared)
        .build()
        .expect("the settings make sense");
    let began = Instant::now();
    let left = Leftovers::before();
    let (report, ()) = during(worker, recording.has_been_told(1)).await;
    left.none().await;
    let told = recording.told().remove(0);
    let took = told.at - began;
    (report, told, took)
}

/// The paused clock's timers have a resolution of a millisecond.
fn assert_about(what: Duration, expected: Duration) {
    assert!(
        what >= expected && what < expected + Duration::from_millis(5),
        "{what:?} instead of {expected:?}"
    );
}

fn hangs() -> Registry {
    registry_of(|_| std::future::pending::<()>())
}

#[tokio::test(start_paused = true)]
async fn a_job_that_hangs_is_told_to_stop_and_aborted_after_the_grace() {
    let (report, told, took) = run(hangs(), job("a")).await;
    assert_about(took, TIMEOUT + GRACE);
    assert!(matches!(told.settlement, Settlement::Retry { .. }));
    assert_eq!(told.reason.as_deref(), Some("timed out after 60s"));
    let stats = report.stats;
    assert_eq!((stats.timed_out, stats.aborted, stats.failed, stats.retried), (1, 1, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_cleans_up_within_the_grace_is_not_aborted() {
    let seen = Arc::new(Mutex::new(None));
    let registry = registry_of({
        let seen = seen.clone();
        move |context: Context| {
            let seen = seen.clone();
            async move {
                context.cancelled().await;
                tokio::time::sleep(Duration::from_secs(2)).await;
                *seen.lock().expect("no test thread panicked") = context.cancel_reason();
                Err::<(), _>("I gave up")
            }
        }
    });
    let (report, told, took) = run(registry, job("a")).await;
    assert_about(took, TIMEOUT + Duration::from_secs(2));
    assert_eq!(*seen.lock().expect("no test thread panicked"), Some(CancelReason::Timeout));
    assert!(matches!(told.settlement, Settlement::Retry { .. }));
    assert_eq!(told.reason.as_deref(), Some("timed out after 60s"));
    assert_eq!((report.stats.timed_out, report.stats.aborted), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_finishes_within_the_grace_is_done() {
    let registry = registry_of(|context: Context| async move {
        context.cancelled().await;
        tokio::time::sleep(GRACE / 2).await;
    });
    let (report, told, _) = run(registry, job("a")).await;
    assert_eq!(told.settlement, Settlement::Ack);
    assert_eq!((report.stats.done, report.stats.timed_out, report.stats.failed), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_kind_has_a_timeout_of_its_own() {
    let registry = hangs().options(KIND, KindOptions::new().timeout(Duration::from_secs(7)));
    let (_, told, took) = run(registry, job("a")).await;
    assert_about(took, Duration::from_secs(7) + GRACE);
    assert_eq!(told.reason.as_deref(), Some("timed out after 7s"));
}

#[tokio::test(start_paused = true)]
async fn a_job_has_a_timeout_of_its_own_before_that_of_its_kind() {
    let mut hasty = job("a");
    hasty.timeout = Some(Duration::from_secs(3));
    let registry = hangs().options(KIND, KindOptions::new().timeout(Duration::from_secs(7)));
    let (_, told, took) = run(registry, hasty).await;
    assert_about(took, Duration::from_secs(3) + GRACE);
    assert_eq!(told.reason.as_deref(), Some("timed out after 3s"));
}

#[tokio::test(start_paused = true)]
async fn a_kind_without_a_timeout_may_take_a_day() {
    let day = Duration::from_secs(24 * 3600);
    let registry = registry_of(move |context: Context| async move {
        assert_eq!(context.deadline(), None);
        tokio::time::sleep(day).await;
    })
    .options(KIND, KindOptions::new().no_timeout());
    let (report, told, took) = run(registry, job("a")).await;
    assert_eq!(told.settlement, Settlement::Ack);
    assert!(took >= day && report.stats.timed_out == 0);
}

#[tokio::test(start_paused = true)]
async fn a_handler_knows_its_deadline() {
    let registry = registry_of(|context: Context| async move {
        assert_eq!(context.deadline(), Some(Instant::now() + TIMEOUT));
    });
    let (_, told, _) = run(registry, job("a")).await;
    assert_eq!(told.settlement, Settlement::Ack, "{:?}", told.reason);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_slot_takes_nothing_off_a_jobs_time() {
    let feed = Feed::new().with([job("first"), job("second")]).shared();
    let recording = Recording::around(feed.clone());
    let registry = registry_of(|context: Context| async move {
        let left = context.deadline().expect("there is a timeout") - Instant::now();
        assert_eq!(left, TIMEOUT);
        tokio::time::sleep(TIMEOUT - Duration::from_secs(1)).await;
    });
    let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
        .max_concurrent_jobs(1)
        .prefetch(1)
        .job_timeout(TIMEOUT)
        .dispatcher(Dispatcher::Shared)
        .build()
        .expect("the settings make sense");
    let (report, ()) = during(worker, feed.drained()).await;
    assert_eq!((report.stats.done, report.stats.timed_out), (2, 0), "{:?}", recording.told());
}

#[tokio::test(start_paused = true)]
async fn a_hang_costs_its_own_slot_only_and_only_until_it_is_aborted() {
    let feed = Feed::new().with([job("hang")]).with((0..100).map(job)).shared();
    let registry = registry_of(|context: Context| async move {
        if context.job().id.as_str() == "hang" {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    });
    let worker = Worker::builder(feed.intake(), registry)
        .max_concurrent_jobs(2)
        .job_timeout(TIMEOUT)
        .cancel_grace(GRACE)
        .retry(tidegate::RetryPolicy::never())
        .dispatcher(Dispatcher::Shared)
        .build()
        .expect("the settings make sense");
    let began = Instant::now();
    during(worker, feed.drained()).await;
    // 65 s with one slot, then the rest of the hundred with two.
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(82) && took < Duration::from_secs(84), "it took {took:?}");
}

under_both! {
    async fn a_timeout_of_zero_that_a_job_brings_aborts_it_at_once(dispatcher) {
        let mut hopeless = job("a");
        hopeless.timeout = Some(Duration::ZERO);
        let feed = Feed::new().with([hopeless]).shared();
        let recording = Recording::around(feed);
        let worker = Worker::builder(Intake::fixed(recording.clone()), hangs())
            .cancel_grace(Duration::ZERO)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let (report, ()) = during(worker, recording.has_been_told(1)).await;
        assert!(recording.told()[0].reason.as_deref().is_some_and(|reason| reason.contains("timed out")));
        assert_eq!((report.stats.timed_out, report.stats.aborted), (1, 1));
    }
}

/// A job that blocks its thread can't be aborted; it is named as stuck, and keeps its slot alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_blocks_its_thread_beyond_its_timeout_is_named_as_stuck() {
    let (release, released) = std::sync::mpsc::sync_channel::<()>(0);
    let released = Mutex::new(released);
    let feed = Feed::new().with([job("blocks")]).shared();
    let released = Arc::new(released);
    let registry = registry_of(move |_: Context| {
        let released = released.clone();
        async move {
            let _ = released.lock().expect("no test thread panicked").recv();
        }
    });
    let worker = Worker::builder(feed.intake(), registry)
        .job_timeout(Duration::from_millis(10))
        .cancel_grace(Duration::from_millis(10))
        .build()
        .expect("the settings make sense");
    let handle = worker.handle();
    let (report, ()) = during(worker, async {
        until_phase(&handle, "blocks", JobPhase::Stuck).await;
        drop(release);
        feed.drained().await;
    })
    .await;
    assert_eq!(report.stats.done, 1, "it had finished all the same");
}
