//! A settlement that fails is kept and tried again, until the source has confirmed it or called it stale.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tidegate::{Dispatcher, ErrorKind, Intake, ReconnectPolicy, Settlement, Worker};
use tokio::time::Instant;

use crate::support::{
    Feed, Flaky, Forgetful, Gate, Hanging, Inside, Leftovers, Maker, Recording, SlowToSettle,
    cpu_time_of_thread, during, job, jobs, registry_of, under_both, unique_name, until,
};

/// Quick enough for real threads.
fn hasty() -> ReconnectPolicy {
    let mut policy = ReconnectPolicy::default();
    policy.initial = Duration::from_millis(2);
    policy.cap = Duration::from_millis(20);
    policy
}

under_both! {
    async fn a_settlement_that_fails_is_kept_and_tried_until_it_is_confirmed(dispatcher) {
        let feed = Feed::new().with(jobs(50)).shared();
        let script = |call: usize, _: &[_]| match call % 7 {
            0 => Some(ErrorKind::Unavailable),
            2 => Some(ErrorKind::Connection),
            3 => Some(ErrorKind::Timeout),
            5 => Some(ErrorKind::Internal),
            _ => None,
        };
        let flaky = Flaky::around(feed.clone()).on_settle(script).shared();
        let recording = Recording::around(flaky.clone());
        let worker = Worker::builder(Intake::fixed(recording.clone()), registry_of(|_| async {}))
            .max_concurrent_jobs(4)
            .reconnect(hasty())
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let (report, ()) = during(worker, feed.drained()).await;

        assert_eq!(feed.done().len(), 50);
        assert_eq!((report.stats.done, report.stats.lost, report.stats.stale), (50, 0, 0));
        assert_eq!(recording.delivered().len(), 50, "no job was handed out twice");
        assert!(report.stats.settle_failures >= 4);
        assert!(recording.most_held() <= 4, "what is kept holds its place in the bound");
        Leftovers::only_mine("the recording", &recording).await;
    }

    async fn a_settlement_whose_answer_was_lost_is_sent_again_and_called_stale(dispatcher) {
        let feed = Feed::new().with([job("a")]).shared();
        let script = |call: usize, _: &[_]| (call == 0).then_some(ErrorKind::Connection);
        let flaky = Flaky::around(feed.clone()).on_settle(script).after_acting().shared();
        let worker = Worker::builder(Intake::fixed(flaky.clone()), registry_of(|_| async {}))
            .reconnect(hasty())
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        let (report, ()) = during(worker, until("it was sent again", || handle.stats().stale == 1)).await;
        assert_eq!(feed.done().len(), 1);
        assert_eq!((report.stats.done, report.stats.stale, report.stats.settle_failures), (0, 1, 1));
    }

    async fn a_settlement_that_can_never_succeed_holds_up_no_other(dispatcher) {
        let feed = Feed::new().with([job("poison")]).with(jobs(100)).shared();
        let recording = Recording::around(feed.clone());
        let poisoned = Arc::new(AtomicBool::new(true));
        let script = {
            let poisoned = poisoned.clone();
            move |_: usize, batch: &[tidegate::Settled]| {
                let bad = batch.iter().any(|settled| settled.tag.key == 0);
                (bad && poisoned.load(Ordering::SeqCst)).then_some(ErrorKind::InvalidInput)
            }
        };
        let flaky = Flaky::around(recording.clone()).on_settle(script).shared();
        let worker = Worker::builder(Intake::fixed(flaky), registry_of(|_| async {}))
            .max_concurrent_jobs(10)
            .reconnect(hasty())
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let (report, ()) = during(worker, async {
            until("only the poisoned one is kept", || recording.told().len() == 100 && recording.held() == 1).await;
            poisoned.store(false, Ordering::SeqCst);
            feed.drained().await;
        })
        .await;
        assert_eq!(report.stats.done, 101);
    }

    async fn settlements_that_go_one_by_one_follow_each_other_at_once(dispatcher) {
        let (gate, inside) = (Gate::shut(), Inside::default());
        let feed = Feed::new().with(jobs(10)).shared();
        let script = |call: usize, _: &[_]| (call == 0).then_some(ErrorKind::InvalidInput);
        let flaky = Flaky::around(feed.clone()).on_settle(script).shared();
        let registry = registry_of({
            let (gate, inside) = (gate.clone(), inside.clone());
            move |_| {
                let (gate, stay) = (gate.clone(), inside.enter());
                async move {
                    gate.pass().await;
                    drop(stay);
                }
            }
        });
        let worker = Worker::builder(Intake::fixed(flaky.clone()), registry)
            .max_concurrent_jobs(10)
            .reconnect(hasty())
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let (report, ()) = during(worker, async {
            until("all run", || inside.now() == 10).await;
            gate.open();
        })
        .await;
        // Nothing but the settlements is left to do: no job's end and no fetch wakes the loop.
        assert_eq!(report.stats.done, 10);
        assert!(report.stopping_took < Duration::from_secs(1), "it took {:?}", report.stopping_took);
    }

    async fn a_source_that_says_stale_is_believed_and_counted(dispatcher) {
        let feed = Feed::new().with(jobs(20)).shared();
        let odd = |settled: &tidegate::Settled| settled.tag.key % 2 == 1;
        let forgetful = Forgetful::of(feed.clone(), odd);
        let recording = Recording::around(forgetful);
        let worker = Worker::builder(Intake::fixed(recording.clone()), registry_of(|_| async {}))
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let (report, ()) = during(worker, recording.has_been_told(20)).await;
        assert_eq!((report.stats.done, report.stats.stale, report.stats.fetched), (10, 10, 20));
        assert!(recording.told().iter().all(|told| told.settlement == Settlement::Ack));
    }

    async fn a_settle_that_is_never_answered_is_given_up_and_tried_through_a_new_session(dispatcher) {
        let feed = Feed::new().with(jobs(3)).shared();
        let hanging = Hanging::around(feed.clone());
        hanging.hang_settles(true);
        let maker = Maker::of(hanging.clone() as Arc<dyn tidegate::Source>);
        let mut policy = hasty();
        policy.call_timeout = Duration::from_millis(300);
        let worker = Worker::builder(Intake::new(maker.clone()), registry_of(|_| async {}))
            .reconnect(policy)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let (report, ()) = during(worker, async {
            until("a settle hangs", || hanging.hung() > 0).await;
            hanging.hang_settles(false);
            feed.drained().await;
        })
        .await;
        assert_eq!(report.stats.done, 3);
        assert!(report.stats.settle_failures >= 1);
        assert!(maker.made() >= 2, "a session that does not answer is given up");
        assert_eq!(maker.most_connecting(), 1);
        assert_eq!(maker.alive(), 0, "sessions end with the worker");
    }
}

