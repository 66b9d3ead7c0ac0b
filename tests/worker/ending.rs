//! How a worker comes back from lost connections, how it ends by itself, and that it leaves nothing behind.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate::{
    ConnectionState, Context, Delivery, Dispatcher, Error, ErrorKind, FetchRequest, Intake, ReconnectPolicy,
    RetryPolicy, Settled, Shutdown, Source, Stale, State, StopCause, Worker,
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    Feed, Flaky, Gate, Hanging, Inside, Leftovers, Maker, Recording, SlowToSettle, during, gated, job, jobs,
    panics, patience, registry_of, under_both, unique_name, until,
};

fn hasty() -> ReconnectPolicy {
    let mut policy = ReconnectPolicy::default();
    policy.initial = Duration::from_millis(1);
    policy.cap = Duration::from_millis(10);
    policy
}

under_both! {
    async fn a_source_that_ends_ends_the_worker_when_all_is_settled(dispatcher) {
        let name = unique_name();
        let feed = Feed::new().ending().with(jobs(30)).shared();
        let slow = SlowToSettle::by(Duration::from_millis(2), feed.clone());
        let recording = Recording::around(slow);
        let worker = Worker::builder(Intake::fixed(recording.clone()), registry_of(|_| async {}))
            .name(&name)
            .max_concurrent_jobs(4)
            .prefetch(2)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        let left = Leftovers::before().of_worker(&name);
        let never = Shutdown::new();
        let report = tokio::time::timeout(patience(), worker.run(never)).await.expect("it ends by itself");
        assert!(matches!(report.cause, StopCause::SourceEnded), "{report:?}");
        assert_eq!((report.stats.done, recording.held(), report.stopping_took), (30, 0, Duration::ZERO));
        assert!(report.to_string().contains("30 done"), "{report}");
        assert_eq!(handle.stats().state, State::Ended);
        Leftovers::only_mine("the recording", &recording).await;
        left.none().await;
    }

    async fn a_source_that_ends_while_jobs_run_waits_for_them(dispatcher) {
        let (gate, inside) = (Gate::shut(), Inside::default());
        let feed = Feed::new().ending().with(jobs(5)).shared();
        let worker = Worker::builder(feed.intake(), gated(&gate, &inside))
            .max_concurrent_jobs(2)
            .prefetch(3)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let never = Shutdown::new();
        let both = async {
            tokio::join!(worker.run(never), async {
                until("two run", || inside.now() == 2).await;
                gate.open();
            })
        };
        let (report, ()) = tokio::time::timeout(patience(), both).await.expect("it ends by itself");
        assert!(matches!(report.cause, StopCause::SourceEnded));
        assert_eq!((report.stats.done, inside.entered()), (5, 5), "what was fetched ahead is run");
    }

    async fn an_empty_source_that_ends_ends_the_worker_at_once(dispatcher) {
        let feed = Feed::new().ending().shared();
        let worker = Worker::builder(feed.intake(), registry_of(|_| async {}))
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let report = tokio::time::timeout(patience(), worker.run(Shutdown::new())).await.expect("it ends by itself");
        assert!(matches!(report.cause, StopCause::SourceEnded));
        assert_eq!(report.stats.fetched, 0);
    }

    async fn a_source_that_fails_for_good_ends_the_worker_when_its_jobs_have_ended(dispatcher) {
        let (gate, inside) = (Gate::shut(), Inside::default());
        let feed = Feed::new().with(jobs(2)).shared();
        let running = inside.clone();
        let script = move |_: usize| (running.entered() == 2).then_some(ErrorKind::Denied);
        let flaky = Flaky::around(feed.clone()).on_fetch(script).shared();
        let worker = Worker::builder(Intake::fixed(flaky), gated(&gate, &inside))
            .fetch_wait(Duration::from_millis(5))
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let never = Shutdown::new();
        let both = async {
            tokio::join!(worker.run(never), async {
                until("two run", || inside.now() == 2).await;
                gate.open();
            })
        };
        let (report, ()) = tokio::time::timeout(patience(), both).await.expect("it ends by itself");
        assert_eq!((report.stats.done, feed.done().len()), (2, 2));
        let text = report.to_string();
        let StopCause::Failed(error) = report.cause else { panic!("{report:?}") };
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(text.contains("fetching failed by script"), "{text}");
    }

    async fn a_connection_that_is_refused_for_good_ends_the_worker(dispatcher) {
        let feed = Feed::new().with(jobs(2)).shared();
        let maker = Maker::of(feed.clone() as Arc<dyn Source>);
        maker.fail_next([ErrorKind::Connection, ErrorKind::Unavailable, ErrorKind::Denied]);
        let worker = Worker::builder(Intake::new(maker.clone()), registry_of(|_| async {}))
            .reconnect(hasty())
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let report = tokio::time::timeout(patience(), worker.run(Shutdown::new())).await.expect("it ends by itself");
        assert!(matches!(&report.cause, StopCause::Failed(error) if error.kind() == ErrorKind::Denied), "{report:?}");
        assert_eq!((maker.attempts().len(), maker.made(), maker.alive()), (3, 0, 0));
    }

    async fn lost_connections_end_no_worker_lose_nothing_and_leak_no_session(dispatcher) {
        let feed = Feed::new().with(jobs(200)).shared();
        let recording = Recording::around(feed.clone());
        let fetches = |call: usize| match call % 6 {
            1 => Some(ErrorKind::Connection),
            4 => Some(ErrorKind::Timeout),
            _ => None,
        };
        let settles = |call: usize, _: &[_]| (call % 5 == 3).then_some(ErrorKind::Connection);
        let flaky = Flaky::around(recording.clone()).on_fetch(fetches).on_settle(settles).shared();
        let maker = Maker::of(flaky.clone() as Arc<dyn Source>);
        let worker = Worker::builder(Intake::new(maker.clone()), registry_of(|_| async {}))
            .max_concurrent_jobs(3)
            .reconnect(hasty())
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        let left = Leftovers::before();
        let (report, ()) = during(worker, async {
            feed.drained().await;
            assert!(maker.alive() <= 1, "{} sessions are alive", maker.alive());
        })
        .await;
        assert_eq!((report.stats.done, report.stats.stale, report.stats.lost), (200, 0, 0));
        assert_eq!(recording.delivered().len(), 200, "nothing was run twice");
        assert!(maker.made() > 20, "{} sessions", maker.made());
        assert_eq!((maker.most_connecting(), maker.alive()), (1, 0));
        assert_eq!(handle.stats().in_flight, 0);
        Leftovers::only_mine("the maker", &maker).await;
        left.none().await;
    }

    async fn the_state_of_the_connection_can_be_watched(dispatcher) {
        let feed = Feed::new().shared();
        let hanging = Hanging::around(feed.clone());
        let maker = Maker::of(hanging.clone() as Arc<dyn Source>);
        maker.fail_next([ErrorKind::Connection; 3]);
        let worker = Worker::builder(Intake::new(maker.clone()), registry_of(|_| async {}))
            .reconnect(hasty())
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let mut states = worker.handle().connection();
        assert_eq!(*states.borrow(), ConnectionState::Idle);
        let (_, ()) = during(worker, async {
            let down = states.wait_for(|state| matches!(state, ConnectionState::Down { failures: 1.., .. })).await;
            let ConnectionState::Down { cause, .. } = down.expect("the worker runs").clone() else { return };
            assert_eq!(&*cause, "connecting failed by script");
            states.wait_for(|state| matches!(state, ConnectionState::Up { .. })).await.expect("the worker runs");
        })
        .await;
        assert_eq!(maker.made(), 1);
    }

    async fn a_fetch_that_is_never_answered_is_given_up_and_asked_again_through_a_new_session(dispatcher) {
        let feed = Feed::new().shared();
        let hanging = Hanging::around(feed.clone());
        hanging.hang_fetches(true);
        let maker = Maker::of(hanging.clone() as Arc<dyn Source>);
        let mut policy = hasty();
        policy.call_timeout = Duration::from_millis(30);
        let worker = Worker::builder(Intake::new(maker.clone()), registry_of(|_| async {}))
            .fetch_wait(Duration::from_millis(20))
            .reconnect(policy)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let (report, ()) = during(worker, async {
            until("a fetch hangs", || hanging.hung() > 0).await;
            hanging.hang_fetches(false);
            feed.push(job("after"));
            feed.drained().await;
        })
        .await;
        assert_eq!(report.stats.done, 1);
        assert!(maker.made() >= 2 && maker.alive() == 0);
    }

    async fn a_worker_that_never_ran_leaves_nothing_behind(dispatcher) {
        let left = Leftovers::before();
        let feed = Feed::new().shared();
        let worker = Worker::builder(feed.intake(), registry_of(|_| async {})).dispatcher(dispatcher).build();
        let handle = worker.as_ref().expect("the settings make sense").handle();
        drop(worker);
        assert!(handle.jobs().await.is_empty());
        assert!(!handle.cancel_job(&job("a").id).await);
        assert_eq!(handle.stats().state, State::New);
        Leftovers::only_mine("the feed", &feed).await;
        left.none().await;
    }
}

