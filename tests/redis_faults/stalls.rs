//! The server is away for longer than a lease, gone or silent, and jobs are to run on: nobody loses a lease, what runs goes on, what has
//! ended meanwhile is settled, and what a silent server was told meanwhile has no effect when it wakes.

use std::time::Duration;

use tidegate::backend::redis::Redis;
use tidegate::{Context, Enqueue as _, Inspect as _, NewJob, Queues, ReconnectPolicy, Worker};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::books::{Books, full, size};
use crate::crew::{registry, start, until, until_ran};
use crate::redis::{Options, RedisServer};

/// Jobs of this kind run until the gate is open for their number.
const GATED: &str = "gated";

/// Of the five slots three are taken for the whole time; two are freed during the outage.
const LONG: [u64; 3] = [100, 101, 102];
const ENDING: [u64; 2] = [0, 1];

/// Jobs that are done before it.
const BEFORE: u64 = 3;

/// With the usual times at full size; else the same in a fifth of the time.
fn open(url: &str) -> Redis {
    let builder = Redis::builder(url).run_on(Duration::from_secs(300));
    let builder = if full() { builder } else { builder.lease_ttl(Duration::from_secs(6)) };
    builder.open().expect("good settings")
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

/// Unless something else is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_cancelled_when_its_lease_may_have_run_out() {
    let Some(mut server) = Options::new().append_only().start() else { return };
    let url = server.url();
    let builder = || Redis::builder(&url).lease_ttl(Duration::from_secs(2));
    let store = builder().open().expect("good settings");
    let cancelled = watch::Sender::new(false);
    let told = cancelled.clone();
    let registry = tidegate::Registry::new().handle_raw(GATED, move |context: Context| {
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
