//! P1: never more than `max_concurrent_jobs` deliveries are past fetch and not yet settled, plus at most
//! `prefetch`.

use std::time::Duration;

use tidegate::{Context, Dispatcher, Intake, Worker};

use crate::support::{
    Dice, Feed, Gate, Inside, Leftovers, Recording, SlowToSettle, brief, during, job_with, jobs, number,
    registry_of, under_both, until, yield_often,
};

/// Runs `count` jobs that do nothing through a source that takes its time to settle.
async fn assert_bound_under_slow_settling(dispatcher: Dispatcher, max: usize, prefetch: usize) {
    const JOBS: usize = 300;
    let inside = Inside::default();
    let feed = Feed::new().with(jobs(JOBS)).shared();
    let slow = SlowToSettle::by(Duration::from_millis(2), feed.clone());
    let recording = Recording::around(slow);
    let registry = brief(&inside);
    let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
        .max_concurrent_jobs(max)
        .prefetch(prefetch)
        .dispatcher(dispatcher)
        .build()
        .expect("the settings make sense");
    let handle = worker.handle();
    let left = Leftovers::before();
    let (report, ()) = during(worker, feed.drained()).await;

    assert_eq!(report.stats.done, JOBS as u64);
    assert!(recording.most_held() <= max + prefetch, "{} were held", recording.most_held());
    assert!(recording.most_promised() <= max + prefetch, "{} were asked for", recording.most_promised());
    assert_eq!(recording.most_held(), max + prefetch, "all places were used at some time");
    assert!(inside.most() <= max, "{} ran at once", inside.most());
    assert_eq!(recording.most_fetching(), 1);
    assert_eq!(recording.held(), 0);
    assert_eq!((handle.stats().in_flight, handle.stats().running), (0, 0));
    Leftovers::only_mine("the recording", &recording).await;
    left.none().await;
}

under_both! {
    async fn no_more_are_unsettled_than_may_run_while_settling_is_slow(dispatcher) {
        assert_bound_under_slow_settling(dispatcher, 4, 0).await;
    }

    async fn no_more_are_unsettled_than_may_run_and_be_prefetched_while_settling_is_slow(dispatcher) {
        assert_bound_under_slow_settling(dispatcher, 4, 6).await;
    }

    async fn a_bound_of_one_runs_one_at_a_time(dispatcher) {
        assert_bound_under_slow_settling(dispatcher, 1, 0).await;
    }

    async fn a_place_is_free_only_when_the_settlement_is_confirmed(dispatcher) {
        let gate = Gate::shut();
        let feed = Feed::new().with(jobs(10)).shared();
        let slow = SlowToSettle::at(&gate, feed.clone());
        let recording = Recording::around(slow.clone());
        let worker = Worker::builder(Intake::fixed(recording.clone()), registry_of(|_| async {}))
            .max_concurrent_jobs(3)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        let (report, ()) = during(worker, async {
            until("all three have ended", || handle.stats().running == 0 && handle.stats().started == 3).await;
            until("a settlement is under way", || slow.waiting() > 0).await;
            yield_often().await;
            let (held, asked) = (recording.held(), recording.requests().len());
            assert_eq!((held, handle.stats().in_flight), (3, 3), "no place is free although no job runs");
            // Everything is taken, so nothing is asked for until a settlement is through.
            yield_often().await;
            assert_eq!(recording.requests().len(), asked);
            assert_eq!(recording.delivered().len(), 3);
            gate.open();
            feed.drained().await;
        })
        .await;
        assert_eq!(report.stats.done, 10);
        assert_eq!(recording.most_held(), 3);
    }

    async fn a_source_that_brings_more_than_was_asked_for_is_held_to_the_bound_at_the_next_fetch(dispatcher) {
        let inside = Inside::default();
        let feed = Feed::new().with(jobs(40)).shared();
        let greedy = std::sync::Arc::new(Greedy { inner: feed.clone(), extra: 5 });
        let recording = Recording::around(greedy);
        let registry = brief(&inside);
        let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
            .max_concurrent_jobs(3)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let (report, ()) = during(worker, feed.drained()).await;
        assert_eq!(report.stats.done, 40, "what was brought is run all the same");
        assert!(inside.most() <= 3, "{} ran at once", inside.most());
        assert!(recording.most_promised() <= 3);
    }
}

