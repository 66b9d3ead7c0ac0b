//! P8: a lost connection never ends the worker, loses no settlement and leaks no client: one owner, one
//! reconnect at a time, capped backoff with jitter, one log line a change of state, with cause.
//!
//! Under the paused clock, with a server that can be lost, wherever no thread has to be blocked or watched.

mod faults;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use faults::jobs::{Gate, KIND, Tally, finish_elsewhere, push};
use faults::left;
use faults::log::{Log, duration};
use faults::running::{Running, patiently};
use faults::server::{Call, Fault, Server, Verb};
use tidegate::{
    ConnectionState, Context, Delivery, Dispatcher, Error, ErrorKind, FetchRequest, Inspect as _, Intake,
    Memory, ReconnectPolicy, Registry, Settled, Source, Stale, StopCause, Worker, WorkerBuilder,
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::Level;

/// 100 ms, doubled up to 2 s, of which chance takes off up to a half.
fn policy() -> ReconnectPolicy {
    ReconnectPolicy::default()
}

fn store(lease: Duration) -> Memory {
    Memory::builder().lease_ttl(lease).build().expect("the settings are good")
}

/// A server on a store with a lease that outlives any outage here.
fn server() -> Server {
    Server::new(store(Duration::from_secs(3600)))
}

/// Runs every job until `time` has passed.
fn lasting(tally: &Tally, time: Duration) -> Registry {
    let tally = tally.clone();
    Registry::new().handle_raw(KIND, move |context: Context| {
        tally.begins(&context);
        sleep(time)
    })
}

fn worker(server: &Server, registry: Registry) -> WorkerBuilder {
    Worker::builder(server.intake(), registry).dispatcher(Dispatcher::Shared).seed(7)
}

fn start(builder: WorkerBuilder) -> Running {
    Running::start(builder.build().expect("the settings are good"))
}

fn idle(server: &Server) -> Running {
    start(worker(server, lasting(&Tally::default(), Duration::ZERO)))
}

/// From each call to the next.
fn gaps(calls: &[Call]) -> Vec<Duration> {
    calls.windows(2).map(|pair| pair[1].at - pair[0].at).collect()
}

/// The whole backoff after so many failures, before chance takes its part off.
fn whole(failures: u32) -> Duration {
    (policy().initial * 2u32.pow((failures - 1).min(16))).min(policy().cap)
}

/// One tick of the runtime's clock: a sleep ends on a full millisecond.
const TICK: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn the_backoff_grows_to_its_cap_and_chance_takes_a_part_off() {
    let server = server();
    server.goes_down();
    let running = idle(&server);
    patiently(server.called(Verb::Connect, 40)).await;
    let gaps = gaps(&server.calls(Verb::Connect));
    for (gap, failures) in gaps.iter().zip(1..) {
        let whole = whole(failures);
        assert!(
            *gap >= whole / 2 && *gap <= whole + TICK,
            "{gap:?} after {failures} failures of at most {whole:?}"
        );
    }
    let capped = &gaps[6..];
    let distinct = capped.iter().collect::<std::collections::HashSet<_>>().len();
    assert!(distinct > capped.len() / 2, "chance takes something else off each time: {capped:?}");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_wait_that_is_logged_is_the_wait_that_is_slept() {
    let log = Log::record();
    let server = server();
    let running = idle(&server);
    patiently(async {
        for round in 0..20 {
            server.called(Verb::Fetch, round + 1).await;
            // The first connection of a round is lost, and then a few are refused.
            server.next(Verb::Connect, vec![Some(Fault::Fail(ErrorKind::Connection)); round % 4]);
            server.cut();
        }
        server.called(Verb::Fetch, 21).await;
    })
    .await;
    running.stop().await;
    let source =
        |line: &faults::log::Line| line.fields.get("connection").is_some_and(|what| what.contains("source"));
    let waits: Vec<_> = log.with(Level::DEBUG, "next attempt").into_iter().filter(source).collect();
    let attempts = server.calls(Verb::Connect);
    assert_eq!(waits.len() + 1, attempts.len(), "each attempt but the first was announced");
    for (line, attempt) in waits.iter().zip(&attempts[1..]) {
        let (logged, slept) = (duration(&line.fields["wait"]), attempt.at - line.at);
        assert!(slept >= logged && slept <= logged + TICK, "logged {logged:?}, slept {slept:?}");
    }
    // The line that people see says the same as that for the curious.
    for line in log.with(Level::WARN, "connection is down") {
        let same = waits.iter().find(|wait| wait.at == line.at).expect("both are written at once");
        assert_eq!(line.fields["wait"], same.fields["wait"]);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_fail_together_cause_one_reconnect() {
    let (server, tally) = (server(), Tally::default());
    push(server.memory(), 40);
    // Twenty end in one moment, while a fetch waits for more, and their settlement is under way.
    server.next(Verb::Settle, [Some(Fault::Hang)]);
    let running = start(worker(&server, lasting(&tally, Duration::from_secs(1))).max_concurrent_jobs(60));
    patiently(async {
        server.called(Verb::Settle, 1).await;
        server.called(Verb::Fetch, 2).await;
        server.cut();
        server.memory().drained().await;
    })
    .await;
    let ended = running.stop().await;
    assert_eq!(server.calls(Verb::Connect).len(), 2, "one at the start, one for both calls");
    assert_eq!((ended.report.stats.done, ended.report.stats.stale), (40, 0), "{}", ended.report);
}

/// Nor does one that fails long after: it was made on a session that has gone, and says nothing of the next.
#[tokio::test(start_paused = true)]
async fn a_call_that_fails_late_does_not_end_the_session_that_came_after_its_own() {
    let (server, tally) = (server(), Tally::default());
    push(server.memory(), 1);
    server.next(Verb::Fetch, [None, Some(Fault::FailLate(Duration::from_secs(8), ErrorKind::Connection))]);
    server.next(Verb::Settle, [Some(Fault::Fail(ErrorKind::Connection))]);
    let running = start(worker(&server, lasting(&tally, Duration::from_secs(1))));
    patiently(async {
        server.memory().drained().await; // through the second session
        server.called(Verb::Fetch, 4).await; // the second has failed, and the third waited its time out
    })
    .await;
    assert_eq!(running.stop().await.report.stats.done, 1);
    let sessions: Vec<_> = server.calls(Verb::Fetch).iter().map(|call| call.session).collect();
    assert_eq!(sessions, [1, 1, 2, 2]);
    assert_eq!(server.calls(Verb::Connect).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_state_of_the_connection_can_be_read() {
    let server = server();
    let running = idle(&server);
    let mut state = running.handle.connection();
    patiently(async {
        state.wait_for(|state| matches!(state, ConnectionState::Up { .. })).await.expect("it runs");
        server.called(Verb::Fetch, 1).await;
        let before = Instant::now();
        server.goes_down();
        let enough = |state: &ConnectionState| matches!(state, ConnectionState::Down { failures, .. } if *failures >= 5);
        let down = state.wait_for(enough).await.expect("it runs").clone();
        let ConnectionState::Down { since, cause, .. } = down else { panic!("it is down: {down:?}") };
        assert_eq!(since, before, "since it was lost, however often it was tried since");
        assert!(cause.contains("the server says no"), "the cause is told: {cause}");
        server.comes_back();
        let up = state.wait_for(|state| matches!(state, ConnectionState::Up { .. })).await.expect("it runs").clone();
        let ConnectionState::Up { since } = up else { panic!("it is up: {up:?}") };
        assert_eq!(since, Instant::now());
    })
    .await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_accepts_and_then_fails_is_backed_off_from() {
    let server = server();
    server.breaks(Verb::Fetch, Fault::Fail(ErrorKind::Connection));
    let running = idle(&server);
    patiently(sleep(Duration::from_secs(300))).await;
    let attempts = server.calls(Verb::Connect);
    let gaps = gaps(&attempts);
    for (gap, failures) in gaps.iter().zip(1..) {
        assert!(*gap >= whole(failures) / 2, "only {gap:?} after failure {failures}");
    }
    // Between half of the cap, which is 1 s, and the cap, and a few more at the beginning.
    assert!((300..=610).contains(&attempts.len()), "{} attempts in 300 s", attempts.len());
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_that_served_makes_its_loss_a_new_outage() {
    let server = server();
    let running = idle(&server);
    patiently(async {
        for round in 1..=10 {
            server.called(Verb::Fetch, 2 * round).await; // one was answered, so that it has served
            let lost = Instant::now();
            server.cut();
            server.called(Verb::Connect, round + 1).await;
            assert!(lost.elapsed() <= whole(1) + TICK, "round {round}: back after {:?}", lost.elapsed());
        }
    })
    .await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_hangs_is_given_up_and_tried_again() {
    let server = server();
    server.next(Verb::Connect, [Some(Fault::Hang)]);
    let running = idle(&server);
    let began = Instant::now();
    patiently(server.called(Verb::Fetch, 1)).await;
    let latest = policy().call_timeout + whole(1) + 2 * TICK;
    assert!(
        began.elapsed() >= policy().call_timeout && began.elapsed() <= latest,
        "took {:?}",
        began.elapsed()
    );
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn after_two_hundred_lost_connections_only_the_current_sessions_are_alive() {
    let (server, tally) = (server(), Tally::default());
    push(server.memory(), 1);
    let running = start(worker(&server, lasting(&tally, Duration::from_secs(24 * 3600))));
    patiently(async {
        tally.reaches(1).await;
        server.called(Verb::Fetch, 2).await;
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        for round in 0..200 {
            let fetches = server.calls(Verb::Fetch).len();
            server.next(Verb::Connect, vec![Some(Fault::Fail(ErrorKind::Unavailable)); round % 3]);
            server.cut();
            server.called(Verb::Fetch, fetches + 1).await;
            assert_eq!(server.sessions_alive(), 1, "after {round} losses");
        }
        assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), tasks);
    })
    .await;
    let shutdown = running.shutdown.clone();
    shutdown.stop();
    shutdown.stop();
    running.stop().await;
    assert_eq!(server.sessions_alive(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_settlement_that_was_lost_on_its_way_is_settled_once() {
    let (server, tally) = (server(), Tally::default());
    push(server.memory(), 30);
    server.next(Verb::Settle, [Some(Fault::Hang)]);
    let running = start(worker(&server, lasting(&tally, Duration::from_millis(10))));
    patiently(async {
        server.called(Verb::Settle, 1).await;
        server.cut();
        server.memory().drained().await;
    })
    .await;
    let ended = running.stop().await;
    assert_eq!((ended.report.stats.done, ended.report.stats.stale), (30, 0), "{}", ended.report);
    assert_eq!(tally.len(), 30, "no job ran twice");
    assert_eq!(server.memory().counts().await.expect("memory counts").done, 30);
}

#[tokio::test(start_paused = true)]
async fn a_settlement_whose_answer_was_lost_is_reported_stale_and_changes_nothing() {
    let (server, tally) = (server(), Tally::default());
    push(server.memory(), 20);
    server.next(Verb::Settle, [Some(Fault::ReplyLost)]);
    let running = start(worker(&server, lasting(&tally, Duration::from_millis(10))));
    patiently(async {
        tally.reaches(20).await;
        while running.handle.stats().in_flight > 0 {
            sleep(TICK).await;
        }
    })
    .await;
    let ended = running.stop().await;
    assert_eq!(ended.report.stats.done + ended.report.stats.stale, 20, "{}", ended.report);
    assert!(ended.report.stats.stale > 0, "the first batch was carried out: {}", ended.report);
    assert_eq!(tally.len(), 20, "no job ran twice");
    assert_eq!(server.memory().counts().await.expect("memory counts").done, 20);
}

#[tokio::test(start_paused = true)]
async fn settlements_outlast_a_long_outage() {
    let (server, tally) = (server(), Tally::default());
    push(server.memory(), 20);
    let running = start(worker(&server, lasting(&tally, Duration::from_secs(10))));
    patiently(async {
        tally.reaches(20).await;
        server.goes_down();
        sleep(Duration::from_secs(300)).await;
        server.comes_back();
        let back = Instant::now();
        server.memory().drained().await;
        assert!(
            back.elapsed() <= policy().cap + TICK,
            "settled {:?} after the server's return",
            back.elapsed()
        );
    })
    .await;
    let ended = running.stop().await;
    assert_eq!((ended.report.stats.done, ended.report.stats.started), (20, 20), "{}", ended.report);
}

/// P5 as well: whose lease ran out while the settlement waited for a connection must not send it.
#[tokio::test(start_paused = true)]
async fn a_settlement_whose_lease_ran_out_during_the_outage_is_not_sent() {
    let (server, tally) = (Server::new(store(Duration::from_secs(10))), Tally::default());
    push(server.memory(), 3);
    let running = start(worker(&server, lasting(&tally, Duration::from_secs(1))));
    patiently(async {
        tally.reaches(3).await;
        server.goes_down();
        sleep(Duration::from_secs(60)).await; // and no heartbeat gets through either
        assert_eq!(server.calls(Verb::Settle).len(), 0);
        let tags: Vec<_> = server.calls(Verb::Renew).into_iter().flat_map(|call| call.tags).collect();
        server.comes_back();
        // Whoever has them now (this worker) runs them under new leases.
        server.memory().drained().await;
        tags
    })
    .await;
    let ended = running.stop().await;
    assert_eq!((ended.report.stats.lost, ended.report.stats.stale), (3, 0), "{}", ended.report);
    assert_eq!(ended.report.stats.done, 3, "{}", ended.report);
}

#[tokio::test(start_paused = true)]
async fn workers_with_different_seeds_do_not_come_back_in_step() {
    let attempts = async |seed: u64| {
        let server = server();
        server.goes_down();
        let began = Instant::now();
        let running = start(worker(&server, lasting(&Tally::default(), Duration::ZERO)).seed(seed));
        patiently(server.called(Verb::Connect, 60)).await;
        running.stop().await;
        server.calls(Verb::Connect).iter().map(|call| call.at - began).collect::<Vec<_>>()
    };
    let (one, other, same) = (attempts(1).await, attempts(2).await, attempts(1).await);
    assert_eq!(one, same, "a seed decides it all");
    let (one, other) = (&one[1..], &other[1..]);
    let close = |at: &&Duration| other.iter().any(|there| there.abs_diff(**at) <= Duration::from_millis(10));
    let together = one.iter().filter(close).count();
    // By chance about one in seventy-five waits is that close; nothing like half of them.
    assert!(together < one.len() / 4, "{together} of {} attempts fall together", one.len());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_good_ends_the_worker_with_its_cause() {
    let (server, tally) = (server(), Tally::default());
    push(server.memory(), 4);
    let running = start(worker(&server, lasting(&tally, Duration::from_secs(1))));
    let report = patiently(async {
        tally.reaches(4).await;
        server.breaks(Verb::Connect, Fault::Fail(ErrorKind::Denied));
        server.cut();
        running.ended().await.report
    })
    .await;
    let StopCause::Failed(error) = &report.cause else { panic!("it failed: {report}") };
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert_eq!(
        (report.stats.fetched, report.stats.lost),
        (4, 4),
        "there was nobody to settle with: {report}"
    );
}

/// Every place is taken by a settlement that waits, so that no fetch would find it out.
#[tokio::test(start_paused = true)]
async fn a_refusal_for_good_ends_a_worker_that_is_full_as_well() {
    let (server, tally) = (server(), Tally::default());
    push(server.memory(), 2);
    let running = start(worker(&server, lasting(&tally, Duration::from_secs(1))).max_concurrent_jobs(2));
    let handle = running.handle.clone();
    let ended = patiently(async {
        tally.reaches(2).await;
        server.breaks(Verb::Connect, Fault::Fail(ErrorKind::Denied));
        server.cut();
        tokio::select! {
            ended = running.ended() => Some(ended),
            () = sleep(Duration::from_secs(3600)) => None,
        }
    })
    .await;
    let Some(ended) = ended else { panic!("an hour later it still tries: {:?}", handle.stats()) };
    let StopCause::Failed(error) = &ended.report.cause else { panic!("it failed: {}", ended.report) };
    assert_eq!(error.kind(), ErrorKind::Denied);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_state_is_one_line_in_the_log() {
    let log = Log::record();
    let server = server();
    let running = idle(&server);
    patiently(async {
        for outage in 1..=3 {
            server.called(Verb::Fetch, outage).await;
            server.goes_down();
            sleep(Duration::from_secs(60)).await;
            server.comes_back();
            server.called(Verb::Fetch, outage + 1).await;
            let told = log.with(Level::INFO, "");
            assert_eq!(told.len(), 2 * outage, "one when it went, one when it came: {told:#?}");
        }
    })
    .await;
    for (line, turn) in log.with(Level::INFO, "").iter().zip(0..) {
        let down = turn % 2 == 0;
        assert_eq!(
            (line.level, line.message.as_str()),
            match down {
                true => (Level::WARN, "connection is down, retrying"),
                false => (Level::INFO, "connection is back"),
            }
        );
        assert!(line.fields["target"].contains("the server"), "it says where: {line:?}");
        let tells = if down { &line.fields["cause"] } else { &line.fields["outage"] };
        assert!(!tells.is_empty(), "{line:?}");
    }
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_busy_for_long_is_one_line_in_the_log() {
    let log = Log::record();
    let (server, tally) = (Server::new(store(Duration::from_secs(20))), Tally::default());
    push(server.memory(), 5);
    let running = start(worker(&server, lasting(&tally, Duration::from_secs(10))));
    patiently(async {
        tally.reaches(5).await;
        for verb in [Verb::Fetch, Verb::Settle, Verb::Renew] {
            server.breaks(verb, Fault::Fail(ErrorKind::Unavailable));
        }
        sleep(Duration::from_secs(17)).await; // less than the leases are trusted for
        for verb in [Verb::Fetch, Verb::Settle, Verb::Renew] {
            server.mends(verb);
        }
        server.memory().drained().await;
    })
    .await;
    let told = log.with(Level::INFO, "");
    assert!(
        told.len() <= 6,
        "{} lines: at most one for each call that fails, and one for each that is well again: {told:#?}",
        told.len()
    );
    running.stop().await;
}

/// A store that hands out one job at a time, as a list that is popped does.
struct OneByOne(Memory);

#[async_trait]
impl Source for OneByOne {
    async fn fetch(&self, wanted: &FetchRequest, stop: &CancellationToken) -> Result<Vec<Delivery>, Error> {
        let one = FetchRequest::new(NonZeroUsize::MIN, wanted.wait);
        self.0.fetch(&one, stop).await
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Stale, Error> {
        self.0.settle(settled).await
    }
}

/// A slot that is free is asked for, however fast the last answer was (P3).
#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_at_once_is_followed_by_the_next_fetch() {
    let (memory, tally) = (store(Duration::from_secs(3600)), Tally::default());
    push(&memory, 20);
    let intake = Intake::fixed(Arc::new(OneByOne(memory.clone()))).renewed_by_fixed(Arc::new(memory.clone()));
    let registry = lasting(&tally, Duration::from_secs(60));
    let running =
        start(Worker::builder(intake, registry).dispatcher(Dispatcher::Shared).max_concurrent_jobs(20));
    patiently(sleep(Duration::from_secs(1))).await;
    assert_eq!(tally.len(), 20, "slots stand idle beside jobs that wait");
    patiently(memory.drained()).await;
    assert_eq!(running.stop().await.report.stats.done, 20);
}

/// The loop sleeps through an outage, and through what comes after it.
#[tokio::test(start_paused = true)]
async fn a_fetch_that_failed_once_is_not_followed_by_a_busy_loop() {
    let server = server();
    server.next(Verb::Fetch, [Some(Fault::Fail(ErrorKind::Unavailable))]);
    let running = idle(&server);
    patiently(async {
        server.called(Verb::Fetch, 2).await;
        sleep(Duration::from_secs(5)).await;
    })
    .await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn settlements_that_wait_behind_one_under_way_do_not_make_the_loop_busy() {
    let (server, tally) = (server(), Tally::default());
    push(server.memory(), 2);
    // The first batch fails, then hangs; meanwhile a second job ends.
    server.next(
        Verb::Settle,
        [Some(Fault::Fail(ErrorKind::Unavailable)), Some(Fault::Late(Duration::from_secs(8)))],
    );
    let begun = tally.clone();
    let registry = Registry::new().handle_raw(KIND, move |context: Context| {
        begun.begins(&context);
        sleep(if context.payload()[0] == b'0' { Duration::ZERO } else { Duration::from_secs(2) })
    });
    let running = start(worker(&server, registry));
    patiently(server.memory().drained()).await;
    assert_eq!(running.stop().await.report.stats.done, 2);
}

/// The same as measured on the thread itself.
#[test]
fn an_outage_costs_no_processor_time() {
    let server = server();
    let policy = policy_with(|policy| policy.call_timeout = Duration::from_secs(60));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        server.next(Verb::Fetch, [Some(Fault::Fail(ErrorKind::Connection)), Some(Fault::Hang)]);
        let registry = lasting(&Tally::default(), Duration::ZERO);
        let builder =
            worker(&server, registry).dispatcher(Dispatcher::OwnThread).name("lazy").reconnect(policy);
        let running = start(builder.shutdown_deadline(Duration::from_secs(1)));
        server.called(Verb::Fetch, 2).await;
        let (_, before) = left::effort("tidegate-lazy");
        sleep(Duration::from_millis(500)).await;
        let (_, after) = left::effort("tidegate-lazy");
        let used = after - before;
        assert!(used < Duration::from_millis(100), "{used:?} of half a second while it waits");
        running.stop().await;
    });
}

/// A connection can die silently. The first call to notice is enough: the others, still waiting on the dead
/// session, must not keep the slots idle.
#[tokio::test(start_paused = true)]
async fn a_fetch_on_a_session_that_a_settlement_found_dead_is_called_back() {
    let (server, tally) = (server(), Tally::default());
    push(server.memory(), 1);
    let running = start(worker(&server, lasting(&tally, Duration::from_secs(1))));
    patiently(async {
        server.called(Verb::Fetch, 2).await; // it has the job and waits for more
        server.next(Verb::Settle, [Some(Fault::Fail(ErrorKind::Connection))]);
        server.called(Verb::Settle, 1).await;
        let lost = Instant::now();
        // The next fetch is to come through the new session.
        while !server.calls(Verb::Fetch).iter().any(|call| call.session > 1) {
            sleep(10 * TICK).await;
        }
        assert!(lost.elapsed() <= policy().cap, "the slots stood idle for {:?}", lost.elapsed());
    })
    .await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn whatever_kind_of_fault_passes_the_work_goes_on() {
    let (server, tally) = (Server::new(store(Duration::from_secs(30))), Tally::default());
    let running = start(worker(&server, lasting(&tally, Duration::from_millis(200))));
    let faults = [
        Fault::Fail(ErrorKind::Connection),
        Fault::Fail(ErrorKind::Timeout),
        Fault::Fail(ErrorKind::Unavailable),
        Fault::Fail(ErrorKind::Full),
        Fault::ReplyLost,
        Fault::Hang,
        Fault::Late(Duration::from_secs(3)),
    ];
    patiently(async {
        for verb in [Verb::Fetch, Verb::Settle, Verb::Renew, Verb::Connect, Verb::ConnectHeartbeat] {
            for fault in faults {
                push(server.memory(), 30);
                server.next(verb, [Some(fault)]);
                sleep(Duration::from_millis(150)).await;
                server.cut();
                server.memory().drained().await;
            }
        }
    })
    .await;
    let ended = running.stop().await;
    assert_eq!(server.memory().counts().await.expect("memory counts").done, 5 * 7 * 30, "{}", ended.report);
    assert_eq!(
        (server.sessions_alive(), server.memory().counts().await.expect("memory counts").dead),
        (0, 0)
    );
}

/// A job that blocks the runtime's only thread holds nothing up that heals.
#[test]
fn it_heals_while_every_runtime_thread_is_blocked() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let (server, tally, gate) = (server(), Tally::default(), Gate::default());
    let _opener = gate.opener();
    push(server.memory(), 1);
    let (begun, blocked) = (tally.clone(), gate.clone());
    let registry = Registry::new().handle_raw(KIND, move |context: Context| {
        begun.begins(&context);
        blocked.block();
        async {}
    });
    let running = {
        let _there = runtime.enter();
        start(worker(&server, registry).dispatcher(Dispatcher::OwnThread))
    };
    runtime.block_on(async {
        tally.reaches(1).await;
        server.called(Verb::Fetch, 2).await;
        server.cut();
        server.called(Verb::Fetch, 3).await;
        gate.open();
    });
    let ended = runtime.block_on(running.stop());
    assert_eq!(ended.report.stats.done, 1, "{}", ended.report);
    let elsewhere = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    assert!(elsewhere.block_on(finish_elsewhere(server.memory())).is_empty());
}

#[tokio::test(start_paused = true)]
async fn settings_that_make_no_sense_are_refused_by_name() {
    let refused = |change: &dyn Fn(&mut ReconnectPolicy), setting: &str| {
        let mut policy = policy();
        change(&mut policy);
        let built = worker(&server(), lasting(&Tally::default(), Duration::ZERO)).reconnect(policy).build();
        let error: Error = built.err().unwrap_or_else(|| panic!("{setting} is accepted"));
        assert!(error.is_invalid_input() && error.to_string().contains(setting), "{error}");
    };
    refused(&|policy| policy.factor = f64::NAN, "factor");
    refused(&|policy| policy.initial = Duration::ZERO, "begin above zero");
    refused(&|policy| policy.cap = policy.initial / 2, "not above its cap");
    refused(&|policy| policy.factor = 0.5, "factor");
    refused(&|policy| policy.jitter = -0.1, "jitter");
    refused(&|policy| policy.jitter = f64::NAN, "jitter");
    refused(&|policy| policy.call_timeout = Duration::ZERO, "call_timeout");
}

/// Settings at the ends of their ranges, of which none may make the loop panic.
#[tokio::test(start_paused = true)]
async fn extreme_settings_are_refused_or_work() {
    let extremes: [fn(WorkerBuilder) -> WorkerBuilder; 4] = [
        |builder| builder.fetch_wait(Duration::MAX),
        |builder| builder.cancel_grace(Duration::MAX),
        |builder| {
            builder.reconnect(policy_with(|policy| {
                (policy.initial, policy.cap) = (Duration::MAX, Duration::MAX)
            }))
        },
        |builder| builder.reconnect(policy_with(|policy| policy.call_timeout = Duration::MAX)),
    ];
    for extreme in extremes {
        let (server, tally) = (server(), Tally::default());
        push(server.memory(), 3);
        let deaf = lasting(&tally, Duration::from_secs(3600));
        match extreme(worker(&server, deaf)).job_timeout(Duration::from_secs(1)).build() {
            Err(error) => assert!(error.is_invalid_input(), "{error}"),
            Ok(worker) => {
                let running = Running::start(worker);
                patiently(async {
                    tally.reaches(3).await;
                    sleep(Duration::from_secs(2)).await;
                    server.cut();
                    sleep(Duration::from_secs(60)).await;
                    running.shutdown.stop();
                    running.stop().await;
                })
                .await;
            }
        }
    }
}

fn policy_with(change: impl FnOnce(&mut ReconnectPolicy)) -> ReconnectPolicy {
    let mut policy = policy();
    change(&mut policy);
    policy
}
