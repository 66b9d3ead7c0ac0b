//! Single steps that a fault falls into.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tidegate::backend::redis::Redis;
use tidegate::{Delivery, Enqueue as _, ErrorKind, FetchRequest, NewJob, Queue, Settled, Settlement, Source};
use tokio_util::sync::CancellationToken;

use crate::redis::{Options, RedisServer};

async fn session(server: &RedisServer) -> (Redis, Arc<dyn Source>) {
    let jobs = Redis::open(&server.url()).expect("a good URL");
    let source = jobs.intake().source.connect().await.expect("it is there");
    (jobs, source)
}

fn request(max: usize, queues: &[&str]) -> FetchRequest {
    let mut request = FetchRequest::new(NonZeroUsize::new(max).expect("not none"), Duration::ZERO);
    request.queues = queues.iter().map(|queue| Queue::new(*queue)).collect();
    request
}

async fn take(
    source: &Arc<dyn Source>,
    max: usize,
    queues: &[&str],
) -> Result<Vec<Delivery>, tidegate::Error> {
    source.fetch(&request(max, queues), &CancellationToken::new()).await
}

async fn push(jobs: &Redis, queue: &str, number: usize) {
    let job = NewJob::new("kind", format!("[{number}]")).queue(queue);
    jobs.enqueue(vec![job]).await.expect("enqueued");
}

/// As after a failover to a replica that lags, or a restart without persistence: the server gives jobs again, and knows
/// nothing of those that it gave before.
#[tokio::test]
async fn who_has_a_job_from_before_the_server_lost_its_memory_settles_no_other_job() {
    let Some(mut server) = RedisServer::start() else { return };
    let (jobs, source) = session(&server).await;
    push(&jobs, "default", 1).await;
    let before = take(&source, 1, &["default"]).await.expect("taken");
    server.kill();
    server.restart();
    let (others_jobs, others) = session(&server).await;
    push(&others_jobs, "default", 2).await;
    let now = take(&others, 1, &["default"]).await.expect("taken");
    assert_eq!((before.len(), now.len()), (1, 1));
    // The worker of before finds the server again, and settles what it has.
    let source = jobs.intake().source.connect().await.expect("it is there");
    let again = source.settle(&[Settled::new(before[0].tag, Settlement::Ack)]).await.expect("answered");
    assert_eq!(again.0.len(), 1, "it is stale");
    assert_eq!(
        server.command(&["HLEN", "tidegate:held"]).number(),
        1,
        "the other job is still with its worker"
    );
    assert_ne!(before[0].tag.token, now[0].tag.token, "no token is given twice");
}

/// A queue whose key holds something else is an error that names it; what was taken from another queue in the same step
/// is handed out, and what was settled is told.
#[tokio::test]
async fn a_key_of_another_type_loses_nothing_that_was_taken_or_settled_with_it() {
    let Some(server) = RedisServer::start() else { return };
    let (jobs, source) = session(&server).await;
    for number in 0..5 {
        push(&jobs, "good", number).await;
    }
    server.command(&["SET", "queue:bad", "a string"]);
    let queues = ["good", "bad"];
    let taken = take(&source, 10, &queues).await.expect("what there is of the good ones");
    assert_eq!(taken.len(), 5);
    let settled: Vec<_> = taken.iter().map(|taken| Settled::new(taken.tag, Settlement::Ack)).collect();
    let (stale, more) = source.exchange(&settled, &request(10, &queues)).await.expect("settled");
    assert!(stale.0.is_empty() && more.is_empty());
    assert_eq!(server.command(&["GET", "stat:processed"]).number(), 5);
    let error = take(&source, 10, &queues).await.expect_err("nothing is left but the bad one");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
}

/// Out of memory, nothing is taken that could not be noted.
#[tokio::test]
async fn a_server_that_is_full_loses_nothing() {
    let Some(server) = Options::new().start() else { return };
    let (jobs, source) = session(&server).await;
    for number in 0..20 {
        push(&jobs, "default", number).await;
    }
    let held = take(&source, 5, &["default"]).await.expect("taken");
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let error = jobs.enqueue(vec![NewJob::new("kind", "[1]")]).await.expect_err("it is full");
    assert_eq!(error.kind(), ErrorKind::Full, "{error:?}");
    // Whether it gives more just now is its affair; what it gives it has noted.
    let more = take(&source, 5, &["default"]).await.map_or(0, |taken| taken.len());
    let acks: Vec<_> = held.iter().map(|held| Settled::new(held.tag, Settlement::Ack)).collect();
    let settled = source.settle(&acks).await;
    server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    if settled.is_err() {
        assert!(source.settle(&acks).await.expect("there is room again").0.is_empty());
    }
    let left = server.command(&["LLEN", "queue:default"]).number();
    let with_us = server.command(&["HLEN", "tidegate:held"]).number();
    assert_eq!((left + with_us, with_us), (15, more as i64));
    assert_eq!(server.command(&["ZCARD", "tidegate:leases"]).number(), with_us);
}

/// A server that is full must be told what is done, or it stays so: also when somebody has died.
#[tokio::test]
async fn a_full_server_gives_back_what_a_dead_worker_held_and_takes_settlements() {
    let Some(server) = Options::new().start() else { return };
    let (jobs, source) = session(&server).await;
    for number in 0..5 {
        push(&jobs, "default", number).await;
    }
    let held = take(&source, 3, &["default"]).await.expect("taken");
    let long_ago = server.command(&["ZRANGE", "tidegate:leases", "0", "0"]).texts();
    server.command(&["ZADD", "tidegate:leases", "1", &long_ago[0]]);
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let settled: Vec<_> = [Settlement::Retry { after: Duration::ZERO }, Settlement::Reject]
        .into_iter()
        .zip(&held[1..])
        .map(|(settlement, held)| Settled::new(held.tag, settlement))
        .collect();
    assert!(source.settle(&settled).await.expect("it takes settlements").0.is_empty());
    let again = take(&source, 9, &["default"]).await.expect("it hands out jobs");
    let attempts: Vec<u32> = again.iter().map(|delivery| delivery.attempt).collect();
    assert_eq!(attempts, [2, 1, 1, 2], "the one whose lease had run out, two that waited, one that failed");
}
