//! Settlements and the next fetch in one exchange, with a source that can do that: the same promises hold.

use std::sync::Arc;
use std::time::Duration;

use tidegate::{Context, Dispatcher, ErrorKind, Intake, Kind, KindOptions, Source, Worker, WorkerHandle};

use crate::support::{
    Feed, Flaky, Fusing, Gate, Inside, KIND, Leftovers, Recording, SlowToSettle, brief, during, job, jobs,
    registry_of, under_both, until, yield_often,
};

/// What a fused exchange frees and takes is within the bound at every instant (P1), and no slot waits for a fetch of
/// its own.
async fn assert_bound(dispatcher: Dispatcher, max: usize, prefetch: usize) {
    const JOBS: usize = 300;
    let inside = Inside::default();
    let feed = Feed::new().with(jobs(JOBS)).shared();
    let slow = SlowToSettle::by(Duration::from_millis(2), feed.clone());
    let recording = Recording::around(slow);
    let fusing = Fusing::around(recording.clone());
    let registry = brief(&inside);
    let worker = Worker::builder(Intake::fixed(fusing.clone()), registry)
        .max_concurrent_jobs(max)
        .prefetch(prefetch)
        .dispatcher(dispatcher)
        .build()
        .expect("the settings make sense");
    let left = Leftovers::before();
    let (report, ()) = during(worker, feed.drained()).await;
    assert_eq!(report.stats.done, JOBS as u64);
    assert!(recording.most_held() <= max + prefetch, "{} were held", recording.most_held());
    assert!(recording.most_promised() <= max + prefetch, "{} were asked for", recording.most_promised());
    assert!(inside.most() <= max, "{} ran at once", inside.most());
    let (all, fused) = (recording.requests().len(), fusing.exchanges());
    assert!(fused >= JOBS / (max + prefetch) - 2, "{fused} of {all} fetches went with settlements");
    // The first, perhaps another before the source is known, and those that wait at the end.
    assert!(all - fused <= 6, "{} fetches were made apart", all - fused);
    left.none().await;
}

fn worker(
    source: Arc<dyn Source>,
    max: usize,
    dispatcher: Dispatcher,
    gate: &Arc<Gate>,
) -> (Worker, WorkerHandle) {
    let gate = gate.clone();
    let registry = registry_of(move |_: Context| {
        let gate = gate.clone();
        async move { gate.pass().await }
    });
    let worker = Worker::builder(Intake::fixed(source), registry)
        .max_concurrent_jobs(max)
        .dispatcher(dispatcher)
        .build()
        .expect("the settings make sense");
    let handle = worker.handle();
    (worker, handle)
}

