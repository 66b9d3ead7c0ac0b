//! What a handler is given, and P6: the children that a job starts end before it is settled.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate::source::MAX_OUTPUT_BYTES;
use tidegate::{CancelReason, Context, Dispatcher, Intake, Registry, Report, Settlement, Worker};

use crate::support::{
    Feed, Gate, Inside, Leftovers, Recording, during, job, job_with, panics, registry_of, under_both, until,
};

/// What was so when the settlement of the only job reached the source.
struct AtSettlement {
    report: Report,
    recording: Arc<Recording>,
    children: usize,
}

/// A source that looks at who is inside whenever something is settled.
struct Watching {
    inner: Arc<Feed>,
    inside: Inside,
    seen: Mutex<Vec<usize>>,
}

#[async_trait::async_trait]
impl tidegate::Source for Watching {
    async fn fetch(
        &self,
        wanted: &tidegate::FetchRequest,
        stop: &tokio_util::sync::CancellationToken,
    ) -> Result<Vec<tidegate::Delivery>, tidegate::Error> {
        self.inner.fetch(wanted, stop).await
    }

    async fn settle(&self, settled: &[tidegate::Settled]) -> Result<tidegate::Stale, tidegate::Error> {
        self.seen.lock().expect("no test thread panicked").push(self.inside.now());
        self.inner.settle(settled).await
    }
}

async fn settle_once(dispatcher: Dispatcher, inside: &Inside, registry: Registry) -> AtSettlement {
    let feed = Feed::new().with([job("parent")]).shared();
    let watching = Arc::new(Watching { inner: feed, inside: inside.clone(), seen: Mutex::default() });
    let recording = Recording::around(watching.clone());
    let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
        .job_timeout(Duration::from_millis(300))
        .cancel_grace(Duration::from_millis(5))
        .dispatcher(dispatcher)
        .build()
        .expect("the settings make sense");
    let left = Leftovers::before();
    let (report, ()) = during(worker, recording.has_been_told(1)).await;
    left.none().await;
    let children = watching.seen.lock().expect("no test thread panicked")[0];
    AtSettlement { report, recording, children }
}

/// Starts three children that never end by themselves, in a scope that outlives this call in `kept`.
async fn start_children(context: &Context, inside: &Inside) -> tidegate::Scope {
    let scope = context.scope(8);
    for _ in 0..3 {
        let stay = inside.enter();
        scope
            .spawn(async move {
                let _stay = stay;
                std::future::pending::<Result<(), std::io::Error>>().await
            })
            .await
            .expect("there is room");
    }
    until("the children run", || inside.now() >= 3).await;
    scope
}