/// P6: a poison settlement costs its own place, and not the others their pace.
#[tokio::test(start_paused = true)]
async fn a_settlement_that_can_never_succeed_does_not_set_the_pace_of_the_others() {
    let feed = Feed::new().with([job("poison")]).with(jobs(1000)).shared();
    let poison = |settled: &tidegate::Settled| settled.tag.key == 0;
    let script = move |_: usize, batch: &[tidegate::Settled]| {
        batch.iter().any(poison).then_some(ErrorKind::InvalidInput)
    };
    let flaky = Flaky::around(feed.clone()).on_settle(script).shared();
    let worker = Worker::builder(Intake::fixed(flaky.clone()), registry_of(|_| async {}))
        .max_concurrent_jobs(20)
        .shutdown_deadline(Duration::from_secs(1))
        .dispatcher(tidegate::Dispatcher::Shared)
        .build()
        .expect("the settings make sense");
    let shutdown = tidegate::Shutdown::new();
    let began = Instant::now();
    let (report, took) = tokio::join!(worker.run(shutdown.clone()), async {
        feed.finished(1000).await;
        shutdown.stop();
        began.elapsed()
    });
    assert_eq!((report.stats.done, report.held.len()), (1000, 1));
    let tries = flaky.settles();
    // Two waits of at most 100 ms for each batch of twenty; waits that grew would come to minutes.
    assert!(took < Duration::from_secs(15), "the others took {took:?}, in {tries} tries");
}

/// Settlements gather while one batch is under way, and go together with the next.
#[tokio::test(start_paused = true)]
async fn what_ends_during_a_settlement_goes_with_the_next() {
    let feed = Feed::new().with(jobs(64)).shared();
    let slow = SlowToSettle::by(Duration::from_millis(100), feed.clone());
    let recording = Recording::around(slow);
    let worker = Worker::builder(Intake::fixed(recording.clone()), registry_of(|_| async {}))
        .max_concurrent_jobs(64)
        .dispatcher(tidegate::Dispatcher::Shared)
        .build()
        .expect("the settings make sense");
    let began = Instant::now();
    during(worker, feed.drained()).await;
    assert!(began.elapsed() <= Duration::from_millis(200), "{:?}", recording.batches());
}

/// More than one batch can carry: the rest follows at once although nothing else happens.
#[tokio::test(start_paused = true)]
async fn a_thousand_ends_at_once_are_settled_without_delay() {
    const JOBS: usize = 3000;
    let gate = Gate::shut();
    let feed = Feed::new().with(jobs(JOBS)).shared();
    let recording = Recording::around(feed.clone());
    let registry = registry_of({
        let gate = gate.clone();
        move |_| {
            let gate = gate.clone();
            async move { gate.pass().await }
        }
    });
    let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
        .max_concurrent_jobs(JOBS)
        .dispatcher(tidegate::Dispatcher::Shared)
        .build()
        .expect("the settings make sense");
    let handle = worker.handle();
    let (report, ()) = during(worker, async {
        until("all run", || handle.stats().running == JOBS as u64).await;
        handle.quiet();
        gate.open();
        let began = Instant::now();
        feed.drained().await;
        assert!(
            began.elapsed() < Duration::from_millis(10),
            "{:?} in {:?}",
            recording.batches(),
            began.elapsed()
        );
    })
    .await;
    assert_eq!(report.stats.done, JOBS as u64);
    assert!(recording.batches().iter().all(|size| *size <= 1024));
}

