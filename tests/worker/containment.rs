//! P6: whatever a job does costs its own slot for a bounded time, and nothing else.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use tidegate::{
    BoxError, Context, Delivery, Dispatcher, Error, FetchRequest, Intake, Kind, Outcome, Registry,
    RetryPolicy, Settled, Settlement, Source, Stale, Tag, Worker,
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    Feed, Inside, KIND, Leftovers, Recording, during, job, job_with, jobs, panics, registry_of, under_both,
    under_both_in_real_time, unique_name,
};

/// Runs the job `bad` among good ones on two slots, once each; the good ones must all be done, and the bad
/// one must be rejected. Answers with the reason.
async fn contained(dispatcher: Dispatcher, registry: Registry) -> (String, tidegate::Report) {
    const GOOD: usize = 20;
    let name = unique_name();
    let feed = Feed::new()
        .with(jobs(GOOD / 2))
        .with([job("bad"), job("bad too")])
        .with((GOOD / 2..GOOD).map(job))
        .shared();
    let recording = Recording::around(feed.clone());
    let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
        .name(&name)
        .max_concurrent_jobs(2)
        .job_timeout(Duration::from_millis(400))
        .cancel_grace(Duration::from_millis(5))
        .retry(RetryPolicy::never())
        .dispatcher(dispatcher)
        .build()
        .expect("the settings make sense");
    let handle = worker.handle();
    let left = Leftovers::before().of_worker(&name);
    let (report, ()) = during(worker, feed.drained()).await;
    assert_eq!((report.stats.done, report.stats.rejected), (GOOD as u64, 2), "{:?}", recording.told());
    assert_eq!(handle.stats().in_flight, 0);
    Leftovers::only_mine("the recording", &recording).await;
    left.none().await;
    let reason = recording.told_of("bad")[0].reason.clone().unwrap_or_default();
    (reason.to_string(), report)
}

fn is_bad(context: &Context) -> bool {
    context.job().id.as_str().starts_with("bad")
}

/// A payload of a panic that panics when it is dropped, and again, so many times.
struct Explosive(u32);

impl Drop for Explosive {
    fn drop(&mut self) {
        if self.0 > 0 {
            std::panic::panic_any(Self(self.0 - 1));
        }
    }
}

/// When a bomb goes off, and how often its payload does then.
#[derive(Clone, Copy, Default)]
struct Fuses {
    when_polled: Option<u32>,
    when_dropped: Option<u32>,
    pending: bool,
}

/// A future that panics when it is told to.
struct Bomb(Fuses);

impl Future for Bomb {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut std::task::Context<'_>) -> Poll<()> {
        if let Some(fuse) = self.0.when_polled {
            std::panic::panic_any(Explosive(fuse));
        }
        if self.0.pending { Poll::Pending } else { Poll::Ready(()) }
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        if let Some(fuse) = self.0.when_dropped {
            std::panic::panic_any(Explosive(fuse));
        }
    }
}

fn bombs(fuses: Fuses) -> Registry {
    registry_of(move |context: Context| Bomb(if is_bad(&context) { fuses } else { Fuses::default() }))
}

/// An error of which everything goes wrong.
struct Rotten {
    when_shown: bool,
    when_dropped: bool,
}

impl std::fmt::Display for Rotten {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.when_shown {
            panic!("while an error is shown");
        }
        f.write_str("rotten")
    }
}

impl std::fmt::Debug for Rotten {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Rotten {}

impl Drop for Rotten {
    fn drop(&mut self) {
        if self.when_dropped {
            self.when_dropped = false;
            panic!("while an error is dropped");
        }
    }
}

fn rotten(when_shown: bool, when_dropped: bool) -> Registry {
    registry_of(move |context: Context| async move {
        match is_bad(&context) {
            true => Outcome::fail(Box::new(Rotten { when_shown, when_dropped }) as BoxError),
            false => Outcome::Done,
        }
    })
}

/// An error whose `Display` only fails, as a badly written one may.
#[derive(Debug)]
struct Mute;

impl std::fmt::Display for Mute {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Err(std::fmt::Error)
    }
}