under_both! {
    async fn children_end_before_the_settlement_when_the_handler_returns_early(dispatcher) {
        let inside = Inside::default();
        let registry = registry_of({
            let inside = inside.clone();
            move |context: Context| {
                let inside = inside.clone();
                async move {
                    // Forgotten, so that nothing but the job itself ends them.
                    std::mem::forget(start_children(&context, &inside).await);
                }
            }
        });
        let at = settle_once(dispatcher, &inside, registry).await;
        assert_eq!((inside.entered(), at.children), (3, 0));
        assert_eq!(at.recording.told()[0].settlement, Settlement::Ack);
    }

    async fn children_end_before_the_settlement_when_the_handler_panics(dispatcher) {
        let inside = Inside::default();
        let registry = registry_of({
            let inside = inside.clone();
            move |context: Context| {
                let inside = inside.clone();
                async move {
                    let _scope = start_children(&context, &inside).await;
                    panics("with children");
                }
            }
        });
        let at = settle_once(dispatcher, &inside, registry).await;
        assert_eq!((inside.entered(), at.children), (3, 0));
        assert_eq!(at.report.stats.panicked, 1);
    }

    async fn children_end_before_the_settlement_when_the_job_times_out(dispatcher) {
        let inside = Inside::default();
        let registry = registry_of({
            let inside = inside.clone();
            move |context: Context| {
                let inside = inside.clone();
                async move {
                    let scope = start_children(&context, &inside).await;
                    let _ = scope.join().await;
                    std::future::pending::<()>().await;
                }
            }
        });
        let at = settle_once(dispatcher, &inside, registry).await;
        assert_eq!((inside.entered(), at.children), (3, 0));
        assert_eq!((at.report.stats.timed_out, at.report.stats.aborted), (1, 1));
    }

    async fn children_that_are_joined_have_all_done_their_work(dispatcher) {
        let inside = Inside::default();
        let registry = registry_of({
            let inside = inside.clone();
            move |context: Context| {
                let inside = inside.clone();
                async move {
                    let scope = context.scope(4);
                    for _ in 0..20 {
                        let inside = inside.clone();
                        let child = async move {
                            let _stay = inside.enter();
                            tokio::task::yield_now().await;
                            Ok::<(), std::io::Error>(())
                        };
                        scope.spawn(child).await?;
                    }
                    scope.join().await
                }
            }
        });
        let at = settle_once(dispatcher, &inside, registry).await;
        assert_eq!((inside.entered(), inside.now(), at.children), (20, 0, 0));
        assert!(inside.most() <= 4);
        assert_eq!(at.recording.told()[0].settlement, Settlement::Ack);
    }

    async fn a_childs_error_is_the_jobs_reason(dispatcher) {
        let registry = registry_of(|context: Context| async move {
            let scope = context.scope(2);
            scope.spawn(async { Err::<(), _>(std::io::Error::other("disk full")) }).await?;
            scope.join().await
        });
        let at = settle_once(dispatcher, &Inside::default(), registry).await;
        let reason = at.recording.told()[0].reason.clone().expect("it failed");
        assert!(reason.contains("disk full"), "{reason}");
    }

    async fn a_handler_sees_its_job_and_attempt(dispatcher) {
        let feed = Feed::new().with([job_with("first", "some bytes")]).shared();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let registry = registry_of({
            let seen = seen.clone();
            move |context: Context| {
                let job = context.job();
                let line = format!("{} {} {:?} {}", job.id, job.queue, context.payload(), context.attempt());
                seen.lock().expect("no test thread panicked").push(line);
                let again = context.attempt() < 3;
                async move { if again { Err("again") } else { Ok(()) } }
            }
        });
        let worker = Worker::builder(feed.intake(), registry)
            .retry(tidegate::RetryPolicy::default().initial(Duration::from_millis(1)))
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        during(worker, feed.drained()).await;
        let seen = seen.lock().expect("no test thread panicked").clone();
        let expected: Vec<_> = (1..=3).map(|attempt| format!("first default b\"some bytes\" {attempt}")).collect();
        assert_eq!(seen, expected);
    }

    async fn every_token_of_a_job_is_cancelled_with_it_whenever_it_was_made(dispatcher) {
        let gate = Gate::shut();
        let feed = Feed::new().with([job("a")]).shared();
        let registry = registry_of({
            let gate = gate.clone();
            move |context: Context| {
                let gate = gate.clone();
                async move {
                    let before = context.cancellation_token();
                    assert!(!before.is_cancelled() && !context.is_cancelled() && context.cancel_reason().is_none());
                    // Cancelling a token of its own has no effect on the job.
                    context.cancellation_token().cancel();
                    assert!(!context.is_cancelled() && !before.is_cancelled());
                    gate.let_through(1);
                    before.cancelled().await;
                    context.cancelled().await;
                    let after = context.cancellation_token();
                    assert!(after.is_cancelled() && context.is_cancelled());
                    assert_eq!(context.cancel_reason(), Some(CancelReason::Requested));
                    let scope = context.scope(1);
                    assert!(scope.spawn(async { Ok::<(), std::io::Error>(()) }).await.is_err(), "too late for children");
                }
            }
        });
        let worker =
            Worker::builder(feed.intake(), registry).dispatcher(dispatcher).build().expect("the settings make sense");
        let handle = worker.handle();
        let (report, ()) = during(worker, async {
            gate.pass().await;
            assert!(handle.cancel_job(&job("a").id).await);
            feed.drained().await;
        })
        .await;
        assert_eq!((report.stats.done, report.stats.panicked), (1, 0), "{:?}", feed.dead());
    }

    async fn a_context_that_outlives_its_job_says_nothing_of_the_next(dispatcher) {
        let kept: Arc<Mutex<Vec<Context>>> = Arc::default();
        let feed = Feed::new().with((0..50).map(|number| job_with(number, format!("payload {number}")))).shared();
        let registry = registry_of({
            let kept = kept.clone();
            move |context: Context| {
                kept.lock().expect("no test thread panicked").push(context);
                async {}
            }
        });
        let worker = Worker::builder(feed.intake(), registry)
            .max_concurrent_jobs(2)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        during(worker, feed.drained()).await;
        let kept = kept.lock().expect("no test thread panicked");
        let mut ids: Vec<usize> = kept.iter().map(|context| context.job().id.as_str().parse().expect("a number")).collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..50).collect::<Vec<_>>());
        assert!(kept.iter().all(|context| context.payload() == &format!("payload {}", context.job().id)));
    }

    async fn no_payload_is_kept_for_longer_than_its_job(dispatcher) {
        const JOBS: usize = 300;
        let made: Arc<Mutex<Vec<std::sync::Weak<tidegate::Job>>>> = Arc::default();
        let feed = Feed::generated(JOBS, job).shared();
        let registry = registry_of({
            let made = made.clone();
            move |context: Context| {
                made.lock().expect("no test thread panicked").push(Arc::downgrade(context.job()));
                async {}
            }
        });
        let worker = Worker::builder(feed.intake(), registry)
            .max_concurrent_jobs(5)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        during(worker, async {
            feed.drained().await;
            let alive = || {
                let made = made.lock().expect("no test thread panicked");
                made.iter().filter(|job| job.strong_count() > 0).count()
            };
            // The worker still runs, with nothing to do.
            until("no job is held", || alive() == 0).await;
        })
        .await;
        assert_eq!(made.lock().expect("no test thread panicked").len(), JOBS);
    }

    async fn what_a_handler_leaves_goes_with_its_own_settlement_whatever_that_is(dispatcher) {
        let feed = Feed::new().with([job("done"), job("failed"), job("silent"), job("long")]).shared();
        let recording = Recording::around(feed.clone());
        let registry = registry_of(|context: Context| async move {
            match context.job().id.as_str() {
                "done" => {
                    context.keep_output(b"first");
                    context.keep_output(b"last \xff");
                    Ok(())
                }
                "failed" => {
                    context.keep_output(b"why");
                    Err("no")
                }
                "long" => {
                    context.keep_output(&vec![7; MAX_OUTPUT_BYTES + 1]);
                    Ok(())
                }
                _ => Ok(()),
            }
        });
        let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
            .max_concurrent_jobs(1) // so that the control blocks go round
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        during(worker, recording.has_been_told(4)).await;
        let output = |id| recording.told_of(id)[0].output.clone();
        assert_eq!(output("done").as_deref(), Some(&b"last \xff"[..]));
        assert_eq!(output("failed").as_deref(), Some(&b"why"[..]));
        assert_eq!(output("silent"), None);
        assert_eq!(output("long").expect("cut").len(), MAX_OUTPUT_BYTES);
    }
}
