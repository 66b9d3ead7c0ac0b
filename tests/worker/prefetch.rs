//! Fetching ahead: what it may hold, and what becomes of it at a stop.

use std::time::Duration;

use tidegate::{Context, Dispatcher, Intake, JobPhase, Settlement, Worker};

use crate::support::{
    Feed, Gate, Inside, Leftovers, Recording, during, job, jobs, registry_of, under_both, until,
};

under_both! {
    async fn what_was_fetched_ahead_is_handed_back_at_a_stop_uncounted(dispatcher) {
        let (gate, inside) = (Gate::shut(), Inside::default());
        let feed = Feed::new().with(jobs(10)).shared();
        let recording = Recording::around(feed.clone());
        let registry = registry_of({
            let (gate, inside) = (gate.clone(), inside.clone());
            move |_: Context| {
                let (gate, stay) = (gate.clone(), inside.enter());
                async move {
                    gate.pass().await;
                    drop(stay);
                }
            }
        });
        let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
            .max_concurrent_jobs(2)
            .prefetch(3)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        let left = Leftovers::before();
        let (report, ()) = during(worker, async {
            until("as many are held as may be", || handle.stats().in_flight == 5 && inside.now() == 2).await;
            let phases: Vec<JobPhase> = handle.jobs().await.iter().map(|view| view.phase).collect();
            assert_eq!(phases.iter().filter(|phase| **phase == JobPhase::Prefetched).count(), 3);
            handle.stop();
            until("they are handed back", || handle.stats().released == 3).await;
            assert_eq!(handle.stats().running, 2, "what runs goes on");
            gate.open();
        })
        .await;
        assert_eq!((report.stats.done, report.stats.released, report.stats.started), (2, 3, 2));
        let back: Vec<_> = recording.told().into_iter().filter(|told| told.settlement != Settlement::Ack).collect();
        assert!(back.iter().all(|told| told.settlement == Settlement::Release { after: Duration::ZERO }));
        assert_eq!(feed.waiting().len(), 8);
        assert!(feed.waiting().iter().all(|(_, attempts)| *attempts == 0), "no attempt is counted");
        assert_eq!((inside.entered(), recording.most_held()), (2, 5));
        left.none().await;
    }

    async fn what_was_fetched_ahead_starts_before_another_fetch_is_answered(dispatcher) {
        let (gate, inside) = (Gate::shut(), Inside::default());
        let feed = Feed::new().with(jobs(4)).shared();
        let registry = registry_of({
            let (gate, inside) = (gate.clone(), inside.clone());
            move |_: Context| {
                let (gate, stay) = (gate.clone(), inside.enter());
                async move {
                    gate.pass().await;
                    drop(stay);
                }
            }
        });
        let hanging = crate::support::Hanging::around(feed.clone());
        let worker = Worker::builder(Intake::fixed(hanging.clone()), registry)
            .max_concurrent_jobs(1)
            .prefetch(3)
            .shutdown_deadline(Duration::from_secs(2))
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        during(worker, async {
            until("all are held", || handle.stats().in_flight == 4).await;
            hanging.hang_fetches(true);
            for ended in 1..=4 {
                gate.let_through(1);
                until("the next one runs", || inside.entered() == (ended + 1).min(4)).await;
            }
            until("all are settled", || handle.stats().done == 4).await;
        })
        .await;
    }

    async fn without_prefetch_nothing_is_held_that_can_not_run(dispatcher) {
        let gate = Gate::shut();
        let feed = Feed::new().with(jobs(10)).shared();
        let recording = Recording::around(feed.clone());
        let registry = registry_of({
            let gate = gate.clone();
            move |_| {
                let gate = gate.clone();
                async move { gate.pass().await }
            }
        });
        let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
            .max_concurrent_jobs(4)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        during(worker, async {
            until("all slots are taken", || handle.stats().running == 4).await;
            assert!(handle.jobs().await.iter().all(|view| view.phase != JobPhase::Prefetched));
            assert_eq!(recording.held(), 4);
            gate.open();
            feed.drained().await;
        })
        .await;
        assert_eq!(recording.most_held(), 4);
    }
}

#[test]
fn a_prefetch_beyond_all_reason_is_refused() {
    let worker = Worker::builder(Feed::new().with([job(1)]).shared().intake(), registry_of(|_| async {}));
    let error =
        worker.prefetch(usize::MAX).dispatcher(Dispatcher::Shared).build().expect_err("it makes no sense");
    assert!(error.is_invalid_input() && error.to_string().contains("prefetch"), "{error}");
}
