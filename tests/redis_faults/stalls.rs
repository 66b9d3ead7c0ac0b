//! The server is away for longer than a lease, gone or silent: nobody loses a lease, what runs goes on, what has
//! ended meanwhile is settled, and what a silent server was told meanwhile has no effect when it wakes. And what that must not
//! lead to: jobs that run in two places, or wait for somebody who is gone.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tidegate::backend::redis::Redis;
use tidegate::{
    Context, Delivery, Enqueue as _, FetchRequest, Inspect as _, NewJob, Queues, ReconnectPolicy, Registry,
    Settled, Settlement, Source, Worker,
};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::books::{Books, size};
use crate::crew::{registry, start, until, until_ran};
use crate::redis::{Options, Proxy, RedisServer};

/// Jobs of this kind run until the gate is open for their number.
const GATED: &str = "gated";

/// Of the five slots three are taken for the whole time; two are freed during the outage.
const LONG: [u64; 3] = [100, 101, 102];
const ENDING: [u64; 2] = [0, 1];

/// Jobs that are done before it.
const BEFORE: u64 = 3;

/// The usual time at full size; else a fifth of it.
fn ttl() -> Duration {
    size(Duration::from_secs(6), Duration::from_secs(30))
}

fn open(url: &str) -> Redis {
    Redis::builder(url).lease_ttl(ttl()).open().expect("good settings")
}

