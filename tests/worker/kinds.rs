//! Caps of kinds, and which queue comes first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate::{
    Context, Dispatcher, Intake, Job, Kind, KindOptions, Queue, Queues, Registry, Settlement, Worker,
};

use crate::support::{Feed, Gate, Inside, Leftovers, Recording, during, job, under_both, until, yield_often};

fn of_kind(kind: &str, number: usize) -> Job {
    let mut job = job(format!("{kind}-{number}"));
    job.kind = Kind::new(kind);
    job
}

fn in_queue(queue: &str, number: usize) -> Job {
    let mut job = job(format!("{queue}-{number}"));
    job.queue = Queue::new(queue);
    job
}

/// Two kinds that count who is inside; `rare` may run twice at once.
struct Kinds {
    rare: Inside,
    common: Inside,
    registry: Registry,
}

fn kinds(time: Duration) -> Kinds {
    let (rare, common) = (Inside::default(), Inside::default());
    let counted = |inside: &Inside| {
        let inside = inside.clone();
        move |_: Context| {
            let stay = inside.enter();
            async move {
                tokio::time::sleep(time).await;
                drop(stay);
            }
        }
    };
    let registry = Registry::new()
        .handle_raw("rare", counted(&rare))
        .handle_raw("common", counted(&common))
        .options("rare", KindOptions::new().max_concurrent_jobs(2));
    Kinds { rare, common, registry }
}