/// L1, L5: after an outage work resumes within the cap, and meanwhile attempts are few and jittered.
#[tokio::test(start_paused = true)]
async fn an_outage_is_backed_off_from_and_work_resumes_within_the_cap() {
    let feed = Feed::new().shared();
    let maker = Maker::of(feed.clone() as Arc<dyn Source>);
    maker.fail_next([ErrorKind::Connection; 60]);
    let worker = Worker::builder(Intake::new(maker.clone()), registry_of(|_| async {}))
        .dispatcher(Dispatcher::Shared)
        .build()
        .expect("the settings make sense");
    feed.push(job("a"));
    let (_, ()) = during(worker, feed.drained()).await;
    let attempts = maker.attempts();
    assert_eq!(attempts.len(), 61);
    let waits: Vec<Duration> = attempts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let cap = ReconnectPolicy::default().cap;
    assert!(waits.iter().all(|wait| *wait <= cap + Duration::from_millis(2)), "{waits:?}");
    assert!(waits[0] <= Duration::from_millis(102));
    assert!(waits[8..].iter().all(|wait| *wait >= cap / 2), "{waits:?}");
    let spread = waits[8..]
        .iter()
        .max()
        .expect("there are some")
        .saturating_sub(*waits[8..].iter().min().expect("some"));
    assert!(spread > cap / 10, "the waits are jittered: {waits:?}");
}

