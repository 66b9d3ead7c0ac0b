//! P7: from the first stop signal to the end takes at most the shutdown deadline, whatever jobs, source and
//! connection do, and what did not finish goes back unharmed.
//!
//! Most of it runs twice: on threads of its own under the real clock (two seconds of deadline, a second of
//! grace for a busy machine), and as tasks of one thread under the paused clock, where the timetable is exact:
//! cancel after 8 of 10 s, abort after 9.

mod faults;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use faults::jobs::{Gate, KIND, Tally, finish_elsewhere, push};
use faults::left::soon;
use faults::pops::Pops;
use faults::running::{Ended, Running, balanced, patiently};
use faults::server::{Fault, Server, Verb};
use tidegate::{
    CancelReason, Context, Delivery, Dispatcher, Error, ErrorKind, FetchRequest, Inspect as _, Intake, Job,
    JobId, JobPhase, Kind, Memory, Outcome, Phase, Registry, Report, Settled, Shutdown, Source, Stale, State,
    Stats, StopCause, Tag, Worker, WorkerBuilder, WorkerHandle,
};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Runs a test under both dispatchers, each with the clock that suits it.
macro_rules! under_both_dispatchers {
    ($($name:ident)*) => {$(
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_its_own_thread() {
                super::patiently(super::$name(super::Dispatcher::OwnThread)).await;
            }

            #[tokio::test(start_paused = true)]
            async fn shared() {
                super::patiently(super::$name(super::Dispatcher::Shared)).await;
            }
        }
    )*};
}

under_both_dispatchers! {
    an_idle_worker_stops_at_once
    a_quiet_worker_stops_at_once
    a_worker_that_is_stopped_before_it_runs_fetches_nothing
    jobs_that_finish_while_draining_are_done
    jobs_that_stop_when_told_to_are_handed_back
    jobs_that_ignore_cancellation_are_aborted_and_handed_back
    jobs_that_finish_although_they_were_told_to_stop_are_done
    a_blocking_handler_that_never_ends_is_named_and_left
    a_blocking_handler_that_looks_at_its_cancellation_is_handed_back
    a_fetch_that_hangs_does_not_hold_up_the_stop
    what_a_slow_fetch_still_brings_is_handed_back
    a_settle_that_hangs_does_not_hold_up_the_stop
    a_connect_that_hangs_does_not_hold_up_the_stop
    an_outage_does_not_hold_up_the_stop_of_an_idle_worker
    settlements_that_an_outage_holds_up_are_reported
    what_was_fetched_ahead_is_handed_back
    a_second_signal_cancels_and_a_third_aborts
    leases_are_renewed_while_draining
    the_handle_stops_it_as_well
    a_deadline_of_zero_ends_at_once
    a_deadline_too_long_for_the_clock_still_drains
}

fn deadline(place: Dispatcher) -> Duration {
    match place {
        Dispatcher::OwnThread => Duration::from_secs(2),
        Dispatcher::Shared => Duration::from_secs(10),
    }
}

/// When it has to have ended, whatever happens: under the paused clock to the millisecond.
fn latest(place: Dispatcher) -> Duration {
    match place {
        Dispatcher::OwnThread => deadline(place) + Duration::from_secs(1),
        Dispatcher::Shared => deadline(place),
    }
}

/// A store whose leases run out a second after their worker has gone.
fn store() -> Memory {
    Memory::builder().lease_ttl(Duration::from_secs(1)).build().expect("the settings are good")
}

fn worker(intake: Intake, registry: Registry, place: Dispatcher) -> WorkerBuilder {
    Worker::builder(intake, registry)
        .max_concurrent_jobs(20)
        .shutdown_deadline(deadline(place))
        .dispatcher(place)
}

fn start(intake: Intake, registry: Registry, place: Dispatcher) -> Running {
    Running::start(worker(intake, registry, place).build().expect("the settings are good"))
}

/// It took this part of the deadline: exactly so under the paused clock.
fn took(ended: &Ended, place: Dispatcher, part: f64) {
    let wanted = deadline(place).mul_f64(part);
    match place {
        Dispatcher::Shared => assert_eq!(ended.took, wanted, "{}", ended.report),
        Dispatcher::OwnThread => {
            assert!(
                ended.took >= wanted && ended.took <= latest(place),
                "took {:?}: {}",
                ended.took,
                ended.report
            );
        }
    }
}

