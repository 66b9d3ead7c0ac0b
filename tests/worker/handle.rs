//! Watching a worker and steering it while it runs.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate::worker::MAX_CONCURRENT_JOBS;
use tidegate::{
    CancelReason, Context, Intake, JobId, JobPhase, Outcome, Registry, Settlement, State, Stats, Worker,
};

use crate::support::{
    Dice, Feed, Gate, Inside, Leftovers, Recording, SlowToSettle, during, gated, job, jobs, phase_of,
    registry_of, under_both, until, until_phase, yield_often,
};

/// Jobs that wait at a gate, and who is inside.
fn gate_and_jobs() -> (Arc<Gate>, Inside, Registry) {
    let (gate, inside) = (Gate::shut(), Inside::default());
    let registry = gated(&gate, &inside);
    (gate, inside, registry)
}

fn assert_books_balance(stats: &Stats) {
    let Stats { fetched, done, retried, rejected, snoozed, released, lost, stale, in_flight, .. } = *stats;
    assert_eq!(
        fetched,
        done + retried + rejected + snoozed + released + lost + stale + in_flight,
        "{stats:?}"
    );
    assert!(stats.running <= in_flight, "{stats:?}");
}

under_both! {
    async fn a_quiet_worker_fetches_nothing_until_it_is_resumed(dispatcher) {
        let (gate, inside, registry) = gate_and_jobs();
        let feed = Feed::new().with(jobs(1)).shared();
        let recording = Recording::around(feed.clone());
        let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
            .max_concurrent_jobs(4)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        during(worker, async {
            until("the first runs", || inside.now() == 1).await;
            handle.quiet();
            assert!(handle.is_quiet());
            // Once it has answered it has seen the change too.
            handle.jobs().await;
            handle.jobs().await;
            let asked = recording.requests().len();
            feed.push(job("later"));
            gate.open();
            until("the first has ended", || handle.stats().done == 1).await;
            yield_often().await;
            assert_eq!((recording.requests().len(), recording.delivered().len()), (asked, 1));
            handle.resume();
            assert!(!handle.is_quiet());
            feed.drained().await;
        })
        .await;
        assert_eq!(inside.entered(), 2);
    }

    async fn a_raised_bound_is_filled_at_once(dispatcher) {
        let (gate, inside, registry) = gate_and_jobs();
        let feed = Feed::new().with(jobs(20)).shared();
        let worker = Worker::builder(feed.intake(), registry)
            .max_concurrent_jobs(2)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        during(worker, async {
            until("two run", || inside.now() == 2).await;
            handle.set_max_concurrent_jobs(9).expect("it is in the range");
            assert_eq!(handle.max_concurrent_jobs(), 9);
            until("nine run", || inside.now() == 9).await;
            gate.open();
            feed.drained().await;
        })
        .await;
        assert_eq!(inside.most(), 9);
    }

    async fn a_bound_that_is_raised_while_a_fetch_waits_is_used_by_the_next_job(dispatcher) {
        let (gate, inside, registry) = gate_and_jobs();
        let feed = Feed::new().with(jobs(1)).shared();
        let worker = Worker::builder(feed.intake(), registry)
            .max_concurrent_jobs(2)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        during(worker, async {
            until("one runs", || inside.now() == 1).await;
            handle.set_max_concurrent_jobs(5).expect("it is in the range");
            handle.jobs().await;
            handle.jobs().await;
            (1..5).for_each(|number| feed.push(job(number)));
            until("five run", || inside.now() == 5).await;
            gate.open();
            feed.drained().await;
        })
        .await;
    }

    async fn a_lowered_bound_ends_no_job_and_starts_none_until_there_is_room(dispatcher) {
        let (gate, inside, registry) = gate_and_jobs();
        let feed = Feed::new().with(jobs(20)).shared();
        let recording = Recording::around(feed.clone());
        let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
            .max_concurrent_jobs(8)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        let (report, ()) = during(worker, async {
            until("eight run", || inside.now() == 8).await;
            handle.set_max_concurrent_jobs(3).expect("it is in the range");
            yield_often().await;
            assert_eq!((inside.now(), handle.stats().running), (8, 8), "running jobs go on");
            gate.let_through(5);
            until("five have ended", || handle.stats().done == 5).await;
            yield_often().await;
            assert_eq!((inside.now(), inside.entered()), (3, 8), "none has been started");
            gate.let_through(1);
            until("one more has been started", || inside.entered() == 9).await;
            inside.forget_the_most();
            gate.open();
            feed.drained().await;
            assert!(inside.most() <= 3);
        })
        .await;
        assert_eq!((report.stats.done, report.stats.aborted), (20, 0));
    }

    async fn a_bound_out_of_range_is_refused_and_changes_nothing(dispatcher) {
        let (gate, _, registry) = gate_and_jobs();
        gate.open();
        let feed = Feed::new().shared();
        let worker = Worker::builder(feed.intake(), registry)
            .max_concurrent_jobs(6)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        for senseless in [0, MAX_CONCURRENT_JOBS + 1, usize::MAX] {
            let error = handle.set_max_concurrent_jobs(senseless).expect_err("it makes no sense");
            assert!(error.is_invalid_input());
            assert!(error.to_string().contains(&senseless.to_string()), "{error}");
            assert_eq!(handle.max_concurrent_jobs(), 6);
        }
        handle.set_max_concurrent_jobs(MAX_CONCURRENT_JOBS).expect("it is in the range");
        handle.set_max_concurrent_jobs(1).expect("it is in the range");
        during(worker, async {}).await;
    }

    async fn the_books_balance_at_every_look(dispatcher) {
        let feed = Feed::new().with(jobs(400)).shared();
        let slow = SlowToSettle::by(Duration::from_millis(1), feed.clone());
        let registry = registry_of(|context: Context| async move {
            let number: u64 = context.job().id.as_str().parse().expect("ids are numbers");
            tokio::task::yield_now().await;
            match Dice(number * 64 + u64::from(context.attempt())).roll(6) {
                0 => Outcome::fail("no"),
                1 => Outcome::reject("never"),
                2 if context.attempt() == 1 => Outcome::Snooze(Duration::from_millis(2)),
                3 => { crate::support::panics("oh"); Outcome::Done }
                _ => Outcome::Done,
            }
        });
        let worker = Worker::builder(Intake::fixed(slow), registry)
            .max_concurrent_jobs(7)
            .prefetch(2)
            .retry(tidegate::RetryPolicy::default().initial(Duration::from_millis(1)).max_attempts(3))
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        assert_books_balance(&handle.stats());
        assert_eq!(handle.stats().state, State::New);
        let (report, samples) = during(worker, async {
            let mut finished = std::pin::pin!(async {
                // A snooze lasts for as long as its job draws one; a few may go round for ever.
                feed.finished(330).await;
            });
            let mut samples = 0;
            while futures_util::poll!(finished.as_mut()).is_pending() {
                let stats = handle.stats();
                assert_books_balance(&stats);
                assert_eq!(stats.state, State::Running);
                samples += 1;
                tokio::time::sleep(Duration::from_micros(100)).await;
            }
            samples
        })
        .await;
        assert!(samples > 20);
        assert_books_balance(&report.stats);
        assert_eq!(report.stats, handle.stats(), "the handle still knows when it has ended");
        let Stats { state, in_flight, running, failed, retried, rejected, panicked, .. } = report.stats;
        assert_eq!((state, in_flight, running), (State::Ended, 0, 0));
        assert_eq!(failed, retried + rejected);
        assert!(panicked > 0 && panicked < failed);
    }

    async fn jobs_are_shown_with_how_far_they_have_got(dispatcher) {
        let (run, settle, reported) = (Gate::shut(), Gate::shut(), Gate::shut());
        let feed = Feed::new().with(jobs(3)).shared();
        let slow = SlowToSettle::at(&settle, feed.clone());
        let registry = registry_of({
            let (run, reported) = (run.clone(), reported.clone());
            move |context: Context| {
                let (run, reported) = (run.clone(), reported.clone());
                async move {
                    context.progress(3, 10, "three of ten");
                    context.progress(4, None, "ä".repeat(200).as_str());
                    reported.let_through(1);
                    run.pass().await;
                    context.cancelled().await;
                    run.pass().await;
                }
            }
        });
        let worker = Worker::builder(Intake::fixed(slow.clone()), registry)
            .max_concurrent_jobs(2)
            .prefetch(1)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        assert!(handle.jobs().await.is_empty(), "it has not begun");
        let (report, ()) = during(worker, async {
            until("all are held", || handle.stats().in_flight == 3 && handle.stats().running == 2).await;
            until_phase(&handle, "0", JobPhase::Running).await;
            until_phase(&handle, "1", JobPhase::Running).await;
            reported.pass().await;
            reported.pass().await;
            let views = handle.jobs().await;
            let first = views.iter().find(|view| view.id.as_str() == "0").expect("it is in flight");
            assert!(first.started.is_some_and(|ran| ran <= first.age), "{first:?}");
            let ahead = views.iter().find(|view| view.phase == JobPhase::Prefetched).expect("it waits");
            assert_eq!(ahead.started, None);
            assert_eq!((first.phase, first.attempt, first.kind.as_str()), (JobPhase::Running, 1, "work"));
            let (progress, _) = first.progress.clone().expect("it has reported");
            assert_eq!((progress.done, progress.total), (4, None), "the last report wins");
            assert_eq!(progress.note.expect("there is a note").len(), 256, "cut at a character");
            assert_eq!(phase_of(&handle, "2").await, Some(JobPhase::Prefetched));

            assert!(handle.cancel_job(&JobId::new("0")).await);
            assert!(!handle.cancel_job(&JobId::new("nobody")).await);
            until_phase(&handle, "0", JobPhase::Cancelling).await;
            assert_eq!(phase_of(&handle, "1").await, Some(JobPhase::Running), "the others go on");
            handle.cancel_job(&JobId::new("1")).await;
            run.open();
            until_phase(&handle, "0", JobPhase::Settling).await;
            assert!(!handle.cancel_job(&JobId::new("0")).await, "it has ended");
            handle.cancel_job(&JobId::new("2")).await;
            settle.open();
            feed.drained().await;
        })
        .await;
        assert!(handle.jobs().await.is_empty(), "it has ended");
        assert!(!handle.cancel_job(&JobId::new("0")).await);
        assert!(report.held.is_empty());
        Leftovers::only_mine("the feed's wrapper", &slow).await;
    }

    async fn a_job_that_is_cancelled_on_request_goes_to_the_dead_letters(dispatcher) {
        let reason = Arc::new(Mutex::new(None));
        let feed = Feed::new().with([job("a")]).shared();
        let inside = Inside::default();
        let registry = registry_of({
            let (reason, inside) = (reason.clone(), inside.clone());
            move |context: Context| {
                let (reason, stay) = (reason.clone(), inside.enter());
                async move {
                    context.cancelled().await;
                    assert!(context.is_cancelled());
                    *reason.lock().expect("no test thread panicked") = context.cancel_reason();
                    drop(stay);
                    Err::<(), _>("interrupted")
                }
            }
        });
        let worker =
            Worker::builder(feed.intake(), registry).dispatcher(dispatcher).build().expect("the settings make sense");
        let handle = worker.handle();
        let (report, ()) = during(worker, async {
            until("it runs", || inside.now() == 1).await;
            assert!(handle.cancel_job(&JobId::new("a")).await);
            feed.drained().await;
        })
        .await;
        assert_eq!(*reason.lock().expect("no test thread panicked"), Some(CancelReason::Requested));
        assert_eq!(feed.dead()[0].reason.as_deref(), Some("cancelled on request"));
        assert_eq!(report.stats.rejected, 1);
    }

    async fn a_job_that_is_cancelled_before_it_has_a_slot_is_never_started(dispatcher) {
        let (gate, inside, registry) = gate_and_jobs();
        let feed = Feed::new().with(jobs(2)).shared();
        let recording = Recording::around(feed.clone());
        let worker = Worker::builder(Intake::fixed(recording.clone()), registry)
            .max_concurrent_jobs(1)
            .prefetch(1)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        during(worker, async {
            until("both are held", || handle.stats().in_flight == 2).await;
            assert!(handle.cancel_job(&JobId::new("1")).await);
            gate.open();
            feed.drained().await;
        })
        .await;
        let told = recording.told_of("1");
        assert_eq!((told.len(), told[0].settlement), (1, Settlement::Reject));
        assert_eq!(inside.entered(), 1, "what was cancelled while it waited was started");
    }

    async fn a_worker_is_stopped_through_its_handle(dispatcher) {
        let (gate, inside, registry) = gate_and_jobs();
        let feed = Feed::new().with(jobs(2)).shared();
        let worker = Worker::builder(feed.intake(), registry)
            .max_concurrent_jobs(1)
            .dispatcher(dispatcher)
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        let never = tidegate::Shutdown::new();
        let scenario = async {
            until("one runs", || inside.now() == 1).await;
            handle.stop();
            gate.open();
        };
        let both = async { tokio::join!(worker.run(never), scenario) };
        let (report, ()) =
            tokio::time::timeout(crate::support::patience(), both).await.expect("it stops");
        assert_eq!((report.stats.done, feed.waiting().len()), (1, 1));
    }
}