/// Brings more than it was asked for.
struct Greedy {
    inner: std::sync::Arc<Feed>,
    extra: usize,
}

#[async_trait::async_trait]
impl tidegate::Source for Greedy {
    async fn fetch(
        &self,
        wanted: &tidegate::FetchRequest,
        stop: &tokio_util::sync::CancellationToken,
    ) -> Result<Vec<tidegate::Delivery>, tidegate::Error> {
        let mut wanted = wanted.clone();
        wanted.max = wanted.max.saturating_add(self.extra);
        self.inner.fetch(&wanted, stop).await
    }

    async fn settle(&self, settled: &[tidegate::Settled]) -> Result<tidegate::Stale, tidegate::Error> {
        self.inner.settle(settled).await
    }
}

/// On one thread the moment of each change is known, so the bound is checked against the number of that
/// moment.
#[tokio::test(start_paused = true)]
async fn the_bound_holds_at_every_instant_while_it_is_raised_and_lowered() {
    const PREFETCH: usize = 3;
    for seed in 0..8 {
        let mut dice = Dice(seed);
        let inside = Inside::default();
        let feed = Feed::generated(100_000, |number| job_with(number, 1 + (number * 13) % 40)).shared();
        let slow = SlowToSettle::by(Duration::from_millis(3), feed.clone());
        let recording = Recording::around(slow);
        let registry = registry_of({
            let inside = inside.clone();
            move |context: Context| {
                let stay = inside.enter();
                async move {
                    tokio::time::sleep(Duration::from_millis(number(&context))).await;
                    drop(stay);
                }
            }
        });
        let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
            .max_concurrent_jobs(10)
            .prefetch(PREFETCH)
            .dispatcher(Dispatcher::Shared)
            .seed(seed)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        let (report, ()) = during(worker, async {
            for _ in 0..60 {
                let limit = 1 + usize::try_from(dice.roll(30)).expect("it is below 30");
                handle.set_max_concurrent_jobs(limit).expect("it is in the range");
                yield_often().await;
                recording.forget_the_most();
                inside.forget_the_most();
                let (held, running) = (recording.held(), inside.now());
                tokio::time::sleep(Duration::from_millis(dice.roll(100))).await;
                // What was above the new bound may stay until it ends, and nothing is added to it.
                assert!(recording.most_held() <= held.max(limit + PREFETCH), "seed {seed}");
                assert!(recording.most_promised() <= limit + PREFETCH, "seed {seed}");
                assert!(inside.most() <= running.max(limit), "seed {seed}");
            }
        })
        .await;
        assert!(report.stats.done > 0);
        assert_eq!(recording.held(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_greatest_bound_holds_on_threads_while_it_is_raised_and_lowered() {
    let inside = Inside::default();
    let feed = Feed::new().with(jobs(3000)).shared();
    let recording = Recording::around(feed.clone());
    let registry = brief(&inside);
    let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
        .max_concurrent_jobs(8)
        .build()
        .expect("the settings make sense");
    let handle = worker.handle();
    let mut dice = Dice(1);
    let (report, ()) = during(worker, async {
        let mut done = std::pin::pin!(feed.drained());
        while futures_util::poll!(done.as_mut()).is_pending() {
            let limit = 1 + usize::try_from(dice.roll(8)).expect("it is below 8");
            handle.set_max_concurrent_jobs(limit).expect("it is in the range");
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(report.stats.done, 3000);
    assert!(recording.most_held() <= 8 && inside.most() <= 8);
}