/// A handler that begins, counts, and then waits for `then`.
fn handler<F>(tally: &Tally, then: impl Fn(Context) -> F + Send + Sync + Copy + 'static) -> Registry
where
    F: Future<Output = Outcome> + Send + 'static,
{
    let tally = tally.clone();
    Registry::new().handle_raw(KIND, move |context: Context| {
        tally.begins(&context);
        then(context)
    })
}

/// A second worker finds each of the `count` jobs once, with this number of attempts, and finishes it.
async fn all_come_again(memory: &Memory, count: usize, attempt: u32) {
    let mut begun = finish_elsewhere(memory).await;
    begun.sort_by_key(|(payload, _)| payload.parse::<usize>().expect("payloads are numbers"));
    let wanted: Vec<_> = (0..count).map(|number| (number.to_string(), attempt)).collect();
    assert_eq!(begun, wanted);
    let counts = memory.counts().await.expect("memory counts");
    assert_eq!((counts.done, counts.unfinished(), counts.dead), (count as u64, 0, 0), "nothing is lost");
}

async fn an_idle_worker_stops_at_once(place: Dispatcher) {
    let server = Server::new(store());
    let running = start(server.intake(), handler(&Tally::default(), |_| async { Outcome::Done }), place);
    server.called(Verb::Fetch, 1).await; // and now it waits for work
    let ended = running.stop().await;
    took(&ended, place, 0.0);
    assert!(ended.took < Duration::from_millis(900), "an idle worker need not wait: {:?}", ended.took);
    assert!(matches!(ended.report.cause, StopCause::Shutdown));
    assert_eq!(ended.report.stats.fetched, 0);
}

async fn a_quiet_worker_stops_at_once(place: Dispatcher) {
    let memory = store();
    let registry = handler(&Tally::default(), |_| async { Outcome::Done });
    let worker = worker(memory.intake(), registry, place).build().expect("the settings are good");
    worker.handle().quiet();
    push(&memory, 3);
    let running = Running::start(worker);
    while running.handle.stats().state != tidegate::State::Running {
        tokio::task::yield_now().await;
    }
    let ended = running.stop().await;
    took(&ended, place, 0.0);
    assert_eq!(ended.report.stats.fetched, 0);
    all_come_again(&memory, 3, 1).await;
}

async fn a_worker_that_is_stopped_before_it_runs_fetches_nothing(place: Dispatcher) {
    let server = Server::new(store());
    push(server.memory(), 3);
    let registry = handler(&Tally::default(), |_| async { Outcome::Done });
    let worker = worker(server.intake(), registry, place).build().expect("the settings are good");
    let shutdown = Shutdown::new();
    shutdown.stop();
    let report = worker.run(shutdown).await;
    assert_eq!((report.stats.fetched, report.stats.started), (0, 0));
    assert!(matches!(report.cause, StopCause::Shutdown));
    assert!(server.calls(Verb::Fetch).is_empty() && server.calls(Verb::Connect).is_empty());
    all_come_again(server.memory(), 3, 1).await;
}

async fn jobs_that_finish_while_draining_are_done(place: Dispatcher) {
    let (memory, tally) = (store(), Tally::default());
    push(&memory, 25);
    let running = start(
        memory.intake(),
        handler(&tally, |_| async {
            sleep(Duration::from_millis(500)).await;
            Outcome::Done
        }),
        place,
    );
    tally.reaches(20).await;
    let ended = running.stop().await;
    assert!(
        ended.took <= Duration::from_millis(1500),
        "done after half a second, and then it waits for nothing"
    );
    assert_eq!((ended.report.stats.done, ended.report.stats.started), (20, 20), "{}", ended.report);
    assert_eq!(tally.len(), 20, "none of the five others was begun");
    assert_eq!(finish_elsewhere(&memory).await.len(), 5);
}

async fn jobs_that_stop_when_told_to_are_handed_back(place: Dispatcher) {
    let (memory, tally) = (store(), Tally::default());
    push(&memory, 20);
    let cooperative = |context: Context| async move {
        context.cancelled().await;
        assert_eq!(context.cancel_reason(), Some(CancelReason::Shutdown));
        Outcome::fail("told to stop")
    };
    let running = start(memory.intake(), handler(&tally, cooperative), place);
    tally.reaches(20).await;
    let ended = running.stop().await;
    took(&ended, place, 0.8);
    assert_eq!((ended.report.stats.released, ended.report.stats.aborted), (20, 0), "{}", ended.report);
    assert!(ended.report.held.is_empty());
    all_come_again(&memory, 20, 1).await;
}

async fn jobs_that_ignore_cancellation_are_aborted_and_handed_back(place: Dispatcher) {
    let (memory, tally) = (store(), Tally::default());
    push(&memory, 20);
    let deaf = |_| async {
        loop {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let running = start(memory.intake(), handler(&tally, deaf), place);
    tally.reaches(20).await;
    let ended = running.stop().await;
    took(&ended, place, 0.9);
    assert_eq!((ended.report.stats.released, ended.report.stats.aborted), (20, 20), "{}", ended.report);
    assert!(ended.report.held.is_empty());
    all_come_again(&memory, 20, 1).await;
}

async fn jobs_that_finish_although_they_were_told_to_stop_are_done(place: Dispatcher) {
    let (memory, tally) = (store(), Tally::default());
    push(&memory, 20);
    let finishing = |context: Context| async move {
        context.cancelled().await;
        Outcome::Done
    };
    let running = start(memory.intake(), handler(&tally, finishing), place);
    tally.reaches(20).await;
    let ended = running.stop().await;
    took(&ended, place, 0.8);
    assert_eq!(ended.report.stats.done, 20, "what is finished is finished: {}", ended.report);
    assert!(finish_elsewhere(&memory).await.is_empty());
}

async fn a_blocking_handler_that_never_ends_is_named_and_left(place: Dispatcher) {
    let (memory, tally, gate) = (store(), Tally::default(), Gate::default());
    let _opener = gate.opener();
    push(&memory, 1);
    let begun = tally.clone();
    let registry = Registry::new().handle_blocking_raw(KIND, move |context: Context| {
        begun.begins(&context);
        gate.block();
    });
    let running = start(memory.intake(), registry, place);
    tally.reaches(1).await;
    let ended = running.stop().await;
    took(&ended, place, 1.0);
    assert_eq!(ended.report.stats.lost, 1, "{}", ended.report);
    let [held] = ended.report.held.as_slice() else { panic!("one is held: {}", ended.report) };
    assert_eq!((held.kind.as_str(), held.attempt), (KIND, 1));
    assert_eq!(held.phase, JobPhase::Stuck, "it does not give its thread back");
    assert!(ended.report.to_string().contains("is still running"), "{}", ended.report);
    // Nobody renews its lease any more, so it is handed out again; this attempt was begun, and counts.
    all_come_again(&memory, 1, 2).await;
}

async fn a_blocking_handler_that_looks_at_its_cancellation_is_handed_back(place: Dispatcher) {
    let (memory, tally) = (store(), Tally::default());
    push(&memory, 3);
    let begun = tally.clone();
    let registry = Registry::new().handle_blocking_raw(KIND, move |context: Context| {
        begun.begins(&context);
        while !context.is_cancelled() {
            std::thread::sleep(Duration::from_millis(1));
        }
        Outcome::fail("told to stop")
    });
    let running = start(memory.intake(), registry, place);
    tally.reaches(3).await;
    let ended = running.stop().await;
    match place {
        Dispatcher::OwnThread => took(&ended, place, 0.8),
        // The paused clock leaps while it waits for a thread that it knows nothing of.
        Dispatcher::Shared => assert!(ended.took >= deadline(place).mul_f64(0.8)),
    }
    if place == Dispatcher::OwnThread {
        assert_eq!(ended.report.stats.released, 3, "{}", ended.report);
        all_come_again(&memory, 3, 1).await;
    }
}

async fn a_fetch_that_hangs_does_not_hold_up_the_stop(place: Dispatcher) {
    let server = Server::new(store());
    server.breaks(Verb::Fetch, Fault::Hang);
    let running = start(server.intake(), handler(&Tally::default(), |_| async { Outcome::Done }), place);
    server.called(Verb::Fetch, 1).await;
    let ended = running.stop().await;
    assert!(ended.took <= latest(place), "took {:?}", ended.took);
    assert_eq!(ended.report.stats.fetched, 0);
}

async fn what_a_slow_fetch_still_brings_is_handed_back(place: Dispatcher) {
    let (server, tally) = (Server::new(store()), Tally::default());
    push(server.memory(), 5);
    server.breaks(Verb::Fetch, Fault::Late(deadline(place) / 2));
    let running = start(server.intake(), handler(&tally, |_| async { Outcome::Done }), place);
    server.called(Verb::Fetch, 1).await;
    let shutdown = running.shutdown.clone();
    let ended = running.stop().await;
    assert!(shutdown.is_stopping());
    assert!(ended.took <= deadline(place), "took {:?}", ended.took);
    // It takes with its stop cancelled, as a pop that was under way might.
    assert_eq!((ended.report.stats.started, tally.len()), (0, 0), "nothing starts after a stop");
    assert_eq!(ended.report.stats.fetched, ended.report.stats.released, "{}", ended.report);
    server.mends(Verb::Fetch);
    all_come_again(server.memory(), 5, 1).await;
}

async fn a_settle_that_hangs_does_not_hold_up_the_stop(place: Dispatcher) {
    let (server, tally) = (Server::new(store()), Tally::default());
    push(server.memory(), 4);
    server.breaks(Verb::Settle, Fault::Hang);
    let running = start(server.intake(), handler(&tally, |_| async { Outcome::Done }), place);
    server.called(Verb::Settle, 1).await;
    tally.reaches(4).await;
    let ended = running.stop().await;
    took(&ended, place, 1.0);
    assert_eq!(ended.report.stats.lost, 4, "{}", ended.report);
    assert_eq!(ended.report.held.len(), 4);
    for held in &ended.report.held {
        assert_eq!(held.phase, JobPhase::Settling);
    }
    assert!(ended.report.to_string().contains("was not confirmed"), "{}", ended.report);
    all_come_again(server.memory(), 4, 2).await;
}

async fn a_connect_that_hangs_does_not_hold_up_the_stop(place: Dispatcher) {
    let server = Server::new(store());
    server.breaks(Verb::Connect, Fault::Hang);
    let running = start(server.intake(), handler(&Tally::default(), |_| async { Outcome::Done }), place);
    server.called(Verb::Connect, 1).await;
    let ended = running.stop().await;
    took(&ended, place, 0.0);
    assert!(ended.took < Duration::from_millis(700), "nothing is left to wait for: {:?}", ended.took);
}

async fn an_outage_does_not_hold_up_the_stop_of_an_idle_worker(place: Dispatcher) {
    let server = Server::new(store());
    server.goes_down();
    let running = start(server.intake(), handler(&Tally::default(), |_| async { Outcome::Done }), place);
    server.called(Verb::Connect, 3).await;
    let ended = running.stop().await;
    took(&ended, place, 0.0);
    assert!(ended.took < Duration::from_millis(700), "nothing is left to wait for: {:?}", ended.took);
    assert!(matches!(ended.report.cause, StopCause::Shutdown));
}

async fn settlements_that_an_outage_holds_up_are_reported(place: Dispatcher) {
    let (server, tally) = (Server::new(store()), Tally::default());
    push(server.memory(), 6);
    let brief = |context: Context| async move {
        // The first three end at once, the others only when they are told to.
        if context.payload()[0] >= b'3' {
            context.cancelled().await;
        }
        Outcome::Done
    };
    server.breaks(Verb::Settle, Fault::Fail(ErrorKind::Unavailable));
    let running = start(server.intake(), handler(&tally, brief), place);
    tally.reaches(6).await;
    server.called(Verb::Settle, 1).await;
    server.goes_down();
    let ended = running.stop().await;
    assert!(ended.took <= latest(place), "took {:?}", ended.took);
    assert_eq!((ended.report.stats.fetched, ended.report.stats.lost), (6, 6), "{}", ended.report);
    server.comes_back();
    all_come_again(server.memory(), 6, 2).await;
}

async fn what_was_fetched_ahead_is_handed_back(place: Dispatcher) {
    let (memory, tally) = (store(), Tally::default());
    push(&memory, 7);
    let registry = handler(&tally, |context: Context| async move {
        context.cancelled().await;
        Outcome::fail("told to stop")
    });
    let builder = worker(memory.intake(), registry, place).max_concurrent_jobs(2).prefetch(5);
    let running = Running::start(builder.build().expect("the settings are good"));
    tally.reaches(2).await;
    while running.handle.stats().fetched < 7 {
        tokio::task::yield_now().await;
    }
    let ended = running.stop().await;
    took(&ended, place, 0.8);
    assert_eq!((ended.report.stats.released, ended.report.stats.started), (7, 2), "{}", ended.report);
    assert_eq!(tally.len(), 2, "nothing starts after a stop");
    all_come_again(&memory, 7, 1).await;
}

async fn a_second_signal_cancels_and_a_third_aborts(place: Dispatcher) {
    let (memory, tally) = (store(), Tally::default());
    push(&memory, 3);
    let deaf = |_| async {
        loop {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let first = start(memory.intake(), handler(&tally, deaf), place);
    tally.reaches(3).await;
    first.shutdown.stop();
    assert_eq!(first.shutdown.phase(), Phase::Drain);
    let ended = first.stop().await;
    // Cancelled at once, aborted half a reserve later: a tenth of the deadline.
    took(&ended, place, 0.1);
    assert!(
        ended.took < deadline(place).mul_f64(0.7),
        "the second signal did not shorten it: {:?}",
        ended.took
    );
    assert_eq!(ended.report.stats.released, 3, "{}", ended.report);

    let second = start(memory.intake(), handler(&tally, deaf), place);
    tally.reaches(6).await;
    second.shutdown.stop();
    second.shutdown.stop();
    let ended = second.stop().await;
    took(&ended, place, 0.0);
    assert!(
        ended.took < deadline(place).mul_f64(0.7),
        "the third signal did not shorten it: {:?}",
        ended.took
    );
    assert_eq!((ended.report.stats.released, ended.report.stats.aborted), (3, 3), "{}", ended.report);
    all_come_again(&memory, 3, 1).await;
}

async fn leases_are_renewed_while_draining(place: Dispatcher) {
    // Three lease lifetimes of draining: under the real clock with the shortest lease that a busy machine
    // can be trusted to renew.
    let (ttl, drain) = match place {
        Dispatcher::OwnThread => (Duration::from_millis(600), Duration::from_millis(1800)),
        Dispatcher::Shared => (Duration::from_secs(2), Duration::from_secs(7)),
    };
    let memory = Memory::builder().lease_ttl(ttl).build().expect("the settings are good");
    let (server, tally) = (Server::new(memory), Tally::default());
    push(server.memory(), 5);
    let begun = tally.clone();
    let registry = Registry::new().handle_raw(KIND, move |context: Context| {
        begun.begins(&context);
        sleep(drain)
    });
    let builder = worker(server.intake(), registry, place).shutdown_deadline(drain * 10);
    let running = Running::start(builder.build().expect("the settings are good"));
    tally.reaches(5).await;
    let asked = Instant::now();
    let ended = running.stop().await;
    assert_eq!(ended.report.stats.done, 5, "{}", ended.report);
    let while_draining = server.calls(Verb::Renew).iter().filter(|call| call.at > asked).count();
    assert!(while_draining >= 3, "{while_draining} renewals in three lease lifetimes");
    assert!(finish_elsewhere(server.memory()).await.is_empty());
}

async fn the_handle_stops_it_as_well(place: Dispatcher) {
    let (memory, tally) = (store(), Tally::default());
    push(&memory, 2);
    let deaf = |_| async {
        loop {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let running = start(memory.intake(), handler(&tally, deaf), place);
    tally.reaches(2).await;
    running.handle.stop();
    running.handle.stop();
    running.handle.stop();
    let ended = running.ended().await;
    took(&ended, place, 0.0);
    assert_eq!(ended.report.stats.released, 2, "{}", ended.report);
    all_come_again(&memory, 2, 1).await;
}

async fn a_deadline_of_zero_ends_at_once(place: Dispatcher) {
    let (memory, tally) = (store(), Tally::default());
    push(&memory, 2);
    let deaf = |_| async {
        loop {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let builder = worker(memory.intake(), handler(&tally, deaf), place).shutdown_deadline(Duration::ZERO);
    let running = Running::start(builder.build().expect("the settings are good"));
    tally.reaches(2).await;
    let ended = running.stop().await;
    assert!(ended.took <= Duration::from_secs(1), "took {:?}", ended.took);
    assert_eq!(ended.report.stats.lost, ended.report.held.len() as u64);
    assert_eq!(finish_elsewhere(&memory).await.len(), 2);
}

async fn a_deadline_too_long_for_the_clock_still_drains(place: Dispatcher) {
    let (memory, tally) = (store(), Tally::default());
    push(&memory, 2);
    let registry = handler(&tally, |_| async {
        sleep(Duration::from_millis(100)).await;
        Outcome::Done
    });
    let built = worker(memory.intake(), registry, place).shutdown_deadline(Duration::MAX).build();
    match built {
        Ok(worker) => {
            let running = Running::start(worker);
            tally.reaches(2).await;
            assert_eq!(running.stop().await.report.stats.done, 2);
        }
        Err(error) => assert!(refuses(&error, "shutdown_deadline"), "{error}"),
    }
}

/// It is an error that names the setting (P10).
fn refuses(error: &Error, setting: &str) -> bool {
    error.is_invalid_input() && error.to_string().contains(setting)
}

/// However it is stopped: as long as the deadline leaves time, the answer of a pop that is under way is waited
/// for, since what it brings stands nowhere else.
async fn a_pop_under_way_is_not_cut(place: Dispatcher, signals: usize, reply: Duration) {
    let pops = Pops::new(1, reply);
    let registry = handler(&Tally::default(), |_| async { Outcome::Done });
    let running = start(pops.intake(), registry, place);
    pops.popped().await;
    for _ in 1..signals {
        running.shutdown.stop();
    }
    let ended = running.stop().await;
    assert!(ended.took <= deadline(place), "took {:?}", ended.took);
    assert_eq!((ended.report.stats.released, pops.len()), (1, 1), "the job is lost: {}", ended.report);
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_cut_a_pop_that_answers_within_the_deadline() {
    patiently(a_pop_under_way_is_not_cut(Dispatcher::Shared, 1, Duration::from_secs(9))).await;
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_does_not_cut_a_pop_that_is_about_to_answer() {
    patiently(a_pop_under_way_is_not_cut(Dispatcher::Shared, 2, Duration::from_millis(100))).await;
}

#[tokio::test(start_paused = true)]
async fn a_third_signal_does_not_cut_a_pop_that_is_about_to_answer() {
    patiently(a_pop_under_way_is_not_cut(Dispatcher::Shared, 3, Duration::from_millis(100))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_run_does_not_cut_a_pop_that_is_about_to_answer() {
    let pops = Pops::new(1, Duration::from_millis(20));
    let registry = handler(&Tally::default(), |_| async { Outcome::Done });
    let running = start(pops.intake(), registry, Dispatcher::OwnThread);
    pops.popped().await;
    let handle = running.handle.clone();
    running.drop_run().await;
    tokio::task::spawn_blocking(move || {
        soon("the worker has ended", || handle.stats().state == State::Ended);
        assert_eq!((handle.stats().released, pops.len()), (1, 1), "the job is lost: {:?}", handle.stats());
    })
    .await
    .expect("it does not panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_run_hands_back_what_it_held() {
    let (memory, tally) = (store(), Tally::default());
    push(&memory, 5);
    let registry = handler(&tally, |_| async {
        loop {
            sleep(Duration::from_millis(10)).await;
        }
    });
    let builder = worker(memory.intake(), registry, Dispatcher::OwnThread).max_concurrent_jobs(3).prefetch(2);
    let running = Running::start(builder.build().expect("the settings are good"));
    tally.reaches(3).await;
    let handle = running.handle.clone();
    running.drop_run().await;
    tokio::task::spawn_blocking(move || {
        soon("the worker has ended", || handle.stats().state == State::Ended)
    })
    .await
    .expect("it ends");
    all_come_again(&memory, 5, 1).await;
}

/// A shared dispatcher goes with the future; then it is the leases that bring the jobs back.
#[tokio::test(start_paused = true)]
async fn dropping_run_under_a_shared_dispatcher_ends_the_jobs_and_loses_none() {
    let (memory, tally) = (store(), Tally::default());
    push(&memory, 3);
    let alive = Arc::new(());
    let (begun, held) = (tally.clone(), alive.clone());
    let registry = Registry::new().handle_raw(KIND, move |context: Context| {
        begun.begins(&context);
        let held = held.clone();
        async move {
            std::future::pending::<()>().await;
            drop(held);
        }
    });
    let running = start(memory.intake(), registry, Dispatcher::Shared);
    tally.reaches(3).await;
    assert_eq!(Arc::strong_count(&alive), 5);
    running.drop_run().await;
    tokio::task::yield_now().await;
    assert_eq!(Arc::strong_count(&alive), 1, "no job is left, and no handler");
    assert_eq!(finish_elsewhere(&memory).await.len(), 3);
}

/// A source that is never empty and never waits.
struct Torrent(AtomicU64);

#[async_trait]
impl Source for Torrent {
    async fn fetch(&self, wanted: &FetchRequest, _: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        let deliver = |_| {
            let key = self.0.fetch_add(1, Ordering::Relaxed);
            let job =
                Job::new(JobId::new("drop"), Kind::new(KIND), Default::default(), SystemTime::UNIX_EPOCH);
            Delivery { job: Arc::new(job), attempt: 1, tag: Tag { session: 0, key, token: 0 }, lease: None }
        };
        Ok((0..wanted.max.get()).map(deliver).collect())
    }

    async fn settle(&self, _: &[Settled]) -> Result<Stale, Error> {
        Ok(Stale::default())
    }
}

/// However busy the loop is, it hears of a stop, answers questions and tells the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_at_full_load_hears_of_everything_at_once() {
    for slots in [1, 64, 1000] {
        let registry = Registry::new().handle_raw(KIND, |_: Context| async {});
        let builder =
            worker(Intake::fixed(Arc::new(Torrent(AtomicU64::new(0)))), registry, Dispatcher::OwnThread);
        let running =
            Running::start(builder.max_concurrent_jobs(slots).build().expect("the settings are good"));
        while running.handle.stats().done < 3_000 {
            tokio::task::yield_now().await;
        }
        let asked = Instant::now();
        running.handle.jobs().await;
        assert!(asked.elapsed() < Duration::from_millis(900), "a question took {:?}", asked.elapsed());
        let ended = running.stop().await;
        assert!(ended.took < Duration::from_millis(900), "took {:?}: {}", ended.took, ended.report);
        let Stats { fetched, done, released, .. } = ended.report.stats;
        assert_eq!(fetched, done + released, "{}", ended.report);
    }
}

/// A runtime with this many threads, and a worker on it whose future the calling thread drives, so that
/// blocked threads of the runtime don't hold that up.
struct Blocked {
    runtime: Runtime,
    memory: Memory,
    tally: Tally,
    gate: Gate,
}

impl Blocked {
    /// Of `jobs` jobs, as many as there are threads block theirs; the others have been handed to the runtime,
    /// which has no thread to poll them with.
    fn new(threads: usize, jobs: usize) -> Self {
        let runtime =
            Builder::new_multi_thread().worker_threads(threads).enable_all().build().expect("a runtime");
        let this = Self { runtime, memory: store(), tally: Tally::default(), gate: Gate::default() };
        push(&this.memory, jobs);
        this
    }

    /// Runs a worker on it; `when_blocked` is called once every thread is blocked and every job started.
    fn run(&self, deadline: Duration, when_blocked: impl AsyncFnOnce(&Shutdown, &WorkerHandle)) -> Ended {
        let (tally, gate) = (self.tally.clone(), self.gate.clone());
        let registry = Registry::new().handle_raw(KIND, move |context: Context| {
            tally.begins(&context);
            gate.block();
            async {}
        });
        let builder =
            worker(self.memory.intake(), registry, Dispatcher::OwnThread).shutdown_deadline(deadline);
        let worker = builder.build().expect("the settings are good");
        let (shutdown, handle) = (Shutdown::new(), worker.handle());
        let threads = self.runtime.metrics().num_workers();
        let waiting = self.memory.clone();
        let stopped = async {
            self.tally.reaches(threads).await;
            let all = waiting.counts().await.expect("memory counts").unfinished();
            // No timer of this runtime rings any more: its threads are blocked.
            soon("every job was handed to the runtime", || handle.stats().started == all);
            let asked = Instant::now();
            when_blocked(&shutdown, &handle).await;
            asked
        };
        let (report, asked) =
            self.runtime.block_on(async { tokio::join!(worker.run(shutdown.clone()), stopped) });
        balanced(&report.stats);
        Ended { report, took: asked.elapsed() }
    }

    /// What a second worker, on a runtime that is not blocked, finds.
    fn finish_elsewhere(&self) -> Vec<(String, u32)> {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(finish_elsewhere(&self.memory))
    }
}

/// Waits until the loop has heard of a signal that was given before: it answers one question at a time, and
/// looks at its signals between two.
async fn obeyed(handle: &WorkerHandle) {
    handle.jobs().await;
    handle.jobs().await;
}

#[test]
fn with_every_runtime_thread_blocked_it_ends_in_time_and_loses_nothing() {
    let blocked = Blocked::new(2, 20);
    let _opener = blocked.gate.opener();
    let ended = blocked.run(Duration::from_secs(1), async |shutdown, _| _ = shutdown.stop());
    assert!(ended.took <= Duration::from_secs(2), "took {:?}: {}", ended.took, ended.report);
    let Stats { fetched, lost, released, .. } = ended.report.stats;
    assert_eq!((fetched, lost + released), (20, 20), "{}", ended.report);
    assert_eq!(ended.report.held.len() as u64, lost);
    let blocking: Vec<_> = ended.report.held.iter().filter(|job| job.phase == JobPhase::Stuck).collect();
    assert_eq!(
        blocking.len(),
        2,
        "the two that block their threads are named as such: {:?}",
        ended.report.held
    );
    assert_eq!(blocked.finish_elsewhere().len(), 20);
}

#[test]
fn jobs_that_no_thread_was_free_for_are_handed_back_uncounted() {
    let blocked = Blocked::new(2, 20);
    let _opener = blocked.gate.opener();
    let ended = blocked.run(Duration::from_secs(1), async |shutdown, _| _ = shutdown.stop());
    assert_eq!((ended.report.stats.released, ended.report.stats.lost), (18, 2), "{}", ended.report);
    let mut again = blocked.finish_elsewhere();
    again.retain(|(_, attempt)| *attempt == 1);
    assert_eq!(again.len(), 18, "their handlers never ran, so that no attempt counts");
}

#[test]
fn a_job_that_has_not_begun_when_jobs_are_cancelled_never_begins() {
    let blocked = Blocked::new(1, 5);
    let _opener = blocked.gate.opener();
    let ended = blocked.run(Duration::from_secs(10), async |shutdown, handle| {
        shutdown.stop();
        shutdown.stop();
        obeyed(handle).await;
        blocked.gate.open();
    });
    assert_eq!(blocked.tally.len(), 1, "only the one that was running when it was stopped");
    assert_eq!((ended.report.stats.done, ended.report.stats.released), (1, 4), "{}", ended.report);
}

#[test]
fn a_job_that_has_not_begun_when_the_stop_comes_never_begins() {
    let blocked = Blocked::new(1, 5);
    let _opener = blocked.gate.opener();
    let ended = blocked.run(Duration::from_secs(10), async |shutdown, handle| {
        shutdown.stop();
        obeyed(handle).await;
        blocked.gate.open();
    });
    assert_eq!(blocked.tally.len(), 1, "only the one that was running when it was stopped");
    assert_eq!((ended.report.stats.done, ended.report.stats.released), (1, 4), "{}", ended.report);
}

/// Runs `worker` with its jobs on `runtime`, but driven by a thread of its own.
fn drive(worker: Worker, runtime: &Runtime) -> std::thread::JoinHandle<Report> {
    let jobs = runtime.handle().clone();
    let drive = move || {
        let driver = Builder::new_current_thread().build().expect("a runtime");
        driver.block_on(async {
            let _jobs_run_there = jobs.enter();
            worker.run(Shutdown::new()).await
        })
    };
    std::thread::Builder::new().name("driver".into()).spawn(drive).expect("a thread")
}

#[test]
fn a_worker_whose_runtime_is_shut_down_hands_its_jobs_back_and_ends() {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (memory, tally) = (store(), Tally::default());
    push(&memory, 8);
    let registry = handler(&tally, |_| std::future::pending());
    let builder = worker(memory.intake(), registry, Dispatcher::OwnThread).max_concurrent_jobs(5).prefetch(3);
    let driver = drive(builder.build().expect("the settings are good"), &runtime);
    runtime.block_on(tally.reaches(5));
    runtime.shutdown_background();
    let report = driver.join().expect("run does not panic");
    balanced(&report.stats);
    assert_eq!((report.stats.fetched, report.stats.released), (8, 8), "{report}");
    let elsewhere = Builder::new_current_thread().enable_all().build().expect("a runtime");
    elsewhere.block_on(all_come_again(&memory, 8, 1));
}

/// It learns of it from the first job that can't be run, even one that no thread has seen.
#[test]
fn an_idle_worker_whose_runtime_is_shut_down_ends_with_the_next_job() {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let server = Server::new(store());
    let registry = handler(&Tally::default(), |_| async { Outcome::Done });
    let worker =
        worker(server.intake(), registry, Dispatcher::OwnThread).build().expect("the settings are good");
    let handle = worker.handle();
    let driver = drive(worker, &runtime);
    runtime.block_on(server.called(Verb::Fetch, 1));
    runtime.shutdown_background();
    push(server.memory(), 3);
    soon("the worker has ended", || handle.stats().state == State::Ended);
    let report = driver.join().expect("run does not panic");
    balanced(&report.stats);
    assert_eq!(report.stats.lost, 0, "{report}");
    let elsewhere = Builder::new_current_thread().enable_all().build().expect("a runtime");
    elsewhere.block_on(all_come_again(server.memory(), 3, 1));
}

/// Nobody can then be told, but the jobs are back in time.
#[test]
fn a_worker_ends_in_time_though_the_only_thread_that_could_hear_of_it_is_blocked() {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (memory, tally, gate) = (store(), Tally::default(), Gate::default());
    let _opener = gate.opener();
    push(&memory, 4);
    let (begun, blocked) = (tally.clone(), gate.clone());
    let registry = Registry::new().handle_raw(KIND, move |context: Context| {
        begun.begins(&context);
        blocked.block();
        async {}
    });
    let worker =
        worker(memory.intake(), registry, Dispatcher::OwnThread).build().expect("the settings are good");
    let (handle, shutdown) = (worker.handle(), Shutdown::new());
    let stop = shutdown.clone();
    let watch = move || {
        soon("every job was handed to the runtime", || handle.stats().started == 4 && tally.len() == 1);
        let asked = Instant::now();
        stop.stop();
        soon("the worker has ended", || handle.stats().state == State::Ended);
        gate.open();
        (asked.elapsed(), handle.stats())
    };
    let watcher = std::thread::Builder::new().name("watcher".into()).spawn(watch).expect("a thread");
    let report = runtime.block_on(worker.run(shutdown));
    let (took, stats) = watcher.join().expect("it does not panic");
    assert!(took <= latest(Dispatcher::OwnThread), "took {took:?}: {report}");
    assert_eq!((stats.fetched, stats.lost, stats.released), (4, 1, 3), "{report}");
    assert_eq!(runtime.block_on(finish_elsewhere(&memory)).len(), 4);
}

#[test]
fn a_blocking_handler_is_not_handed_back_while_it_runs_though_the_runtime_is_gone() {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (memory, tally, gate) = (store(), Tally::default(), Gate::default());
    let _opener = gate.opener();
    push(&memory, 1);
    let begun = tally.clone();
    let registry = Registry::new().handle_blocking_raw(KIND, move |context: Context| {
        begun.begins(&context);
        gate.block();
    });
    let worker =
        worker(memory.intake(), registry, Dispatcher::OwnThread).build().expect("the settings are good");
    let driver = drive(worker, &runtime);
    runtime.block_on(tally.reaches(1));
    runtime.shutdown_background();
    let report = driver.join().expect("run does not panic");
    balanced(&report.stats);
    assert_eq!((report.stats.released, report.stats.lost), (0, 1), "it would run twice at once: {report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_that_blocks_its_thread_does_not_hold_up_the_stop() {
    let memory =
        Memory::builder().lease_ttl(Duration::from_millis(300)).build().expect("the settings are good");
    let (server, tally) = (Server::new(memory), Tally::default());
    push(server.memory(), 1);
    server.breaks(Verb::Renew, Fault::Block(Duration::from_secs(5)));
    let registry = handler(&tally, |_| std::future::pending());
    let running = start(server.intake(), registry, Dispatcher::OwnThread);
    server.called(Verb::Renew, 1).await;
    let ended = running.stop().await;
    assert!(ended.took <= latest(Dispatcher::OwnThread), "took {:?}: {}", ended.took, ended.report);
    assert_eq!(finish_elsewhere(server.memory()).await.len(), 1);
}