/// P2: threads, files and tasks do not depend on how often workers were started and stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_starts_and_stops_leave_no_thread_no_file_and_no_task_behind() {
    const CYCLES: usize = 100;
    let name = unique_name();
    let left = Leftovers::before().of_worker(&name);
    let before = Leftovers::open_files();
    for _ in 0..CYCLES {
        let feed = Feed::new().leased(Duration::from_secs(30)).with(jobs(3)).shared();
        let worker = Worker::builder(feed.intake(), registry_of(|_| async {}))
            .name(&name)
            .build()
            .expect("the settings make sense");
        let (report, ()) = during(worker, feed.drained()).await;
        assert_eq!(report.stats.done, 3);
        Leftovers::only_mine("the feed", &feed).await;
    }
    // Other tests open files too, but not as many as one a cycle.
    let grown = Leftovers::open_files().saturating_sub(before);
    assert!(grown < CYCLES / 2, "{grown} more files are open");
    left.none().await;
}

/// P2, under failures: reconnects, retries and panics without end leave nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_reconnects_leave_no_file_no_task_and_no_session_behind() {
    let feed = Feed::generated(5000, job).shared();
    let fetches = |call: usize| (call.is_multiple_of(2) && call < 2000).then_some(ErrorKind::Connection);
    let flaky = Flaky::around(feed.clone()).on_fetch(fetches).shared();
    let maker = Maker::of(flaky as Arc<dyn Source>);
    let mut policy = hasty();
    policy.initial = Duration::from_micros(1);
    policy.cap = Duration::from_micros(1);
    let registry = registry_of(|context: Context| async move {
        if context.attempt() == 1 && context.job().id.as_str().ends_with('7') {
            panics("now and then");
        }
    });
    let worker = Worker::builder(Intake::new(maker.clone()), registry)
        .max_concurrent_jobs(2)
        .retry(RetryPolicy::default().initial(Duration::from_millis(1)))
        .reconnect(policy)
        .build()
        .expect("the settings make sense");
    let left = Leftovers::before();
    let before = Leftovers::open_files();
    let (report, ()) = during(worker, async {
        feed.drained().await;
        assert!(maker.alive() <= 1);
        assert!(Leftovers::open_files().saturating_sub(before) < 200);
    })
    .await;
    assert_eq!((report.stats.done, report.stats.panicked), (5000, 500));
    assert!(maker.made() >= 1000, "{} sessions", maker.made());
    assert_eq!(maker.alive(), 0);
    left.none().await;
}

/// A source whose driver panics, after it has handed out what there is.
struct Panicking(Arc<Feed>);

#[async_trait]
impl Source for Panicking {
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        if self.0.out() > 0 {
            panic!("the driver has a bug");
        }
        self.0.fetch(wanted, stop).await
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error> {
        self.0.settle(settled).await
    }
}

/// A panic of a driver ends the worker, which says so; and with the worker ends its heartbeat, so that what
/// could not be handed back is run elsewhere (P4).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_that_panics_ends_the_worker_with_its_heartbeat() {
    let name = unique_name();
    let left = Leftovers::before().of_worker(&name);
    let feed = Feed::new().leased(Duration::from_secs(30)).with(jobs(1)).shared();
    let intake = Intake::fixed(Arc::new(Panicking(feed.clone()))).renewed_by_fixed(feed.clone());
    let worker = Worker::builder(intake, registry_of(|_| std::future::pending::<()>()))
        .name(&name)
        .max_concurrent_jobs(2)
        .shutdown_deadline(Duration::from_secs(1))
        .build()
        .expect("the settings make sense");
    let report = tokio::time::timeout(patience(), worker.run(Shutdown::new())).await.expect("it ends");
    let text = report.to_string();
    assert!(matches!(report.cause, StopCause::Failed(_)) && text.contains("the driver has a bug"), "{text}");
    assert_eq!((report.stats.released, feed.waiting().len()), (1, 1), "what ran was handed back");
    left.none().await;
}