under_both! {
    async fn the_bound_holds(dispatcher) {
        assert_bound(dispatcher, 4, 0).await;
    }

    async fn the_bound_holds_with_prefetch(dispatcher) {
        assert_bound(dispatcher, 4, 6).await;
    }

    async fn a_bound_of_one_runs_one_at_a_time(dispatcher) {
        assert_bound(dispatcher, 1, 0).await;
    }

    /// Short jobs do not wait for one that is long, but for a moment.
    async fn a_long_job_among_short_ones_holds_up_none(dispatcher) {
        const JOBS: usize = 200;
        let feed = Feed::new().with(jobs(JOBS)).shared();
        let gate = Gate::shut();
        let fusing = Fusing::around(SlowToSettle::by(Duration::from_millis(2), feed.clone()));
        let at_gate = gate.clone();
        let registry = registry_of(move |context: Context| {
            let gate = at_gate.clone();
            let long = context.job().id.as_str() == "20";
            async move { if long { gate.pass().await } }
        });
        let worker = Worker::builder(Intake::fixed(fusing), registry).max_concurrent_jobs(4).dispatcher(dispatcher);
        let worker = worker.build().expect("the settings make sense");
        let handle = worker.handle();
        let (report, ()) = during(worker, async {
            until("all but the long one are done", || handle.stats().done == JOBS as u64 - 1).await;
            gate.open();
            feed.drained().await;
        })
        .await;
        assert_eq!(report.stats.done, JOBS as u64);
    }

    async fn an_exchange_that_fails_is_tried_again_and_costs_no_place(dispatcher) {
        const JOBS: usize = 200;
        for acted in [false, true] {
            let feed = Feed::new().with(jobs(JOBS)).shared();
            let script = |call: usize, _: &[tidegate::Settled]| (call % 3 == 1).then_some(ErrorKind::Unavailable);
            let flaky = Flaky::around(feed.clone()).on_settle(script);
            let flaky = if acted { flaky.after_acting() } else { flaky }.shared();
            let fusing = Fusing::around(flaky);
            let gate = Gate::shut();
            gate.open();
            let (worker, _) = worker(fusing.clone(), 3, dispatcher, &gate);
            let (report, ()) = during(worker, feed.drained()).await;
            assert_eq!(report.stats.done + report.stats.stale, JOBS as u64, "acted: {acted}");
            assert_eq!((feed.done().len(), report.stats.stale > 0), (JOBS, acted));
            assert!(report.stats.settle_failures > 5 && fusing.exchanges() > 5);
        }
    }

    async fn what_an_exchange_brings_after_the_stop_is_handed_back(dispatcher) {
        let (settle, gate) = (Gate::shut(), Gate::shut());
        let feed = Feed::new().with(jobs(20)).shared();
        let slow = SlowToSettle::at(&settle, feed.clone());
        let fusing = Fusing::around(slow.clone());
        let (worker, handle) = worker(fusing.clone(), 2, dispatcher, &gate);
        let (report, ()) = during(worker, async {
            until("two run", || handle.stats().running == 2).await;
            gate.let_through(1);
            until("one is being settled, by a plain call", || slow.waiting() == 1).await;
            settle.let_through(1);
            until("another one runs", || handle.stats().started == 3).await;
            gate.let_through(1);
            until("the next is being settled, in an exchange", || fusing.exchanges() == 1 && slow.waiting() == 1).await;
            handle.stop();
            yield_often().await;
            settle.open();
            gate.open();
        })
        .await;
        assert_eq!(report.stats.done, 3, "the last of them ran on");
        assert_eq!(report.stats.released, 1, "what the exchange brought");
        assert_eq!((feed.out(), feed.waiting().len()), (0, 17));
        assert!(feed.waiting().iter().all(|(_, attempts)| *attempts == 0), "it was not counted");
    }

    async fn a_quiet_worker_settles_and_fetches_nothing_with_it(dispatcher) {
        let gate = Gate::shut();
        let feed = Feed::new().with(jobs(20)).shared();
        let recording = Recording::around(feed.clone());
        let fusing = Fusing::around(recording.clone());
        let (worker, handle) = worker(fusing.clone(), 2, dispatcher, &gate);
        during(worker, async {
            gate.let_through(4);
            until("it is known that the source fuses", || fusing.exchanges() > 0 && handle.stats().done == 4).await;
            until("two run", || handle.stats().running == 2).await;
            handle.quiet();
            handle.jobs().await; // answered after the change was seen
            handle.jobs().await;
            let asked = recording.requests().len();
            gate.let_through(2);
            until("they are settled", || handle.stats().done == 6).await;
            yield_often().await;
            assert_eq!((recording.requests().len(), recording.held()), (asked, 0));
            gate.open();
            handle.resume();
            feed.drained().await;
        })
        .await;
    }

    async fn caps_of_kinds_hold(dispatcher) {
        let inside = Inside::default();
        let mixed = (0..200).map(|number| {
            let mut job = job(number);
            if number % 2 == 0 {
                job.kind = Kind::new("other");
            }
            job
        });
        let feed = Feed::new().with(mixed).shared();
        let fusing = Fusing::around(feed.clone());
        let registry = brief(&inside)
        .handle_raw("other", |_: Context| tokio::task::yield_now())
        .options(KIND, KindOptions::new().max_concurrent_jobs(2));
        let worker = Worker::builder(Intake::fixed(fusing.clone()), registry)
            .max_concurrent_jobs(5)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let (report, ()) = during(worker, feed.drained()).await;
        assert_eq!((inside.most(), report.stats.done, report.stats.released), (2, 200, 0));
        assert!(fusing.exchanges() > 0);
    }

    async fn a_job_that_comes_while_nothing_is_there_is_fetched_at_once(dispatcher) {
        let feed = Feed::new().shared();
        let fusing = Fusing::around(feed.clone());
        let gate = Gate::shut();
        gate.open();
        let (worker, handle) = worker(fusing.clone(), 2, dispatcher, &gate);
        let began = tokio::time::Instant::now();
        during(worker, async {
            for number in 0..50 {
                feed.push(job(number));
                until("it is done", || handle.stats().done == number + 1).await;
            }
        })
        .await;
        assert!(began.elapsed() < Duration::from_secs(5), "none waited for a fetch to time out");
    }
}
