//! Queues and handlers that change while a worker runs: nothing is dropped, and what is in hand keeps what it had.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tidegate::{
    Context, Enqueue as _, ErrorKind, Inspect as _, KindOptions, Memory, NewJob, Queues, Registry, Worker,
};

use crate::support::{Gate, Inside, KIND, during, gated, registry_of, under_both, until, yield_often};

/// A registry whose jobs only count.
fn counting(counter: &Arc<AtomicUsize>) -> Registry {
    let counter = counter.clone();
    registry_of(move |_: Context| {
        counter.fetch_add(1, Ordering::SeqCst);
        async {}
    })
}

fn jobs(count: usize) -> Vec<NewJob> {
    (0..count).map(|_| NewJob::new(KIND, "null")).collect()
}

under_both! {
    async fn what_is_fetched_after_a_change_runs_by_the_new_handler_and_what_runs_ends_by_the_old(dispatcher) {
        let (gate, inside, memory) = (Gate::shut(), Inside::default(), Memory::new());
        let worker = Worker::builder(memory.intake(), gated(&gate, &inside))
            .max_concurrent_jobs(2)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        let new = Arc::new(AtomicUsize::new(0));
        let (report, ()) = during(worker, async {
            memory.enqueue(jobs(1)).await.expect("room");
            until("the first runs", || inside.now() == 1).await;
            handle.set_registry(counting(&new)).expect("it makes sense");
            memory.enqueue(jobs(3)).await.expect("room");
            until("the others are done", || handle.stats().done == 3).await;
            assert_eq!((inside.now(), new.load(Ordering::SeqCst)), (1, 3));
            gate.open();
            memory.drained().await;
        })
        .await;
        assert_eq!((report.stats.done, inside.entered()), (4, 1));
    }

    async fn no_job_is_lost_while_handlers_change_again_and_again(dispatcher) {
        let memory = Memory::new();
        let counters: Vec<_> = (0..20).map(|_| Arc::new(AtomicUsize::new(0))).collect();
        let worker = Worker::builder(memory.intake(), counting(&counters[0]))
            .max_concurrent_jobs(4)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        let (report, ()) = during(worker, async {
            for (at, counter) in counters.iter().enumerate() {
                handle.set_registry(counting(counter)).expect("it makes sense");
                memory.enqueue(jobs(100)).await.expect("room");
                until("half of it is done", || handle.stats().done >= at as u64 * 100 + 50).await;
            }
            memory.drained().await;
        })
        .await;
        let ran: usize = counters.iter().map(|counter| counter.load(Ordering::SeqCst)).sum();
        assert_eq!((report.stats.done, ran), (2000, 2000));
        let last = counters[19].load(Ordering::SeqCst);
        assert!(last >= 100, "the last hundred and more ran by the last: {last}");
    }

    async fn a_kind_that_was_unknown_is_known_after_a_change_and_the_other_way_round(dispatcher) {
        let memory = Memory::new();
        let (old, new) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let worker = Worker::builder(memory.intake(), counting(&old))
            .unknown_kind(tidegate::UnknownKind::Reject)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        during(worker, async {
            let counter = new.clone();
            handle
                .set_registry(Registry::new().handle_raw("other", move |_: Context| {
                    counter.fetch_add(1, Ordering::SeqCst);
                    async {}
                }))
                .expect("it makes sense");
            handle.jobs().await; // answered after the change was seen
            memory.enqueue(vec![NewJob::new("other", ""), NewJob::new(KIND, "")]).await.expect("room");
            memory.drained().await;
        })
        .await;
        assert_eq!((old.load(Ordering::SeqCst), new.load(Ordering::SeqCst)), (0, 1));
        assert_eq!(memory.counts().await.expect("counted").dead, 1);
    }

    async fn jobs_in_hand_count_against_a_new_cap(dispatcher) {
        let (gate, inside, memory) = (Gate::shut(), Inside::default(), Memory::new());
        let worker = Worker::builder(memory.intake(), gated(&gate, &inside))
            .max_concurrent_jobs(9)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        during(worker, async {
            memory.enqueue(jobs(2)).await.expect("room");
            until("two run", || inside.now() == 2).await;
            let capped = gated(&gate, &inside).options(KIND, KindOptions::new().max_concurrent_jobs(3));
            handle.set_registry(capped).expect("it makes sense");
            handle.jobs().await;
            memory.enqueue(jobs(5)).await.expect("room");
            until("three run", || inside.now() == 3).await;
            yield_often().await;
            assert_eq!(inside.now(), 3, "the cap holds");
            gate.open();
            memory.drained().await;
        })
        .await;
        assert_eq!((inside.entered(), inside.most()), (7, 3));
    }

    async fn other_queues_are_served_from_the_next_fetch_on(dispatcher) {
        let (memory, ran) = (Memory::new(), Arc::new(AtomicUsize::new(0)));
        let worker = Worker::builder(memory.intake(), counting(&ran))
            .queues(Queues::strict(["a"]))
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        during(worker, async {
            memory.enqueue(vec![NewJob::new(KIND, "").queue("b")]).await.expect("room");
            handle.jobs().await;
            handle.jobs().await;
            assert_eq!(ran.load(Ordering::SeqCst), 0, "nobody serves b");
            // The fetch for `a` waits for ten seconds: it is told to return.
            handle.set_queues(Queues::strict(["b"])).expect("it makes sense");
            until("b is served", || ran.load(Ordering::SeqCst) == 1).await;
            memory.enqueue(vec![NewJob::new(KIND, "").queue("a")]).await.expect("room");
            handle.jobs().await;
            handle.jobs().await;
            assert_eq!(memory.counts().await.expect("counted").ready, 1, "nobody serves a");
        })
        .await;
    }
}

#[tokio::test]
async fn what_makes_no_sense_changes_nothing() {
    let (memory, ran) = (Memory::new(), Arc::new(AtomicUsize::new(0)));
    let worker = Worker::builder(memory.intake(), counting(&ran)).build().expect("the settings make sense");
    let handle = worker.handle();
    let refused = |answer: Result<(), tidegate::Error>| answer.expect_err("refused").kind();
    assert_eq!(refused(handle.set_registry(Registry::new())), ErrorKind::InvalidInput);
    let zero = counting(&ran).options(KIND, KindOptions::new().max_concurrent_jobs(0));
    assert_eq!(refused(handle.set_registry(zero)), ErrorKind::InvalidInput);
    assert_eq!(refused(handle.set_queues(Queues::strict(["a", "a"]))), ErrorKind::InvalidInput);
    memory.enqueue(jobs(3)).await.expect("room");
    during(worker, memory.drained()).await;
    assert_eq!(ran.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn what_is_changed_before_the_start_holds_from_the_first_fetch_on() {
    let (memory, old, new) = (Memory::new(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let worker = Worker::builder(memory.intake(), counting(&old)).build().expect("the settings make sense");
    worker.handle().set_registry(counting(&new)).expect("it makes sense");
    memory.enqueue(jobs(3)).await.expect("room");
    during(worker, memory.drained()).await;
    assert_eq!((old.load(Ordering::SeqCst), new.load(Ordering::SeqCst)), (0, 3));
}