#[test]
fn settings_that_make_no_sense_are_refused_by_name() {
    type Setting = fn(tidegate::WorkerBuilder) -> tidegate::WorkerBuilder;
    let senseless: [(&str, Setting); 10] = [
        ("name", |builder| builder.name("a\0b")),
        ("max_concurrent_jobs", |builder| builder.max_concurrent_jobs(0)),
        ("max_concurrent_jobs", |builder| builder.max_concurrent_jobs(usize::MAX)),
        ("job_timeout", |builder| builder.job_timeout(Duration::ZERO)),
        ("fetch_wait", |builder| builder.fetch_wait(Duration::ZERO)),
        ("factor", |builder| builder.retry(tidegate::RetryPolicy::default().factor(0.5))),
        ("factor", |builder| builder.retry(tidegate::RetryPolicy::default().factor(f64::NAN))),
        ("jitter", |builder| builder.retry(tidegate::RetryPolicy::default().jitter(1.5))),
        ("max_attempts", |builder| builder.retry(tidegate::RetryPolicy::default().max_attempts(0))),
        ("initial", |builder| {
            builder.retry(tidegate::RetryPolicy::default().initial(Duration::from_secs(7200)))
        }),
    ];
    for (name, setting) in senseless {
        let builder = Worker::builder(Feed::new().shared().intake(), registry_of(|_| async {}));
        let error = setting(builder).build().expect_err("it makes no sense");
        assert!(error.is_invalid_input() && error.to_string().contains(name), "{name}: {error}");
    }
}