/// How much of a CPU the loop may use while it has nothing to do.
const IDLE_SHARE: u32 = 4;

/// The loop's thread, watched for a fifth of a second of real time in which it has nothing to do.
async fn assert_idle(name: &str) {
    let thread = format!("tidegate-{name}");
    let before = cpu_time_of_thread(&thread);
    let watched = Duration::from_millis(200);
    tokio::time::sleep(watched).await;
    let used = cpu_time_of_thread(&thread) - before;
    assert!(used < watched / IDLE_SHARE, "the loop used {used:?} of {watched:?} while it had nothing to do");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loop_does_not_spin_while_a_settlement_that_failed_is_tried_again() {
    let name = unique_name();
    let (settle, end) = (Gate::shut(), Gate::shut());
    let feed = Feed::new().with(jobs(2)).shared();
    let slow = SlowToSettle::at(&settle, feed.clone());
    let script = |call: usize, _: &[_]| (call == 0).then_some(ErrorKind::Unavailable);
    let flaky = Flaky::around(slow.clone()).on_settle(script).shared();
    let registry = registry_of({
        let end = end.clone();
        move |_| {
            let end = end.clone();
            async move { end.pass().await }
        }
    });
    let worker = Worker::builder(Intake::fixed(flaky), registry)
        .name(&name)
        .reconnect(hasty())
        .build()
        .expect("the settings make sense");
    let handle = worker.handle();
    during(worker, async {
        until("both run", || handle.stats().running == 2).await;
        end.let_through(1);
        until("the first is tried again", || slow.waiting() == 1).await;
        end.let_through(1);
        until("the second waits for its turn", || handle.stats().running == 0).await;
        assert_idle(&name).await;
        settle.open();
        feed.drained().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loop_does_not_spin_when_it_is_quiet_after_a_fetch_failed() {
    let name = unique_name();
    let feed = Feed::new().shared();
    let flaky = Flaky::around(feed.clone()).on_fetch(|_| Some(ErrorKind::Unavailable)).shared();
    let worker = Worker::builder(Intake::fixed(flaky.clone()), registry_of(|_| async {}))
        .name(&name)
        .reconnect(hasty())
        .build()
        .expect("the settings make sense");
    let handle = worker.handle();
    during(worker, async {
        until("a fetch failed", || flaky.fetches() >= 2).await;
        handle.quiet();
        assert_idle(&name).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loop_does_not_spin_while_it_waits_for_work() {
    let name = unique_name();
    let end = Gate::shut();
    let feed = Feed::new().with(jobs(3)).shared();
    let registry = registry_of({
        let end = end.clone();
        move |_| {
            let end = end.clone();
            async move { end.pass().await }
        }
    });
    let worker = Worker::builder(feed.intake(), registry)
        .name(&name)
        .max_concurrent_jobs(3)
        .build()
        .expect("the settings make sense");
    let handle = worker.handle();
    during(worker, async {
        until("all slots are taken", || handle.stats().running == 3).await;
        assert_idle(&name).await;
        end.open();
        feed.drained().await;
        assert_idle(&name).await;
    })
    .await;
}

/// Permits that are on their way are waited for, so that one fetch asks for all of them; but not for long.
#[tokio::test(start_paused = true)]
async fn a_fetch_waits_a_little_for_permits_that_are_on_their_way() {
    for (settling_takes, asked, moment) in
        [(Duration::from_millis(5), [12, 12], 10), (Duration::from_millis(500), [12, 5], 520)]
    {
        let feed = Feed::new().with(jobs(12)).shared();
        let slow = SlowToSettle::by(settling_takes, feed.clone());
        let recording = Recording::around(slow);
        // Five are over at once; the others while these are being settled.
        let started = AtomicUsize::new(0);
        let registry = registry_of(move |_| {
            let early = started.fetch_add(1, Ordering::SeqCst) < 5;
            async move {
                if !early {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        });
        let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
            .max_concurrent_jobs(12)
            .dispatcher(Dispatcher::Shared)
            .build()
            .expect("the settings make sense");
        let begun = Instant::now();
        let (_, took) = during(worker, async {
            until("it has asked twice", || recording.requests().len() == 2).await;
            begun.elapsed()
        })
        .await;
        let requests: Vec<usize> =
            recording.requests().iter().take(2).map(|wanted| wanted.max.get()).collect();
        assert_eq!(requests, asked, "settling takes {settling_takes:?}");
        let moment = Duration::from_millis(moment);
        assert!(
            (moment..moment + Duration::from_millis(8)).contains(&took),
            "{took:?} instead of {moment:?}"
        );
    }
}