under_both! {
    async fn a_kind_with_a_cap_never_exceeds_it(dispatcher) {
        let Kinds { rare, common, registry } = kinds(Duration::from_millis(1));
        let mixed = (0..60).map(|number| of_kind(if number % 3 == 0 { "common" } else { "rare" }, number));
        let feed = Feed::new().with(mixed).shared();
        let recording = Recording::around(feed.clone());
        let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
            .max_concurrent_jobs(10)
            .prefetch(5)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let (report, ()) = during(worker, feed.drained()).await;
        assert_eq!(report.stats.done, 60);
        assert_eq!(rare.most(), 2, "the cap is kept, and used");
        assert!(common.most() > 2);
        // A source that filters is never asked for more than the cap leaves.
        assert_eq!((report.stats.released, report.stats.snoozed), (0, 0));
        let quota = Kind::new("rare");
        assert!(recording.requests().iter().all(|asked| asked.quota(&quota).is_some_and(|left| left <= 2)));
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_source_without_filters_brings_above_a_cap_is_handed_back_uncounted() {
    let Kinds { rare, registry, .. } = kinds(Duration::from_millis(100));
    let feed = Feed::new().without_filters().with((0..20).map(|number| of_kind("rare", number))).shared();
    let recording = Recording::around(feed.clone());
    let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
        .max_concurrent_jobs(10)
        .dispatcher(Dispatcher::Shared)
        .build()
        .expect("the settings make sense");
    let (report, ()) = during(worker, feed.drained()).await;
    assert_eq!((report.stats.done, report.stats.started), (20, 20));
    assert_eq!(rare.most(), 2);
    let back =
        recording.told().iter().filter(|told| matches!(told.settlement, Settlement::Release { .. })).count();
    assert!(back > 0);
    assert!(
        recording.told().iter().all(|told| told.attempt == 1),
        "no attempt is counted for being handed back"
    );
    assert_eq!((report.stats.released, report.stats.snoozed), (back as u64, 0), "no handler asked for later");
}

#[tokio::test(start_paused = true)]
async fn a_kind_at_its_cap_does_not_keep_others_waiting() {
    let Kinds { rare, common, registry } = kinds(Duration::from_secs(100));
    let feed = Feed::new().with((0..10).map(|number| of_kind("rare", number))).shared();
    let worker = Worker::builder(feed.intake(), registry)
        .max_concurrent_jobs(6)
        .dispatcher(Dispatcher::Shared)
        .build()
        .expect("the settings make sense");
    let began = tokio::time::Instant::now();
    let (_, ()) = during(worker, async {
        until("the kind is at its cap", || rare.now() == 2).await;
        (0..4).for_each(|number| feed.push(of_kind("common", number)));
        until("the other slots are used", || common.now() == 4).await;
        assert!(began.elapsed() < Duration::from_secs(1));
        // As soon as one of the kind ends the next begins, although a fetch was waiting without any quota.
        tokio::time::sleep(Duration::from_secs(101)).await;
        assert_eq!((rare.entered(), rare.now()), (4, 2));
    })
    .await;
}

under_both! {
    async fn queues_in_strict_order_are_served_first_to_last(dispatcher) {
        let order: Arc<Mutex<Vec<String>>> = Arc::default();
        let feed = Feed::new()
            .with((0..10).map(|number| in_queue("low", number)))
            .with((0..10).map(|number| in_queue("other", number)))
            .with((0..10).map(|number| in_queue("high", number)))
            .shared();
        let registry = crate::support::registry_of({
            let order = order.clone();
            move |context: Context| {
                order.lock().expect("no test thread panicked").push(context.job().queue.to_string());
                async {}
            }
        });
        let worker = Worker::builder(feed.intake(), registry)
            .max_concurrent_jobs(1)
            .queues(Queues::strict(["high", "low"]))
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        during(worker, feed.finished(20)).await;
        let order = order.lock().expect("no test thread panicked").clone();
        assert_eq!(order[..10], vec!["high"; 10]);
        assert_eq!(order[10..], vec!["low"; 10]);
        assert_eq!(feed.waiting().len(), 10, "a queue that is not named is left alone");
    }
}

/// How often each queue came first, in the requests that a worker made with this seed.
async fn first_queues(seed: u64, fetches: usize) -> HashMap<String, usize> {
    let feed = Feed::new().shared();
    let recording = Recording::around(feed.clone());
    let registry = crate::support::registry_of(|_| async {});
    let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
        .queues(Queues::weighted([("mail", 6), ("reports", 3), ("rest", 1)]))
        .fetch_wait(Duration::from_millis(1))
        .seed(seed)
        .dispatcher(Dispatcher::Shared)
        .build()
        .expect("the settings make sense");
    during(worker, recording.has_been_asked(fetches)).await;
    let mut firsts = HashMap::new();
    for request in recording.requests().iter().take(fetches) {
        assert_eq!(request.queues.len(), 3, "no queue is left out");
        *firsts.entry(request.queues[0].to_string()).or_default() += 1;
    }
    firsts
}

#[tokio::test(start_paused = true)]
async fn weighted_queues_come_first_as_often_as_their_weights_say() {
    const FETCHES: usize = 3000;
    let firsts = first_queues(5, FETCHES).await;
    for (queue, share) in [("mail", 0.6), ("reports", 0.3), ("rest", 0.1)] {
        let part = firsts[queue] as f64 / FETCHES as f64;
        assert!((part - share).abs() < 0.03, "{queue} came first {part:.3} of the time");
    }
    assert_eq!(firsts, first_queues(5, FETCHES).await, "the same seed, the same order");
    assert_ne!(firsts, first_queues(6, FETCHES).await);
}

#[tokio::test(start_paused = true)]
async fn weighted_queues_starve_none() {
    let feed = Feed::new()
        .with((0..200).map(|number| in_queue("mail", number)))
        .with((0..200).map(|number| in_queue("rest", number)))
        .shared();
    let gate = Gate::shut();
    let registry = crate::support::registry_of({
        let gate = gate.clone();
        move |_| {
            let gate = gate.clone();
            async move { gate.pass().await }
        }
    });
    let worker = Worker::builder(feed.intake(), registry)
        .max_concurrent_jobs(1)
        .queues(Queues::weighted([("mail", 9), ("rest", 1)]))
        .seed(11)
        .dispatcher(Dispatcher::Shared)
        .build()
        .expect("the settings make sense");
    let left = Leftovers::before();
    during(worker, async {
        for finished in 1..=200 {
            gate.let_through(1);
            feed.finished(finished).await;
            yield_often().await;
        }
        let rest = feed.done().iter().filter(|id| id.as_str().starts_with("rest")).count();
        assert!((5..=50).contains(&rest), "{rest} of 200 came from the queue of weight 1 in 10");
        gate.open();
    })
    .await;
    left.none().await;
}

#[test]
fn queues_that_make_no_sense_are_refused_by_name() {
    let refuse = |queues: Queues| {
        let registry = crate::support::registry_of(|_| async {});
        let error = Worker::builder(Feed::new().shared().intake(), registry).queues(queues).build();
        let error = error.expect_err("it makes no sense");
        assert!(error.is_invalid_input());
        error.to_string()
    };
    assert!(refuse(Queues::weighted([("mail", 0)])).contains("mail"));
    assert!(refuse(Queues::strict(["mail", "rest", "mail"])).contains("mail"));
    assert!(refuse(Queues::strict(Vec::<Queue>::new())).contains("empty"));
}

under_both! {
    /// Jobs that are over at once, one after the other in the same tasks: each runs under its own name only.
    async fn every_job_of_a_flood_of_kinds_is_run_by_the_handler_of_its_kind(dispatcher) {
        const KINDS: [&str; 3] = ["one", "two", "three"];
        let strays = Arc::new(Mutex::new(Vec::new()));
        let tasks = Arc::new(Mutex::new(HashMap::<_, usize>::new()));
        let registry = KINDS.into_iter().fold(Registry::new(), |registry, kind| {
            let (strays, tasks) = (strays.clone(), tasks.clone());
            registry.handle_raw(kind, move |context: Context| {
                let (strays, tasks) = (strays.clone(), tasks.clone());
                async move {
                    if context.job().kind.as_str() != kind {
                        strays.lock().expect("no panic").push(context.job().id.clone());
                    }
                    *tasks.lock().expect("no panic").entry(tokio::task::id()).or_default() += 1;
                }
            })
        });
        let feed = Feed::new().with((0..3_000).map(|number| of_kind(KINDS[number * 7 % 3], number))).shared();
        let worker = Worker::builder(feed.intake(), registry)
            .max_concurrent_jobs(10)
            .prefetch(10)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let (report, ()) = during(worker, feed.drained()).await;
        assert_eq!((report.stats.done, report.stats.started), (3_000, 3_000));
        assert!(strays.lock().expect("no panic").is_empty());
        let tasks = tasks.lock().expect("no panic");
        assert_eq!(tasks.values().sum::<usize>(), 3_000);
        let several = tasks.values().any(|jobs| *jobs > 1);
        assert!(several || dispatcher == Dispatcher::Shared, "this is about tasks that run more than one job");
    }
}