under_both! {
    async fn times_without_end_are_taken_as_such(dispatcher) {
        let feed = Feed::new().with(jobs(3)).shared();
        let mut reconnect = tidegate::ReconnectPolicy::default();
        reconnect.call_timeout = Duration::MAX;
        let worker = Worker::builder(feed.intake(), registry_of(|_| async {}))
            .fetch_wait(Duration::from_secs(u64::MAX / 4))
            .shutdown_deadline(Duration::MAX)
            .job_timeout(Duration::MAX)
            .cancel_grace(Duration::MAX)
            .reconnect(reconnect)
            .dispatcher(dispatcher)
            .build();
        // Either they are refused with a clear error, or they work.
        let Ok(worker) = worker else { return };
        let (report, ()) = during(worker, async { tokio::task::yield_now().await }).await;
        assert!(report.stats.lost == 0);
    }
}

/// Whether the loop still hears it or not: nobody waits for an answer for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_that_is_asked_while_the_worker_ends_is_answered() {
    for round in 0..150 {
        let feed = Feed::new().with(jobs(3)).shared();
        let worker = Worker::builder(feed.intake(), registry_of(|_| async {}))
            .build()
            .expect("the settings make sense");
        let handle = worker.handle();
        let asking = async {
            let mut curious = tokio::task::JoinSet::new();
            for _ in 0..4 {
                let handle = handle.clone();
                curious.spawn(async move {
                    while handle.stats().state != State::Ended {
                        handle.jobs().await;
                    }
                });
            }
            while curious.join_next().await.is_some() {}
        };
        let answered = async { tokio::join!(during(worker, feed.drained()), asking) };
        let answered = tokio::time::timeout(crate::support::patience(), answered).await;
        assert!(answered.is_ok(), "a question of round {round} was never answered");
    }
}
