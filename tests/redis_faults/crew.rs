//! Three workers of this process on one server, for faults that need no signal.

use std::time::Duration;

use tidegate::backend::redis::{Redis, RedisBuilder};
use tidegate::{Context, Inspect as _, Registry, Worker, WorkerBuilder};
use tokio::time::Instant;

use crate::books::{Balance, Books, KIND, number};
use crate::faults::running::Running;
use crate::redis::RedisServer;

/// Short, so that what was with nobody is soon run; longer than a server takes to start on a busy machine.
pub(crate) const TTL: Duration = Duration::from_secs(3);

/// How long a job takes.
pub(crate) const JOB: Duration = Duration::from_millis(5);

/// Longer than any hiccup of a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn builder(url: &str) -> RedisBuilder {
    // No job here kills its worker: each lapse is somebody else's fault.
    Redis::builder(url).lease_ttl(TTL).crash_limit(1_000)
}

pub(crate) fn open(url: &str) -> Redis {
    builder(url).open().expect("good settings")
}

/// Notes each run.
pub(crate) fn registry(books: &Books) -> Registry {
    let books = books.clone();
    Registry::new().handle_raw(KIND, move |context: Context| {
        let books = books.clone();
        async move {
            tokio::time::sleep(JOB).await;
            books.ran(number(context.payload()), context.attempt());
        }
    })
}

pub(crate) fn start(builder: WorkerBuilder) -> Running {
    Running::start(builder.build().expect("good settings"))
}

/// Three workers, each with a handle of its own as if it stood alone.
pub(crate) fn crew(url: &str, books: &Books) -> Vec<Running> {
    let worker = |number: usize| {
        let worker = Worker::builder(open(url).intake(), registry(books)).name(format!("crew-{number}"));
        // One that holds more than it runs, and one with little room.
        start(worker.max_concurrent_jobs([20, 20, 3][number]).prefetch([0, 20, 0][number]))
    };
    (0..3).map(worker).collect()
}

/// Waits until `condition` holds; fails naming `what` if it does not in time.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until so many runs are in the books: what happens next happens in the midst of them.
pub(crate) async fn until_ran(books: &Books, runs: usize) {
    until(&format!("{runs} jobs have run"), async || books.runs() >= runs).await;
}

/// Waits until nothing is left to do.
pub(crate) async fn drained(jobs: &Redis) {
    let begun = Instant::now();
    loop {
        let counts = jobs.counts().await;
        if counts.as_ref().is_ok_and(|counts| counts.unfinished() == 0) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "left over: {counts:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Stops the workers; how many settlements of theirs came too late.
pub(crate) async fn dismiss(crew: Vec<Running>) -> u64 {
    let mut stale = 0;
    for running in crew {
        let ended = running.stop().await;
        assert!(ended.report.held.is_empty(), "{}", ended.report);
        stale += ended.report.stats.stale;
    }
    stale
}

/// All that was accepted was run, nothing else was, and each job was settled once.
pub(crate) fn settled_once(server: &RedisServer, books: &Books, what: &str) -> Balance {
    let balance = books.balance();
    println!("{what}: {balance:?}");
    if balance.lost > 0 {
        let ask = |parts: &[&str]| server.command(parts).number();
        println!(
            "{} processed; {} in the queue, {} held, {} leased, {} retried, {} dead; never run: {:?}",
            processed(server),
            ask(&["LLEN", "queue:default"]),
            ask(&["HLEN", "tidegate:held"]),
            ask(&["ZCARD", "tidegate:leases"]),
            ask(&["ZCARD", "retry"]),
            ask(&["ZCARD", "dead"]),
            books.never_run(),
        );
    }
    assert_eq!((balance.lost, balance.unexpected), (0, 0), "{what}: {balance:?}");
    for key in ["dead", "retry", "schedule", "tidegate:leases"] {
        assert_eq!(server.command(&["ZCARD", key]).number(), 0, "{what}: {key}");
    }
    assert_eq!(server.command(&["HLEN", "tidegate:held"]).number(), 0, "{what}");
    balance
}

/// How many settlements the server has taken.
pub(crate) fn processed(server: &RedisServer) -> i64 {
    let counted = server.command(&["GET", "stat:processed"]).text();
    if counted.is_empty() { 0 } else { counted.parse().expect("a number") }
}
