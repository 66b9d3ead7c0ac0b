//! P2: neither the worker's heap nor any key of ours on the server depends on how many jobs went through.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidegate::backend::redis::Redis;
use tidegate::{Context, Enqueue as _, Inspect as _, NewJob, Outcome, Queues, Registry, RetryPolicy, Worker};

use crate::alone::{Sample, is_alone, judge};
use crate::books::{KIND, size};
use crate::crew::{start, until};
use crate::redis::RedisServer;

const ROUNDS: u64 = 10;

/// Of the first attempts some fail, and of the jobs a few for good.
fn registry() -> Registry {
    let turn = Arc::new(AtomicU64::new(0));
    Registry::new().handle_raw(KIND, move |context: Context| {
        let turn = turn.fetch_add(1, Ordering::Relaxed);
        async move {
            match turn % 100 {
                0..5 if context.attempt() == 1 => Outcome::fail("now and then"),
                99 => Outcome::reject("for good"),
                _ => Outcome::Done,
            }
        }
    })
}

/// What our own keys take on the server, in bytes.
fn our_keys(server: &RedisServer) -> usize {
    let keys = server.command(&["KEYS", "tidegate:*"]).texts();
    let bytes = keys.iter().map(|key| {
        let usage = server.command(&["MEMORY", "USAGE", key, "SAMPLES", "0"]).text();
        usage.parse::<usize>().unwrap_or(0)
    });
    bytes.sum()
}

#[test]
fn nothing_grows_with_how_many_jobs_went_through() {
    if !is_alone("flat::nothing_grows_with_how_many_jobs_went_through") {
        return;
    }
    let jobs = size(200_000, 2_000_000) / ROUNDS;
    let Some(server) = RedisServer::start() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let store = Redis::builder(&server.url()).max_dead(500).open().expect("good settings");
        let worker = Worker::builder(store.intake(), registry()).queues(Queues::strict(["default", "other"]));
        let retry = RetryPolicy::default().max_attempts(3).initial(Duration::from_millis(1));
        let running = start(worker.max_concurrent_jobs(100).prefetch(100).retry(retry));
        let mut samples = Vec::new();
        for round in 1..=ROUNDS {
            for batch in 0..jobs / 1_000 {
                let queue = if batch % 2 == 0 { "default" } else { "other" };
                let batch = (0..1_000).map(|number| NewJob::new(KIND, format!("[{number}]")).queue(queue));
                store.enqueue(batch.collect()).await.expect("enqueued");
            }
            let ended = || running.handle.stats().done + running.handle.stats().rejected;
            until("a round is done", async || ended() >= round * jobs).await;
            assert_eq!(store.counts().await.expect("counted").unfinished(), 0);
            samples.push(Sample::take(server.clients().len(), our_keys(&server)));
        }
        println!("{} jobs: {:?} ... {:?}", ROUNDS * jobs, samples[1], samples[9]);
        judge(&samples[1..]).expect("flat");
        assert!(server.command(&["ZCARD", "dead"]).number() <= 500);
        let report = running.stop().await.report;
        assert_eq!(report.stats.done + report.stats.rejected, ROUNDS * jobs, "{report}");
        until("no connection of the worker's is left", async || server.clients().len() == 1).await;
    });
}