fn policy() -> ReconnectPolicy {
    let mut policy = ReconnectPolicy::default();
    policy.call_timeout = size(Duration::from_secs(2), policy.call_timeout);
    policy
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Outage {
    /// Killed, and started again.
    Gone,
    /// Stopped, and continued: what it was sent meanwhile is still there.
    Silent,
}

async fn ride_out(outage: Outage) {
    let Some(mut server) = Options::new().append_only().start() else { return };
    let (books, gate) = (Books::default(), watch::Sender::new(0));
    let (store, opened, ended) = (open(&server.url()), gate.clone(), watch::Sender::new(0));
    let ends = ended.clone();
    let registry = registry(&books).handle_raw(GATED, move |context: Context| {
        let (mut opened, ends) = (opened.subscribe(), ends.clone());
        async move {
            let number = crate::books::number(context.payload());
            let _ = opened.wait_for(|open| *open > number).await;
            ends.send_modify(|ends| *ends += 1);
        }
    });
    let worker = Worker::builder(open(&server.url()).intake(), registry).reconnect(policy());
    let running = start(worker.max_concurrent_jobs(5).queues(Queues::strict(["default"])));
    // From its first settlement on the worker knows that it can fetch in the same exchange.
    books.enqueue(&store, 0..BEFORE).await;
    until("some are done", async || running.handle.stats().done == BEFORE).await;
    let gated = LONG.iter().chain(&ENDING).map(|number| NewJob::new(GATED, format!("[{number}]")));
    store.enqueue(gated.collect()).await.expect("enqueued");
    until("all slots are taken", async || running.handle.stats().in_flight == 5).await;
    books.enqueue(&store, BEFORE..BEFORE + 10).await;
    let wait = size(Duration::from_secs(10), Duration::from_secs(60));
    match outage {
        Outage::Gone => server.kill(),
        Outage::Silent => server.pause(),
    }
    // It is noticed by a settlement, which is told of two jobs and asks for two.
    gate.send_replace(ENDING.len() as u64);
    ended.subscribe().wait_for(|ended| *ended == ENDING.len()).await.expect("they end");
    tokio::time::sleep(wait).await;
    assert_eq!(*ended.borrow(), ENDING.len(), "what runs has not been cut off");
    tokio::task::block_in_place(|| match outage {
        Outage::Gone => server.restart(),
        Outage::Silent => server.resume(),
    });
    let back = Instant::now();
    until_ran(&books, BEFORE as usize + 1).await;
    let picked_up = back.elapsed();
    until_ran(&books, BEFORE as usize + 10).await;
    let drained = back.elapsed();
    println!("{outage:?}: a job ran {picked_up:?} after the server's return, all after {drained:?}");
    assert!(picked_up < Duration::from_secs(2), "{picked_up:?}");
    until("only what still runs is left", async || {
        store.counts().await.is_ok_and(|counts| (counts.ready, counts.leased) == (0, LONG.len() as u64))
    })
    .await;
    let drained = back.elapsed();
    // What is with nobody comes again after a lease's time.
    assert!(drained < size(Duration::from_secs(6), Duration::from_secs(20)), "{drained:?}");
    nothing_lapsed(&server);
    // Longer than the moment that leases are left alone for.
    tokio::time::sleep(size(Duration::from_secs(7), Duration::from_secs(31))).await;
    nothing_lapsed(&server);
    gate.send_replace(u64::MAX);
    until("all is done", async || store.counts().await.is_ok_and(|counts| counts.unfinished() == 0)).await;
    assert_eq!(server.command(&["ZCARD", "dead"]).number(), 0);
    let report = running.stop().await.report;
    let balance = books.balance();
    assert_eq!((balance.lost, balance.again), (0, 0), "{balance:?}");
    let stats = &report.stats;
    assert_eq!((*ended.borrow(), stats.done, stats.stale, stats.lost), (5, 15 + BEFORE, 0, 0), "{report}");
}

fn nothing_lapsed(server: &RedisServer) {
    assert_eq!(server.command(&["KEYS", "tidegate:lapsed*"]).texts(), [""; 0], "leases have been taken away");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_outlive_a_server_that_is_gone_for_longer_than_their_leases() {
    ride_out(Outage::Gone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_outlive_a_server_that_is_silent_for_longer_than_their_leases() {
    ride_out(Outage::Silent).await;
}

/// If that is what one wants.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_cancelled_when_its_lease_may_have_run_out() {
    let Some(mut server) = Options::new().append_only().start() else { return };
    let url = server.url();
    let builder = || Redis::builder(&url).lease_ttl(Duration::from_secs(2)).run_on(Duration::ZERO);
    let store = builder().open().expect("good settings");
    let cancelled = watch::Sender::new(false);
    let told = cancelled.clone();
    let registry = Registry::new().handle_raw(GATED, move |context: Context| {
        let told = told.clone();
        async move {
            context.cancelled().await;
            told.send_replace(true);
        }
    });
    let running = start(Worker::builder(builder().open().expect("good settings").intake(), registry));
    store.enqueue(vec![NewJob::new(GATED, "[0]")]).await.expect("enqueued");
    until("it runs", async || running.handle.stats().in_flight == 1).await;
    server.pause();
    let mut cancelled = cancelled.subscribe();
    tokio::time::timeout(crate::crew::PATIENCE, cancelled.wait_for(|told| *told))
        .await
        .expect("it is told")
        .expect("it runs");
    server.resume();
    assert_eq!(running.stop().await.report.stats.lost, 1);
}

/// Nothing but its heartbeat is cut off: the worker's own exchanges tell the server that it is alive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_heartbeat_alone_is_cut_off_is_not_given_out_again() {
    let Some(server) = Options::new().start() else { return };
    let proxy = Proxy::start(server.port());
    let (runs, gate) = (Arc::new(AtomicUsize::new(0)), watch::Sender::new(false));
    let (count, opened) = (runs.clone(), gate.clone());
    let registry = Registry::new().handle_raw(GATED, move |_: Context| {
        count.fetch_add(1, Ordering::Relaxed);
        let mut opened = opened.subscribe();
        async move { drop(opened.wait_for(|open| *open).await) }
    });
    let worker = Worker::builder(open(&server.url_through(proxy.port())).intake(), registry);
    let running = start(worker.queues(Queues::strict(["default"])));
    let store = open(&server.url());
    store.enqueue(vec![NewJob::new(GATED, "[0]")]).await.expect("enqueued");
    until("it waits for the next one", async || {
        runs.load(Ordering::Relaxed) == 1
            && server.clients().iter().any(|client| client.contains("cmd=blmove"))
    })
    .await;
    let before = proxy.opened();
    until("its heartbeat has a connection", async || proxy.opened() > before).await;
    proxy.refuse();
    proxy.cut_newest();
    // Long enough for its lease to run out twice.
    tokio::time::sleep(2 * ttl()).await;
    assert_eq!((proxy.open(), proxy.opened()), (before, before + 1), "the others are there");
    assert_eq!(runs.load(Ordering::Relaxed), 1, "it is run in two places");
    nothing_lapsed(&server);
    gate.send_replace(true);
    until("it is done", async || running.handle.stats().done == 1).await;
    proxy.accept();
    let report = running.stop().await.report;
    assert_eq!((report.stats.stale, report.stats.lost), (0, 0), "{report}");
}

/// A worker's session, with a lease of the usual time.
async fn session(server: &RedisServer) -> Arc<dyn Source> {
    let jobs = Redis::open(&server.url()).expect("a good URL");
    jobs.enqueue(vec![NewJob::new(GATED, "[0]"), NewJob::new(GATED, "[1]")]).await.expect("enqueued");
    jobs.intake().source.connect().await.expect("a session")
}

async fn take(source: &Arc<dyn Source>) -> Vec<Delivery> {
    let wanted = FetchRequest::new(NonZeroUsize::new(10).expect("not zero"), Duration::ZERO);
    source.fetch(&wanted, &CancellationToken::new()).await.expect("fetched")
}

/// Whether it was taken.
async fn done(source: &Arc<dyn Source>, delivery: &Delivery) -> bool {
    let settled = Settled::new(delivery.tag, Settlement::Ack);
    source.settle(&[settled]).await.expect("settled").0.is_empty()
}

/// The server's clock, in ms.
fn now_ms(server: &RedisServer) -> u64 {
    let parts = server.command(&["TIME"]).texts();
    parts[0].parse::<u64>().expect("seconds") * 1000 + parts[1].parse::<u64>().expect("microseconds") / 1000
}

fn runs_out(server: &RedisServer, delivery: &Delivery, at_ms: u64) {
    let (at, token) = (at_ms.to_string(), delivery.tag.token.to_string());
    server.command(&["ZADD", "tidegate:leases", "XX", &at, &token]);
}

#[tokio::test]
async fn after_an_outage_only_those_leases_are_good_that_ran_out_during_it() {
    let Some(server) = Options::new().start() else { return };
    let source = session(&server).await;
    let held = take(&source).await;
    assert_eq!(held.len(), 2);
    let now = now_ms(&server);
    server.command(&["SET", "tidegate:seen", &(now - 60_000).to_string()]);
    runs_out(&server, &held[0], now - 60_001);
    runs_out(&server, &held[1], now - 59_000);
    let again = take(&source).await;
    assert_eq!(again.len(), 1, "only who was dead before is not waited for");
    assert_eq!((again[0].job.id.clone(), again[0].attempt), (held[0].job.id.clone(), 2));
    assert!(!done(&source, &held[0]).await, "it was given to another");
    assert!(done(&source, &held[1]).await, "nobody could renew it");
    assert!(done(&source, &again[0]).await);
}

/// The server came back, and went away again before all workers had come back too.
#[tokio::test]
async fn who_had_no_time_to_come_back_between_two_outages_has_it_after_the_second() {
    for (seen_ago, spared) in [(20_000, true), (16_500, false)] {
        let Some(server) = Options::new().start() else { return };
        let source = session(&server).await;
        let held = take(&source).await;
        let now = now_ms(&server);
        // The first was from 80 s to 22 s ago.
        let mark = format!("{} {}", now - 17_000, now - 80_000);
        server.command(&["SET", "tidegate:lenient", &mark]);
        server.command(&["SET", "tidegate:seen", &(now - seen_ago).to_string()]);
        runs_out(&server, &held[0], now - 60_000);
        assert_eq!(done(&source, &held[0]).await, spared, "last seen {seen_ago} ms ago");
    }
}

#[tokio::test]
async fn a_moment_of_an_hour_is_one_of_a_clock_that_was_set_back() {
    let Some(server) = Options::new().start() else { return };
    let source = session(&server).await;
    let held = take(&source).await;
    let now = now_ms(&server);
    let mark = format!("{} {}", now + 3_600_000, now - 60_000);
    server.command(&["SET", "tidegate:lenient", &mark]);
    runs_out(&server, &held[0], now - 1);
    assert!(!done(&source, &held[0]).await, "too late");
    assert_eq!(take(&source).await.len(), 1, "it comes again at once");
    assert_eq!(server.command(&["EXISTS", "tidegate:lenient"]).number(), 0);
}