impl std::error::Error for Mute {}

/// An error that is its own cause.
#[derive(Debug)]
struct Endless;

impl std::fmt::Display for Endless {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("and so on")
    }
}

impl std::error::Error for Endless {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&Endless)
    }
}

under_both! {
    async fn a_panic_in_a_poll_is_contained(dispatcher) {
        let registry = registry_of(|context: Context| async move {
            tokio::task::yield_now().await;
            if is_bad(&context) {
                panics("in a poll");
            }
        });
        let (reason, report) = contained(dispatcher, registry).await;
        assert_eq!((reason.as_str(), report.stats.panicked), ("panicked: in a poll", 2));
    }

    async fn a_panic_before_there_is_a_future_is_contained(dispatcher) {
        let registry = registry_of(|context: Context| {
            if is_bad(&context) {
                panics("before the future");
            }
            async {}
        });
        let (reason, report) = contained(dispatcher, registry).await;
        assert_eq!((reason.as_str(), report.stats.panicked), ("panicked: before the future", 2));
    }

    async fn a_panic_while_the_future_is_dropped_on_abort_is_contained(dispatcher) {
        let bomb = Fuses { pending: true, when_dropped: Some(0), ..Fuses::default() };
        let (_, report) = contained(dispatcher, bombs(bomb)).await;
        assert_eq!((report.stats.panicked, report.stats.aborted, report.stats.timed_out), (2, 2, 2));
    }

    async fn a_panic_while_the_future_is_dropped_after_its_end_is_contained(dispatcher) {
        let bomb = Fuses { when_dropped: Some(0), ..Fuses::default() };
        let (_, report) = contained(dispatcher, bombs(bomb)).await;
        assert_eq!(report.stats.panicked, 2);
    }

    async fn a_panic_whose_payload_panics_when_it_is_dropped_is_contained(dispatcher) {
        for fuse in [1, 2, 3] {
            let bomb = Fuses { when_polled: Some(fuse), ..Fuses::default() };
            let (reason, _) = contained(dispatcher, bombs(bomb)).await;
            assert_eq!(reason, "panicked: a value that is not text");
        }
    }

    async fn an_error_that_panics_when_it_is_shown_is_contained(dispatcher) {
        contained(dispatcher, rotten(true, false)).await;
    }

    async fn an_error_that_panics_when_it_is_dropped_is_contained(dispatcher) {
        contained(dispatcher, rotten(false, true)).await;
    }

    async fn an_error_that_can_not_be_shown_is_contained(dispatcher) {
        let registry = registry_of(|context: Context| async move { if is_bad(&context) { Err(Mute) } else { Ok(()) } });
        contained(dispatcher, registry).await;
    }

    async fn an_error_whose_causes_have_no_end_is_contained(dispatcher) {
        let registry =
            registry_of(|context: Context| async move { if is_bad(&context) { Err(Endless) } else { Ok(()) } });
        contained(dispatcher, registry).await;
    }

    async fn a_huge_future_and_a_huge_reason_are_contained(dispatcher) {
        let registry = registry_of(|context: Context| async move {
            let large = [1u8; 32 * 1024];
            tokio::task::yield_now().await;
            let sum: usize = large.iter().map(|byte| usize::from(*byte)).sum();
            if is_bad(&context) { Err("x".repeat(sum * 64)) } else { Ok(()) }
        });
        let (reason, _) = contained(dispatcher, registry).await;
        assert_eq!(reason.len(), tidegate::source::MAX_REASON_BYTES);
    }

    async fn a_thousand_panics_cost_no_slot(dispatcher) {
        let inside = Inside::default();
        let feed = Feed::generated(2000, |number| job_with(number, number % 2)).shared();
        let recording = Recording::around(feed.clone());
        let registry = registry_of({
            let inside = inside.clone();
            move |context: Context| {
                let inside = inside.clone();
                async move {
                    let _stay = inside.enter();
                    tokio::task::yield_now().await;
                    if crate::support::number(&context) == 1 {
                        panics("one of many");
                    }
                }
            }
        });
        let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
            .max_concurrent_jobs(8)
            .retry(RetryPolicy::never())
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        let left = Leftovers::before();
        let (report, ()) = during(worker, async {
            feed.drained().await;
            // All slots are there again.
            inside.forget_the_most();
            let gate = tokio::sync::Barrier::new(1);
            gate.wait().await;
            crate::support::until("all is settled", || handle.stats().in_flight == 0).await;
            assert_eq!(handle.stats().running, 0);
        })
        .await;
        let stats = report.stats;
        assert_eq!((stats.panicked, stats.rejected, stats.done), (1000, 1000, 1000));
        assert!(recording.most_held() == 8 && inside.now() == 0);
        left.none().await;
    }
}

under_both_in_real_time! {
    async fn a_payload_that_panics_in_a_blocking_handler_is_contained(dispatcher) {
        let registry = Registry::new().handle_blocking_raw(KIND, |context: Context| {
            if is_bad(&context) {
                std::panic::panic_any(Explosive(2));
            }
        });
        contained(dispatcher, registry).await;
    }
}

/// A handler that never lets go of its future's thread for long keeps nobody else from running.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_wakes_itself_for_ever_is_aborted_at_its_deadline() {
    let registry = registry_of(|context: Context| async move {
        while is_bad(&context) {
            tokio::task::yield_now().await;
        }
    });
    let (_, report) = contained(Dispatcher::OwnThread, registry).await;
    assert_eq!((report.stats.timed_out, report.stats.aborted), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn what_the_source_is_told_of_a_panic_is_a_retry_as_of_any_failure() {
    let feed = Feed::new().with([job("bad")]).shared();
    let recording = Recording::around(feed);
    let bomb = Fuses { when_polled: Some(0), ..Fuses::default() };
    let worker = Worker::builder(Intake::fixed(recording.clone()), bombs(bomb))
        .dispatcher(Dispatcher::Shared)
        .build()
        .expect("the settings make sense");
    during(worker, recording.has_been_told(1)).await;
    assert!(matches!(recording.told()[0].settlement, Settlement::Retry { .. }));
}

/// Hands out jobs without end and without waiting, and counts them; stops at a million, so that a worker
/// that can't be stopped ends all the same.
#[derive(Default)]
struct Flood(AtomicU64);

const FLOOD: u64 = 1_000_000;

#[async_trait::async_trait]
impl Source for Flood {
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        let max = wanted.max.get() as u64;
        let first = self.0.fetch_add(max, Ordering::SeqCst);
        if first > FLOOD {
            stop.cancelled().await;
            return Ok(Vec::new());
        }
        let deliver = |key| {
            let mut job = job(key);
            job.kind = Kind::new("nobody knows this one");
            Delivery { job: Arc::new(job), attempt: 1, tag: Tag { session: 0, key, token: 1 }, lease: None }
        };
        Ok((first..first + max).map(deliver).collect())
    }

    async fn settle(&self, _: &[Settled]) -> Result<Stale, Error> {
        Ok(Stale::default())
    }
}

under_both_in_real_time! {
    async fn a_flood_of_jobs_that_are_refused_keeps_nobody_else_from_running(dispatcher) {
        let flood = Arc::new(Flood::default());
        let worker = Worker::builder(Intake::fixed(flood.clone()), registry_of(|_| async {}))
            .unknown_kind(tidegate::UnknownKind::Reject)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        let (report, ()) = during(worker, async {
            crate::support::until("some were refused", || handle.stats().rejected > 100).await;
            assert!(handle.jobs().await.len() <= 20, "a question is answered meanwhile");
        })
        .await;
        let seen = flood.0.load(Ordering::SeqCst);
        assert!(seen < FLOOD, "it could be stopped only when the flood was over");
        assert!(report.stopping_took < Duration::from_secs(1), "it took {:?}", report.stopping_took);
    }
}
